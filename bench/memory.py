"""Peak memory of an import and of a sync, each in a process of its own, by the number of rows: it must not grow with them.

`tokentra import` runs the same load inside a Dagster job; its own line shows what Dagster and our definitions add.
"""

from __future__ import annotations

import csv
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bench.server import fresh_database

START = datetime(2026, 5, 1, tzinfo=UTC)
IMPORT = """
import sys
from pathlib import Path
from bench.memory import peak_mb
from tokentra_dagster.ingest.file_import import ImportRequest, load_file, scan
from tokentra_dagster.warehouse.database import Database
from tests.warehouse_data import connection
database = Database(sys.argv[1])
row = connection(database, name="file", source="file")
file, plan = ImportRequest(file=Path(sys.argv[2]), maps=[], granularity=None, bucket_seconds=None, timezone=None, input_convention="includes-cache").open()
found = scan(file, plan)
result = load_file(database, row, file, plan, found.window(plan), None)
print(result.loaded, peak_mb())
"""
COMMAND = """
import sys
from bench.memory import peak_mb
from tokentra_dagster.cli import main
from tokentra_dagster.commands.common import settings
from tokentra_dagster.runtime import prepare
from tokentra_dagster.warehouse.directory import add_organization
with prepare(settings()).connect() as db:
    add_organization(db, "command")
if len(sys.argv) == 1:
    from tokentra_dagster.ingest.definitions import raw_layer
else:
    sys.argv = ["tokentra", "import", sys.argv[1], "--org", "command", "--provider", "openai"]
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
print(peak_mb())
"""
SYNC = """
import sys
from datetime import timedelta
from bench.memory import START, peak_mb, records
from tokentra_dagster.ingest import sync
from tokentra_dagster.ingest.windows import aligned
from tokentra_dagster.warehouse.database import Database
from tests.warehouse_data import connection

class Endless:
    def remarks(self): return []
    def usage(self, window): return records(int(sys.argv[2]))
    def costs(self, window): return iter(())
    def names(self): return iter(())

sync.source_of = lambda connection: Endless()
database = Database(sys.argv[1])
result = sync.sync_connection(database, connection(database), aligned(START, START + timedelta(days=30), "1m"))
print(result.loaded, peak_mb())
"""


def peak_mb() -> int:
    """The most memory this program ever held, in megabytes.

    `ru_maxrss` alone would not do: on Linux a child starts with the peak of the process that started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM:")) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 * 1024 if sys.platform == "darwin" else 1024)


def records(count: int):  # type: ignore[no-untyped-def]
    """Minute records over 30 days, one at a time, as a provider module gives them."""
    from tests.warehouse_data import record

    for number in range(count):
        start = START + timedelta(minutes=number * 43_200 // count)
        yield record(start, "1m", user_id=f"user-{number % 500}", api_key_id=f"key_{number % 40}", input_tokens=number % 9000)


def _csv(path: Path, count: int) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["timestamp", "model", "input_tokens", "output_tokens", "user_id"])
        writer.writerows(_lines(count))


def _lines(count: int) -> Iterator[tuple[str, str, int, int, str]]:
    for number in range(count):
        at = START + timedelta(seconds=number * 2_592_000 // count)
        yield at.isoformat(), "gpt-4o-2024-08-06", number % 9000, number % 700, f"user-{number % 500}"


def _peak(code: str, *arguments: str, **environment: str) -> int:
    root = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": root, **environment},
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    )
    return int(done.stdout.split()[-1])


def run(sizes: tuple[int, ...] = (100_000, 1_000_000)) -> None:
    """Print the peaks."""
    print("peak memory of the process (aim: under 300 MB whatever the size)")
    for rows in sizes:
        with fresh_database() as database, tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "usage.csv"
            _csv(path, rows)
            print(f"  import of {rows:>9,} rows: {_peak(IMPORT, database.url, str(path)):4d} MB")
            print(f"  sync of   {rows:>9,} rows: {_peak(SYNC, database.url, str(rows)):4d} MB")
            if rows == sizes[-1]:
                here = {"TOKENTRA_DATABASE_URL": database.url, "TOKENTRA_HOME": folder}
                alone = _peak(COMMAND, **here)
                print(
                    f"  `tokentra import` of {rows:,} rows, a Dagster job: {_peak(COMMAND, str(path), **here)} MB, of which Dagster idle {alone} MB"
                )
