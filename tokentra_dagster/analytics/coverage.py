"""How much of all usage is attributed, and what to tag next (section 9)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from decimal import ROUND_HALF_UP, Decimal
from types import MappingProxyType
from typing import Any

from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.analytics.results import MetricRow, RecommendationRow
from tokentra_dagster.analytics.sources import UsageSource


def _named(**values: float) -> Mapping[str, float]:
    return MappingProxyType(values)


@dataclass(frozen=True, slots=True)
class CoverageParameters:
    """`weights` of the dimensions in the overall score (they need not add to 1). `thresholds`: percent of tokens below which a
    dimension is recommended for tagging."""

    weights: Mapping[str, float] = field(default_factory=lambda: _named(team=0.3, project=0.2, feature=0.3, user=0.2))
    thresholds: Mapping[str, float] = field(default_factory=lambda: _named(team=50.0, feature=70.0, user=30.0))


@dataclass(frozen=True, slots=True)
class DimensionCoverage:
    """Usage with a value of the dimension, and all usage. Percentages are of all; None without usage, or where nothing is known of it.
    Cost is money in the organisation's currency, as far as it is priced."""

    attributed_records: int
    total_records: int
    record_coverage_pct: float | None
    attributed_tokens: int
    total_tokens: int
    token_coverage_pct: float | None
    attributed_requests: int | None
    total_requests: int | None
    request_coverage_pct: float | None
    attributed_cost: Decimal | None
    total_cost: Decimal | None
    cost_coverage_pct: float | None


@dataclass(frozen=True, slots=True)
class CoverageDimensions:
    """The specification's five, and ours: environment and API key."""

    team: DimensionCoverage
    project: DimensionCoverage
    cost_center: DimensionCoverage
    feature: DimensionCoverage
    user: DimensionCoverage
    environment: DimensionCoverage
    api_key: DimensionCoverage


@dataclass(frozen=True, slots=True)
class CoverageGap:
    """A dimension below its threshold, and how many tokens have no value of it."""

    dimension: str
    token_coverage_pct: float
    threshold_pct: float
    unattributed_tokens: int
    recommendation: str


@dataclass(frozen=True, slots=True)
class AttributionCoverage:
    """`overall_score`: the weighted mean of token coverage in percent, None without usage. `recommendations`: the sentences of `gaps`."""

    period: Period
    total_records: int
    total_tokens: int
    dimensions: CoverageDimensions
    overall_score: float | None
    recommendations: tuple[str, ...]
    gaps: tuple[CoverageGap, ...]


def analyze_coverage(
    usage: UsageSource, period: Period, parameters: CoverageParameters = CoverageParameters()
) -> AttributionCoverage:
    """Coverage over a period, from one read. A record of several users counts as without a user."""
    return coverage_of(usage.coverage(period), period, parameters)


def coverage_of(
    rows: Mapping[str, Mapping[str, Any]], period: Period, parameters: CoverageParameters = CoverageParameters()
) -> AttributionCoverage:
    """From the columns of `get_usage_coverage` by dimension. Pure."""
    found = CoverageDimensions(**{one.name: _dimension(rows[one.name]) for one in fields(CoverageDimensions)})
    gaps = _gaps(found, parameters)
    return AttributionCoverage(
        period=period,
        total_records=found.team.total_records,
        total_tokens=found.team.total_tokens,
        dimensions=found,
        overall_score=_score(found, parameters),
        recommendations=tuple(gap.recommendation for gap in gaps),
        gaps=gaps,
    )


def _dimension(row: Mapping[str, Any]) -> DimensionCoverage:
    return DimensionCoverage(
        attributed_records=row["attributed_records"] or 0,
        total_records=row["total_records"] or 0,
        record_coverage_pct=_pct(row["record_coverage_pct"]),
        attributed_tokens=row["attributed_tokens"] or 0,
        total_tokens=row["total_tokens"] or 0,
        token_coverage_pct=_pct(row["token_coverage_pct"]),
        attributed_requests=row.get("attributed_requests"),
        total_requests=row.get("total_requests"),
        request_coverage_pct=_pct(row.get("request_coverage_pct")),
        attributed_cost=row.get("attributed_cost"),
        total_cost=row.get("total_cost"),
        cost_coverage_pct=_pct(row.get("cost_coverage_pct")),
    )


def _pct(value: Any) -> float | None:
    return None if value is None else float(value)


def _score(dimensions: CoverageDimensions, parameters: CoverageParameters) -> float | None:
    parts = [(getattr(dimensions, name).token_coverage_pct, weight) for name, weight in parameters.weights.items()]
    if any(share is None for share, _ in parts):
        return None
    return float(sum(share * weight for share, weight in parts) / sum(weight for _, weight in parts))


def _gaps(dimensions: CoverageDimensions, parameters: CoverageParameters) -> tuple[CoverageGap, ...]:
    gaps = []
    for name, threshold in parameters.thresholds.items():
        covered: DimensionCoverage = getattr(dimensions, name)
        share = covered.token_coverage_pct
        if share is not None and share < threshold:
            missing = covered.total_tokens - covered.attributed_tokens
            gaps.append(CoverageGap(name, share, threshold, missing, _sentence(name, share)))
    return tuple(gaps)


def _sentence(dimension: str, share: float) -> str:
    """The specification's three sentences, and one of our own for every other dimension that is given a threshold."""
    if dimension == "team":
        return f"Only {_rounded(share)}% of tokens are attributed to teams. Add team tags to your SDK calls."
    if dimension == "feature":
        return f"{_rounded(100 - share)}% of tokens have no feature attribution. Tag requests with feature names for better analysis."
    if dimension == "user":
        return f"User attribution is low ({_rounded(share)}%). Add userId to SDK calls for per-user analytics."
    called = dimension.replace("_", " ")
    return f"Only {_rounded(share)}% of tokens have a {called}. Add an attribution rule or tag requests with it."


def _rounded(value: float) -> Decimal:
    """Whole percent, halves up, as the specification's `toFixed(0)`."""
    return Decimal(value).quantize(Decimal(1), ROUND_HALF_UP)


def metric_rows(result: AttributionCoverage) -> list[MetricRow]:
    """The score, and per dimension (as `dimension_value` of `attribution`) tokens, records and percentages."""
    rows = [MetricRow("attribution_score", result.overall_score)]
    for one in fields(CoverageDimensions):
        covered: DimensionCoverage = getattr(result.dimensions, one.name)
        rows += [MetricRow(part.name, getattr(covered, part.name), "attribution", one.name) for part in fields(DimensionCoverage)]
    return rows


def recommendation_rows(result: AttributionCoverage) -> list[RecommendationRow]:
    """One row per gap; tagging saves nothing by itself, so there are no savings."""
    rows = []
    for gap in result.gaps:
        sentence, _, action = gap.recommendation.partition(". ")
        called = gap.dimension.replace("_", " ")
        rows.append(
            RecommendationRow(
                category="Attribution",
                priority="high" if gap.token_coverage_pct < gap.threshold_pct / 2 else "medium",
                title=f"Attribute usage by {called}",
                description=f"{sentence}. {gap.unattributed_tokens:,} tokens are without one.",
                action=action,
                dimension=gap.dimension,
            )
        )
    return rows
