"""A built warehouse for the tests that export from one."""

from __future__ import annotations

from collections.abc import Iterator

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
