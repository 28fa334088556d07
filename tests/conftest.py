"""One embedded PostgreSQL for the whole run; every test that asks gets a migrated database of its own in it.

A migrated database is made once per process and copied (`CREATE DATABASE ... TEMPLATE`), which takes some 50 ms.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tokentra_dagster.dbt_manifest import ensure_manifest, target_folder
from tokentra_dagster.settings import Settings
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.embedded import EmbeddedServer
from tokentra_dagster.warehouse.migrate import migrate

_numbers = itertools.count(1)
for name in [name for name in os.environ if name.startswith("TOKENTRA_")]:
    del os.environ[name]
# Kept from one session to the next, under the checkout: dbt needs some five seconds to parse the project, in every new home.
PARSED = Path(__file__).parent.parent / "build" / "parsed"
PARSING = Settings.from_environment({"TOKENTRA_HOME": str(PARSED)})
os.environ["TOKENTRA_DBT_MANIFEST"] = str(target_folder(PARSING) / "manifest.json")


def pytest_configure(config: pytest.Config) -> None:
    """Once, before the workers start."""
    if not hasattr(config, "workerinput"):
        ensure_manifest(PARSING)


def _at(url: str, database: str) -> str:
    return url.rsplit("/", 1)[0] + "/" + database


@pytest.fixture(autouse=True)
def environment_stays_as_it_was() -> Iterator[None]:
    """What a job that runs in this process sets for Dagster and dbt points at a database that is gone after the test."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """Administrator's URL of a server that lives as long as the test session."""
    folder = Path(tempfile.mkdtemp(prefix="tokentra-test-"))
    folder.chmod(0o755)
    server = EmbeddedServer(folder / "var")
    try:
        url = server.start()
        with psycopg.connect(url, autocommit=True) as connection:
            # Tests kill clients, never the machine: waiting for the disk would only be waiting.
            for setting in ("fsync", "synchronous_commit", "full_page_writes"):
                connection.execute(f"ALTER SYSTEM SET {setting} = off")
            connection.execute("SELECT pg_reload_conf()")
        yield url
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def template_database(server_url: str) -> str:
    """Name of a migrated, empty database."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE template_migrated")
    migrate(Database(_at(server_url, "template_migrated")))
    return "template_migrated"


@pytest.fixture
def database(server_url: str, template_database: str) -> Iterator[Database]:
    """A migrated database of this test's own."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template_database}")
        connection.execute(f'ALTER DATABASE {name} SET search_path = "$user", public, app, raw, marts, analytics')
        yield Database(_at(server_url, name))
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
