"""Columns of an export: a bucket, dimensions with their names, metrics; with types, units and both spellings of their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

Kind = Literal["time", "date", "text", "count", "quantity", "money", "ratio"]
Names = Literal["friendly", "raw"]

TYPES: dict[Kind, Any] = {
    "time": pa.timestamp("us", "UTC"),
    "date": pa.date32(),
    "text": pa.dictionary(pa.int32(), pa.string()),
    "count": pa.int64(),
    # Counts, and counts in millions.
    "quantity": pa.decimal128(38, 6),
    # The scale of raw.usage_records.estimated_cost: every sum of it is exact.
    "money": pa.decimal128(38, 12),
    "ratio": pa.float64(),
}


@dataclass(frozen=True, slots=True)
class Column:
    """`name` is the raw name, the marts' own; `label` the friendly one; `sql` reads it from the summed rows."""

    name: str
    label: str
    kind: Kind
    sql: str
    unit: str | None = None
    additive: bool = False

    def title(self, names: Names) -> str:
        return self.label if names == "friendly" else self.name


BUCKETS = {
    "minute": Column("minute", "Minute (UTC)", "time", "bucket AT TIME ZONE 'UTC'"),
    "hour": Column("hour", "Hour (UTC)", "time", "bucket AT TIME ZONE 'UTC'"),
    "day": Column("date", "Date (UTC)", "date", "bucket::DATE"),
    "month": Column("month", "Month (UTC)", "date", "bucket::DATE"),
}
"""The bucket's start by granularity; a month is its first day."""

_PLAIN = {
    "provider": "Provider", "model": "Model", "model_family": "Model Family", "feature": "Feature", "environment": "Environment",
    "request_type": "Request Type", "service_type": "Service Type",
}  # fmt: skip
_NAMED = {"team": "Team", "project": "Project", "cost_center": "Cost Center", "user": "User", "api_key": "API Key"}
DIMENSION_COLUMNS: dict[str, tuple[Column, ...]] = {
    **{name: (Column(name, label, "text", f"summed.{name}"),) for name, label in _PLAIN.items()},
    **{
        name: (
            Column(f"{name}_id", f"{label} ID", "text", f"summed.{name}_id"),
            Column(f"{name}_name", label, "text", f"{name}_names.label"),
        )
        for name, label in _NAMED.items()
    },
}
"""Correction 37: what has a name shows it beside its identifier."""


def _count(name: str, label: str, unit: str) -> Column:
    return Column(name, label, "count", f"summed.{name}", unit, additive=True)


METRIC_COLUMNS = {
    column.name: column
    for column in (
        _count("total_tokens", "Total Tokens", "tokens"),
        _count("input_tokens", "Input Tokens", "tokens"),
        _count("output_tokens", "Output Tokens", "tokens"),
        _count("cached_tokens", "Cached Tokens", "tokens"),
        _count("cache_creation_tokens", "Cache Creation Tokens", "tokens"),
        _count("request_count", "Requests", "requests"),
        _count("success_count", "Successful Requests", "requests"),
        _count("error_count", "Failed Requests", "requests"),
        _count("total_latency_ms", "Total Latency (ms)", "milliseconds"),
        _count("latency_request_count", "Requests With Latency", "requests"),
        Column("estimated_cost", "Estimated Cost", "money", "summed.estimated_cost", additive=True),
        _count("unpriced_tokens", "Unpriced Tokens", "tokens"),
        _count("record_count", "Records", "records"),
        Column(
            "avg_latency_ms",
            "Avg Latency (ms)",
            "count",
            "round(summed.total_latency_ms::NUMERIC / nullif(summed.latency_request_count, 0))::BIGINT",
            "milliseconds",
        ),
        Column(
            "error_rate",
            "Error Rate (%)",
            "ratio",
            "summed.error_count / nullif(summed.requests_with_errors_known, 0)::DOUBLE PRECISION * 100",
            "percent",
        ),
        Column(
            "cache_hit_rate",
            "Cache Hit Rate (%)",
            "ratio",
            "summed.cached_tokens / nullif(summed.input_with_cache_known, 0)::DOUBLE PRECISION * 100",
            "percent",
        ),
        Column(
            "tokens_per_request",
            "Tokens per Request",
            "ratio",
            "summed.tokens_with_requests_known / nullif(summed.request_count, 0)::DOUBLE PRECISION",
            "tokens per request",
        ),
    )
}
"""The additive measures, cost, and the rates of each row. Percentiles are not among them: they cannot be added up."""

DEFAULT_DIMENSIONS = ("provider", "model", "team", "project", "feature", "environment")
DEFAULT_METRICS = (
    "total_tokens", "input_tokens", "output_tokens", "cached_tokens", "request_count", "success_count", "error_count",
    "avg_latency_ms", "estimated_cost", "unpriced_tokens",
)  # fmt: skip


def schema_of(columns: Sequence[Column], names: Names = "raw") -> Any:
    """The Arrow schema of some columns."""
    return pa.schema([(column.title(names), TYPES[column.kind]) for column in columns])
