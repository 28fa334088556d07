"""Rows of an export from the marts, in order, named, counted as they go by (corrections 37, 38)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from operator import attrgetter
from typing import Any
from uuid import UUID

import pyarrow.compute as pc
from psycopg import sql

from tokentra_dagster.errors import UsageError
from tokentra_dagster.exports.columns import METRIC_COLUMNS, Column
from tokentra_dagster.exports.pseudonyms import order_salt, pseudonymised
from tokentra_dagster.exports.request import ExportRequest
from tokentra_dagster.exports.stream import parse, stream, stream_rows
from tokentra_dagster.exports.writers import Writer
from tokentra_dagster.exports.writers.csv import CsvWriter, field_sql, without_last
from tokentra_dagster.usage_source import NAMES
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import Connection

ALWAYS_COUNTED = ("total_tokens", "unpriced_tokens", "record_count")
"""Totals of these are known of every export, in the file or not."""
PEOPLE_NAME = ("team", "project", "cost_center")
MEASURES = "cache_creation_tokens, success_count"


Shown = Callable[[Column], str]
"""SQL of a column's values."""


@dataclass(frozen=True, slots=True)
class Totals:
    """What the rows add up to; None where no row knows a metric."""

    row_count: int
    sums: dict[str, int | Decimal | None]


class RunningTotals:
    """Adds up the additive ones of some columns, batch by batch."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._row_count = 0
        self._sums: dict[str, int | Decimal | None] = {column.name: None for column in columns if column.additive}

    def add(self, batch: Any) -> None:
        self._row_count += batch.num_rows
        for name, before in self._sums.items():
            added = pc.sum(batch.column(name)).as_py()
            if added is not None:
                self._sums[name] = added if before is None else before + added

    @property
    def totals(self) -> Totals:
        """No rows add up to 0: nothing was used."""
        sums = dict.fromkeys(self._sums, 0) if not self._row_count else self._sums
        return Totals(self._row_count, dict(sums))


class RowReader:
    """Iterate once, over the batches or over `csv_lines`; `totals` holds afterwards what went by.

    `statement` gives the SQL of some columns, each as the function has it that it is called with. Beside the file's `columns`, those of
    `ALWAYS_COUNTED` are read. With a `key` users become pseudonyms; with the `snapshot` that an open transaction exported, the rows are
    what that one sees. `size` is the bytes of text of a batch, None the usual ones.
    """

    def __init__(
        self, database: Database, columns: Sequence[Column], statement: Callable[[Sequence[Column], Shown], str],
        snapshot: str | None = None, key: bytes | None = None, size: int | None = None,
    ) -> None:  # fmt: skip
        self.columns = list(columns)
        shown = {column.name for column in columns}
        self._read = [*columns, *(METRIC_COLUMNS[name] for name in ALWAYS_COUNTED if name not in shown)]
        self._database, self._statement, self._snapshot, self._key, self._size = database, statement, snapshot, key, size
        self._running = RunningTotals(self._read)

    @property
    def totals(self) -> Totals:
        return self._running.totals

    @property
    def is_pseudonymised(self) -> bool:
        return self._key is not None and any(column.name == "user_id" for column in self.columns)

    def into(self, writer: Writer) -> None:
        """Every row. The server writes csv itself where it can: that takes half the time (docs/decisions/0014)."""
        if isinstance(writer, CsvWriter) and not self.is_pseudonymised:
            for lines in self.csv_lines():
                writer.write_lines(lines)
        else:
            for batch in self:
                writer.write(batch)

    def csv_lines(self) -> Iterator[bytes]:
        """Lines of a csv file as the server writes them, byte for byte those of `CsvWriter`; the totals are counted from them. Not for
        pseudonyms: the server does not have the key."""
        assert not self.is_pseudonymised
        counted = [column for column in self._read if column.additive]
        for rows in stream_rows(self._database, self._statement(self._read, field_sql), self._snapshot, self._size):
            self._running.add(parse(b"".join(rows), self._read, counted))
            yield without_last(rows, len(self._read) - len(self.columns))

    def __iter__(self) -> Iterator[Any]:
        for batch in stream(
            self._database, self._statement(self._read, attrgetter("sql")), self._read, self._snapshot, self._size
        ):
            self._running.add(batch)
            if self._key is not None and self.is_pseudonymised:
                place = batch.schema.names.index("user_id")
                batch = batch.set_column(place, "user_id", pseudonymised(batch.column(place), self._key))
            yield batch.select([column.name for column in self.columns])


def row_reader(
    database: Database, connection: Connection, org_id: UUID, request: ExportRequest, currency: str, key: bytes | None,
    size: int | None = None,
) -> RowReader:  # fmt: skip
    """Of the marts' rows, in order of bucket and dimensions, in the snapshot of the connection's transaction, which has to be REPEATABLE
    READ and stay open."""

    def statement(columns: Sequence[Column], shown: Shown) -> str:
        return export_statement(connection, org_id, request, columns, shown, key)

    exported = connection.execute("SELECT pg_export_snapshot() AS snapshot").fetchone()
    assert exported is not None
    return RowReader(database, request.columns(currency), statement, exported["snapshot"], key, size)


def export_statement(
    connection: Connection,
    org_id: UUID,
    request: ExportRequest,
    columns: Sequence[Column],
    shown: Shown,
    key: bytes | None = None,
) -> str:
    """SQL of the rows: sums by bucket and dimensions over the marts' own parts of the period (docs/functions.md), names joined after;
    `shown` is the SQL of a column's values."""
    dimensions = [_column(name) for name in request.grouping]
    parts, sums = _parts(connection, org_id, request, dimensions)
    bucket = f"date_trunc({_literal(request.granularity)}, moment)"
    by = ", ".join([bucket, *dimensions])
    joins = "".join(
        f" LEFT JOIN (SELECT id, min(label) AS label FROM ({NAMES[name].replace('%s', _literal(str(org_id)))}) AS named (id, label)"
        f" GROUP BY id) AS {name}_names ON {name}_names.id = summed.{_column(name)}::TEXT"
        for name in request.grouping
        if name in NAMES
    )
    order = ["summed.bucket", *(_order(name, key) for name in dimensions)]
    return (
        f"SELECT {', '.join(map(shown, columns))} FROM ("
        f"SELECT {', '.join([f'{bucket} AS bucket', *dimensions])}, {sums} "
        f"FROM ({parts}) AS part GROUP BY {by}) AS summed{joins} ORDER BY {', '.join(order)}"
    )


def period_totals(connection: Connection, org_id: UUID, request: ExportRequest) -> dict[str, int]:
    """`ALWAYS_COUNTED` over the whole period, also of usage that is only known by wider buckets than the export's."""
    parts, sums = _parts(connection, org_id, request, [], width="day")
    row = connection.execute(f"SELECT {sums} FROM ({parts}) AS part".encode()).fetchone()
    assert row is not None
    return {name: row[name] or 0 for name in ALWAYS_COUNTED}


def _parts(
    connection: Connection, org_id: UUID, request: ExportRequest, dimensions: Sequence[str], width: str | None = None
) -> tuple[str, str]:
    """SQL of the rows to sum, and of their sums."""
    width = width or (request.granularity if request.granularity in ("minute", "hour") else "day")
    row = connection.execute(
        "SELECT marts.usage_parts(marts.usage_relation(%s), %s, %s, %s, concat_ws(', ', 'moment', %s::TEXT, marts.usage_measures(), "
        f"'{MEASURES}'), %s, %s) AS parts, concat_ws(', ', marts.usage_sums(%s), marts.usage_bases()) AS sums",
        [[*dimensions, *map(_column, request.filters)], org_id, request.period.start, request.period.end,
         ", ".join(dimensions) or None, _condition(connection, org_id, request), width, org_id],
    ).fetchone()  # fmt: skip
    assert row is not None
    return row["parts"], row["sums"]


def _condition(connection: Connection, org_id: UUID, request: ExportRequest) -> str:
    """SQL that keeps the filters' usage. Raises `UsageError` for a team, project or cost center that there is not."""
    conditions = ["true"]
    for dimension, wanted in request.filters.items():
        column, values = _column(dimension), [value for value in wanted if value is not None]
        if dimension in NAMES:
            values = _identifiers(connection, org_id, dimension, values)
        known = f"{column}::TEXT = ANY ({_literal(values)}::TEXT[])"
        conditions.append(f"({known} OR {column} IS NULL)" if None in wanted else known)
    return " AND ".join(conditions)


def _identifiers(connection: Connection, org_id: UUID, dimension: str, values: Sequence[str]) -> list[str]:
    """Each value, and every identifier that has it as its name."""
    rows = connection.execute(f"SELECT id, label FROM ({NAMES[dimension]}) AS named (id, label)".encode(), [org_id]).fetchall()
    found: list[str] = []
    for value in values:
        named = [row["id"] for row in rows if value in (row["id"], row["label"])]
        if not named and dimension in PEOPLE_NAME:
            there = ", ".join(sorted({row["label"] for row in rows if row["label"]})) or "none"
            raise UsageError(f"The filter of {dimension} is {value!r}, which there is not; there are: {there}.")
        found += {value, *named}
    return sorted(found)


def _column(dimension: str) -> str:
    return f"{dimension}_id" if dimension in NAMES else dimension


def _order(column: str, key: bytes | None) -> str:
    if column == "user_id" and key is not None:
        return f"sha256(convert_to({_literal(order_salt(key))} || summed.user_id, 'UTF8'))"
    return f'summed.{column}::TEXT COLLATE "C"'


def _literal(value: Any) -> str:
    return sql.Literal(value).as_string(None)
