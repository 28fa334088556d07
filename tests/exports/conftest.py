"""A built warehouse for the tests that export from one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from tests.dbt.conftest import database_named, run_models
from tests.exports.focus_data import load_usage
from tokentra_dagster.warehouse.database import Database


@pytest.fixture(scope="session")
def built(server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """The usage of `focus_data`, rolled up; tests only read it."""
    with database_named("focus_usage", server_url, template_database) as database:
        load_usage(database)
        run_models(database, tmp_path_factory.mktemp("dbt"))
        yield database


@pytest.fixture
def warehouse(built: Database, server_url: str) -> Iterator[Database]:
    """A copy of the built warehouse that the test may change."""
    with database_copy("exports_copy", built, server_url) as database:
        yield database


@contextmanager
def database_copy(name: str, built: Database, server_url: str) -> Iterator[Database]:
    with psycopg.connect(server_url, autocommit=True) as connection:
        # dbt keeps connections, and a database that somebody uses cannot be copied.
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [built.parts["dbname"]])
    with database_named(name, server_url, built.parts["dbname"]) as database:
        yield database
