"""What results are made of and how they become JSON under the specification's own names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Literal
from uuid import UUID

from tokentra_dagster.analytics.periods import Period

Direction = Literal["up", "down", "flat"]
FLAT_BELOW_PCT = 1.0


@dataclass(frozen=True, slots=True)
class PercentageChange:
    """Section 3. `percentage` is None for a change from zero, which has none (correction 18); `absolute` is None when either side
    is unknown. Below 1 % it is flat, and neither better nor worse."""

    absolute: float | int | Decimal | None
    percentage: float | None
    direction: Direction
    is_improvement: bool


def percentage(change: float | int | Decimal, of: float | int | Decimal) -> float | None:
    """Change in percent of what was; None from zero."""
    return float(change) / float(of) * 100 if of else None


def change(current: Any, previous: Any, *, lower_is_better: bool = False) -> PercentageChange:
    """How a figure moved. An unknown side (None) gives a flat change without figures."""
    if current is None or previous is None:
        return PercentageChange(None, None, "flat", False)
    absolute = current - previous
    relative = percentage(absolute, previous)
    if absolute == 0 or (relative is not None and abs(relative) < FLAT_BELOW_PCT):
        direction: Direction = "flat"
    else:
        direction = "up" if absolute > 0 else "down"
    return PercentageChange(absolute, relative, direction, direction == ("down" if lower_is_better else "up"))


def ratio(part: Any, whole: Any, scale: float = 1.0) -> float | None:
    """`part / whole * scale`; None where either is unknown or the whole is 0, never NaN or infinity."""
    if part is None or whole is None or part != part or whole != whole or not whole:
        return None
    return float(part) / float(whole) * scale


def camel(name: str) -> str:
    """`total_tokens` -> `totalTokens`; `cost_per_1k_tokens` -> `costPer1kTokens`."""
    head, *rest = name.split("_")
    return head + "".join(part[:1].upper() + part[1:] for part in rest)


def as_json(value: Any) -> Any:
    """Dataclasses as objects in camelCase, money as a number, times as ISO 8601 in UTC, a `Period` as start and end.

    Keys of dictionaries are data (model names, metrics) and stay as they are. Raises `ValueError` for NaN and infinity: no result
    may hold one.
    """
    if isinstance(value, Period):
        return {"startDate": as_json(value.start), "endDate": as_json(value.end)}
    if is_dataclass(value) and not isinstance(value, type):
        return {camel(field.name): as_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [as_json(item) for item in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, date | UUID):
        return str(value)
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"A result holds {value}, which is no number.")
        return value
    return value


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One figure of the tidy tables in `analytics`: a metric of a dimension's value, or of everything where `dimension` is None.

    `value` None: unknown. `moment`: the bucket it is of, for figures over time.
    """

    metric: str
    value: float | int | Decimal | None
    dimension: str | None = None
    dimension_value: str | None = None
    moment: datetime | None = None


Severity = Literal["info", "warning", "critical"]
Priority = Literal["low", "medium", "high", "critical"]


@dataclass(frozen=True, slots=True)
class InsightRow:
    """One line of `analytics.insights`: something that a person should know. `kind`: the specification's `type`.

    `starts_at`, `ends_at` (excluded) and `direction` (spike or drop): of an event, e.g. an anomaly; None: of the whole period.
    """

    kind: str
    severity: Severity
    title: str
    description: str
    metric: str | None = None
    dimension: str | None = None
    dimension_value: str | None = None
    impact_tokens: int | None = None
    impact_pct: float | None = None
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    direction: str | None = None


@dataclass(frozen=True, slots=True)
class RecommendationRow:
    """One line of `analytics.recommendations`: something to do. Savings are money in the organisation's currency over the period,
    None where nothing says how much; `assumptions` says what they rest on."""

    category: str
    priority: Priority
    title: str
    description: str
    action: str
    savings_low: Decimal | None = None
    savings_high: Decimal | None = None
    assumptions: str | None = None
    dimension: str | None = None
    dimension_value: str | None = None
