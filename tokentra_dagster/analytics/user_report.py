"""Who used how much: the user activity report (section 9; corrections 32, 33)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Literal, get_args

from tokentra_dagster.analytics.periods import DAY, Period, floor
from tokentra_dagster.analytics.results import MetricRow, ratio
from tokentra_dagster.analytics.sources import UsageSource
from tokentra_dagster.errors import UsageError

UserOrder = Literal["tokens", "requests", "cost"]
USER_ORDERS: tuple[UserOrder, ...] = get_args(UserOrder)


@dataclass(frozen=True, slots=True)
class ReportDays:
    """Whole UTC days, the end not included."""

    start_date: date
    end_date: date


@dataclass(frozen=True, slots=True)
class UserActivitySummary:
    """One user over the report's days. `active_days`: days with usage. Usage by model and feature: `{name: {tokens, requests}}`.
    `first_activity` and `last_activity` are None where usage is only known by day. `token_share_pct`: of all users' tokens."""

    user_identifier: str
    user_display_name: str | None
    total_tokens: int | None
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    request_count: int | None
    error_count: int | None
    avg_latency_ms: float | None
    estimated_cost: Decimal | None
    unpriced_tokens: int | None
    active_days: int
    model_usage: Mapping[str, Mapping[str, int]]
    feature_usage: Mapping[str, Mapping[str, int]]
    first_activity: datetime | None
    last_activity: datetime | None
    token_share_pct: float | None


@dataclass(frozen=True, slots=True)
class UserActivityTotals:
    """Over everyone, before any limit (correction 33). Averages are None without users. `unattributed_tokens`: usage that no source
    gives one user, in no user's row; None where the report is of one user."""

    total_users: int
    total_tokens: int | None
    total_requests: int | None
    total_cost: Decimal | None
    avg_tokens_per_user: float | None
    avg_cost_per_user: Decimal | None
    unattributed_tokens: int | None


@dataclass(frozen=True, slots=True)
class UserActivityReport:
    period: ReportDays
    users: tuple[UserActivitySummary, ...]
    totals: UserActivityTotals
    currency: str


def analyze_user_activity(
    usage: UsageSource,
    period: Period,
    order_by: str = "tokens",
    limit: int | None = None,
    user: str | None = None,
) -> UserActivityReport:
    """Users of the days that the period touches, best first by `tokens`, `requests` or `cost`; `limit` None is everybody.

    `user` keeps one user identifier; one without usage gives no rows and totals of nothing. Raises `UsageError` for another order or
    a limit below 1.
    """
    if order_by not in USER_ORDERS:
        raise UsageError(f"The users' order is {order_by!r}; it must be one of {', '.join(USER_ORDERS)}.")
    if limit is not None and limit < 1:
        raise UsageError(f"The limit is {limit}; it must be at least 1, or left out for everybody.")
    last = floor(period.end, "day")
    days = Period(floor(period.start, "day"), last if last == period.end else last + DAY)
    rows = [row for row in usage.users(days, order_by=order_by) if user is None or row["user_identifier"] == user]
    unattributed = None
    if user is None:
        known = usage.coverage(days)["user"]
        unattributed = (known["total_tokens"] or 0) - (known["attributed_tokens"] or 0)
    return report_of(rows, days, usage.currency, limit, unattributed)


def report_of(
    rows: Sequence[Mapping[str, Any]], days: Period, currency: str, limit: int | None = None, unattributed: int | None = None
) -> UserActivityReport:
    """From every user's columns of `get_top_users`, in order: totals first, then the limit. Pure."""
    tokens, requests, cost = (_sum(rows, name) for name in ("total_tokens", "request_count", "estimated_cost"))
    totals = UserActivityTotals(
        total_users=len(rows),
        total_tokens=tokens,
        total_requests=requests,
        total_cost=None if cost is None else Decimal(cost),
        avg_tokens_per_user=ratio(tokens, len(rows)),
        avg_cost_per_user=Decimal(cost) / len(rows) if rows and cost is not None else None,
        unattributed_tokens=unattributed,
    )
    users = tuple(_user(row, tokens) for row in rows[:limit])
    return UserActivityReport(ReportDays(days.start.date(), days.end.date()), users, totals, currency)


def _sum(rows: Sequence[Mapping[str, Any]], name: str) -> Any:
    """None where no user's figure is known; 0 without users."""
    known = [row[name] for row in rows if row[name] is not None]
    return sum(known) if known or not rows else None


def _user(row: Mapping[str, Any], all_tokens: int | None) -> UserActivitySummary:
    return UserActivitySummary(
        user_identifier=row["user_identifier"],
        user_display_name=row["user_display_name"],
        total_tokens=row["total_tokens"],
        input_tokens=row["input_tokens"],
        output_tokens=row["output_tokens"],
        cached_tokens=row["cached_tokens"],
        request_count=row["request_count"],
        error_count=row["error_count"],
        avg_latency_ms=None if row["avg_latency_ms"] is None else float(row["avg_latency_ms"]),
        estimated_cost=row["estimated_cost"],
        unpriced_tokens=row["unpriced_tokens"],
        active_days=row["active_days"],
        model_usage=row["model_usage"] or {},
        feature_usage=row["feature_usage"] or {},
        first_activity=row["first_activity_at"],
        last_activity=row["last_activity_at"],
        token_share_pct=ratio(row["total_tokens"], all_tokens, 100),
    )


def metric_rows(result: UserActivityReport) -> list[MetricRow]:
    """Totals of everyone, and per user of the report tokens, requests, errors, cost, active days and share."""
    totals = result.totals
    rows = [
        MetricRow("total_users", totals.total_users),
        MetricRow("total_tokens", totals.total_tokens),
        MetricRow("total_requests", totals.total_requests),
        MetricRow("total_cost", totals.total_cost),
        MetricRow("avg_tokens_per_user", totals.avg_tokens_per_user),
        MetricRow("avg_cost_per_user", totals.avg_cost_per_user),
        MetricRow("unattributed_tokens", totals.unattributed_tokens),
    ]
    for user in result.users:
        figures: dict[str, float | int | Decimal | None] = {
            "total_tokens": user.total_tokens,
            "total_requests": user.request_count,
            "error_requests": user.error_count,
            "total_cost": user.estimated_cost,
            "active_days": user.active_days,
            "token_share_pct": user.token_share_pct,
        }
        rows += [MetricRow(name, value, "user", user.user_identifier) for name, value in figures.items()]
    return rows
