"""Small tables of each result, for people: the command line prints them, the Dagster UI and the report show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime
from decimal import Decimal
from functools import singledispatch
from typing import Any

from tokentra_dagster.analyses import Efficiency
from tokentra_dagster.analytics.anomaly_results import AnomalyReport
from tokentra_dagster.analytics.breakdowns import DrilldownBreakdown, UsageBreakdown, UsageBreakdownItem
from tokentra_dagster.analytics.comparison import UsageComparison
from tokentra_dagster.analytics.coverage import AttributionCoverage, CoverageDimensions
from tokentra_dagster.analytics.dashboard import UsageDashboardData
from tokentra_dagster.analytics.forecast import MonthForecast
from tokentra_dagster.analytics.model_usage import ModelUsageAnalysis
from tokentra_dagster.analytics.multidimensional import MultiDimensionalBreakdown
from tokentra_dagster.analytics.patterns import UsagePatternAnalysis
from tokentra_dagster.analytics.results import PercentageChange, change
from tokentra_dagster.analytics.seasonality import SeasonalAnalysis
from tokentra_dagster.analytics.summary import UsageSummaryWithComparison
from tokentra_dagster.analytics.trends import MultiMetricTrend, UsageTrend
from tokentra_dagster.analytics.user_report import UserActivityReport
from tokentra_dagster.markdown import are_figures
from tokentra_dagster.markdown import table as markdown_table

UNKNOWN = "–"


@dataclass(frozen=True, slots=True)
class Table:
    """Headings and rows of figures as they are; None is unknown."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Any]]


def figure_text(value: Any) -> str:
    """A figure as a person reads it; unknown is a dash, never 0."""
    if value is None:
        return UNKNOWN
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d}" if (value.hour, value.minute) == (0, 0) else f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, date | bool | str):
        return str(value)
    if isinstance(value, Decimal):
        return f"{value:,.4f}" if 0 < abs(value) < Decimal("0.1") else f"{value:,.2f}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.2f}" if abs(value) >= 0.01 or value == 0 else f"{value:.2g}"
    return f"{value:,}"


def is_number(table: Table, column: int) -> bool:
    """Whether a column holds figures, which are set to the right."""
    return are_figures(row[column] for row in table.rows)


def markdown(table: Table) -> str:
    """For Dagster's metadata."""
    return f"**{table.title}**\n\n" + markdown_table(table.headings, table.rows, empty="Nothing.", text=figure_text)


@singledispatch
def tables_of(result: Any) -> list[Table]:
    """The tables of any result, the most important first."""
    raise TypeError(f"There is no table for {type(result).__name__}.")


def judged_change(current: Any, previous: Any, lower_is_better: bool | None) -> tuple[PercentageChange, str]:
    """How a figure moved, and whether that is `better` or `worse`; empty where it is neither (`lower_is_better` None) or flat."""
    moved = change(current, previous, lower_is_better=bool(lower_is_better))
    if lower_is_better is None or moved.direction == "flat":
        return moved, ""
    return moved, "better" if moved.is_improvement else "worse"


SUMMARY_FIGURES = (
    ("tokens", "total_tokens", None), ("input tokens", "input_tokens", None), ("of it cached", "cached_tokens", None),
    ("of it written to a cache", "cache_creation_tokens", None), ("output tokens", "output_tokens", None),
    ("requests", "total_requests", None), ("cost", "estimated_cost", None), ("unpriced tokens", "unpriced_tokens", True),
    ("error rate %", "error_rate", True), ("cache hit rate %", "cache_hit_rate", False),
    ("tokens per request", "tokens_per_request", None), ("requests per minute", "requests_per_minute", None),
    ("average latency ms", "avg_latency_ms", True), ("p95 latency ms", "p95_latency_ms", True),
    ("models", "unique_models", None), ("users", "unique_users", None), ("features", "unique_features", None),
    ("API keys", "unique_api_keys", None),
)  # fmt: skip
"""Name, field, and whether less of it is better (None: neither is)."""


@tables_of.register(UsageSummaryWithComparison)
def _(result: UsageSummaryWithComparison) -> list[Table]:
    title = f"Summary ({result.currency})"
    if result.comparison is None:
        return [Table(title, ["figure", "value"], [[name, getattr(result, field)] for name, field, _ in SUMMARY_FIGURES])]
    before, rows = result.comparison.previous_value, []
    for name, field, lower_is_better in SUMMARY_FIGURES:
        moved, verdict = judged_change(getattr(result, field), getattr(before, field), lower_is_better)
        rows.append([name, getattr(result, field), getattr(before, field), moved.percentage, verdict])
    return [Table(title, ["figure", "now", f"before ({result.comparison.period})", "change %", ""], rows)]


@tables_of.register(UsageTrend)
def _(result: UsageTrend) -> list[Table]:
    found = result.analysis
    names = (
        "direction",
        "change_rate",
        "average",
        "peak_value",
        "peak_time",
        "trough_value",
        "trough_time",
        "standard_deviation",
    )
    return [
        Table(f"Trend of {result.metric} by {result.granularity}", ["figure", "value"], [[n.replace("_", " "), getattr(found, n)] for n in names]),
        Table(
            "Buckets", ["from (UTC)", result.metric, "input tokens", "output tokens", "requests"],
            [[p.timestamp, p.value, p.input_tokens, p.output_tokens, p.requests] for p in result.data],
        ),
    ]  # fmt: skip


@tables_of.register(MultiMetricTrend)
def _(result: MultiMetricTrend) -> list[Table]:
    rows = [
        [metric, t.analysis.direction, t.analysis.change_rate, t.analysis.average, t.analysis.peak_value, t.analysis.peak_time]
        for metric, t in result.trends.items()
    ]
    pairs = [
        [" and ".join(c.metrics), c.correlation, c.strength] for c in result.correlations.values() if c.correlation is not None
    ]
    return [
        Table(f"Trends by {result.granularity}", ["metric", "direction", "change %", "average", "peak", "on"], rows),
        Table("Correlations", ["metrics", "r", "strength"], pairs),
    ]


def _items(title: str, dimension: str, items: Sequence[UsageBreakdownItem]) -> Table:
    rows = [
        [i.dimension_label, i.total_tokens, i.percentage, i.request_count, i.estimated_cost, i.unpriced_tokens, i.trend or ""]
        for i in items
    ]
    return Table(title, [dimension, "tokens", "% of tokens", "requests", "cost", "unpriced tokens", "trend"], rows)


@tables_of.register(UsageBreakdown)
def _(result: UsageBreakdown) -> list[Table]:
    return [_items(f"Usage by {result.dimension}", result.dimension, result.items)]


@tables_of.register(DrilldownBreakdown)
def _(result: DrilldownBreakdown) -> list[Table]:
    path = ", ".join(f"{step.dimension} {step.value}" for step in result.path)
    return [_items(f"Usage by {result.secondary_dimension} of {path}", result.secondary_dimension, result.items)]


@tables_of.register(MultiDimensionalBreakdown)
def _(result: MultiDimensionalBreakdown) -> list[Table]:
    return [table for found in result.breakdowns.values() for table in tables_of(found)]


@tables_of.register(UsageDashboardData)
def _(result: UsageDashboardData) -> list[Table]:
    users = [
        [u.rank, u.user_display_name or u.user_identifier, u.total_tokens, u.request_count, u.estimated_cost]
        for u in result.top_users
    ]
    tables = [
        *tables_of(result.summary), *tables_of(result.model_breakdown), *tables_of(result.feature_breakdown),
        Table("Top users", ["rank", "user", "tokens", "requests", "cost"], users),
    ]  # fmt: skip
    return [*tables, quota_table(result)] if result.quota_statuses else tables


def quota_table(result: UsageDashboardData) -> Table:
    rows = [
        [q.quota_name, q.scope_type, q.status, q.current_tokens, q.token_limit, q.token_utilization_pct, q.current_requests,
         q.request_limit, q.period_remaining_hours]
        for q in result.quota_statuses
    ]  # fmt: skip
    headings = ["quota", "scope", "status", "tokens", "limit", "% used", "requests", "limit", "hours left"]
    return Table("Quotas", headings, rows)


@tables_of.register(Efficiency)
def _(result: Efficiency) -> list[Table]:
    found, currency = result.analysis, result.savings.currency
    metrics = [[name.replace("_", " "), getattr(found.metrics, name)] for name in found.metrics.__dataclass_fields__]
    models = [
        [
            m.model,
            m.input_tokens,
            m.output_tokens,
            m.tokens_per_request,
            m.cache_hit_rate,
            m.cost_per_request,
            m.cost_per_1k_tokens,
        ]
        for m in found.model_efficiency
    ]
    features = [
        [f.feature, f.total_tokens, f.tokens_per_request, f.error_rate, f.estimated_cost] for f in found.feature_efficiency
    ]
    return [
        Table("Efficiency", ["figure", "value"], metrics),
        savings_table(result),
        Table(
            "By model", ["model", "input", "output", "tokens/request", "cache hits %", "cost/request", "cost/1k tokens"], models
        ),
        Table("By feature", ["feature", "tokens", "tokens/request", "errors %", f"cost {currency}"], features),
    ]


KINDS = {
    "caching": "caching as the best feature does",
    "batch": "batch instead of waiting",
    "model_selection": "the cheaper sibling model",
}


def savings_table(result: Efficiency) -> Table:
    """The three kinds overlap: they are never added."""
    rows = []
    for kind in result.savings.kinds():
        largest = "; ".join(f"{s.model}{f' -> {s.instead}' if s.instead else ''}" for s in kind.savings[:2])
        rows.append([KINDS.get(kind.kind, kind.kind), kind.low, kind.high, kind.considered_cost, largest])
    headings = ["what could have been saved by", "at least", "at most", f"of {result.savings.currency}", "most of it"]
    return Table("Potential savings (they overlap; do not add them)", headings, rows)


@tables_of.register(UsagePatternAnalysis)
def _(result: UsagePatternAnalysis) -> list[Table]:
    peak, growth = result.peak_analysis, result.growth_analysis
    figures: list[list[Any]] = [
        ["busiest hour", peak.peak_hour], ["tokens in it", peak.peak_tokens], ["average tokens an hour", peak.average_tokens],
        ["peak to average", peak.peak_to_average_ratio], ["token growth %, second half", growth.token_growth_rate],
        ["request growth %", growth.request_growth_rate], ["trend", growth.trend],
        ["projected tokens in 30 days", growth.projected_monthly_tokens],
    ]  # fmt: skip
    return [
        Table(f"Peak and growth ({result.time_zone})", ["figure", "value"], figures),
        Table("Days of the week", ["day", "tokens", "requests"], [[d.day_name, d.avg_tokens, d.avg_requests] for d in result.daily_pattern]),
        Table(
            "Hours of the day", ["hour", "tokens", "requests", "% of busiest"],
            [[f"{h.hour:02d}:00", h.avg_tokens, h.avg_requests, h.relative_activity] for h in result.hourly_pattern],
        ),
    ]  # fmt: skip


@tables_of.register(SeasonalAnalysis)
def _(result: SeasonalAnalysis) -> list[Table]:
    parts = (("Days", result.daily_seasonality), ("Weeks", result.weekly_seasonality), ("Hours", result.hourly_seasonality))
    return [
        Table("Peaks", ["peak", "when (UTC)", "% of average"], [[p.type, p.label, p.intensity] for p in result.peak_periods]),
        *(Table(title, ["when", "average tokens", "% of average"], [[p.label, p.avg_value, p.index_vs_average] for p in part]) for title, part in parts),
    ]  # fmt: skip


@tables_of.register(ModelUsageAnalysis)
def _(result: ModelUsageAnalysis) -> list[Table]:
    trend = {t.model: t for t in result.trends}
    share = {d.model: d.percentage for d in result.distribution}
    rows = [
        [m.model, m.provider, m.total_tokens, share[m.model], m.request_count, m.estimated_cost, m.first_used, m.last_used, trend[m.model].trend]
        for m in result.models
    ]  # fmt: skip
    return [
        Table(
            "Models", ["model", "provider", "tokens", "% of tokens", "requests", "cost", "first used", "last used", "trend"], rows
        )
    ]


@tables_of.register(UsageComparison)
def _(result: UsageComparison) -> list[Table]:
    metrics = [
        [m.metric, m.current_value, m.previous_value, m.percentage_change,
         m.significance_level if m.is_significant else "no", {None: "unknown", True: "yes", False: "no"}[m.is_beyond_noise],
         m.usual_variation_pct]
        for m in result.metrics
    ]  # fmt: skip
    headings = ["metric", "now", "before", "change %", "significant", "beyond its usual variation", "usual variation %"]
    tables = [Table(f"Comparison: {result.summary.overall_health}", headings, metrics)]
    for compared in result.dimension_comparisons:
        rows = [
            [i.name, i.current_tokens, i.previous_tokens, i.token_change, i.percentage_of_total.current,
             "new" if i.is_new else "gone" if i.is_removed else ""]
            for i in compared.items
        ]  # fmt: skip
        tables.append(
            Table(f"By {compared.dimension}", [compared.dimension, "tokens now", "before", "change %", "% of all", ""], rows)
        )
    return tables


@tables_of.register(AnomalyReport)
def _(result: AnomalyReport) -> list[Table]:
    rows = [
        [
            a.start, a.end, f"{a.dimension} {a.dimension_label or a.dimension_value or 'Unknown'}" if a.dimension else "everything",
            f"{a.measure} {'level shift' if a.level_shift else a.direction}", a.severity, a.actual, a.expected,
            "; ".join(f"{c.dimension} {c.label or c.value or 'Unknown'} ({c.share:.0%})" for c in a.contributions[:2]),
        ]
        for a in result.anomalies
    ]  # fmt: skip
    return [Table("Anomalies", ["from (UTC)", "to", "of", "what", "severity", "actual", "expected", "moved most"], rows)]


@tables_of.register(MonthForecast)
def _(result: MonthForecast) -> list[Table]:
    rows = [
        [f"{f.measure}{f' ({result.currency})' if f.measure == 'cost' else ''}", f.actual, f.expected, f.lower_80, f.upper_80, f.lower_95,
         f.upper_95, f.previous_month, f.note or ""]
        for f in (result.tokens, result.cost)
    ]  # fmt: skip
    headings = ["of the month", "so far", "expected at its end", "80 % from", "to", "95 % from", "to", "month before", ""]
    return [Table(f"Forecast for {result.tokens.month.start:%B %Y}", headings, rows)]


@tables_of.register(AttributionCoverage)
def _(result: AttributionCoverage) -> list[Table]:
    rows = []
    for field in fields(CoverageDimensions):
        d = getattr(result.dimensions, field.name)
        rows.append(
            [
                field.name.replace("_", " "),
                d.token_coverage_pct,
                d.attributed_tokens,
                d.total_tokens,
                d.record_coverage_pct,
                d.cost_coverage_pct,
            ]
        )
    title = f"Attribution coverage: {figure_text(result.overall_score)} % overall"
    return [Table(title, ["dimension", "% of tokens", "attributed tokens", "all tokens", "% of records", "% of cost"], rows)]


@tables_of.register(UserActivityReport)
def _(result: UserActivityReport) -> list[Table]:
    totals = [[field.name.replace("_", " "), getattr(result.totals, field.name)] for field in fields(result.totals)]
    rows = [
        [u.user_display_name or u.user_identifier, u.total_tokens, u.token_share_pct, u.request_count, u.estimated_cost, u.active_days, u.last_activity]
        for u in result.users
    ]  # fmt: skip
    return [
        Table("Everyone", ["figure", "value"], totals),
        Table("Users", ["user", "tokens", "% of tokens", "requests", "cost", "active days", "last activity"], rows),
    ]
