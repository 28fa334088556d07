"""Seasonal analysis (section 7): how hours of the day, days of the week and weeks compare with the average, and what follows.

All in UTC. Differs from the specification by corrections 18, 19, 21, 25 and 47; its week numbers lack the year, so that the turn of
the year puts two weeks in one or in the wrong order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Literal
from zoneinfo import ZoneInfo

import pandas as pd

from tokentra_dagster.analytics.buckets import (
    DAY_NAMES,
    averages,
    group_values,
    hour_keys,
    mean_of,
    read_usage,
    weekday_keys,
)
from tokentra_dagster.analytics.periods import Period, months_earlier
from tokentra_dagster.analytics.results import MetricRow, RecommendationRow, ratio
from tokentra_dagster.analytics.sources import UsageSource
from tokentra_dagster.errors import UsageError

UTC_ZONE = ZoneInfo("UTC")


@dataclass(frozen=True, slots=True)
class SeasonalParameters:
    """The specification's thresholds, in percent of the average; strictly above or below."""

    peak_hour_above_pct: float = 120.0
    peak_day_above_pct: float = 110.0
    prepare_above_pct: float = 150.0
    quiet_day_below_pct: float = 80.0


@dataclass(frozen=True, slots=True)
class SeasonalPattern:
    """An hour of the day (`avg_value` in tokens per hour), a day of the week or an ISO week (both in tokens per day).

    `period`: the hour, the day (0 for Sunday) or the week's number; `label` names a week with its year, `2026-W53`. `variance`: of
    the hours or whole days averaged. `index_vs_average`: percent of the mean over all hours, days or weeks. `occurrences`: hours or
    days averaged. None where nothing is known.
    """

    period: int
    label: str
    avg_value: float | None
    variance: float | None
    index_vs_average: float | None
    occurrences: int


@dataclass(frozen=True, slots=True)
class PeakPeriod:
    """A contiguous window of busy hours, which may wrap past midnight (correction 25), or a busy day of the week. `intensity`: percent
    of the average, of the busiest hour in it."""

    type: Literal["hourly", "daily", "weekly"]
    label: str
    intensity: float


@dataclass(frozen=True, slots=True)
class SeasonalAnalysis:
    """Section 7. Weeks are in order of time; `recommendations` are sentences."""

    period: Period
    hourly_seasonality: tuple[SeasonalPattern, ...]
    daily_seasonality: tuple[SeasonalPattern, ...]
    weekly_seasonality: tuple[SeasonalPattern, ...]
    peak_periods: tuple[PeakPeriod, ...]
    recommendations: tuple[str, ...]
    tokens_without_hour: int | None
    """Tokens known by day only: in days and weeks, in no hour."""


def seasonal_period(now: datetime, months: int = 3) -> Period:
    """The calendar months before `now`, clamped to the month's end (correction 19). Raises `UsageError` below one month."""
    if months < 1:
        raise UsageError(f"Seasonal analysis looks back {months} months; it must be 1 or more.")
    moment = now.astimezone(UTC)
    return Period(months_earlier(moment, months), moment)


def analyze_seasonality(
    usage: UsageSource, period: Period, parameters: SeasonalParameters = SeasonalParameters()
) -> SeasonalAnalysis:
    """`period`: usually `seasonal_period(now)`."""
    found = read_usage(usage, period, UTC_ZONE)
    hourly = hourly_seasonality(found.hours)
    daily = daily_seasonality(found.days)
    peaks = peak_periods(hourly, daily, parameters)
    return SeasonalAnalysis(
        period=period,
        hourly_seasonality=hourly,
        daily_seasonality=daily,
        weekly_seasonality=weekly_seasonality(found.days),
        peak_periods=peaks,
        recommendations=tuple(row.description for row in recommendations(peaks, daily, parameters)),
        tokens_without_hour=found.tokens_without_hour,
    )


def hourly_seasonality(hours: pd.DataFrame) -> tuple[SeasonalPattern, ...]:
    """All 24 hours of the day, from hours without gaps (`buckets.filled`)."""
    return _patterns(hours, hour_keys(hours, UTC_ZONE), [(hour, f"{hour:02}:00", hour) for hour in range(24)])


def daily_seasonality(days: pd.DataFrame) -> tuple[SeasonalPattern, ...]:
    """All 7 days of the week from Sunday, from days without gaps."""
    return _patterns(days, weekday_keys(days["date"]), [(day, name, day) for day, name in enumerate(DAY_NAMES)])


def weekly_seasonality(days: pd.DataFrame) -> tuple[SeasonalPattern, ...]:
    """The ISO weeks that the days touch, in order, per day: a week that the period cuts compares with a whole one."""
    labels = days["date"].map(iso_week)
    return _patterns(days, labels, [(int(label[-2:]), label, label) for label in sorted(labels.unique())])


def iso_week(day: date) -> str:
    """`2026-W53`: the ISO 8601 week with the year it belongs to, which sorts in order of time."""
    year, week, _ = day.isocalendar()
    return f"{year:04}-W{week:02}"


def _patterns(frame: pd.DataFrame, key: pd.Series, groups: Sequence[tuple[int, str, int | str]]) -> tuple[SeasonalPattern, ...]:
    means = averages(frame, key, "total_tokens")
    keys = [group for _, _, group in groups]
    values, variances, occurrences = (list(group_values(means, keys, name)) for name in ("mean", "variance", "occurrences"))
    overall = mean_of(values)
    return tuple(
        SeasonalPattern(period, label, value, variance, ratio(value, overall, 100), int(times or 0))
        for (period, label, _), value, variance, times in zip(groups, values, variances, occurrences, strict=True)
    )


def peak_periods(
    hourly: Sequence[SeasonalPattern], daily: Sequence[SeasonalPattern], parameters: SeasonalParameters
) -> tuple[PeakPeriod, ...]:
    """Windows of busy hours and busy days, the most intense first."""
    busy = {
        hour.period: hour.index_vs_average
        for hour in hourly
        if hour.index_vs_average is not None and hour.index_vs_average > parameters.peak_hour_above_pct
    }
    peaks = [
        PeakPeriod("hourly", f"{window[0]:02}:00 - {window[-1]:02}:59 UTC", max(busy[hour] for hour in window))
        for window in windows(busy)
    ]
    peaks += [
        PeakPeriod("daily", day.label, day.index_vs_average)
        for day in daily
        if day.index_vs_average is not None and day.index_vs_average > parameters.peak_day_above_pct
    ]
    return tuple(sorted(peaks, key=lambda peak: -peak.intensity))


def windows(hours: Collection[int]) -> list[list[int]]:
    """Hours of the day in contiguous runs by their first hour; a run may wrap past midnight: {0, 9, 23} -> [[9], [23, 0]]."""
    starts = sorted(hour for hour in hours if (hour - 1) % 24 not in hours)
    if hours and not starts:
        return [list(range(24))]
    found = []
    for start in starts:
        window = [start]
        while (window[-1] + 1) % 24 in hours:
            window.append((window[-1] + 1) % 24)
        found.append(window)
    return found


def recommendations(
    peaks: Sequence[PeakPeriod], daily: Sequence[SeasonalPattern], parameters: SeasonalParameters
) -> list[RecommendationRow]:
    """One for each window of very busy hours, and one that names the quiet days, found among all days (correction 25)."""
    rows = [
        RecommendationRow(
            category="peak_hours",
            priority="medium",
            title=f"Prepare for {peak.label}",
            description=f"Consider pre-warming caches before {peak.label} when usage is {peak.intensity:.0f}% of average",
            action=f"Warm prompt caches shortly before {peak.label[:5]} UTC, and see that rate limits carry the peak.",
        )
        for peak in peaks
        if peak.type == "hourly" and peak.intensity > parameters.prepare_above_pct
    ]
    quiet = [
        day.label for day in daily if day.index_vs_average is not None and day.index_vs_average < parameters.quiet_day_below_pct
    ]
    if quiet:
        days = ", ".join(quiet)
        rows.append(
            RecommendationRow(
                category="quiet_days",
                priority="low",
                title=f"Quiet on {days}",
                description=f"Schedule batch processing or maintenance during low-usage periods: {days}",
                action=f"Move batch work that can wait to {days}.",
            )
        )
    return rows


def recommendation_rows(
    result: SeasonalAnalysis, parameters: SeasonalParameters = SeasonalParameters()
) -> list[RecommendationRow]:
    """`parameters`: those of the analysis."""
    return recommendations(result.peak_periods, result.daily_seasonality, parameters)


def metric_rows(result: SeasonalAnalysis) -> list[MetricRow]:
    """Dimensions `hour_of_day` ("09"), `weekday` ("Monday") and `iso_week` ("2026-W53"), in UTC; peaks by `peak_period`."""
    return list(_metric_rows(result))


def _metric_rows(result: SeasonalAnalysis) -> Iterator[MetricRow]:
    for patterns, dimension, unit in (
        (result.hourly_seasonality, "hour_of_day", "hour"),
        (result.daily_seasonality, "weekday", "day"),
        (result.weekly_seasonality, "iso_week", "day"),
    ):
        for pattern in patterns:
            value = pattern.label[:2] if dimension == "hour_of_day" else pattern.label
            yield MetricRow(f"avg_tokens_per_{unit}", pattern.avg_value, dimension, value)
            yield MetricRow(f"variance_of_tokens_per_{unit}", pattern.variance, dimension, value)
            yield MetricRow("index_vs_average_pct", pattern.index_vs_average, dimension, value)
    for peak in result.peak_periods:
        yield MetricRow("peak_intensity_pct", peak.intensity, "peak_period", peak.label)
    yield MetricRow("tokens_without_hour", result.tokens_without_hour)
