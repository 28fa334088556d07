"""The 14 metrics of a comparison and their significance (section 11; corrections 7, 18, 20, 35)."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime, timedelta

import pytest

from tests.analytics.recorded_usage import RecordedUsage, usage_row
from tokentra_dagster.analytics.comparison_metrics import METRICS, ComparisonParameters, Figures, compare_metrics, read_figures
from tokentra_dagster.analytics.noise import UsualChange
from tokentra_dagster.analytics.periods import Period

DAY = datetime(2026, 6, 1, tzinfo=UTC)
TWO_DAYS = Period(DAY, DAY + timedelta(days=2))


def figures(**known) -> Figures:
    return Figures(**({one.name: 0 if one.name == "active_days" else None for one in fields(Figures)} | known))


def compared(current, previous, usual=None, metric="totalTokens"):
    name = METRICS[metric]
    usual = {name: usual} if usual else {}
    found = compare_metrics(figures(**{name: current}), figures(**{name: previous}), usual)
    return next(one for one in found if one.metric == metric)


def test_the_metrics_are_the_specifications():
    assert list(METRICS) == [
        "totalTokens", "inputTokens", "outputTokens", "cachedTokens", "totalRequests", "errorRate", "avgLatencyMs", "tokensPerRequest",
        "tokensPerDay", "requestsPerDay", "cacheHitRate", "uniqueModels", "uniqueUsers", "activeDays",
    ]  # fmt: skip


def test_rates_are_weighted_and_cache_hits_are_of_input_tokens():
    """Correction 35: the specification averages latencies without weights and divides cached tokens by all tokens."""
    rows = [
        usage_row(DAY, request_count=99, total_latency_ms=9_900, input_tokens=600, output_tokens=400, cached_tokens=300),
        usage_row(DAY + timedelta(hours=1), request_count=1, total_latency_ms=1_000, input_tokens=0, output_tokens=0),
    ]

    def specification() -> tuple[float, float]:
        latencies = [row["total_latency_ms"] / row["request_count"] for row in rows]
        return sum(latencies) / len(latencies), sum(row["cached_tokens"] for row in rows) / 1_000 * 100

    found = read_figures(RecordedUsage.of(rows), TWO_DAYS)
    assert specification() == (550, 30)
    assert (found.avg_latency_ms, found.cache_hit_rate) == (109, 50)


def test_users_and_models_are_counted_once_and_columns_exist():
    """Correction 35: the rollup has no `user_id` and no `cached_tokens`, so the specification finds neither; correction 7: distinct."""
    rows = [
        usage_row(DAY + timedelta(hours=hour), user=user, model=model, cached_tokens=10)
        for hour, user, model in [(0, "ann", "a"), (1, "ann", "b"), (30, "ann", "a"), (31, "bob", "a"), (32, None, "a")]
    ]

    def specification() -> tuple[int, int]:
        rollup = [{name: row[name] for name in ("model", "total_tokens")} for row in rows]
        return len({row["user_id"] for row in rollup if row.get("user_id")}), sum(row.get("cached_tokens") or 0 for row in rollup)

    found = read_figures(RecordedUsage.of(rows), TWO_DAYS)
    assert specification() == (0, 0)
    assert (found.unique_users, found.cached_tokens, found.unique_models) == (2, 50, 2)


def test_filters_narrow_every_figure():
    rows = [usage_row(DAY, user="ann", team="red"), usage_row(DAY, user="bob", team=None, input_tokens=1_000)]
    usage = RecordedUsage.of(rows)
    red, without = (read_figures(usage, TWO_DAYS, {"team": team}) for team in ("red", None))
    assert (red.input_tokens, red.unique_users) == (100, 1)
    assert (without.input_tokens, without.unique_users) == (1_000, 1)


def test_the_boundary_is_in_one_period_only():
    """Correction 20: with `<= end` the day between two periods counts in both."""
    rows = [usage_row(DAY + timedelta(days=day), total_tokens=10**day) for day in range(4)]
    previous, current = Period(DAY, DAY + timedelta(days=2)), Period(DAY + timedelta(days=2), DAY + timedelta(days=4))

    def specification(period: Period) -> int:
        return sum(row["total_tokens"] for row in rows if period.start.date() <= row["moment"].date() <= period.end.date())

    found = [read_figures(RecordedUsage.of(rows), period).total_tokens for period in (previous, current)]
    assert specification(previous) + specification(current) == 1_211
    assert found == [11, 1_100]


def test_days_are_days_with_usage():
    rows = [usage_row(DAY), usage_row(DAY + timedelta(days=9), input_tokens=210, request_count=3)]
    rows.append(usage_row(DAY + timedelta(days=5), input_tokens=0, output_tokens=0, request_count=0))
    found = read_figures(RecordedUsage.of(rows), Period(DAY, DAY + timedelta(days=30)))
    assert (found.active_days, found.tokens_per_day, found.requests_per_day) == (2, 165, 2)


def test_rates_of_nothing_are_unknown_and_sums_are_zero():
    found = read_figures(RecordedUsage.of([]), TWO_DAYS)
    assert found == figures(
        total_tokens=0, input_tokens=0, output_tokens=0, cached_tokens=0, total_requests=0, unique_models=0, unique_users=0
    )


def test_unknown_counts_stay_unknown():
    found = read_figures(RecordedUsage.of([usage_row(DAY, request_count=None, cached_tokens=None, error_count=None)]), TWO_DAYS)
    assert (found.total_requests, found.cached_tokens, found.error_rate, found.cache_hit_rate) == (None,) * 4
    assert found.total_tokens == 110


@pytest.mark.parametrize(
    ("current", "previous", "percentage", "direction", "significant", "level"),
    [
        (100.9, 100, 0.9, "stable", False, "low"),
        (101, 100, 1.0, "increase", False, "low"),
        (104, 100, 4.0, "increase", False, "low"),
        (105, 100, 5.0, "increase", True, "low"),
        (115, 100, 15.0, "increase", True, "medium"),
        (130, 100, 30.0, "increase", True, "high"),
        (70, 100, -30.0, "decrease", True, "high"),
        (0, 0, None, "stable", False, "low"),
        (5, None, None, None, False, "low"),
        (None, 5, None, None, False, "low"),
    ],
)
def test_significance_follows_the_thresholds(current, previous, percentage, direction, significant, level):
    found = compared(current, previous)
    assert found.percentage_change == (percentage if percentage is None else pytest.approx(percentage))
    assert (found.direction, found.is_significant, found.significance_level) == (direction, significant, level)


def test_a_change_from_zero_has_no_percentage():
    """Correction 18: the specification calls any change from zero 100 %."""

    def specification(current: float, previous: float) -> float:
        return (current - previous) / previous * 100 if previous else (100 if current > 0 else 0)

    assert specification(3, 0) == specification(3_000_000, 0) == 100
    found = compared(3, 0)
    assert (found.percentage_change, found.absolute_change, found.direction) == (None, 3, "increase")
    assert (found.is_significant, found.significance_level) == (True, "high")


def test_thresholds_can_be_set():
    found = compare_metrics(figures(total_tokens=110), figures(total_tokens=100), parameters=ComparisonParameters(low_pct=20))
    assert not found[0].is_significant


def test_noise_stands_beside_the_specifications_fields():
    usual = UsualChange("same_comparison", 9, 0.0, 10.0, -26.0, 33.0)
    inside, outside = compared(120, 100, usual), compared(150, 100, usual)
    assert (inside.is_significant, inside.is_beyond_noise, inside.matters) == (True, False, False)
    assert (outside.is_significant, outside.is_beyond_noise, outside.matters) == (True, True, True)
    assert (inside.usual_variation_pct, inside.usual_high_pct, inside.noise_basis, inside.noise_comparisons) == (
        10.0, 33.0, "same_comparison", 9,
    )  # fmt: skip
    unknown = compared(120, 100)
    assert (unknown.is_beyond_noise, unknown.noise_basis, unknown.matters) == (None, "thresholds", True)
