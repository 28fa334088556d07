"""Which analyses there are: what each computes, over which windows, and what the tables of schema `analytics` get of it.

The command line, the Dagster assets and the report all run them from here. A result is a dataclass of `tokentra_dagster.analytics`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from tokentra_dagster.analytics import (
    anomalies,
    comparison,
    coverage,
    dashboard,
    efficiency,
    forecast,
    model_usage,
    multidimensional,
    patterns,
    seasonality,
    sources,
    trends,
    user_report,
)
from tokentra_dagster.analytics.comparison_periods import ComparisonPeriods, DateRange
from tokentra_dagster.analytics.efficiency import TokenEfficiencyAnalysis
from tokentra_dagster.analytics.periods import DAY, Period, last_days, month_of
from tokentra_dagster.analytics.priced_cells import Prices
from tokentra_dagster.analytics.results import InsightRow, MetricRow, RecommendationRow, camel
from tokentra_dagster.analytics.savings import PotentialSavings, analyze_potential_savings
from tokentra_dagster.analytics.savings import metric_rows as savings_rows
from tokentra_dagster.analytics.sources import UsageSource

DIMENSIONS = tuple(camel(name) for name in sources.DIMENSIONS)
"""In the specification's spelling, as results have them."""
COMPARED = ("provider", "model", "feature", "team", "project", "environment")
METRICS: tuple[trends.Metric, ...] = ("tokens", "requests", "errors", "cost", "latency")
STORED_VALUES = 50
"""Values of a dimension, or users, that the tables name; a breakdown's rest is one `Other`."""
WINDOWS = ("7d", "30d", "90d", "month")


@dataclass(frozen=True, slots=True)
class Request:
    """What an analysis reads and over which time. `known_until`: what is later is not known yet, so nothing there is a drop."""

    usage: UsageSource
    period: Period
    known_until: datetime
    prices: Prices
    time_zone: str = "UTC"


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Section 5's analysis, with what the organisation's own usage says could be saved."""

    analysis: TokenEfficiencyAnalysis
    savings: PotentialSavings


@dataclass(frozen=True, slots=True)
class Analysis:
    """One analysis. `windows`: for which of `windows_of` the assets compute it."""

    name: str
    title: str
    compute: Callable[[Request], Any]
    metric_rows: Callable[[Any], Sequence[MetricRow]]
    insight_rows: Callable[[Any], Sequence[InsightRow]] = lambda _: ()
    recommendation_rows: Callable[[Any], Sequence[RecommendationRow]] = lambda _: ()
    windows: tuple[str, ...] = WINDOWS


def windows_of(day: date) -> dict[str, Period]:
    """The windows that end with a UTC day: its last 7, 30 and 90 days, and its calendar month up to and with it."""
    month = month_of(day)
    end = month.start + day.day * DAY
    return {"7d": last_days(end, 7), "30d": last_days(end, 30), "90d": last_days(end, 90), "month": Period(month.start, end)}


def efficiency_with_savings(request: Request) -> Efficiency:
    savings = analyze_potential_savings(request.usage, request.period, request.prices)
    return Efficiency(efficiency.analyze_token_efficiency(request.usage, request.period, savings), savings)


def with_previous(period: Period) -> ComparisonPeriods:
    """The period and the one of the same length just before."""
    before = period.before("previous")
    return ComparisonPeriods(DateRange(period.start, period.end), DateRange(before.start, before.end))


def _efficiency_metrics(result: Efficiency) -> list[MetricRow]:
    return [*efficiency.metric_rows(result.analysis), *savings_rows(result.savings)]


_ALL = (
    Analysis(
        "dashboard", "Dashboard", lambda r: dashboard.usage_dashboard(r.usage, r.period), dashboard.metric_rows,
    ),
    Analysis(
        "trends", "Trends and correlations", lambda r: trends.multi_metric_trend(r.usage, r.period, METRICS, "day"), trends.metric_rows,
    ),
    Analysis(
        "breakdowns", "Breakdowns by every dimension",
        lambda r: multidimensional.multi_dimensional_breakdown(r.usage, r.period, DIMENSIONS, limit=STORED_VALUES),
        multidimensional.metric_rows, multidimensional.insight_rows,
    ),
    Analysis(
        "efficiency", "Token efficiency and potential savings", efficiency_with_savings, _efficiency_metrics,
        recommendation_rows=lambda result: efficiency.recommendation_rows(result.analysis, result.savings),
    ),
    Analysis(
        "patterns", "Usage patterns and growth", lambda r: patterns.analyze_usage_patterns(r.usage, r.period, r.time_zone),
        patterns.metric_rows,
    ),
    Analysis(
        "seasonality", "Seasonality", lambda r: seasonality.analyze_seasonality(r.usage, r.period), seasonality.metric_rows,
        recommendation_rows=seasonality.recommendation_rows, windows=("90d",),
    ),
    Analysis(
        "models", "Model usage", lambda r: model_usage.analyze_model_usage(r.usage, r.period), model_usage.metric_rows,
    ),
    Analysis(
        "comparison", "Comparison with the period before",
        lambda r: comparison.compare_usage(r.usage, with_previous(r.period), COMPARED),
        comparison.metric_rows, comparison.insight_rows, comparison.recommendation_rows,
    ),
    Analysis(
        "anomalies", "Anomalies", lambda r: anomalies.analyze_anomalies(r.usage, r.period, r.known_until), anomalies.metric_rows,
        anomalies.insight_rows, windows=("7d", "30d"),
    ),
    Analysis(
        "forecast", "Month-end forecast", lambda r: forecast.analyze_forecast(r.usage, r.known_until), forecast.metric_rows,
        forecast.insight_rows, windows=("month",),
    ),
    Analysis(
        "coverage", "Attribution coverage", lambda r: coverage.analyze_coverage(r.usage, r.period), coverage.metric_rows,
        recommendation_rows=coverage.recommendation_rows,
    ),
    Analysis(
        "users", "User activity", lambda r: user_report.analyze_user_activity(r.usage, r.period, limit=STORED_VALUES),
        user_report.metric_rows,
    ),
)  # fmt: skip
ANALYSES = {analysis.name: analysis for analysis in _ALL}
