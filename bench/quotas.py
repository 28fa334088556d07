"""Reservations from many connections against one quota (issue 7: 2,000 a second, p99 under 20 ms, 16 connections).

Each connection calls the Python API in a loop, one round trip a call, for some seconds. First it only reserves, against a limit that
is larger than what is asked; then it reserves and settles; then only refusals, against a limit that is used up. At the end what the
counter holds must be exactly what was let pass. Client and server share the machine.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import threading
import time
from typing import Any
from uuid import UUID

from bench.server import bench_connection, fresh_database
from tokentra_dagster.quotas import Request, reserve, settle
from tokentra_dagster.warehouse.database import Database

PROCESSES = 4
TOKENS = 100
Pipe = Any


def ask(url: str, org_id: UUID, settles: bool, seconds: float, connections: int, ready: Any, results: Pipe) -> None:
    """`connections` connections in one process; sends (seconds of each reservation, how many were let pass)."""
    waits: list[float] = []
    passed: list[int] = []
    request = Request(org_id, tokens=TOKENS)

    def loop() -> None:
        mine, mine_passed = [], 0
        with Database(url).connect(autocommit=True) as db:
            reserve(db, request)
            ready.wait()
            end = time.perf_counter() + seconds
            while (began := time.perf_counter()) < end:
                reservation = reserve(db, request)
                mine.append(time.perf_counter() - began)
                mine_passed += reservation.decision.allowed
                if settles and reservation.id:
                    settle(db, reservation.id, tokens=TOKENS)
        waits.extend(mine)
        passed.append(mine_passed)

    threads = [threading.Thread(target=loop) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put((waits, sum(passed)))


def measure(database: Database, org_id: UUID, settles: bool, seconds: float, connections: int) -> tuple[list[float], int]:
    """Sorted seconds of each reservation, and how many were let pass."""
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(connections), context.Queue()
    share = connections // PROCESSES
    processes = [
        context.Process(target=ask, args=(database.url, org_id, settles, seconds, share, ready, results))
        for _ in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return sorted(wait for waits, _ in found for wait in waits), sum(passed for _, passed in found)


def at(waits: list[float], share: float) -> float:
    """The percentile in milliseconds."""
    return waits[math.ceil(share * len(waits)) - 1] * 1000


def run(seconds: float = 8.0, connections: int = 16) -> None:
    """Print reservations per second and their percentiles."""
    with fresh_database() as database:
        org_id = bench_connection(database).org_id
        print(f"quotas, one quota, {connections} connections, {seconds:g} s each, load average before {os.getloadavg()[0]:.1f}")
        for name, settles, limit in (("reserve", False, 10**15), ("reserve, settle", True, 10**15), ("refused", False, 1)):
            with database.connect() as db:
                db.execute("DELETE FROM app.usage_quotas")
                db.execute(
                    "INSERT INTO app.usage_quotas (org_id, name, scope_type, token_limit, enforcement_mode) VALUES (%s, 'q', 'organization', %s, 'block')",
                    [org_id, limit],
                )
            waits, passed = measure(database, org_id, settles, seconds, connections)
            with database.connect() as db:
                row = db.execute(
                    "SELECT sum(used_tokens + reserved_tokens)::bigint AS n, sum(used_tokens)::bigint AS used FROM app.quota_counters"
                ).fetchone()
            warm_up = connections if limit > 1 else 0
            if row is None or row["n"] != (passed + warm_up) * TOKENS:
                raise AssertionError(f"{name}: {passed} reservations passed, but the counter holds {row}")
            print(
                f"  {name:<16} {len(waits) / seconds:8,.0f} reservations a second   "
                f"p50 {at(waits, 0.5):6.1f} ms   p99 {at(waits, 0.99):6.1f} ms"
            )
