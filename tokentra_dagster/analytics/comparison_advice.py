"""What a comparison suggests to do: recommendations (section 11), with impacts that the figures show and no canned savings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokentra_dagster.analytics.comparison_dimensions import DimensionComparison
from tokentra_dagster.analytics.comparison_metrics import DEFAULTS, ComparisonParameters, MetricComparison
from tokentra_dagster.analytics.results import Priority

PRIORITIES: tuple[Priority, ...] = ("critical", "high", "medium", "low")


@dataclass(frozen=True, slots=True)
class ComparisonRecommendation:
    """Section 11's. `expected_impact` says what the figures show, in tokens, requests or percent of this period; it promises nothing.
    `dimension`, `dimension_value`: what it is about, where it is about one value."""

    priority: Priority
    category: str
    title: str
    description: str
    expected_impact: str
    action_items: tuple[str, ...]
    dimension: str | None = None
    dimension_value: str | None = None


def comparison_recommendations(
    metrics: Sequence[MetricComparison],
    dimensions: Sequence[DimensionComparison] = (),
    parameters: ComparisonParameters = DEFAULTS,
) -> tuple[ComparisonRecommendation, ...]:
    """Most urgent first. An unknown figure recommends nothing. Pure."""
    by_name = {metric.metric: metric for metric in metrics}
    found = [
        *_errors(by_name["errorRate"], by_name["totalRequests"], parameters),
        *_cache(by_name["cacheHitRate"], by_name["inputTokens"], parameters),
        *_prompts(by_name["totalTokens"], by_name["totalRequests"], by_name["tokensPerRequest"], parameters),
        *(one for dimension in dimensions if dimension.dimension == "model" for one in _models(dimension, parameters)),
    ]
    return tuple(sorted(found, key=lambda one: PRIORITIES.index(one.priority)))


def _errors(
    rate: MetricComparison, requests: MetricComparison, parameters: ComparisonParameters
) -> list[ComparisonRecommendation]:
    if rate.current_value is None or rate.current_value <= parameters.error_rate_high_pct:
        return []
    above = (rate.current_value - parameters.error_rate_high_pct) / 100 * (requests.current_value or 0)
    return [
        ComparisonRecommendation(
            "critical" if rate.current_value > parameters.error_rate_critical_pct else "high",
            "Reliability",
            "Investigate Error Rate",
            f"Current error rate of {rate.current_value:.2f}% is impacting reliability",
            f"At {parameters.error_rate_high_pct:g}% errors, {above:,.0f} more requests of this period would have succeeded",
            (
                "Review error logs for common failure patterns",
                "Check provider status pages for incidents",
                "Implement retry logic with exponential backoff",
                "Set up alerting for error rate thresholds",
            ),
        )
    ]


def _cache(rate: MetricComparison, inputs: MetricComparison, parameters: ComparisonParameters) -> list[ComparisonRecommendation]:
    if rate.current_value is None or rate.current_value >= parameters.cache_hit_rate_low_pct:
        return []
    sent = (inputs.current_value or 0) * (1 - rate.current_value / 100)
    return [
        ComparisonRecommendation(
            "medium",
            "Efficiency",
            "Improve Cache Hit Rate",
            f"Cache hit rate of {rate.current_value:.1f}% of input tokens is below {parameters.cache_hit_rate_low_pct:g}%",
            f"{sent:,.0f} input tokens of this period were not read from a cache; the figures do not say how many could be",
            (
                "Put what stays the same at the beginning of prompts, where providers cache it",
                "Find requests that repeat, and answer them once",
                "Use a longer cache lifetime where the provider offers one",
            ),
        )
    ]


def _prompts(
    tokens: MetricComparison, requests: MetricComparison, each: MetricComparison, parameters: ComparisonParameters
) -> list[ComparisonRecommendation]:
    """Tokens outgrow requests; not where tokens per request usually move as much."""
    growth, of_requests = tokens.percentage_change, requests.percentage_change
    if growth is None or of_requests is None or growth <= of_requests + parameters.token_over_request_points:
        return []
    if each.is_beyond_noise is False:
        return []
    more = (each.absolute_change or 0) * (requests.current_value or 0)
    return [
        ComparisonRecommendation(
            "medium",
            "Optimization",
            "Optimize Token Usage",
            f"Token growth ({growth:.1f}%) exceeds request growth ({of_requests:.1f}%): each request takes more tokens",
            f"At the previous period's tokens per request, this period would have taken {more:,.0f} tokens fewer",
            (
                "Review and optimize system prompts",
                "Audit the longest prompts for what can go",
                "Consider smaller models for simple tasks",
            ),
        )
    ]


def _models(dimension: DimensionComparison, parameters: ComparisonParameters) -> list[ComparisonRecommendation]:
    top = dimension.items[0] if dimension.items else None
    share = top.percentage_of_total.current if top else None
    if top is None or share is None or share <= parameters.model_share_high_pct:
        return []
    return [
        ComparisonRecommendation(
            "medium",
            "Model Strategy",
            "Diversify Model Usage",
            f"{top.name} accounts for {share:.1f}% of usage. Consider task-appropriate model routing",
            f"{top.current_tokens or 0:,} tokens of this period went to {top.name}; what another model would cost is a matter of its price "
            "and of how many tasks it does as well",
            (
                "Identify tasks suitable for smaller models",
                "Test quality with cheaper alternatives on real tasks",
                "Route by task where they do as well",
            ),
            dimension="model",
            dimension_value=top.value,
        )
    ]
