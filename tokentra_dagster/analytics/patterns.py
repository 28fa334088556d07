"""Usage patterns (section 5): what is usual for an hour of the day and a day of the week, the peak, growth, and a heat map.

Differs from the specification by corrections 18, 21, 22 and 47. All is UTC unless a time zone is given; then hours and weekdays are
as people there live them: where the clocks go forward an hour does not occur, where they go back it occurs twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

import pandas as pd

from tokentra_dagster.analytics.buckets import (
    DAY_NAMES,
    BucketedUsage,
    Trend,
    averages,
    averages_of_all,
    group_values,
    hour_keys,
    read_usage,
    split_means,
    time_zone_named,
    trend_of,
    weekday_keys,
)
from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.analytics.results import MetricRow, ratio
from tokentra_dagster.analytics.sources import UsageSource

HOURS = range(24)
WEEK = (1, 2, 3, 4, 5, 6, 0)
"""Days in the order of a heat map's rows: weeks begin on Monday."""


@dataclass(frozen=True, slots=True)
class PatternParameters:
    """The specification's thresholds. Growth below `stable_below_pct` is stable; a month is projected as `month_days` days."""

    stable_below_pct: float = 5.0
    month_days: int = 30


@dataclass(frozen=True, slots=True)
class HourlyPattern:
    """An hour of the day. Averages are per occurrence of that hour; None where the period has none that is known.
    `relative_activity`: percent of the busiest hour's tokens."""

    hour: int
    avg_tokens: float | None
    avg_requests: float | None
    relative_activity: float | None


@dataclass(frozen=True, slots=True)
class DailyPattern:
    """A day of the week, 0 for Sunday. Averages are per day of that weekday; None where the period has none that is known."""

    day: int
    day_name: str
    avg_tokens: float | None
    avg_requests: float | None


@dataclass(frozen=True, slots=True)
class PeakAnalysis:
    """The hour with the most tokens, the first of equals; None without usage. `peak_day`: its weekday in the time zone.
    `average_tokens`: per hour, quiet hours included; None where nothing is known by hour."""

    peak_hour: datetime | None
    peak_day: str | None
    peak_tokens: int | None
    peak_requests: int | None
    average_tokens: float | None
    peak_to_average_ratio: float | None


@dataclass(frozen=True, slots=True)
class GrowthAnalysis:
    """The second half of the time against the first, in percent; None from zero and from a single hour. The time begins at the later
    of the period's start and the first usage, and so do the hours from which a month is projected (correction 22)."""

    token_growth_rate: float | None
    request_growth_rate: float | None
    trend: Trend
    projected_monthly_tokens: float | None


@dataclass(frozen=True, slots=True)
class HeatMap:
    """`avg_tokens[row][hour]`: average tokens of that hour on that weekday, None where the period has none. Rows are `day_names`."""

    day_names: tuple[str, ...]
    hours: tuple[int, ...]
    avg_tokens: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, slots=True)
class UsagePatternAnalysis:
    """Section 5, with the time zone and the heat map. `tokens_without_hour`: usage that providers give by day only; it counts in
    growth and, in UTC, in the days of the week, and in no figure of an hour."""

    period: Period
    time_zone: str
    hourly_pattern: tuple[HourlyPattern, ...]
    daily_pattern: tuple[DailyPattern, ...]
    peak_analysis: PeakAnalysis
    growth_analysis: GrowthAnalysis
    heat_map: HeatMap
    tokens_without_hour: int | None


def analyze_usage_patterns(
    usage: UsageSource, period: Period, time_zone: str = "UTC", parameters: PatternParameters = PatternParameters()
) -> UsagePatternAnalysis:
    """Raises `UsageError` for an unknown time zone."""
    zone = time_zone_named(time_zone)
    found = read_usage(usage, period, zone)
    known = period.since(usage.first_usage())
    return UsagePatternAnalysis(
        period=period,
        time_zone=time_zone,
        hourly_pattern=hourly_pattern(found.hours, zone),
        daily_pattern=daily_pattern(found.days),
        peak_analysis=peak_analysis(found.hours, zone),
        growth_analysis=growth_analysis(found, known.hours if known else None, parameters),
        heat_map=heat_map(found.hours, zone),
        tokens_without_hour=found.tokens_without_hour,
    )


def hourly_pattern(hours: pd.DataFrame, zone: ZoneInfo) -> tuple[HourlyPattern, ...]:
    """All 24 hours of the day, from hours without gaps (`buckets.filled`)."""
    key = hour_keys(hours, zone)
    tokens, requests = (
        list(group_values(averages(hours, key, name), HOURS, "mean")) for name in ("total_tokens", "request_count")
    )
    busiest = max((value for value in tokens if value is not None), default=None)
    return tuple(HourlyPattern(hour, tokens[hour], requests[hour], ratio(tokens[hour], busiest, 100)) for hour in HOURS)


def daily_pattern(days: pd.DataFrame) -> tuple[DailyPattern, ...]:
    """All 7 days of the week from Sunday, from days without gaps."""
    key = weekday_keys(days["date"])
    tokens, requests = (
        list(group_values(averages(days, key, name), range(7), "mean")) for name in ("total_tokens", "request_count")
    )
    return tuple(DailyPattern(day, name, tokens[day], requests[day]) for day, name in enumerate(DAY_NAMES))


def peak_analysis(hours: pd.DataFrame, zone: ZoneInfo) -> PeakAnalysis:
    (average,) = group_values(averages_of_all(hours, "total_tokens"), [0], "mean")
    used = hours[(hours["total_tokens"] > 0).fillna(False)]
    if used.empty:
        return PeakAnalysis(None, None, None if average is None else 0, None if average is None else 0, average, None)
    row = used.loc[used["total_tokens"].idxmax()]
    hour, tokens, requests = row["moment"], int(row["total_tokens"]), row["request_count"]
    return PeakAnalysis(
        peak_hour=hour.to_pydatetime(),
        peak_day=DAY_NAMES[hour.tz_convert(zone).isoweekday() % 7],
        peak_tokens=tokens,
        peak_requests=None if pd.isna(requests) else int(requests),
        average_tokens=average,
        peak_to_average_ratio=ratio(tokens, average),
    )


def growth_analysis(found: BucketedUsage, elapsed_hours: float | None, parameters: PatternParameters) -> GrowthAnalysis:
    """By hours; by UTC days if part of the usage is known by day only."""
    buckets = found.utc_days if found.tokens_without_hour else found.hours
    trend, tokens = trend_of(*split_means(buckets, "total_tokens"), parameters.stable_below_pct)
    _, requests = trend_of(*split_means(buckets, "request_count"), parameters.stable_below_pct)
    return GrowthAnalysis(tokens, requests, trend, ratio(found.total_tokens, elapsed_hours, 24 * parameters.month_days))


def heat_map(hours: pd.DataFrame, zone: ZoneInfo) -> HeatMap:
    """Weekday by hour, for people to look at."""
    key = weekday_keys(hours["moment"].dt.tz_convert(zone)) * 24 + hour_keys(hours, zone)
    means = averages(hours, key, "total_tokens")
    rows = tuple(tuple(group_values(means, [day * 24 + hour for hour in HOURS], "mean")) for day in WEEK)
    return HeatMap(tuple(DAY_NAMES[day] for day in WEEK), tuple(HOURS), rows)


def metric_rows(result: UsagePatternAnalysis) -> list[MetricRow]:
    """Dimensions `hour_of_day` ("09"), `weekday` ("Monday") and `weekday_hour` ("Monday 09"), all in the result's time zone."""
    return list(_metric_rows(result))


def _metric_rows(result: UsagePatternAnalysis) -> Iterator[MetricRow]:
    for hour in result.hourly_pattern:
        name = f"{hour.hour:02}"
        yield MetricRow("avg_tokens_per_hour", hour.avg_tokens, "hour_of_day", name)
        yield MetricRow("avg_requests_per_hour", hour.avg_requests, "hour_of_day", name)
        yield MetricRow("relative_activity_pct", hour.relative_activity, "hour_of_day", name)
    for day in result.daily_pattern:
        yield MetricRow("avg_tokens_per_day", day.avg_tokens, "weekday", day.day_name)
        yield MetricRow("avg_requests_per_day", day.avg_requests, "weekday", day.day_name)
    for day_name, values in zip(result.heat_map.day_names, result.heat_map.avg_tokens, strict=True):
        for of_day, value in zip(result.heat_map.hours, values, strict=True):
            yield MetricRow("avg_tokens_per_hour", value, "weekday_hour", f"{day_name} {of_day:02}")
    peak, growth = result.peak_analysis, result.growth_analysis
    yield MetricRow("peak_hour_tokens", peak.peak_tokens, moment=peak.peak_hour)
    yield MetricRow("peak_hour_requests", peak.peak_requests, moment=peak.peak_hour)
    yield MetricRow("avg_tokens_per_hour", peak.average_tokens)
    yield MetricRow("peak_to_average_ratio", peak.peak_to_average_ratio)
    yield MetricRow("token_growth_pct", growth.token_growth_rate)
    yield MetricRow("request_growth_pct", growth.request_growth_rate)
    yield MetricRow("projected_monthly_tokens", growth.projected_monthly_tokens)
    yield MetricRow("tokens_without_hour", result.tokens_without_hour)
