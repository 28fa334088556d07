"""Peak memory of an export in every format and as FOCUS, each in a process of its own, by the number of rows: it must not grow.

`make bench` leaves it out, for 5 million rows of a workbook take a quarter of an hour: `python -m bench export_memory`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from bench import exports
from bench.memory import peak_mb
from bench.server import fresh_database
from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.exports.columns import Column
from tokentra_dagster.exports.focus.rows import USAGE_BYTES, FocusReader, usage_request
from tokentra_dagster.exports.request import ExportRequest
from tokentra_dagster.exports.rows import RowReader, Shown
from tokentra_dagster.exports.writers import WriterOptions, open_writer
from tokentra_dagster.warehouse.database import Database

AIM_MB = 300
KINDS = ("csv", "csv gzip", "jsonl", "json", "parquet", "focus csv", "focus parquet", "xlsx")
# Rows that FOCUS splits into four charges each, at list prices; every fifth has a cost of its own and stays one.
USAGE = """
CREATE TABLE public.bench_usage AS
SELECT '2026-06-01 00:00Z'::TIMESTAMPTZ + n / 2000 * interval '1 hour' AS hour, 'openai' AS provider,
  (ARRAY['gpt-4o', 'gpt-4o-mini', 'gpt-4.1'])[1 + n %% 3] AS model, 'gpt' AS model_family, NULL::TEXT AS service_type,
  md5((n %% 9)::TEXT)::UUID::TEXT AS team_id, 'Team "' || n %% 9 || '", Ünit' AS team_name,
  md5((n %% 31)::TEXT)::UUID::TEXT AS project_id, 'Project ' || n %% 31 AS project_name, 'feature ' || n %% 7 AS feature,
  'user-' || n %% 5000 || '@example.com' AS user_id, 'User ' || n %% 5000 AS user_name,
  uncached + cached + written + output AS total_tokens, uncached + cached + written AS input_tokens, output AS output_tokens,
  cached AS cached_tokens, written AS cache_creation_tokens, (1 + n %% 50)::BIGINT AS request_count,
  CASE WHEN n %% 5 = 0 THEN 0.0123 ELSE (uncached * price + cached * price / 2 + written * price + output * price * 4) / 1000000 END
    AS estimated_cost,
  0::BIGINT AS unpriced_tokens, (1 + n %% 50)::BIGINT AS record_count
FROM generate_series(1, %s) AS n,
LATERAL (SELECT (n %% 9973)::BIGINT AS uncached, (n %% 701)::BIGINT AS cached, 1 + (n %% 2)::BIGINT AS written, (n %% 887)::BIGINT AS output,
  (ARRAY[2.5, 0.15, 2])[1 + n %% 3] AS price) AS made
"""
FOCUS = ExportRequest(
    "bench", Period(datetime(2026, 6, 1, tzinfo=UTC), datetime(2027, 6, 1, tzinfo=UTC)), granularity="hour", profile="focus",
    dimensions=("team", "project", "feature", "user"),
)  # fmt: skip


def usage_columns() -> list[Column]:
    return [replace(column, sql=column.name) for column in usage_request(FOCUS).columns("USD")]


def focus(url: str, format: str, path: str) -> None:
    """Write the FOCUS file; print its rows and the peak in MB."""

    def statement(columns: Sequence[Column], shown: Shown) -> str:
        return f"SELECT {', '.join(map(shown, columns))} FROM public.bench_usage AS summed"

    usage = RowReader(Database(url), usage_columns(), statement, size=USAGE_BYTES)
    reader = FocusReader(usage, FOCUS, "bench", UUID(int=1), "USD")
    writer = open_writer(format, Path(path), reader.columns, WriterOptions("zstd" if format == "parquet" else "none"))
    reader.into(writer)
    writer.close()
    print(reader.totals.row_count, peak_mb())


def _peak(url: str, kind: str, path: Path, rows: int) -> tuple[int, int]:
    """Rows of the file and peak MB."""
    what, _, format = kind.partition(" ")
    call = f"focus({url!r}, {format!r}, {str(path)!r})" if what == "focus" else f"one({url!r}, {kind!r}, {str(path)!r}, {rows})"
    code = f"from bench.export_memory import focus\nfrom bench.exports import one\n{call}"
    root = str(Path(__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=root, check=True, capture_output=True, text=True)
    path.unlink()
    written, peak = done.stdout.split()[:2]
    return (int(written) if what == "focus" else rows), int(peak)


def run(sizes: Sequence[int] = (500_000, 5_000_000), kinds: Sequence[str] = KINDS) -> None:
    """Print the peaks, and which are over the aim."""
    print(f"peak memory of an export's process (aim: under {AIM_MB} MB whatever the size)")
    for rows in sizes:
        with fresh_database() as database, tempfile.TemporaryDirectory() as folder:
            with database.connect(autocommit=True) as db:
                db.execute((exports.TABLE % rows).encode())
                db.execute((USAGE % rows).encode())
            for kind in kinds:
                written, peak = _peak(database.url, kind, Path(folder) / "file", rows)
                said = "" if peak < AIM_MB else ": MISSED"
                print(f"  {kind:<13} {rows:>9,} rows of usage, {written:>10,} of the file: {peak:4d} MB{said}", flush=True)
