"""What the daemon would request by itself, evaluated tick by tick without one."""

from __future__ import annotations

import dagster as dg
import pytest

from tokentra_dagster.definitions import AUTOMATION, defs
from tokentra_dagster.ingest.assets import RECORDS
from tokentra_dagster.transform import FOLLOW_RECORDS

DAILY = dg.AssetKey(["marts", "daily_usage_rollup"])


@pytest.fixture
def tick():
    """`tick(*loaded, build=...)`: these assets were materialised since the last tick; returns the tick's answer."""
    instance = dg.DagsterInstance.ephemeral()
    cursor: list[dg.AssetDaemonCursor | None] = [None]  # type: ignore[name-defined]

    def run(*updated: dg.AssetKey):
        for key in updated:
            instance.report_runless_asset_event(dg.AssetMaterialization(key))
        result = dg.evaluate_automation_conditions(defs, instance, cursor=cursor[0])
        cursor[0] = result.cursor
        return result

    return run


def _models() -> set[dg.AssetKey]:
    graph = defs.resolve_asset_graph()
    return {key for key in graph.get_all_asset_keys() if graph.get(key).automation_condition == FOLLOW_RECORDS}


def test_every_model_is_built_when_usage_changed_and_only_once(tick):
    assert tick().total_requested == 0
    models = _models()
    assert DAILY in models and len(models) >= 7
    asked = tick(RECORDS)
    assert {key for key in models if asked.get_num_requested(key)} == models
    assert tick().total_requested == 0
    assert tick(RECORDS).get_num_requested(DAILY) == 1


def test_a_build_that_ends_after_a_change_arrived_does_not_hide_the_change(tick):
    tick()
    tick(RECORDS)
    # The build of the tick before ends now; meanwhile another sync has committed.
    assert tick(RECORDS, *_models()).get_num_requested(DAILY) == 1


def test_the_newest_whole_day_is_analysed_once_the_marts_were_built_and_only_once(tick):
    tick()
    tick(RECORDS)
    dashboard = dg.AssetKey(["analytics", "dashboard"])
    assert tick(*_models()).get_num_requested(dashboard) == 1
    assert tick().get_num_requested(dashboard) == 0


def test_the_automation_runs_without_anybody_switching_it_on():
    assert AUTOMATION.default_status == dg.DefaultSensorStatus.RUNNING
