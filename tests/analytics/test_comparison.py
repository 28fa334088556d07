"""Two periods compared: the worked example, insights, recommendations and odd periods (section 11)."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analytics.golden import assert_equal
from tests.analytics.recorded_usage import RecordedUsage, usage_row
from tokentra_dagster.analytics.comparison import (
    compare_usage,
    insight_rows,
    metric_rows,
    recommendation_rows,
)
from tokentra_dagster.analytics.comparison_metrics import METRICS, ComparisonParameters
from tokentra_dagster.analytics.comparison_periods import comparison_periods
from tokentra_dagster.analytics.noise import NoiseParameters
from tokentra_dagster.analytics.periods import DAY, Period
from tokentra_dagster.analytics.results import as_json
from tokentra_dagster.analytics.sources import DIMENSIONS

NOW = datetime(2026, 6, 29, tzinfo=UTC)
CURRENT, PREVIOUS = Period(NOW - 14 * DAY, NOW), Period(NOW - 28 * DAY, NOW - 14 * DAY)
PERIODS = comparison_periods("custom", NOW, CURRENT, PREVIOUS)
THEN = PREVIOUS.start


def compared(current: dict, previous: dict, dimensions=(), *, current_rows=(), previous_rows=()):
    """One record in each period, or the ones given."""
    rows = [
        *([usage_row(CURRENT.start + timedelta(hours=1), **fields) for fields in current_rows or [current]]),
        *([usage_row(PREVIOUS.start + timedelta(hours=1), **fields) for fields in previous_rows or [previous]]),
    ]
    return compare_usage(RecordedUsage.of(rows), PERIODS, dimensions)


def titles(found) -> list[str]:
    return [one.title for one in found]


def weekly(tokens: list[int], **fields) -> RecordedUsage:
    """One record a week, the last in the week before NOW."""
    return RecordedUsage.of(
        [usage_row(NOW - (place + 1) * 7 * DAY, total_tokens=one, **fields) for place, one in enumerate(reversed(tokens))]
    )


def this_week(usage: RecordedUsage):
    return compare_usage(usage, comparison_periods("period_over_period", NOW, Period(NOW - 7 * DAY, NOW)))


def metric(result, name: str):
    return next(one for one in result.metrics if one.metric == name)


def test_the_worked_example(golden):
    expected = golden.answer("comparison")
    periods = comparison_periods("custom", golden.period.end, golden.period, golden.previous)
    found = as_json(compare_usage(golden.usage, periods, ["model", "feature", "provider"]))
    assert_equal(found["periods"], expected["periods"])
    assert_equal(found["dimensionComparisons"], expected["dimensionComparisons"])
    metrics = {one["metric"]: one for one in found["metrics"]}
    assert len(expected["metrics"]) == 10
    for one in expected["metrics"]:
        assert_equal(metrics[one["metric"]], one)


def test_the_worked_example_says_what_happened(golden):
    golden.answer("comparison")
    periods = comparison_periods("custom", golden.period.end, golden.period, golden.previous)
    found = compare_usage(golden.usage, periods, ["model"])
    assert {one.dimension_value for one in found.insights if one.title == "New model Emerged"} == {
        "claude-sonnet-4-20250514",
        "claude-opus-4-6",
    }
    assert found.recommendations[0].priority == "critical"
    assert "8.76%" in found.recommendations[0].description
    assert metric(found, "totalTokens").noise_basis == "thresholds"


@pytest.mark.parametrize(
    ("current", "previous", "title", "severity"),
    [
        ({"input_tokens": 110}, {"input_tokens": 100}, "Significant Usage Growth", "info"),
        ({"input_tokens": 200}, {"input_tokens": 100}, "Significant Usage Growth", "warning"),
        ({"input_tokens": 50}, {"input_tokens": 100}, "Significant Usage Drop", "warning"),
        ({"request_count": 100, "error_count": 5}, {"request_count": 100, "error_count": 1}, "Increased Error Rate", "warning"),
        ({"request_count": 100, "error_count": 6}, {"request_count": 100, "error_count": 0}, "Increased Error Rate", "critical"),
        ({"cached_tokens": 60}, {"cached_tokens": 50}, "Cache Efficiency Improved", "info"),
        ({"cached_tokens": 40}, {"cached_tokens": 50}, "Cache Efficiency Declined", "warning"),
        ({"total_latency_ms": 121}, {"total_latency_ms": 100}, "Latency Increase Detected", "warning"),
        ({"input_tokens": 200}, {"input_tokens": 100}, "Prompt Complexity Increased", "info"),
        ({"input_tokens": 100}, {"input_tokens": 200}, "Prompt Efficiency Improved", "info"),
    ],
)
def test_each_insight(current, previous, title, severity):
    found = compared(current, previous)
    assert [one.severity for one in found.insights if one.title == title] == [severity]


@pytest.mark.parametrize(
    ("current", "previous"),
    [
        ({}, {}),
        ({"total_tokens": 104}, {"total_tokens": 100}),
        ({"request_count": 1_000, "error_count": 10}, {"request_count": 1_000, "error_count": 1}),
        ({"total_latency_ms": 120}, {"total_latency_ms": 100}),
        ({"total_latency_ms": 500}, {"total_latency_ms": None}),
        ({"cached_tokens": None, "error_count": None}, {"cached_tokens": 90}),
    ],
)
def test_no_insight_from_small_or_unknown_changes(current, previous):
    assert titles(compared(current, previous).insights) == []


def test_new_values_and_concentration():
    before = [{"feature": f"f{number}", "total_tokens": 100} for number in range(10)]
    now = [{"feature": "big", "total_tokens": 900}, *({**one, "total_tokens": 10} for one in before)]
    found = compared({}, {}, ["feature"], current_rows=now, previous_rows=before)
    about = [one for one in found.insights if one.dimension == "feature"]
    assert titles(about) == ["New feature Emerged", "Feature Concentration Increased"]
    assert about[0].dimension_value == "big"
    assert about[0].description == '"big" is new and accounts for 90.0% of total usage'
    assert about[1].description == "Top 3 feature values now account for 92.0% of usage (was 20.0%)"


def test_against_an_empty_period_nothing_is_new():
    rows = [usage_row(CURRENT.start, feature="a"), usage_row(PREVIOUS.start - DAY, feature="b")]
    found = compare_usage(RecordedUsage.of(rows), PERIODS, ["feature"])
    assert [one.description for one in found.insights] == ["Token consumption rose from nothing to 110"]
    assert found.notes == ()


def test_before_the_first_usage_there_is_nothing_to_compare_with():
    found = compare_usage(RecordedUsage.of([usage_row(CURRENT.start, feature="a")]), PERIODS, ["feature"])
    assert found.insights == ()
    assert found.notes == ("The previous period is before the first usage: there is nothing to compare with.",)


def test_a_significant_change_that_is_usual_is_no_insight():
    chance = random.Random(3)
    noisy = [int(1_000 * math.exp(chance.gauss(0, 0.2))) for _ in range(14)]
    usual, jump = this_week(weekly([*noisy, 1_000, 1_200])), this_week(weekly([*noisy, 1_000, 9_000]))
    assert (metric(usual, "totalTokens").is_significant, metric(usual, "totalTokens").is_beyond_noise) == (True, False)
    assert "Significant Usage Growth" not in titles(usual.insights)
    assert metric(jump, "totalTokens").is_beyond_noise
    growth = next(one for one in jump.insights if one.title == "Significant Usage Growth")
    assert "increased by 800.0%" in growth.description
    assert "the change is usually between" in growth.description


def test_a_small_change_that_never_happens_is_an_insight():
    found = this_week(weekly([100_000] * 14 + [104_000]))
    assert not metric(found, "totalTokens").is_significant
    assert "Unusual Change" in titles(found.insights)
    assert "Unusual Change" not in titles(this_week(weekly([100_000] * 14 + [101_500])).insights)


def test_errors_above_the_critical_level_are_told_however_usual():
    errors = [6, 12, 5, 14, 6, 11, 7, 13, 6, 10, 5, 12, 7, 9]
    rows = [
        usage_row(NOW - (place + 1) * 7 * DAY, request_count=100, error_count=one) for place, one in enumerate(reversed(errors))
    ]
    found = this_week(RecordedUsage.of(rows))
    assert metric(found, "errorRate").is_beyond_noise is False
    (told,) = (one for one in found.insights if one.title == "Increased Error Rate")
    assert told.severity == "critical"
    assert told.description.endswith("and this is inside")


def test_growth_over_unlike_lengths_is_per_day():
    """A month so far against a whole month: the sums fell, usage did not."""
    rows = [usage_row(datetime(2025, 6, 1, tzinfo=UTC) + day * DAY, input_tokens=100) for day in range(30)]
    rows += [usage_row(datetime(2026, 6, 1, tzinfo=UTC) + day * DAY, input_tokens=200) for day in range(10)]
    found = compare_usage(RecordedUsage.of(rows), comparison_periods("year_over_year", datetime(2026, 6, 11, tzinfo=UTC)))
    assert metric(found, "totalTokens").direction == "decrease"
    growth = next(one for one in found.insights if one.title.startswith("Significant Usage"))
    assert (growth.title, growth.metric) == ("Significant Usage Growth", "tokensPerDay")
    assert found.notes == (
        "The periods differ in length (10.0 and 30.0 days): compare the rates and the figures per day, not the sums.",
    )


def test_notes_say_what_is_wrong_with_the_periods():
    began = RecordedUsage.of([usage_row(THEN + 5 * DAY), usage_row(CURRENT.start)])
    assert compare_usage(began, PERIODS).notes == (
        "Usage began on 2026-06-06, inside the previous period: its sums are of a part of it.",
    )
    january = comparison_periods("benchmark", datetime(2026, 1, 20, tzinfo=UTC))
    rows = RecordedUsage.of([usage_row(datetime(2025, 12, 1, tzinfo=UTC))])
    assert "The periods overlap: what both hold is compared with itself." in compare_usage(rows, january).notes


@pytest.mark.parametrize(
    ("current", "previous", "title", "priority", "impact"),
    [
        (
            {"request_count": 1_000, "error_count": 40}, {}, "Investigate Error Rate", "high",
            "At 2% errors, 20 more requests of this period would have succeeded",
        ),
        (
            {"request_count": 1_000, "error_count": 60}, {}, "Investigate Error Rate", "critical",
            "At 2% errors, 40 more requests of this period would have succeeded",
        ),
        (
            {"input_tokens": 1_000, "cached_tokens": 290}, {}, "Improve Cache Hit Rate", "medium",
            "710 input tokens of this period were not read from a cache; the figures do not say how many could be",
        ),
        (
            {"total_tokens": 3_000, "request_count": 20}, {"total_tokens": 1_000, "request_count": 10}, "Optimize Token Usage", "medium",
            "At the previous period's tokens per request, this period would have taken 1,000 tokens fewer",
        ),
        (
            {"total_tokens": 3_000, "model": "m"}, {}, "Diversify Model Usage", "medium",
            "3,000 tokens of this period went to m; what another model would cost is a matter of its price "
            "and of how many tasks it does as well",
        ),
    ],
)  # fmt: skip
def test_each_recommendation_rests_on_the_figures(current, previous, title, priority, impact):
    (found,) = (one for one in compared(current, previous, ["model"]).recommendations if one.title == title)
    assert (found.priority, found.expected_impact) == (priority, impact)


def test_recommendations_are_ordered_and_nothing_is_promised():
    fields = {"request_count": 100, "error_count": 9, "cached_tokens": 0, "model": "m"}
    found = compared(fields, {}, ["model"])
    assert [one.priority for one in found.recommendations] == ["critical", "medium", "medium"]
    assert not [one for one in found.recommendations if "20-40%" in one.expected_impact]
    calm = {"request_count": 100, "error_count": 2, "input_tokens": 100, "cached_tokens": 30}
    assert compared(calm, calm).recommendations == ()
    unknown = {"error_count": None, "cached_tokens": None}
    assert compared(unknown, unknown).recommendations == ()


def test_values_are_limited_only_after_everything_was_said_of_them():
    now = [{"feature": name, "total_tokens": tokens} for name, tokens in (("old", 700), ("new", 200), ("small", 100))]
    rows = [usage_row(CURRENT.start, **one) for one in now] + [usage_row(PREVIOUS.start, feature="old")]
    found = compare_usage(RecordedUsage.of(rows), PERIODS, ["feature"], parameters=ComparisonParameters(max_items=1))
    (feature,) = found.dimension_comparisons
    assert ([item.name for item in feature.items], feature.item_count, feature.new_item_count) == (["old"], 3, 2)
    assert [one.dimension_value for one in found.insights if one.title == "New feature Emerged"] == ["new"]


def test_what_usually_swings_neither_alarms_nor_advises():
    """Latency and tokens per request that double and halve from week to week, against ones that never moved."""
    swings = [100, 210, 95, 190, 105, 200, 98, 205, 102, 195, 100, 200, 97, 100, 200]

    def told(series: list[int]) -> set[str]:
        rows = [
            usage_row(NOW - (place + 1) * 7 * DAY, total_latency_ms=one, input_tokens=one * 1_000, cached_tokens=one * 500)
            for place, one in enumerate(reversed(series))
        ]
        found = this_week(RecordedUsage.of(rows))
        return {*titles(found.insights), *titles(found.recommendations)}

    about = {"Latency Increase Detected", "Prompt Complexity Increased", "Optimize Token Usage"}
    assert told([100] * 14 + [200]) >= about
    assert not told(swings) & about


def test_recommendations_begin_above_their_thresholds():
    def told(tokens: int, requests: int = 110) -> list[str]:
        """1,000 tokens in 100 requests before."""
        found = compared({"total_tokens": tokens, "request_count": requests}, {"total_tokens": 1_000, "request_count": 100})
        return [title for title in titles(found.recommendations) if title == "Optimize Token Usage"]

    assert (told(1_300), told(1_310)) == ([], ["Optimize Token Usage"])

    def of_one_model(tokens: int) -> list[str]:
        rows = [{"model": "a", "total_tokens": tokens}, {"model": "b", "total_tokens": 1_000 - tokens}]
        found = compared({}, {}, ["model"], current_rows=rows)
        return [title for title in titles(found.recommendations) if title == "Diversify Model Usage"]

    assert (of_one_model(800), of_one_model(801)) == ([], ["Diversify Model Usage"])


def test_rows_have_our_names_and_everything_that_was_said():
    found = compared({"feature": "a", "input_tokens": 300}, {"feature": "a", "input_tokens": 100}, ["feature"])
    rows = {(row.metric, row.dimension_value): row.value for row in metric_rows(found)}
    assert {name for name, value in rows if value is None} >= {
        f"{name}{suffix}" for name in METRICS.values() for suffix in ("", "_previous")
    }
    assert (rows["input_tokens", None], rows["input_tokens_previous", None], rows["input_tokens_change_pct", None]) == (
        300,
        100,
        200,
    )
    assert (rows["total_tokens", "a"], rows["total_tokens_previous", "a"], rows["token_share_pct", "a"]) == (310, 110, 100)
    assert len(metric_rows(found)) == 14 * 4 + 8
    assert [(row.title, row.metric) for row in insight_rows(found)] == [
        ("Significant Usage Growth", "total_tokens"),
        ("Prompt Complexity Increased", "tokens_per_request"),
    ]
    assert [row.impact_tokens for row in insight_rows(found)] == [200, None]
    assert [(row.title, row.savings_low) for row in recommendation_rows(found)] == [
        ("Improve Cache Hit Rate", None),
        ("Optimize Token Usage", None),
    ]


ZEROS = dict.fromkeys(
    ("input_tokens", "output_tokens", "cached_tokens", "request_count", "success_count", "error_count", "total_latency_ms"), 0
)
UNKNOWN = {"request_count": None, "error_count": None, "cached_tokens": None, "estimated_cost": None}


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [usage_row(THEN)],
        [usage_row(NOW - timedelta(hours=1))],
        [usage_row(NOW - day * DAY, **ZEROS) for day in range(1, 100)],
        [usage_row(NOW - day * DAY, **UNKNOWN) for day in range(1, 100)],
        [usage_row(NOW - day * DAY, model=None, provider=None) for day in range(1, 200)],
        [usage_row(NOW - day * DAY, input_tokens=10**15, estimated_cost=Decimal("1e9")) for day in range(1, 40)],
    ],
    ids=["nothing", "one row before", "one row now", "zeros", "unknown", "no values", "large"],
)
@pytest.mark.parametrize("kind", ["period_over_period", "year_over_year", "benchmark"])
def test_odd_usage_gives_sensible_answers(rows, kind):
    result = compare_usage(RecordedUsage.of(rows), comparison_periods(kind, NOW), DIMENSIONS)
    found = as_json(result)
    assert len(found["metrics"]) == 14
    assert len(metric_rows(result)) >= 56
    assert all(row.description for row in [*insight_rows(result), *recommendation_rows(result)])
    if not rows:
        assert (found["summary"]["overallHealth"], found["insights"], found["recommendations"]) == ("stable", [], [])


@pytest.mark.parametrize(
    "now",
    [
        datetime(2026, 3, 29, 1, tzinfo=UTC),  # clocks go forward in Europe
        datetime(2026, 10, 25, 1, tzinfo=UTC),
        datetime(2024, 2, 29, 12, tzinfo=UTC),
        datetime(2025, 2, 28, 12, tzinfo=UTC),
        datetime(2026, 1, 1, tzinfo=UTC),
    ],
)
@pytest.mark.parametrize("kind", ["period_over_period", "year_over_year", "benchmark"])
def test_odd_days_count_every_hour_once(now, kind):
    hours = [usage_row(now - hour * timedelta(hours=1), input_tokens=1, output_tokens=0) for hour in range(1, 24 * 500)]
    periods = comparison_periods(kind, now)
    found = compare_usage(
        RecordedUsage.of(hours), periods, parameters=ComparisonParameters(noise=NoiseParameters(history_steps=0))
    )
    tokens = metric(found, "totalTokens")
    assert (tokens.current_value, tokens.previous_value) == (periods.current.period.hours, periods.previous.period.hours)


MOMENTS = st.integers(-60 * 24, 15 * 24 - 1).map(lambda hour: NOW - 15 * DAY + timedelta(hours=hour))
COUNT = st.one_of(st.none(), st.integers(0, 10**9))
ROWS = st.lists(
    st.builds(
        lambda moment, tokens, requests, errors, cached, latency, feature: usage_row(
            moment, input_tokens=tokens, request_count=requests, error_count=errors, cached_tokens=cached,
            total_latency_ms=latency, feature=feature,
        ),
        MOMENTS, st.integers(0, 10**12), COUNT, COUNT, COUNT, COUNT, st.sampled_from([None, "a", "b", ""]),
    ),
    max_size=12,
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(ROWS)
def test_any_usage_compares_without_nan_and_shares_add_up(rows):
    result = compare_usage(RecordedUsage.of(rows), PERIODS, ["feature"])
    as_json(result)
    (feature,) = result.dimension_comparisons
    if feature.current_tokens:
        assert sum(item.percentage_of_total.current for item in feature.items) == pytest.approx(100)
    assert feature.current_tokens + feature.unattributed_tokens == metric(result, "totalTokens").current_value
    summary = result.summary
    assert summary.improvements + summary.regressions + summary.stable + summary.unknown == 14
