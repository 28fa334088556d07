"""A metric over time, what it does, and how metrics move together (specification 3, 4 and 7; corrections 13, 18, 26, 35)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from tokentra_dagster.analytics.dimensions import conditions
from tokentra_dagster.analytics.frames import known
from tokentra_dagster.analytics.periods import GRANULARITIES, Granularity, Period, infer_granularity
from tokentra_dagster.analytics.results import MetricRow, percentage, ratio
from tokentra_dagster.analytics.sources import COST, UsageSource, total
from tokentra_dagster.errors import UsageError

Metric = Literal["tokens", "requests", "errors", "cost", "latency"]
METRICS: tuple[Metric, ...] = get_args(Metric)
COLUMNS = {"tokens": "total_tokens", "requests": "request_count", "errors": "error_count", "cost": COST}
Value = int | float | Decimal
TrendDirection = Literal["increasing", "decreasing", "stable", "volatile"]
Strength = Literal["strong", "moderate", "weak"]


@dataclass(frozen=True, slots=True)
class TrendParameters:
    """The specification's thresholds (sections 4 and 7).

    `volatile_above`: coefficient of variation. `stable_below`: slope per bucket as a part of the average. `min_points`: fewer
    known buckets have no direction. `min_pairs`: fewer common buckets have no correlation, as two points always lie on a line.
    """

    volatile_above: float = 0.5
    stable_below: float = 0.01
    min_points: int = 2
    strong_above: float = 0.7
    moderate_above: float = 0.4
    min_pairs: int = 3


DEFAULTS = TrendParameters()


@dataclass(frozen=True, slots=True)
class UsageTrendPoint:
    """One bucket. `value` is None where the metric is not known for any of its usage."""

    timestamp: datetime
    value: Value | None
    input_tokens: int | None
    output_tokens: int | None
    requests: int | None
    error_rate: float | None


@dataclass(frozen=True, slots=True)
class TrendAnalysis:
    """Over the buckets whose value is known. `change_rate`: percent from the first to the last, None from zero and for a single
    one. All figures are None without any. `average` of money is money."""

    direction: TrendDirection
    change_rate: float | None
    peak_value: Value | None
    peak_time: datetime | None
    trough_value: Value | None
    trough_time: datetime | None
    average: Value | None
    standard_deviation: float | None


@dataclass(frozen=True, slots=True)
class UsageTrend:
    """`data`: buckets with usage only, in order of time."""

    data: tuple[UsageTrendPoint, ...]
    granularity: Granularity
    metric: Metric
    analysis: TrendAnalysis


@dataclass(frozen=True, slots=True)
class Correlation:
    """Pearson's r of two metrics over the buckets where both are known; None (and weak) where it is undefined."""

    metrics: tuple[Metric, Metric]
    correlation: float | None
    strength: Strength


@dataclass(frozen=True, slots=True)
class MultiMetricTrend:
    """`correlations`: by both names, `tokens-requests`."""

    period: Period
    granularity: Granularity
    trends: Mapping[Metric, UsageTrend]
    correlations: Mapping[str, Correlation]


def usage_trend(
    usage: UsageSource,
    period: Period,
    granularity: Granularity | None = None,
    metric: Metric = "tokens",
    where: Mapping[str, str | None] | None = None,
    parameters: TrendParameters = DEFAULTS,
) -> UsageTrend:
    """A metric per bucket. Without a granularity the period's length chooses, and usage that is known less finely makes it coarser.

    Raises `UsageError` for a metric or granularity that there is not (correction 13).
    """
    require_metric(metric)
    chosen, frame = bucketed(usage, period, granularity, infer_granularity(period), where)
    return trend_of(frame, chosen, metric, parameters)


def multi_metric_trend(
    usage: UsageSource,
    period: Period,
    metrics: Sequence[Metric] = ("tokens", "requests", "errors", "latency"),
    granularity: Granularity | None = None,
    where: Mapping[str, str | None] | None = None,
    parameters: TrendParameters = DEFAULTS,
) -> MultiMetricTrend:
    """Several metrics over the same buckets, with the correlation of each pair (section 7)."""
    for metric in metrics:
        require_metric(metric)
    # Section 7 infers minutes up to 6 hours, where the dashboard (section 4) does up to a day; longer periods are alike.
    inferred: Granularity = "hour" if 6 < period.hours <= 24 else infer_granularity(period)
    chosen, frame = bucketed(usage, period, granularity, inferred, where)
    trends = {metric: trend_of(frame, chosen, metric, parameters) for metric in metrics}
    pairs = itertools.combinations(trends.values(), 2)
    return MultiMetricTrend(
        period, chosen, trends, {f"{one.metric}-{other.metric}": correlate(one, other, parameters) for one, other in pairs}
    )


def require_metric(metric: str) -> None:
    if metric not in METRICS:
        raise UsageError(f"The metric is {metric!r}; it must be one of {', '.join(METRICS)}.")


def bucketed(
    usage: UsageSource,
    period: Period,
    granularity: Granularity | None,
    inferred: Granularity,
    where: Mapping[str, str | None] | None,
) -> tuple[Granularity, pd.DataFrame]:
    """The frame per bucket, and its granularity: the one asked for, else the finest from `inferred` on that leaves no usage out.

    Providers report by the hour or the day; a chart by the minute would silently lack them.
    """
    narrowed = conditions(where)
    if granularity is not None:
        if granularity not in GRANULARITIES:
            raise UsageError(f"The granularity is {granularity!r}; it must be one of {', '.join(GRANULARITIES)}.")
        return granularity, usage.frame(period, granularity=granularity, where=narrowed)
    if inferred in ("minute", "hour"):
        everything = usage.frame(period, where=narrowed)
        for finer in GRANULARITIES[GRANULARITIES.index(inferred) : 2]:
            frame = usage.frame(period, granularity=finer, where=narrowed)
            if total(frame, "record_count") == total(everything, "record_count"):
                return finer, frame
        inferred = "day"
    return inferred, usage.frame(period, granularity=inferred, where=narrowed)


def trend_of(
    frame: pd.DataFrame,
    granularity: Granularity,
    metric: Metric,
    parameters: TrendParameters = DEFAULTS,
) -> UsageTrend:
    """The trend in a frame of one row per `moment`."""
    errors = map(ratio, known(frame, "error_count"), known(frame, "requests_with_errors_known"), itertools.repeat(100))
    columns = [known(frame, name) for name in ("input_tokens", "output_tokens", "request_count")]
    moments = [moment.to_pydatetime() for moment in frame["moment"]]
    points = tuple(itertools.starmap(UsageTrendPoint, zip(moments, values_of(frame, metric), *columns, errors, strict=True)))
    return UsageTrend(points, granularity, metric, analyze_trend(points, parameters))


def values_of(frame: pd.DataFrame, metric: Metric) -> list[Any]:
    """A metric per row, None where it is not known. Latency is the mean over requests, in milliseconds (correction 35)."""
    if metric == "latency":
        return list(map(ratio, known(frame, "total_latency_ms"), known(frame, "latency_request_count")))
    return known(frame, COLUMNS[metric])


def analyze_trend(
    points: Sequence[UsageTrendPoint],
    parameters: TrendParameters = DEFAULTS,
) -> TrendAnalysis:
    """Direction, change and extremes of a series (section 4). Too few points, or no usage, is stable (correction 18).

    The direction is that of the least-squares line over the buckets in order, as in the specification: gaps take no room.
    """
    found = [(place, point, point.value) for place, point in enumerate(points) if point.value is not None]
    if not found:
        return TrendAnalysis("stable", None, None, None, None, None, None, None)
    values = np.array([float(value) for _, _, value in found])
    peak, trough = found[int(values.argmax())], found[int(values.argmin())]
    average, deviation = float(values.mean()), float(values.std())
    first, last = found[0][2], found[-1][2]
    if isinstance(first, Decimal):
        mean: Value = sum((Decimal(value) for _, _, value in found), Decimal(0)) / len(found)
    else:
        mean = average
    return TrendAnalysis(
        _direction(np.array([float(place) for place, _, _ in found]), values, average, deviation, parameters),
        percentage(last - first, first) if len(found) > 1 else None,  # type: ignore[operator]
        peak[2], peak[1].timestamp, trough[2], trough[1].timestamp, mean, deviation,
    )  # fmt: skip


def _direction(
    places: np.ndarray, values: np.ndarray, average: float, deviation: float, parameters: TrendParameters
) -> TrendDirection:
    if len(values) < parameters.min_points or average == 0:
        return "stable"
    if deviation / abs(average) > parameters.volatile_above:
        return "volatile"
    distances = places - places.mean()
    slope = float((distances * (values - average)).sum() / (distances * distances).sum()) if len(values) > 1 else 0.0
    if abs(slope) < abs(average) * parameters.stable_below:
        return "stable"
    return "increasing" if slope > 0 else "decreasing"


def correlate(
    one: UsageTrend,
    other: UsageTrend,
    parameters: TrendParameters = DEFAULTS,
) -> Correlation:
    """How two metrics move together over the buckets that both know (correction 26). Undefined where one of them never changes."""
    at = {point.timestamp: point.value for point in other.data}
    pairs = [
        (float(point.value), float(value))
        for point in one.data
        if point.value is not None and (value := at.get(point.timestamp)) is not None
    ]
    x, y = np.array(pairs, dtype=float).reshape(-1, 2).T
    if len(pairs) < parameters.min_pairs or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation((one.metric, other.metric), None, "weak")
    # Scaled first, so that squares of large or tiny figures neither overflow nor vanish.
    x, y = (scaled - scaled.mean() for scaled in (x / np.abs(x).max(), y / np.abs(y).max()))
    r = float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))
    r = max(-1.0, min(1.0, r))
    size = abs(r)
    strength: Strength = (
        "strong" if size > parameters.strong_above else "moderate" if size > parameters.moderate_above else "weak"
    )
    return Correlation((one.metric, other.metric), r, strength)


def metric_rows(result: UsageTrend | MultiMetricTrend) -> list[MetricRow]:
    """`tokens_by_day` per bucket, `tokens_peak` (at its moment) and the like for the whole, `correlation` per pair of metrics."""
    if isinstance(result, MultiMetricTrend):
        rows = [row for trend in result.trends.values() for row in metric_rows(trend)]
        return rows + [
            MetricRow("correlation", found.correlation, "metrics", pair) for pair, found in result.correlations.items()
        ]
    name, found = result.metric, result.analysis
    return [
        *(MetricRow(f"{name}_by_{result.granularity}", point.value, moment=point.timestamp) for point in result.data),
        MetricRow(f"{name}_change_rate", found.change_rate),
        MetricRow(f"{name}_average", found.average),
        MetricRow(f"{name}_standard_deviation", found.standard_deviation),
        MetricRow(f"{name}_peak", found.peak_value, moment=found.peak_time),
        MetricRow(f"{name}_trough", found.trough_value, moment=found.trough_time),
    ]
