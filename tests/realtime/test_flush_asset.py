"""The flush as Dagster runs it."""

from __future__ import annotations

import dagster as dg
import pytest

from tests.realtime.event_data import counted, event, organization, send
from tokentra_dagster.ingest.assets import RECORDS
from tokentra_dagster.realtime import flush as flushing
from tokentra_dagster.realtime.assets import EVENTS, flush_job, flush_schedule, usage_events
from tokentra_dagster.resources import Warehouse


@pytest.fixture
def warehouse(database, tmp_path, monkeypatch) -> Warehouse:
    monkeypatch.setenv("TOKENTRA_DATABASE_URL", database.url)
    monkeypatch.setenv("TOKENTRA_HOME", str(tmp_path))
    return Warehouse()


@pytest.fixture
def instance(tmp_path):
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


def _look(warehouse: Warehouse, instance: dg.DagsterInstance):
    with dg.build_schedule_context(instance=instance, resources={"warehouse": warehouse}) as context:
        return flush_schedule(context)


def test_a_minute_without_events_starts_no_run_and_one_with_events_does(database, warehouse, instance):
    org = organization(database)
    assert isinstance(_look(warehouse, instance), dg.SkipReason)
    send(database, org, event("a"))
    assert isinstance(_look(warehouse, instance), dg.RunRequest)


def test_a_run_that_has_not_begun_takes_what_came_since_and_one_that_has_does_not(database, warehouse, instance):
    send(database, organization(database), event("a"))
    run = instance.create_run_for_job(flush_definition())
    assert isinstance(_look(warehouse, instance), dg.SkipReason)
    instance.report_run_canceled(run)
    assert isinstance(_look(warehouse, instance), dg.RunRequest)


def flush_definition() -> dg.JobDefinition:
    return dg.Definitions(assets=[usage_events], jobs=[flush_job], resources={"warehouse": Warehouse()}).resolve_job_def(
        "flush_events"
    )


def test_a_run_makes_records_announces_them_and_shows_what_it_did(database, warehouse):
    send(database, organization(database), event("a"), event("b", provider="anthropic", model="claude-sonnet-4-5"))
    result = dg.materialize([usage_events], resources={"warehouse": warehouse})
    keys = [e.asset_key for e in result.get_asset_materialization_events()]
    assert keys == [RECORDS, EVENTS], "dbt follows the materialisation of the records"
    metadata = result.asset_materializations_for_node("raw__usage_events")[-1].metadata
    assert metadata["dagster/row_count"].value == 2 and "| acme/events-anthropic | 1 |" in str(metadata["connections"].value)
    assert "has not been built yet" in str(metadata["hourly_rollup"].value)
    assert result.get_asset_check_evaluations()[0].passed
    assert counted(database) == {"a": 1, "b": 1}
    again = dg.materialize([usage_events], resources={"warehouse": warehouse})
    assert [e.asset_key for e in again.get_asset_materialization_events()] == [EVENTS], "nothing changed, so nothing is announced"


def test_what_could_not_become_records_fails_the_check_with_its_reason_and_the_rest_is_announced(
    database, warehouse, monkeypatch
):
    for name in ("acme", "globex"):
        send(database, organization(database, name), event("a"))
    append_records = flushing.append_records

    def fails_for_acme(db, database, row, *others):
        if row.organization == "acme":
            raise RuntimeError("the disk | is full")
        return append_records(db, database, row, *others)

    monkeypatch.setattr(flushing, "append_records", fails_for_acme)
    result = dg.materialize([usage_events], resources={"warehouse": warehouse})
    (check,) = result.get_asset_check_evaluations()
    assert not check.passed and check.metadata["acme/events-openai"].value == "the disk | is full"
    assert RECORDS in [e.asset_key for e in result.get_asset_materialization_events()]
