"""Scheduled syncs of each integration's active connections: hourly over the trailing days whose usage may still be restated,
and once a day further back, over the days whose costs may still change. Without an active connection no run is started."""

# No `from __future__ import annotations` here: Dagster reads the annotations of schedules as they are.

from datetime import UTC, datetime, timedelta

import dagster as dg

from tokentra_dagster.ingest.assets import JOBS, partition_range_tags
from tokentra_dagster.ingest.windows import trailing
from tokentra_dagster.providers import INTEGRATIONS
from tokentra_dagster.resources import Warehouse
from tokentra_dagster.warehouse.directory import connections


def _schedule(integration: str, every: str, cron: str, reach: timedelta, why: str) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=f"sync_{integration}_{every}", job=JOBS[integration], cron_schedule=cron, execution_timezone="UTC",
        description=f"Reads {integration}'s trailing window again: {why} replaces what was there.",
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )  # fmt: skip
    def sync_again(context: dg.ScheduleEvaluationContext, warehouse: Warehouse) -> dg.RunRequest | dg.SkipReason:
        with warehouse.database().connect(application=f"tokentra schedule sync_{integration}_{every}") as db:
            active = any(row.integration == integration for row in connections(db, active_only=True))
        if not active:
            return dg.SkipReason(f"No active connection reads {integration}.")
        now = (context.scheduled_execution_time or datetime.now(UTC)).astimezone(UTC)
        return dg.RunRequest(tags=partition_range_tags(*trailing(now, reach)))

    return sync_again


SCHEDULES = [
    _schedule(name, "hourly", "5 * * * *", entry.settles_after, "late and restated usage") for name, entry in INTEGRATIONS.items()
] + [
    _schedule(name, "daily", "35 3 * * *", entry.costs_settle_after, "what was billed and has changed since")
    for name, entry in INTEGRATIONS.items()
    if entry.costs_settle_after is not None
]
