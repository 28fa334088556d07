"""Load rate: the real path against a plain COPY of the same rows, and against the specification's own schema.

- real path: `load_window` from Arrow batches: validation, pricing, attribution, encoding, spool, one transaction with
  the delete of the old window, COPY into the partitioned table with its key, `sync_history`.
- plain COPY: the very bytes that the real path copied, into a table with the same columns and no key, index, check or
  partition; reading them from disk is included on both sides.
- specification: the same rows (its columns) into its own partitioned table with all its indexes and foreign keys.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

import pyarrow as pa

from bench.rows import DAYS, START, batches
from bench.server import bench_connection, fresh_database
from bench.spec_schema import COLUMNS, SCHEMA, fill_references
from tokentra_dagster.ingest.encode import COPIED
from tokentra_dagster.ingest.intake import Intake
from tokentra_dagster.ingest.load import load_window
from tokentra_dagster.ingest.windows import aligned
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import ConnectionRow
from tokentra_dagster.warehouse.partitions import months


def load(
    database: Database, connection: ConnectionRow, made: Iterable[pa.RecordBatch], start: datetime = START, days: float = DAYS
) -> float:
    """Load the batches through the real path; returns seconds."""

    def fill(intake: Intake) -> None:
        for batch in made:
            intake.add(batch)

    began = time.perf_counter()
    load_window(
        database, connection, aligned(start, start + timedelta(days=days), "1m"), kind="import", fill=fill, settles_after=timedelta(0)
    )  # fmt: skip
    return time.perf_counter() - began


def copy(database: Database, table: str, columns: tuple[str, ...], chunks: Iterator[bytes]) -> float:
    """COPY the chunks into a table in one transaction; returns seconds."""
    began = time.perf_counter()
    with database.connect() as db, db.cursor().copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN (FORMAT csv)") as writer:
        for chunk in chunks:
            writer.write(chunk)
    return time.perf_counter() - began


def _dumped(database: Database, columns: tuple[str, ...]) -> Iterator[bytes]:
    """The loaded rows as COPY bytes, through a file so that both sides read from disk."""
    import tempfile

    with tempfile.TemporaryFile() as file:
        with (
            database.connect() as db,
            db.cursor().copy(f"COPY (SELECT {', '.join(columns)} FROM raw.usage_records) TO STDOUT (FORMAT csv)") as reader,
        ):
            for block in reader:
                file.write(block)
        file.seek(0)
        while chunk := file.read(1 << 20):
            yield chunk


def run(rows: int = 500_000) -> None:
    """Print the rates and ratios."""
    made = list(batches(rows))
    with fresh_database() as database:
        connection = bench_connection(database)
        load(database, connection, made)  # partitions, caches, WAL files
        real, plain, spec = [], [], []
        bare = "CREATE TABLE bare AS SELECT * FROM raw.usage_records WITH NO DATA"
        stored = tuple(name for name in COPIED)
        for _ in range(3):
            with database.connect() as db:
                db.execute("TRUNCATE raw.usage_records")
            real.append(load(database, connection, made))
            bytes_of_rows = list(_dumped(database, stored))
            with database.connect() as db:
                db.execute("DROP TABLE IF EXISTS bare")
                db.execute(bare)
            plain.append(copy(database, "bare", stored, iter(bytes_of_rows)))
        with database.connect() as db:
            db.execute(SCHEMA)
            for month, following in months(START, START + timedelta(days=DAYS)):
                db.execute(
                    f"CREATE TABLE spec.usage_records_{month:%Y%m} PARTITION OF spec.usage_records "
                    f"FOR VALUES FROM ('{month:%Y-%m-%d}+00') TO ('{following:%Y-%m-%d}+00')"
                )
            fill_references(db)
        spec.append(copy(database, "spec.usage_records", COLUMNS, iter(list(_dumped(database, COLUMNS)))))
    best, copied, slow = min(real), min(plain), min(spec)
    print(f"load, {rows:,} request-level rows, {datetime.now(UTC):%Y-%m-%d}")
    print(f"  real path (validate, price, attribute, replace window) {rows / best:>12,.0f} rows/s")
    print(
        f"  plain COPY of the same rows into a bare table           {rows / copied:>11,.0f} rows/s   real/plain = {copied / best:.2f}  (aim 0.40)"
    )
    print(
        f"  COPY into the specification's schema                    {rows / slow:>11,.0f} rows/s   real/spec  = {slow / best:.1f}  (aim 4.0)"
    )
