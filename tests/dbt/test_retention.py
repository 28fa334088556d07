"""Builds after retention: what has expired stays in the rollups as it was, whatever happens later (correction 4)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.warehouse_data import HOUR, connection, load, one, record, rows
from tokentra_dagster.cli import cli
from tokentra_dagster.dbt_manifest import rollups
from tokentra_dagster.ingest.authority import set_authority
from tokentra_dagster.settings import RetentionDays, Settings
from tokentra_dagster.warehouse.retention import Rollup, expire

RULES = RetentionDays(minute=10, raw=60, hourly=20, daily=400)
NOW = datetime(2026, 6, 30, 12, tzinfo=UTC)
OLD, MARCH, MAY, JUNE = (datetime(*day, tzinfo=UTC) for day in ((2025, 1, 5), (2026, 3, 10), (2026, 5, 20), (2026, 6, 25)))
EVERYTHING = ("build", "--exclude-resource-type", "unit_test", "--vars", "{compare: everything}")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Rollup]:
    made = os.environ["TOKENTRA_DBT_MANIFEST"]
    return rollups(
        Settings.from_environment({"TOKENTRA_HOME": str(tmp_path_factory.mktemp("home")), "TOKENTRA_DBT_MANIFEST": made})
    )


def _day_of_hours(database, row, day: datetime, tokens: int = 100) -> None:
    items = [record(day + n * HOUR, input_tokens=tokens, user_id=f"u{n % 3}", api_key_id="k") for n in range(24)]
    load(database, row, items, day, day + 24 * HOUR)


def _days(database, table: str = "daily_usage_rollup") -> dict[str, int]:
    found = rows(database, f"SELECT date::text AS day, sum(input_tokens)::int AS tokens FROM {table} GROUP BY 1 ORDER BY 1")
    return {r["day"]: r["tokens"] for r in found}


def _hours(database, table: str = "hourly_usage_rollup") -> dict[str, int]:
    found = rows(database, f"SELECT to_char(hour, 'YYYY-MM-DD') AS day, count(*) AS n FROM {table} GROUP BY 1 ORDER BY 1")
    return {r["day"]: r["n"] for r in found}


def _history(database) -> list[list]:
    """Everything that daily marts say, without when they were written."""
    return [
        sorted(str(r["r"]) for r in rows(database, f"SELECT to_jsonb(t) - 'created_at' - 'updated_at' AS r FROM {table} AS t"))
        for table in (
            "daily_usage_rollup", "daily_usage_by_user", "daily_usage_by_api_key", "daily_active_entities", "active_users",
            "user_activity",
        )
    ]  # fmt: skip


def test_every_model_that_follows_changes_is_known_with_its_column(models):
    found = {model.name: model for model in models}
    assert found["hourly_usage_rollup"].window_column == "hour" and found["daily_usage_rollup"].window_column == "date"
    assert found["int_user_days"].schema == "intermediate" and found["int_connection_days"].window_column == "day_start"
    assert found["daily_active_entities"].kept_longer_days == 31


def test_history_outlives_its_records_through_restatements_and_full_builds(database, build, models):
    row = connection(database)
    for day in (OLD, MARCH, MAY, JUNE):
        _day_of_hours(database, row, day)
    build()
    report = expire(database, RULES, models, NOW)
    assert report.waits == []
    assert one(database, "SELECT count(*) FROM raw.usage_records") == 48
    days = {"2026-03-10": 2400, "2026-05-20": 2400, "2026-06-25": 2400}
    assert _days(database) == days, "the day of January 2025 is older than 400 days"
    assert _hours(database) == _hours(database, "hourly_usage_by_user") == {"2026-06-25": 24}
    assert expire(database, RULES, models, NOW).removed == []

    # One hour of May is restated: its records are there, its hours are not. And something touches all of history.
    load(database, row, [record(MAY + 5 * HOUR, input_tokens=1000)], MAY + 5 * HOUR, MAY + 6 * HOUR)
    with database.connect() as db:
        set_authority(db, row.org_id, "openai", "provider_api")
        db.execute(
            "UPDATE raw.usage_changes SET window_start = %s WHERE change_number = (SELECT max(change_number) FROM raw.usage_changes)",
            [OLD],
        )
    build(*EVERYTHING)
    assert _days(database) == days | {"2026-05-20": 3300}
    assert _hours(database) == {"2026-05-20": 24, "2026-06-25": 24}
    history = _history(database)

    build(*EVERYTHING, "--full-refresh")
    assert _history(database) == history
    expire(database, RULES, models, NOW)
    assert _hours(database) == {"2026-06-25": 24}
    assert _history(database) == history

    # The days alone, built anew while the hours of May are gone, must not become empty.
    build("run", "--full-refresh", "--select", "daily_usage_rollup", "daily_usage_by_user")
    assert _history(database)[:2] == history[:2]


def test_another_providers_old_usage_counts_although_the_first_ones_records_have_expired(database, build, models):
    acme = connection(database)
    _day_of_hours(database, acme, MARCH)
    build()
    expire(database, RULES, models, NOW)
    late = connection(database, provider="anthropic", name="anthropic")
    _day_of_hours(database, late, MARCH, tokens=7)
    build(*EVERYTHING)
    assert rows(database, "SELECT provider, sum(input_tokens)::int AS tokens FROM daily_usage_rollup GROUP BY 1 ORDER BY 1") == [
        {"provider": "anthropic", "tokens": 168},
        {"provider": "openai", "tokens": 2400},
    ]
    assert one(database, "SELECT sum(input_tokens)::int FROM user_activity") == 2400, "frozen: it spans both providers"
    build("run", "--full-refresh")
    assert _days(database) == {"2026-03-10": 2568}
    assert one(database, "SELECT sum(input_tokens)::int FROM user_activity") == 2400


EXPIRE = """
import sys
from datetime import datetime
from pathlib import Path
from tokentra_dagster.settings import RetentionDays, Settings
from tokentra_dagster.dbt_manifest import rollups
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.retention import expire
models = rollups(Settings.from_environment({"TOKENTRA_HOME": sys.argv[2]}))
expire(Database(sys.argv[1]), RetentionDays(10, 60, 20, 400), models, datetime.fromisoformat(sys.argv[3]))
"""


def test_a_kill_between_the_horizon_and_the_records_changes_no_total(database, build, models, tmp_path: Path):
    row = connection(database)
    for day in (MARCH, MAY):
        _day_of_hours(database, row, day)
    build("run")
    with database.connect() as reader:
        reader.execute("SELECT count(*) FROM raw.usage_records")  # holds the drop of March's partition back
        process = subprocess.Popen([sys.executable, "-c", EXPIRE, database.url, str(tmp_path), NOW.isoformat()])
        deadline = time.monotonic() + 60
        while not one(database, "SELECT count(*) FROM raw.retention_horizon"):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert one(database, "SELECT count(*) FROM raw.usage_records") == 48, "the records are there, their time is frozen"
    assert one(database, "SELECT count(*) FROM raw.retention_history WHERE completed_at IS NULL") == 1
    with database.connect() as db:
        db.execute("UPDATE raw.usage_records SET input_tokens = 1 WHERE timestamp < '2026-05-01'")
    build("run", "--full-refresh")
    assert _days(database) == {"2026-03-10": 2400, "2026-05-20": 2400}
    expire(database, RULES, models, NOW)
    assert one(database, "SELECT count(*) FROM raw.usage_records") == 24
    assert _days(database) == {"2026-03-10": 2400, "2026-05-20": 2400}


def test_the_command_says_what_would_go_then_takes_it_as_a_run_that_the_history_shows(database, tmp_path: Path):
    row = connection(database)
    start = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=500)
    _day_of_hours(database, row, start)
    env = {"TOKENTRA_DATABASE_URL": database.url, "TOKENTRA_HOME": str(tmp_path / "home"), "COLUMNS": "200"}

    def tokentra(*arguments: str) -> str:
        done = CliRunner().invoke(cli, arguments, env=env, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    assert "has not read what changed from" in tokentra("retention"), "nothing goes before the first build"
    tokentra("build")
    foreseen = json.loads(tokentra("retention", "--dry-run", "--json"))
    assert foreseen["dry_run"] is True and foreseen["waits"] == []
    assert {gone["what"]: gone["rows"] for gone in foreseen["removed"]}["raw.usage_records"] == 24
    assert one(database, "SELECT count(*) FROM raw.usage_records") == 24
    assert json.loads(tokentra("retention", "--json"))["removed"] == foreseen["removed"]
    assert one(database, "SELECT count(*) FROM raw.usage_records") == 0
    assert one(database, "SELECT count(*) FROM dagster.runs WHERE pipeline_name = 'retention_job' AND status = 'SUCCESS'") == 2
    assert _days(database) == {start.date().isoformat(): 2400}
