"""Events in the rollups: every dimension, once each, beside a provider's sync of the same usage (corrections 9, 11 and 34)."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import dagster as dg

from tests.realtime.event_data import NOON, event, flush_all, organization, send
from tests.warehouse_data import DAY, HOUR, connection, load, one, record, rows
from tokentra_dagster.ingest.authority import set_authority
from tokentra_dagster.realtime.assets import usage_events
from tokentra_dagster.resources import Warehouse

MODELS = "+daily_usage_rollup +usage_coverage"
MINUTE = timedelta(minutes=1)


def test_every_dimension_of_events_is_in_the_hourly_rollup_and_percentiles_are_exact(database, build):
    org = organization(database)
    dimensions = {
        "request_type": "chat", "service_type": "batch", "team": "core", "project": "bot", "cost_center": "cc:9", "feature": "search:box",
        "environment": "prod", "model": "ft:gpt-4o:acme:support:7",
    }  # fmt: skip
    latencies = [10 * n for n in range(1, 101)]
    send(
        database,
        org,
        *(
            event(f"e{n}", NOON + timedelta(seconds=n), latency_ms=latency, user_id=f"u{n % 3}", is_error=n == 7,
                  cached_input_tokens=40, cache_creation_tokens=1, reported_cost=Decimal("0.01"), **dimensions)
            for n, latency in enumerate(latencies)
        ),
        event("other", NOON, provider="anthropic", model="claude-sonnet-4-5-20250929"),
        now=NOON + 2 * MINUTE,
    )  # fmt: skip
    flush_all(database, NOON + 2 * MINUTE)
    build()
    (found,) = rows(
        database,
        "SELECT h.*, t.name AS team, p.name AS project, c.name AS cost_center FROM hourly_usage_rollup AS h JOIN app.teams AS t ON t.id = team_id "
        "JOIN app.projects AS p ON p.id = h.project_id JOIN app.cost_centers AS c ON c.id = h.cost_center_id WHERE provider = 'openai'",
    )
    assert {name: found[name] for name in dimensions} == dimensions
    assert (found["hour"], found["request_count"], found["success_count"], found["error_count"]) == (NOON, 100, 99, 1)
    assert (found["input_tokens"], found["output_tokens"], found["cached_input_tokens"], found["cache_creation_tokens"]) == (
        10_000,
        1000,
        4000,
        100,
    )
    assert (found["estimated_cost"], found["user_ids"], found["total_latency_ms"]) == (
        Decimal("1.00"),
        ["u0", "u1", "u2"],
        sum(latencies),
    )
    for quantile, true in ((50, 500), (95, 950), (99, 990)):
        assert abs(found[f"p{quantile}_latency_ms"] - true) <= 0.011 * true
    assert found["latency_is_approximate"] is False
    others = rows(
        database, "SELECT model, feature, error_count, p50_latency_ms FROM hourly_usage_rollup WHERE provider = 'anthropic'"
    )
    assert others == [{"model": "claude-sonnet-4-5-20250929", "feature": None, "error_count": None, "p50_latency_ms": None}]
    spec = "SELECT count(*) FROM hourly_usage_rollup WHERE provider = 'aggregated' OR model = 'aggregated'"
    assert one(database, spec) == 0


def test_late_events_reach_their_own_hour_and_incremental_equals_a_full_build(database, build):
    org = organization(database)
    for minutes in range(0, 30 * 60, 7 * 60):
        at = NOON + minutes * MINUTE
        send(database, org, event(f"e{minutes}", at), now=at)
        flush_all(database, at + MINUTE)
    build()
    later = NOON + 30 * HOUR
    send(
        database,
        org,
        event("late", NOON + 10 * MINUTE, input_tokens=7),
        event("older", DAY - 40 * HOUR, input_tokens=9),
        now=later,
    )
    flush_all(database, later)
    build()
    hourly = "SELECT hour, input_tokens FROM hourly_usage_rollup ORDER BY hour"
    incremental = rows(database, hourly)
    assert [(r["hour"], r["input_tokens"]) for r in incremental] == [
        (DAY - 40 * HOUR, 9), (NOON, 107), *((NOON + n * HOUR, 100) for n in (7, 14, 21, 28)),
    ]  # fmt: skip
    coverage = "SELECT date, granularity, covered_hours, is_complete, is_provisional FROM usage_coverage ORDER BY date"
    covered = rows(database, coverage)
    assert [(r["date"].day, r["granularity"], r["covered_hours"], r["is_complete"]) for r in covered] == [
        (30, "1m", 0, False), (1, "1m", 12, False), (2, "1m", 18, True),
    ]  # fmt: skip
    assert [r["is_provisional"] for r in covered] == [True, False, True], "nobody knows whether the event of May 30 was all"
    build("run", "--full-refresh")
    assert rows(database, hourly) == incremental and rows(database, coverage) == covered


def test_usage_that_a_provider_reports_as_well_counts_once_and_people_may_choose_which(database, build):
    org = organization(database)
    send(
        database,
        org,
        *(event(f"e{n}", NOON + n * MINUTE, input_tokens=90, team="core") for n in range(10)),
        now=NOON + 10 * MINUTE,
    )
    flush_all(database, NOON + 10 * MINUTE)
    build()
    daily = "SELECT sum(input_tokens)::int FROM daily_usage_rollup"
    assert one(database, daily) == 900
    official = connection(database)
    load(database, official, [record(NOON, input_tokens=1000, request_count=11)])
    build()
    assert one(database, daily) == 1000, "the provider's own usage counts, the events beside it do not"
    send(database, org, event("more", NOON, input_tokens=5), now=NOON + 11 * MINUTE)
    flush_all(database, NOON + 11 * MINUTE)
    build()
    assert one(database, daily) == 1000
    with database.connect() as db:
        assert set_authority(db, org, "openai", "events")
    build()
    assert one(database, daily) == 905
    assert one(database, "SELECT sum(input_tokens)::int FROM raw.usage_records") == 1905, "the specification's sum counts both"


def test_a_day_of_events_flushed_every_few_minutes_becomes_final_an_hour_after_it(database, build):
    """Each flush says how far usage is final; it says so of the hours that earlier flushes covered, too."""
    org = organization(database)
    midnight = DAY + 24 * HOUR
    for minutes in range(-60, 130, 9):
        at = midnight + minutes * MINUTE
        send(database, org, event(f"e{minutes}", at - MINUTE), now=at)
        flush_all(database, at)
        if minutes == 48:
            build()
            assert one(database, "SELECT is_provisional FROM usage_coverage WHERE date = '2026-06-01'") is True
    build()
    coverage = rows(database, "SELECT date::text, is_provisional FROM usage_coverage ORDER BY date")
    assert [tuple(row.values()) for row in coverage] == [("2026-06-01", False), ("2026-06-02", True)]
    build("run", "--full-refresh")
    assert rows(database, "SELECT date::text, is_provisional FROM usage_coverage ORDER BY date") == coverage


def test_a_flush_brings_the_hourly_rollup_up_to_date_by_itself_and_the_build_that_follows_finds_the_same(
    database, build, tmp_path, monkeypatch
):
    monkeypatch.setenv("TOKENTRA_DATABASE_URL", database.url)
    monkeypatch.setenv("TOKENTRA_HOME", str(tmp_path))
    org = organization(database)
    send(database, org, event("first"))
    flush_all(database)
    build("run")
    send(database, org, event("second", feature="search"))
    result = dg.materialize([usage_events], resources={"warehouse": Warehouse()})
    (said,) = result.asset_materializations_for_node("raw__usage_events")[-1:]
    assert said.metadata["hourly_rollup"].value == "up to date with these events"
    hourly = "SELECT feature, request_count FROM hourly_usage_rollup ORDER BY feature"
    built = rows(database, hourly)
    assert built == [{"feature": "search", "request_count": 1}, {"feature": None, "request_count": 1}]
    assert one(database, "SELECT sum(request_count)::int FROM daily_usage_rollup") == 1
    build("run")
    assert rows(database, hourly) == built and one(database, "SELECT sum(request_count)::int FROM daily_usage_rollup") == 2
