"""Replace a window, atomically (design, "Sync").

A load first spools everything to disk, encoded and checked, then in ONE transaction deletes the connection's records of
that granularity in the window, copies the new ones in, and finishes the `sync_history` row. A reader sees the window
before or after, never between; a load that dies leaves the old window and a `failed` row with the error.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import IO, Any
from uuid import UUID, uuid4

import pyarrow as pa
import pyarrow.compute as pc
from psycopg.types.json import Jsonb

from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.ingest.attribution import Attribution, Rule
from tokentra_dagster.ingest.encode import COPIED, Target, encode, validate
from tokentra_dagster.ingest.windows import ceiling, floor
from tokentra_dagster.providers.base import Window
from tokentra_dagster.records import CostRecord
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import Connection, ConnectionRow, ensure_entities
from tokentra_dagster.warehouse.partitions import ensure_partitions

CHANGE_LOCK = 7_265_003
CHUNK = 1 << 20
COST_COLUMNS = (
    "bucket_start", "bucket_end", "amount", "list_amount", "currency", "line_item", "model", "cost_type", "token_type",
    "provider_project_id", "api_key_id", "user_id", "quantity", "quantity_unit",
)  # fmt: skip


@dataclass(slots=True)
class LoadResult:
    """What a load did. Counts are rows; `replaced` is what the window held before."""

    sync_id: UUID
    connection: str
    window_start: datetime
    window_end: datetime
    granularity: str
    loaded: int = 0
    replaced: int = 0
    rejected: int = 0
    costs: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    requests: int = 0
    notes: list[str] = field(default_factory=list)


class Spool:
    """What a source said, on disk until it is complete. Memory does not grow with the number of rows."""

    def __init__(self, target: Target, window: Window, database: Database, result: LoadResult) -> None:
        self.target = target
        self.window = window
        self.result = result
        self._database = database
        self._rows: IO[bytes] = tempfile.TemporaryFile()
        self._rejected: IO[bytes] = tempfile.TemporaryFile()
        self._costs: IO[bytes] = tempfile.TemporaryFile()

    def add(self, batch: pa.RecordBatch, payload: Callable[[int], Any] | None = None, line: Callable[[int], int] | None = None) -> None:
        """Take a batch of `USAGE_SCHEMA`; rows that cannot be usage are kept as rejected. `payload` gives the original of a row."""
        inside = pc.and_(
            pc.greater_equal(batch.column("bucket_start"), pa.scalar(self.window.start, batch.schema.field("bucket_start").type)),
            pc.less(batch.column("bucket_start"), pa.scalar(self.window.end, batch.schema.field("bucket_start").type)),
        )
        good, refused = validate(batch)
        for row in refused:
            original = payload(row.index) if payload else _plain_row(batch, row.index)
            self.reject(row.reason, original, row.bucket_start, line(row.index) if line else None)
        if not pc.all(inside).as_py():
            outside = pc.sum(pc.invert(inside)).as_py()
            raise PermanentError(f"The source gave {outside} records outside the window {_span(self.window)}; nothing was loaded.")
        if good.num_rows == 0:
            return
        self._name_entities(good)
        self._rows.write(encode(good, self.target))
        self.result.loaded += good.num_rows
        self.result.input_tokens += pc.sum(good.column("input_tokens")).as_py() or 0
        self.result.output_tokens += pc.sum(good.column("output_tokens")).as_py() or 0
        self.result.requests += pc.sum(good.column("request_count")).as_py() or 0

    def add_cost(self, cost: CostRecord) -> None:
        values = [getattr(cost, name) for name in COST_COLUMNS]
        self._costs.write(json.dumps([values, cost.metadata], default=str).encode() + b"\n")
        self.result.costs += 1

    def reject(self, reason: str, payload: Any, bucket_start: datetime | None = None, line: int | None = None) -> None:
        entry = [bucket_start, line, reason, payload]
        self._rejected.write(json.dumps(entry, default=_json_value).encode() + b"\n")
        self.result.rejected += 1

    def row_chunks(self) -> Iterator[bytes]:
        self._rows.seek(0)
        while chunk := self._rows.read(CHUNK):
            yield chunk

    def rejected(self) -> Iterator[list[Any]]:
        self._rejected.seek(0)
        return map(json.loads, self._rejected)

    def costs(self) -> Iterator[list[Any]]:
        self._costs.seek(0)
        return map(json.loads, self._costs)

    def close(self) -> None:
        for file in (self._rows, self._rejected, self._costs):
            file.close()

    def _name_entities(self, batch: pa.RecordBatch) -> None:
        known = self.target.entity_ids
        for kind in ("team", "project", "cost_center"):
            names = [name for name in pc.unique(batch.column(kind)).to_pylist() if name is not None and (kind, name) not in known]
            if names:
                with self._database.connect() as connection:
                    known.update(ensure_entities(connection, self.target.org_id, kind, names))  # type: ignore[attr-defined]


def load_window(
    database: Database, connection: ConnectionRow, window: Window, *,
    kind: str, fill: Callable[[Spool], None], settles_after: timedelta, run_id: str | None = None, now: datetime | None = None,
    prepare: Callable[[], object] | None = None,
) -> LoadResult:  # fmt: skip
    """Replace the connection's window with what `fill` puts into the spool. One load per connection at a time: a second waits.

    `prepare` runs before the attribution rules are read (a sync refreshes the provider's names in it).

    Raises what `fill` raised, after writing it into `raw.sync_history`.
    """
    result = LoadResult(uuid4(), connection.label, window.start, window.end, window.granularity)
    with database.connect(application=f"tokentra {kind} {connection.label}") as db, _only_one(db, connection):
        _fail_crashed(db, connection)
        _begin(db, connection, window, kind, result.sync_id, run_id, settles_after, now)
        spool = None
        try:
            if prepare:
                prepare()
            target = Target(
                connection.org_id, connection.id, connection.provider, connection.source, result.sync_id, attribution_of(db, connection), {}
            )
            db.commit()
            spool = Spool(target, window, database, result)
            fill(spool)
            ensure_partitions(db, window.start, window.end)
            _replace(db, connection, window, spool, kind)
        except BaseException as error:
            db.rollback()
            _fail(db, result.sync_id, error)
            raise
        finally:
            if spool:
                spool.close()
    return result


def attribution_of(db: Connection, connection: ConnectionRow) -> Attribution:
    """The rules that speak about this connection's records, and the names the provider gave its ids."""
    rules = db.execute(
        "SELECT priority, match_field, match_value, team_id, project_id, cost_center_id, feature, environment "
        "FROM app.attribution_rules WHERE org_id = %s AND (provider IS NULL OR provider = %s) ORDER BY priority, created_at, id",
        [connection.org_id, connection.provider],
    ).fetchall()
    names = db.execute(
        "SELECT kind, entity_id, name FROM raw.provider_entities WHERE provider_connection_id = %s AND name IS NOT NULL", [connection.id]
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
def _only_one(db: Connection, connection: ConnectionRow) -> Iterator[None]:
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
    db.execute(
        "INSERT INTO raw.sync_history (id, org_id, provider_connection_id, kind, granularity, window_start, window_end, "
        "covered_until, final_before, run_id) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        [
            sync_id, connection.org_id, connection.id, kind, window.granularity, window.start, window.end,
            window.end if kind == "import" else min(window.end, max(started, window.start)), started - settles_after, run_id,
        ],
    )  # fmt: skip
    db.commit()


def _replace(db: Connection, connection: ConnectionRow, window: Window, spool: Spool, kind: str) -> None:
    result = spool.result
    span = {"connection": connection.id, "start": window.start, "end": window.end, "granularity": window.granularity}
    with db.transaction():
        result.replaced = db.execute(
            "DELETE FROM raw.usage_records WHERE provider_connection_id = %(connection)s "
            "AND timestamp >= %(start)s AND timestamp < %(end)s AND granularity = %(granularity)s",
            span,
        ).rowcount
        with db.cursor().copy(f"COPY raw.usage_records ({', '.join(COPIED)}) FROM STDIN (FORMAT csv)") as copy:
            for chunk in spool.row_chunks():
                copy.write(chunk)
        _replace_rejected(db, connection, window, spool)
        if kind == "sync":
            _replace_costs(db, connection, window, spool)
        db.execute(
            "UPDATE raw.sync_history SET status = 'completed', completed_at = now(), records_loaded = %s, records_replaced = %s, "
            "records_rejected = %s, costs_loaded = %s WHERE id = %s",
            [result.loaded, result.replaced, result.rejected, result.costs, result.sync_id],
        )
        log_change(
            db, org_id=connection.org_id, provider=connection.provider, connection_id=connection.id,
            windows=[(window.start, window.end)], reason=kind, sync_id=result.sync_id,
        )  # fmt: skip


def _replace_rejected(db: Connection, connection: ConnectionRow, window: Window, spool: Spool) -> None:
    db.execute(
        "DELETE FROM raw.rejected_records WHERE provider_connection_id = %s AND window_start >= %s AND window_end <= %s",
        [connection.id, window.start, window.end],
    )
    columns = "org_id, provider_connection_id, sync_id, window_start, window_end, bucket_start, line_number, reason, payload"
    with db.cursor().copy(f"COPY raw.rejected_records ({columns}) FROM STDIN") as copy:
        for bucket_start, line, reason, payload in spool.rejected():
            fixed = (connection.org_id, connection.id, spool.result.sync_id, window.start, window.end)
            copy.write_row((*fixed, bucket_start, line, reason, Jsonb(_without_nul(payload))))


def _replace_costs(db: Connection, connection: ConnectionRow, window: Window, spool: Spool) -> None:
    db.execute(
        "DELETE FROM raw.provider_costs WHERE provider_connection_id = %s AND bucket_start >= %s AND bucket_start < %s",
        [connection.id, floor(window.start, "1d"), ceiling(window.end, "1d")],
    )
    columns = ", ".join(("org_id", "provider_connection_id", "provider", "sync_id", *COST_COLUMNS, "provider_metadata"))
    with db.cursor().copy(f"COPY raw.provider_costs ({columns}) FROM STDIN") as copy:
        for values, metadata in spool.costs():
            copy.write_row((connection.org_id, connection.id, connection.provider, spool.result.sync_id, *values, Jsonb(metadata)))


def _fail(db: Connection, sync_id: UUID, error: BaseException) -> None:
    if db.broken:
        return
    kind = "permanent" if isinstance(error, PermanentError) else "transient" if isinstance(error, TransientError) else "crashed"
    db.execute(
        "UPDATE raw.sync_history SET status = 'failed', completed_at = now(), error = %s, error_kind = %s WHERE id = %s AND status = 'running'",
        [str(error) or type(error).__name__, kind, sync_id],
    )
    db.commit()


def _plain_row(batch: pa.RecordBatch, index: int) -> dict[str, Any]:
    values: Sequence[tuple[str, Any]] = [(name, batch.column(name)[index].as_py()) for name in batch.schema.names]
    return {name: value for name, value in values if value is not None}


def _json_value(value: Any) -> Any:
    return str(value) if isinstance(value, (datetime, Decimal, UUID)) else repr(value)


def _without_nul(value: Any) -> Any:
    """PostgreSQL's jsonb holds no NUL character; it is shown as the replacement character."""
    text = json.dumps(value)
    return json.loads(text.replace("\\u0000", "\\ufffd")) if "\\u0000" in text else value


def _span(window: Window) -> str:
    return f"{window.start:%Y-%m-%d %H:%M} to {window.end:%Y-%m-%d %H:%M} UTC"
