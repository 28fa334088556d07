"""Scheduled syncs of each provider's active connections: hourly over the trailing days whose usage the provider may still
restate, and once a day further back, over the days whose costs it may still change."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import dagster as dg

from tokentra_dagster.ingest.assets import JOBS, partition_range_tags
from tokentra_dagster.ingest.windows import trailing
from tokentra_dagster.providers import SOURCES


def _schedule(provider: str, every: str, cron: str, reach: timedelta, why: str) -> dg.ScheduleDefinition:
    def run(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        now = (context.scheduled_execution_time or datetime.now(UTC)).astimezone(UTC)
        return dg.RunRequest(tags=partition_range_tags(*trailing(now, reach)))

    function: Callable[[dg.ScheduleEvaluationContext], dg.RunRequest] = run
    return dg.ScheduleDefinition(
        name=f"sync_{provider}_{every}", job=JOBS[provider], cron_schedule=cron, execution_timezone="UTC", execution_fn=function,
        description=f"Reads {provider}'s trailing window again: {why} replaces what was there.",
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )  # fmt: skip


SCHEDULES = [
    schedule
    for provider, entry in SOURCES.items()
    for schedule in (
        _schedule(provider, "hourly", "5 * * * *", entry.settles_after, "late and restated usage"),
        _schedule(provider, "daily", "35 3 * * *", entry.costs_settle_after, "what was billed and has changed since"),
    )
]
