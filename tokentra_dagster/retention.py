"""Retention as a Dagster job with a daily schedule; what goes and why is decided in `warehouse/retention.py`."""

# No `from __future__ import annotations` here: Dagster reads the annotations of ops as they are.

from datetime import UTC, datetime

import dagster as dg
from pydantic import Field

from tokentra_dagster.dbt_manifest import rollups
from tokentra_dagster.markdown import bullets, table
from tokentra_dagster.resources import Warehouse
from tokentra_dagster.settings import Settings
from tokentra_dagster.warehouse.retention import Report, expire


class RetentionConfig(dg.Config):
    """`now` moves time, for tests; empty means the clock."""

    now: str = Field(default="")


@dg.op(pool="dbt", description="Takes away what the TOKENTRA_RETENTION_ settings no longer keep; queues with builds.")
def expire_usage(context: dg.OpExecutionContext, config: RetentionConfig, warehouse: Warehouse) -> None:
    settings = Settings.from_environment()
    now = datetime.fromisoformat(config.now) if config.now else datetime.now(UTC)
    report = expire(warehouse.database(), settings.retention, rollups(settings), now, context.run_id)
    for reason in report.waits:
        context.log.warning(f"Stays for now: {reason}")
    context.add_output_metadata(evidence(report))


def evidence(report: Report) -> dict[str, dg.MetadataValue]:
    """Metadata a person would look at: what went, before when, how many rows, and what had to stay."""
    removed = table(
        ["what", "before (UTC)", "rows"],
        ((gone.partition or gone.what, f"{gone.before:%Y-%m-%d}", gone.rows) for gone in report.removed),
        empty="Nothing had expired.",
    )
    return {
        "removed": dg.MetadataValue.md(removed),
        "rows": dg.MetadataValue.int(sum(gone.rows for gone in report.removed)),
        "partitions_dropped": dg.MetadataValue.int(sum(1 for gone in report.removed if gone.partition)),
        "waits": dg.MetadataValue.md(bullets(report.waits, empty="Nothing.")),
    }


@dg.job(description="Retention: what has expired goes (records, hourly and daily rollups, each by its own rule).")
def retention_job() -> None:
    expire_usage()


retention_schedule = dg.ScheduleDefinition(
    name="retention_daily", job=retention_job, cron_schedule="40 3 * * *", execution_timezone="UTC",
    description="Takes away what has expired, every night.", default_status=dg.DefaultScheduleStatus.RUNNING,
)  # fmt: skip
