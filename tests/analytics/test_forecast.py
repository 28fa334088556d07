"""The month's end: known part and paths of the rest, intervals of the sum, and what happens with little history."""

from __future__ import annotations

import calendar
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analytics.recorded_usage import RecordedUsage, usage_row
from tokentra_dagster.analytics.forecast import analyze_forecast, insight_rows, metric_rows
from tokentra_dagster.analytics.forecast_model import ForecastParameters, daily_paths
from tokentra_dagster.analytics.periods import DAY
from tokentra_dagster.analytics.results import as_json

FEW = ForecastParameters(paths=300)


def daily(
    start: date, days: int, tokens=lambda day: 1_000_000, cost=lambda day: Decimal("12.34"), hour: int = 0
) -> RecordedUsage:
    """One row a day."""
    begin = datetime(start.year, start.month, start.day, hour, tzinfo=UTC)
    moments = [begin + n * DAY for n in range(days)]
    rows = [
        usage_row(moment, input_tokens=tokens(moment), output_tokens=0, estimated_cost=cost(moment))
        for moment in moments
        if tokens(moment) is not None
    ]
    return RecordedUsage.of(rows)


def noisy(moment: datetime) -> int:
    """A weekly rhythm with noise, the same for the same day."""
    weekday = 0.2 if moment.weekday() >= 5 else 1.0
    return round(1_000_000 * weekday * np.random.default_rng(moment.toordinal()).lognormal(0, 0.1))


def ordered(forecast) -> None:
    assert 0 <= forecast.lower_95 <= forecast.lower_80 <= forecast.expected <= forecast.upper_80 <= forecast.upper_95


def test_a_month_with_a_weekly_rhythm_is_met():
    usage = daily(date(2026, 2, 1), 119, noisy)  # February to May
    result = analyze_forecast(usage, datetime(2026, 5, 11, tzinfo=UTC))
    truth = sum(noisy(datetime(2026, 5, day, tzinfo=UTC)) for day in range(1, 32))
    tokens = result.tokens
    assert tokens.method == "exponential_smoothing"
    assert tokens.lower_80 < truth < tokens.upper_80
    assert abs(tokens.expected / truth - 1) < 0.05
    ordered(tokens)
    assert tokens.actual == sum(noisy(datetime(2026, 5, day, tzinfo=UTC)) for day in range(1, 11))
    assert tokens.previous_month == sum(noisy(datetime(2026, 4, day, tzinfo=UTC)) for day in range(1, 31))
    saturday, monday = (next(p for p in tokens.points if p.day == date(2026, 5, day)) for day in (16, 18))
    assert saturday.expected < monday.expected / 3
    assert [p.day for p in tokens.points if p.expected is not None] == [date(2026, 5, day) for day in range(11, 32)]


def test_the_interval_of_the_sum_is_narrower_than_the_sum_of_daily_intervals():
    usage = daily(date(2026, 2, 1), 99, noisy)
    tokens = analyze_forecast(usage, datetime(2026, 5, 11, tzinfo=UTC)).tokens
    coming = [p for p in tokens.points if p.expected is not None]
    assert tokens.upper_80 - tokens.lower_80 < 0.8 * sum(p.upper_80 - p.lower_80 for p in coming)


def test_money_is_exact_where_known_and_in_cents_where_forecast():
    usage = daily(date(2026, 3, 1), 61, cost=lambda day: Decimal("12.345678"))
    cost = analyze_forecast(usage, datetime(2026, 5, 1, tzinfo=UTC) - DAY).cost
    assert cost.actual == Decimal("12.345678") * 29
    assert isinstance(cost.expected, Decimal)
    assert cost.expected == pytest.approx(Decimal("12.345678") * 30, abs=Decimal("0.02"))
    ordered(cost)


def test_the_part_of_today_that_is_left_follows_the_hours_of_other_days():
    """All usage comes at 09:00. At 12:00 nothing is left of today; by the clock half of it would be."""
    usage = daily(date(2026, 4, 1), 30, hour=9)
    tokens = analyze_forecast(usage, datetime(2026, 4, 30, 12, 40, tzinfo=UTC)).tokens
    assert (tokens.actual, tokens.expected) == (30_000_000, 30_000_000)
    before = analyze_forecast(usage, datetime(2026, 4, 30, 8, tzinfo=UTC)).tokens
    assert (before.actual, before.expected) == (29_000_000, 30_000_000)


def test_the_last_complete_hour_of_a_month_belongs_to_it_and_the_next_month_begins_empty():
    usage = daily(date(2026, 4, 1), 61)
    late, early = (
        analyze_forecast(usage, moment).tokens
        for moment in (datetime(2026, 4, 30, 23, tzinfo=UTC), datetime(2026, 5, 1, tzinfo=UTC))
    )
    assert (late.month.start.month, early.month.start.month, early.actual) == (4, 5, 0)
    assert early.expected == pytest.approx(31_000_000, rel=0.01)
    assert early.previous_month == 30_000_000


@pytest.mark.parametrize("year", [2024, 2026])
def test_february_has_as_many_days_as_it_has(year):
    days = calendar.monthrange(year, 2)[1]
    usage = daily(date(year - 1, 12, 1), 70)
    tokens = analyze_forecast(usage, datetime(year, 2, 9, tzinfo=UTC)).tokens
    assert tokens.expected == pytest.approx(days * 1_000_000, rel=0.001)


def test_days_without_usage_are_zeros_since_the_first_usage_and_nothing_before():
    usage = daily(date(2026, 4, 1), 40, lambda day: 1_000_000 if day.day % 2 else None)
    tokens = analyze_forecast(usage, datetime(2026, 5, 11, tzinfo=UTC)).tokens
    assert tokens.history_days == 40
    assert [p.actual for p in tokens.points[:4]] == [1_000_000, 0, 1_000_000, 0]


def test_a_day_that_began_before_the_first_usage_is_no_history():
    usage = daily(date(2026, 4, 1), 40, hour=15)
    assert analyze_forecast(usage, datetime(2026, 5, 11, tzinfo=UTC)).tokens.history_days == 39


@pytest.mark.parametrize(("days", "method"), [(0, "none"), (1, "none"), (6, "none"), (7, "mean_of_days"), (27, "mean_of_days"), (28, "exponential_smoothing")])  # fmt: skip
def test_little_history_takes_a_simpler_method_and_says_so(days, method):
    usage = daily(date(2026, 6, 28) - days * timedelta(days=1) if days else date(2026, 6, 28), days, noisy)
    tokens = analyze_forecast(usage, datetime(2026, 6, 28, tzinfo=UTC)).tokens
    assert tokens.method == method
    if method == "none":
        assert tokens.expected is None
        assert tokens.lower_95 is None
        assert tokens.note == f"Nothing is forecast: a forecast needs 7 whole days of known tokens, and there are {days}."
    else:
        ordered(tokens)
        assert (tokens.note is None) == (method == "exponential_smoothing")


def test_little_history_means_a_wide_interval():
    history = np.array([noisy(datetime(2026, 5, 4, tzinfo=UTC) + n * DAY) for n in range(28)], np.float64)

    def width(days: int) -> float:
        _, paths = daily_paths(history[-days:], 10, 6, ForecastParameters())
        low, high = np.quantile(paths.sum(axis=1), [0.1, 0.9])
        return (high - low) / paths.sum(axis=1).mean()

    assert width(7) > 0.3
    assert width(7) > 1.5 * width(28)


def test_unknown_cost_is_neither_zero_nor_forecast_from_little():
    partly = daily(date(2026, 3, 1), 71, cost=lambda day: None if day.day == 5 else Decimal("10"))
    cost = analyze_forecast(partly, datetime(2026, 5, 11, tzinfo=UTC)).cost
    assert cost.expected == pytest.approx(Decimal(300), abs=Decimal(1))
    assert "3 days of unknown cost" in cost.note
    mostly = daily(date(2026, 3, 1), 71, cost=lambda day: None if day.day > 5 else Decimal("10"))
    none = analyze_forecast(mostly, datetime(2026, 5, 11, tzinfo=UTC))
    assert none.cost.expected is None
    assert "is unknown" in none.cost.note
    assert none.tokens.expected is not None


def test_a_month_heading_far_above_the_last_is_an_insight_and_a_usual_one_is_none():
    growing = daily(date(2026, 3, 1), 80, lambda day: 1_000_000 if day.month < 5 else 2_000_000)
    titles = [row.title for row in insight_rows(analyze_forecast(growing, datetime(2026, 5, 20, tzinfo=UTC)))]
    assert titles[0].startswith("Tokens will end May 1")
    assert titles[0].endswith("% above the month before")
    assert insight_rows(analyze_forecast(daily(date(2026, 3, 1), 80, noisy), datetime(2026, 5, 20, tzinfo=UTC))) == []


SHAPES = {
    "nothing": daily(date(2026, 5, 1), 0),
    "one row": daily(date(2026, 5, 1), 1),
    "one day": daily(date(2026, 5, 10), 1),
    "all zeros": daily(date(2026, 3, 1), 70, lambda day: 0, lambda day: Decimal(0)),
    "no price": daily(date(2026, 3, 1), 70, cost=lambda day: None),
    "constant": daily(date(2026, 3, 1), 70),
    "one huge day": daily(date(2026, 3, 1), 70, lambda day: 10**15 if day.day == 7 else 1),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_usage_gives_a_sensible_answer(shape):
    result = analyze_forecast(SHAPES[shape], datetime(2026, 5, 11, 7, tzinfo=UTC), FEW)
    as_json([result, metric_rows(result), insight_rows(result)])
    for one in (result.tokens, result.cost):
        if one.expected is not None:
            ordered(one)
    if shape == "all zeros":
        assert (result.tokens.expected, result.cost.upper_95) == (0, 0)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.one_of(st.just(0.0), st.floats(0, 1e13)), min_size=0, max_size=90),
    st.integers(0, 31),
    st.integers(0, 6),
)
def test_whatever_the_history_paths_are_finite_and_not_negative(history, days, weekday):
    method, paths = daily_paths(np.array(history), days, weekday, FEW)
    assert paths.shape == (0 if method == "none" else FEW.paths, days)
    assert np.isfinite(paths).all()
    assert (paths >= 0).all()
    _, again = daily_paths(np.array(history), days, weekday, FEW)
    np.testing.assert_array_equal(paths, again)
