"""Seasonal analysis beside the specification's own way (section 7; corrections 19, 21, 25, 47)."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta

import pytest

from tests.analytics.golden import assert_equal
from tests.analytics.recorded_usage import RecordedUsage, usage_row
from tokentra_dagster.analytics.periods import DAY, Period
from tokentra_dagster.analytics.results import as_json
from tokentra_dagster.analytics.seasonality import (
    SeasonalParameters,
    analyze_seasonality,
    metric_rows,
    recommendation_rows,
    seasonal_period,
    windows,
)
from tokentra_dagster.errors import UsageError

HOUR = timedelta(hours=1)
START = datetime(2026, 6, 1, tzinfo=UTC)
FORTNIGHT = Period(START, START + 14 * DAY)


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type]


def busy_at(period: Period, hours: set[int], busy: int, calm: int = 10) -> RecordedUsage:
    """A row for each hour of the period."""
    moments = (period.start + n * HOUR for n in range(round(period.hours)))
    return RecordedUsage.of(usage_row(moment, total_tokens=busy if moment.hour in hours else calm) for moment in moments)


def by_weekday(tokens: dict[int, int], weeks: int = 2) -> RecordedUsage:
    """A row for each day of the weeks from Monday, 1 June; `tokens` by day, 0 for Sunday, and 100 where nothing is said."""
    days = (START + n * DAY for n in range(7 * weeks))
    return RecordedUsage.of(usage_row(day, total_tokens=tokens.get(day.isoweekday() % 7, 100)) for day in days)


def average_per_row(usage: RecordedUsage, key) -> dict[object, float]:
    """The specification's seasonalities: the mean over rollup rows."""
    groups = defaultdict(list)
    for row in usage.rows.to_dict("records"):
        groups[key(row["moment"])].append(row["total_tokens"])
    return {group: sum(tokens) / len(tokens) for group, tokens in groups.items()}


def peak_hours_from_least_to_greatest(hourly) -> str:
    """The specification's `identifyPeakPeriods`, its window of hours."""
    busy = [hour.period for hour in hourly if hour.index_vs_average > 120]
    return f"{min(busy):02}:00 - {max(busy):02}:59 UTC"


def quiet_days_among_the_peaks(peaks) -> list[str]:
    """The specification's `generateSeasonalRecommendations`."""
    return [peak.label for peak in peaks if peak.type == "daily" and peak.intensity < 80]


def test_the_answers_are_the_specifications_where_it_is_right(golden):
    expected = golden.answer("seasonal")
    period = seasonal_period(datetime.fromisoformat(golden.case["now"]))
    assert_equal(as_json(analyze_seasonality(golden.usage, period)), expected)


@pytest.mark.parametrize(
    ("now", "months", "start"),
    [
        # JavaScript's setMonth makes 3 March of 31 May less three months (correction 19).
        (utc(2026, 5, 31, 12), 3, utc(2026, 2, 28, 12)),
        (utc(2028, 5, 31), 3, utc(2028, 2, 29)),
        (utc(2027, 1, 15), 3, utc(2026, 10, 15)),
        (utc(2026, 6, 15), 12, utc(2025, 6, 15)),
    ],
)
def test_the_months_before_now_are_calendar_months(now, months, start):
    assert seasonal_period(now, months) == Period(start, now)


def test_no_month_is_too_few():
    with pytest.raises(UsageError, match="looks back 0 months; it must be 1 or more"):
        seasonal_period(START, 0)


def test_averages_are_per_hour_and_day_with_gaps_as_zero():
    # Two models at 9 o'clock of the first Monday, and nothing else.
    usage = RecordedUsage.of(usage_row(START + 9 * HOUR, model=model, total_tokens=70) for model in ("a", "b"))
    found = analyze_seasonality(usage, FORTNIGHT)
    assert average_per_row(usage, lambda moment: moment.hour)[9] == 70
    assert average_per_row(usage, lambda moment: moment.isoweekday() % 7)[1] == 70
    nine, monday = found.hourly_seasonality[9], found.daily_seasonality[1]
    assert (nine.avg_value, nine.occurrences) == (10, 14)
    assert (monday.avg_value, monday.occurrences) == (70, 2)
    # 140 on one Monday and 0 on the other.
    assert monday.variance == 70**2
    assert monday.index_vs_average == pytest.approx(700)
    assert [week.avg_value for week in found.weekly_seasonality] == [20, 0]


def test_the_turn_of_the_year_keeps_its_weeks_apart_and_in_order():
    period = Period(utc(2026, 12, 28), utc(2027, 1, 11))
    usage = RecordedUsage.of(
        usage_row(period.start + n * DAY, total_tokens=tokens) for n, tokens in enumerate([100] * 7 + [300] * 7)
    )
    by_number = average_per_row(usage, lambda moment: moment.isocalendar().week)
    assert list(dict(sorted(by_number.items()))) == [1, 53]
    found = analyze_seasonality(usage, period).weekly_seasonality
    assert [(week.period, week.label, week.avg_value) for week in found] == [(53, "2026-W53", 100), (1, "2027-W01", 300)]
    assert [week.index_vs_average for week in found] == [50, 150]


def test_the_same_week_of_two_years_is_two_weeks():
    period = Period(utc(2026, 1, 1), utc(2027, 1, 5))
    usage = RecordedUsage.of([usage_row(utc(2026, 1, 1), total_tokens=10), usage_row(utc(2027, 1, 4), total_tokens=30)])
    assert average_per_row(usage, lambda moment: moment.isocalendar().week) == {1: 20}
    found = {week.label: week for week in analyze_seasonality(usage, period).weekly_seasonality}
    assert len(found) == 54
    # Four days of the first week are in the period, one of the last.
    assert (found["2026-W01"].avg_value, found["2026-W01"].occurrences) == (2.5, 4)
    assert (found["2027-W01"].avg_value, found["2027-W01"].occurrences) == (30, 1)


def test_a_window_of_busy_hours_may_pass_midnight():
    found = analyze_seasonality(busy_at(FORTNIGHT, {22, 23, 0, 1}, 100), FORTNIGHT)
    assert peak_hours_from_least_to_greatest(found.hourly_seasonality) == "00:00 - 23:59 UTC"
    assert [(peak.type, peak.label) for peak in found.peak_periods] == [("hourly", "22:00 - 01:59 UTC")]
    # Four hours of 100 and twenty of 10: an average of 25.
    assert found.peak_periods[0].intensity == pytest.approx(400)
    assert found.recommendations == ("Consider pre-warming caches before 22:00 - 01:59 UTC when usage is 400% of average",)


def test_two_busy_windows_are_two_peaks():
    found = analyze_seasonality(busy_at(FORTNIGHT, {9, 10, 20}, 50), FORTNIGHT)
    assert peak_hours_from_least_to_greatest(found.hourly_seasonality) == "09:00 - 20:59 UTC"
    assert {peak.label for peak in found.peak_periods} == {"09:00 - 10:59 UTC", "20:00 - 20:59 UTC"}


@pytest.mark.parametrize(
    ("hours", "expected"),
    [
        (set(), []),
        ({5}, [[5]]),
        ({0, 9, 23}, [[9], [23, 0]]),
        ({0}, [[0]]),
        ({23}, [[23]]),
        (set(range(24)), [list(range(24))]),
        (set(range(24)) - {12}, [[*range(13, 24), *range(12)]]),
    ],
)
def test_contiguous_hours(hours, expected):
    assert windows(hours) == expected


def test_quiet_days_come_from_all_days():
    found = analyze_seasonality(by_weekday({6: 20, 0: 30, 1: 200}), FORTNIGHT)
    assert quiet_days_among_the_peaks(found.peak_periods) == []
    assert [(peak.type, peak.label) for peak in found.peak_periods if peak.type == "daily"] == [("daily", "Monday")]
    assert found.recommendations[-1] == "Schedule batch processing or maintenance during low-usage periods: Sunday, Saturday"


def test_weekdays_outside_the_period_are_not_quiet():
    usage = by_weekday({})
    found = analyze_seasonality(usage, Period(START, START + 3 * DAY))
    assert [day.avg_value for day in found.daily_seasonality] == [None, 100, 100, 100, None, None, None]
    assert not any("low-usage" in sentence for sentence in found.recommendations)


def test_usage_on_one_weekday_only_makes_the_others_quiet():
    usage = by_weekday(dict.fromkeys((0, 2, 3, 4, 5, 6), 0))
    found = analyze_seasonality(usage, FORTNIGHT)
    assert [peak.label for peak in found.peak_periods if peak.type == "daily"] == ["Monday"]
    assert found.recommendations[-1].endswith(": Sunday, Tuesday, Wednesday, Thursday, Friday, Saturday")


def test_level_usage_has_no_peaks_and_nothing_to_recommend():
    found = analyze_seasonality(busy_at(FORTNIGHT, set(), 0), FORTNIGHT)
    assert {hour.index_vs_average for hour in found.hourly_seasonality} == {100}
    assert (found.peak_periods, found.recommendations) == ((), ())


def test_the_week_that_now_cuts_is_compared_by_its_days():
    # Level usage up to a Wednesday at noon: per week the last one would look a third as busy, per date a sixth too calm.
    period = Period(START, START + 9 * DAY + 12 * HOUR)
    found = analyze_seasonality(busy_at(period, set(), 0), period).weekly_seasonality
    assert [week.index_vs_average for week in found] == pytest.approx([100, 100])
    # The half day is no calm day among the others.
    assert [week.variance for week in found] == [0, 0]


def test_the_most_intense_peak_comes_first():
    found = analyze_seasonality(by_weekday({2: 200, 4: 300, 0: 250}), FORTNIGHT)
    assert [peak.label for peak in found.peak_periods if peak.type == "daily"] == ["Thursday", "Sunday", "Tuesday"]


def test_the_thresholds_are_parameters():
    usage = busy_at(FORTNIGHT, {9}, 12)
    assert analyze_seasonality(usage, FORTNIGHT).peak_periods == ()
    lower = SeasonalParameters(peak_hour_above_pct=110, prepare_above_pct=110)
    found = analyze_seasonality(usage, FORTNIGHT, lower)
    assert [peak.label for peak in found.peak_periods] == ["09:00 - 09:59 UTC"]
    assert len(found.recommendations) == len(recommendation_rows(found, lower)) == 1
    assert recommendation_rows(found) == []


def test_recommendations_are_rows_with_what_to_do():
    found = analyze_seasonality(busy_at(FORTNIGHT, {9}, 500), FORTNIGHT)
    (row,) = recommendation_rows(found)
    assert (row.category, row.priority, row.title) == ("peak_hours", "medium", "Prepare for 09:00 - 09:59 UTC")
    assert row.description == found.recommendations[0]
    assert row.action.startswith("Warm prompt caches shortly before 09:00 UTC")
    assert row.savings_low is None
    (quiet,) = recommendation_rows(analyze_seasonality(RecordedUsage.of(
        usage_row(FORTNIGHT.start + n * HOUR, total_tokens=0 if n // 24 % 7 == 6 else 10) for n in range(14 * 24)
    ), FORTNIGHT))  # fmt: skip
    assert (quiet.category, quiet.priority, quiet.action) == ("quiet_days", "low", "Move batch work that can wait to Sunday.")


def test_each_metric_row_is_one_figure():
    rows = metric_rows(analyze_seasonality(busy_at(FORTNIGHT, {9}, 500), FORTNIGHT))
    found = {(row.metric, row.dimension, row.dimension_value): row.value for row in rows}
    assert len(found) == len(rows) == 3 * (24 + 7 + 2) + 1 + 1
    assert found["avg_tokens_per_hour", "hour_of_day", "09"] == 500
    assert found["avg_tokens_per_day", "weekday", "Monday"] == 730
    assert found["avg_tokens_per_day", "iso_week", "2026-W23"] == 730
    assert found["peak_intensity_pct", "peak_period", "09:00 - 09:59 UTC"] == pytest.approx(500 / (730 / 24) * 100)
