"""Alerts as Dagster runs them: no news no run, a run with evidence, failed runs of any job, and a success that ends a streak."""

from __future__ import annotations

import dagster as dg
import pytest

from tests.alerts.alert_data import HERE, titles, webhook
from tests.alerts.test_alert_evaluation import fails, works
from tests.warehouse_data import connection, one, rows
from tokentra_dagster.alerts.assets import ALERTS, alerts, alerts_schedule, alerts_sensor, failed_runs, resolve_runs
from tokentra_dagster.alerts.deliver import deliver
from tokentra_dagster.resources import Warehouse


@pytest.fixture
def warehouse(database, tmp_path, monkeypatch) -> Warehouse:
    monkeypatch.setenv("TOKENTRA_DATABASE_URL", database.url)
    monkeypatch.setenv("TOKENTRA_HOME", str(tmp_path))
    monkeypatch.setenv("TOKENTRA_DELIVERY_PRIVATE_TARGETS", "yes")
    return Warehouse()


def look(warehouse: Warehouse):
    with (
        dg.instance_for_test() as instance,
        dg.build_schedule_context(resources={"warehouse": warehouse}, instance=instance) as context,
    ):
        return alerts_schedule(context)


def test_five_minutes_without_news_start_no_run_and_news_or_what_is_due_does(database, warehouse, acme, receiver, authority):
    webhook(database, receiver, authority)
    assert isinstance(look(warehouse), dg.SkipReason)
    row = connection(database)
    fails(database, row)
    assert isinstance(look(warehouse), dg.RunRequest)
    assert one(database, "SELECT count(*) FROM app.alerts") == 0, "looking raises nothing"
    result = dg.materialize([alerts], resources={"warehouse": warehouse})
    metadata = result.asset_materializations_for_node("app__alerts")[0].metadata
    assert (metadata["alerts_raised"].value, metadata["messages_sent"].value) == (1, 1)
    assert "| critical | acme | failed_sync | Usage of acme/openai is not being synced |" in metadata["raised"].value
    assert "| acme/hook | 1 | sent |" in metadata["sent"].value
    assert titles(receiver) == [["Usage of acme/openai is not being synced"]]
    assert isinstance(look(warehouse), dg.SkipReason)
    works(database, row)
    assert isinstance(look(warehouse), dg.RunRequest), "it works again, which is written down"
    again = dg.materialize([alerts], resources={"warehouse": warehouse})
    assert again.asset_materializations_for_node("app__alerts")[0].metadata["sent"].value == "Nothing was sent."
    assert isinstance(look(warehouse), dg.SkipReason) and len(receiver.requests) == 1


def test_the_sensor_looks_when_the_status_of_quotas_was_built(database, warehouse, acme):
    with dg.DagsterInstance.ephemeral() as instance:
        instance.report_runless_asset_event(dg.AssetMaterialization(["marts", "quota_status"]))
        repository = dg.Definitions(
            assets=[alerts], sensors=[alerts_sensor], resources={"warehouse": warehouse}
        ).get_repository_def()

        def asked():
            return alerts_sensor.evaluate_tick(
                dg.build_sensor_context(instance=instance, repository_def=repository, resources={"warehouse": warehouse})
            )

        assert asked().run_requests == []
        fails(database, connection(database))
        assert len(asked().run_requests) == 1


def test_what_could_not_be_evaluated_fails_the_run_after_the_rest_was_sent(database, warehouse, acme, receiver, authority):
    webhook(database, receiver, authority)
    fails(database, connection(database))
    with database.connect() as db:
        db.execute("CREATE VIEW marts.quota_status AS SELECT 1 / 0 AS org_id, 'q' AS quota_name")
    result = dg.materialize([alerts], resources={"warehouse": warehouse}, raise_on_error=False)
    assert not result.success and len(receiver.accepted) == 1
    (failure,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert failure.user_failure_data.description == "Not evaluated: quotas: division by zero"


@dg.op
def breaks() -> None:
    try:
        raise OSError("no space left\non <device>")
    except OSError as error:
        raise RuntimeError("outer") from error


@dg.job
def nightly_job() -> None:
    breaks()


@dg.op
def works_() -> None: ...


@dg.job(name="nightly_job")
def nightly_job_mended() -> None:
    works_()


@dg.asset
def broken_asset() -> None:
    raise dg.Failure("No connection is named nothing.")


def told(warehouse: Warehouse, instance: dg.DagsterInstance, result: dg.ExecuteInProcessResult) -> None:
    """The sensor hears of the failure, as the daemon makes it hear."""
    context = dg.build_run_status_sensor_context(
        "failed_runs", result.get_run_failure_event(),
        instance, result.dagster_run, resources={"warehouse": warehouse},
    ).for_run_failure()  # fmt: skip
    failed_runs(context)


def test_a_failed_run_of_any_job_is_an_alert_for_the_operators_once_per_streak(database, warehouse, receiver, authority):
    webhook(database, receiver, authority, org=None)
    with dg.DagsterInstance.ephemeral() as instance:
        for _ in range(3):
            told(warehouse, instance, nightly_job.execute_in_process(instance=instance, raise_on_error=False))
        (row,) = rows(database, "SELECT org_id, subject, title, body FROM app.alerts")
        assert row["org_id"] is None and row["subject"] == "nightly_job"
        assert "in breaks: OSError: no space left" in row["body"], "the cause, not its wrapping"
        deliver(database, HERE)
        assert titles(receiver) == [["The Dagster run of nightly_job failed"]]

        resolve_runs(database, instance)
        assert one(database, "SELECT count(*) FROM app.alerts WHERE resolved_at IS NULL") == 1
        nightly_job_mended.execute_in_process(instance=instance)
        resolve_runs(database, instance)
        assert one(database, "SELECT count(*) FROM app.alerts WHERE resolved_at IS NULL") == 0
        told(warehouse, instance, nightly_job.execute_in_process(instance=instance, raise_on_error=False))
        assert one(database, "SELECT count(*) FROM app.alerts") == 2, "it worked in between: news"


def test_runs_of_assets_without_a_job_are_told_by_their_steps(database, warehouse):
    with dg.DagsterInstance.ephemeral() as instance:
        job = dg.Definitions(assets=[broken_asset]).resolve_implicit_global_asset_job_def()
        told(warehouse, instance, job.execute_in_process(instance=instance, raise_on_error=False))
    (row,) = rows(database, "SELECT subject, body FROM app.alerts")
    assert (
        row["subject"] == "assets of broken_asset"
        and "in broken_asset: No connection is named nothing. The Dagster UI" in row["body"]
    )


def test_definitions_start_the_schedule_and_the_sensors_by_themselves():
    from tokentra_dagster.definitions import build_defs

    repository = build_defs().get_repository_def()
    running = {one.name for one in (*repository.sensor_defs, *repository.schedule_defs) if one.default_status.value == "RUNNING"}
    assert {"alerts_every_5_minutes", "alerts_after_quota_status", "failed_runs", "quotas_every_5_minutes"} <= running
    assert ALERTS in repository.asset_graph.get_all_asset_keys()
    assert {key.to_user_string() for key in repository.asset_graph.get(ALERTS).parent_keys} >= {
        "marts/quota_status",
        "analytics/anomalies",
    }
