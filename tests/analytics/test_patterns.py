"""Usage patterns beside the specification's own way to count (section 5; corrections 18, 21, 22, 47)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from tests.analytics.golden import assert_equal
from tests.analytics.recorded_usage import RecordedUsage, usage_row
from tokentra_dagster.analytics.buckets import DAY_NAMES
from tokentra_dagster.analytics.patterns import PatternParameters, analyze_usage_patterns, metric_rows
from tokentra_dagster.analytics.periods import DAY, Period
from tokentra_dagster.analytics.results import as_json
from tokentra_dagster.errors import UsageError

HOUR = timedelta(hours=1)
# A fortnight from a Monday.
START = datetime(2026, 6, 1, tzinfo=UTC)
FORTNIGHT = Period(START, START + 14 * DAY)


def use(*hours: tuple[datetime, int], **fields: object) -> list[dict[str, object]]:
    """A rollup row for each hour and its tokens."""
    return [usage_row(moment, total_tokens=tokens, **fields) for moment, tokens in hours]


def every_hour(period: Period, tokens: int = 10) -> list[dict[str, object]]:
    return use(*((period.start + n * HOUR, tokens) for n in range(round(period.hours))))


def local_day(day: date, zone: str = "Europe/Berlin") -> Period:
    start, end = (datetime(one.year, one.month, one.day, tzinfo=ZoneInfo(zone)) for one in (day, day + DAY))
    return Period(start, end)


def average_per_row(rows: Iterable[dict[str, object]], key: str) -> dict[int, float]:
    """The specification's `calculateHourlyPattern` and `calculateDailyPattern`: the mean over rollup rows."""
    groups = defaultdict(list)
    for row in rows:
        moment = row["moment"]
        groups[moment.hour if key == "hour" else moment.isoweekday() % 7].append(row["total_tokens"])
    return {group: sum(tokens) / len(tokens) for group, tokens in groups.items()}


def growth_by_rows(rows: list[dict[str, object]]) -> tuple[float, float]:
    """The specification's `analyzeGrowth`: halves of the rows, and a month projected as if each row were an hour."""
    tokens = [row["total_tokens"] for row in rows]
    middle = len(tokens) // 2
    first, second = sum(tokens[:middle]), sum(tokens[middle:])
    return ((second - first) / first * 100 if first > 0 else 0), sum(tokens) / len(rows) * 24 * 30


def test_the_answers_are_the_specifications_where_it_is_right(golden):
    expected = golden.answer("patterns")
    assert_equal(as_json(analyze_usage_patterns(golden.usage, golden.period)), expected)


def test_an_hours_average_does_not_depend_on_the_number_of_models():
    rows = use((START + 9 * HOUR, 60), model="a") + use((START + 9 * HOUR, 40), model="b")
    found = analyze_usage_patterns(RecordedUsage.of(rows), Period(START, START + DAY))
    assert average_per_row(rows, "hour")[9] == 50
    assert found.hourly_pattern[9].avg_tokens == 100
    assert found.hourly_pattern[9].avg_requests == 2


def test_an_hour_without_usage_counts_as_zero_in_its_average():
    rows = use((START, 10), (START + 9 * HOUR, 140))
    found = analyze_usage_patterns(RecordedUsage.of(rows), FORTNIGHT)
    assert average_per_row(rows, "hour")[9] == 140
    assert found.hourly_pattern[9].avg_tokens == 10
    assert found.hourly_pattern[9].relative_activity == 100
    assert found.hourly_pattern[10].avg_tokens == 0


def test_a_weekdays_average_is_per_day_of_that_weekday():
    # Two Mondays: 2 rows of 30 on the first, nothing on the second.
    rows = use((START + 9 * HOUR, 30), (START + 10 * HOUR, 30))
    found = analyze_usage_patterns(RecordedUsage.of(rows), FORTNIGHT)
    assert average_per_row(rows, "weekday")[1] == 30
    monday, tuesday = found.daily_pattern[1], found.daily_pattern[2]
    assert (monday.day_name, monday.avg_tokens, monday.avg_requests) == ("Monday", 30, 1)
    assert (tuesday.day_name, tuesday.avg_tokens) == ("Tuesday", 0)


def test_days_before_the_first_usage_are_unknown_and_not_zero():
    # First usage on the second Monday: one Monday is known, and the first week is no week without usage.
    first = START + 7 * DAY
    found = analyze_usage_patterns(RecordedUsage.of(use((first, 70))), FORTNIGHT)
    filled_from_the_start = 70 / 2
    assert found.daily_pattern[1].avg_tokens == 70 != filled_from_the_start
    assert found.hourly_pattern[0].avg_tokens == 10 != 70 / 14
    assert found.peak_analysis.average_tokens == pytest.approx(70 / (7 * 24))
    assert found.growth_analysis.projected_monthly_tokens == pytest.approx(70 / (7 * 24) * 720)


def test_a_weekday_or_hour_outside_the_period_is_unknown():
    found = analyze_usage_patterns(RecordedUsage.of(use((START, 10))), Period(START, START + 3 * HOUR))
    assert [hour.avg_tokens for hour in found.hourly_pattern[:4]] == [10, 0, 0, None]
    assert [day.avg_tokens for day in found.daily_pattern[:3]] == [None, 10, None]
    assert found.hourly_pattern[3].relative_activity is None


def test_growth_halves_the_time_and_not_the_rows():
    # 10 tokens an hour throughout; in the first week three models share the work, so it has three quarters of the rows.
    first_week, second_week = FORTNIGHT.halves()
    rows = [row for _ in range(3) for row in every_hour(first_week, 10)] + every_hour(second_week, 30)
    rows.sort(key=lambda row: row["moment"])
    found = analyze_usage_patterns(RecordedUsage.of(rows), FORTNIGHT).growth_analysis
    wrong_rate, wrong_projection = growth_by_rows(rows)
    assert wrong_rate == pytest.approx(100)
    assert wrong_projection == 15 * 720
    assert (found.token_growth_rate, found.trend) == (0, "stable")
    assert found.projected_monthly_tokens == 30 * 720


def test_a_gap_belongs_to_the_half_in_which_it_lies():
    # Ten rows of equal size; nine of them in the first half of the time.
    rows = use(*((START + n * HOUR, 10) for n in range(9)), (START + 13 * DAY, 10))
    found = analyze_usage_patterns(RecordedUsage.of(rows), FORTNIGHT).growth_analysis
    wrong_rate, wrong_projection = growth_by_rows(rows)
    assert wrong_rate == 0
    assert wrong_projection == 7200
    assert found.token_growth_rate == pytest.approx((10 - 90) / 90 * 100)
    assert found.trend == "decreasing"
    assert found.projected_monthly_tokens == pytest.approx(100 / (14 * 24) * 720)


def test_steady_usage_that_begins_within_the_period_has_not_grown():
    # By halves of the whole period it would have grown by 100 %.
    rows = every_hour(Period(START + 7 * DAY / 2, FORTNIGHT.end))
    found = analyze_usage_patterns(RecordedUsage.of(rows), FORTNIGHT).growth_analysis
    assert (found.token_growth_rate, found.request_growth_rate, found.trend) == (0, 0, "stable")


def test_an_odd_number_of_hours_compares_averages():
    found = analyze_usage_patterns(RecordedUsage.of(every_hour(Period(START, START + 3 * HOUR))), Period(START, START + 3 * HOUR))
    assert (found.growth_analysis.token_growth_rate, found.growth_analysis.trend) == (0, "stable")


def test_growth_from_zero_has_no_percentage():
    rows = use((START - DAY, 5), (FORTNIGHT.end - HOUR, 50))
    found = analyze_usage_patterns(RecordedUsage.of(rows), FORTNIGHT).growth_analysis
    assert (found.token_growth_rate, found.request_growth_rate, found.trend) == (None, None, "increasing")


def test_the_threshold_and_the_month_are_parameters():
    first, second = FORTNIGHT.halves()
    usage = RecordedUsage.of(every_hour(first, 100) + every_hour(second, 104))
    assert analyze_usage_patterns(usage, FORTNIGHT).growth_analysis.trend == "stable"
    found = analyze_usage_patterns(usage, FORTNIGHT, parameters=PatternParameters(stable_below_pct=4, month_days=31))
    assert found.growth_analysis.trend == "increasing"
    assert found.growth_analysis.projected_monthly_tokens == pytest.approx(102 * 24 * 31)


def test_the_peak_is_the_largest_hour_and_not_the_largest_row():
    rows = use((START + HOUR, 60), model="a") + use((START + HOUR, 60), model="b") + use((START + 2 * HOUR, 100))
    largest_row = max(rows, key=lambda row: row["total_tokens"])["moment"]
    found = analyze_usage_patterns(RecordedUsage.of(rows), Period(START, START + DAY)).peak_analysis
    assert largest_row == START + 2 * HOUR
    assert (found.peak_hour, found.peak_day, found.peak_tokens, found.peak_requests) == (START + HOUR, "Monday", 120, 2)
    # 23 hours since the first usage, and not 3 rows.
    assert found.average_tokens == pytest.approx(220 / 23)
    assert found.peak_to_average_ratio == pytest.approx(120 / (220 / 23))


def test_the_first_of_equal_hours_is_the_peak():
    found = analyze_usage_patterns(RecordedUsage.of(use((START + 5 * HOUR, 9), (START + HOUR, 9))), FORTNIGHT)
    assert found.peak_analysis.peak_hour == START + HOUR


def test_requests_that_nobody_counted_are_unknown():
    rows = use((START, 10), (START + DAY, 20), request_count=None, success_count=None)
    found = analyze_usage_patterns(RecordedUsage.of(rows), FORTNIGHT)
    assert found.hourly_pattern[0].avg_requests is None
    assert found.daily_pattern[1].avg_requests is None
    assert found.peak_analysis.peak_requests is None
    assert found.growth_analysis.request_growth_rate is None
    assert found.hourly_pattern[0].avg_tokens == pytest.approx(30 / 14)


class ByDayOnly(RecordedUsage):
    """As the warehouse answers for a provider that reports days: frames of hours leave them out."""

    def frame(self, period, by=(), granularity=None, where=None):
        found = super().frame(period, by, granularity, where)
        return found.iloc[:0] if granularity == "hour" else found


def test_usage_known_by_day_only_has_no_hours_and_still_its_days_and_growth():
    first, second = FORTNIGHT.halves()
    rows = use(*((half.start + n * DAY, tokens) for half, tokens in ((first, 240), (second, 480)) for n in range(7)))
    found = analyze_usage_patterns(ByDayOnly.of(rows), FORTNIGHT)
    assert [hour.avg_tokens for hour in found.hourly_pattern] == [None] * 24
    assert found.peak_analysis.peak_tokens is None
    assert found.peak_analysis.average_tokens is None
    assert [day.avg_tokens for day in found.daily_pattern] == [360] * 7
    assert (found.growth_analysis.token_growth_rate, found.growth_analysis.trend) == (100, "increasing")
    assert found.growth_analysis.projected_monthly_tokens == 360 * 30
    assert found.tokens_without_hour == 7 * 720
    # In another time zone nobody knows on which date the tokens were spent.
    assert [day.avg_tokens for day in analyze_usage_patterns(ByDayOnly.of(rows), FORTNIGHT, "Asia/Tokyo").daily_pattern] == [
        None
    ] * 7


def test_where_clocks_go_forward_the_hour_that_does_not_occur_has_no_average():
    day = local_day(date(2026, 3, 29))
    found = analyze_usage_patterns(RecordedUsage.of(every_hour(day)), day, "Europe/Berlin")
    assert day.hours == 23
    assert [hour.avg_tokens for hour in found.hourly_pattern] == [10, 10, None, *[10] * 21]
    assert found.daily_pattern[0].avg_tokens == 230
    sunday = found.heat_map.avg_tokens[found.heat_map.day_names.index("Sunday")]
    assert sunday == (10, 10, None, *[10] * 21)


def test_where_clocks_go_back_the_hour_that_occurs_twice_counts_twice():
    day = local_day(date(2026, 10, 25))
    rows = every_hour(day)
    found = analyze_usage_patterns(RecordedUsage.of(rows), day, "Europe/Berlin")
    assert day.hours == 25
    # Summed per date and local hour it would be 20.
    per_date = sum(row["total_tokens"] for row in rows if row["moment"].astimezone(ZoneInfo("Europe/Berlin")).hour == 2)
    assert per_date == 20
    assert [hour.avg_tokens for hour in found.hourly_pattern] == [10] * 24
    assert found.daily_pattern[0].avg_tokens == 250
    assert found.heat_map.avg_tokens[-1] == (10,) * 24


def test_steady_usage_is_level_over_a_year_of_clock_changes():
    year = Period(datetime(2026, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")), datetime(2027, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")))
    found = analyze_usage_patterns(RecordedUsage.of(every_hour(year)), year, "Europe/Berlin")
    assert {hour.avg_tokens for hour in found.hourly_pattern} == {10}
    assert {value for row in found.heat_map.avg_tokens for value in row} == {10}
    # 52 Sundays: one has 23 hours and one 25.
    assert [day.avg_tokens for day in found.daily_pattern] == pytest.approx([240] * 7)


def test_a_period_of_utc_days_has_no_extra_day_in_another_time_zone():
    # 14 days from midnight UTC begin and end on a Monday at 02:00 in Berlin: two Mondays in three dates.
    found = analyze_usage_patterns(RecordedUsage.of(every_hour(FORTNIGHT)), FORTNIGHT, "Europe/Berlin")
    per_date = 2 * 240 / 3
    assert per_date == 160
    assert [day.avg_tokens for day in found.daily_pattern] == pytest.approx([240] * 7)


def test_hours_and_weekdays_are_those_of_the_time_zone():
    # Sunday 23:00 in UTC is Monday 01:00 in Berlin and Sunday 19:00 in New York.
    usage = RecordedUsage.of(use((START + 6 * DAY + 23 * HOUR, 50)))
    answers = {}
    for zone in ("UTC", "Europe/Berlin", "America/New_York"):
        found = analyze_usage_patterns(usage, FORTNIGHT, zone)
        (busiest,) = (hour.hour for hour in found.hourly_pattern if hour.relative_activity == 100)
        answers[zone] = (found.peak_analysis.peak_day, busiest)
        row = found.heat_map.avg_tokens[found.heat_map.day_names.index(found.peak_analysis.peak_day)]
        assert max(value or 0 for value in row) == row[busiest]
    assert answers == {"UTC": ("Sunday", 23), "Europe/Berlin": ("Monday", 1), "America/New_York": ("Sunday", 19)}


def test_a_heat_map_is_the_average_of_that_hour_of_that_weekday():
    rows = use((START, 6), (START + 9 * HOUR, 30), (START + 7 * DAY + 9 * HOUR, 50), (START + DAY + 9 * HOUR, 8))
    found = analyze_usage_patterns(RecordedUsage.of(rows), FORTNIGHT).heat_map
    assert found.day_names == ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
    assert found.avg_tokens[0][9] == 40
    assert found.avg_tokens[0][0] == 3
    assert found.avg_tokens[1][9] == 4
    assert sum(value for row in found.avg_tokens for value in row) == 47


def test_a_leap_day_is_a_day_of_its_weekday():
    leap = datetime(2028, 2, 29, tzinfo=UTC)
    period = Period(datetime(2028, 2, 1, tzinfo=UTC), datetime(2028, 3, 1, tzinfo=UTC))
    rows = use((period.start, 0), (leap, 50))
    found = analyze_usage_patterns(RecordedUsage.of(rows), period)
    # February 2028 has five Tuesdays, the first and the last day among them.
    assert [day.day_name for day in found.daily_pattern if day.avg_tokens] == ["Tuesday"]
    assert found.daily_pattern[2].avg_tokens == 10
    assert found.growth_analysis.projected_monthly_tokens == pytest.approx(50 / 29 * 30)


def test_an_unknown_time_zone_is_refused():
    with pytest.raises(UsageError, match="'Berlin'; it must be an IANA name"):
        analyze_usage_patterns(RecordedUsage.of([]), FORTNIGHT, "Berlin")


def test_each_metric_row_is_one_figure():
    result = analyze_usage_patterns(RecordedUsage.of(every_hour(FORTNIGHT)), FORTNIGHT)
    rows = metric_rows(result)
    keys = [(row.metric, row.dimension, row.dimension_value) for row in rows]
    assert len(keys) == len(set(keys))
    found = {key: row.value for key, row in zip(keys, rows, strict=True)}
    assert found["avg_tokens_per_hour", "hour_of_day", "09"] == 10
    assert found["avg_tokens_per_day", "weekday", "Sunday"] == 240
    assert found["avg_tokens_per_hour", "weekday_hour", "Monday 09"] == 10
    assert found["projected_monthly_tokens", None, None] == 7200
    assert {row.moment for row in rows if row.metric.startswith("peak_hour")} == {result.peak_analysis.peak_hour}
    assert {value for _, name, value in keys if name == "weekday"} == set(DAY_NAMES)
