"""When an export is due and of which period: at changes of the clock, ends of months and quarters, after downtime (corrections 19, 40)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokentra_dagster.errors import UsageError
from tokentra_dagster.exports.scheduled.due import (
    RELATIVE_PERIODS,
    caught_up,
    check_schedule,
    due_times,
    is_due_time,
    last_due,
    next_due,
    period_of,
    run_id,
    zone_named,
)

BERLIN = zone_named("Europe/Berlin")
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Africa/Cairo", "Australia/Lord_Howe", "Pacific/Apia")
SCHEDULES = ("0 6 * * *", "30 2 * * *", "0 0 1 * *", "15 * * * *", "0 2,3 * * 1-5", "0 23 L * *", "30 1-4 * * *")


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def due(schedule: str, first: str, last: str) -> list[str]:
    return [f"{moment:%d %H:%M}" for moment in due_times(schedule, BERLIN, utc(first), utc(last))]


def test_a_time_that_the_clock_jumps_over_is_due_when_it_has_jumped_and_one_that_comes_twice_is_due_once():
    spring, autumn = ("2026-03-28T12:00", "2026-03-30T12:00"), ("2026-10-24T12:00", "2026-10-26T12:00")
    assert due("30 2 * * *", *spring) == ["29 01:00", "30 00:30"]
    assert due("30 2 * * *", *autumn) == ["25 00:30", "26 01:30"]
    assert due("0 2,3 * * *", *spring) == ["29 01:00", "30 00:00", "30 01:00"], "what falls together is due once"
    assert len(due("0 * * * *", "2026-10-24T22:00", "2026-10-25T23:00")) == 25, "every real hour of the day of 25 hours"
    assert len(due("0 * * * *", "2026-03-28T23:00", "2026-03-29T22:00")) == 23


def test_the_last_day_of_every_month_and_the_first_of_every_quarter():
    assert due("0 6 L * *", "2026-01-15T00:00", "2026-05-01T00:00") == ["31 05:00", "28 05:00", "31 04:00", "30 04:00"]
    assert due("0 6 1 1,4,7,10 *", "2026-01-15T00:00", "2026-12-01T00:00") == ["01 04:00", "01 04:00", "01 04:00"]


@given(st.sampled_from(SCHEDULES), st.sampled_from(ZONES), st.integers(0, 525_600), st.integers(0, 20_000))
def test_due_times_are_the_same_however_often_one_looks(schedule: str, zone: str, minute: int, wait: int):
    """Looked at in two parts they are those of the whole: none is lost at the seam, none comes twice."""
    start = utc("2026-01-01T00:00") + timedelta(minutes=minute)
    end, middle = start + timedelta(days=14), start + timedelta(minutes=wait)
    place = zone_named(zone)
    whole = due_times(schedule, place, start, end)
    assert due_times(schedule, place, start, middle) + due_times(schedule, place, middle, end) == whole
    assert all(start < moment <= end for moment in whole) and all(a < b for a, b in pairwise(whole))
    for moment in whole[:3]:
        assert is_due_time(schedule, place, moment) and last_due(schedule, place, moment) == moment
        assert next_due(schedule, place, moment - timedelta(seconds=1)) == [moment]


@given(st.sampled_from(RELATIVE_PERIODS), st.sampled_from(ZONES), st.integers(0, 525_600))
def test_a_period_ends_at_or_before_its_due_time_and_the_next_one_begins_where_it_ends(relative: str, zone: str, minute: int):
    place = zone_named(zone)
    moment = utc("2026-01-01T00:00") + timedelta(minutes=minute)
    period = period_of(relative, moment, place)
    assert period.end <= moment
    assert period_of(relative, period.end, place) == period, "due at midnight it is the same period"
    step = {"last_day": 1, "last_week": 7, "last_month": 32, "last_quarter": 95}[relative]
    after = period_of(relative, period.end + timedelta(days=step, hours=6 if step < 8 else 0), place)
    assert after.start == period.end, "not an hour is in none or in both of two periods that follow each other"


@pytest.mark.parametrize(
    ("relative", "due_at", "start", "end"),
    [
        ("last_day", "2026-03-30T05:00", "2026-03-28T23:00", "2026-03-29T22:00"),  # 23 hours
        ("last_day", "2026-10-26T05:00", "2026-10-24T22:00", "2026-10-25T23:00"),  # 25 hours
        ("last_day", "2026-06-30T22:30", "2026-06-29T22:00", "2026-06-30T22:00"),  # 1 July in Berlin
        ("last_week", "2026-06-10T05:00", "2026-06-02T22:00", "2026-06-09T22:00"),
        ("last_month", "2026-03-31T05:00", "2026-01-31T23:00", "2026-02-28T23:00"),  # correction 19: no 31 February
        ("last_month", "2026-06-30T22:30", "2026-05-31T22:00", "2026-06-30T22:00"),
        ("last_month", "2026-01-01T05:00", "2025-11-30T23:00", "2025-12-31T23:00"),
        ("last_quarter", "2026-05-31T05:00", "2025-12-31T23:00", "2026-03-31T22:00"),
        ("last_quarter", "2026-01-01T05:00", "2025-09-30T22:00", "2025-12-31T23:00"),
    ],
)
def test_the_period_is_of_whole_local_days(relative: str, due_at: str, start: str, end: str):
    period = period_of(relative, utc(due_at), BERLIN)
    assert (period.start, period.end) == (utc(start), utc(end))


def test_a_midnight_that_does_not_exist_is_the_moment_of_the_jump():
    cairo = zone_named("Africa/Cairo")  # On 24 April 2026 the clock goes from 00:00 to 01:00.
    before, after = (period_of("last_day", utc(f"2026-04-{day}T12:00"), cairo) for day in (24, 25))
    assert before.end == after.start == utc("2026-04-23T22:00") and after.hours == 23


def test_catching_up_runs_each_or_the_latest_and_leaves_the_rest_out():
    missed = [utc(f"2026-06-{day:02}T06:00") for day in range(1, 11)]
    assert caught_up(missed, "all") == (missed, [])
    assert caught_up(missed, "latest") == (missed[-1:], missed[:-1])
    assert caught_up(missed, "all", most=3) == (missed[-3:], missed[:-3])
    assert caught_up([], "latest") == ([], [])


def test_the_id_is_of_export_and_due_time_in_any_zone():
    one = run_id(UUID(int=1), utc("2026-06-01T06:00"))
    assert one == run_id(UUID(int=1), utc("2026-06-01T06:00").astimezone(BERLIN)) and one.version == 5
    assert len({one, run_id(UUID(int=2), utc("2026-06-01T06:00")), run_id(UUID(int=1), utc("2026-06-02T06:00"))}) == 3


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ("0 6 1 *", "five fields"),
        ("0 0 6 1 * *", "five fields"),
        ("61 * * * *", "Bad minute"),
        ("0 0 30 2 *", "Bad day-of-month"),
        ("*/5 * * * *", "more than once an hour"),
        ("0,59 * * * *", "more than once an hour"),
        ("", "five fields"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(schedule: str, words: str):
    with pytest.raises(UsageError, match=words):
        check_schedule(schedule)


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../etc/passwd"])
def test_a_zone_that_there_is_not_is_refused(zone: str):
    with pytest.raises(UsageError, match="Europe/Berlin"):
        zone_named(zone)
