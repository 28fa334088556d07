"""Scheduled exports as Dagster runs them: one run per due time, evidence, failures that reach the alerts, and definitions that load."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from tests.exports.scheduled_data import received, runs, scheduled
from tests.warehouse_data import one, rows
from tokentra_dagster.alerts.assets import failed_runs, resolve_runs
from tokentra_dagster.export_assets import EXPORTS, RUN_TAG, ExportConfig, due_exports, export_job, export_runs
from tokentra_dagster.exports.destinations.base import SAFE
from tokentra_dagster.exports.scheduled.deliver import deliver_due
from tokentra_dagster.exports.scheduled.runs import lock_of
from tokentra_dagster.resources import Warehouse
from tokentra_dagster.warehouse.locks import only_one


@pytest.fixture
def resource(warehouse, tmp_path, monkeypatch) -> Warehouse:
    monkeypatch.setenv("TOKENTRA_DATABASE_URL", warehouse.url)
    monkeypatch.setenv("TOKENTRA_HOME", str(tmp_path / "home"))
    return Warehouse()


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


class Daemon:
    """Looks, and runs what the sensor asks for, unless a run of that key was there before."""

    def __init__(self, resource: Warehouse, instance: dg.DagsterInstance) -> None:
        self.resource, self.instance = resource, instance
        self.repository = dg.Definitions(
            assets=[export_runs], jobs=[export_job], sensors=[due_exports], resources={"warehouse": resource}
        ).get_repository_def()

    def look(self) -> list[dg.RunRequest]:
        context = dg.build_sensor_context(
            instance=self.instance, repository_def=self.repository, resources={"warehouse": self.resource}
        )
        return list(due_exports.evaluate_tick(context).run_requests or [])

    def run(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        return self.repository.get_job("export_job").execute_in_process(
            run_config=request.run_config, tags=dict(request.tags), instance=self.instance, raise_on_error=False
        )


@pytest.fixture
def daemon(resource: Warehouse, instance: dg.DagsterInstance) -> Daemon:
    return Daemon(resource, instance)


def late(database) -> None:
    """Whatever pause there was is over."""
    with database.connect() as db:
        db.execute("UPDATE app.export_runs SET next_attempt_at = now() - interval '1 minute'")


def daily(days: int) -> dict[str, Any]:
    """Due so many times until now, and not again for half a day, however long the tests take."""
    now = datetime.now(UTC)
    return {"schedule": f"0 {(now.hour + 12) % 24} * * *", "relative_period": "last_day", "since": now - timedelta(days=days)}


def test_each_due_time_gets_one_run_with_evidence_and_then_there_is_nothing_to_do(warehouse, daemon, tmp_path):
    scheduled(warehouse, tmp_path / "out", **daily(2))
    requests = daemon.look()
    assert len(requests) == 2 and len({request.run_key for request in requests}) == 2
    assert [request.run_key for request in daemon.look()] == [request.run_key for request in requests], "one key, one run"
    for request in requests:
        assert daemon.run(request).success
    assert daemon.look() == [] and len(received(tmp_path / "out")) == 2


def test_the_run_shows_deliveries_history_attempts_and_the_first_rows(warehouse, resource, tmp_path):
    export = scheduled(warehouse, tmp_path / "out", name="june", export_config={"format": "parquet", "compression": "gzip"})
    config = ExportConfig(export="acme/june", due="2026-07-01T06:00Z")
    result = dg.materialize(
        [export_runs], resources={"warehouse": resource}, run_config=dg.RunConfig({"app__export_runs": config})
    )
    metadata = result.asset_materializations_for_node("app__export_runs")[0].metadata
    (run,) = [run for run in runs(warehouse, export) if run.due_at.month == 7]
    assert "| acme/june | 2026-07-01 06:00 | delivered |" in metadata["deliveries"].value
    assert "| acme/june | 2026-07-01 06:00 | 2026-06-01 00:00 | delivered |" in metadata["history"].value
    assert [line.split(" | ")[1] for line in metadata["attempts"].value.splitlines()[2:]] == ["started", "written", "delivered"]
    assert (metadata["delivered"].value, metadata["message_id"].value) == (1, str(run.id))
    assert metadata["rows"].value == run.manifest["row_count"]
    preview = metadata["preview"].value.splitlines()
    assert preview[0].startswith("| Date (UTC) | Provider | Model |") and "2026-06-01" in preview[2]
    assert len(preview) == 2 + min(10, run.manifest["row_count"])
    again = dg.materialize(
        [export_runs], resources={"warehouse": resource}, run_config=dg.RunConfig({"app__export_runs": config})
    )
    assert "before" in again.asset_materializations_for_node("app__export_runs")[0].metadata["deliveries"].value


def test_without_a_config_everything_that_is_due_is_delivered(warehouse, resource, tmp_path):
    scheduled(warehouse, tmp_path / "out", **daily(2))
    result = dg.materialize([export_runs], resources={"warehouse": resource})
    metadata = result.asset_materializations_for_node("app__export_runs")[0].metadata
    assert metadata["delivered"].value == 2 and len(received(tmp_path / "out")) == 2
    nothing = dg.materialize([export_runs], resources={"warehouse": resource})
    assert nothing.asset_materializations_for_node("app__export_runs")[0].metadata["deliveries"].value == "Nothing was due."


def test_a_failed_export_is_an_alert_of_its_own_and_goes_again_after_its_pause(warehouse, daemon, instance, resource, tmp_path):
    """Another export that works does not end its streak; its own success does."""
    out = tmp_path / "out"
    out.write_text("a file where the folder should be")
    export = scheduled(warehouse, out, **daily(1))
    (request,) = daemon.look()
    failed = daemon.run(request)
    assert not failed.success and daemon.look() == [], "its pause is not over"
    context = dg.build_run_status_sensor_context(
        "failed_runs", failed.get_run_failure_event(), instance, failed.dagster_run, resources={"warehouse": resource}
    ).for_run_failure()
    failed_runs(context)
    (alert,) = rows(warehouse, "SELECT subject, title, body FROM app.alerts")
    assert (alert["subject"], alert["title"]) == (
        "export_job of acme/monthly",
        "The Dagster run of export_job of acme/monthly failed",
    )
    assert "Not delivered: acme/monthly, due" in alert["body"] and "check the path and its rights" in alert["body"]
    scheduled(warehouse, tmp_path / "other", "works", **daily(1))
    (other,) = daemon.look()
    assert daemon.run(other).success
    resolve_runs(warehouse, instance)
    assert one(warehouse, "SELECT count(*) FROM app.alerts WHERE resolved_at IS NULL") == 1
    out.unlink()
    late(warehouse)
    (again,) = daemon.look()
    assert again.run_key != request.run_key and again.tags[RUN_TAG] == request.tags[RUN_TAG]
    assert daemon.run(again).success and runs(warehouse, export)[0].attempts == 2
    resolve_runs(warehouse, instance)
    assert one(warehouse, "SELECT count(*) FROM app.alerts WHERE resolved_at IS NULL") == 0


def test_nothing_is_started_twice_while_it_is_under_way_here_or_elsewhere(warehouse, daemon, instance, tmp_path):
    export = scheduled(warehouse, tmp_path / "out", **daily(1))
    (request,) = daemon.look()
    (run,) = runs(warehouse, export)
    with warehouse.connect(autocommit=True) as db, only_one(db, lock_of(run.id)):
        assert daemon.look() == [], "another daemon delivers it"
    job = daemon.repository.get_job("export_job")
    queued = instance.create_run_for_job(job, run_config=request.run_config, tags=dict(request.tags))
    assert daemon.look() == [], "its run waits in the queue"
    instance.report_run_failed(queued)
    assert daemon.look() == [], "it died before it began: not again at once"
    assert deliver_due(warehouse, run.id, tmp_path / "home", SAFE).status == "delivered" and daemon.look() == []


def test_a_run_that_waits_for_final_usage_is_not_started_and_says_why(warehouse, daemon, tmp_path):
    export = scheduled(warehouse, tmp_path / "out", wait_until_final=True, **daily(1))
    assert daemon.look() == []
    assert str(runs(warehouse, export)[0].error).startswith("Waits until ")


def test_an_export_that_somebody_broke_by_hand_stops_no_other(warehouse, daemon, tmp_path: Path):
    broken = scheduled(warehouse, tmp_path / "out", "broken", **daily(1))
    scheduled(warehouse, tmp_path / "out", **daily(1))
    with warehouse.connect() as db:
        db.execute("UPDATE app.scheduled_exports SET schedule = 'whenever' WHERE id = %s", [broken.id])
    assert [request.tags["tokentra/subject"] for request in daemon.look()] == ["acme/monthly"]


def test_definitions_start_the_sensor_by_themselves():
    from tokentra_dagster.definitions import build_defs

    repository = build_defs().get_repository_def()
    (sensor,) = [one for one in repository.sensor_defs if one.name == "due_exports"]
    assert sensor.default_status.value == "RUNNING" and sensor.job_name == "export_job"
    assert {key.to_user_string() for key in repository.asset_graph.get(EXPORTS).parent_keys} == {
        "marts/hourly_usage_rollup",
        "marts/daily_usage_rollup",
    }
