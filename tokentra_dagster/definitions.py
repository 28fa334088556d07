"""Assembly only: `build_defs(overrides)` puts assets, checks, jobs, schedules and resources together; `defs` is what Dagster loads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

from tokentra_dagster.alerts.assets import alerts, alerts_job, alerts_schedule, alerts_sensor, failed_runs
from tokentra_dagster.analytics_assets import DAILY, analytics
from tokentra_dagster.export_assets import due_exports, export_job, export_runs

# As a module: Dagster refuses two Definitions under names of this one.
from tokentra_dagster.ingest import definitions as ingest
from tokentra_dagster.quotas.assets import quota_counters, quotas_job, quotas_schedule
from tokentra_dagster.realtime.assets import flush_job, flush_schedule, usage_events
from tokentra_dagster.resources import Warehouse
from tokentra_dagster.retention import retention_job, retention_schedule
from tokentra_dagster.settings import Settings
from tokentra_dagster.transform import dbt_definitions

# Without one of our own the daemon's default sensor is off until somebody switches it on, and dbt would follow nothing.
AUTOMATION = dg.AutomationConditionSensorDefinition(
    "follow_changes",
    target=dg.AssetSelection.all(),
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=30,
    description="Builds what depends on raw data once it has changed, as each asset's automation condition says.",
)


def build_defs(overrides: Mapping[str, Any] | None = None) -> dg.Definitions:
    """Everything Dagster knows of us. `overrides` replaces resources by name, for tests."""
    models, dbt = dbt_definitions(Settings.from_environment())
    return dg.Definitions(
        assets=[*(ingest.raw_layer.assets or ()), usage_events, models, analytics, alerts, quota_counters, export_runs],
        jobs=[
            *(ingest.raw_layer.jobs or ()),
            flush_job,
            retention_job,
            alerts_job,
            quotas_job,
            export_job,
            dg.define_asset_job("build_job", selection=dg.AssetSelection.assets(models)),
            dg.define_asset_job("analytics_job", selection=dg.AssetSelection.assets(analytics), partitions_def=DAILY),
        ],
        asset_checks=ingest.raw_layer.asset_checks,
        schedules=[*(ingest.raw_layer.schedules or ()), flush_schedule, retention_schedule, alerts_schedule, quotas_schedule],
        sensors=[AUTOMATION, alerts_sensor, failed_runs, due_exports],
        resources={"warehouse": Warehouse(), "dbt": dbt, **(overrides or {})},
    )


defs = build_defs()
