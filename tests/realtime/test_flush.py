"""Events become records, each exactly once (correction 34), against a real PostgreSQL."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from tests.realtime.event_data import NOON, counted, event, flush_all, organization, send
from tests.warehouse_data import HOUR, connection, one, rows
from tokentra_dagster.errors import UsageError
from tokentra_dagster.realtime import flush as flushing
from tokentra_dagster.realtime.events import _TEXT, EARLIEST, MOST_LATENCY_MS, MOST_MONEY, MOST_TOKENS
from tokentra_dagster.realtime.flush import flush, spans
from tokentra_dagster.realtime.store import Appended, append_in
from tokentra_dagster.warehouse.directory import add_rule
from tokentra_dagster.warehouse.partitions import partition_name

MINUTE = timedelta(minutes=1)
ROOT = Path(__file__).parent.parent.parent


def test_the_specifications_flush_loses_what_arrives_between_its_upsert_and_its_delete_and_ours_does_not(database, monkeypatch):
    counters, table = {"usage:acme:1": 100}, {}
    read = dict(counters)  # hgetall
    table.update(read)  # upsert
    counters["usage:acme:1"] += 7  # an event arrives
    counters.pop("usage:acme:1")  # del
    assert sum(table.values()) + sum(counters.values()) == 100, "7 of 107 tokens are gone"

    org = organization(database)
    send(database, org, event("before", input_tokens=100))
    log_change = flushing.log_change

    def arrives_before_the_commit(db, **change):
        send(database, org, event("meanwhile", input_tokens=7))
        log_change(db, **change)

    monkeypatch.setattr(flushing, "log_change", arrives_before_the_commit)
    flush_all(database)
    monkeypatch.undo()
    assert counted(database) == {"before": 1}
    flush_all(database)
    assert counted(database) == {"before": 1, "meanwhile": 1}
    assert one(database, "SELECT sum(input_tokens)::int FROM raw.usage_records") == 107


def test_an_event_whose_number_is_smaller_and_whose_commit_is_later_is_not_skipped(database):
    org = organization(database)
    with database.connect() as db, db.transaction():
        append_in(db, org, [event("slow")], now=NOON)
        send(database, org, event("quick"))
        flush_all(database)
        assert counted(database) == {"quick": 1}
    numbers = {r["event_id"]: r["event_number"] for r in rows(database, "SELECT event_id, event_number FROM raw.usage_events")}
    assert numbers["slow"] < numbers["quick"], "whoever remembers the largest number flushed would skip it"
    flush_all(database)
    assert counted(database) == {"quick": 1, "slow": 1}


def test_every_dimension_of_an_event_is_in_its_record(database):
    org = organization(database)
    at = NOON + timedelta(seconds=59, microseconds=999_999)
    said = {
        "model": "ft:gpt-4o:acme:support:7", "request_type": "chat", "service_type": "real-time", "service_tier": "priority",
        "input_tokens": 100, "output_tokens": 10, "cached_input_tokens": 40, "cache_creation_tokens": 5, "quantity": Decimal("2.5"),
        "quantity_unit": "seconds", "provider_project_id": "proj_1", "api_key_id": "key:1", "feature": "search:box", "environment": "prod",
        "context_window": "0-200k", "token_details": {"input_audio": 3},
    }  # fmt: skip
    more = {
        "team": "core",
        "project": "bot",
        "cost_center": "cc:9",
        "user_id": 'u "1", {x}',
        "latency_ms": 250,
        "is_error": False,
    }
    send(
        database,
        org,
        event("e:1", at, reported_cost=Decimal("0.000000000001"), currency="EUR", metadata={"trace": "t"}, **said, **more),
    )
    flush_all(database)
    (found,) = rows(
        database,
        "SELECT r.*, t.name AS team, p.name AS project, k.name AS cost_center, c.source AS of, c.name AS connection FROM raw.usage_records AS r "
        "JOIN app.teams AS t ON t.id = r.team_id JOIN app.projects AS p ON p.id = r.project_id JOIN app.cost_centers AS k ON k.id = r.cost_center_id "
        "JOIN app.provider_connections AS c ON c.id = r.provider_connection_id",
    )
    assert {name: found[name] for name in said} == said
    assert (found["timestamp"], found["bucket_start"], found["bucket_end"], found["granularity"]) == (at, at, NOON + MINUTE, "1m")
    assert (found["provider"], found["source"], found["of"], found["connection"]) == (
        "openai",
        "events",
        "events",
        "events-openai",
    )
    assert (found["team"], found["project"], found["cost_center"], found["user_ids"]) == ("core", "bot", "cc:9", ['u "1", {x}'])
    assert (found["request_count"], found["success_count"], found["error_count"]) == (1, 1, 0)
    latency = [found[f"{kind}_latency_ms"] for kind in ("total", "min", "max")]
    assert (latency, found["latency_histogram"]) == ([250, 250, 250], {"279": 1})
    assert (found["estimated_cost"], found["cost_basis"], found["currency"]) == (Decimal("0.000000000001"), "actual", "EUR")
    assert found["provider_metadata"] == {"trace": "t", "event_id": "e:1"}


def test_events_are_priced_and_attributed_as_any_other_usage_and_unknown_stays_unknown(database):
    org = organization(database)
    with database.connect() as db:
        add_rule(db, org="acme", match_field="api_key", match_value="key_*", team="core", feature="rule")
    send(
        database,
        org,
        event("a", api_key_id="key_7"),
        event("b", api_key_id="key_7", feature="said"),
        event("c", model="nobody-knows"),
    )
    send(database, org, event("d", is_error=True, error_message="time-out", latency_ms=0))
    flush_all(database)
    by_id = {r["provider_metadata"]["event_id"]: r for r in rows(database, "SELECT * FROM raw.usage_records")}
    assert (by_id["a"]["feature"], by_id["b"]["feature"], by_id["b"]["said"]) == ("rule", "said", ["feature"])
    assert by_id["a"]["team_id"] == by_id["b"]["team_id"] is not None
    assert (by_id["a"]["estimated_cost"], by_id["a"]["cost_basis"]) == (Decimal("0.00035"), "estimate")
    silent = (
        "estimated_cost",
        "success_count",
        "error_count",
        "total_latency_ms",
        "latency_histogram",
        "cached_input_tokens",
        "user_ids",
    )
    assert {by_id["c"][name] for name in silent} == {None}
    assert (by_id["d"]["success_count"], by_id["d"]["error_count"], by_id["d"]["latency_histogram"]) == (0, 1, {"0": 1})
    assert by_id["d"]["provider_metadata"]["error_message"] == "time-out"


def test_an_event_sent_twice_counts_once_and_the_sender_is_told(database):
    org, other = organization(database), organization(database, "globex")
    assert send(database, org, event("a"), event("a", input_tokens=9), event("b")) == Appended(stored=2, duplicates=1)
    flush_all(database)
    assert send(database, org, event("b"), event("c")) == Appended(1, 1)
    assert send(database, other, event("a")) == Appended(1, 0), "ids are an organisation's own"
    flush_all(database)
    assert counted(database) == {"a": 2, "b": 1, "c": 1}
    assert one(database, "SELECT count(*) FROM raw.usage_events") == 4


def test_two_senders_of_the_same_events_in_other_orders_do_not_block_each_other_for_ever(database):
    org = organization(database)
    batches = [[event(f"e{n}") for n in order] for order in (range(300), range(299, -1, -1))] * 4
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda events: send(database, org, *events), batches))
    assert sum(appended.stored for appended in done) == 300


def test_a_batch_is_stored_whole_or_not_at_all(database):
    org = organization(database)
    with pytest.raises(UsageError, match="in the future"):
        send(database, org, event("a"), event("b", NOON + HOUR))
    with pytest.raises(UsageError, match="No organisation has the id"):
        send(database, uuid4(), event("a"))
    assert (
        one(database, "SELECT count(*) FROM raw.usage_events")
        == one(database, "SELECT count(*) FROM raw.pending_usage_events")
        == 0
    )


def test_a_flush_without_new_events_changes_nothing(database):
    org = organization(database)
    send(database, org, event("a"))
    assert [(done.loaded, done.connection) for done in flush_all(database)] == [(1, "acme/events-openai")]
    tables = ("usage_records", "sync_history", "usage_changes", "rejected_records")
    before = [rows(database, f"SELECT * FROM raw.{table}") for table in tables]
    assert flush_all(database, NOON + HOUR) == []
    assert [rows(database, f"SELECT * FROM raw.{table}") for table in tables] == before


def test_two_flushes_at_once_beside_senders_make_each_event_one_record(database):
    orgs = [organization(database), organization(database, "globex")]
    ids = [f"e{n}" for n in range(1200)]

    def sender(part: int) -> None:
        for start in range(part * 400, part * 400 + 400, 50):
            for org in orgs:
                send(
                    database,
                    org,
                    *(
                        event(name, NOON - timedelta(seconds=n), provider=("openai", "anthropic")[n % 2])
                        for n, name in enumerate(ids[start : start + 50])
                    ),
                )

    with ThreadPoolExecutor(6) as pool:
        senders = [pool.submit(sender, part) for part in range(3)]

        def flusher() -> None:
            while not all(task.done() for task in senders):
                flush_all(database, most=70)

        flushers = [pool.submit(flusher) for _ in range(3)]
        for task in (*senders, *flushers):
            task.result()
    flush_all(database)
    assert counted(database) == dict.fromkeys(ids, 2)
    assert one(database, "SELECT count(*) FROM app.provider_connections WHERE source = 'events'") == 4


def test_even_without_the_connections_lock_two_flushes_do_not_double(database, monkeypatch):
    """The lock spares them waiting in the middle; the rows that each deletes are what makes it right."""
    monkeypatch.setattr(flushing, "only_one", lambda db, connection: nullcontext())
    org = organization(database)
    send(database, org, *(event(f"e{n}") for n in range(500)))
    with ThreadPoolExecutor(4) as pool:
        for done in list(pool.map(lambda _: flush(database, now=NOON, most=100), range(4))):
            assert [one.error for one in done if one.error] == []
    flush_all(database)
    assert counted(database) == {f"e{n}": 1 for n in range(500)}


STOPS = """
import sys, time
from tokentra_dagster.realtime import flush as flushing
from tokentra_dagster.warehouse.database import Database

def stop(db, **change):
    print("records are in, nothing is committed", flush=True)
    time.sleep(60)

flushing.log_change = stop
flushing.flush(Database(sys.argv[1]))
"""
LOOPS = """
import sys
from tokentra_dagster.realtime.flush import flush
from tokentra_dagster.warehouse.database import Database

for _ in range(1000):
    for done in flush(Database(sys.argv[1]), most=40):
        if done.error:
            raise done.error
"""


def _process(script: str, database) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", script, database.url], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )


def _kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_a_flush_that_is_killed_before_its_commit_leaves_everything_as_it_was(database):
    org = organization(database)
    send(database, org, event("a"), event("b"))
    process = _process(STOPS, database)
    try:
        assert process.stdout is not None and process.stdout.readline().startswith("records are in")
        assert one(database, "SELECT count(*) FROM raw.usage_records") == 0, "nobody sees what is not committed"
    finally:
        _kill(process)
    assert counted(database) == {} and one(database, "SELECT count(*) FROM raw.pending_usage_events") == 2
    assert one(database, "SELECT count(*) FROM raw.sync_history") == one(database, "SELECT count(*) FROM raw.usage_changes") == 0
    flush_all(database)
    assert counted(database) == {"a": 1, "b": 1}


def test_flushes_killed_at_any_moment_lose_and_double_nothing(database):
    org = organization(database)
    ids = [f"e{n}" for n in range(6000)]
    send(database, org, *(event(name, NOON - timedelta(seconds=n)) for n, name in enumerate(ids)))
    waiting = "SELECT count(*) FROM raw.pending_usage_events"
    generator, left = random.Random(34), [6000]
    for _ in range(5):
        process = _process(LOOPS, database)
        try:
            while one(database, waiting) == left[-1]:
                assert process.poll() is None
            time.sleep(generator.uniform(0, 0.1))
        finally:
            _kill(process)
        left.append(one(database, waiting))
    assert left[-1] > 0 and left == sorted(set(left), reverse=True), f"each kill came in the middle: {left}"
    flush_all(database)
    assert counted(database) == dict.fromkeys(ids, 1)
    assert one(database, "SELECT sum(records_loaded)::int FROM raw.sync_history") == 6000


def test_a_late_event_is_of_its_own_hour_and_only_that_hour_is_built_anew(database):
    org = organization(database)
    send(database, org, event("now"), now=NOON)
    flush_all(database, NOON + MINUTE)
    late = NOON - timedelta(days=400, minutes=30)
    send(database, org, event("late", late), now=NOON + MINUTE)
    flush_all(database, NOON + 2 * MINUTE)
    assert one(database, "SELECT timestamp FROM raw.usage_records WHERE provider_metadata ->> 'event_id' = 'late'") == late
    hour = late.replace(minute=0)
    changes = rows(database, "SELECT window_start AS s, window_end AS e, reason FROM raw.usage_changes ORDER BY change_number")
    assert [(c["s"], c["e"], c["reason"]) for c in changes] == [
        (NOON, NOON + HOUR, "events"), (hour, hour + HOUR, "events"), (NOON, NOON + HOUR, "events"),
    ]  # fmt: skip


def test_an_event_of_a_month_without_a_partition_makes_that_month_and_none_between(database):
    org = organization(database)
    old = datetime(2021, 3, 31, 23, 59, 59, tzinfo=UTC)
    send(database, org, event("old", old), event("new"))
    flush_all(database)
    found = rows(database, "SELECT tableoid::regclass::text AS part FROM raw.usage_records ORDER BY timestamp")
    assert [r["part"].rpartition(".")[2] for r in found] == [partition_name(old), partition_name(NOON)]
    assert one(database, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'raw.usage_records'::regclass") == 3


def test_an_event_that_has_expired_is_kept_as_rejected_and_holds_nothing_up(database):
    org = organization(database)
    with database.connect() as db:
        db.execute("INSERT INTO raw.retention_horizon (org_id, provider, kept_from) VALUES (%s, 'openai', '2026-01-01Z')", [org])
    send(database, org, event("old", NOON - timedelta(days=300), team="core"), event("new"))
    (done,) = flush_all(database)
    assert (done.loaded, done.rejected, counted(database)) == (1, 1, {"new": 1})
    (kept,) = rows(database, "SELECT reason, payload FROM raw.rejected_records")
    assert (
        "older than 2026-01-01" in kept["reason"] and kept["payload"]["event_id"] == "old" and kept["payload"]["team"] == "core"
    )
    assert flush_all(database) == []


def test_the_largest_and_the_oddest_event_that_is_allowed_becomes_a_record(database):
    """What is stored must never be what no flush can take."""
    org = organization(database)
    odd = 'a "quoted", \\back\\slashed, {braced},\nnew line\ttab \\. end ü 日本 🙂 '
    texts = {name: (odd + name).ljust(500, "日") for name in (*_TEXT, "model")} | {"quantity_unit": "images"}
    counts = dict.fromkeys(("input_tokens", "output_tokens", "cached_input_tokens"), MOST_TOKENS)
    numbers = {"latency_ms": MOST_LATENCY_MS, "reported_cost": MOST_MONEY, "quantity": MOST_MONEY}
    most = event("most".ljust(500, "日"), EARLIEST, **texts, **counts, **numbers, metadata={odd: [odd, None, 10**300]})
    priced = [
        event(f"{provider}", provider=provider, model=model, **counts)
        for provider, model in (("openai", "o1-pro"), ("anthropic", "claude-opus-4"))
    ]
    assert send(database, org, most, *priced).stored == 3
    flush_all(database)
    assert counted(database) == {most.event_id: 1, "openai": 1, "anthropic": 1}
    found = {r["provider_metadata"]["event_id"]: r for r in rows(database, "SELECT * FROM raw.usage_records")}
    kept = found[most.event_id]
    assert {name: kept[name] for name in ("model", "feature", "api_key_id")} == {
        name: texts[name] for name in ("model", "feature", "api_key_id")
    }
    assert kept["provider_metadata"][odd] == [odd, None, 10**300] and kept["estimated_cost"] == MOST_MONEY
    assert found["openai"]["cost_basis"] == "estimate" and found["openai"]["estimated_cost"] > 10**8


def test_what_one_organisation_cannot_flush_waits_and_stops_nobody_else(database, monkeypatch):
    orgs = {name: organization(database, name) for name in ("acme", "globex")}
    for org in orgs.values():
        send(database, org, event("a"))
    append_records = flushing.append_records

    def fails_for_acme(db, warehouse, row, *others):
        if row.organization == "acme":
            raise psycopg.errors.DiskFull("no space left")
        return append_records(db, warehouse, row, *others)

    monkeypatch.setattr(flushing, "append_records", fails_for_acme)
    done = {flushed.connection: flushed for flushed in flush(database, now=NOON)}
    assert "no space left" in str(done["acme/events-openai"].error) and done["globex/events-openai"].loaded == 1
    monkeypatch.undo()
    assert [flushed.loaded for flushed in flush_all(database)] == [1]
    assert counted(database) == {"a": 2}


def test_coverage_follows_without_gaps_in_one_row_an_hour(database):
    org = organization(database)
    for minutes in (1, 2, 30, 61, 62, 150):
        at = NOON + timedelta(minutes=minutes)
        send(database, org, event(f"e{minutes}", at), now=at)
        flush_all(database, at + timedelta(seconds=20))
    history = rows(database, "SELECT * FROM raw.sync_history ORDER BY window_start")
    moments = [NOON + timedelta(minutes=m, seconds=s) for m, s in ((1, 0), (30, 20), (62, 20), (150, 20))]
    assert [(h["window_start"], h["window_end"]) for h in history] == list(pairwise(moments))
    assert [h["records_loaded"] for h in history] == [3, 2, 1]
    assert {(h["kind"], h["granularity"], h["status"], h["covered_until"] == h["window_end"]) for h in history} == {
        ("events", "1m", "completed", True)
    }
    assert history[-1]["final_before"] == history[-1]["covered_until"] - HOUR
    by_record = {r["sync_id"] for r in rows(database, "SELECT DISTINCT sync_id FROM raw.usage_records")}
    assert by_record == {h["id"] for h in history}


def test_a_clock_that_goes_back_takes_nothing_from_what_is_covered(database):
    org = organization(database)
    for name, at in (("a", NOON + 90 * MINUTE), ("b", NOON)):
        send(database, org, event(name, NOON), now=at)
        flush_all(database, at)
    (history,) = rows(database, "SELECT covered_until, records_loaded FROM raw.sync_history")
    assert (history["covered_until"], history["records_loaded"]) == (NOON + 90 * MINUTE + timedelta(microseconds=1), 2)


def test_events_go_to_the_connection_that_is_there_for_them_whatever_its_name(database):
    org = organization(database)
    connection(database, name="events-openai", source="gateway")
    send(database, org, event("a"))
    assert [done.connection for done in flush_all(database)] == ["acme/events-openai-2"]
    connection(database, org="globex", name="sdk", source="events")
    send(database, organization(database, "globex"), event("a"))
    assert [done.connection for done in flush_all(database)] == ["globex/sdk"]


def test_windows_that_touch_are_one_and_others_stay_apart():
    hours = [NOON + n * HOUR for n in range(9)]
    assert spans([(hours[5], hours[6]), (hours[0], hours[1]), (hours[1], hours[3]), (hours[2], hours[2])]) == [
        (hours[0], hours[3]), (hours[5], hours[6]),
    ]  # fmt: skip
