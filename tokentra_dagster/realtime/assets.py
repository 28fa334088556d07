"""Dagster's side of events: every minute, where events wait, a run makes records of them and brings the hourly rollup up to date; the
whole of dbt follows the records.

A minute without events starts no run: the schedule looks first.
"""

# No `from __future__ import annotations` here: Dagster reads the annotations of assets and schedules as they are.

from collections.abc import Iterator, Sequence
from typing import Any

import dagster as dg

from tokentra_dagster.ingest.assets import OWNERS, RECORDS
from tokentra_dagster.markdown import table
from tokentra_dagster.realtime.flush import Flushed, flush, pending
from tokentra_dagster.resources import Warehouse
from tokentra_dagster.settings import Settings
from tokentra_dagster.transform import build_hours

EVENTS = dg.AssetKey(["raw", "usage_events"])
NOT_BEGUN = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING]


def evidence(done: Sequence[Flushed]) -> dict[str, Any]:
    """Metadata a person would look at: counts, and a row per connection."""
    connections = table(
        ["connection", "records", "rejected", "input tokens", "output tokens", "error"],
        (
            (
                one.connection or f"{one.organization_id} {one.provider}",
                one.loaded,
                one.rejected,
                one.input_tokens,
                one.output_tokens,
                one.error,
            )
            for one in done
        ),
        empty="No event waited.",
    )
    return {
        "connections": dg.MetadataValue.md(connections),
        "dagster/row_count": sum(one.loaded for one in done),
        "rejected": sum(one.rejected for one in done),
        "input_tokens": sum(one.input_tokens for one in done),
        "output_tokens": sum(one.output_tokens for one in done),
        "failed_connections": sum(1 for one in done if one.error),
    }


@dg.asset(
    key=EVENTS,
    group_name="raw",
    owners=OWNERS,
    kinds={"python", "postgres"},
    description="Events that applications sent: each becomes one record in raw.usage_records, and stays here as it came.",
    check_specs=[
        dg.AssetCheckSpec(
            "every_event_flushed",
            asset=EVENTS,
            description="Fails when events of a connection could not become records; they wait for the next run. Its metadata says why.",
        )
    ],
)
def usage_events(context: dg.AssetExecutionContext, warehouse: Warehouse) -> Iterator[Any]:
    database = warehouse.database()
    done = flush(database, run_id=context.run_id)
    metadata = evidence(done)
    if any(one.loaded for one in done):
        written_by = {"written_by": "usage_events", "run_id": context.run_id}
        context.log_event(dg.AssetMaterialization(RECORDS, metadata=written_by))
        # The build that follows comes at the next look of the automation, and after the build that runs now: two minutes pass easily.
        problem = build_hours(Settings.from_environment(), database)
        metadata["hourly_rollup"] = problem or "up to date with these events"
        if problem:
            context.log.warning(f"The hourly rollup waits for the next build. {problem}")
    yield dg.MaterializeResult(asset_key=EVENTS, metadata=metadata)
    failed = [one for one in done if one.error]
    for one in failed:
        context.log.error(f"{one.connection or one.provider}: {one.error}")
    yield dg.AssetCheckResult(
        asset_key=EVENTS, check_name="every_event_flushed", passed=not failed,
        metadata={one.connection or f"{one.organization_id} {one.provider}": str(one.error) for one in failed},
    )  # fmt: skip


flush_job = dg.define_asset_job(
    "flush_events", selection=dg.AssetSelection.assets(EVENTS), description="Make records of the events that wait."
)


@dg.schedule(
    job=flush_job,
    name="flush_events_every_minute",
    cron_schedule="* * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Makes records of the events that wait; a minute without any starts no run.",
)
def flush_schedule(context: dg.ScheduleEvaluationContext, warehouse: Warehouse) -> dg.RunRequest | dg.SkipReason:
    # On a busy machine a run may need more than a minute to start; more of them would only make it busier.
    if context.instance.get_runs_count(dg.RunsFilter(job_name=flush_job.name, statuses=NOT_BEGUN)):
        return dg.SkipReason("A run that has not begun yet takes these events, too.")
    with warehouse.database().connect(application="tokentra flush schedule") as db:
        waiting = pending(db)
    return dg.RunRequest() if waiting else dg.SkipReason("No event waits.")
