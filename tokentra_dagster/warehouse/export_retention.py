"""What became of due times long ago: the rows of exports' runs that were delivered or left out before a moment, with their attempts."""

from __future__ import annotations

from datetime import datetime

from psycopg import sql

from tokentra_dagster.warehouse.directory import Connection

# The newest of each export stays: due times count from it on, and without it they would all be due again.
_OLD = (
    "app.export_runs AS r WHERE r.status IN ('delivered', 'skipped') AND r.due_at < {0} AND coalesce(r.delivered_at, r.created_at) < {0} "
    "AND NOT EXISTS (SELECT FROM app.export_attempts AS a WHERE a.run_id = r.id AND a.happened_at >= {0}) "
    "AND EXISTS (SELECT FROM app.export_runs AS newer WHERE newer.export_id = r.export_id AND newer.due_at > r.due_at)"
)


def old_export_runs(before: datetime) -> sql.Composed:
    """What goes, as a table and a condition."""
    return sql.SQL(_OLD).format(sql.Literal(before))


def expire_export_runs(db: Connection, before: datetime) -> int:
    """Delete them and their attempts. How many due times; one transaction. What is not delivered never goes."""
    with db.transaction():
        return db.execute(sql.SQL("DELETE FROM {}").format(old_export_runs(before))).rowcount
