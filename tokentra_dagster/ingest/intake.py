"""What a source says, taken in: validated, encoded, counted, and kept on disk until it is complete.

`Spool` keeps the rows on disk, for sources that can fail half-way (a provider's API). `Stream` hands them to COPY at once,
encoding the next batch while the server takes the last, for sources that are complete before they start (a file).
Memory does not grow with the number of rows in either.
"""

from __future__ import annotations

import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from types import TracebackType
from typing import IO, Any, Self
from uuid import UUID

import psycopg
import pyarrow as pa
import pyarrow.compute as pc

from tokentra_dagster.errors import PermanentError
from tokentra_dagster.ingest.encode import Target, encode, validate
from tokentra_dagster.providers.base import Window
from tokentra_dagster.records import CostRecord
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import ensure_entities

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


class Intake(ABC):
    """Takes usage, costs and rejected items of one window; closing it (it is a context manager) drops its files."""

    def __init__(self, target: Target, window: Window, database: Database, result: LoadResult) -> None:
        self.target = target
        self.window = window
        self.result = result
        self._database = database
        self._rejected: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the intake
        self._costs: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the intake

    def add(
        self, batch: pa.RecordBatch, payload: Callable[[int], Any] | None = None, line: Callable[[int], int] | None = None
    ) -> None:
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
            raise PermanentError(
                f"The source gave {outside} records outside the window {_span(self.window)}; nothing was loaded."
            )
        if good.num_rows == 0:
            return
        self._name_entities(good)
        self._write(encode(good, self.target))
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

    @abstractmethod
    def _write(self, rows: bytes) -> None:
        """Take encoded rows."""

    def rejected(self) -> Iterator[list[Any]]:
        self._rejected.seek(0)
        return map(json.loads, self._rejected)

    def costs(self) -> Iterator[list[Any]]:
        self._costs.seek(0)
        return map(json.loads, self._costs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._rejected.close()
        self._costs.close()

    def _name_entities(self, batch: pa.RecordBatch) -> None:
        known = self.target.entity_ids
        for kind in ("team", "project", "cost_center"):
            names = [name for name in pc.unique(batch.column(kind)).to_pylist() if name is not None and (kind, name) not in known]
            if names:
                with self._database.connect() as connection:
                    known.update(ensure_entities(connection, self.target.org_id, kind, names))  # type: ignore[attr-defined]


class Spool(Intake):
    """Keeps the rows on disk; `chunks` reads them back once the source is complete."""

    def __init__(self, target: Target, window: Window, database: Database, result: LoadResult) -> None:
        super().__init__(target, window, database, result)
        self._rows: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the intake

    def _write(self, rows: bytes) -> None:
        self._rows.write(rows)

    def chunks(self) -> Iterator[bytes]:
        self._rows.seek(0)
        while chunk := self._rows.read(CHUNK):
            yield chunk

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        super().__exit__(kind, error, trace)
        self._rows.close()


class Stream(Intake):
    """Hands the rows to an open COPY in a thread of its own, one batch behind the encoding."""

    def __init__(self, target: Target, window: Window, database: Database, result: LoadResult) -> None:
        super().__init__(target, window, database, result)
        self._copy: psycopg.Copy | None = None
        self._thread = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def open(self, copy: psycopg.Copy) -> None:
        self._copy = copy

    def _write(self, rows: bytes) -> None:
        assert self._copy is not None, "open() comes first"
        self.finish()
        self._last = self._thread.submit(self._copy.write, rows)

    def finish(self) -> None:
        """Wait until the server has taken everything; raises what it refused."""
        if self._last:
            self._last.result()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        super().__exit__(kind, error, trace)


def _plain_row(batch: pa.RecordBatch, index: int) -> dict[str, Any]:
    values: Sequence[tuple[str, Any]] = [(name, batch.column(name)[index].as_py()) for name in batch.schema.names]
    return {name: value for name, value in values if value is not None}


def _json_value(value: Any) -> Any:
    return str(value) if isinstance(value, (datetime, Decimal, UUID)) else repr(value)


def _span(window: Window) -> str:
    return f"{window.start:%Y-%m-%d %H:%M} to {window.end:%Y-%m-%d %H:%M} UTC"
