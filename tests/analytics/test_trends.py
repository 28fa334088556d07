"""Trends and how metrics move together (specification 4 and 7; corrections 13, 18, 26, 35)."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analytics.golden import Golden, assert_equal
from tests.analytics.recorded_usage import RecordedUsage, usage_row
from tokentra_dagster.analytics.periods import GRANULARITIES, Period
from tokentra_dagster.analytics.results import as_json
from tokentra_dagster.analytics.trends import (
    METRICS,
    TrendParameters,
    UsageTrend,
    UsageTrendPoint,
    analyze_trend,
    correlate,
    metric_rows,
    multi_metric_trend,
    usage_trend,
)
from tokentra_dagster.errors import UsageError

START = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


def days(count: int, start: datetime = START) -> Period:
    return Period(start, start + count * DAY)


def daily(*tokens: int, **fields: object) -> RecordedUsage:
    """One record a day with the input tokens given."""
    return RecordedUsage.of(
        usage_row(START + place * DAY, input_tokens=count, output_tokens=0, **fields) for place, count in enumerate(tokens)
    )


def series(*values: float | None) -> list[UsageTrendPoint]:
    return [UsageTrendPoint(START + place * DAY, value, None, None, None, None) for place, value in enumerate(values)]


@pytest.mark.parametrize("granularity", ["hour", "day", "week", "month"])
@pytest.mark.parametrize("metric", ["tokens", "requests"])
def test_the_worked_examples(golden: Golden, granularity, metric):
    expected = golden.answer(f"trend.{granularity}.{metric}")
    assert_equal(as_json(usage_trend(golden.usage, golden.period, granularity, metric)), expected)


def test_the_worked_examples_of_several_metrics(golden: Golden):
    found = multi_metric_trend(golden.usage, golden.period, ["tokens", "requests"])
    assert_equal(as_json(found), golden.answer("multiMetric"))


def specified_direction(values: list[float]) -> str:
    """Section 4's analyzeTrend, where 0/0 is NaN as in JavaScript and compares false."""
    n, average = len(values), sum(values) / len(values)
    deviation = math.sqrt(sum((value - average) ** 2 for value in values) / n)
    if average and deviation / average > 0.5:
        return "volatile"
    below = n * sum(place * place for place in range(n)) - sum(range(n)) ** 2
    slope = (
        (n * sum(place * value for place, value in enumerate(values)) - sum(range(n)) * sum(values)) / below
        if below
        else math.nan
    )
    if abs(slope) < average * 0.01:
        return "stable"
    return "increasing" if slope > 0 else "decreasing"


@pytest.mark.parametrize("values", [[500], [0, 0, 0]])
def test_one_point_and_no_usage_are_stable(values):
    assert specified_direction(values) == "decreasing"
    found = analyze_trend(series(*values))
    assert (found.direction, found.change_rate) == ("stable", None)


def test_the_direction_is_the_specifications_where_it_has_one():
    for values in ([10, 11, 12, 13], [13, 12, 11, 10], [10, 10, 10, 10.1], [1, 9, 1, 9], [100, 160], [0, 5, 10]):
        assert analyze_trend(series(*values)).direction == specified_direction(values)


def test_a_change_from_zero_has_no_rate():
    """The specification replaces the first value by 1 and reports 49900 %."""

    def specified(first: int, last: int) -> float:
        return (last - (first or 1)) / (first or 1) * 100

    assert specified(0, 500) == 49_900
    found = usage_trend(daily(0, 300, 500), days(3), "day")
    assert found.analysis.change_rate is None
    assert (found.analysis.peak_value, found.analysis.trough_value, found.analysis.direction) == (500, 0, "volatile")
    assert usage_trend(daily(200, 300), days(3), "day").analysis.change_rate == 50


def test_what_is_not_known_takes_no_part_in_the_analysis():
    found = analyze_trend(series(None, 10, None, 30))
    assert (found.average, found.change_rate, found.trough_time) == (20, 200, START + DAY)
    # The line is over the places in the trend: 10 at 1 and 30 at 3 rise by 10 a bucket, half of the average.
    assert (
        analyze_trend(series(None, 10, None, 30), TrendParameters(volatile_above=9, stable_below=0.49)).direction == "increasing"
    )
    assert analyze_trend(series(None, 10, None, 30), TrendParameters(volatile_above=9, stable_below=0.51)).direction == "stable"


def test_how_many_points_make_a_direction_can_be_set():
    assert analyze_trend(series(10, 20, 30)).direction == "increasing"
    assert analyze_trend(series(10, 20, 30), TrendParameters(min_points=4)).direction == "stable"


def test_every_metric_of_a_bucket():
    usage = RecordedUsage.of([
        usage_row(START + HOUR, request_count=3, success_count=2, error_count=1, total_latency_ms=300, estimated_cost=Decimal("0.1")),
        usage_row(START + 2 * HOUR, request_count=1, total_latency_ms=900, estimated_cost=Decimal("0.1")),
        usage_row(START + 3 * HOUR, request_count=4, total_latency_ms=None, input_tokens=0, output_tokens=0, estimated_cost=Decimal("0.1")),
        usage_row(START + 3 * HOUR, request_count=None, success_count=None, error_count=None, estimated_cost=None),
    ])  # fmt: skip
    found = {metric: usage_trend(usage, days(1), "day", metric).data[0] for metric in METRICS}
    assert {metric: point.value for metric, point in found.items()} == {
        "tokens": 330, "requests": 8, "errors": 1, "cost": Decimal("0.3"), "latency": 300.0,
    }  # fmt: skip
    # An average of the records' own averages, as in section 11, would say 500 ms (correction 35).
    assert (300 / 3 + 900 / 1) / 2 == 500
    assert found["tokens"].error_rate == 12.5


def test_a_metric_that_nobody_reported_is_unknown():
    usage = daily(5, 7, request_count=None, success_count=None, error_count=None, estimated_cost=None)
    for metric in ("requests", "errors", "cost", "latency"):
        found = usage_trend(usage, days(2), "day", metric)
        assert [(point.value, point.error_rate) for point in found.data] == [(None, None)] * 2
        assert found.analysis.average is None and found.analysis.direction == "stable"


def test_money_stays_exact():
    found = usage_trend(daily(1, 2, 3, estimated_cost=Decimal("0.1")), days(3), "week", "cost")
    assert (found.data[0].value, found.analysis.average) == (Decimal("0.3"), Decimal("0.3"))


def test_a_trend_can_be_narrowed_by_either_spelling():
    usage = RecordedUsage.of([usage_row(START, model_family="gpt-4o"), usage_row(START, model_family="o3", input_tokens=7)])
    for name in ("modelFamily", "model_family"):
        assert usage_trend(usage, days(1), "day", where={name: "o3"}).data[0].input_tokens == 7
    with pytest.raises(UsageError, match=r"'colour'; it must be one of provider, model"):
        usage_trend(usage, days(1), "day", where={"colour": "red"})


@pytest.mark.parametrize(("hours", "trend", "several"), [(6, "minute", "minute"), (20, "minute", "hour"), (100, "hour", "hour")])
def test_the_granularity_is_inferred_as_in_each_section(hours, trend, several):
    period = Period(START, START + hours * HOUR)
    assert usage_trend(daily(1), period).granularity == trend
    assert multi_metric_trend(daily(1), period).granularity == several


class ReportedByDay(RecordedUsage):
    """A provider that only knows days, as the warehouse answers: hours and minutes leave them out."""

    def frame(self, period, by=(), granularity=None, where=None):
        found = super().frame(period, by, granularity, where)
        return found.iloc[:0] if granularity in ("minute", "hour") else found


def test_an_inferred_granularity_leaves_no_usage_out():
    usage = ReportedByDay(daily(100, 200).rows)
    found = usage_trend(usage, days(2))
    assert (found.granularity, [point.value for point in found.data]) == ("day", [100, 200])
    assert usage_trend(usage, days(2), "hour").data == ()


def test_a_wrong_metric_or_granularity_says_what_there_is():
    with pytest.raises(UsageError, match=r"'users'; it must be one of tokens, requests, errors, cost, latency"):
        usage_trend(daily(1), days(1), "day", "users")
    with pytest.raises(UsageError, match=r"'users'; it must be one of"):
        multi_metric_trend(daily(1), days(1), ["tokens", "users"])
    with pytest.raises(UsageError, match=r"'fortnight'; it must be one of minute, hour, day, week, month"):
        usage_trend(daily(1), days(1), "fortnight")


def test_metrics_are_paired_by_bucket():
    """Latency is known from the second day on and then falls as tokens rise; by position it seems to rise with them."""
    tokens = UsageTrend(tuple(series(10, 30, 20, 40)), "day", "tokens", analyze_trend([]))
    latency = UsageTrend(tuple(series(None, 10, 20, 5)[1:]), "day", "latency", analyze_trend([]))

    def by_position(x: list[float], y: list[float]) -> float:
        n = min(len(x), len(y))
        x, y = x[:n], y[:n]
        over = n * sum(a * b for a, b in zip(x, y, strict=True)) - sum(x) * sum(y)
        return over / math.sqrt((n * sum(a * a for a in x) - sum(x) ** 2) * (n * sum(b * b for b in y) - sum(y) ** 2))

    assert by_position([10, 30, 20, 40], [10, 20, 5]) > 0.3
    found = correlate(tokens, latency)
    assert found.correlation == pytest.approx(-0.98198, abs=1e-5)
    assert (found.metrics, found.strength) == (("tokens", "latency"), "strong")


def varying_requests(tokens: int) -> RecordedUsage:
    return RecordedUsage.of(usage_row(START + place * DAY, input_tokens=tokens, request_count=place + 1) for place in range(4))


@pytest.mark.parametrize(
    "usage",
    [varying_requests(7), daily(), daily(5), daily(5, 9), daily(0, 0, 0), daily(7, 8, 9), daily(1, 2, 3, request_count=None)],
    ids=["constant tokens", "nothing", "one day", "two days", "zeros", "constant requests", "requests unknown"],
)
def test_an_undefined_correlation_is_unknown_and_weak(usage):
    found = multi_metric_trend(usage, days(5), ["tokens", "requests"], "day").correlations["tokens-requests"]
    assert (found.correlation, found.strength) == (None, "weak")


CASES = {
    "empty": daily(), "one row": daily(5), "zeros": daily(0, 0, 0),
    "unknown": daily(4, 5, 6, request_count=None, error_count=None, estimated_cost=None),
}  # fmt: skip


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("usage", CASES.values(), ids=CASES)
def test_the_edges_have_sensible_answers(usage, granularity):
    found = multi_metric_trend(usage, days(4), METRICS, granularity)
    as_json(found)
    assert all(trend.analysis.direction in ("stable", "increasing") for trend in found.trends.values())
    assert metric_rows(found)


@pytest.mark.parametrize(
    "day", [datetime(2026, 3, 29, tzinfo=UTC), datetime(2026, 10, 25, tzinfo=UTC), datetime(2024, 2, 29, tzinfo=UTC)]
)
def test_every_utc_day_has_24_hours(day):
    usage = RecordedUsage.of(usage_row(day + hour * HOUR) for hour in range(24))
    assert len(usage_trend(usage, days(1, day), "hour").data) == 24
    assert [point.timestamp for point in usage_trend(usage, days(1, day), "day").data] == [day]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 10**15), st.integers(0, 10**12) | st.none()), max_size=20))
def test_no_series_gives_nan_or_a_direction_against_its_line(pairs):
    usage = RecordedUsage.of(
        usage_row(START + place * DAY, input_tokens=tokens, output_tokens=0, request_count=requests, total_latency_ms=requests)
        for place, (tokens, requests) in enumerate(pairs)
    )
    found = multi_metric_trend(usage, days(21), METRICS, "day")
    as_json(found)
    for trend in found.trends.values():
        values = [float(point.value) for point in trend.data if point.value is not None]
        analysis = trend.analysis
        if values:
            assert analysis.trough_value <= analysis.peak_value
            assert min(values) <= float(analysis.average) * (1 + 1e-12) and float(analysis.average) <= max(values) * (1 + 1e-12)
        if analysis.direction == "increasing":
            assert len(values) > 1 and min(values) < max(values)
    assert all(found.correlation is None or -1 <= found.correlation <= 1 for found in found.correlations.values())


def test_the_rows_of_a_trend():
    rows = {(row.metric, row.moment): row.value for row in metric_rows(usage_trend(daily(10, 30), days(2), "day"))}
    assert rows == {
        ("tokens_by_day", START): 10, ("tokens_by_day", START + DAY): 30, ("tokens_change_rate", None): 200.0,
        ("tokens_average", None): 20.0, ("tokens_standard_deviation", None): 10.0, ("tokens_peak", START + DAY): 30,
        ("tokens_trough", START): 10,
    }  # fmt: skip
