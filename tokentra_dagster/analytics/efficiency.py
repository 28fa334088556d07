"""Token efficiency and its recommendations (specification 5, `analyzeTokenEfficiency`).

Rates divide by what they can: cached input by input whose cached part is known (correction 35), errors by requests whose errors are
known, tokens per request by requests that are known, money by priced usage (correction 44). Without a denominator a rate is None,
and no recommendation follows from it: the specification's 0 % of nothing advised to cache nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

import pandas as pd

from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.analytics.results import MetricRow, RecommendationRow, ratio
from tokentra_dagster.analytics.savings import PotentialSavings, range_text
from tokentra_dagster.analytics.savings import recommendation_rows as savings_rows
from tokentra_dagster.analytics.savings_estimates import Saving
from tokentra_dagster.analytics.sources import COST, COUNTS, UsageSource, total

RecommendationType = Literal["prompt_optimization", "caching", "model_selection", "request_optimization"]
EfficiencyPriority = Literal["high", "medium", "low"]
NAMED = 3
"""Models whose assumptions a recommendation spells out: those that save most."""
_ORDER = {"high": 0, "medium": 1, "low": 2}


@dataclass(frozen=True, slots=True)
class EfficiencyThresholds:
    """The specification's limits for its recommendations. Rates in percent; money in the organisation's currency."""

    high_input_output_ratio: float = 5
    low_cache_hit_rate: float = 20
    high_tokens_per_request: float = 10_000
    expensive_cost_per_1k_tokens: float = 0.05
    small_request_tokens: float = 1_000


@dataclass(frozen=True, slots=True)
class EfficiencyMetrics:
    """Over everything. A count is None where no record has it; a ratio is None without a denominator."""

    total_input_tokens: int | None
    total_output_tokens: int | None
    total_cached_tokens: int | None
    total_requests: int | None
    input_output_ratio: float | None
    cache_hit_rate: float | None
    avg_tokens_per_request: float | None


@dataclass(frozen=True, slots=True)
class ModelEfficiencyMetric:
    """`cost_per_1k_tokens` is over the priced tokens. `cost_per_request` is over the parts of the usage (by provider, request and
    service type, and environment) that are wholly priced and whose requests are all known; None where there is no such part."""

    model: str
    input_tokens: int | None
    output_tokens: int | None
    tokens_per_request: float | None
    cache_hit_rate: float | None
    cost_per_request: float | None
    cost_per_1k_tokens: float | None
    unpriced_tokens: int | None


@dataclass(frozen=True, slots=True)
class FeatureEfficiencyMetric:
    """`estimated_cost` is of the priced usage, None where nothing is priced."""

    feature: str
    total_tokens: int | None
    request_count: int | None
    tokens_per_request: float | None
    error_rate: float | None
    estimated_cost: Decimal | None
    unpriced_tokens: int | None


@dataclass(frozen=True, slots=True)
class EfficiencyRecommendation:
    """`potential_savings`: the computed range with its assumptions, None where nothing says how much."""

    type: RecommendationType
    priority: EfficiencyPriority
    title: str
    description: str
    potential_savings: str | None
    action: str
    savings_low: Decimal | None = None
    savings_high: Decimal | None = None
    assumptions: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class TokenEfficiencyAnalysis:
    period: Period
    metrics: EfficiencyMetrics
    model_efficiency: tuple[ModelEfficiencyMetric, ...]
    feature_efficiency: tuple[FeatureEfficiencyMetric, ...]
    recommendations: tuple[EfficiencyRecommendation, ...]


def analyze_token_efficiency(
    usage: UsageSource,
    period: Period,
    savings: PotentialSavings | None = None,
    thresholds: EfficiencyThresholds | None = None,
) -> TokenEfficiencyAnalysis:
    """Three frames. `savings` of the same period (`analyze_potential_savings`) put figures on the recommendations."""
    metrics = efficiency_metrics(usage.frame(period))
    models = model_efficiency(usage.frame(period, by=("provider", "model", "request_type", "service_type", "environment")))
    features = feature_efficiency(usage.frame(period, by=("feature",)))
    advice = efficiency_recommendations(metrics, models, savings, thresholds or EfficiencyThresholds())
    return TokenEfficiencyAnalysis(period, metrics, models, features, advice)


def efficiency_metrics(frame: pd.DataFrame) -> EfficiencyMetrics:
    given, output, requests = (total(frame, name) for name in ("input_tokens", "output_tokens", "request_count"))
    return EfficiencyMetrics(
        given,
        output,
        total(frame, "cached_tokens"),
        requests,
        ratio(given, output),
        ratio(total(frame, "cached_tokens"), total(frame, "input_with_cache_known"), 100),
        ratio(total(frame, "tokens_with_requests_known"), requests),
    )


def model_efficiency(frame: pd.DataFrame) -> tuple[ModelEfficiencyMetric, ...]:
    """From a frame with `model` and finer dimensions; the model with most tokens first."""
    summed, cost = _by(frame, "model", "unknown")
    whole = frame[
        frame[COST].notna()
        & (frame["unpriced_tokens"] == 0).fillna(False).astype(bool)
        & (frame["tokens_with_requests_known"] == frame["total_tokens"]).fillna(False).astype(bool)
    ]
    counted, counted_cost = _by(whole, "model", "unknown")
    requests = {row["model"]: row["request_count"] for row in _sorted(counted)}
    found = []
    for row in _sorted(summed):
        name = row["model"]
        found.append(
            ModelEfficiencyMetric(
                name,
                row["input_tokens"],
                row["output_tokens"],
                ratio(row["tokens_with_requests_known"], row["request_count"]),
                ratio(row["cached_tokens"], row["input_with_cache_known"], 100),
                ratio(counted_cost.get(name), requests.get(name)),
                ratio(cost[name], _less(row["total_tokens"], row["unpriced_tokens"]), 1000),
                row["unpriced_tokens"],
            )
        )
    return tuple(found)


def feature_efficiency(frame: pd.DataFrame) -> tuple[FeatureEfficiencyMetric, ...]:
    """From a frame with `feature`; the feature with most tokens first."""
    summed, cost = _by(frame, "feature", "untagged")
    return tuple(
        FeatureEfficiencyMetric(
            row["feature"],
            row["total_tokens"],
            row["request_count"],
            ratio(row["tokens_with_requests_known"], row["request_count"]),
            ratio(row["error_count"], row["requests_with_errors_known"], 100),
            cost[row["feature"]],
            row["unpriced_tokens"],
        )
        for row in _sorted(summed)
    )


def _by(frame: pd.DataFrame, dimension: str, missing: str) -> tuple[pd.DataFrame, dict[str, Decimal | None]]:
    """Counts and money by a dimension's values; what has none under `missing`, as the specification calls it."""
    names = frame[dimension].where(frame[dimension].notna(), missing).rename(dimension)
    cost: dict[str, Decimal | None] = {}
    for name, amount in zip(names, frame[COST], strict=True):
        before = cost.get(name)
        cost[name] = before if amount is None else amount if before is None else before + amount
    return frame[list(COUNTS)].groupby(names, sort=True).sum(min_count=1), cost


def _sorted(summed: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries with None for the unknown, most tokens first, then by name."""
    ordered = summed.sort_values("total_tokens", ascending=False, kind="stable", na_position="last").reset_index()
    plain = ordered.astype(object).where(ordered.notna(), None)
    rows: list[dict[str, Any]] = plain.to_dict("records")
    return rows


def _less(whole: int | None, part: int | None) -> int | None:
    return None if whole is None or part is None else whole - part


def efficiency_recommendations(
    metrics: EfficiencyMetrics,
    models: Sequence[ModelEfficiencyMetric],
    savings: PotentialSavings | None,
    thresholds: EfficiencyThresholds,
) -> tuple[EfficiencyRecommendation, ...]:
    """The specification's four rules, most urgent first. An unknown figure advises nothing."""
    found: list[EfficiencyRecommendation] = []
    per_output, hits, per_request = metrics.input_output_ratio, metrics.cache_hit_rate, metrics.avg_tokens_per_request
    if per_output is not None and per_output > thresholds.high_input_output_ratio:
        found.append(
            EfficiencyRecommendation(
                "prompt_optimization", "high", "High Input/Output Ratio",
                f"Your input/output token ratio is {per_output:.1f}:1. Consider optimizing prompts to reduce input tokens.",
                None, "Review system prompts and reduce unnecessary context",
            )
        )  # fmt: skip
    if hits is not None and hits < thresholds.low_cache_hit_rate:
        text, low, high, assumptions = _caching_figures(savings)
        found.append(
            EfficiencyRecommendation(
                "caching", "medium", "Low Cache Hit Rate",
                f"Cache hit rate is only {hits:.1f}%. Implementing prompt caching could reduce costs.",
                text, "Enable semantic caching for repeated queries", low, high, assumptions,
            )
        )  # fmt: skip
    if per_request is not None and per_request > thresholds.high_tokens_per_request:
        found.append(
            EfficiencyRecommendation(
                "request_optimization", "medium", "High Tokens Per Request",
                f"Average {per_request:.0f} tokens per request. Consider chunking or summarizing content.",
                None, "Implement content chunking or pre-summarization",
            )
        )  # fmt: skip
    found += [_smaller_model(model, savings) for model in models if _is_expensive_and_small(model, thresholds)]
    return tuple(sorted(found, key=lambda one: _ORDER[one.priority]))


def _is_expensive_and_small(model: ModelEfficiencyMetric, thresholds: EfficiencyThresholds) -> bool:
    price, size = model.cost_per_1k_tokens, model.tokens_per_request
    if price is None or size is None:
        return False
    return price > thresholds.expensive_cost_per_1k_tokens and size < thresholds.small_request_tokens


def _smaller_model(model: ModelEfficiencyMetric, savings: PotentialSavings | None) -> EfficiencyRecommendation:
    own = savings.of_model(model.model) if savings else []
    text, low, high, assumptions = _figures(own, savings)
    return EfficiencyRecommendation(
        "model_selection", "high", f"Consider Smaller Model for {model.model}",
        f"Using expensive model for small requests ({model.tokens_per_request:.0f} tokens/request).",
        text, "Route small requests to a lighter model", low, high, assumptions, model.model,
    )  # fmt: skip


_Figures = tuple[str | None, Decimal | None, Decimal | None, str | None]


def _caching_figures(savings: PotentialSavings | None) -> _Figures:
    return _figures(savings.caching.savings if savings else (), savings)


def _figures(own: Sequence[Saving], savings: PotentialSavings | None) -> _Figures:
    """Text, low, high and assumptions of savings together; all None without any: not known, which is not 0."""
    if not own or savings is None:
        return None, None, None, None
    low, high = (sum((getattr(saving, bound) for saving in own), Decimal(0)) for bound in ("low", "high"))
    said = [f"{saving.model}: {one}" for saving in own[:NAMED] for one in saving.assumptions]
    more = [f"and likewise for {len(own) - NAMED} more models"] if len(own) > NAMED else []
    assumptions = "; ".join((*said, *more, *savings.assumptions))
    return f"{range_text(savings.currency, low, high)} in the period, if {assumptions}", low, high, assumptions


def metric_rows(result: TokenEfficiencyAnalysis) -> list[MetricRow]:
    """Every figure, over everything, by model and by feature; unknown ones as None."""
    whole = result.metrics
    names = ("total_input_tokens", "total_output_tokens", "total_cached_tokens", "total_requests", "input_output_ratio",
             "cache_hit_rate", "avg_tokens_per_request")  # fmt: skip
    rows = [MetricRow(name, getattr(whole, name)) for name in names]
    of_model = ("input_tokens", "output_tokens", "tokens_per_request", "cache_hit_rate", "cost_per_request",
                "cost_per_1k_tokens", "unpriced_tokens")  # fmt: skip
    rows += [MetricRow(name, getattr(one, name), "model", one.model) for one in result.model_efficiency for name in of_model]
    of_feature = ("total_tokens", "request_count", "tokens_per_request", "error_rate", "estimated_cost", "unpriced_tokens")
    return rows + [
        MetricRow(name, getattr(one, name), "feature", one.feature) for one in result.feature_efficiency for name in of_feature
    ]


def recommendation_rows(result: TokenEfficiencyAnalysis, savings: PotentialSavings | None = None) -> list[RecommendationRow]:
    """The analysis's recommendations, then the savings' that say something else (another kind, or of another model)."""
    rows = [
        RecommendationRow(
            one.type, one.priority, one.title, one.description, one.action, one.savings_low, one.savings_high, one.assumptions,
            None if one.model is None else "model", one.model,
        )
        for one in result.recommendations
    ]  # fmt: skip
    told = {(row.category, row.dimension_value) for row in rows}
    further = savings_rows(savings) if savings else []
    return rows + [row for row in further if not {(row.category, row.dimension_value), (row.category, None)} & told]
