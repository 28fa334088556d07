"""A `UsageSource` over rows in memory: the same answers as the warehouse's, by plain pandas, for tests that need no database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

import pandas as pd

from tokentra_dagster.analytics.periods import Granularity, Period, floor
from tokentra_dagster.analytics.sources import COST, COUNTS, DIMENSIONS

EMPTY = {"moment": "datetime64[us, UTC]", **dict.fromkeys(DIMENSIONS, object), **dict.fromkeys(COUNTS, "Int64"), COST: object}

RECORD = (
    "id", "org_id", "provider_connection_id", "bucket_start", "bucket_end", "granularity", "service_tier", "min_latency_ms",
    "max_latency_ms", "p50_latency_ms", "p95_latency_ms", "p99_latency_ms", "unique_user_count", "provider_metadata", "sync_id",
    "synced_at", "created_at",
)  # fmt: skip
"""Columns of `usage_records` that rows here do not have."""


def usage_row(moment: datetime, **fields: Any) -> dict[str, Any]:
    """One record with plausible values for what is not given; a count that is given as None is unknown."""
    row: dict[str, Any] = dict.fromkeys(DIMENSIONS) | {
        "moment": moment, "provider": "openai", "model": "gpt-4o-2024-08-06", "environment": "production", "request_type": "chat",
        "input_tokens": 100, "output_tokens": 10, "cached_tokens": 0, "cache_creation_tokens": 0, "request_count": 1,
        "success_count": 1, "error_count": 0, "total_latency_ms": None, "unpriced_tokens": 0, "record_count": 1, COST: Decimal("0.01"),
    }  # fmt: skip
    row |= fields
    row.setdefault("total_tokens", row["input_tokens"] + row["output_tokens"])
    row["latency_request_count"] = None if row["total_latency_ms"] is None else row["request_count"]
    row["requests_with_errors_known"] = None if row["error_count"] is None else row["request_count"]
    row["input_with_cache_known"] = None if row["cached_tokens"] is None else row["input_tokens"]
    row["tokens_with_requests_known"] = None if row["request_count"] is None else row["total_tokens"]
    return row


@dataclass
class RecordedUsage:
    """Usage of one organisation from `usage_row`s. What the frames do not need is given by the test (`quotas`, `names`)."""

    rows: pd.DataFrame
    currency: str = "USD"
    names: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    quotas: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]], **settings: Any) -> RecordedUsage:
        lines = list(rows)
        columns = {name: pd.Series([line[name] for line in lines], dtype=dtype) for name, dtype in EMPTY.items()}
        return cls(pd.DataFrame(columns), **settings)

    def within(self, period: Period, where: Mapping[str, str | None] | None = None) -> pd.DataFrame:
        rows = self.rows[(self.rows["moment"] >= period.start) & (self.rows["moment"] < period.end)]
        for name, value in (where or {}).items():
            rows = rows[rows[name].isna()] if value in (None, "Unknown") else rows[rows[name] == value]
        return rows

    def frame(
        self,
        period: Period,
        by: Sequence[str] = (),
        granularity: Granularity | None = None,
        where: Mapping[str, str | None] | None = None,
    ) -> pd.DataFrame:
        rows = self.within(period, where).copy()
        keys = [*(["moment"] if granularity else []), *by]
        columns = [*keys, *COUNTS, COST]
        if rows.empty:
            return rows[columns].reset_index(drop=True)
        if granularity:
            rows["moment"] = rows["moment"].map(lambda moment: floor(moment.to_pydatetime(), granularity)).astype(EMPTY["moment"])
        if not keys:
            rows["everything"] = 0
        grouped = rows.groupby(keys or ["everything"], dropna=False, sort=True)
        summed = grouped[list(COUNTS)].sum(min_count=1)
        summed[COST] = grouped[COST].agg(
            lambda costs: sum((c for c in costs if c is not None), Decimal(0)) if costs.notna().any() else None
        )
        found = summed.reset_index()[columns]
        for name in by:
            found[name] = found[name].astype(object).where(found[name].notna(), None)
        found[COST] = found[COST].astype(object).where(found[COST].notna(), None)
        return found

    def first_usage(self) -> datetime | None:
        return None if self.rows.empty else floor(self.rows["moment"].min().to_pydatetime(), "hour")

    def summary(self, period: Period, where: Mapping[str, str | None] | None = None) -> Mapping[str, Any]:
        rows, (whole,) = self.within(period, where), self.frame(period, where=where).to_dict("records") or ({},)
        known = {name: (0 if rows.empty else None if pd.isna(whole[name]) else whole[name]) for name in (*COUNTS, COST)}

        def rate(part: str, of: str, scale: float = 1) -> float | None:
            return known[part] / known[of] * scale if known[of] and known[part] is not None else None

        latency = rate("total_latency_ms", "latency_request_count")
        return {
            "total_tokens": known["total_tokens"], "input_tokens": known["input_tokens"], "output_tokens": known["output_tokens"],
            "cached_tokens": known["cached_tokens"], "cache_creation_tokens": known["cache_creation_tokens"],
            "total_requests": known["request_count"], "success_requests": known["success_count"], "error_requests": known["error_count"],
            "avg_latency_ms": None if latency is None else round(latency), "p50_latency_ms": None, "p95_latency_ms": None,
            "p99_latency_ms": None, "min_latency_ms": None, "max_latency_ms": None, "latency_is_approximate": None,
            "error_rate": rate("error_count", "requests_with_errors_known", 100),
            "cache_hit_rate": rate("cached_tokens", "input_with_cache_known", 100),
            "tokens_per_request": rate("tokens_with_requests_known", "request_count"),
            "requests_per_minute": None if known["request_count"] is None else known["request_count"] / (period.hours * 60),
            "unique_models": rows["model"].nunique(), "unique_users": rows["user"].nunique(), "unique_features": rows["feature"].nunique(),
            "unique_api_keys": rows["api_key"].nunique(), "estimated_cost": known[COST], "unpriced_tokens": known["unpriced_tokens"],
            "record_count": len(rows), "currency": self.currency,
        }  # fmt: skip

    def labels(self, dimension: str) -> Mapping[str, str]:
        return self.names.get(dimension, {})

    def users(self, period: Period, order_by: str = "tokens", limit: int | None = None) -> Sequence[Mapping[str, Any]]:
        rows = self.within(period)
        found = []
        for user, own in rows[rows["user"].notna()].groupby("user"):
            spent = {
                kind: {
                    name: {"tokens": int(part["total_tokens"].sum()), "requests": int(part["request_count"].sum())}
                    for name, part in own.groupby(own[kind].fillna("untagged"))
                }
                for kind in ("model", "feature")
            }
            found.append({
                "user_identifier": user, "user_display_name": self.labels("user").get(user),
                "total_tokens": int(own["total_tokens"].sum()), "request_count": int(own["request_count"].sum()),
                "estimated_cost": sum(own[COST].dropna(), Decimal(0)), "input_tokens": int(own["input_tokens"].sum()),
                "output_tokens": int(own["output_tokens"].sum()), "cached_tokens": int(own["cached_tokens"].sum()),
                "error_count": int(own["error_count"].sum()), "avg_latency_ms": None, "unpriced_tokens": int(own["unpriced_tokens"].sum()),
                "active_days": own["moment"].dt.date.nunique(), "model_usage": spent["model"], "feature_usage": spent["feature"],
                "first_activity_at": own["moment"].min().to_pydatetime(), "last_activity_at": own["moment"].max().to_pydatetime(),
                "currency": self.currency,
            })  # fmt: skip
        column = {"tokens": "total_tokens", "requests": "request_count", "cost": "estimated_cost"}[order_by]
        return sorted(found, key=lambda row: (-row[column], row["user_identifier"]))[:limit]

    def coverage(self, period: Period) -> Mapping[str, Mapping[str, Any]]:
        rows = self.within(period)
        tokens, records = int(rows["total_tokens"].sum()), len(rows)
        found = {}
        for dimension in ("team", "project", "cost_center", "feature", "user", "environment", "api_key"):
            own = rows[rows[dimension].notna()]
            attributed = int(own["total_tokens"].sum())
            found[dimension] = {
                "dimension": dimension, "attributed_tokens": attributed, "total_tokens": tokens,
                "token_coverage_pct": attributed / tokens * 100 if tokens else None, "attributed_records": len(own),
                "total_records": records, "record_coverage_pct": len(own) / records * 100 if records else None,
            }  # fmt: skip
        return found

    def quota_statuses(self) -> Sequence[Mapping[str, Any]]:
        return self.quotas

    def recent_activity(self, limit: int) -> Sequence[Mapping[str, Any]]:
        newest = self.rows.sort_values("moment", ascending=False).head(limit)
        found = []
        for row in newest.astype(object).where(newest.notna(), None).to_dict("records"):
            named = {f"{name}_id": row[name] for name in ("team", "project", "cost_center", "api_key")}
            users = None if row["user"] is None else [row["user"]]
            found.append({
                **dict.fromkeys(RECORD), **row, **named, "user_ids": users, "timestamp": row["moment"].to_pydatetime(),
                "cached_input_tokens": row["cached_tokens"],
            })  # fmt: skip
        return found
