"""The stored functions against the specification's own, over the same rows in the same server.

Request-level rows of 90 days are loaded through the real path and built with dbt. The specification's side is its own
usage_records (section 2.1, all its indexes) with the same rows, and its functions as written, except for the cast without
which its trend does not run (correction 12). Each call covers 30 whole days; the least of several warm calls is shown (the machine is shared), and
totals must be equal.
"""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from bench.rollup import built_database
from bench.rows import DAYS, MODELS, START
from bench.spec_schema import COLUMNS, SCHEMA, fill_references
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.partitions import months

SPEC_FUNCTIONS = Path(__file__).parent / "spec_functions.sql"
CAST = ("END AS value", "END::BIGINT AS value")
Rows = list[dict[str, Any]]


def add_specification(database: Database) -> None:
    """Its table in the schema `spec`, filled with the rows there are, then its indexes; and its functions."""
    table, indexes = SCHEMA.split("CREATE INDEX", 1)
    with database.connect() as db:
        db.execute(table)
        for month, following in months(START, START + timedelta(days=DAYS)):
            db.execute(
                f"CREATE TABLE spec.usage_records_{month:%Y%m} PARTITION OF spec.usage_records "
                f"FOR VALUES FROM ('{month:%Y-%m-%d}+00') TO ('{following:%Y-%m-%d}+00')"
            )
        fill_references(db)
        # Its foreign keys are there, but not checked row by row while filling: only reading is measured here.
        db.execute("SET session_replication_role = replica")
        db.execute("SET maintenance_work_mem = '512MB'")
        names = ", ".join(COLUMNS)
        db.execute(f"INSERT INTO spec.usage_records ({names}) SELECT {names} FROM raw.usage_records")
        db.execute("CREATE INDEX" + indexes)
        db.execute("SET search_path = spec, marts")
        db.execute(SPEC_FUNCTIONS.read_text().replace(*CAST))
    with database.connect(autocommit=True) as db:
        db.execute("VACUUM ANALYZE")


def timed(database: Database, schema: str, call: str, arguments: dict[str, Any], repeat: int) -> tuple[float, Rows]:
    """Least seconds of `repeat` warm calls, and the rows."""
    seconds = []
    with database.connect(autocommit=True) as db:
        db.execute(f"SET search_path = {schema}, {'marts' if schema == 'spec' else 'public'}")
        found = db.execute(f"SELECT * FROM {call}", arguments).fetchall()
        for _ in range(repeat):
            began = time.perf_counter()
            db.execute(f"SELECT * FROM {call}", arguments).fetchall()
            seconds.append(time.perf_counter() - began)
    return min(seconds), found


def totals(rows: Rows, requests: str) -> tuple[int, int, int]:
    """Input tokens, output tokens and requests over all rows."""
    return sum(r["input_tokens"] for r in rows), sum(r["output_tokens"] for r in rows), sum(r[requests] for r in rows)


def run(rows: int = 5_000_000, repeat: int = 5) -> None:
    """Print both times and the ratio for each call."""
    with built_database(rows) as (database, connection):
        add_specification(database)
        print(f"functions, {rows:,} request-level rows of {DAYS} days, 30 days asked, least of {repeat} warm calls")
        compare(database, connection.org_id, repeat)


def compare(database: Database, org_id: Any, repeat: int) -> None:
    """Each call on both sides. Fails where totals differ."""
    end = START + timedelta(days=DAYS - 15)
    period = {"org": org_id, "start": end - timedelta(days=30), "end": end}
    last = {"org": org_id, "start": period["start"] + timedelta(hours=9, minutes=17), "end": end + timedelta(hours=9, minutes=17)}
    calls: list[tuple[str, str, str, dict[str, Any]]] = [
        ("summary", "get_usage_summary(%(org)s, %(start)s, %(end)s)", "total_requests", period),
        ("summary of a model", f"get_usage_summary(%(org)s, %(start)s, %(end)s, p_model => '{MODELS[0]}')", "total_requests", period),
        ("summary, 09:17 to 09:17", "get_usage_summary(%(org)s, %(start)s, %(end)s)", "total_requests", last),
        *(
            (f"trend by {width}", f"get_usage_trend(%(org)s, %(start)s, %(end)s, '{width}')", "requests", period)
            for width in ("hour", "day", "week", "month")
        ),
        *(
            (f"breakdown by {column}", f"get_usage_breakdown(%(org)s, %(start)s, %(end)s, '{column}', 1000)", "request_count", period)
            for column in ("model", "team_id", "project_id", "feature", "api_key_id")
        ),
    ]  # fmt: skip
    for name, call, requests, arguments in calls:
        ours, found = timed(database, "marts", call, arguments, repeat)
        theirs, expected = timed(database, "spec", call, arguments, 3)
        if totals(found, requests) != totals(expected, requests):
            raise AssertionError(
                f"{name}: ours sums to {totals(found, requests)}, the specification's to {totals(expected, requests)}"
            )
        print(f"  {name:<26} ours {ours * 1000:9.1f} ms   specification {theirs * 1000:9.1f} ms   ratio {theirs / ours:7.1f}")
