"""dbt on a test's own database."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tokentra_dagster.runtime import TELEMETRY_OFF
from tokentra_dagster.transform import project_folder
from tokentra_dagster.warehouse.database import Database


@pytest.fixture(scope="session")
def dbt_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parsed once, used by every build of the session."""
    return tmp_path_factory.mktemp("dbt")


def dbt_command(database: Database, target: Path, *arguments: str) -> tuple[list[str], dict[str, str]]:
    project = str(project_folder())
    command = [
        str(Path(sys.executable).parent / "dbt"), "--quiet", *(arguments or ("build", "--exclude-resource-type", "unit_test")),
        "--project-dir", project, "--profiles-dir", project, "--target-path", str(target), "--log-path", str(target / "logs"),
    ]  # fmt: skip
    return command, {**os.environ, **TELEMETRY_OFF, **database.dbt_environment()}


CHECKED = ("build", "--exclude-resource-type", "unit_test")
"""Models and the tests of their data."""


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
        command, env = dbt_command(database, dbt_target, *arguments)
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        return done.stdout

    return run
