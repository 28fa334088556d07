"""Where the month will end: tokens and cost so far, and what the remaining days will add, with intervals.

Not in the specification. What is forecast is the sum of the remaining days, so its interval is read from the sums of simulated paths;
adding up the bounds of single days would be far too wide. Money is computed in floats where it is forecast, and exact where it is
known.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Literal

import numpy as np

from tokentra_dagster.analytics.forecast_model import Floats, ForecastParameters, Method, daily_paths
from tokentra_dagster.analytics.periods import DAY, Period, floor, month_of
from tokentra_dagster.analytics.results import InsightRow, MetricRow, percentage
from tokentra_dagster.analytics.sources import UsageSource, total, total_cost
from tokentra_dagster.analytics.usage_series import COLUMNS, complete_until, floats

ForecastMeasure = Literal["tokens", "cost"]
Amount = int | Decimal
DEFAULTS = ForecastParameters()
CENTS = Decimal("0.01")
LEVELS = (0.025, 0.1, 0.9, 0.975)


@dataclass(frozen=True, slots=True)
class Bounds:
    """A mean with its intervals; all None where nothing is forecast."""

    expected: Amount | None = None
    lower_80: Amount | None = None
    upper_80: Amount | None = None
    lower_95: Amount | None = None
    upper_95: Amount | None = None


@dataclass(frozen=True, slots=True)
class ForecastPoint:
    """One UTC day. `actual`: what is known of it, None for a day to come; the rest is of the whole day, None for a day that is over."""

    day: date
    actual: Amount | None
    expected: Amount | None = None
    lower_80: Amount | None = None
    upper_80: Amount | None = None
    lower_95: Amount | None = None
    upper_95: Amount | None = None


@dataclass(frozen=True, slots=True)
class Forecast:
    """A calendar month (UTC) as it will end: tokens, or money rounded to cents (`actual` is exact).

    `expected` is the mean; the month ends between `lower_80` and `upper_80` with a probability of about 80 %. All are None where
    nothing is forecast (`method` none; `note` says why). `actual`: used until `known_until`, None where unknown. `previous_month`:
    the month before, None where unknown or before the first usage. `points`: the days of history, then those that remain.
    """

    measure: ForecastMeasure
    month: Period
    known_until: datetime
    method: Method
    history_days: int
    actual: Amount | None
    expected: Amount | None
    lower_80: Amount | None
    upper_80: Amount | None
    lower_95: Amount | None
    upper_95: Amount | None
    previous_month: Amount | None
    points: tuple[ForecastPoint, ...]
    note: str | None = None


@dataclass(frozen=True, slots=True)
class MonthForecast:
    """Both forecasts of the month that holds `known_until`."""

    currency: str
    tokens: Forecast
    cost: Forecast
    growth_pct: float = 20.0


def analyze_forecast(usage: UsageSource, known_until: datetime, parameters: ForecastParameters = DEFAULTS) -> MonthForecast:
    """The month that holds `known_until`, the moment up to which usage is complete (usually now, less what the connections lag)."""
    until = complete_until(known_until)
    return MonthForecast(
        usage.currency,
        _forecast(usage, "tokens", until, parameters),
        _forecast(usage, "cost", until, parameters),
        parameters.growth_pct,
    )


def _forecast(usage: UsageSource, measure: ForecastMeasure, until: datetime, parameters: ForecastParameters) -> Forecast:
    today, month = floor(until, "day"), month_of(until.date())
    first = usage.first_usage()
    start = _first_whole_day(first, today - parameters.history_days * DAY)
    actual = _actual(usage, measure, Period(month.start, until)) if until > month.start else _round(measure, 0.0)
    before = month_of((month.start - DAY).date())
    previous = _actual(usage, measure, before) if first is not None and first < before.end else None
    days = round((month.end - today) / DAY)
    history, unknown = _history(usage, measure, start, today)

    def answer(method: Method, sums: Floats | None, points: list[ForecastPoint], note: str | None) -> Forecast:
        whole = Bounds() if sums is None or actual is None else _interval(measure, sums, actual)
        return Forecast(
            measure, month, until, method, len(history) - unknown, actual, whole.expected, whole.lower_80, whole.upper_80,
            whole.lower_95, whole.upper_95, previous, tuple(points), note,
        )  # fmt: skip

    past = [
        ForecastPoint((start + n * DAY).date(), None if np.isnan(value) else _round(measure, value))
        for n, value in enumerate(history)
    ]
    if len(history) - unknown < parameters.mean_days:
        enough = f"a forecast needs {parameters.mean_days} whole days of known {measure}, and there are {len(history) - unknown}"
        return answer("none", None, past, f"Nothing is forecast: {enough}.")
    if actual is None or unknown * 5 > len(history):
        what = "this month so far" if actual is None else f"{unknown} of {len(history)} days"
        return answer("none", None, past, f"Nothing is forecast: the {measure} of {what} is unknown.")
    filled = _fill_unknown(history, today.weekday())
    method, paths = daily_paths(filled, days, (today.weekday() - 1) % 7, parameters)
    so_far = float(_actual(usage, measure, Period(today, until)) or 0) if until > today else 0.0
    left = _share_left(usage, measure, today, until)
    remaining = paths.copy()
    remaining[:, 0] = paths[:, 0] * left
    points = past
    for day in range(days):
        begun = day == 0 and until > today
        whole = _interval(measure, remaining[:, day], _round(measure, so_far if begun else 0.0))
        points.append(
            ForecastPoint(
                (today + day * DAY).date(), _round(measure, so_far) if begun else None,
                whole.expected, whole.lower_80, whole.upper_80, whole.lower_95, whole.upper_95,
            )
        )  # fmt: skip
    return answer(method, remaining.sum(axis=1), points, _note(method, len(history) - unknown, unknown, parameters))


def _first_whole_day(first: datetime | None, earliest: datetime) -> datetime:
    if first is None:
        return earliest
    day = floor(first, "day")
    return max(earliest, day if day == first else day + DAY)


def _history(usage: UsageSource, measure: ForecastMeasure, start: datetime, today: datetime) -> tuple[Floats, int]:
    """Whole days from the first usage on, gaps zero, NaN where the measure is unknown, and how many of those there are."""
    if start >= today or usage.first_usage() is None:
        return np.zeros(0), 0
    frame = usage.frame(Period(start, today), granularity="day")
    values = np.zeros(round((today - start) / DAY))
    if len(frame):
        places = ((frame["moment"] - start) / timedelta(days=1)).to_numpy(np.float64).astype(np.int64)
        values[places] = floats(frame[COLUMNS[measure]])
    return values, int(np.isnan(values).sum())


def _fill_unknown(history: Floats, weekday: int) -> Floats:
    """Unknown days take the mean of the known ones of the same weekday, else of all."""
    filled, missing = history.copy(), np.isnan(history)
    for place in np.flatnonzero(missing):
        same = history[place % 7 :: 7]
        known = same[~np.isnan(same)]
        filled[place] = known.mean() if len(known) else history[~missing].mean()
    return filled


def _share_left(usage: UsageSource, measure: ForecastMeasure, today: datetime, until: datetime) -> float:
    """What part of a day is usually used after this time of day, from the last four weeks' hours; by the clock where they are unknown."""
    if until == today:
        return 1.0
    frame = usage.frame(Period(today - 28 * DAY, today), granularity="hour")
    by_clock = 1 - (until - today) / DAY
    if frame.empty:
        return by_clock
    values = np.nan_to_num(floats(frame[COLUMNS[measure]]))
    late = frame["moment"].dt.hour.to_numpy() >= until.hour
    return float(values[late].sum() / values.sum()) if values.sum() > 0 else by_clock


def _actual(usage: UsageSource, measure: ForecastMeasure, period: Period) -> Amount | None:
    frame = usage.frame(period)
    return total_cost(frame) if measure == "cost" else total(frame, "total_tokens")


def _interval(measure: ForecastMeasure, sums: Floats, known: Amount) -> Bounds:
    """`known` plus the sums. The bounds always hold the mean, which a few far paths can carry past one."""
    mean = float(sums.mean())
    low_95, low_80, high_80, high_95 = (float(bound) for bound in np.quantile(sums, LEVELS))
    return Bounds(*(
        known + _round(measure, value)
        for value in (mean, min(low_80, mean), max(high_80, mean), min(low_95, mean), max(high_95, mean))
    ))  # fmt: skip


def _round(measure: ForecastMeasure, value: float) -> Amount:
    return Decimal(repr(float(value))).quantize(CENTS) if measure == "cost" else round(value)


def _note(method: Method, days: int, unknown: int, parameters: ForecastParameters) -> str | None:
    notes = []
    if method == "mean_of_days" and days < parameters.smoothing_days:
        notes.append(
            f"Only {days} whole days of usage are known; until there are {parameters.smoothing_days}, days of the same kind are "
            f"averaged, and the interval is wide."
        )
    if unknown:
        notes.append(f"{unknown} days of unknown cost were taken as an average day of the same weekday.")
    return " ".join(notes) or None


def metric_rows(result: MonthForecast) -> list[MetricRow]:
    """Month-end figures at the month's start, and the expected daily usage of each remaining day; unknown ones are None."""
    rows = []
    for one in (result.tokens, result.cost):
        for name in ("actual", "expected", "lower_80", "upper_80", "lower_95", "upper_95"):
            rows.append(MetricRow(f"forecast_month_{one.measure}_{name}", getattr(one, name), moment=one.month.start))
        for point in one.points:
            if point.expected is not None:
                moment = datetime.combine(point.day, datetime.min.time(), one.month.start.tzinfo)
                for name in ("expected", "lower_80", "upper_80", "lower_95", "upper_95"):
                    rows.append(MetricRow(f"forecast_daily_{one.measure}_{name}", getattr(point, name), moment=moment))
    return rows


def insight_rows(result: MonthForecast) -> list[InsightRow]:
    """A month that is heading well above or below the last one, where even the 80 % interval says so."""
    rows = []
    for one in (result.tokens, result.cost):
        if one.expected is None or not one.previous_month or one.lower_80 is None or one.upper_80 is None:
            continue
        change = percentage(one.expected - one.previous_month, one.previous_month)
        certain = one.lower_80 > one.previous_month or one.upper_80 < one.previous_month
        if change is None or abs(change) < result.growth_pct or not certain:
            continue
        unit = result.currency if one.measure == "cost" else "tokens"
        rows.append(
            InsightRow(
                "forecast", "warning" if change > 0 else "info",
                f"{one.measure.capitalize()} will end {one.month.start:%B} {abs(change):.0f} % {'above' if change > 0 else 'below'} the month before",
                f"{one.expected:,} {unit} are expected by the end of the month ({one.lower_80:,} to {one.upper_80:,} with a probability "
                f"of 80 %), after {one.previous_month:,} in the month before. {one.actual:,} are used so far.",
                one.measure, impact_tokens=int(one.expected - one.previous_month) if one.measure == "tokens" else None, impact_pct=change,
            )
        )  # fmt: skip
    return rows
