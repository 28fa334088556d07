"""The last minutes, live: from events whether they are records or not, by the minute of the request, nothing made up."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.realtime.event_data import NOON, event, flush_all, organization, send
from tests.warehouse_data import one, rows
from tokentra_dagster.errors import UsageError
from tokentra_dagster.realtime import event_prices, live
from tokentra_dagster.realtime.live import live_usage
from tokentra_dagster.warehouse.access import grant_reader
from tokentra_dagster.warehouse.database import Database

MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)
NOW = NOON + 20 * MINUTE + 15 * SECOND


def look(database: Database, org, minutes: int = 15, now: datetime | None = NOW):
    with database.connect() as db:
        return live_usage(db, org, minutes, now)


def test_minutes_without_events_are_known_zeros_and_what_nobody_knows_is_none(database):
    org = organization(database)
    empty = look(database, org)
    assert (empty.window_start, empty.window_end) == (NOON + 5 * MINUTE, NOW)
    assert [p.timestamp for p in empty.minute_data] == [NOON + n * MINUTE for n in range(5, 21)]
    assert [p.is_complete for p in empty.minute_data] == [True] * 15 + [False]
    assert (empty.total_tokens, empty.request_count, empty.error_count, empty.estimated_cost) == (0, 0, 0, 0)
    assert (empty.avg_latency_ms, empty.p50_latency_ms, empty.error_rate, empty.rate.token_rate_change) == (None,) * 4
    send(database, org, event("a", NOON + 10 * MINUTE, model="nobody-sells-this"), now=NOW)
    found = look(database, org)
    point = found.minute_data[5]
    assert (point.tokens, point.requests, point.errors, point.estimated_cost, point.avg_latency) == (110, 1, None, None, None)
    assert (found.error_count, found.estimated_cost, found.unpriced_requests, found.cached_tokens) == (None, None, 1, None)
    assert found.day.projected_cost is None and found.day.tokens_so_far == 110


def test_the_window_by_minute_model_and_feature_is_the_same_before_and_after_the_flush(database):
    org = organization(database)
    latencies = [37 * n for n in range(1, 101)]
    send(
        database,
        org,
        event("before", NOON + 5 * MINUTE - timedelta(microseconds=1), input_tokens=1_000_000),
        *(
            event(f"e{n}", NOON + 5 * MINUTE + n * 9 * SECOND, latency_ms=latency, is_error=n % 10 == 0, feature="search:box" if n % 4 else None,
                  model="gpt-4o-2024-08-06" if n % 2 else "ft:gpt-4o:acme:x:7", reported_cost=Decimal("0.01"), cached_input_tokens=40)
            for n, latency in enumerate(latencies)
        ),
        event("euro", NOON + 19 * MINUTE, reported_cost=Decimal(5), currency="EUR"),
        event("late", NOON + 6 * MINUTE, provider="anthropic", model="claude-sonnet-4-5", input_tokens=900, output_tokens=90),
        now=NOON + 20 * MINUTE,
    )  # fmt: skip
    send(database, org, event("ahead", NOON + 22 * MINUTE), now=NOW)
    found = look(database, org)
    assert (found.request_count, found.total_tokens, found.error_count) == (102, 110 * 101 + 990, 10)
    assert found.error_rate == pytest.approx(10), "of the hundred that say whether they failed"
    assert found.estimated_cost == Decimal("1.00405"), "1.00 as reported and the Claude request from the price list"
    assert (found.unpriced_requests, found.other_currency_requests, found.ahead_requests) == (0, 1, 1)
    assert sum(point.requests for point in found.minute_data) == 102 and found.late_requests == 102 - 7
    for quantile in (50, 95, 99):
        assert abs(getattr(found, f"p{quantile}_latency_ms") - 37 * quantile) <= 0.011 * 37 * quantile
    assert found.avg_latency_ms == pytest.approx(sum(latencies) / 100)
    assert [(m.provider, m.model, m.requests) for m in found.models] == [
        ("openai", "gpt-4o-2024-08-06", 51), ("openai", "ft:gpt-4o:acme:x:7", 50), ("anthropic", "claude-sonnet-4-5", 1),
    ]  # fmt: skip
    assert [(f.feature, f.requests) for f in found.features] == [("search:box", 75), (None, 27)]
    assert sum(m.percentage for m in found.models) == pytest.approx(100)
    assert found.hour.tokens_so_far == found.day.tokens_so_far == found.total_tokens + 1_000_010 + 110
    flush_all(database, NOW)
    assert look(database, org) == found, "an event counts once, waiting or flushed"
    send(database, org, event("more", NOON + 20 * MINUTE), now=NOW)
    assert look(database, org).hour.requests_so_far == found.hour.requests_so_far + 1
    flush_all(database, NOW)
    assert look(database, org).hour.requests_so_far == found.hour.requests_so_far + 1


def test_the_rate_is_of_whole_minutes_where_the_specification_extrapolates_a_second(database):
    org = organization(database)
    now = NOON + 20 * MINUTE + SECOND
    send(database, org, *(event(f"m{n}", NOON + n * MINUTE, input_tokens=500, output_tokens=100) for n in range(15, 20)), now=now)
    send(database, org, *(event(f"s{n}", NOON + 20 * MINUTE, input_tokens=500, output_tokens=100) for n in range(2)), now=now)
    found = look(database, org, now=now)
    specification = found.rate.current_minute_tokens / 1 * 60
    assert specification == 72_000, "120 times what a minute had"
    assert found.rate.tokens_per_minute == 600 and found.rate.requests_per_minute == 1
    assert found.rate.projected_minute_tokens == round(1200 + 600 * 59 / 60) and found.rate.last_minute_tokens == 600
    assert found.hour.projected_tokens == round(4200 + 600 * (40 - 1 / 60))
    assert (found.hour.end, found.day.end) == (NOON + 60 * MINUTE, NOON + 12 * 60 * MINUTE)
    assert look(database, org, minutes=2, now=now).rate.minutes == 2


def test_a_change_from_zero_has_no_percentage(database):
    org = organization(database)
    send(database, org, event("a", NOON + 20 * MINUTE), now=NOW)
    found = look(database, org)
    assert found.rate.last_minute_tokens == 0 and found.rate.token_rate_change is None


def test_a_stored_event_is_priced_as_its_record_is(database):
    org = organization(database)
    tricky = [
        event("tier", provider="google", model="gemini-2.5-pro", input_tokens=250_000),
        event("window", provider="google", model="gemini-2.5-pro", input_tokens=250_000, context_window="0-200k"),
        event("cache", provider="anthropic", model="claude-sonnet-4-5", input_tokens=9000, cached_input_tokens=5000,
              cache_creation_tokens=3000, token_details={"cache_write_1h": 1000}),
        event("search", provider="anthropic", model="claude-sonnet-4-5", metadata={"web_search_requests": 3}),
        event("speed", provider="anthropic", model="claude-opus-4-6", metadata={"speed": "fast"}),
        event("batch", service_type="batch"), event("flex", service_tier="flex"), event("unknown", model="ft:gpt-4o:acme:support:7"),
        event("audio", model="gpt-4o-audio-preview", token_details={"input_audio": 50}), event("contradiction", token_details={"input_audio": 500}),
        event("images", input_tokens=0, output_tokens=0, quantity=Decimal(3), quantity_unit="images"), event("free", input_tokens=0, output_tokens=0),
        event("euro", currency="EUR"), event("said", reported_cost=Decimal("0.000000000001")), event("azure", provider="azure"),
        event("bedrock", provider="aws", model="anthropic.claude-3-5-sonnet-20241022-v2:0"),
    ]  # fmt: skip
    send(database, org, *tricky)
    flush_all(database)
    compared = rows(
        database,
        "SELECT e.event_id, e.estimated_cost AS stored, e.cost_basis AS stored_basis, r.estimated_cost AS flushed, r.cost_basis AS flushed_basis "
        "FROM raw.usage_events AS e JOIN raw.usage_records AS r ON r.provider_metadata ->> 'event_id' = e.event_id",
    )
    assert len(compared) == len(tricky)
    assert [one for one in compared if (one["stored"], one["stored_basis"]) != (one["flushed"], one["flushed_basis"])] == []
    assert {one["stored_basis"] for one in compared} == {"actual", "estimate", "unpriced"}


def test_an_event_is_kept_whatever_happens_to_its_price(database, monkeypatch):
    def fails(batch, provider):
        raise RuntimeError("the list is broken")

    monkeypatch.setattr(event_prices, "price_batch", fails)
    org = organization(database)
    assert send(database, org, event("a", NOW), now=NOW).stored == 1
    assert look(database, org).unpriced_requests == 1


def test_an_event_is_seen_within_two_seconds_by_the_databases_own_clock(database):
    org = organization(database)
    began = time.monotonic()
    now = datetime.now(UTC)
    send(database, org, event("now", now), now=now)
    assert look(database, org, now=None).request_count == 1
    assert time.monotonic() - began < 2


def test_every_latency_falls_into_the_bucket_that_the_rollups_put_it_in(database):
    differ = (
        "SELECT count(*)::int FROM (SELECT ms FROM generate_series(0, 30000) AS ms UNION ALL SELECT floor(power(1.02, b))::bigint + d "
        "FROM generate_series(500, 1046) AS b, generate_series(-1, 1) AS d) AS every (ms) "
        "WHERE raw.latency_bucket(ms) <> width_bucket(ms::float, raw.latency_bounds())"
    )
    assert one(database, differ) == 0


def test_a_reader_sees_live_usage_of_its_own_organisation_only(database):
    acme, globex = organization(database), organization(database, "globex")
    for org, name in ((acme, "public"), (globex, "secret-model")):
        send(database, org, event("a", NOW - MINUTE, model=name, metadata={"prompt": "hidden"}), now=NOW)
    login = f"live_{database.parts['dbname']}"
    with database.connect() as db:
        password = grant_reader(db, login, organizations=["acme"]).password
    parts = urlsplit(database.url)
    reader = Database(f"postgresql://{login}:{password}@{parts.hostname}:{parts.port}{parts.path}")
    found = look(reader, acme)
    assert [m.model for m in found.models] == ["public"] and found.day.requests_so_far == 1
    with pytest.raises(UsageError, match="not yours to see"):
        look(reader, globex)
    for table in ("usage_events", "pending_usage_events", "usage_event_hours"):
        assert rows(reader, f"SELECT count(org_id) AS all, count(*) FILTER (WHERE org_id = %s) AS mine FROM raw.{table}", acme) in (
            [{"all": 1, "mine": 1}], [{"all": 0, "mine": 0}],
        )  # fmt: skip
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        rows(reader, "SELECT metadata FROM raw.usage_events")


@pytest.mark.parametrize("minutes", [0, 61, -1])
def test_another_number_of_minutes_is_refused_with_what_is_allowed(database, minutes):
    with pytest.raises(UsageError, match="1 to 60"):
        look(database, organization(database), minutes)
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="from 1 to 60"):
        rows(database, "SELECT * FROM get_live_usage((SELECT id FROM app.organizations), %s)", minutes)


def test_many_features_are_listed_largest_first_and_the_rest_is_one(database, monkeypatch):
    monkeypatch.setattr(live, "MOST_SHARES", 2)
    org = organization(database)
    send(
        database,
        org,
        *(event(f"e{n}", NOW, feature=f"f{n}", input_tokens=100 * n, output_tokens=0) for n in range(1, 6)),
        now=NOW,
    )
    found = look(database, org)
    assert [(f.feature, f.tokens, f.other_count) for f in found.features] == [
        ("f5", 500, None),
        ("f4", 400, None),
        ("Other", 600, 3),
    ]
    assert sum(f.percentage for f in found.features) == pytest.approx(100)


def test_as_json_it_has_the_specifications_names(database):
    org = organization(database)
    send(database, org, event("a", NOW, latency_ms=120, is_error=False), now=NOW)
    said = look(database, org).as_json()
    metrics = ("windowStart", "windowEnd", "totalTokens", "inputTokens", "outputTokens", "requestCount", "errorCount", "avgLatencyMs",
               "tokensPerMinute", "requestsPerMinute", "minuteData")  # fmt: skip
    rate = ("currentMinuteTokens", "currentMinuteRequests", "lastMinuteTokens", "lastMinuteRequests", "projectedMinuteTokens",
            "projectedMinuteRequests", "tokenRateChange", "requestRateChange")  # fmt: skip
    assert set(metrics) <= set(said) and set(rate) <= set(said["rate"])
    assert {"timestamp", "tokens", "requests", "errors", "avgLatency"} <= set(said["minuteData"][-1])
    assert {"model", "tokens", "requests", "percentage"} <= set(said["models"][0])
    assert (said["windowEnd"], said["minuteData"][-1]["errors"]) == ("2026-06-01T12:20:15Z", 0)
