"""A picture and a small table of each analysis: what the Dagster UI shows of a materialisation, and the report on its page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from tokentra_dagster.analyses import Efficiency
from tokentra_dagster.analytics.anomaly_results import AnomalyReport
from tokentra_dagster.analytics.breakdowns import UsageBreakdown
from tokentra_dagster.analytics.comparison import UsageComparison
from tokentra_dagster.analytics.coverage import AttributionCoverage
from tokentra_dagster.analytics.dashboard import UsageDashboardData
from tokentra_dagster.analytics.forecast import Forecast, MonthForecast
from tokentra_dagster.analytics.model_usage import ModelUsageAnalysis
from tokentra_dagster.analytics.multidimensional import MultiDimensionalBreakdown
from tokentra_dagster.analytics.patterns import UsagePatternAnalysis
from tokentra_dagster.analytics.seasonality import SeasonalAnalysis
from tokentra_dagster.analytics.trends import MultiMetricTrend, UsageTrend
from tokentra_dagster.analytics.user_report import UserActivityReport
from tokentra_dagster.charts import Point, bar_chart, heat_map, short_number, time_chart

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Table = tuple[Sequence[str], Sequence[Sequence[Any]]]
"""Headings and rows; figures as they are, None for unknown."""
TOP = 10


def points(trend: UsageTrend) -> list[Point]:
    return [(point.timestamp, None if point.value is None else float(point.value)) for point in trend.data]


def trend_figure(trend: UsageTrend, unit: str, found: AnomalyReport | None = None) -> Figure:
    """A trend by day, with the organisation's own anomalies of that metric marked on their days."""
    line = points(trend)
    values = {moment.date(): value for moment, value in line}
    days = {
        anomaly.start.date()
        for anomaly in (found.anomalies if found else ())
        if anomaly.dimension is None and anomaly.measure == trend.metric
    }
    marks = [(_midnight(day), value) for day in sorted(days) if (value := values.get(day)) is not None]
    return time_chart({unit: line}, unit, marks=marks)


def breakdown_figure(found: UsageBreakdown, currency: str) -> Figure:
    """Cost by value where anything is priced, else tokens."""
    if any(item.estimated_cost for item in found.items):
        ordered = sorted(found.items, key=lambda item: -(item.estimated_cost or 0))
        return bar_chart([(item.dimension_label, float(item.estimated_cost or 0)) for item in ordered[:TOP]], currency)
    return bar_chart([(item.dimension_label, item.total_tokens or 0) for item in found.items[:TOP]], "tokens")


def breakdown_table(found: UsageBreakdown, currency: str) -> Table:
    return (
        [found.dimension, "tokens", "% of tokens", "requests", currency],
        [[i.dimension_label, i.total_tokens, i.percentage, i.request_count, i.estimated_cost] for i in found.items],
    )


def pattern_figure(found: UsagePatternAnalysis) -> Figure:
    return heat_map(found.heat_map.avg_tokens, f"average tokens in an hour ({found.time_zone})")


def forecast_figure(found: Forecast, unit: str) -> Figure:
    """Days known and days to come, with the 80 % interval of each."""
    known = [(_midnight(p.day), None if p.actual is None else float(p.actual)) for p in found.points if p.actual is not None]
    coming = [p for p in found.points if p.expected is not None]
    band = [
        (_midnight(p.day), float(p.lower_80), float(p.upper_80))
        for p in coming
        if p.lower_80 is not None and p.upper_80 is not None
    ]
    expected = [(_midnight(p.day), float(p.expected)) for p in coming if p.expected is not None]
    return time_chart({"known": known, "expected": expected}, unit, band=band)


def anomaly_table(found: AnomalyReport) -> Table:
    return (
        ["from (UTC)", "to", "of", "what", "severity", "actual", "expected", "moved most"],
        [
            [
                a.start, a.end, f"{a.dimension}: {a.dimension_value or 'Unknown'}" if a.dimension else "everything",
                f"{a.measure} {a.direction}", a.severity, a.actual, a.expected,
                "; ".join(f"{c.dimension} {c.value or 'Unknown'} ({c.share:.0%})" for c in a.contributions[:2]),
            ]
            for a in found.anomalies[:TOP]
        ],
    )  # fmt: skip


def comparison_table(found: UsageComparison) -> Table:
    return (
        ["metric", "now", "before", "change %", "usual up to ± %", "beyond noise"],
        [
            [
                m.metric, m.current_value, m.previous_value, m.percentage_change, m.usual_variation_pct,
                None if m.is_beyond_noise is None else "yes" if m.is_beyond_noise else "no",
            ]
            for m in found.metrics
        ],
    )  # fmt: skip


def _dashboard(found: UsageDashboardData) -> tuple[Figure, Table]:
    summary = found.summary
    names = ("total_tokens", "total_requests", "estimated_cost", "error_rate", "cache_hit_rate", "avg_latency_ms", "unique_users")
    return trend_figure(found.token_trend, "tokens"), (["figure", "value"], [[name, getattr(summary, name)] for name in names])


def _trends(found: MultiMetricTrend) -> tuple[Figure, Table]:
    rows = [
        [metric, t.analysis.direction, t.analysis.average, t.analysis.peak_value, t.analysis.peak_time]
        for metric, t in found.trends.items()
    ]
    return trend_figure(found.trends["cost"], "cost"), (["metric", "direction", "average a day", "peak", "on"], rows)


def _breakdowns(found: MultiDimensionalBreakdown) -> tuple[Figure, Table]:
    return breakdown_figure(found.breakdowns["model"], "cost"), breakdown_table(found.breakdowns["feature"], "cost")


def _efficiency(found: Efficiency) -> tuple[Figure, Table]:
    items = [(kind.kind, float(kind.high)) for kind in found.savings.kinds() if kind.high is not None]
    rows = [[r.title, r.priority, r.savings_low, r.savings_high, r.assumptions] for r in found.analysis.recommendations] + [
        [kind.kind, "", kind.low, kind.high, "; ".join(found.savings.assumptions)] for kind in found.savings.kinds()
    ]
    unit = f"{found.savings.currency} that could have been saved at most"
    return bar_chart(items, unit), (["recommendation", "priority", "low", "high", "assumptions"], rows)


def _patterns(found: UsagePatternAnalysis) -> tuple[Figure, Table]:
    rows = [[day.day_name, day.avg_tokens, day.avg_requests] for day in found.daily_pattern]
    return pattern_figure(found), (["day", "average tokens", "average requests"], rows)


def _seasonality(found: SeasonalAnalysis) -> tuple[Figure, Table]:
    items = [(pattern.label, pattern.index_vs_average or 0) for pattern in found.daily_seasonality]
    rows = [[peak.type, peak.label, peak.intensity] for peak in found.peak_periods]
    return bar_chart(items, "% of the average day"), (["peak", "when", "% of average"], rows)


def _models(found: ModelUsageAnalysis) -> tuple[Figure, Table]:
    series = {
        model.model: [(_midnight(day.date), None if day.tokens is None else float(day.tokens)) for day in model.daily_usage]
        for model in found.models[:6]
    }
    rows = [[model.model, model.total_tokens, model.request_count, model.estimated_cost] for model in found.models[:TOP]]
    return time_chart(series, "tokens"), (["model", "tokens", "requests", "cost"], rows)


def _comparison(found: UsageComparison) -> tuple[Figure, Table]:
    items = [(m.metric, m.percentage_change) for m in found.metrics if m.percentage_change is not None]
    return bar_chart(items, "% of the period before"), comparison_table(found)


def _anomalies(found: AnomalyReport) -> tuple[Figure, Table]:
    largest = sorted(found.anomalies, key=lambda a: -a.score)[:TOP]
    items = [(f"{a.start:%d %b %H:%M} {a.measure} {a.dimension_value or 'everything'}", a.score) for a in largest]
    return bar_chart(items, "robust spreads away from what was expected"), anomaly_table(found)


def _forecast(found: MonthForecast) -> tuple[Figure, Table]:
    rows = [[f.measure, f.actual, f.expected, f.lower_80, f.upper_80, f.previous_month] for f in (found.tokens, found.cost)]
    headings = ["month's", "so far", "expected at its end", "80 % from", "to", "month before"]
    return forecast_figure(found.cost, found.currency), (headings, rows)


def _coverage(found: AttributionCoverage) -> tuple[Figure, Table]:
    dimensions = {name: getattr(found.dimensions, name) for name in found.dimensions.__dataclass_fields__}
    items = [(name, d.token_coverage_pct or 0) for name, d in dimensions.items()]
    rows = [[name, d.token_coverage_pct, d.attributed_tokens, d.total_tokens] for name, d in dimensions.items()]
    return bar_chart(items, "% of tokens attributed"), (["dimension", "% of tokens", "attributed", "all"], rows)


def _users(found: UserActivityReport) -> tuple[Figure, Table]:
    items = [(user.user_display_name or user.user_identifier, user.total_tokens or 0) for user in found.users[:TOP]]
    rows = [
        [u.user_display_name or u.user_identifier, u.total_tokens, u.request_count, u.estimated_cost, u.active_days]
        for u in found.users[:TOP]
    ]
    return bar_chart(items, "tokens"), (["user", "tokens", "requests", "cost", "active days"], rows)


EVIDENCE: Mapping[str, Callable[[Any], tuple[Figure, Table]]] = {
    "dashboard": _dashboard, "trends": _trends, "breakdowns": _breakdowns, "efficiency": _efficiency, "patterns": _patterns,
    "seasonality": _seasonality, "models": _models, "comparison": _comparison, "anomalies": _anomalies, "forecast": _forecast,
    "coverage": _coverage, "users": _users,
}  # fmt: skip


def figure_text(value: Any) -> str:
    """A figure in a table: unknown is a dash, never 0."""
    if value is None:
        return "–"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, Decimal):
        return f"{value:,.2f}"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) < 10_000 else short_number(value)
    return f"{value:,}"


def markdown(table: Table) -> str:
    headings, rows = table
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    lines += [
        "| " + " | ".join(figure_text(value).replace("|", "\\|").replace("\n", " ") for value in row) + " |" for row in rows
    ]
    return "\n".join(lines)


def _midnight(day: Any) -> datetime:
    return datetime.combine(day, time(), UTC)
