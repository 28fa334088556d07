"""Live usage: what announcing and pricing add to storing an event, how soon it is seen, and what a look costs at 1,000,000 events in
an hour.

Storing is measured in turns, round by round, so that what else the machine does falls on all alike. The server waits for the disk.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from unittest.mock import patch
from uuid import UUID

from bench.events import NOW, made
from bench.server import fresh_database
from tokentra_dagster.realtime import store
from tokentra_dagster.realtime.live import live_usage
from tokentra_dagster.realtime.live_feed import LiveFeed, Watcher
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import add_organization

ANNOUNCE = """
CREATE OR REPLACE FUNCTION raw.announce_events(p_org_id UUID) RETURNS BOOLEAN LANGUAGE plpgsql AS $$ BEGIN {} END $$
"""
NOTIFY = "PERFORM pg_notify('tokentra_events_' || p_org_id, ''); RETURN true;"
VARIANTS = {
    "as it is": None,
    "no notification": ANNOUNCE.format("RETURN false;"),
    "every one notifies": ANNOUNCE.format(NOTIFY),
    "not priced": None,
}
ROUNDS = 3
SENDERS = 4


def run(count: int = 1_000_000) -> None:
    """Print rates, latencies and times."""
    print(f"live, {datetime.now(UTC):%Y-%m-%d}")
    with fresh_database() as database:
        with database.connect() as db:
            orgs = [add_organization(db, f"bench-{number}")[0] for number in range(SENDERS)]
            watched = add_organization(db, "watched")[0]
        storing(database, orgs)
        looking(database, watched, count)
        watching(database, watched)


def storing(database: Database, orgs: list[UUID]) -> None:
    with database.connect() as db:
        row = db.execute("SELECT pg_get_functiondef('raw.announce_events(uuid)'::regprocedure) AS is").fetchone()
        assert row is not None
    as_it_is = row["is"]
    print(
        f"  events/s stored by {SENDERS} senders, best of {ROUNDS} rounds   {'one org':>10} {'an org each':>12}   size of a transaction"
    )
    for size, events in ((1, 400), (100, 8_000), (1000, 24_000)):
        best: dict[tuple[str, int], float] = {}
        for round_ in range(ROUNDS):
            for name, function in VARIANTS.items():
                with database.connect() as db:
                    db.execute(function or as_it_is)
                for of in (1, SENDERS):
                    seconds = _stored(
                        database, orgs[:of], f"{size}-{round_}-{name}-{of}", events, size, priced=name != "not priced"
                    )
                    best[name, of] = max(best.get((name, of), 0), events / seconds)
        for name in VARIANTS:
            print(f"    {name:<44} {best[name, 1]:>10,.0f} {best[name, SENDERS]:>12,.0f}   {size}")
    with database.connect() as db:
        db.execute(as_it_is)


def _stored(database: Database, orgs: list[UUID], prefix: str, count: int, size: int, *, priced: bool) -> float:
    events = made(count, prefix)
    parts = [events[number::SENDERS] for number in range(SENDERS)]

    def send(number: int) -> None:
        part = parts[number]
        with database.connect(autocommit=True) as db:
            for start in range(0, len(part), size):
                store.append_in(db, orgs[number % len(orgs)], part[start : start + size], now=NOW)

    def unpriced(events):  # type: ignore[no-untyped-def]
        return [(None, "unpriced")] * len(events)

    began = time.perf_counter()
    with patch.object(store, "price_events", store.price_events if priced else unpriced), ThreadPoolExecutor(SENDERS) as pool:
        list(pool.map(send, range(SENDERS)))
    return time.perf_counter() - began


def looking(database: Database, org: UUID, count: int) -> None:
    """One hour of events, as many minutes of it as people ask for."""
    now = datetime(2026, 7, 1, 13, tzinfo=UTC)
    with database.connect(autocommit=True) as db:
        db.execute(
            """
            INSERT INTO raw.usage_events (org_id, event_id, occurred_at, received_at, provider, model, request_type, input_tokens, output_tokens,
              cached_input_tokens, is_error, latency_ms, api_key_id, user_id, team, feature, environment, estimated_cost, cost_basis)
            SELECT %(org)s, 'look-' || n, %(start)s + n * interval '1 hour' / %(count)s, %(start)s + n * interval '1 hour' / %(count)s, 'openai',
              (ARRAY['gpt-4o-2024-08-06', 'gpt-4.1-mini', 'o3-2025-04-16'])[n %% 3 + 1], 'chat', 500 + n %% 1000, 50 + n %% 100, n %% 400,
              n %% 50 = 0, (200 * exp(random() * 3))::bigint, 'key_' || n %% 20, 'user_' || n %% 500, 'team-' || n %% 4, 'feature-' || n %% 10,
              'production', n %% 1000 * 0.000123, 'estimate'
            FROM generate_series(0, %(count)s - 1) AS n
            """,
            {"org": org, "start": now - timedelta(hours=1), "count": count},
        )
        db.execute("ANALYZE raw.usage_events")
        print(f"  a look at {count:,} events in an hour, best and worst of 5")
        for minutes in (1, 5, 15, 60):
            times = []
            for _ in range(5):
                began = time.perf_counter()
                live_usage(db, org, minutes, now)
                times.append(time.perf_counter() - began)
            print(f"    last {minutes:>2} minutes   {min(times) * 1000:>8,.0f} ms {max(times) * 1000:>8,.0f} ms")


def watching(database: Database, org: UUID) -> None:
    """From the call that stores an event until a watcher has the snapshot with it, beside a million others in the hour before."""

    async def watch() -> list[float]:
        feed = LiveFeed(database)
        watcher = feed.watch(org, 15)
        requests, delays = await _requests(watcher), []
        await asyncio.sleep(1)
        with database.connect(autocommit=True) as db:
            for number in range(30):
                now = datetime.now(UTC)
                event = replace(made(1, f"watched-{number}")[0], occurred_at=now)
                began = time.perf_counter()
                await asyncio.to_thread(store.append_in, db, org, [event])
                while (seen := await _requests(watcher)) <= requests:
                    pass
                requests = seen
                delays.append((time.perf_counter() - began) * 1000)
                await asyncio.sleep(0.7)
        feed.leave(watcher)
        await feed.close()
        return delays

    delays = asyncio.run(watch())
    print(
        f"  an event stored and then with a watcher: median {statistics.median(delays):.0f} ms, worst of {len(delays)} {max(delays):.0f} ms"
    )


async def _requests(watcher: Watcher) -> int:
    message = await watcher.next()
    assert message.usage is not None, message.trouble
    return message.usage.request_count
