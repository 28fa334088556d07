"""Events per second: stored durably in batches of several sizes, by one sender and by four, and made records by the flush.

Beside the flush stands the load of the same rows by `load_window`, the path of files.
The server waits for the disk, as it does in use.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import UUID

from bench.load import load
from bench.server import bench_connection, fresh_database
from tokentra_dagster.batch import batches_of
from tokentra_dagster.realtime.events import FIELDS, UsageEvent, record_of
from tokentra_dagster.realtime.flush import flush
from tokentra_dagster.realtime.store import append_in
from tokentra_dagster.warehouse.database import Database

START = datetime(2026, 6, 1, tzinfo=UTC)
NOW = START + timedelta(hours=2)


def made(count: int, prefix: str) -> list[UsageEvent]:
    """Events of one hour with the dimensions that applications know."""
    return [
        UsageEvent(
            event_id=f"{prefix}-{n}", occurred_at=START + timedelta(hours=1) * n / count, provider="openai",
            model=("gpt-4o-2024-08-06", "gpt-4.1-mini", "o3-2025-04-16")[n % 3], request_type="chat", input_tokens=500 + n % 1000,
            output_tokens=50 + n % 100, cached_input_tokens=n % 400, latency_ms=200 + n % 3000, is_error=n % 50 == 0,
            api_key_id=f"key_{n % 20}", user_id=f"user_{n % 500}", team=f"team-{n % 4}", feature=f"feature-{n % 10}", environment="production",
        )
        for n in range(count)
    ]  # fmt: skip


def stored(database: Database, org: UUID, events: Sequence[UsageEvent], size: int, senders: int) -> float:
    """Store the events in batches over a connection for each sender; returns seconds."""

    def send(part: Sequence[UsageEvent]) -> None:
        with database.connect(autocommit=True) as db:
            for start in range(0, len(part), size):
                append_in(db, org, part[start : start + size], now=NOW)

    began = time.perf_counter()
    with ThreadPoolExecutor(senders) as pool:
        list(pool.map(send, (events[number::senders] for number in range(senders))))
    return time.perf_counter() - began


def run(count: int = 100_000) -> None:
    """Print the rates."""
    print(f"events, {datetime.now(UTC):%Y-%m-%d}")
    with fresh_database() as database:
        connection = bench_connection(database)
        org = connection.org_id
        print("  stored durably                 one sender    four senders   (events/s)")
        for size, events in ((1, 1000), (100, 20_000), (1000, count // 5)):
            rates = []
            for senders in (1, 4):
                batch = made(events, f"{size}-{senders}")
                rates.append(events / stored(database, org, batch, size, senders))
            print(f"    {size:>4} in a transaction      {rates[0]:>10,.0f}      {rates[1]:>10,.0f}")
        flush(database, now=NOW)
        best_flush, best_load = [], []
        for round_ in range(3):
            events = made(count, f"round-{round_}")
            stored(database, org, events, 1000, 1)
            began = time.perf_counter()
            done = flush(database, now=NOW)
            best_flush.append(time.perf_counter() - began)
            assert [one.loaded for one in done] == [count], done
            records = list(batches_of(record_of({name: getattr(event, name) for name in FIELDS}) for event in events))
            best_load.append(load(database, connection, records, START, 1 / 24))
        few = []
        for round_ in range(5):
            stored(database, org, made(100, f"few-{round_}"), 100, 1)
            began = time.perf_counter()
            flush(database, now=NOW)
            few.append(time.perf_counter() - began)
    flushed, loaded = count / min(best_flush), count / min(best_load)
    print(
        f"  made records by the flush      {flushed:>10,.0f} events/s, {flushed / loaded:.2f} of a load of the same rows ({loaded:,.0f} rows/s)"
    )
    print(f"  a flush of 100 events          {min(few) * 1000:>10.0f} ms")
