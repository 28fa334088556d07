"""What the platform writes down of its own doings and keeps for a while: alerts, what quotas refused and usage corrected of them,
and what became of scheduled exports."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from psycopg import sql

from tokentra_dagster.settings import RetentionDays
from tokentra_dagster.warehouse.directory import Connection

Rows = tuple[str, datetime, int]
"""What, before which moment, how many rows."""

# An alert's row is why it is not raised again: it must outlive its period.
_OLD_ALERTS = (
    "app.alerts WHERE resolved_at < {0} AND raised_at < {0} AND last_seen_at < {0} AND (period_end IS NULL OR period_end < {0})"
)
_OLD_EVENTS = "app.quota_events WHERE at < {0}"
_OLD_CORRECTIONS = "app.quota_corrections WHERE corrected_at < {0}"
# With their attempts; what is not delivered never goes. The newest of each export stays: due times count from it on, and without it
# they would all be due again.
_OLD_EXPORT_RUNS = (
    "app.export_runs AS r WHERE r.status IN ('delivered', 'skipped') AND r.due_at < {0} AND coalesce(r.delivered_at, r.created_at) < {0} "
    "AND NOT EXISTS (SELECT FROM app.export_attempts AS a WHERE a.run_id = r.id AND a.happened_at >= {0}) "
    "AND EXISTS (SELECT FROM app.export_runs AS newer WHERE newer.export_id = r.export_id AND newer.due_at > r.due_at)"
)
# The history of a quota counts what was refused in each period for as long as it is told, so counts take the place of events.
_COUNT_EVENTS = """
WITH gone AS (DELETE FROM {old} RETURNING quota_id, period_start, kind, org_id)
INSERT INTO app.quota_event_counts AS c (quota_id, period_start, kind, org_id, events)
SELECT quota_id, period_start, kind, (array_agg(org_id))[1], count(*) FROM gone GROUP BY quota_id, period_start, kind
ON CONFLICT (quota_id, period_start, kind) DO UPDATE SET events = c.events + excluded.events
"""


def old_app_rows(rules: RetentionDays, now: datetime) -> Iterator[tuple[str, datetime, sql.Composed]]:
    """What would go: what, before when, and the rows as a table and a condition."""
    for what, days, rows in (
        ("alerts", rules.alerts, _OLD_ALERTS), ("events of quotas", rules.quota_events, _OLD_EVENTS),
        ("corrections of quotas", rules.quota_events, _OLD_CORRECTIONS),
        ("runs of scheduled exports", rules.exports, _OLD_EXPORT_RUNS),
    ):  # fmt: skip
        if days is not None:
            before = (now.astimezone(UTC) - timedelta(days=days)).replace(hour=0, minute=0, second=0, microsecond=0)
            yield what, before, sql.SQL(rows).format(sql.Literal(before))


def expire_app(db: Connection, rules: RetentionDays, now: datetime) -> Iterator[Rows]:
    """Delete them, each kind in a transaction: alerts with their deliveries and with snoozes that are long over."""
    for what, before, old in old_app_rows(rules, now):
        with db.transaction():
            counted = db.execute(sql.SQL("SELECT count(*) AS n FROM {}").format(old)).fetchone()
            if what == "alerts":
                db.execute("DELETE FROM app.alert_snoozes WHERE snoozed_until < %s", [before])
            statement = _COUNT_EVENTS if what == "events of quotas" else "DELETE FROM {old}"
            db.execute(sql.SQL(statement).format(old=old))
        yield what, before, counted["n"] if counted else 0
