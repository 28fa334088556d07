"""Two periods compared (section 11): metrics, dimensions, insights, recommendations and a summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Literal

from tokentra_dagster.analytics.comparison_advice import ComparisonRecommendation, comparison_recommendations
from tokentra_dagster.analytics.comparison_dimensions import DimensionComparison, read_dimension
from tokentra_dagster.analytics.comparison_insights import ComparisonInsight, comparison_insights
from tokentra_dagster.analytics.comparison_metrics import (
    DEFAULTS,
    METRICS,
    ComparisonParameters,
    MetricComparison,
    Where,
    compare_metrics,
    read_figures,
)
from tokentra_dagster.analytics.comparison_periods import ComparisonPeriods
from tokentra_dagster.analytics.noise import usual_changes
from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.analytics.results import InsightRow, MetricRow, RecommendationRow
from tokentra_dagster.analytics.sources import UsageSource

Health = Literal["improving", "stable", "declining"]
BETTER = {"errorRate": "decrease", "avgLatencyMs": "decrease", "tokensPerRequest": "decrease", "cacheHitRate": "increase"}
"""The metrics that can improve or regress, and which direction is better. More or fewer tokens are neither."""


@dataclass(frozen=True, slots=True)
class ComparisonSummary:
    """`improvements + regressions + stable + unknown` are all metrics; `unknown`: one side of it is not known."""

    total_metrics_compared: int
    improvements: int
    regressions: int
    stable: int
    unknown: int
    overall_health: Health


@dataclass(frozen=True, slots=True)
class UsageComparison:
    """The specification's `UsageComparisonResult`. `notes`: what a reader must know of the periods before trusting a percentage."""

    periods: ComparisonPeriods
    summary: ComparisonSummary
    metrics: tuple[MetricComparison, ...]
    dimension_comparisons: tuple[DimensionComparison, ...]
    insights: tuple[ComparisonInsight, ...]
    recommendations: tuple[ComparisonRecommendation, ...]
    notes: tuple[str, ...]


def compare_usage(
    usage: UsageSource,
    periods: ComparisonPeriods,
    dimensions: Sequence[str] = (),
    where: Where | None = None,
    parameters: ComparisonParameters = DEFAULTS,
) -> UsageComparison:
    """Compares two periods (`comparison_periods` finds them) of usage that matches `where`, over all metrics and the dimensions asked for.

    Reads one frame and one summary for each period and each past period that says what is usual, and two frames for each dimension.
    Raises `UsageError` for an unknown dimension. Where the previous period is before the organisation's first usage nothing has changed
    yet, so there are no insights, but a note.
    """
    current, previous = periods.current.period, periods.previous.period
    first = usage.first_usage()
    began = first is not None and first < previous.end
    usual = usual_changes(lambda period: asdict(read_figures(usage, period, where)), current, previous, first, parameters.noise)
    metrics = compare_metrics(read_figures(usage, current, where), read_figures(usage, previous, where), usual, parameters)
    compared = [read_dimension(usage, current, previous, dimension, where, parameters) for dimension in dimensions]
    return UsageComparison(
        periods=periods,
        summary=summarize(metrics, parameters),
        metrics=metrics,
        dimension_comparisons=tuple(one.limited(parameters.max_items) for one in compared),
        insights=comparison_insights(metrics, compared, alike=periods.alike, parameters=parameters) if began else (),
        recommendations=comparison_recommendations(metrics, compared, parameters),
        notes=_notes(first, periods),
    )


def summarize(metrics: Sequence[MetricComparison], parameters: ComparisonParameters = DEFAULTS) -> ComparisonSummary:
    """Counts what improved and what regressed (correction 36). Pure.

    Only the metrics of `BETTER` can, and only by a change that `matters`; every other known metric is stable. The rule for health:
    "improving" with at least `health_min` (2) improvements and more than `health_factor` (2) times as many as regressions,
    "declining" the same way round, else "stable". So one change of one metric never decides, and nothing at all is stable.
    """
    improvements = regressions = unknown = 0
    for metric in metrics:
        if metric.direction is None:
            unknown += 1
        elif metric.metric in BETTER and metric.matters and metric.direction != "stable":
            better = metric.direction == BETTER[metric.metric]
            improvements, regressions = improvements + better, regressions + (not better)
    return ComparisonSummary(
        total_metrics_compared=len(metrics),
        improvements=improvements,
        regressions=regressions,
        stable=len(metrics) - improvements - regressions - unknown,
        unknown=unknown,
        overall_health=health(improvements, regressions, parameters),
    )


def health(improvements: int, regressions: int, parameters: ComparisonParameters = DEFAULTS) -> Health:
    if improvements >= parameters.health_min and improvements > parameters.health_factor * regressions:
        return "improving"
    if regressions >= parameters.health_min and regressions > parameters.health_factor * improvements:
        return "declining"
    return "stable"


def _notes(first: datetime | None, periods: ComparisonPeriods) -> tuple[str, ...]:
    current, previous = periods.current.period, periods.previous.period
    notes = []
    if not periods.alike:
        notes.append(
            f"The periods differ in length ({current.days:.1f} and {previous.days:.1f} days): "
            "compare the rates and the figures per day, not the sums."
        )
    if periods.overlap:
        notes.append("The periods overlap: what both hold is compared with itself.")
    if first is None or first >= previous.end:
        notes.append("The previous period is before the first usage: there is nothing to compare with.")
    elif first > previous.start and Period(previous.start, first).days >= 1:
        notes.append(f"Usage began on {first.date()}, inside the previous period: its sums are of a part of it.")
    return tuple(notes)


def metric_rows(result: UsageComparison) -> list[MetricRow]:
    """Per metric: `<metric>` (current), `<metric>_previous`, `<metric>_change_pct` and `<metric>_usual_variation_pct`; per value of each
    dimension tokens and requests the same way, and `token_share_pct` with its `_previous`."""
    rows = []
    for metric in result.metrics:
        name = METRICS[metric.metric]
        rows += [
            MetricRow(name, metric.current_value),
            MetricRow(f"{name}_previous", metric.previous_value),
            MetricRow(f"{name}_change_pct", metric.percentage_change),
            MetricRow(f"{name}_usual_variation_pct", metric.usual_variation_pct),
        ]
    for dimension in result.dimension_comparisons:
        for item in dimension.items:
            figures: dict[str, float | int | None] = {
                "total_tokens": item.current_tokens,
                "total_tokens_previous": item.previous_tokens,
                "total_tokens_change_pct": item.token_change,
                "total_requests": item.current_requests,
                "total_requests_previous": item.previous_requests,
                "total_requests_change_pct": item.request_change,
                "token_share_pct": item.percentage_of_total.current,
                "token_share_pct_previous": item.percentage_of_total.previous,
            }
            rows += [MetricRow(name, value, dimension.dimension, item.value) for name, value in figures.items()]
    return rows


def insight_rows(result: UsageComparison) -> list[InsightRow]:
    """`impact_pct` is a change in percent, except for a new value (its share) and concentration (percentage points)."""
    return [
        InsightRow(
            kind=one.type,
            severity=one.severity,
            title=one.title,
            description=one.description,
            metric=METRICS[one.metric] if one.metric else None,
            dimension=one.dimension,
            dimension_value=one.dimension_value,
            impact_tokens=one.impact.tokens if one.impact else None,
            impact_pct=one.impact.percentage if one.impact else None,
        )
        for one in result.insights
    ]


def recommendation_rows(result: UsageComparison) -> list[RecommendationRow]:
    """Without savings: a comparison of tokens does not know any."""
    return [
        RecommendationRow(
            category=one.category,
            priority=one.priority,
            title=one.title,
            description=f"{one.description}. {one.expected_impact}.",
            action="; ".join(one.action_items),
            dimension=one.dimension,
            dimension_value=one.dimension_value,
        )
        for one in result.recommendations
    ]
