"""Usage of the last minutes, live (specification section 10; correction 34; docs/live.md, docs/decisions/0019).

`live_usage` asks the database's `get_live_usage` once, so everything in its answer is of one moment; what follows from those
figures (rates, projections, shares) is computed here. Reads only; imports neither Dagster nor Arrow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg

from tokentra_dagster.analytics.results import as_json, percentage, ratio
from tokentra_dagster.errors import UsageError
from tokentra_dagster.warehouse.directory import Connection

MOST_MINUTES = 60
DEFAULT_MINUTES = 15
RATE_MINUTES = 5
"""A rate is the average of so many whole minutes: one alone jumps, and half a minute says little (the specification extrapolates it)."""
MOST_SHARES = 100
"""Models, and features, that are listed; the rest is one `Other` (correction 15)."""
MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class MinuteData:
    """One UTC minute. A minute without events has zeros, which are known; None is unknown. Latency in milliseconds, cost in the
    organisation's currency."""

    timestamp: datetime
    is_complete: bool
    tokens: int
    input_tokens: int
    output_tokens: int
    requests: int
    errors: int | None
    estimated_cost: Decimal | None
    unpriced_requests: int
    avg_latency: float | None
    p50_latency_ms: int | None
    p95_latency_ms: int | None
    p99_latency_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveShare:
    """What one model (of one provider) or one feature used in the window. `feature` None: the events name none; `percentage` is the
    share of the window's tokens, 0 to 100. `other_count`: it is that many smaller ones together, whose percentiles are unknown."""

    provider: str | None = None
    model: str | None = None
    feature: str | None = None
    tokens: int
    requests: int
    errors: int | None
    percentage: float | None
    estimated_cost: Decimal | None
    unpriced_requests: int
    avg_latency: float | None
    p50_latency_ms: int | None
    p95_latency_ms: int | None
    p99_latency_ms: int | None
    other_count: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """Where a UTC hour or day ends at the current rate: what it has used so far + rate per minute x minutes left of it."""

    end: datetime
    tokens_so_far: int
    requests_so_far: int
    cost_so_far: Decimal | None
    minutes_left: float
    projected_tokens: int
    projected_requests: int
    projected_cost: Decimal | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrentRate:
    """The running minute and the last whole one, and what they say (specification section 10, `RateMetrics`).

    The running minute is projected as what it has + the current rate for the seconds that are left of it. A change from zero has no
    percentage (correction 18): None.
    """

    minutes: int
    """Whole minutes that the current rate is the average of."""
    tokens_per_minute: float
    requests_per_minute: float
    cost_per_minute: Decimal | None
    current_minute_tokens: int
    current_minute_requests: int
    last_minute_tokens: int
    last_minute_requests: int
    projected_minute_tokens: int
    projected_minute_requests: int
    token_rate_change: float | None
    request_rate_change: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveUsage:
    """The window `[window_start, window_end)`: whole minutes and the running one up to now (specification section 10,
    `RealTimeMetrics`). Events count in the minute of their request, whether they are records yet or not.

    `late_requests` arrived more than a minute after their request. `ahead_requests` are dated after the running minute, by clocks
    that run ahead, and count when their minute comes. Cost is of what has a price in `currency`; the rest is counted in
    `unpriced_requests` and `other_currency_requests`.
    """

    organization_id: UUID
    window_start: datetime
    window_end: datetime
    currency: str
    total_tokens: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int | None
    request_count: int
    error_count: int | None
    error_rate: float | None
    estimated_cost: Decimal | None
    unpriced_requests: int
    other_currency_requests: int
    avg_latency_ms: float | None
    p50_latency_ms: int | None
    p95_latency_ms: int | None
    p99_latency_ms: int | None
    tokens_per_minute: float
    requests_per_minute: float
    late_requests: int
    ahead_requests: int
    rate: CurrentRate
    hour: Projection
    day: Projection
    minute_data: Sequence[MinuteData]
    models: Sequence[LiveShare]
    features: Sequence[LiveShare]

    def as_json(self) -> dict[str, Any]:
        """Under the specification's names; money as a number, times as ISO 8601 in UTC."""
        said: dict[str, Any] = as_json(self)
        return said


def live_usage(db: Connection, org_id: UUID, minutes: int = DEFAULT_MINUTES, now: datetime | None = None) -> LiveUsage:
    """The organisation's usage of the last `minutes` whole minutes (1 to 60) and the running one, by the database's clock; `now` is
    for tests. Raises `UsageError` for another number of minutes and for an organisation that does not exist or may not be seen.
    """
    check_minutes(minutes)
    try:
        rows = db.execute(
            "SELECT coalesce(%(now)s, statement_timestamp()) AS asked_at, u.* FROM marts.get_live_usage(%(org)s, %(minutes)s, %(now)s) AS u",
            {"org": org_id, "minutes": minutes, "now": now},
        ).fetchall()
    except psycopg.errors.InvalidParameterValue as error:
        raise UsageError(str(error.diag.message_primary)) from None
    return summarize(org_id, rows)


def check_minutes(minutes: int) -> None:
    """Raise `UsageError` unless it is a number of minutes that live usage may be asked for."""
    if not 1 <= minutes <= MOST_MINUTES:
        raise UsageError(
            f"minutes is {minutes}; it must be a whole number from 1 to {MOST_MINUTES}. Longer periods are in the rollups."
        )


def summarize(org_id: UUID, rows: Sequence[Mapping[str, Any]]) -> LiveUsage:
    """The rows of `get_live_usage` with what follows from them. Pure."""
    of: dict[str, list[Mapping[str, Any]]] = {name: [] for name in ("window", "minute", "model", "feature", "hour", "day")}
    for row in rows:
        of[row["slice"]].append(row)
    (window,), (hour,), (day,) = of["window"], of["hour"], of["day"]
    now: datetime = window["asked_at"]
    points = [_minute(row, now) for row in of["minute"]]
    rate = current_rate(points, now)
    return LiveUsage(
        organization_id=org_id, window_start=window["slice_start"], window_end=now, currency=window["currency"],
        total_tokens=window["total_tokens"], input_tokens=window["input_tokens"], output_tokens=window["output_tokens"],
        cached_tokens=window["cached_tokens"], request_count=window["request_count"], error_count=window["error_count"],
        error_rate=ratio(window["error_count"], window["requests_with_errors_known"], 100),
        estimated_cost=window["estimated_cost"], unpriced_requests=window["unpriced_requests"],
        other_currency_requests=window["other_currency_requests"], avg_latency_ms=_mean(window),
        **{name: window[name] for name in _PERCENTILES},
        tokens_per_minute=rate.tokens_per_minute, requests_per_minute=rate.requests_per_minute,
        late_requests=window["late_requests"], ahead_requests=window["ahead_requests"], rate=rate,
        hour=_projection(hour, rate, now), day=_projection(day, rate, now), minute_data=points,
        models=_shares(of["model"], window, "model"), features=_shares(of["feature"], window, "feature"),
    )  # fmt: skip


def current_rate(points: Sequence[MinuteData], now: datetime) -> CurrentRate:
    """What the last whole minutes say of the running one; the last point is the running minute. Pure."""
    *complete, running = points
    recent = complete[-RATE_MINUTES:]
    last = recent[-1]
    tokens, requests = (sum(getattr(point, name) for point in recent) / len(recent) for name in ("tokens", "requests"))
    left = (running.timestamp + MINUTE - now) / MINUTE
    projected_tokens, projected_requests = round(running.tokens + tokens * left), round(running.requests + requests * left)
    return CurrentRate(
        minutes=len(recent), tokens_per_minute=tokens, requests_per_minute=requests, cost_per_minute=_cost_per_minute(recent),
        current_minute_tokens=running.tokens, current_minute_requests=running.requests,
        last_minute_tokens=last.tokens, last_minute_requests=last.requests,
        projected_minute_tokens=projected_tokens, projected_minute_requests=projected_requests,
        token_rate_change=percentage(projected_tokens - last.tokens, last.tokens),
        request_rate_change=percentage(projected_requests - last.requests, last.requests),
    )  # fmt: skip


_PERCENTILES = ("p50_latency_ms", "p95_latency_ms", "p99_latency_ms")


def _cost_per_minute(points: Sequence[MinuteData]) -> Decimal | None:
    """None where there were requests and none of them has a price."""
    used = [point.estimated_cost for point in points if point.requests]
    known = [cost for cost in used if cost is not None]
    return sum(known, Decimal(0)) / len(points) if known or not used else None


def _projection(row: Mapping[str, Any], rate: CurrentRate, now: datetime) -> Projection:
    left = (row["slice_end"] - now) / MINUTE
    cost, cost_rate = row["estimated_cost"], rate.cost_per_minute
    unknown = cost is None or cost_rate is None
    return Projection(
        end=row["slice_end"], tokens_so_far=row["total_tokens"], requests_so_far=row["request_count"], cost_so_far=cost,
        minutes_left=left,
        projected_tokens=round(row["total_tokens"] + rate.tokens_per_minute * left),
        projected_requests=round(row["request_count"] + rate.requests_per_minute * left),
        projected_cost=None if unknown else cost + cost_rate * Decimal(str(left)),
    )  # fmt: skip


def _minute(row: Mapping[str, Any], now: datetime) -> MinuteData:
    return MinuteData(
        timestamp=row["slice_start"], is_complete=row["slice_end"] <= now, tokens=row["total_tokens"],
        input_tokens=row["input_tokens"], output_tokens=row["output_tokens"], requests=row["request_count"], errors=row["error_count"],
        estimated_cost=row["estimated_cost"], unpriced_requests=row["unpriced_requests"], avg_latency=_mean(row),
        **{name: row[name] for name in _PERCENTILES},
    )  # fmt: skip


def _shares(rows: Sequence[Mapping[str, Any]], window: Mapping[str, Any], name: str) -> list[LiveShare]:
    listed, rest = rows[:MOST_SHARES], rows[MOST_SHARES:]
    shares = [_share(row, window) for row in listed]
    if rest:
        other = {key: _sum(row[key] for row in rest) for key in _SUMS} | dict.fromkeys(
            (*_PERCENTILES, "provider", "model", "feature")
        )
        shares.append(replace(_share(other | {name: "Other"}, window), other_count=len(rest)))
    return shares


_SUMS = (
    "total_tokens",
    "request_count",
    "error_count",
    "estimated_cost",
    "unpriced_requests",
    "total_latency_ms",
    "latency_request_count",
)


def _sum(values: Iterable[Any]) -> Any:
    """None where none is known."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _share(row: Mapping[str, Any], window: Mapping[str, Any]) -> LiveShare:
    return LiveShare(
        provider=row["provider"], model=row["model"], feature=row["feature"], tokens=row["total_tokens"], requests=row["request_count"],
        errors=row["error_count"], percentage=ratio(row["total_tokens"], window["total_tokens"], 100),
        estimated_cost=row["estimated_cost"], unpriced_requests=row["unpriced_requests"], avg_latency=_mean(row),
        **{name: row[name] for name in _PERCENTILES},
    )  # fmt: skip


def _mean(row: Mapping[str, Any]) -> float | None:
    return ratio(row["total_latency_ms"], row["latency_request_count"])
