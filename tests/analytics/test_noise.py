"""Telling a change from noise: what history says of a figure's usual changes."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokentra_dagster.analytics.noise import (
    NoiseParameters,
    UsualChange,
    earlier_comparisons,
    earlier_weeks,
    robust_deviation,
    usual_change,
    usual_changes,
)
from tokentra_dagster.analytics.periods import Period

BOUNDARY = datetime(2026, 6, 15, tzinfo=UTC)


def around(days: int) -> tuple[Period, Period]:
    """A current and a previous period of so many days that follow each other."""
    length = timedelta(days=days)
    return Period(BOUNDARY, BOUNDARY + length), Period(BOUNDARY - length, BOUNDARY)


def ago(days: int) -> datetime:
    return BOUNDARY - timedelta(days=days)


def test_earlier_comparisons_are_the_same_one_on_the_same_weekdays():
    current, previous = around(1)
    found = earlier_comparisons(current, previous, 3, ago(1_000))
    assert [(one.start, other.start) for one, other in found] == [(ago(7), ago(8)), (ago(14), ago(15)), (ago(21), ago(22))]
    assert [one.start for one, _ in earlier_comparisons(*around(14), 2, ago(1_000))] == [ago(14), ago(28)]
    assert [one.start for one, _ in earlier_comparisons(*around(30), 2, ago(1_000))] == [ago(35), ago(70)]


def test_what_is_before_the_first_usage_is_no_history():
    current, previous = around(7)
    assert len(earlier_comparisons(current, previous, 12, ago(21))) == 2
    assert len(earlier_comparisons(current, previous, 12, ago(20))) == 1
    assert earlier_comparisons(current, previous, 12, None) == []
    weeks = [Period(ago(end + 7), ago(end)) for end in (0, 7, 14)]
    assert earlier_weeks(*around(30), 12, ago(27)) == [(weeks[0], weeks[1]), (weeks[1], weeks[2])]


def test_weeks_stand_in_only_for_longer_periods_that_follow_each_other():
    assert earlier_weeks(*around(7), 12, ago(1_000)) == []
    current, _ = around(30)
    assert earlier_weeks(current, Period(ago(365), ago(335)), 12, ago(1_000)) == []


def test_one_past_accident_does_not_widen_what_is_usual():
    calm = [(101, 100), (99, 100), (102, 100), (98, 100), (100, 100), (101, 100), (99, 100)]
    assert usual_change([*calm, (1_000, 100)], "same_comparison").is_beyond(120, 100)
    logs = [math.log(one / other) for one, other in [*calm, (1_000, 100)]]
    mean = sum(logs) / len(logs)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in logs) / (len(logs) - 1))
    assert abs(math.log(1.2) - mean) < 3 * deviation, "mean and standard deviation would not have noticed"


def test_steady_growth_is_usual_and_standing_still_is_not():
    growing = [(110 * factor, 100) for factor in (1, 1.01, 0.99, 1.005, 0.995, 1, 1.01)]
    found = usual_change(growing, "same_comparison")
    assert found.change_pct == pytest.approx(10)
    assert found.is_beyond(110, 100) is False
    assert found.is_beyond(100, 100) is True


def test_a_history_without_change_leaves_a_few_percent_as_usual():
    found = usual_change([(100, 100)] * 8, "same_comparison")
    assert (found.change_pct, found.variation_pct) == (0, pytest.approx(1))
    assert found.is_beyond(102, 100) is False
    assert found.is_beyond(104, 100) is True


def test_too_little_history_says_nothing():
    found = usual_change([(1, 1)] * 5 + [(None, 1), (1, None), (0, 1), (1, 0)], "same_comparison")
    assert found == UsualChange("thresholds", 5)
    assert found.is_beyond(200, 100) is None


def test_a_change_from_zero_or_of_unknowns_is_unknown():
    found = usual_change([(100, 100)] * 8, "same_comparison")
    assert [found.is_beyond(*sides) for sides in ((5, 0), (None, 5), (5, None))] == [None, None, None]
    assert found.is_beyond(0, 100) is True


def test_the_robust_deviation_is_that_of_a_normal_distribution():
    chance = random.Random(11)
    for count in (6, 12, 100):
        found = [robust_deviation([chance.gauss(5, 2) for _ in range(count)]) for _ in range(2_000)]
        assert sum(found) / len(found) == pytest.approx(2, rel=0.08)


def test_each_period_is_read_once_and_weeks_stand_in_where_needed():
    asked: list[Period] = []

    def read(period: Period) -> dict[str, float | None]:
        asked.append(period)
        return {"tokens": period.days * 10, "latency": None}

    found = usual_changes(read, *around(30), ago(120))
    assert (found["tokens"].basis, found["tokens"].comparisons) == ("weekly", 12)
    assert found["latency"] == UsualChange()
    assert len(asked) == len(set(asked)) == 13
    asked.clear()
    assert usual_changes(read, *around(30), ago(600))["tokens"].basis == "same_comparison"
    assert usual_changes(read, *around(30), ago(40)) == {}
    assert usual_changes(read, *around(30), None) == {}
    assert usual_changes(read, *around(30), ago(600), NoiseParameters(history_steps=0)) == {}


def _weeks(chance: random.Random, weeks: int, spread: float) -> list[float]:
    """Tokens of weeks of independent days, weekends quieter."""
    return [sum((0.3 if day > 4 else 1) * math.exp(chance.gauss(0, spread)) for day in range(7)) for _ in range(weeks)]


@pytest.mark.parametrize("spread", [0.15, 0.5])
@pytest.mark.parametrize("history", [6, 12])
def test_noise_is_rarely_taken_for_a_change_where_the_threshold_nearly_always_does(spread, history):
    """1,000 weeks against the week before, nothing but noise: the threshold of 5 % calls most of them significant."""
    chance, false_alarms, by_threshold = random.Random(7), 0, 0
    for _ in range(1_000):
        weeks = _weeks(chance, history + 2, spread)
        pairs = [(weeks[place + 1], weeks[place]) for place in range(history)]
        false_alarms += usual_change(pairs, "same_comparison").is_beyond(weeks[-1], weeks[-2]) is True
        by_threshold += abs(weeks[-1] / weeks[-2] - 1) >= 0.05
    assert by_threshold > 500
    assert false_alarms < 80


def test_a_doubling_is_found_in_ordinary_noise():
    chance, found = random.Random(7), 0
    for _ in range(500):
        weeks = _weeks(chance, 14, 0.15)
        pairs = [(weeks[place + 1], weeks[place]) for place in range(12)]
        found += usual_change(pairs, "same_comparison").is_beyond(2 * weeks[-1], weeks[-2]) is True
    assert found > 450


@given(st.lists(st.tuples(*[st.one_of(st.none(), st.just(0), st.floats(1e-9, 1e15))] * 2), max_size=20))
def test_what_is_usual_is_finite_and_in_order(pairs):
    found = usual_change(pairs, "weekly")
    if found.basis == "thresholds":
        assert found.low_pct is None
    else:
        assert -100 <= found.low_pct <= found.change_pct <= found.high_pct < math.inf
