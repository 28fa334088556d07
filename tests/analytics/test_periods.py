"""Periods, the ones they are compared with, and JSON under the specification's names (corrections 18, 19, 20, 22)."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokentra_dagster.analytics.periods import GRANULARITIES, Period, floor, infer_granularity, month_of, next_bucket
from tokentra_dagster.analytics.results import as_json, camel, change
from tokentra_dagster.errors import UsageError

MOMENTS = st.datetimes(datetime(2019, 1, 1), datetime(2032, 1, 1), timezones=st.just(UTC))


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("start", "end", "comparison", "expected"),
    [
        # The specification's setMonth makes 1 October of 31 October less a month (correction 19).
        (utc(2026, 10, 31), utc(2026, 11, 1), "mom", (utc(2026, 9, 30), utc(2026, 10, 1))),
        (utc(2026, 3, 31), utc(2026, 4, 1), "mom", (utc(2026, 2, 28), utc(2026, 3, 1))),
        (utc(2024, 2, 29), utc(2024, 3, 1), "yoy", (utc(2023, 2, 28), utc(2023, 3, 1))),
        (utc(2026, 5, 31), utc(2026, 6, 1), "qoq", (utc(2026, 2, 28), utc(2026, 3, 1))),
        (utc(2026, 3, 29), utc(2026, 3, 31), "mom", (utc(2026, 2, 28), utc(2026, 3, 2))),
        (utc(2026, 6, 1), utc(2026, 7, 1), "mom", (utc(2026, 5, 1), utc(2026, 6, 1))),
        (utc(2026, 6, 15), utc(2026, 6, 29), "previous", (utc(2026, 6, 1), utc(2026, 6, 15))),
    ],
)
def test_the_period_to_compare_with(start, end, comparison, expected):
    found = Period(start, end).before(comparison)
    assert (found.start, found.end) == expected


@given(MOMENTS, st.timedeltas(timedelta(hours=1), timedelta(days=400)), st.sampled_from(["previous", "mom", "qoq", "yoy"]))
def test_a_compared_period_is_never_empty_and_starts_earlier(start, length, comparison):
    period = Period(start, start + length)
    found = period.before(comparison)
    assert found.start < period.start
    assert found.end > found.start


@given(MOMENTS, st.timedeltas(timedelta(minutes=1), timedelta(days=3)), st.sampled_from(GRANULARITIES))
def test_buckets_cover_the_period_without_gap_or_overlap(start, length, granularity):
    period = Period(start, start + length)
    buckets = list(period.buckets(granularity))
    assert buckets[0] <= period.start < next_bucket(buckets[0], granularity)
    assert buckets[-1] < period.end <= next_bucket(buckets[-1], granularity)
    assert all(next_bucket(one, granularity) == other for one, other in itertools.pairwise(buckets))
    assert all(floor(bucket, granularity) == bucket for bucket in buckets)


def test_halves_are_halves_of_the_time():
    first, second = Period(utc(2026, 6, 1), utc(2026, 6, 4)).halves()
    assert (first.start, first.end, second.start, second.end) == (
        utc(2026, 6, 1),
        utc(2026, 6, 2, 12),
        utc(2026, 6, 2, 12),
        utc(2026, 6, 4),
    )


def test_the_part_since_the_first_usage():
    period = Period(utc(2026, 6, 1), utc(2026, 6, 4))
    assert period.since(None) == period
    assert period.since(utc(2026, 6, 2)) == Period(utc(2026, 6, 2), utc(2026, 6, 4))
    assert period.since(utc(2026, 6, 4)) is None


def test_months_of_leap_years():
    assert month_of(utc(2024, 2, 10).date()).days == 29
    assert month_of(utc(2026, 12, 31).date()).end == utc(2027, 1, 1)


@pytest.mark.parametrize(
    ("days", "granularity"),
    [(1, "minute"), (1.1, "hour"), (7, "hour"), (8, "day"), (90, "day"), (91, "week"), (365, "week"), (366, "month")],
)
def test_the_granularity_follows_the_length(days, granularity):
    assert infer_granularity(Period(utc(2026, 1, 1), utc(2026, 1, 1) + timedelta(days=days))) == granularity


@pytest.mark.parametrize(
    ("start", "end", "says"),
    [
        (datetime(2026, 6, 1), utc(2026, 6, 2), "without a time zone"),
        (utc(2026, 6, 2), utc(2026, 6, 2), "must be later"),
        (utc(2026, 6, 2), utc(2026, 6, 1), "must be later"),
    ],
)
def test_an_impossible_period_says_why(start, end, says):
    with pytest.raises(UsageError, match=says):
        Period(start, end)


def test_an_unknown_granularity_or_comparison_lists_what_there_is():
    with pytest.raises(UsageError, match="minute, hour, day, week, month"):
        floor(utc(2026, 6, 1), "fortnight")
    with pytest.raises(UsageError, match="previous, mom, qoq, yoy"):
        Period(utc(2026, 6, 1), utc(2026, 6, 2)).before("wow")


@pytest.mark.parametrize(
    ("current", "previous", "lower_is_better", "expected"),
    [
        (110, 100, False, (10, 10.0, "up", True)),
        (110, 100, True, (10, 10.0, "up", False)),
        (90, 100, True, (-10, -10.0, "down", True)),
        (100.5, 100, False, (0.5, 0.5, "flat", False)),
        (0, 0, False, (0, None, "flat", False)),
        # A change from zero has no percentage; the specification says 100 (correction 18).
        (5, 0, False, (5, None, "up", True)),
        (5, None, False, (None, None, "flat", False)),
        (Decimal("1.5"), Decimal("1"), False, (Decimal("0.5"), 50.0, "up", True)),
    ],
)
def test_how_a_figure_changed(current, previous, lower_is_better, expected):
    found = change(current, previous, lower_is_better=lower_is_better)
    assert (found.absolute, found.percentage, found.direction, found.is_improvement) == expected


def test_json_has_the_specifications_names():
    assert [camel(name) for name in ("total_tokens", "p50_latency_ms", "cost_per_1k_tokens")] == [
        "totalTokens",
        "p50LatencyMs",
        "costPer1kTokens",
    ]
    found = as_json(
        {"gpt_4o": change(Decimal("2"), Decimal("1")), "when": utc(2026, 6, 1), "of": Period(utc(2026, 6, 1), utc(2026, 6, 2))}
    )
    assert found == {
        "gpt_4o": {"absolute": 1.0, "percentage": 100.0, "direction": "up", "isImprovement": True},
        "when": "2026-06-01T00:00:00Z",
        "of": {"startDate": "2026-06-01T00:00:00Z", "endDate": "2026-06-02T00:00:00Z"},
    }
    with pytest.raises(ValueError, match="no number"):
        as_json(float("nan"))
