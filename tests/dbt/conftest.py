"""dbt on a test's own database."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import psycopg
import pytest
from dbt.cli.main import dbtRunner
from dbt.contracts.graph.manifest import Manifest
from dbt_common.behavior_flags import BehaviorFlagRendered

from tests.dbt.usage_case import UsageCase
from tokentra_dagster.dbt_manifest import project_folder
from tokentra_dagster.runtime import TELEMETRY_OFF
from tokentra_dagster.warehouse.database import Database


@pytest.fixture(scope="session")
def dbt_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parsed once, used by every build of the session."""
    return tmp_path_factory.mktemp("dbt")


def dbt_command(database: Database, target: Path, *arguments: str) -> tuple[list[str], dict[str, str]]:
    project = str(project_folder())
    arguments = arguments or ("build", "--exclude-resource-type", "unit_test")
    # Parsing has written the manifest, which is a fifth of a small run.
    unwritten = () if arguments[0] == "docs" or "--write-json" in arguments else ("--no-write-json",)
    command = [
        str(Path(sys.executable).parent / "dbt"), "--quiet", "--log-level-file", "none", *unwritten, *arguments,
        "--project-dir", project, "--profiles-dir", project, "--target-path", str(target), "--log-path", str(target / "logs"),
    ]  # fmt: skip
    return command, {**os.environ, **TELEMETRY_OFF, **database.dbt_environment()}


_manifests: dict[str, Manifest] = {}
# dbt asks the whole stack of callers who has set a flag, only to name it in a warning: with pytest's deep stack and thousands of
# modules loaded that takes seconds a run.
BehaviorFlagRendered._default_source = staticmethod(lambda: __name__)


def run_dbt(database: Database, target: Path, *arguments: str) -> tuple[bool, str]:
    """Whether dbt succeeded, and what it said. In this process, with a manifest parsed once per database name: a command of its
    own takes some five seconds before it begins."""
    command, env = dbt_command(database, target, *arguments)
    before, output = dict(os.environ), io.StringIO()
    os.environ.update(env)
    try:
        with redirect_stdout(output):
            name = database.parts["dbname"]
            if name not in _manifests:
                parsed = dbtRunner().invoke(["--quiet", "parse", *command[command.index("--project-dir") :]])
                assert parsed.success, output.getvalue() or parsed.exception
                _manifests[name] = parsed.result
            done = dbtRunner(manifest=_manifests[name]).invoke(command[1:])
    finally:
        os.environ.clear()
        os.environ.update(before)
    return done.success, output.getvalue() + (str(done.exception) if done.exception else "")


@pytest.fixture
def database(server_url: str, template_database: str) -> Iterator[Database]:
    """A migrated database of this test's own, under the one name that the manifest speaks of."""
    with database_named("test_dbt", server_url, template_database) as database:
        yield database


CHECKED = ("build", "--exclude-resource-type", "unit_test")
"""Models and the tests of their data."""
MODELS_ONLY = ("run",)


@pytest.fixture
def build(request: pytest.FixtureRequest, database: Database, dbt_target: Path) -> Callable[..., str]:
    """`build()` runs `dbt build`; other arguments replace it. Fails the test with dbt's own words.

    A module whose `MODELS` selects models builds and tests these and no others: a build of everything takes several times as long.
    """
    selected = getattr(request.module, "MODELS", None)

    def run(*arguments: str) -> str:
        arguments = arguments or CHECKED
        if selected and arguments[0] in ("build", "run", "test"):
            arguments = (*arguments, "--select", *selected.split(), "--indirect-selection", "cautious")
        success, says = run_dbt(database, dbt_target, *arguments)
        assert success, says[-4000:]
        return says

    return run


@contextmanager
def database_named(name: str, server_url: str, template: str) -> Iterator[Database]:
    """A migrated database that several tests read."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        connection.execute(f'ALTER DATABASE {name} SET search_path = "$user", public, app, raw, marts, analytics')
        yield Database(server_url.rsplit("/", 1)[0] + "/" + name)
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def run_models(database: Database, target: Path) -> None:
    """`dbt run`, without the tests of a build."""
    success, says = run_dbt(database, target, "run")
    assert success, says[-4000:]


@pytest.fixture(scope="session")
def acme(server_url: str, template_database: str, dbt_target: Path) -> Iterator[UsageCase]:
    """A built warehouse with every kind of usage in a week of one organisation; tests only read it."""
    with database_named("acme_usage", server_url, template_database) as database:
        case = UsageCase.load(database)
        run_models(database, dbt_target)
        yield case
