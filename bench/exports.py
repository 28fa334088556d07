"""Exports: seconds and peak memory per format beside the server's own COPY TO file, at 1 million rows of 15 columns.

The rows are a stored table, so that what is measured is reading, counting and writing and not the query. Every side is a process of
its own; what it imports is not timed. The sides take turns, so that a busy moment meets all of them. Workbooks are also written with openpyxl, plain and in its write-only mode, over fewer rows (plain
openpyxl holds every cell: a million rows of it would need gigabytes).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.memory import peak_mb
from bench.server import fresh_database
from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.exports.columns import Column
from tokentra_dagster.exports.request import ExportRequest
from tokentra_dagster.exports.rows import RowReader, Shown
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
  (n %% 997) / 9.97::DOUBLE PRECISION AS cache_hit_rate,
  CASE WHEN n %% 11 > 0 THEN 0 ELSE (hashint4(n) & 1048575)::BIGINT END AS unpriced_tokens, (1 + n %% 50)::BIGINT AS record_count
FROM generate_series(1, %s) AS n
"""
REQUEST: dict[str, Any] = {
    "granularity": "hour", "dimensions": ("provider", "model", "team", "user", "feature"), "names": "raw",
    "metrics": ("total_tokens", "input_tokens", "output_tokens", "cached_tokens", "request_count", "error_count", "estimated_cost",
                "cache_hit_rate"),
}  # fmt: skip
FORMATS = ("csv", "csv gzip", "jsonl", "json", "parquet")
OPENPYXL = ("openpyxl write-only", "openpyxl")
AIMS = {"csv": ("copy", 1.5), "parquet": ("csv", 1.5), "json": ("csv", 3.0)}
"""By format what it is compared with, and how many times its seconds are allowed."""
FASTER, SMALLER = 2, 10
"""How many times a workbook has to be faster than plain openpyxl, and take less memory (over what the program takes idle)."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The fastest of some runs: seconds, and the load average of the machine meanwhile. Megabytes are the most of all runs."""

    seconds: float
    load: float
    peak: int
    idle: int
    size: float

    def __str__(self) -> str:
        return f"{self.seconds:7.2f} s at load {self.load:4.1f}   peak {self.peak:5d} MB (idle {self.idle})   file {self.size:7.1f} MB"


def columns() -> list[Column]:
    """15: the hour, 6 texts without the user's name, 7 numbers and a ratio."""
    from datetime import UTC, datetime

    period = Period(datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 9, 1, tzinfo=UTC))
    found = ExportRequest("bench", period, **REQUEST).columns("USD")
    return [replace(column, sql=column.name) for column in found if column.name != "user_name"]


def one(url: str, kind: str, path: str, rows: int) -> None:
    """Write the file; print seconds, the peak in MB and what it was before. Called in a process of its own."""
    ours = columns()
    format, _, compression = kind.partition(" ")

    def statement(columns: Sequence[Column], shown: Shown) -> str:
        return f"SELECT {', '.join(map(shown, columns))} FROM public.bench_export AS summed LIMIT {rows}"

    with Database(url).connect() as connection:
        idle = peak_mb()
        began = time.perf_counter()
        if kind == "copy":
            asked = statement(ours, lambda column: column.name)
            connection.execute(f"COPY ({asked}) TO '{path}' (FORMAT csv, HEADER)".encode())
        elif kind in OPENPYXL:
            _openpyxl(url, statement(ours, lambda column: column.name), ours, Path(path), kind == OPENPYXL[0])
        else:
            usual = "zstd" if format == "parquet" else "none"
            writer = open_writer(format, Path(path), ours, WriterOptions(compression or usual, "raw"))
            reader = RowReader(Database(url), ours, statement)
            reader.into(writer)
            writer.close({"Note": "benchmark"})
            assert reader.totals.row_count == rows
        print(time.perf_counter() - began, peak_mb(), idle)


def _openpyxl(url: str, statement: str, ours: list[Column], path: Path, write_only: bool) -> None:
    import openpyxl

    book = openpyxl.Workbook(write_only=write_only)
    sheet = book.create_sheet("Usage Data")
    sheet.append([column.name for column in ours])
    for batch in stream(Database(url), statement, ours):
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            sheet.append([row[0].replace(tzinfo=None), *row[1:]])
    book.save(path)


def _measured(database: Database, kind: str, folder: Path, rows: int) -> Measured:
    root = str(Path(__file__).parent.parent)
    path = folder / kind.replace(" ", "_")
    code = f"from bench.exports import one; one({database.url!r}, {kind!r}, {str(path)!r}, {rows})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": root},
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    )
    spent, peak, idle = done.stdout.split()
    size = path.stat().st_size / 1e6
    path.unlink()
    return Measured(float(spent), os.getloadavg()[0], int(peak), int(idle), size)


def _said(is_met: bool) -> str:
    return "met" if is_met else "MISSED"


def run(rows: int = 1_000_000, repeat: int = 3, workbook_rows: int = 100_000) -> None:
    """Print each format with its ratio to what the issue compares it with, and whether it is as fast as it should be."""
    with fresh_database() as database, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        with database.connect(autocommit=True) as db:
            db.execute((TABLE % rows).encode())
            db.execute("VACUUM ANALYZE public.bench_export")
        runs = [{kind: _measured(database, kind, folder, rows) for kind in ("copy", *FORMATS)} for _ in range(repeat)]
        found = {
            kind: replace(
                min((each[kind] for each in runs), key=lambda one: one.seconds), peak=max(each[kind].peak for each in runs)
            )
            for kind in runs[0]
        }
        print(f"exports, {rows:,} rows of {len(columns())} columns, least of {repeat}")
        for kind, measured in found.items():
            to, allowed = AIMS.get(kind, ("copy", None))
            times = measured.seconds / found[to].seconds
            aim = f", aim {allowed}: {_said(times <= allowed)}" if allowed else ""
            print(f"  {kind:<10} {measured}   {times:5.2f} times {to}{aim}", flush=True)
        print(f"workbooks, {workbook_rows:,} rows")
        books = {kind: _measured(database, kind, folder, workbook_rows) for kind in ("xlsx", *OPENPYXL)}
        for kind, measured in books.items():
            print(f"  {kind:<20} {measured}", flush=True)
        ours, theirs = books["xlsx"], books["openpyxl"]
        faster = theirs.seconds / ours.seconds
        smaller = (theirs.peak - theirs.idle) / max(ours.peak - ours.idle, 1)
        print(f"  xlsx is {faster:.1f} times faster than openpyxl, aim {FASTER}: {_said(faster >= FASTER)}")
        print(
            f"  and takes a {smaller:.1f}th of its memory, aim {SMALLER}: {_said(smaller >= SMALLER)} (at a million rows openpyxl takes gigabytes)"
        )
