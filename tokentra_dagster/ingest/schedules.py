"""Hourly syncs: each provider's active connections, over the trailing days that the provider may still restate."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import dagster as dg

from tokentra_dagster.ingest.assets import JOBS, partition_range_tags
from tokentra_dagster.ingest.windows import trailing
from tokentra_dagster.providers import SOURCES


def _schedule(provider: str) -> dg.ScheduleDefinition:
    def run(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        now = (context.scheduled_execution_time or datetime.now(UTC)).astimezone(UTC)
        return dg.RunRequest(tags=partition_range_tags(*trailing(now, SOURCES[provider].settles_after)))

    function: Callable[[dg.ScheduleEvaluationContext], dg.RunRequest] = run
    return dg.ScheduleDefinition(
        name=f"sync_{provider}_hourly", job=JOBS[provider], cron_schedule="5 * * * *", execution_timezone="UTC", execution_fn=function,
        description=f"Reads {provider}'s trailing window again every hour: late and restated usage replaces what was there.",
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )  # fmt: skip


SCHEDULES = [_schedule(provider) for provider in SOURCES]
