"""Freshness is about the newest usage: a sync that ran a minute ago and found nothing new does not make usage fresh."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from tests.warehouse_data import DAY, HOUR, connection, load, record
from tokentra_dagster.errors import UsageError
from tokentra_dagster.ingest.freshness import freshness_job, freshness_table, newest_usage, usage_is_fresh
from tokentra_dagster.ingest.sync import check_options
from tokentra_dagster.resources import Warehouse


def _found(database):
    with database.connect() as db:
        return {one.label: one for one in newest_usage(db)}


def test_usage_gets_stale_when_nothing_newer_comes_whatever_syncs_run(database):
    row = connection(database)
    assert not _found(database)["acme/openai"].is_stale(DAY + timedelta(days=900))
    load(database, row, [record(DAY), record(DAY + 5 * HOUR)])
    load(database, row, [], start=DAY + timedelta(days=1), end=DAY + timedelta(days=2))
    found = _found(database)["acme/openai"]
    assert found.newest == DAY + 5 * HOUR
    assert not found.is_stale(DAY + 31 * HOUR) and found.is_stale(DAY + 31 * HOUR + timedelta(seconds=1))
    assert "| acme/openai | 2026-06-01 05:00 | 26.0 | 26 |" in freshness_table([found], DAY + 31 * HOUR)


def test_a_connection_says_itself_how_old_its_usage_may_be_and_nonsense_is_refused(database):
    load(database, connection(database, options={"stale_after_hours": "72"}), [record(DAY)])
    found = _found(database)["acme/openai"]
    assert not found.is_stale(DAY + 72 * HOUR) and found.is_stale(DAY + 73 * HOUR)
    for nonsense in ("0", "1.5", "soon"):
        with pytest.raises(UsageError, match="stale_after_hours is '" + nonsense):
            check_options("openai", "openai", None, {"stale_after_hours": nonsense})


def test_files_and_disabled_connections_are_not_expected_to_be_fresh(database):
    load(database, connection(database, name="file", source="file"), [record(DAY)], kind="import")
    assert _found(database) == {}


def test_the_check_warns_and_names_the_stale_connection(database, monkeypatch, tmp_path):
    monkeypatch.setenv("TOKENTRA_DATABASE_URL", database.url)
    monkeypatch.setenv("TOKENTRA_HOME", str(tmp_path))
    load(database, connection(database, name="old"), [record(DAY)])
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - HOUR
    load(database, connection(database, name="new"), [record(hour)], start=hour, end=hour + HOUR)
    result = usage_is_fresh(warehouse=Warehouse())
    assert not result.passed and result.severity == dg.AssetCheckSeverity.WARN
    assert result.metadata["stale"].value == "acme/old"


def test_dagster_looks_every_hour():
    from tokentra_dagster.definitions import defs

    assert defs.resolve_job_def(freshness_job.name) and defs.get_schedule_def("freshness_hourly").cron_schedule == "25 * * * *"
