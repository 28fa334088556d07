"""What a report says: the analyses of one period, in the order in which they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tokentra_dagster.analyses import ANALYSES, METRICS, Request
from tokentra_dagster.analytics.anomaly_results import AnomalyReport
from tokentra_dagster.analytics.breakdowns import UsageBreakdown, usage_breakdown
from tokentra_dagster.analytics.comparison import UsageComparison
from tokentra_dagster.analytics.dashboard import UsageDashboardData
from tokentra_dagster.analytics.forecast import MonthForecast
from tokentra_dagster.analytics.patterns import UsagePatternAnalysis
from tokentra_dagster.analytics.periods import Granularity, Period
from tokentra_dagster.analytics.results import InsightRow, RecommendationRow
from tokentra_dagster.analytics.trends import MultiMetricTrend, multi_metric_trend

BREAKDOWNS = ("model", "feature", "team", "project", "user", "environment")
NARROW_DAYS = 3
"""A period up to this long is drawn by the hour."""
SEVERITIES = ("critical", "warning", "info")
PRIORITIES = ("critical", "high", "medium", "low")


@dataclass(frozen=True, slots=True)
class Report:
    """Results as the analyses gave them; insights and recommendations of all of them, the gravest first."""

    organization: str
    period: Period
    known_until: datetime
    currency: str
    dashboard: UsageDashboardData
    trends: MultiMetricTrend
    breakdowns: Sequence[UsageBreakdown]
    patterns: UsagePatternAnalysis
    comparison: UsageComparison
    efficiency: Any
    anomalies: AnomalyReport
    forecast: MonthForecast
    coverage: Any
    insights: Sequence[InsightRow]
    recommendations: Sequence[RecommendationRow]


def collect(request: Request, organization: str) -> Report:
    """Run what the report shows. Dimensions without a single value are left out."""
    results = {
        name: ANALYSES[name].compute(request)
        for name in ("dashboard", "patterns", "comparison", "efficiency", "anomalies", "forecast", "coverage")
    }
    granularity: Granularity = "hour" if request.period.days <= NARROW_DAYS else "day"
    breakdowns = [usage_breakdown(request.usage, request.period, dimension, limit=8, trend=True) for dimension in BREAKDOWNS]
    insights = _gathered(results, lambda name: ANALYSES[name].insight_rows)
    advice = _gathered(results, lambda name: ANALYSES[name].recommendation_rows)
    return Report(
        organization=organization,
        period=request.period,
        known_until=request.known_until,
        currency=request.usage.currency,
        trends=multi_metric_trend(request.usage, request.period, METRICS, granularity),
        breakdowns=[found for found in breakdowns if any(not item.is_unknown for item in found.items)],
        insights=sorted(insights, key=lambda row: SEVERITIES.index(row.severity)),
        recommendations=sorted(advice, key=lambda row: (PRIORITIES.index(row.priority), -(row.savings_high or 0))),
        **results,
    )


def _gathered(results: dict[str, Any], rows_of: Callable[[str], Callable[[Any], Sequence[Any]]]) -> list[Any]:
    return [row for name, result in results.items() for row in rows_of(name)(result)]
