"""Replace a window, atomically (design, "Sync").

A load takes in everything first, encoded and checked, then in ONE transaction deletes the connection's records of that
granularity in the window, copies the new ones in, and finishes the `sync_history` row. A reader sees the window before or
after, never between; a load that dies leaves the old window and a `failed` row with the error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from psycopg.types.json import Jsonb

from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.ingest.attribution import Attribution, Rule
from tokentra_dagster.ingest.encode import COPIED, Target
from tokentra_dagster.ingest.intake import COST_COLUMNS, Intake, LoadResult, Spool, Stream
from tokentra_dagster.ingest.windows import ceiling
from tokentra_dagster.providers.base import Window
from tokentra_dagster.records import floor
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import Connection, ConnectionRow
from tokentra_dagster.warehouse.partitions import ensure_partitions
from tokentra_dagster.warehouse.retention import RETENTION_LOCK

CHANGE_LOCK = 7_265_003
COPY = f"COPY raw.usage_records ({', '.join(COPIED)}) FROM STDIN (FORMAT csv)"


def load_window(
    database: Database, connection: ConnectionRow, window: Window, *,
    kind: str, fill: Callable[[Intake], None], settles_after: timedelta, run_id: str | None = None, now: datetime | None = None,
    prepare: Callable[[], object] | None = None,
) -> LoadResult:  # fmt: skip
    """Replace the connection's window with what `fill` takes in. One load per connection at a time: a second waits.

    A `sync` is spooled, because its source can fail half-way; an `import` streams from a file that is complete.

    `prepare` runs before the attribution rules are read (a sync refreshes the provider's names in it).

    Raises what `fill` raised, after writing it into `raw.sync_history`.
    """
    result = LoadResult(uuid4(), connection.label, window.start, window.end, window.granularity)
    with database.connect(application=f"tokentra {kind} {connection.label}") as db, only_one(db, connection):
        _fail_crashed(db, connection)
        _begin(db, connection, window, kind, result.sync_id, run_id, settles_after, now)
        try:
            _refuse_expired(db, connection, window)
            if prepare:
                prepare()
            target = _target(db, connection, result.sync_id)
            db.commit()
            ensure_partitions(db, window.start, window.end)
            (_spool_then_replace if kind == "sync" else _replace_streaming)(
                db, database, connection, window, target, result, fill
            )
        except BaseException as error:
            db.rollback()
            _fail(db, result.sync_id, error)
            raise
    return result


def append_records(
    db: Connection, database: Database, connection: ConnectionRow, window: Window, sync_id: UUID, fill: Callable[[Intake], None]
) -> LoadResult:
    """Copy what `fill` takes in beside what is there, in the caller's transaction; nothing is replaced (docs/decisions/0012).

    The caller sees to it that nothing is appended twice, keeps `raw.sync_history`, and logs the change last.
    """
    result = LoadResult(sync_id, connection.label, window.start, window.end, window.granularity)
    with Stream(_target(db, connection, sync_id), window, database, result) as stream:
        with db.cursor().copy(COPY) as copy:
            stream.open(copy)
            fill(stream)
            stream.finish()
        _copy_rejected(db, connection, window, stream)
    return result


def kept_from(db: Connection, connection: ConnectionRow) -> datetime | None:
    """The start of what has not expired of the organisation's and provider's records; None: nothing has."""
    row = db.execute(
        "SELECT kept_from FROM raw.retention_horizon WHERE org_id = %s AND provider = %s",
        [connection.org_id, connection.provider],
    ).fetchone()
    return row["kept_from"] if row else None


def _target(db: Connection, connection: ConnectionRow, sync_id: UUID) -> Target:
    return Target(
        connection.org_id, connection.id, connection.provider, connection.source, sync_id, attribution_of(db, connection), {}
    )


def attribution_of(db: Connection, connection: ConnectionRow) -> Attribution:
    """The rules that speak about this connection's records, and the names the provider gave its ids."""
    rules = db.execute(
        "SELECT priority, match_field, match_value, team_id, project_id, cost_center_id, feature, environment "
        "FROM app.attribution_rules WHERE org_id = %s AND (provider IS NULL OR provider = %s) ORDER BY priority, created_at, id",
        [connection.org_id, connection.provider],
    ).fetchall()
    names = db.execute(
        "SELECT kind, entity_id, name FROM raw.provider_entities WHERE provider_connection_id = %s AND name IS NOT NULL",
        [connection.id],
    )
    columns = {
        "project": "provider_project_id", "workspace": "provider_project_id", "api_key": "api_key_id",
        "user": "user_id", "service_account": "user_id",
    }  # fmt: skip
    named = {(columns[row["kind"]], row["entity_id"]): row["name"] for row in names if row["kind"] in columns}
    return Attribution([Rule(**rule) for rule in rules], named)


def log_change(
    db: Connection, *, org_id: UUID, provider: str, connection_id: UUID | None, windows: Iterable[tuple[datetime, datetime]],
    reason: str, sync_id: UUID | None = None,
) -> None:  # fmt: skip
    """Append to `raw.usage_changes`; the caller must commit right after. The lock makes numbers appear in commit order."""
    db.execute("SELECT pg_advisory_xact_lock(%s)", [CHANGE_LOCK])
    for start, end in windows:
        db.execute(
            "INSERT INTO raw.usage_changes (change_number, org_id, provider, provider_connection_id, window_start, window_end, reason, sync_id) "
            "VALUES (nextval('raw.usage_change_number'), %s, %s, %s, %s, %s, %s, %s)",
            [org_id, provider, connection_id, start, end, reason, sync_id],
        )


@contextmanager
def only_one(db: Connection, connection: ConnectionRow) -> Iterator[None]:
    """Hold the connection's lock: whoever else loads it waits. Commits."""
    key = [f"tokentra connection {connection.id}"]
    db.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", key)
    db.commit()
    try:
        yield
    finally:
        if not db.broken:
            db.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", key)
            db.commit()


def _fail_crashed(db: Connection, connection: ConnectionRow) -> None:
    """We hold the connection's lock, so whatever still says `running` belongs to a process that died."""
    db.execute(
        "UPDATE raw.sync_history SET status = 'failed', error_kind = 'crashed', completed_at = now(), "
        "error = 'The process ended before the load was complete; the window is as it was. Run the sync again.' "
        "WHERE provider_connection_id = %s AND status = 'running'",
        [connection.id],
    )
    db.commit()


def _begin(
    db: Connection, connection: ConnectionRow, window: Window, kind: str, sync_id: UUID, run_id: str | None,
    settles_after: timedelta, now: datetime | None,
) -> None:  # fmt: skip
    started = now or datetime.now(UTC)
    # Retention either sees this row, or this load the horizon that retention moved.
    db.execute("SELECT pg_advisory_xact_lock_shared(%s)", [RETENTION_LOCK])
    db.execute(
        "INSERT INTO raw.sync_history (id, org_id, provider_connection_id, kind, granularity, window_start, window_end, "
        "covered_until, final_before, run_id) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        [
            sync_id, connection.org_id, connection.id, kind, window.granularity, window.start, window.end,
            window.end if kind == "import" else min(window.end, max(started, window.start)), started - settles_after, run_id,
        ],
    )  # fmt: skip
    db.commit()


def _refuse_expired(db: Connection, connection: ConnectionRow, window: Window) -> None:
    """Builds never compute expired usage anew: what was loaded there would count nowhere, and go with the next retention."""
    kept = kept_from(db, connection)
    db.commit()
    if kept and kept > window.start:
        raise PermanentError(
            f"{connection.label}: records of {connection.provider} before {kept:%Y-%m-%d} have expired and would not be "
            f"counted again; the window starts at {window.start:%Y-%m-%d %H:%M} UTC. Nothing was loaded; start at {kept:%Y-%m-%d}."
        )


def _spool_then_replace(
    db: Connection, database: Database, connection: ConnectionRow, window: Window, target: Target, result: LoadResult,
    fill: Callable[[Intake], None],
) -> None:  # fmt: skip
    with Spool(target, window, database, result) as spool:
        fill(spool)
        with db.transaction():
            _delete(db, connection, window, result)
            with db.cursor().copy(COPY) as copy:
                for chunk in spool.chunks():
                    copy.write(chunk)
            _replace_costs(db, connection, window, spool)
            _finish(db, connection, window, spool, "sync")


def _replace_streaming(
    db: Connection, database: Database, connection: ConnectionRow, window: Window, target: Target, result: LoadResult,
    fill: Callable[[Intake], None],
) -> None:  # fmt: skip
    with db.transaction():
        _delete(db, connection, window, result)
        with Stream(target, window, database, result) as stream:
            with db.cursor().copy(COPY) as copy:
                stream.open(copy)
                fill(stream)
                stream.finish()
            _finish(db, connection, window, stream, "import")


def _delete(db: Connection, connection: ConnectionRow, window: Window, result: LoadResult) -> None:
    result.replaced = db.execute(
        "DELETE FROM raw.usage_records WHERE provider_connection_id = %s AND timestamp >= %s AND timestamp < %s AND granularity = %s",
        [connection.id, window.start, window.end, window.granularity],
    ).rowcount


def _finish(db: Connection, connection: ConnectionRow, window: Window, intake: Intake, kind: str) -> None:
    result = intake.result
    _replace_rejected(db, connection, window, intake)
    db.execute(
        "UPDATE raw.sync_history SET status = 'completed', completed_at = now(), records_loaded = %s, records_replaced = %s, "
        "records_rejected = %s, costs_loaded = %s WHERE id = %s",
        [result.loaded, result.replaced, result.rejected, result.costs, result.sync_id],
    )
    log_change(
        db, org_id=connection.org_id, provider=connection.provider, connection_id=connection.id,
        windows=[(window.start, window.end)], reason=kind, sync_id=result.sync_id,
    )  # fmt: skip


def _replace_rejected(db: Connection, connection: ConnectionRow, window: Window, intake: Intake) -> None:
    db.execute(
        "DELETE FROM raw.rejected_records WHERE provider_connection_id = %s AND window_start >= %s AND window_end <= %s",
        [connection.id, window.start, window.end],
    )
    _copy_rejected(db, connection, window, intake)


def _copy_rejected(db: Connection, connection: ConnectionRow, window: Window, intake: Intake) -> None:
    columns = "org_id, provider_connection_id, sync_id, window_start, window_end, bucket_start, line_number, reason, payload"
    with db.cursor().copy(f"COPY raw.rejected_records ({columns}) FROM STDIN") as copy:
        for bucket_start, line, reason, payload in intake.rejected():
            fixed = (connection.org_id, connection.id, intake.result.sync_id, window.start, window.end)
            copy.write_row((*fixed, bucket_start, line, reason, Jsonb(_without_nul(payload))))


def _replace_costs(db: Connection, connection: ConnectionRow, window: Window, intake: Intake) -> None:
    db.execute(
        "DELETE FROM raw.provider_costs WHERE provider_connection_id = %s AND bucket_start >= %s AND bucket_start < %s",
        [connection.id, floor(window.start, "1d"), ceiling(window.end, "1d")],
    )
    columns = ", ".join(("org_id", "provider_connection_id", "provider", "sync_id", *COST_COLUMNS, "provider_metadata"))
    with db.cursor().copy(f"COPY raw.provider_costs ({columns}) FROM STDIN") as copy:
        for values, metadata in intake.costs():
            copy.write_row(
                (connection.org_id, connection.id, connection.provider, intake.result.sync_id, *values, Jsonb(metadata))
            )


def _fail(db: Connection, sync_id: UUID, error: BaseException) -> None:
    if db.broken:
        return
    kind = "permanent" if isinstance(error, PermanentError) else "transient" if isinstance(error, TransientError) else "crashed"
    db.execute(
        "UPDATE raw.sync_history SET status = 'failed', completed_at = now(), error = %s, error_kind = %s WHERE id = %s AND status = 'running'",
        [str(error) or type(error).__name__, kind, sync_id],
    )
    db.commit()


def _without_nul(value: Any) -> Any:
    """PostgreSQL's jsonb holds no NUL character; it is shown as the replacement character."""
    text = json.dumps(value)
    return json.loads(text.replace("\\u0000", "\\ufffd")) if "\\u0000" in text else value
