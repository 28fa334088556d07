"""The rollups against a real database: corrections 3 to 11 and 44, and that what is incremental equals what is built anew."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from math import ceil, log

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.dbt.conftest import MODELS_ONLY, dbt_command, run_dbt
from tests.warehouse_data import DAY, HOUR, connection, load, one, record, rows
from tokentra_dagster.ingest.authority import set_authority
from tokentra_dagster.records import GRANULARITIES, GRANULARITY_SECONDS

MODELS = "+daily_usage_rollup +usage_coverage"
SPEC_HOURLY = (
    "SELECT date_trunc('hour', timestamp) AS hour, sum(input_tokens)::bigint AS i FROM raw.usage_records GROUP BY 1 ORDER BY 1"
)


def _daily(database, columns: str = "date, input_tokens", where: str = "true"):
    return rows(database, f"SELECT {columns} FROM daily_usage_rollup WHERE {where} ORDER BY date, model")


def _state(database) -> list[list[dict]]:
    """Everything the rollups say, without an order of rows."""
    return [
        sorted((row["r"] for row in rows(database, f"SELECT to_jsonb(r) AS r FROM {table} AS r")), key=str)
        for table in ("hourly_usage_rollup", "daily_usage_rollup", "usage_coverage")
    ]


def test_the_rollups_follow_repeats_restatements_withdrawals_and_late_data_and_equal_a_full_build(database, build):
    row, other = connection(database), connection(database, org="globex", provider="anthropic", name="anthropic")
    load(database, row, [record(DAY + n * HOUR, input_tokens=n, user_id=f"u{n % 3}") for n in range(24)])
    load(database, other, [record(model="claude-sonnet-4-5-20250929")])
    build()
    load(database, row, [record(DAY + n * HOUR, input_tokens=2 * n) for n in range(20)])
    load(database, row, [record(DAY - HOUR, input_tokens=7)], DAY - 2 * HOUR, DAY)
    build()
    found = _daily(database, where="provider = 'openai'")
    assert [(r["date"].day, r["input_tokens"]) for r in found] == [(31, 7), (1, 380)]
    build()
    incremental = _state(database)
    build("run", "--full-refresh")
    assert _state(database) == incremental
    load(database, row, [])
    build()
    assert len(_daily(database, where="provider = 'openai'")) == 1


def test_history_stays_however_old_it_is(database, build):
    """Corrections 3 and 4: the specification's view forgets what is older than 30 days at its next refresh."""
    row = connection(database)
    old = DAY - timedelta(days=1500)
    load(database, row, [record(old)], old, old + HOUR)
    load(database, row, [record()])
    build()
    build("run", "--full-refresh")
    assert one(database, "SELECT count(*) FROM hourly_usage_rollup") == 2
    assert rows(database, SPEC_HOURLY.replace("GROUP", "WHERE timestamp > NOW() - INTERVAL '30 days' GROUP")) == []


def test_days_are_utc_whatever_the_clients_time_zone(database, build):
    """Correction 5: the specification's date_trunc moves half an hour away in Kolkata."""
    row = connection(database)
    load(database, row, [record(DAY + n * HOUR, input_tokens=1) for n in range(24)])
    with database.connect() as db:
        db.execute(f"ALTER DATABASE {database.parts['dbname']} SET timezone = 'Asia/Kolkata'")
    build()
    assert [(str(r["date"]), r["input_tokens"]) for r in _daily(database)] == [("2026-06-01", 24)]
    with database.connect() as db:
        db.execute("SET timezone = 'Asia/Kolkata'")
        spec = db.execute("SELECT DISTINCT date_trunc('day', timestamp)::date AS d FROM raw.usage_records").fetchall()
        assert len(spec) == 2
        assert db.execute(
            "SELECT DISTINCT extract(minute FROM hour AT TIME ZONE 'UTC')::int AS m FROM hourly_usage_rollup"
        ).fetchall() == [{"m": 0}]


def test_percentiles_are_those_of_all_requests_within_one_percent(database, build):
    """Correction 6: a percentile of per-record percentiles is not a percentile of anything."""
    generator = random.Random(6)
    slow, fast = [generator.lognormvariate(8, 1) for _ in range(50)], [generator.lognormvariate(5, 0.5) for _ in range(950)]
    row = connection(database)

    def bucketed(latencies: list[float]) -> dict[int, int]:
        histogram: dict[int, int] = defaultdict(int)
        for latency in latencies:
            histogram[max(0, ceil(log(latency) / log(1.02)))] += 1
        return dict(histogram)

    items = [
        record(
            DAY + n * HOUR,
            latency_histogram=bucketed(part),
            request_count=len(part),
            p95_latency_ms=int(sorted(part)[int(len(part) * 0.95)]),
        )
        for n, part in enumerate((slow, fast))
    ]
    load(database, row, items)
    build()
    everything = sorted(slow + fast)
    (day,) = _daily(database, "p50_latency_ms, p95_latency_ms, p99_latency_ms, latency_is_approximate")
    for quantile in (50, 95, 99):
        true = everything[ceil(quantile / 100 * 1000) - 1]
        assert day[f"p{quantile}_latency_ms"] == pytest.approx(true, rel=0.011, abs=0.51)
    assert day["latency_is_approximate"] is False
    spec = one(database, "SELECT percentile_cont(0.95) WITHIN GROUP (ORDER BY p95_latency_ms) FROM raw.usage_records")
    assert spec != pytest.approx(everything[949], rel=0.2)


def test_percentiles_that_a_source_gives_are_weighted_by_requests_and_flagged(database, build):
    row = connection(database)
    load(
        database,
        row,
        [record(p95_latency_ms=100, p50_latency_ms=50, request_count=9), record(p95_latency_ms=200, p50_latency_ms=60)],
    )
    build()
    assert _daily(database, "p50_latency_ms, p95_latency_ms, p99_latency_ms, latency_is_approximate") == [
        {"p50_latency_ms": 51, "p95_latency_ms": 110, "p99_latency_ms": None, "latency_is_approximate": True}
    ]


def test_users_are_counted_once_a_day_and_the_peak_is_the_largest_hour(database, build):
    """Corrections 7 and 8."""
    row = connection(database)
    minutes = [
        record(DAY + timedelta(minutes=n), "1m", user_id=f"u{n % 2}", request_count=3 if n < 60 else 100 if n == 60 else 0)
        for n in range(62)
    ]
    load(database, row, minutes, granularity="1m")
    build()
    assert _daily(database, "total_user_count, user_ids, peak_hourly_requests, request_count") == [
        {"total_user_count": 2, "user_ids": ["u0", "u1"], "peak_hourly_requests": 180, "request_count": 280}
    ]
    spec = rows(database, "SELECT sum(unique_user_count)::int AS users, max(request_count) AS peak FROM raw.usage_records")
    assert spec == [{"users": 62, "peak": 100}]


def test_the_finest_complete_width_counts_and_a_day_record_is_in_no_hour(database, build):
    """Correction 9: the specification sums all three, and puts the day's total on hour 0."""
    row = connection(database)
    load(database, row, [record(DAY, "1d", input_tokens=240)], granularity="1d")
    build()
    assert [r["input_tokens"] for r in _daily(database)] == [240] and one(
        database, "SELECT count(*) FROM hourly_usage_rollup"
    ) == 0
    load(database, row, [record(DAY + n * HOUR, input_tokens=10) for n in range(12)], end=DAY + 12 * HOUR)
    build()
    assert [r["input_tokens"] for r in _daily(database)] == [240], "half a day of hours does not replace a complete day"
    load(database, row, [record(DAY + n * HOUR, input_tokens=10) for n in range(12, 24)], DAY + 12 * HOUR)
    build()
    assert [r["input_tokens"] for r in _daily(database)] == [240] and one(
        database, "SELECT count(*) FROM hourly_usage_rollup"
    ) == 24
    load(database, row, [record(DAY, "1m", input_tokens=5)], DAY, DAY + HOUR, "1m")
    build()
    assert one(database, "SELECT max(input_tokens) FROM hourly_usage_rollup") == 10
    spec = rows(database, SPEC_HOURLY)
    assert spec[0]["i"] == 255 and sum(r["i"] for r in spec) == 485
    assert _daily(database, "peak_hourly_requests, active_hours") == [{"peak_hourly_requests": 1, "active_hours": 24}]


def test_counts_do_not_overflow(database, build):
    """Correction 10: integer counts end at 2.1 billion."""
    row = connection(database)
    load(database, row, [record(request_count=2_000_000_000, success_count=2_000_000_000, input_tokens=10**15)] * 2)
    build()
    assert _daily(database, "request_count, success_count, input_tokens") == [
        {"request_count": 4 * 10**9, "success_count": 4 * 10**9, "input_tokens": 2 * 10**15}
    ]


def test_usage_seen_by_two_sources_counts_once_and_people_may_choose_which(database, build):
    """Correction 11."""
    gateway = connection(database, name="gateway", source="gateway")
    load(database, gateway, [record(input_tokens=90)])
    build()
    assert [r["input_tokens"] for r in _daily(database)] == [90]
    official = connection(database)
    build()
    assert _daily(database) == [], "the provider's own usage counts from now on, and there is none yet"
    load(database, official, [record(input_tokens=100)])
    build()
    assert [r["input_tokens"] for r in _daily(database)] == [100]
    with database.connect() as db:
        assert set_authority(db, gateway.org_id, "openai", "gateway")
    build()
    assert [r["input_tokens"] for r in _daily(database)] == [90]
    assert one(database, "SELECT sum(input_tokens)::int FROM raw.usage_records") == 190


def test_no_price_is_unknown_and_counted_as_unpriced(database, build):
    """Correction 44, and unknown counts stay unknown."""
    row = connection(database)
    load(
        database, row, [record(model="m", reported_cost=Decimal("1.5")), record(model="m"), record(model="n", request_count=None)]
    )
    build()
    assert _daily(database, "model, estimated_cost, unpriced_tokens, request_count, error_count, cached_input_tokens") == [
        {"model": "m", "estimated_cost": Decimal("1.5"), "unpriced_tokens": 110, "request_count": 2, "error_count": None, "cached_input_tokens": None},
        {"model": "n", "estimated_cost": None, "unpriced_tokens": 110, "request_count": None, "error_count": None, "cached_input_tokens": None},
    ]  # fmt: skip


def test_coverage_says_what_is_provisional(database, build):
    row = connection(database)
    now = DAY + 30 * HOUR
    load(database, row, [record()], DAY, DAY + 48 * HOUR, now=now, settles_after=timedelta(hours=6))
    build()
    found = rows(database, "SELECT date, covered_hours, is_complete, is_provisional FROM usage_coverage ORDER BY date")
    assert [(r["date"].day, r["covered_hours"], r["is_complete"], r["is_provisional"]) for r in found] == [
        (1, 24, True, False),
        (2, 6, True, True),
    ]


def test_a_sync_that_commits_while_a_build_runs_is_not_missed(database, build, dbt_target):
    row = connection(database)
    days = [DAY + timedelta(days=n) for n in range(8)]
    load(database, row, [record(start, input_tokens=1) for start in days], DAY, DAY + timedelta(days=8))
    build()
    with ThreadPoolExecutor(1) as pool:
        for round_ in (2, 3):
            building = pool.submit(build, *MODELS_ONLY)
            while not building.done():
                for start in days:
                    load(database, row, [record(start, input_tokens=round_)], start, start + timedelta(days=1))
            building.result()
    build()
    assert [r["input_tokens"] for r in _daily(database)] == [3] * 8


@pytest.mark.parametrize("seconds", [1.6, 2.4, 3.0])
def test_a_killed_build_leaves_rollups_that_the_next_build_makes_right(database, build, dbt_target, seconds):
    row = connection(database)
    load(database, row, [record(DAY + n * HOUR, input_tokens=1) for n in range(24)])
    build()
    load(database, row, [record(DAY + n * HOUR, input_tokens=2) for n in range(24)])
    command, env = dbt_command(database, dbt_target, *MODELS_ONLY, "--select", *MODELS.split())
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (hourly,) = {r["input_tokens"] for r in rows(database, "SELECT input_tokens FROM hourly_usage_rollup")}
    (daily,) = (r["input_tokens"] for r in _daily(database))
    assert hourly in (1, 2) and daily in (24, 48) and daily <= 24 * hourly
    build()
    assert [r["input_tokens"] for r in _daily(database)] == [48]


def test_two_builds_at_once_do_not_harm_each_other(database, build, dbt_target):
    """Dagster runs one at a time (pool `dbt`); of two started by hand either may fail, and no total is ever wrong."""
    row = connection(database)
    load(database, row, [record(DAY + n * HOUR, input_tokens=1) for n in range(24)])
    build()
    load(database, row, [record(DAY + n * HOUR, input_tokens=2) for n in range(24)])
    command, env = dbt_command(database, dbt_target, *MODELS_ONLY, "--select", *MODELS.split())
    both = [subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)]
    for process in both:
        process.wait()
    assert [r["input_tokens"] for r in _daily(database)] in ([24], [48])
    build()
    assert [r["input_tokens"] for r in _daily(database)] == [48]
    build("test", "--exclude-resource-type", "unit_test", "--vars", "{compare: everything}")


# Any sequence: what counts is worked out here from the loads alone, by the rule of correction 9, and compared with all three.
LOADS = st.tuples(
    st.sampled_from(["first", "second"]), st.sampled_from(GRANULARITIES), st.integers(0, 60), st.integers(1, 30), st.integers(0, 2**16)
)  # fmt: skip
STEPS = st.lists(st.one_of(LOADS, LOADS, st.just("build")), min_size=2, max_size=9)


class Expected:
    """The records and windows of one connection, kept in Python."""

    def __init__(self) -> None:
        self.records: dict[str, dict] = {granularity: {} for granularity in GRANULARITIES}
        self.hours: dict[str, set[int]] = {granularity: set() for granularity in GRANULARITIES}

    def counted(self) -> list:
        kept = []
        days = {h // 24 for hours in self.hours.values() for h in hours}
        for day in days:
            of_day = {g: {h for h in self.hours[g] if h // 24 == day} for g in GRANULARITIES}
            best = max(GRANULARITIES, key=lambda g: (len(of_day[g]), -GRANULARITIES.index(g)))
            kept += [r for r in self.records[best].values() if (r.bucket_start - DAY) // timedelta(days=1) == day]
        return kept


def apply_step(database, row, expected: Expected, step, **choices) -> None:
    """One load of a sequence, also in `expected`; `choices`: what else its records may say, by field."""
    _, granularity, first, length, seed = step
    unit = 24 if granularity == "1d" else 1
    start, end = first // unit * unit, -(-(first + length) // unit) * unit
    generator = random.Random(seed)
    per_hour = {"1m": 2, "1h": 1, "1d": 1}[granularity]
    items = []
    for hour in range(start, end, unit):
        for n in range(per_hour):
            at = DAY + hour * HOUR + timedelta(seconds=n * GRANULARITY_SECONDS["1m"])
            if generator.random() < 0.7:
                tokens, model = generator.randrange(1000), generator.choice(["m1", "m2"])
                more = {name: generator.choice(values) for name, values in choices.items()}
                items.append(record(at, granularity, input_tokens=tokens, model=model, **more))
    load(database, row, items, DAY + start * HOUR, DAY + end * HOUR, granularity)
    hours = set(range(start, end))
    expected.hours[granularity] |= hours
    inside = {key: r for key, r in expected.records[granularity].items() if (r.bucket_start - DAY) // HOUR not in hours}
    expected.records[granularity] = inside | {(seed, n): r for n, r in enumerate(items)}


@settings(
    max_examples=5,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(STEPS)
def test_after_any_sequence_records_hours_and_days_agree(database, build, steps):
    org = f"org-{random.SystemRandom().randrange(2**60)}"
    connections = {name: connection(database, org=org, name=name) for name in ("first", "second")}
    expected = {name: Expected() for name in connections}
    for step in steps:
        if step == "build":
            build(*MODELS_ONLY)
        else:
            apply_step(database, connections[step[0]], expected[step[0]], step)
    build()
    counted = [r for part in expected.values() for r in part.counted()]
    daily: dict = defaultdict(int)
    hourly: dict = defaultdict(int)
    for r in counted:
        daily[r.model, r.bucket_start.date()] += r.input_tokens + r.output_tokens
        if r.granularity != "1d":
            hourly[r.model, r.bucket_start.replace(minute=0)] += r.input_tokens + r.output_tokens
    of_org = f"org_id = '{connections['first'].org_id}'"
    found = rows(
        database, f"SELECT model, date, sum(total_tokens)::bigint AS t FROM daily_usage_rollup WHERE {of_org} GROUP BY 1, 2"
    )
    assert {(r["model"], r["date"]): r["t"] for r in found} == dict(daily)
    found = rows(
        database, f"SELECT model, hour, sum(total_tokens)::bigint AS t FROM hourly_usage_rollup WHERE {of_org} GROUP BY 1, 2"
    )
    assert {(r["model"], r["hour"]): r["t"] for r in found} == dict(hourly)
    build("test", "--exclude-resource-type", "unit_test", "--vars", "{compare: everything}")


def test_a_wrong_total_fails_the_build(database, build, dbt_target):
    row = connection(database)
    load(database, row, [record()])
    build()
    with database.connect() as db:
        db.execute("UPDATE marts.daily_usage_rollup SET total_tokens = total_tokens + 1")
    success, says = run_dbt(database, dbt_target, "test", "--exclude-resource-type", "unit_test", "--select", *MODELS.split())
    assert not success and "rollups_agree_with_records" in says
