"""What a comparison tells a person: insights (section 11), by the specification's thresholds and by what is usual."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tokentra_dagster.analytics.comparison_dimensions import DimensionComparison
from tokentra_dagster.analytics.comparison_metrics import DEFAULTS, ComparisonParameters, MetricComparison
from tokentra_dagster.analytics.results import Severity

InsightType = Literal["growth", "efficiency", "anomaly", "shift", "optimization"]
WATCHED = {
    "totalTokens": ("Tokens", 0, ""),
    "errorRate": ("The error rate", 2, "%"),
    "cacheHitRate": ("The cache hit rate", 1, "%"),
    "avgLatencyMs": ("Average latency", 0, " ms"),
    "tokensPerRequest": ("Tokens per request", 0, ""),
}
"""The metrics that insights are about: how a sentence calls them, decimals, unit."""


@dataclass(frozen=True, slots=True)
class InsightImpact:
    """Absolute change in tokens and requests, and the change in percent; None where it says nothing."""

    tokens: int | None = None
    requests: int | None = None
    percentage: float | None = None


@dataclass(frozen=True, slots=True)
class ComparisonInsight:
    """`type`, `severity` and texts as in section 11. `dimension_value`: the value it is about."""

    type: InsightType
    severity: Severity
    title: str
    description: str
    metric: str | None = None
    dimension: str | None = None
    dimension_value: str | None = None
    impact: InsightImpact | None = None


def comparison_insights(
    metrics: Sequence[MetricComparison],
    dimensions: Sequence[DimensionComparison] = (),
    *,
    alike: bool = True,
    parameters: ComparisonParameters = DEFAULTS,
) -> tuple[ComparisonInsight, ...]:
    """Insights about metrics, then about dimensions. Pure.

    A change by threshold that history knows as usual gives none, except errors above their critical level, where the level itself
    matters. A change below the threshold that history does not know gives "Unusual Change". Over periods of unlike length growth
    is judged per active day (`alike` False), since sums over them do not compare.
    """
    by_name = {metric.metric: metric for metric in metrics}
    found = [
        *_usage(by_name["totalTokens" if alike else "tokensPerDay"]),
        *_errors(by_name["errorRate"], parameters),
        *_cache(by_name["cacheHitRate"]),
        *_latency(by_name["avgLatencyMs"], parameters),
        *_tokens_per_request(by_name["tokensPerRequest"]),
        *_unusual(by_name, alike),
    ]
    for dimension in dimensions:
        found += _dimension(dimension, parameters)
    return tuple(found)


def _usage(metric: MetricComparison) -> list[ComparisonInsight]:
    if not metric.matters or metric.direction not in ("increase", "decrease"):
        return []
    grew = metric.direction == "increase"
    of = "Token consumption" if metric.metric == "totalTokens" else "Token consumption per active day"
    if metric.percentage_change is None:
        text = f"{of} rose from nothing to {metric.current_value:,.0f}"
    else:
        text = (
            f"{of} {'increased' if grew else 'decreased'} by {abs(metric.percentage_change):.1f}% compared to the previous period"
        )
    return [
        ComparisonInsight(
            "growth" if grew else "shift",
            "warning" if metric.significance_level == "high" else "info",
            "Significant Usage Growth" if grew else "Significant Usage Drop",
            text + _usual(metric),
            metric.metric,
            impact=InsightImpact(
                tokens=_whole(metric.absolute_change) if metric.metric == "totalTokens" else None,
                percentage=metric.percentage_change,
            ),
        )
    ]


def _errors(metric: MetricComparison, parameters: ComparisonParameters) -> list[ComparisonInsight]:
    rate = metric.current_value
    if metric.direction != "increase" or rate is None or rate <= parameters.error_rate_warning_pct:
        return []
    critical = rate > parameters.error_rate_critical_pct
    if metric.is_beyond_noise is False and not critical:
        return []
    text = f"Error rate increased from {_value(metric, 'previous')} to {_value(metric, 'current')}"
    return [_about(metric, "anomaly", "critical" if critical else "warning", "Increased Error Rate", text)]


def _cache(metric: MetricComparison) -> list[ComparisonInsight]:
    if not metric.matters or metric.direction not in ("increase", "decrease"):
        return []
    better = metric.direction == "increase"
    text = (
        f"Cache hit rate {'improved' if better else 'dropped'} from {_value(metric, 'previous')} to {_value(metric, 'current')}"
    )
    title = f"Cache Efficiency {'Improved' if better else 'Declined'}"
    return [_about(metric, "efficiency", "info" if better else "warning", title, text)]


def _latency(metric: MetricComparison, parameters: ComparisonParameters) -> list[ComparisonInsight]:
    relative = metric.percentage_change
    if relative is None or relative <= parameters.latency_increase_pct or metric.is_beyond_noise is False:
        return []
    text = f"Average latency increased by {relative:.1f}% ({_value(metric, 'previous')} to {_value(metric, 'current')})"
    return [_about(metric, "anomaly", "warning", "Latency Increase Detected", text)]


def _tokens_per_request(metric: MetricComparison) -> list[ComparisonInsight]:
    if not metric.matters or metric.direction not in ("increase", "decrease"):
        return []
    text = f"Average tokens per request {metric.direction}d from {_value(metric, 'previous')} to {_value(metric, 'current')}"
    if metric.direction == "increase":
        return [_about(metric, "shift", "info", "Prompt Complexity Increased", text)]
    return [_about(metric, "optimization", "info", "Prompt Efficiency Improved", text)]


def _unusual(by_name: Mapping[str, MetricComparison], alike: bool) -> list[ComparisonInsight]:
    """Small changes that stand out: below the threshold, but not noise."""
    found = []
    for name, (called, _, _) in WATCHED.items():
        metric = by_name[name]
        if (
            metric.is_significant
            or not metric.is_beyond_noise
            or metric.direction == "stable"
            or (name == "totalTokens" and not alike)
        ):
            continue
        text = (
            f"{called} changed by {metric.percentage_change:+.1f}% ({_value(metric, 'previous')} to {_value(metric, 'current')})"
        )
        found.append(_about(metric, "anomaly", "info", "Unusual Change", text))
    return found


def _dimension(dimension: DimensionComparison, parameters: ComparisonParameters) -> list[ComparisonInsight]:
    """New values and concentration; none against an empty previous period, where everything would be new."""
    if not dimension.previous_tokens:
        return []
    found = []
    called = dimension.dimension.replace("_", " ")
    for item in dimension.items:
        share = item.percentage_of_total.current
        if item.is_new and share is not None and share > parameters.new_item_share_pct:
            text = f'"{item.name}" is new and accounts for {share:.1f}% of total usage'
            found.append(
                ComparisonInsight(
                    "shift", "info", f"New {called} Emerged", text, dimension=dimension.dimension, dimension_value=item.value,
                    impact=InsightImpact(item.current_tokens, item.current_requests, share),
                )
            )  # fmt: skip
    now, before = dimension.top_concentration.current, dimension.top_concentration.previous
    if now is not None and before is not None and now - before > parameters.concentration_points:
        count = min(len(dimension.items), 3)
        text = f"Top {count} {called} values now account for {now:.1f}% of usage (was {before:.1f}%)"
        found.append(
            ComparisonInsight(
                "shift", "warning", f"{called.capitalize()} Concentration Increased", text, dimension=dimension.dimension,
                impact=InsightImpact(percentage=now - before),
            )
        )  # fmt: skip
    return found


def _about(metric: MetricComparison, kind: InsightType, severity: Severity, title: str, text: str) -> ComparisonInsight:
    impact = InsightImpact(
        tokens=_whole(metric.absolute_change) if metric.metric == "totalTokens" else None, percentage=metric.percentage_change
    )
    return ComparisonInsight(kind, severity, title, text + _usual(metric), metric.metric, impact=impact)


def _usual(metric: MetricComparison) -> str:
    """What a person needs to weigh the change against, where history says."""
    if metric.is_beyond_noise is None:
        return ""
    inside = "" if metric.is_beyond_noise else ", and this is inside"
    return f"; the change is usually between {metric.usual_low_pct:+.0f}% and {metric.usual_high_pct:+.0f}%{inside}"


def _value(metric: MetricComparison, side: Literal["current", "previous"]) -> str:
    _, decimals, unit = WATCHED[metric.metric]
    return f"{getattr(metric, f'{side}_value'):,.{decimals}f}{unit}"


def _whole(value: float | int | None) -> int | None:
    return None if value is None else int(value)
