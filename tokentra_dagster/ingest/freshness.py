"""Is usage fresh? The newest usage of each connection counts, not the newest run: a sync that finds nothing also succeeds."""

# No `from __future__ import annotations` here: Dagster reads the annotations of checks as they are.

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import dagster as dg

from tokentra_dagster.ingest.assets import RECORDS
from tokentra_dagster.ingest.sync import stale_after
from tokentra_dagster.markdown import table
from tokentra_dagster.resources import Warehouse
from tokentra_dagster.warehouse.directory import Connection, connections


@dataclass(frozen=True, slots=True)
class Freshness:
    """The newest usage of one active connection; `newest` None: it has none yet."""

    label: str
    newest: datetime | None
    stale_after: timedelta

    def is_stale(self, now: datetime) -> bool:
        """Older than the connection allows. A connection that never had usage is not stale: it is new, or nobody uses it."""
        return self.newest is not None and now - self.newest > self.stale_after


def newest_usage(db: Connection) -> list[Freshness]:
    """Every active connection to a provider, with the start of its newest bucket (one look-up by key each)."""
    found = []
    for row in connections(db, active_only=True, asked=True):
        newest = db.execute(
            "SELECT timestamp FROM raw.usage_records WHERE provider_connection_id = %s ORDER BY timestamp DESC LIMIT 1", [row.id]
        ).fetchone()
        found.append(Freshness(row.label, newest["timestamp"] if newest else None, stale_after(row)))
    return found


def freshness_table(found: Sequence[Freshness], now: datetime) -> str:
    """Markdown, a row per connection."""
    hour = timedelta(hours=1)
    return table(
        ["connection", "newest usage (UTC)", "hours ago", "stale after hours"],
        (
            (
                one.label,
                one.newest or "none",
                round((now - one.newest) / hour, 1) if one.newest else None,
                f"{one.stale_after / hour:g}",
            )
            for one in found
        ),
        empty="There is no connection.",
    )


@dg.asset_check(
    asset=RECORDS,
    description="Warns when a connection's newest usage is older than its option stale_after_hours (default 26).",
)
def usage_is_fresh(warehouse: Warehouse) -> dg.AssetCheckResult:
    now = datetime.now(UTC)
    with warehouse.database().connect() as db:
        found = newest_usage(db)
    stale = [one.label for one in found if one.is_stale(now)]
    return dg.AssetCheckResult(
        passed=not stale,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"connections": dg.MetadataValue.md(freshness_table(found, now)), "stale": ", ".join(stale)},
    )


freshness_job = dg.define_asset_job(
    "freshness_job", selection=dg.AssetSelection.checks(usage_is_fresh), description="Looks how old the newest usage is."
)
freshness_schedule = dg.ScheduleDefinition(
    name="freshness_hourly", job=freshness_job, cron_schedule="25 * * * *", execution_timezone="UTC",
    description="Looks every hour, after the syncs.", default_status=dg.DefaultScheduleStatus.RUNNING,
)  # fmt: skip
