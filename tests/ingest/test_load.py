"""Replace a window, atomically (design, "Sync"), against a real PostgreSQL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from tests.warehouse_data import DAY, HOUR, connection, load, one, record, rows
from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.ingest.load import log_change
from tokentra_dagster.records import CostRecord, RejectedItem

TOTALS = "SELECT count(*) AS n, sum(input_tokens)::bigint AS i, sum(output_tokens)::bigint AS o FROM raw.usage_records"


def test_loading_a_window_twice_changes_nothing(database):
    row = connection(database)
    items = [record(DAY + n * HOUR, input_tokens=n) for n in range(24)]
    first = load(database, row, items)
    before = rows(database, TOTALS)
    second = load(database, row, items)
    assert (first.loaded, first.replaced, second.loaded, second.replaced) == (24, 0, 24, 24)
    assert rows(database, TOTALS) == before == [{"n": 24, "i": 276, "o": 240}]


def test_a_record_that_the_provider_withdrew_disappears_and_a_restated_one_is_replaced(database):
    row = connection(database)
    load(database, row, [record(), record(model="o3-2025-04-16")])
    load(database, row, [record(input_tokens=70)])
    assert rows(database, "SELECT model, input_tokens FROM raw.usage_records") == [
        {"model": "gpt-4o-2024-08-06", "input_tokens": 70}
    ]


def test_a_window_that_is_empty_now_empties_it(database):
    row = connection(database)
    load(database, row, [record()])
    assert load(database, row, []).replaced == 1
    assert one(database, "SELECT count(*) FROM raw.usage_records") == 0


def test_the_window_is_half_open_and_neighbours_other_widths_and_other_connections_stay(database):
    row, other = connection(database), connection(database, name="second")
    load(database, row, [record(DAY)], DAY, DAY + HOUR)
    load(database, row, [record(DAY + HOUR)], DAY + HOUR, DAY + 2 * HOUR)
    load(database, row, [record(DAY, "1m")], DAY, DAY + HOUR, "1m")
    load(database, other, [record(DAY)], DAY, DAY + HOUR)
    load(database, row, [], DAY, DAY + HOUR)
    kept = rows(
        database, "SELECT provider_connection_id AS c, timestamp AS t, granularity AS g FROM raw.usage_records ORDER BY t, g"
    )
    assert [(r["c"], r["t"], r["g"]) for r in kept] == [(other.id, DAY, "1h"), (row.id, DAY, "1m"), (row.id, DAY + HOUR, "1h")]


def test_a_source_that_fails_half_way_leaves_the_old_window_and_says_why(database):
    row = connection(database)
    load(database, row, [record(input_tokens=1)])

    def failing():
        yield record(input_tokens=2)
        raise TransientError("openai: answered 503 five times; try again later")

    with pytest.raises(TransientError):
        load(database, row, failing())
    assert one(database, "SELECT input_tokens FROM raw.usage_records") == 1
    (failed,) = rows(database, "SELECT * FROM raw.sync_history WHERE status = 'failed'")
    assert (failed["error_kind"], failed["error"]) == ("transient", "openai: answered 503 five times; try again later")
    assert failed["completed_at"] is not None


def test_an_import_that_fails_half_way_leaves_the_old_window_too(database):
    row = connection(database, name="file", source="file")
    load(database, row, [record(input_tokens=1)], kind="import")

    def failing():
        yield record(input_tokens=2)
        raise PermanentError("the disk is gone")

    with pytest.raises(PermanentError):
        load(database, row, failing(), kind="import")
    assert one(database, "SELECT input_tokens FROM raw.usage_records") == 1
    assert one(database, "SELECT error_kind FROM raw.sync_history WHERE status = 'failed'") == "permanent"


def test_a_record_outside_the_window_fails_the_load_because_it_could_never_be_replaced(database):
    row = connection(database)
    with pytest.raises(
        PermanentError, match="1 records outside the window 2026-06-01 00:00 to 2026-06-02 00:00 UTC; nothing was loaded"
    ):
        load(database, row, [record(DAY), record(DAY + 24 * HOUR)])
    assert one(database, "SELECT count(*) FROM raw.usage_records") == 0


def test_what_cannot_be_usage_is_kept_with_its_reason_and_replaced_with_its_window(database):
    row = connection(database)
    bad = [
        record(input_tokens=10, cached_input_tokens=8, cache_creation_tokens=3),
        record(DAY + HOUR, output_tokens=-1),
        record(model=""),
        RejectedItem(reason="unknown result type", payload={"object": "x\u0000y"}, bucket_start=DAY),
    ]
    result = load(database, row, [record(), *bad])
    assert (result.loaded, result.rejected) == (1, 4)
    kept = rows(database, "SELECT reason, payload, bucket_start FROM raw.rejected_records ORDER BY reason")
    assert [r["reason"] for r in kept] == [
        "cached_input_tokens + cache_creation_tokens exceed input_tokens; input must include both",
        "output_tokens is negative; a count cannot be",
        "the model is missing",
        "unknown result type",
    ]
    assert kept[0]["payload"]["cached_input_tokens"] == 8 and kept[1]["bucket_start"] == DAY + HOUR
    assert kept[3]["payload"] == {"object": "x\ufffdy"}
    load(database, row, [record()])
    assert one(database, "SELECT count(*) FROM raw.rejected_records") == 0


@pytest.mark.parametrize("kind", ["sync", "import"])
def test_any_text_survives_the_copy(database, kind):
    row = connection(database)
    odd = 'a "quoted", \\back\\slashed, {braced},\nnew line\ttab \\. end ü 日本'
    load(database, row, [record(model=odd, user_id=odd, api_key_id="", feature=odd, metadata={odd: [odd, None, 1.5]})], kind=kind)
    (kept,) = rows(
        database, "SELECT model, user_ids, api_key_id, feature, provider_metadata, unique_user_count FROM raw.usage_records"
    )
    assert kept == {
        "model": odd, "user_ids": [odd], "api_key_id": "", "feature": odd, "provider_metadata": {odd: [odd, None, 1.5]}, "unique_user_count": 1,
    }  # fmt: skip


def test_what_the_source_does_not_say_is_null_and_an_unknown_price_is_never_zero(database):
    row = connection(database)
    load(database, row, [record(model="nobody-knows-this-model-1", request_count=None)])
    (kept,) = rows(database, "SELECT * FROM raw.usage_records")
    silent = (
        "cached_input_tokens",
        "cache_creation_tokens",
        "request_count",
        "error_count",
        "total_latency_ms",
        "user_ids",
        "team_id",
        "quantity",
    )
    assert {name: kept[name] for name in silent} == dict.fromkeys(silent)
    assert (kept["estimated_cost"], kept["cost_basis"], kept["total_tokens"]) == (None, "unpriced", 110)


def test_the_sources_own_cost_is_actual_and_exact(database):
    load(database, connection(database), [record(reported_cost=Decimal("0.000000000001"))])
    (kept,) = rows(database, "SELECT estimated_cost, cost_basis, price_source FROM raw.usage_records")
    assert (
        kept["estimated_cost"] == Decimal("0.000000000001")
        and kept["cost_basis"] == "actual"
        and kept["price_source"] is not None
    )


def test_billed_costs_are_replaced_by_whole_days(database):
    row = connection(database)

    def line(amount: str) -> CostRecord:
        return CostRecord(bucket_start=DAY, bucket_end=DAY + 24 * HOUR, amount=Decimal(amount), line_item="gpt-4o, input")

    load(database, row, [line("1.10"), line("2.25")], DAY, DAY + 6 * HOUR)
    load(database, row, [line("3.00")], DAY + 6 * HOUR, DAY + 12 * HOUR)
    assert rows(database, "SELECT amount, bucket_end FROM raw.provider_costs") == [
        {"amount": Decimal("3.00"), "bucket_end": DAY + 24 * HOUR}
    ]


def test_the_history_says_what_was_covered_and_what_was_still_provisional(database):
    row = connection(database)
    now = DAY + 10 * HOUR + timedelta(minutes=30)
    load(database, row, [record()], now=now, settles_after=timedelta(hours=8))
    (history,) = rows(database, "SELECT * FROM raw.sync_history")
    assert (history["status"], history["window_start"], history["window_end"]) == ("completed", DAY, DAY + 24 * HOUR)
    assert (history["covered_until"], history["final_before"]) == (now, now - timedelta(hours=8))
    assert (history["records_loaded"], history["records_replaced"], history["records_rejected"]) == (1, 0, 0)


def test_a_reader_sees_the_window_before_or_after_and_never_between(database):
    row = connection(database)
    load(database, row, [record(DAY + n * HOUR, input_tokens=1) for n in range(24)])
    seen: set[tuple[int, int]] = set()
    done = threading.Event()

    def read() -> None:
        with database.connect(autocommit=True) as db:
            while not done.is_set():
                found = db.execute(TOTALS).fetchone()
                seen.add((found["n"], found["i"]))

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        for round_ in range(2, 12):
            load(database, row, [record(DAY + n * HOUR, input_tokens=round_) for n in range(24)])
        done.set()
        reader.result()
    assert seen <= {(24, 24 * n) for n in range(1, 12)} and len(seen) > 1


def test_two_loads_of_one_connection_wait_for_each_other_and_loads_of_many_run_together(database):
    first, second = connection(database), connection(database, org="globex")
    rounds = [[record(DAY + n * HOUR, input_tokens=tokens) for n in range(24)] for tokens in range(1, 9)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda items: (load(database, first, items), load(database, second, items)), rounds))
    for row in (first, second):
        (kept,) = rows(database, TOTALS + " WHERE provider_connection_id = %s", row.id)
        assert kept["n"] == 24 and kept["i"] % 24 == 0
    assert one(database, "SELECT count(*) FROM raw.sync_history WHERE status = 'completed'") == 16


KILLED = """
import sys, time
from tests.warehouse_data import DAY, connection, load, record
from tokentra_dagster.ingest.load import load_window
from tokentra_dagster.ingest.windows import aligned
from tokentra_dagster.batch import batch_of
from tokentra_dagster.warehouse.database import Database
from datetime import timedelta

database = Database(sys.argv[1])
row = connection(database)

def fill(intake):
    intake.add(batch_of([record(input_tokens=2)]))
    print("half way", flush=True)
    time.sleep(60)

load_window(database, row, aligned(DAY, DAY + timedelta(days=1), "1h"), kind=sys.argv[2], fill=fill, settles_after=timedelta(0))
"""


@pytest.mark.parametrize("kind", ["sync", "import"])
def test_a_killed_load_leaves_the_old_window_and_the_next_one_calls_it_crashed(database, kind):
    row = connection(database)
    load(database, row, [record(input_tokens=1)], kind=kind)
    root = Path(__file__).parent.parent.parent
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, database.url, kind],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "half way\n"
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert one(database, "SELECT input_tokens FROM raw.usage_records") == 1
    assert load(database, row, [record(input_tokens=3)], kind=kind).replaced == 1
    assert one(database, "SELECT input_tokens FROM raw.usage_records") == 3
    (crashed,) = rows(database, "SELECT status, error FROM raw.sync_history WHERE error_kind = 'crashed'")
    assert crashed["status"] == "failed" and "Run the sync again" in crashed["error"]


def test_change_numbers_become_visible_in_order_whoever_commits_first(database):
    """A builder that remembers the largest number it saw must never miss a smaller one that commits later."""
    row = connection(database)
    fields = {
        "org_id": row.org_id,
        "provider": "openai",
        "connection_id": row.id,
        "windows": [(DAY, DAY + HOUR)],
        "reason": "sync",
    }
    started = threading.Event()

    def second() -> int:
        with database.connect() as db:
            started.set()
            log_change(db, **fields)
            db.commit()
            return one(database, "SELECT max(change_number) FROM raw.usage_changes")

    with ThreadPoolExecutor(1) as pool, database.connect() as db:
        log_change(db, **fields)
        later = pool.submit(second)
        started.wait()
        time.sleep(0.3)
        assert not later.done(), "the second writer must wait until the first has committed"
        assert one(database, "SELECT count(*) FROM raw.usage_changes") == 0
        db.commit()
        assert later.result() == 2
    assert [r["change_number"] for r in rows(database, "SELECT change_number FROM raw.usage_changes ORDER BY 1")] == [1, 2]


def test_a_load_waits_for_no_partition_and_makes_the_months_it_needs(database):
    row = connection(database)
    start = datetime(2031, 12, 31, 23, tzinfo=UTC)
    load(database, row, [record(start), record(start + HOUR)], start, start + 2 * HOUR)
    found = rows(database, "SELECT tableoid::regclass::text AS part FROM raw.usage_records ORDER BY timestamp")
    assert [r["part"].rpartition(".")[2] for r in found] == ["usage_records_y2031m12", "usage_records_y2032m01"]


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kolkata"])
def test_no_total_depends_on_the_machines_or_the_clients_time_zone(database, zone):
    row = connection(database)
    load(database, row, [record(DAY + n * HOUR) for n in range(24)])
    with database.connect() as db:
        db.execute(f"SET timezone = '{zone}'")
        assert db.execute(
            "SELECT count(*) AS n FROM raw.usage_records WHERE timestamp >= '2026-06-01T00:00Z' AND timestamp < '2026-06-02T00:00Z'"
        ).fetchone() == {"n": 24}  # fmt: skip
