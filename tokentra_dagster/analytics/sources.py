"""What the analyses read: usage as small frames, aggregated where it is stored (corrections 23, 24). `warehouse.usage` reads the marts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Protocol

import pandas as pd

from tokentra_dagster.analytics.periods import Granularity, Period

DIMENSIONS = (
    "provider", "model", "model_family", "team", "project", "cost_center", "feature", "environment", "user", "api_key",
    "request_type", "service_type",
)  # fmt: skip
"""Table 1.5, the names that `by` and `where` take and that frames' columns have. Values are identifiers; `labels` has the names."""

COUNTS = (
    "input_tokens", "output_tokens", "total_tokens", "cached_tokens", "cache_creation_tokens", "request_count", "success_count",
    "error_count", "total_latency_ms", "latency_request_count", "unpriced_tokens", "record_count",
    "requests_with_errors_known", "input_with_cache_known", "tokens_with_requests_known",
)  # fmt: skip
"""Columns of every frame, nullable `Int64`; <NA> is unknown, never zero. The last three are what rates divide by: requests whose
errors are known, input tokens whose cached part is known, tokens whose requests are known."""

COST = "estimated_cost"
"""`Decimal` in the organisation's currency, or None where nothing of it is priced (an object column)."""


class UsageSource(Protocol):
    """One organisation's usage. Every method answers from the rollups; nothing returns records but `recent_activity`."""

    @property
    def currency(self) -> str:
        """The organisation's reporting currency (ISO 4217)."""

    def frame(
        self,
        period: Period,
        by: Sequence[str] = (),
        granularity: Granularity | None = None,
        where: Mapping[str, str | None] | None = None,
    ) -> pd.DataFrame:
        """Sums over `by` (a None value is usage without one), per bucket if a granularity is given.

        Columns: `moment` (bucket start, `datetime64[us, UTC]`; with a granularity only), the dimensions of `by` (object), `COUNTS`,
        `COST`. One row per bucket and value that has usage, ordered by them. Minutes and hours leave out what is only known by day.
        """

    def first_usage(self) -> datetime | None:
        """The hour of the organisation's first usage, or None without any."""

    def summary(self, period: Period, where: Mapping[str, str | None] | None = None) -> Mapping[str, Any]:
        """The columns of `get_usage_summary` (docs/functions.md), with percentiles and distinct counts."""

    def labels(self, dimension: str) -> Mapping[str, str]:
        """Names of a dimension's values where people or the provider gave one."""

    def users(self, period: Period, order_by: str = "tokens", limit: int | None = None) -> Sequence[Mapping[str, Any]]:
        """The columns of `get_top_users`, whole UTC days, best first; None is everybody."""

    def coverage(self, period: Period) -> Mapping[str, Mapping[str, Any]]:
        """The columns of `get_usage_coverage` by dimension."""

    def quota_statuses(self) -> Sequence[Mapping[str, Any]]:
        """The columns of `check_quota_status` for every active quota."""

    def recent_activity(self, limit: int) -> Sequence[Mapping[str, Any]]:
        """The newest records with the columns of `usage_records`."""


def total(frame: pd.DataFrame, column: str) -> int | None:
    """A count summed over a frame; None where no row knows it, 0 over an empty frame."""
    if frame.empty:
        return 0
    value = frame[column].sum(min_count=1)
    return None if pd.isna(value) else int(value)


def total_cost(frame: pd.DataFrame) -> Decimal | None:
    """Money summed over a frame; None where no row has a price, 0 over an empty frame."""
    known = [cost for cost in frame[COST] if cost is not None]
    if not known:
        return Decimal(0) if frame.empty else None
    return sum(known, Decimal(0))
