"""What every process of ours needs before Dagster or dbt start: a migrated database, Dagster's home, telemetry off."""

from __future__ import annotations

import os
from pathlib import Path

from tokentra_dagster.settings import Settings
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.migrate import migrate

TELEMETRY_OFF = {
    "DAGSTER_DISABLE_TELEMETRY": "1",
    "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
    "DO_NOT_TRACK": "1",
}
DAGSTER_YAML = """\
# Written by `tokentra`; Dagster's own tables live beside ours, in the schema `dagster`.
storage:
  postgres:
    postgres_url:
      env: TOKENTRA_DAGSTER_URL
telemetry:
  enabled: false
nux:
  enabled: false
run_monitoring:
  enabled: true
concurrency:
  pools:
    default_limit: 1
    granularity: run
  runs:
    max_concurrent_runs: 4
"""


def prepare(settings: Settings) -> Database:
    """Open and migrate the database and set the environment for Dagster and dbt; safe to call again."""
    database = Database.open(settings)
    migrate(database)
    os.environ.update(environment(settings, database))
    return database


def environment(settings: Settings, database: Database) -> dict[str, str]:
    """The variables that Dagster's processes and dbt read."""
    return {
        **TELEMETRY_OFF,
        **database.dbt_environment(),
        "TOKENTRA_HOME": str(settings.home),
        "TOKENTRA_DAGSTER_URL": database.dagster_url(),
        "DAGSTER_HOME": str(dagster_home(settings)),
    }


def dagster_home(settings: Settings) -> Path:
    """Dagster's home with its `dagster.yaml`."""
    home = settings.home / "dagster"
    home.mkdir(parents=True, exist_ok=True)
    file = home / "dagster.yaml"
    if not file.exists() or file.read_text() != DAGSTER_YAML:
        file.write_text(DAGSTER_YAML)
    return home
