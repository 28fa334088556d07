"""Rollups: what one more hour of data costs against a full rebuild, and how both grow with what is stored.

Request-level rows of 90 days are loaded through the real path; `dbt run --full-refresh` builds everything, then one more hour
(at the same rate of rows) is loaded and `dbt run` builds what changed, three times over; the median counts. Shown are the models'
own times as dbt reports them, summed (`run_results.json`): those of the two rollups and what they read, and those of every mart. The
whole command has dbt's start in it, which does not depend on the data.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from bench.load import load
from bench.rows import DAYS, START, batches
from bench.server import bench_connection, fresh_database
from tokentra_dagster.dbt_manifest import dbt_executable, project_folder
from tokentra_dagster.runtime import TELEMETRY_OFF
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import ConnectionRow

ROLLUPS = (
    "stg_app__provider_connections", "stg_raw__sync_history", "stg_raw__usage_records", "int_usage_authority",
    "int_connection_days", "hourly_usage_rollup", "daily_usage_rollup",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Build:
    """Seconds of one build: in the two rollups with what they read, in all its models, and the whole command."""

    rollups: float
    models: float
    command: float


def _dbt(database: Database, target: Path, *arguments: str) -> None:
    project = str(project_folder())
    command = [
        dbt_executable(), "--quiet", *arguments, "--project-dir", project, "--profiles-dir", project,
        "--target-path", str(target), "--log-path", str(target / "logs"),
    ]  # fmt: skip
    subprocess.run(command, env={**os.environ, **TELEMETRY_OFF, **database.dbt_environment()}, check=True)


def dbt_run(database: Database, target: Path, *arguments: str) -> Build:
    """`dbt run` with further arguments."""
    began = time.perf_counter()
    _dbt(database, target, "run", *arguments)
    seconds = time.perf_counter() - began
    results = json.loads((target / "run_results.json").read_text())["results"]
    spent = {result["unique_id"].rsplit(".", 1)[-1]: result["execution_time"] for result in results}
    return Build(sum(spent[name] for name in ROLLUPS), sum(spent.values()), seconds)


@contextmanager
def built_database(rows: int) -> Iterator[tuple[Database, ConnectionRow]]:
    """Request-level rows with latency histograms, loaded through the real path and built with dbt."""
    with fresh_database() as database, tempfile.TemporaryDirectory() as folder:
        connection = bench_connection(database)
        load(database, connection, list(batches(rows, histograms=True)))
        with database.connect(autocommit=True) as db:
            db.execute("VACUUM ANALYZE raw.usage_records")
        dbt_run(database, Path(folder))
        yield database, connection


def measure(rows: int) -> tuple[Build, Build]:
    """A full rebuild of `rows`, and the build after one more hour (the median of three)."""
    with fresh_database() as database, tempfile.TemporaryDirectory() as folder:
        connection = bench_connection(database)
        target = Path(folder)
        load(database, connection, batches(rows))
        with database.connect(autocommit=True) as db:
            db.execute("VACUUM ANALYZE raw.usage_records")
        _dbt(database, target, "parse")
        full = dbt_run(database, target, "--full-refresh")
        with database.connect(autocommit=True) as db:
            db.execute("VACUUM ANALYZE")
        per_hour = rows // (DAYS * 24)
        hours = []
        for number in range(3):
            start = START + timedelta(days=DAYS, hours=number)
            load(database, connection, batches(per_hour, start, timedelta(hours=1), seed=2), start, 1 / 24)
            hours.append(dbt_run(database, target))
        return full, sorted(hours, key=lambda build: build.rollups)[1]


def run(sizes: tuple[int, ...] = (1_000_000, 5_000_000)) -> None:
    """Print both costs for each size, their ratio, and their growth."""
    print("rollups, request-level rows over 90 days, then one more hour of them")
    found = {}
    for rows in sizes:
        full, hour = found[rows] = measure(rows)
        print(
            f"  {rows:>10,} rows, rollups:   full rebuild {full.rollups:7.2f} s, one more hour {hour.rollups:6.2f} s, "
            f"full/hour = {full.rollups / hour.rollups:5.1f}  (aim 50 at 5 million)\n"
            f"  {rows:>10,} rows, all marts: full rebuild {full.models:7.2f} s, one more hour {hour.models:6.2f} s, "
            f"full/hour = {full.models / hour.models:5.1f}  (aim 20)   whole command {full.command:.1f} s and {hour.command:.1f} s"
        )
    small, large = sizes[0], sizes[-1]
    print(
        f"  from {small:,} to {large:,} rows, rollups: full rebuild x{found[large][0].rollups / found[small][0].rollups:.1f}, "
        f"one more hour x{found[large][1].rollups / found[small][1].rollups:.1f}"
    )
