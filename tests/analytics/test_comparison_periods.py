"""Which periods the four comparison types compare (section 11; corrections 19, 20)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokentra_dagster.analytics.comparison_periods import COMPARISON_TYPES, DateRange, comparison_periods
from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.errors import UsageError


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "now", "current", "previous"),
    [
        ("period_over_period", utc(2026, 6, 30, 6), (utc(2026, 5, 31, 6), utc(2026, 6, 30, 6)), (utc(2026, 5, 1, 6), utc(2026, 5, 31, 6))),
        ("year_over_year", utc(2026, 6, 14, 6), (utc(2026, 6, 1), utc(2026, 6, 14, 6)), (utc(2025, 6, 1), utc(2025, 7, 1))),
        ("year_over_year", utc(2024, 2, 29, 6), (utc(2024, 2, 1), utc(2024, 2, 29, 6)), (utc(2023, 2, 1), utc(2023, 3, 1))),
        ("year_over_year", utc(2025, 2, 10), (utc(2025, 2, 1), utc(2025, 2, 10)), (utc(2024, 2, 1), utc(2024, 3, 1))),
        ("year_over_year", utc(2026, 12, 31), (utc(2026, 12, 1), utc(2026, 12, 31)), (utc(2025, 12, 1), utc(2026, 1, 1))),
        # Nothing of July has passed yet: this month is June, and not an empty period.
        ("year_over_year", utc(2026, 7, 1), (utc(2026, 6, 1), utc(2026, 7, 1)), (utc(2025, 6, 1), utc(2025, 7, 1))),
        ("benchmark", utc(2026, 6, 14), (utc(2026, 6, 1), utc(2026, 6, 14)), (utc(2026, 1, 1), utc(2026, 2, 1))),
        ("benchmark", utc(2026, 1, 1), (utc(2025, 12, 1), utc(2026, 1, 1)), (utc(2025, 1, 1), utc(2025, 2, 1))),
    ],
)  # fmt: skip
def test_each_type_finds_its_periods(kind, now, current, previous):
    found = comparison_periods(kind, now)
    assert (found.current, found.previous) == (DateRange(*current), DateRange(*previous))


def test_the_month_a_year_ago_is_whole():
    """Day 0 of the next month is the last day's midnight in the specification, so that day is lost (corrections 19, 20)."""

    def specification(now: datetime) -> datetime:
        following = utc(now.year - 1 + now.month // 12, now.month % 12 + 1, 1)
        return following - timedelta(days=1)

    now, on_the_last_day = utc(2026, 6, 14), utc(2025, 6, 30, 15)
    found = comparison_periods("year_over_year", now)
    assert not on_the_last_day < specification(now)
    assert found.previous.start <= on_the_last_day < found.previous.end


def test_only_the_same_part_of_the_month_a_year_ago_when_asked():
    found = comparison_periods("year_over_year", utc(2026, 6, 14, 6), same_part=True)
    assert found.previous == DateRange(utc(2025, 6, 1), utc(2025, 6, 14, 6))
    assert found.alike
    leap = comparison_periods("year_over_year", utc(2024, 2, 29, 6), same_part=True)
    assert leap.previous == DateRange(utc(2023, 2, 1), utc(2023, 2, 28, 6))


def test_given_periods_are_used():
    june, may = Period(utc(2026, 6, 1), utc(2026, 7, 1)), Period(utc(2026, 5, 1), utc(2026, 6, 1))
    now = utc(2026, 8, 1)
    assert comparison_periods("custom", now, june, may).previous.period == may
    assert comparison_periods("benchmark", now, june, may).previous.period == may
    assert comparison_periods("period_over_period", now, june).previous == DateRange(utc(2026, 5, 2), utc(2026, 6, 1))
    assert comparison_periods("year_over_year", now, june).previous == DateRange(utc(2025, 6, 1), utc(2025, 7, 1))


def test_months_are_alike_and_a_part_of_one_is_not():
    june, may = Period(utc(2026, 6, 1), utc(2026, 7, 1)), Period(utc(2026, 5, 1), utc(2026, 6, 1))
    assert comparison_periods("custom", utc(2026, 8, 1), june, may).alike
    assert not comparison_periods("year_over_year", utc(2026, 6, 14)).alike
    assert not comparison_periods("year_over_year", utc(2026, 6, 14)).overlap
    assert comparison_periods("benchmark", utc(2026, 1, 14)).overlap


@given(
    st.datetimes(datetime(2019, 1, 1), datetime(2032, 1, 1), timezones=st.just(UTC)),
    st.sampled_from([kind for kind in COMPARISON_TYPES if kind != "custom"]),
)
def test_every_moment_gives_two_periods_and_none_reaches_past_it(now, kind):
    found = comparison_periods(kind, now)
    assert found.current.end == now
    assert found.current.period.length > timedelta(0)
    assert found.previous.start < found.previous.end
    assert found.overlap == (kind == "benchmark" and found.current.start.month == 1)


@pytest.mark.parametrize(
    ("kind", "arguments", "says"),
    [
        ("month_over_month", {}, "period_over_period, year_over_year, custom, benchmark"),
        ("custom", {}, "current and previous period is missing"),
        ("custom", {"current": Period(utc(2026, 6, 1), utc(2026, 6, 2))}, "the previous period is missing"),
        ("year_over_year", {"previous": Period(utc(2026, 6, 1), utc(2026, 6, 2))}, "finds its previous period itself"),
    ],
)
def test_an_impossible_comparison_says_why(kind, arguments, says):
    with pytest.raises(UsageError, match=says):
        comparison_periods(kind, utc(2026, 7, 1), **arguments)


def test_a_moment_without_a_zone_is_refused():
    with pytest.raises(UsageError, match="without a time zone"):
        comparison_periods("period_over_period", datetime(2026, 7, 1))
