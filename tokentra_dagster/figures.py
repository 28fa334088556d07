"""A picture of each result: what the Dagster UI shows of a materialisation, and the report on its page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, date, datetime, time
from functools import singledispatch
from typing import TYPE_CHECKING, Any

from tokentra_dagster.analyses import Efficiency
from tokentra_dagster.analytics.anomaly_results import AnomalyReport
from tokentra_dagster.analytics.breakdowns import UsageBreakdown
from tokentra_dagster.analytics.comparison import UsageComparison
from tokentra_dagster.analytics.coverage import AttributionCoverage, CoverageDimensions
from tokentra_dagster.analytics.dashboard import UsageDashboardData
from tokentra_dagster.analytics.forecast import Forecast, MonthForecast
from tokentra_dagster.analytics.model_usage import ModelUsageAnalysis
from tokentra_dagster.analytics.multidimensional import MultiDimensionalBreakdown
from tokentra_dagster.analytics.patterns import UsagePatternAnalysis
from tokentra_dagster.analytics.seasonality import SeasonalAnalysis
from tokentra_dagster.analytics.trends import MultiMetricTrend, UsageTrend
from tokentra_dagster.analytics.user_report import UserActivityReport
from tokentra_dagster.charts import bar_chart, heat_map, time_chart

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOP = 10
LINES = 6


@singledispatch
def figure_of(result: Any) -> Figure:
    """The picture that says most of a result."""
    raise TypeError(f"There is no figure for {type(result).__name__}.")


def trend_figure(trend: UsageTrend, unit: str, found: AnomalyReport | None = None) -> Figure:
    """A trend, with the organisation's own anomalies of that metric marked on their days."""
    line = [(point.timestamp, None if point.value is None else float(point.value)) for point in trend.data]
    values = {moment.date(): value for moment, value in line}
    days = {a.start.date() for a in (found.anomalies if found else ()) if a.dimension is None and a.measure == trend.metric}
    marks = [(_midnight(day), value) for day in sorted(days) if (value := values.get(day)) is not None]
    return time_chart({unit: line}, unit, marks=marks)


def forecast_figure(found: Forecast, unit: str) -> Figure:
    """Days known and days to come, with the 80 % interval of each."""
    known = [(_midnight(p.day), float(p.actual)) for p in found.points if p.actual is not None and p.expected is None]
    coming = [p for p in found.points if p.expected is not None]
    expected = [(_midnight(p.day), float(p.expected)) for p in coming if p.expected is not None]
    band = [
        (_midnight(p.day), float(p.lower_80), float(p.upper_80))
        for p in coming
        if p.lower_80 is not None and p.upper_80 is not None
    ]
    return time_chart({"known": known, "expected": expected}, unit, band=band)


@figure_of.register(UsageTrend)
def _(result: UsageTrend) -> Figure:
    return trend_figure(result, result.metric)


@figure_of.register(UsageDashboardData)
def _(result: UsageDashboardData) -> Figure:
    return trend_figure(result.token_trend, "tokens")


@figure_of.register(MultiMetricTrend)
def _(result: MultiMetricTrend) -> Figure:
    return trend_figure(result.trends["cost"], "cost")


@figure_of.register(UsageBreakdown)
def _(result: UsageBreakdown) -> Figure:
    """Cost by value where anything is priced, else tokens."""
    if any(item.estimated_cost for item in result.items):
        ordered = sorted(result.items, key=lambda item: -(item.estimated_cost or 0))
        return bar_chart([(item.dimension_label, float(item.estimated_cost or 0)) for item in ordered[:TOP]], "cost")
    return bar_chart([(item.dimension_label, item.total_tokens or 0) for item in result.items[:TOP]], "tokens")


@figure_of.register(MultiDimensionalBreakdown)
def _(result: MultiDimensionalBreakdown) -> Figure:
    return figure_of(result.breakdowns["model"])


@figure_of.register(Efficiency)
def _(result: Efficiency) -> Figure:
    items = [(kind.kind.replace("_", " "), float(kind.high)) for kind in result.savings.kinds() if kind.high is not None]
    return bar_chart(items, f"{result.savings.currency} that could have been saved at most")


@figure_of.register(UsagePatternAnalysis)
def _(result: UsagePatternAnalysis) -> Figure:
    return heat_map(result.heat_map.avg_tokens, f"average tokens in an hour ({result.time_zone})")


@figure_of.register(SeasonalAnalysis)
def _(result: SeasonalAnalysis) -> Figure:
    return bar_chart([(p.label, p.index_vs_average or 0) for p in result.daily_seasonality], "% of the average day")


@figure_of.register(ModelUsageAnalysis)
def _(result: ModelUsageAnalysis) -> Figure:
    series = {
        model.model: [(_midnight(day.date), None if day.tokens is None else float(day.tokens)) for day in model.daily_usage]
        for model in result.models[:LINES]
    }
    return time_chart(series, "tokens")


@figure_of.register(UsageComparison)
def _(result: UsageComparison) -> Figure:
    return bar_chart([(m.metric, m.percentage_change) for m in result.metrics if m.percentage_change is not None], "change in %")


@figure_of.register(AnomalyReport)
def _(result: AnomalyReport) -> Figure:
    largest = sorted(result.anomalies, key=lambda a: -a.score)[:TOP]
    items = [(f"{a.start:%d %b %H:%M} {a.measure} {a.dimension_value or 'everything'}", a.score) for a in largest]
    return bar_chart(items, "robust spreads away from what was expected")


@figure_of.register(MonthForecast)
def _(result: MonthForecast) -> Figure:
    return forecast_figure(result.cost, result.currency)


@figure_of.register(AttributionCoverage)
def _(result: AttributionCoverage) -> Figure:
    named: Sequence[tuple[str, float]] = [
        (field.name.replace("_", " "), getattr(result.dimensions, field.name).token_coverage_pct or 0)
        for field in fields(CoverageDimensions)
    ]
    return bar_chart(named, "% of tokens attributed")


@figure_of.register(UserActivityReport)
def _(result: UserActivityReport) -> Figure:
    return bar_chart([(u.user_display_name or u.user_identifier, u.total_tokens or 0) for u in result.users[:TOP]], "tokens")


def _midnight(day: date | str) -> datetime:
    return datetime.combine(date.fromisoformat(day) if isinstance(day, str) else day, time(), UTC)
