"""Everything that a usage dashboard shows, in one call (specification 3 and 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from tokentra_dagster.analytics import breakdowns, summary, trends
from tokentra_dagster.analytics.breakdowns import UsageBreakdown, usage_breakdown
from tokentra_dagster.analytics.periods import DAY, Period, floor
from tokentra_dagster.analytics.results import MetricRow
from tokentra_dagster.analytics.sources import UsageSource
from tokentra_dagster.analytics.summary import UsageSummaryWithComparison, usage_summary
from tokentra_dagster.analytics.trends import UsageTrend, usage_trend


@dataclass(frozen=True, slots=True)
class DashboardParameters:
    """How many of each the dashboard shows (section 4)."""

    breakdown_limit: int = 8
    top_users: int = 10
    recent_records: int = 20


DEFAULTS = DashboardParameters()


@dataclass(frozen=True, slots=True)
class TopUser:
    """A user with most tokens; `rank` from 1. `model_usage`: tokens and requests by model."""

    user_identifier: str
    user_display_name: str | None
    total_tokens: int | None
    request_count: int | None
    estimated_cost: Decimal | None
    model_usage: Mapping[str, Mapping[str, Any]]
    last_activity_at: datetime | None
    rank: int


@dataclass(frozen=True, slots=True)
class QuotaStatus:
    """A row of `check_quota_status`. `status`: ok, warning, critical or exceeded."""

    quota_id: UUID
    quota_name: str
    scope_type: str
    current_tokens: int | None
    token_limit: int | None
    token_utilization_pct: float | None
    current_requests: int | None
    request_limit: int | None
    request_utilization_pct: float | None
    status: str
    period_remaining_hours: int | None


@dataclass(frozen=True, slots=True)
class RecentRecord:
    """A row of `usage_records` (the specification's UsageRecord). Counts, latencies and cost are None where unknown."""

    id: UUID | str | None
    org_id: UUID | str | None
    provider_connection_id: UUID | str | None
    provider: str
    timestamp: datetime
    bucket_start: datetime | None
    bucket_end: datetime | None
    granularity: str | None
    model: str
    model_family: str | None
    request_type: str | None
    service_tier: str | None
    input_tokens: int | None
    output_tokens: int | None
    total_tokens: int | None
    cached_input_tokens: int | None
    cache_creation_tokens: int | None
    request_count: int | None
    success_count: int | None
    error_count: int | None
    total_latency_ms: int | None
    min_latency_ms: int | None
    max_latency_ms: int | None
    p50_latency_ms: int | None
    p95_latency_ms: int | None
    p99_latency_ms: int | None
    estimated_cost: Decimal | None
    team_id: UUID | str | None
    project_id: UUID | str | None
    cost_center_id: UUID | str | None
    feature: str | None
    environment: str | None
    api_key_id: str | None
    user_ids: tuple[str, ...]
    unique_user_count: int | None
    provider_metadata: Mapping[str, Any]
    sync_id: UUID | str | None
    synced_at: datetime | None
    created_at: datetime | None


@dataclass(frozen=True, slots=True)
class UsageDashboardData:
    """Section 3. The summary is compared with the preceding period."""

    summary: UsageSummaryWithComparison
    token_trend: UsageTrend
    request_trend: UsageTrend
    model_breakdown: UsageBreakdown
    feature_breakdown: UsageBreakdown
    top_users: tuple[TopUser, ...]
    quota_statuses: tuple[QuotaStatus, ...]
    recent_activity: tuple[RecentRecord, ...]


def usage_dashboard(
    usage: UsageSource,
    period: Period,
    where: Mapping[str, str | None] | None = None,
    parameters: DashboardParameters = DEFAULTS,
) -> UsageDashboardData:
    """The dashboard of a period. `where` narrows summary, trends and breakdowns (the specification drops it for the last two).

    Users, quotas and recent records are the organisation's, as in the specification; users are of the whole UTC days that the
    period touches. Raises `UsageError` for what a summary cannot be narrowed by.
    """
    token_trend = usage_trend(usage, period, None, "tokens", where)
    return UsageDashboardData(
        summary=usage_summary(usage, period, where, "previous"),
        token_trend=token_trend,
        request_trend=usage_trend(usage, period, token_trend.granularity, "requests", where),
        model_breakdown=usage_breakdown(usage, period, "model", parameters.breakdown_limit, where),
        feature_breakdown=usage_breakdown(usage, period, "feature", parameters.breakdown_limit, where),
        top_users=top_users(usage, period, limit=parameters.top_users),
        quota_statuses=quota_statuses(usage),
        recent_activity=recent_activity(usage, parameters.recent_records),
    )


def top_users(usage: UsageSource, period: Period, order_by: str = "tokens", limit: int = 10) -> tuple[TopUser, ...]:
    """Users by `tokens`, `requests` or `cost`, best first, over the whole UTC days that the period touches."""
    last = floor(period.end, "day")
    days = Period(floor(period.start, "day"), last if last == period.end else last + DAY)
    columns = [field.name for field in fields(TopUser) if field.name not in ("rank", "model_usage")]
    return tuple(
        TopUser(**{name: row[name] for name in columns}, model_usage=row["model_usage"] or {}, rank=rank)
        for rank, row in enumerate(usage.users(days, order_by, limit), start=1)
    )


def quota_statuses(usage: UsageSource) -> tuple[QuotaStatus, ...]:
    columns = [field.name for field in fields(QuotaStatus)]
    return tuple(QuotaStatus(**{name: row[name] for name in columns}) for row in usage.quota_statuses())


def recent_activity(usage: UsageSource, limit: int = 20) -> tuple[RecentRecord, ...]:
    """The newest records, newest first."""
    return tuple(recent_record(row) for row in usage.recent_activity(limit))


def recent_record(row: Mapping[str, Any]) -> RecentRecord:
    """A row of `usage_records`. A record that names no users has an empty list, as in the specification."""
    columns = [field.name for field in fields(RecentRecord) if field.name not in ("user_ids", "provider_metadata")]
    return RecentRecord(
        **{name: row[name] for name in columns},
        user_ids=tuple(row["user_ids"] or ()),
        provider_metadata=row["provider_metadata"] or {},
    )


def metric_rows(result: UsageDashboardData) -> list[MetricRow]:
    """The dashboard as one tidy table: key figures, points of the trends, items of the breakdowns, users, quotas (by id)."""
    rows = summary.metric_rows(result.summary)
    for trend in (result.token_trend, result.request_trend):
        rows += trends.metric_rows(trend)
    for breakdown in (result.model_breakdown, result.feature_breakdown):
        rows += breakdowns.metric_rows(breakdown)
    for user in result.top_users:
        for name in ("total_tokens", "request_count", "estimated_cost"):
            rows.append(MetricRow(name, getattr(user, name), "user", user.user_identifier))
    for quota in result.quota_statuses:
        for name in ("current_tokens", "token_utilization_pct", "current_requests", "request_utilization_pct"):
            rows.append(MetricRow(name, getattr(quota, name), "quota", str(quota.quota_id)))
    return rows
