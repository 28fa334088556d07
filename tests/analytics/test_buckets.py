"""Hours and days without gaps, and averages over them (corrections 21 and 47)."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analytics.recorded_usage import RecordedUsage, usage_row
from tokentra_dagster.analytics.buckets import averages, filled, local_days, read_usage, time_zone_named, trend_of
from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.errors import UsageError

BERLIN = ZoneInfo("Europe/Berlin")
ZONES = ("UTC", "Europe/Berlin", "Asia/Kolkata", "America/New_York", "Australia/Lord_Howe", "Africa/Cairo", "Pacific/Apia")


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type]


def usage_at(*moments: datetime, tokens: int | None = 10) -> RecordedUsage:
    return RecordedUsage.of(usage_row(moment, total_tokens=tokens) for moment in moments)


def test_gaps_are_zero_from_the_first_usage_to_the_end_and_before_it_is_nothing():
    period = Period(utc(2026, 6, 1), utc(2026, 6, 1, 6))
    usage = usage_at(utc(2026, 6, 1, 2), utc(2026, 6, 1, 4, 30))
    found = filled(usage.frame(period, granularity="hour"), period, usage.first_usage(), "hour")
    assert [moment.hour for moment in found["moment"]] == [2, 3, 4, 5]
    assert list(found["total_tokens"]) == [10, 0, 10, 0]
    assert list(found["used"]) == [True, False, True, False]


def test_what_is_unknown_stays_unknown_beside_zeros():
    period = Period(utc(2026, 6, 1), utc(2026, 6, 1, 3))
    usage = RecordedUsage.of([usage_row(utc(2026, 6, 1), request_count=None)])
    found = filled(usage.frame(period, granularity="hour"), period, usage.first_usage(), "hour")
    assert found["request_count"].isna().tolist() == [True, False, False]
    assert found["request_count"].iloc[1:].tolist() == [0, 0]


def test_a_period_before_the_first_usage_has_no_buckets():
    period = Period(utc(2026, 5, 1), utc(2026, 5, 2))
    usage = usage_at(utc(2026, 6, 1))
    assert filled(usage.frame(period, granularity="hour"), period, usage.first_usage(), "hour").empty


def test_a_bucket_says_how_much_of_it_lies_in_the_period():
    period = Period(utc(2026, 6, 1, 18), utc(2026, 6, 3, 6))
    usage = usage_at(utc(2026, 5, 1))
    found = filled(usage.frame(period, granularity="day"), period, usage.first_usage(), "day")
    assert found["share"].tolist() == [0.25, 1.0, 0.25]


@pytest.mark.parametrize(("day", "hours"), [(date(2026, 3, 29), 23), (date(2026, 10, 25), 25), (date(2026, 6, 1), 24)])
def test_a_local_day_has_the_hours_that_its_clock_shows(day, hours):
    start = datetime(day.year, day.month, day.day, tzinfo=BERLIN)
    period = Period(start, datetime(day.year, day.month, day.day + 1, tzinfo=BERLIN))
    usage = usage_at(*(period.start + timedelta(hours=hour) for hour in range(hours)))
    found = local_days(read_usage(usage, period, ZoneInfo("UTC")).hours, period, BERLIN)
    assert found[["date", "total_tokens", "share"]].values.tolist() == [[day, hours * 10, 1.0]]


def test_two_halves_of_a_weekday_are_one_day():
    # Seven days that begin on a Wednesday at noon hold one Wednesday, in two parts. Per date it would be half as busy as it is.
    period = Period(utc(2026, 6, 3, 12), utc(2026, 6, 10, 12))
    usage = usage_at(*(period.start + timedelta(hours=hour) for hour in range(7 * 24)))
    days = read_usage(usage, period, ZoneInfo("UTC")).days
    found = averages(days, pd.to_datetime(days["date"]).dt.day_name(), "total_tokens")
    assert found["mean"].to_dict() == pytest.approx(dict.fromkeys(found.index, 240.0))
    assert found.loc["Wednesday", "occurrences"] == 2


def test_a_part_of_a_day_alone_is_not_blown_up_to_a_day():
    period = Period(utc(2026, 6, 3, 12), utc(2026, 6, 3, 13))
    days = read_usage(usage_at(period.start), period, ZoneInfo("UTC")).days
    assert averages(days, days["date"], "total_tokens")["mean"].tolist() == [10.0]


def test_zeros_of_gaps_do_not_answer_for_usage_that_is_unknown():
    period = Period(utc(2026, 6, 1), utc(2026, 6, 3))
    usage = usage_at(utc(2026, 6, 1, 9), utc(2026, 6, 2, 9), tokens=None)
    found = read_usage(usage, period, BERLIN)
    by_hour = averages(found.hours, found.hours["moment"].dt.hour, "total_tokens")
    assert pd.isna(by_hour.loc[9, "mean"])
    assert by_hour.loc[10, "mean"] == 0
    assert found.days.set_index("date")["total_tokens"].isna().to_dict() == {
        date(2026, 6, 1): True,
        date(2026, 6, 2): True,
        date(2026, 6, 3): False,
    }


@pytest.mark.parametrize("name", ["Mars/Olympus", "", "../etc/passwd", "/etc/passwd", "Europe", "CEST+"])
def test_a_time_zone_that_does_not_exist_says_what_is_allowed(name):
    with pytest.raises(UsageError, match="must be an IANA name"):
        time_zone_named(name)


@given(
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 10**12)), max_size=20),
    st.integers(0, 1500),
    st.integers(1, 500),
    st.sampled_from(ZONES),
)
@settings(max_examples=60, deadline=None)
def test_buckets_hold_all_usage_of_the_period_in_any_time_zone(rows, start, length, zone):
    """March to May, so that clocks change in most of these zones: usage is neither lost nor counted twice."""
    origin = utc(2026, 3, 1)
    usage = RecordedUsage.of(usage_row(origin + timedelta(hours=hour, minutes=hour % 60), total_tokens=n) for hour, n in rows)
    period = Period(origin + timedelta(hours=start, minutes=17), origin + timedelta(hours=start + length))
    found = read_usage(usage, period, ZoneInfo(zone))
    expected = int(usage.within(period)["total_tokens"].sum())
    assert found.total_tokens == expected
    assert found.hours["total_tokens"].sum() == found.days["total_tokens"].sum() == expected
    assert found.tokens_without_hour == 0
    assert found.hours["moment"].is_unique
    assert found.days["date"].is_unique
    assert found.hours["share"].between(0, 1).all()
    assert found.days["share"].between(0, 1).all()


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (100.0, 110.0, ("increasing", 10.0)),
        (100.0, 90.0, ("decreasing", -10.0)),
        (100.0, 104.9, ("stable", pytest.approx(4.9))),
        (100.0, 105.0, ("increasing", 5.0)),
        (100.0, 0.0, ("decreasing", -100.0)),
        # The specification says 0 and "stable" for a change from zero (correction 18).
        (0.0, 5.0, ("increasing", None)),
        (0.0, 0.0, ("stable", None)),
        (None, 5.0, ("stable", None)),
        (5.0, None, ("stable", None)),
    ],
)
def test_where_usage_goes(first, second, expected):
    assert trend_of(first, second, 5.0) == expected
