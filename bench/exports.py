"""Exports: seconds and peak memory per format beside the server's own COPY TO file, at 1 million rows of 15 columns.

The rows are a stored table, so that what is measured is reading and writing and not the query. Every side is a process of its own;
what it imports is not timed. Workbooks are also written with openpyxl, plain and in its write-only mode, over fewer rows (plain
openpyxl holds every cell: a million rows of it would need gigabytes).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.memory import peak_mb
from bench.server import fresh_database
from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.exports.columns import Column
from tokentra_dagster.exports.request import ExportRequest
from tokentra_dagster.exports.stream import stream
from tokentra_dagster.exports.writers import WriterOptions, open_writer
from tokentra_dagster.warehouse.database import Database

TABLE = """
CREATE TABLE public.bench_export AS
SELECT '2026-06-01 00:00Z'::TIMESTAMPTZ + n / 500 * interval '1 hour' AS hour,
  (ARRAY['openai', 'anthropic', 'google'])[1 + n %% 3] AS provider, 'model-' || n %% 17 AS model,
  md5((n %% 9)::TEXT)::UUID::TEXT AS team_id, 'Team "' || n %% 9 || '", Ünit' AS team_name,
  'user-' || n %% 5000 AS user_id, nullif('feature ' || n %% 7, 'feature 0') AS feature,
  (hashint4(n) & 1048575)::BIGINT AS total_tokens, (hashint4(n + 1) & 524287)::BIGINT AS input_tokens, (n %% 9000)::BIGINT AS output_tokens,
  CASE WHEN n %% 3 > 0 THEN (n %% 700)::BIGINT END AS cached_tokens, (n %% 50)::BIGINT AS request_count, (n %% 4)::BIGINT AS error_count,
  CASE WHEN n %% 11 > 0 THEN (hashint4(n) & 16777215) * 0.000000000125 END AS estimated_cost,
  (n %% 997) / 9.97::DOUBLE PRECISION AS cache_hit_rate
FROM generate_series(1, %s) AS n
"""
REQUEST: dict[str, Any] = {
    "granularity": "hour", "dimensions": ("provider", "model", "team", "user", "feature"), "names": "raw",
    "metrics": ("total_tokens", "input_tokens", "output_tokens", "cached_tokens", "request_count", "error_count", "estimated_cost",
                "cache_hit_rate"),
}  # fmt: skip
STATEMENT = "SELECT {columns} FROM public.bench_export LIMIT {rows}"
FORMATS = ("csv", "csv gzip", "jsonl", "json", "parquet", "xlsx")
OPENPYXL = ("openpyxl write-only", "openpyxl")


def columns() -> list[Column]:
    """15: the hour, 6 texts without the user's name, 7 numbers and a ratio."""
    from datetime import UTC, datetime

    period = Period(datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 9, 1, tzinfo=UTC))
    return [column for column in ExportRequest("bench", period, **REQUEST).columns("USD") if column.name != "user_name"]


def one(url: str, kind: str, path: str, rows: int) -> None:
    """Write the file; print seconds and the peak in MB. Called in a process of its own."""
    ours = columns()
    format, _, compression = kind.partition(" ")
    with Database(url).connect() as connection:
        statement = STATEMENT.format(columns=", ".join(column.name for column in ours), rows=rows)
        began = time.perf_counter()
        if kind == "copy":
            connection.execute(f"COPY ({statement}) TO '{path}' (FORMAT csv, HEADER)".encode())
        elif kind in OPENPYXL:
            _openpyxl(url, statement, ours, Path(path), kind == OPENPYXL[0])
        else:
            usual = "zstd" if format == "parquet" else "none"
            writer = open_writer(format, Path(path), ours, WriterOptions(compression or usual, "raw"))
            for batch in stream(Database(url), statement, ours):
                writer.write(batch)
            writer.close({"Note": "benchmark"})
        print(time.perf_counter() - began, peak_mb())


def _openpyxl(url: str, statement: str, ours: list[Column], path: Path, write_only: bool) -> None:
    import openpyxl

    book = openpyxl.Workbook(write_only=write_only)
    sheet = book.create_sheet("Usage Data")
    sheet.append([column.name for column in ours])
    for batch in stream(Database(url), statement, ours):
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            sheet.append([row[0].replace(tzinfo=None), *row[1:]])
    book.save(path)


def _measured(database: Database, kind: str, folder: Path, rows: int, repeat: int) -> tuple[float, int, float]:
    """Least seconds, peak MB and size in MB."""
    root = str(Path(__file__).parent.parent)
    path = folder / kind.replace(" ", "_")
    seconds, peaks = [], []
    for _ in range(repeat):
        path.unlink(missing_ok=True)
        code = f"from bench.exports import one; one({database.url!r}, {kind!r}, {str(path)!r}, {rows})"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": root},
            cwd=root,
            check=True,
            capture_output=True,
            text=True,
        )
        spent, peak = done.stdout.split()
        seconds.append(float(spent))
        peaks.append(int(peak))
    size = path.stat().st_size / 1e6
    path.unlink()
    return min(seconds), max(peaks), size


def run(rows: int = 1_000_000, repeat: int = 2, workbook_rows: int = 100_000) -> None:
    """Print each format with its ratio to what the issue compares it with."""
    with fresh_database() as database, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        with database.connect(autocommit=True) as db:
            db.execute((TABLE % rows).encode())
            db.execute("VACUUM ANALYZE public.bench_export")
        print(f"exports, {rows:,} rows of {len(columns())} columns, least of {repeat} (workbooks: of 1)")
        found: dict[str, float] = {}
        for kind in ("copy", *FORMATS):
            spent, peak, size = _measured(database, kind, folder, rows, 1 if kind == "xlsx" else repeat)
            found[kind] = spent
            to = {"parquet": "csv", "json": "csv", "jsonl": "csv"}.get(kind, "copy")
            print(
                f"  {kind:<10} {spent:7.2f} s   {spent / found[to]:6.2f} times {to:<5} peak {peak:5d} MB   file {size:7.1f} MB",
                flush=True,
            )
        print(f"workbooks, {workbook_rows:,} rows")
        for kind in ("xlsx", *OPENPYXL):
            spent, peak, size = _measured(database, kind, folder, workbook_rows, 1)
            print(f"  {kind:<20} {spent:7.2f} s   peak {peak:5d} MB   file {size:7.1f} MB", flush=True)
