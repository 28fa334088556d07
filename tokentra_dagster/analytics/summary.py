"""The key figures of a period and how they changed (specification 1.4, 3 and 4; corrections 18, 19, 20, 35, 42)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from decimal import Decimal
from typing import Any

from tokentra_dagster.analytics.dimensions import conditions
from tokentra_dagster.analytics.periods import Comparison, Period
from tokentra_dagster.analytics.results import MetricRow, PercentageChange, change
from tokentra_dagster.analytics.sources import UsageSource


@dataclass(frozen=True, slots=True)
class UsageSummary:
    """Sections 3 and 1.4. Rates are percent (0 to 100), latencies milliseconds, cost is in `currency` and leaves out
    `unpriced_tokens`. None is unknown: a rate without a denominator, or what no source reports.

    Distinct counts are over the whole period. `latency_is_approximate`: percentiles are means of the sources' own (correction 6).
    """

    start_date: datetime
    end_date: datetime
    total_tokens: int | None
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    cache_creation_tokens: int | None
    total_requests: int | None
    success_requests: int | None
    error_requests: int | None
    error_rate: float | None
    success_rate: float | None
    cache_hit_rate: float | None
    tokens_per_request: float | None
    requests_per_minute: float | None
    avg_latency_ms: int | None
    min_latency_ms: int | None
    max_latency_ms: int | None
    p50_latency_ms: int | None
    p95_latency_ms: int | None
    p99_latency_ms: int | None
    latency_is_approximate: bool | None
    unique_models: int | None
    unique_users: int | None
    unique_features: int | None
    unique_api_keys: int | None
    estimated_cost: Decimal | None
    unpriced_tokens: int | None
    currency: str


@dataclass(frozen=True, slots=True)
class SummaryChanges:
    """Fewer errors and less latency are better; more of the others is."""

    tokens: PercentageChange
    requests: PercentageChange
    error_rate: PercentageChange
    latency: PercentageChange
    cache_hit_rate: PercentageChange


@dataclass(frozen=True, slots=True)
class SummaryComparison:
    """`period`: which comparison (`previous`, `mom`, `qoq`, `yoy`)."""

    period: Comparison
    previous_value: UsageSummary
    changes: SummaryChanges


@dataclass(frozen=True, slots=True)
class UsageSummaryWithComparison(UsageSummary):
    comparison: SummaryComparison | None = None


RATES = frozenset(("error_rate", "cache_hit_rate", "tokens_per_request", "requests_per_minute"))
NO_FIGURES = frozenset(("start_date", "end_date", "currency", "latency_is_approximate", "comparison"))
FIGURES = tuple(field.name for field in fields(UsageSummary) if field.name not in NO_FIGURES)


def usage_summary(
    usage: UsageSource, period: Period, where: Mapping[str, str | None] | None = None, comparison: Comparison | None = None
) -> UsageSummaryWithComparison:
    """The period's figures, narrowed by `where`, and the changes since the period that `comparison` names (`Period.before`).

    Raises `UsageError` for an unknown comparison or dimension, or for one that the source cannot narrow a summary by.
    """
    narrowed = conditions(where)
    before = period.before(comparison) if comparison else None
    current = summary_of(usage.summary(period, narrowed), period)
    compared = None
    if comparison and before:
        compared = compare(current, summary_of(usage.summary(before, narrowed), before), comparison)
    return UsageSummaryWithComparison(**asdict(current), comparison=compared)


def summary_of(row: Mapping[str, Any], period: Period) -> UsageSummary:
    """A row of `get_usage_summary` as the period's summary."""
    derived: dict[str, Any] = {"start_date": period.start, "end_date": period.end, "success_rate": None}
    values = {field.name: row[field.name] for field in fields(UsageSummary) if field.name not in derived}
    values |= {name: float(values[name]) for name in RATES if values[name] is not None}
    if values["error_rate"] is not None:
        derived["success_rate"] = 100 - values["error_rate"]
    return UsageSummary(**derived, **values)


def compare(current: UsageSummary, previous: UsageSummary, comparison: Comparison) -> SummaryComparison:
    changes = SummaryChanges(
        tokens=change(current.total_tokens, previous.total_tokens),
        requests=change(current.total_requests, previous.total_requests),
        error_rate=change(current.error_rate, previous.error_rate, lower_is_better=True),
        latency=change(current.avg_latency_ms, previous.avg_latency_ms, lower_is_better=True),
        cache_hit_rate=change(current.cache_hit_rate, previous.cache_hit_rate),
    )
    return SummaryComparison(comparison, previous, changes)


def metric_rows(result: UsageSummaryWithComparison) -> list[MetricRow]:
    """A row per figure, and `<change>_change` and `<change>_change_pct` where the summary is compared."""
    rows = [MetricRow(name, getattr(result, name)) for name in FIGURES]
    if result.comparison is not None:
        for field in fields(SummaryChanges):
            moved: PercentageChange = getattr(result.comparison.changes, field.name)
            rows.append(MetricRow(f"{field.name}_change", moved.absolute))
            rows.append(MetricRow(f"{field.name}_change_pct", moved.percentage))
    return rows
