"""Old alerts: what was raised and resolved before a moment, with what was sent of it. What may still be raised anew stays."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from psycopg import sql

from tokentra_dagster.warehouse.directory import Connection

# An alert's row is why it is not raised again: it must outlive its period.
_OLD = (
    "app.alerts WHERE resolved_at < {0} AND raised_at < {0} AND last_seen_at < {0} AND (period_end IS NULL OR period_end < {0})"
)


def history_cutoff(days: int | None, now: datetime) -> datetime | None:
    """Start of the UTC day so many days ago; None: it is kept for ever."""
    return (
        None if days is None else (now.astimezone(UTC) - timedelta(days=days)).replace(hour=0, minute=0, second=0, microsecond=0)
    )


def old_alerts(before: datetime) -> sql.Composed:
    """What goes, as a table and a condition."""
    return sql.SQL(_OLD).format(sql.Literal(before))


def expire_alerts(db: Connection, before: datetime) -> int:
    """Delete them, their deliveries, and snoozes that are long over. How many alerts; one transaction."""
    with db.transaction():
        db.execute("DELETE FROM app.alert_snoozes WHERE snoozed_until < %s", [before])
        return db.execute(sql.SQL("DELETE FROM {}").format(old_alerts(before))).rowcount
