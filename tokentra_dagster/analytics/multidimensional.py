"""Breakdowns by several dimensions at once, and what only shows across them (specification 6; correction 15)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from tokentra_dagster.analytics import breakdowns
from tokentra_dagster.analytics.breakdowns import UsageBreakdown, UsageBreakdownItem, breakdown_of, ranked
from tokentra_dagster.analytics.dimensions import UNKNOWN, conditions, dimension_name
from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.analytics.results import InsightRow, MetricRow, Severity, camel, ratio
from tokentra_dagster.analytics.sources import UsageSource, total

InsightType = Literal["concentration", "diversification", "efficiency", "anomaly"]


@dataclass(frozen=True, slots=True)
class CrossDimensionalParameters:
    """The specification's thresholds. `concentration_above_pct`: share of one model above which its insight is a warning.
    `non_production_above`: tokens outside `production` as a part of those inside."""

    concentration_above_pct: float = 70.0
    non_production_above: float = 0.3
    production: tuple[str, ...] = ("production", "prod")


DEFAULTS = CrossDimensionalParameters()


@dataclass(frozen=True, slots=True)
class CrossDimensionalInsight:
    """`tokens` and `percentage` are what it is about, of all tokens."""

    type: InsightType
    title: str
    description: str
    severity: Severity
    dimension: str
    dimension_value: str | None
    tokens: int | None
    percentage: float | None


@dataclass(frozen=True, slots=True)
class MultiDimensionalBreakdown:
    """`breakdowns`: by dimension, in the specification's spelling as `dimensions`."""

    period: Period
    dimensions: tuple[str, ...]
    breakdowns: Mapping[str, UsageBreakdown]
    insights: tuple[CrossDimensionalInsight, ...]


def multi_dimensional_breakdown(
    usage: UsageSource,
    period: Period,
    dimensions: Sequence[str],
    where: Mapping[str, str | None] | None = None,
    limit: int | None = 10,
    parameters: CrossDimensionalParameters = DEFAULTS,
) -> MultiDimensionalBreakdown:
    """A breakdown per dimension. Insights look at all values, whatever the limit; those of models need `model` and `feature`
    among the dimensions, the others `provider` and `environment`; none is about a dimension that `where` has fixed. Raises
    `UsageError` as `usage_breakdown`."""
    names, narrowed = [dimension_name(dimension) for dimension in dimensions], conditions(where)
    frames = {name: usage.frame(period, (name,), where=narrowed) for name in names}
    found = {name: breakdown_of(frame, name, usage.labels(name), limit) for name, frame in frames.items()}
    insights: list[CrossDimensionalInsight] = []
    free = set(names) - set(narrowed)
    if {"model", "feature"} <= free and found["model"].total.tokens:
        model = found["model"].items[0]
        features = usage.frame(period, ("feature",), where=narrowed | {"model": model.dimension_value})
        insights.append(concentration(model, ranked(features, "feature"), parameters))
    if "provider" in free:
        insights += diversification(ranked(frames["provider"], "provider"))
    if "environment" in free:
        insights += non_production(ranked(frames["environment"], "environment"), parameters)
    return MultiDimensionalBreakdown(
        period, tuple(camel(name) for name in names), {camel(name): each for name, each in found.items()}, tuple(insights)
    )


def concentration(
    model: UsageBreakdownItem, features: pd.DataFrame, parameters: CrossDimensionalParameters
) -> CrossDimensionalInsight:
    """How much the largest model handles, and the feature that most of it comes from (the specification names the largest feature
    of everything, which may not use that model at all)."""
    feature = features["feature"].iloc[0]
    share = model.percentage or 0.0
    source = "usage without a feature" if feature == UNKNOWN else f"{feature} feature"
    return CrossDimensionalInsight(
        "concentration", "Usage Concentration",
        f"{model.dimension_value} handles {share:.1f}% of tokens, primarily from {source}",
        "warning" if share > parameters.concentration_above_pct else "info",
        "model", model.dimension_value, model.total_tokens, model.percentage,
    )  # fmt: skip


def diversification(providers: pd.DataFrame) -> list[CrossDimensionalInsight]:
    tokens = total(providers, "total_tokens")
    if len(providers) != 1:
        return []
    return [
        CrossDimensionalInsight(
            "diversification", "Single Provider Dependency",
            "All usage is concentrated on a single provider. Consider diversification for resilience.",
            "warning", "provider", providers["provider"].iloc[0], tokens, ratio(tokens, tokens, 100),
        )
    ]  # fmt: skip


def non_production(environments: pd.DataFrame, parameters: CrossDimensionalParameters) -> list[CrossDimensionalInsight]:
    """Usage of environments that are known and not production; usage without one is neither."""
    named = environments[environments["environment"] != UNKNOWN]
    inside = named["environment"].isin(parameters.production)
    production, outside = (total(named[mask], "total_tokens") or 0 for mask in (inside, ~inside))
    if outside <= production * parameters.non_production_above:
        return []
    share = ratio(outside, production + outside, 100) or 0.0
    return [
        CrossDimensionalInsight(
            "efficiency", "High Non-Production Usage",
            f"Non-production environments account for {share:.1f}% of total usage",
            "info", "environment", None, outside, share,
        )
    ]  # fmt: skip


def metric_rows(result: MultiDimensionalBreakdown) -> list[MetricRow]:
    return [row for found in result.breakdowns.values() for row in breakdowns.metric_rows(found)]


def insight_rows(result: MultiDimensionalBreakdown) -> list[InsightRow]:
    return [
        InsightRow(
            found.type, found.severity, found.title, found.description, "total_tokens", found.dimension, found.dimension_value,
            found.tokens, found.percentage,
        )
        for found in result.insights
    ]  # fmt: skip
