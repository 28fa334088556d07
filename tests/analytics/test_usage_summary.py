"""The figures of a period and their changes (specification 3 and 4; corrections 18, 19, 20, 35, 42)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analytics.golden import Golden, assert_equal
from tests.analytics.recorded_usage import RecordedUsage, usage_row
from tokentra_dagster.analytics.periods import COMPARISONS, Period
from tokentra_dagster.analytics.results import as_json
from tokentra_dagster.analytics.summary import metric_rows, usage_summary
from tokentra_dagster.errors import UsageError

JUNE = Period(datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 7, 1, tzinfo=UTC))
DAY = timedelta(days=1)
SPECIFIED = {
    "startDate", "endDate", "totalTokens", "inputTokens", "outputTokens", "cachedTokens", "cacheCreationTokens", "totalRequests",
    "successRequests", "errorRequests", "errorRate", "cacheHitRate", "tokensPerRequest", "requestsPerMinute", "avgLatencyMs",
    "minLatencyMs", "maxLatencyMs", "p50LatencyMs", "p95LatencyMs", "p99LatencyMs", "uniqueModels", "uniqueUsers", "estimatedCost",
}  # fmt: skip


@pytest.mark.parametrize(("key", "comparison"), [("summary", None), *((f"summary.{name}", name) for name in COMPARISONS)])
def test_the_worked_examples(golden: Golden, key, comparison):
    assert_equal(as_json(usage_summary(golden.usage, golden.period, comparison=comparison)), golden.answer(key))


def test_a_summary_has_every_field_of_the_specification():
    found = as_json(usage_summary(RecordedUsage.of([usage_row(JUNE.start)]), JUNE, comparison="mom"))
    assert set(found) >= SPECIFIED | {"comparison"}
    assert set(found["comparison"]) == {"period", "previousValue", "changes"}
    assert set(found["comparison"]["changes"]) == {"tokens", "requests", "errorRate", "latency", "cacheHitRate"}
    assert set(found["comparison"]["previousValue"]) >= SPECIFIED


def test_a_month_is_compared_with_the_month_before():
    usage = RecordedUsage.of([
        usage_row(datetime(2026, 5, 1, tzinfo=UTC), error_count=1, success_count=0),
        usage_row(datetime(2026, 5, 31, 23, tzinfo=UTC), input_tokens=90, output_tokens=0, total_latency_ms=1000),
        usage_row(datetime(2026, 6, 30, 23, tzinfo=UTC), input_tokens=400, output_tokens=0, cached_tokens=100, total_latency_ms=500),
    ])  # fmt: skip
    found = usage_summary(usage, JUNE, comparison="mom")
    assert (found.total_tokens, found.success_rate, found.comparison.previous_value.total_tokens) == (400, 100.0, 200)
    changes = found.comparison.changes
    assert (changes.tokens.absolute, changes.tokens.percentage, changes.tokens.is_improvement) == (200, 100.0, True)
    assert (changes.error_rate.absolute, changes.error_rate.direction, changes.error_rate.is_improvement) == (-50.0, "down", True)
    assert (changes.latency.percentage, changes.latency.is_improvement) == (-50.0, True)
    assert (changes.cache_hit_rate.absolute, changes.cache_hit_rate.percentage) == (25.0, None)


def test_the_last_day_of_a_month_is_compared_with_the_last_day_of_the_month_before():
    """JavaScript's setMonth makes 1 October of 31 October less a month (correction 19)."""
    usage = RecordedUsage.of([
        usage_row(datetime(2026, 9, 30, 12, tzinfo=UTC), input_tokens=30, output_tokens=0),
        usage_row(datetime(2026, 10, 1, 12, tzinfo=UTC), input_tokens=1, output_tokens=0),
        usage_row(datetime(2026, 10, 31, 12, tzinfo=UTC), input_tokens=31, output_tokens=0),
    ])  # fmt: skip

    def specified_month_before(moment: datetime) -> datetime:
        return moment.replace(day=1, month=moment.month - 1) + (moment.day - 1) * DAY

    period = Period(datetime(2026, 10, 31, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC))
    assert specified_month_before(period.start) == datetime(2026, 10, 1, tzinfo=UTC)
    assert usage_summary(usage, period, comparison="mom").comparison.previous_value.total_tokens == 30


def test_a_boundary_counts_once():
    """Section 11 reads `<= end`, so that a record on the boundary is in both periods (correction 20)."""
    boundary = JUNE.start
    rows = [usage_row(boundary - DAY), usage_row(boundary), usage_row(boundary + DAY)]
    found = usage_summary(RecordedUsage.of(rows), Period(boundary, boundary + 2 * DAY), comparison="previous")
    specified = sum(row["total_tokens"] for row in rows if boundary - 2 * DAY <= row["moment"] <= boundary)
    assert (specified, found.comparison.previous_value.total_tokens, found.total_tokens) == (220, 110, 220)


def test_a_change_from_zero_has_no_percentage():
    def specified(current: float, previous: float) -> float:
        return (current - previous) / previous * 100 if previous != 0 else 100 if current > 0 else 0

    found = usage_summary(RecordedUsage.of([usage_row(JUNE.start)]), JUNE, comparison="yoy").comparison
    assert specified(110, 0) == 100
    assert (found.changes.tokens.absolute, found.changes.tokens.percentage, found.changes.tokens.direction) == (110, None, "up")
    # Nobody had an error rate before: nothing is known of how it moved.
    assert (found.changes.error_rate.absolute, found.changes.error_rate.direction) == (None, "flat")
    assert found.previous_value.error_rate is None


def test_the_cache_hit_rate_is_over_input():
    usage = RecordedUsage.of([usage_row(JUNE.start, input_tokens=100, output_tokens=300, cached_tokens=80)])
    over_all_tokens = 80 / 400 * 100
    assert (over_all_tokens, usage_summary(usage, JUNE).cache_hit_rate) == (20.0, 80.0)


def test_throughput_and_active_features_are_computed():
    usage = RecordedUsage.of([usage_row(JUNE.start, feature="search", request_count=90), usage_row(JUNE.start, feature="chat")])
    found = usage_summary(usage, Period(JUNE.start, JUNE.start + timedelta(minutes=7)))
    assert (found.requests_per_minute, found.unique_features) == (13.0, 2)


def test_a_narrowed_summary_compares_the_same_part():
    usage = RecordedUsage.of([usage_row(JUNE.start), usage_row(JUNE.start, feature="search", input_tokens=5, output_tokens=0),
                              usage_row(JUNE.start - DAY), usage_row(JUNE.start - DAY, feature="search", input_tokens=4, output_tokens=0)])  # fmt: skip
    found = usage_summary(usage, JUNE, {"feature": "search"}, "previous")
    assert (found.total_tokens, found.comparison.previous_value.total_tokens) == (5, 4)


def test_an_unknown_comparison_or_dimension_lists_what_there_is():
    usage = RecordedUsage.of([])
    with pytest.raises(UsageError, match="previous, mom, qoq, yoy"):
        usage_summary(usage, JUNE, comparison="wow")
    with pytest.raises(UsageError, match="provider, model"):
        usage_summary(usage, JUNE, {"colour": "red"})


@pytest.mark.parametrize("comparison", [None, *COMPARISONS])
@pytest.mark.parametrize(
    "rows",
    [[], [usage_row(JUNE.start)],
     [usage_row(JUNE.start, input_tokens=0, output_tokens=0, request_count=0, success_count=0, estimated_cost=Decimal(0))],
     [usage_row(JUNE.start, request_count=None, success_count=None, error_count=None, cached_tokens=None, estimated_cost=None)]],
    ids=["empty", "one row", "zeros", "unknown"],
)  # fmt: skip
def test_the_edges_have_sensible_answers(rows, comparison):
    found = usage_summary(RecordedUsage.of(rows), JUNE, comparison=comparison)
    as_json(found)
    if not rows or not found.total_tokens:
        assert (found.error_rate, found.cache_hit_rate, found.tokens_per_request) == (None, None, None)
        assert found.total_tokens == 0
    if rows and rows[0]["request_count"] is None:
        assert (found.total_requests, found.success_rate, found.estimated_cost, found.requests_per_minute) == (None,) * 4


COUNT = st.integers(0, 10**12)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(-40, 29), COUNT, st.none() | COUNT), max_size=12), st.sampled_from(COMPARISONS))
def test_no_usage_gives_nan(drawn, comparison):
    usage = RecordedUsage.of(
        usage_row(
            JUNE.start + place * DAY, input_tokens=tokens, output_tokens=0, request_count=requests, total_latency_ms=requests
        )
        for place, tokens, requests in drawn
    )
    found = usage_summary(usage, JUNE, comparison=comparison)
    as_json(found)
    assert found.total_tokens == sum(tokens for place, tokens, _ in drawn if place >= 0)
    assert all(0 <= rate <= 100 for rate in (found.cache_hit_rate, found.success_rate) if rate is not None)


def test_the_rows_of_a_summary():
    usage = RecordedUsage.of([usage_row(JUNE.start), usage_row(JUNE.start - DAY, input_tokens=45)])
    found = usage_summary(usage, JUNE, comparison="previous")
    rows = {row.metric: row.value for row in metric_rows(found)}
    assert (rows["total_tokens"], rows["estimated_cost"], rows["p95_latency_ms"]) == (110, Decimal("0.01"), None)
    assert (rows["tokens_change"], rows["tokens_change_pct"], rows["latency_change_pct"]) == (55, 100.0, None)
    assert "currency" not in rows and len(metric_rows(found)) == len(rows)
