"""All analyses of one organisation over 90 days: seconds and memory, and how they grow with what is stored.

Request-level rows are loaded through the real path and built with dbt. Then a process of its own runs every analysis of
`tokentra_dagster.analyses` once over the 90 days, as the assets do, and says how long each took and its peak resident memory. Between
the sizes raw grows by their ratio, the marts by much less: so should the analyses.
"""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from typing import Any

from bench.rollup import built_database
from bench.rows import DAYS, START
from tokentra_dagster.warehouse.database import Database

MARTS = ("hourly_usage_rollup", "daily_usage_rollup", "hourly_usage_totals", "hourly_usage_by_api_key", "daily_usage_by_user")
ONCE = """
import json, sys, time
from datetime import datetime
from bench.memory import peak_mb
from tokentra_dagster.analyses import ANALYSES, Request
from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.analytics.results import as_json
from tokentra_dagster.list_prices import ListPrices
from tokentra_dagster.usage_source import WarehouseUsage
from tokentra_dagster.warehouse.database import Database

url, org, start, end = sys.argv[1:]
period = Period(datetime.fromisoformat(start), datetime.fromisoformat(end))
spent = {}
with Database(url).connect() as db:
    request = Request(WarehouseUsage(db, org), period, period.end, ListPrices())
    for name, analysis in ANALYSES.items():
        began = time.perf_counter()
        result = analysis.compute(request)
        as_json(result), analysis.metric_rows(result), analysis.insight_rows(result), analysis.recommendation_rows(result)
        spent[name] = time.perf_counter() - began
print(json.dumps({"seconds": spent, "megabytes": peak_mb()}))
"""


def once(database: Database, org_id: Any) -> tuple[dict[str, float], float]:
    """Seconds of each analysis, and the peak megabytes of the process that ran them all."""
    end = START + timedelta(days=DAYS)
    command = [sys.executable, "-c", ONCE, database.url, str(org_id), START.isoformat(), end.isoformat()]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    return found["seconds"], found["megabytes"]


def report(database: Database, org_id: Any, rows: int) -> tuple[float, int]:
    """Print one size; returns its seconds and the rows of the marts."""
    seconds, megabytes = once(database, org_id)
    with database.connect() as db:
        counts = [db.execute(f"SELECT count(*) AS n FROM marts.{mart}").fetchone() for mart in MARTS]
    marts = sum(count["n"] for count in counts if count)
    whole = sum(seconds.values())
    print(
        f"  {rows:>10,} raw rows, {marts:>8,} rows in marts: all analyses {whole:6.2f} s, peak {megabytes:4.0f} MB (aim: seconds, under 500)"
    )
    print("    " + ", ".join(f"{name} {spent:.2f}" for name, spent in sorted(seconds.items(), key=lambda item: -item[1])))
    return whole, marts


def run(sizes: tuple[int, ...] = (1_000_000, 5_000_000)) -> None:
    """Print seconds and memory for each size, and how both grow."""
    print(f"analytics, one organisation, request-level rows over {DAYS} days, everything over those {DAYS} days")
    found = []
    for rows in sizes:
        with built_database(rows) as (database, connection):
            with database.connect(autocommit=True) as db:
                db.execute("VACUUM ANALYZE")
            found.append(report(database, connection.org_id, rows))
    print(
        f"  from {sizes[0]:,} to {sizes[-1]:,} rows: raw x{sizes[-1] / sizes[0]:.1f}, marts x{found[-1][1] / found[0][1]:.1f}, "
        f"analyses x{found[-1][0] / found[0][0]:.1f}"
    )
