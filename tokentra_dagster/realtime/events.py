"""One request that an application reports: `UsageEvent`, checked when it is made (specification section 10, correction 34).

Pure. A wrong event raises `UsageError` with one sentence: the field, its value, what is allowed. Unknown is None, never zero.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any

import numpy as np

from tokentra_dagster.errors import UsageError
from tokentra_dagster.latency import latency_buckets
from tokentra_dagster.records import PROVIDERS, REQUEST_TYPES, SERVICE_TYPES, UsageRecord, field_names, token_problem

MOST_TOKENS = 10**12
MOST_LATENCY_MS = 10**9
MOST_MONEY = Decimal(10**9)
LONGEST_TEXT = 500
LONGEST_METADATA = 10_000
EARLIEST = datetime(2015, 1, 1, tzinfo=UTC)
CLOCK_SKEW = timedelta(minutes=5)
MINUTE = timedelta(minutes=1)
COST_STEP = Decimal("1e-12")

_REQUIRED_TEXT = ("event_id", "model")
_TEXT = (
    "service_tier", "quantity_unit", "error_message", "provider_project_id", "api_key_id", "user_id", "team", "project",
    "cost_center", "feature", "environment", "context_window",
)  # fmt: skip
_COUNTS = ("input_tokens", "output_tokens", "cached_input_tokens", "cache_creation_tokens")
_MONEY = ("reported_cost", "quantity")


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageEvent:
    """One request. Tokens as in `UsageRecord` (input includes cache reads and writes), latency in milliseconds, cost in `currency`.

    Raises `UsageError` when it is made from values that cannot be.
    """

    event_id: str
    """The sender's own id, unique in its organisation: sent again, it counts once."""
    occurred_at: datetime
    provider: str
    model: str
    input_tokens: int
    output_tokens: int
    cached_input_tokens: int | None = None
    cache_creation_tokens: int | None = None
    token_details: Mapping[str, int] = field(default_factory=dict)
    quantity: Decimal | None = None
    quantity_unit: str | None = None
    request_type: str | None = None
    service_type: str | None = None
    service_tier: str | None = None
    is_error: bool | None = None
    error_message: str | None = None
    latency_ms: int | None = None
    reported_cost: Decimal | None = None
    """Rounded to 12 decimals."""
    currency: str = "USD"
    provider_project_id: str | None = None
    api_key_id: str | None = None
    user_id: str | None = None
    team: str | None = None
    project: str | None = None
    cost_center: str | None = None
    feature: str | None = None
    environment: str | None = None
    context_window: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for problem in (_texts, _choices, _moment, _numbers, _objects):
            if found := problem(self):
                raise UsageError(found)
        object.__setattr__(self, "occurred_at", self.occurred_at.astimezone(UTC))
        for name in _MONEY:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, value.quantize(COST_STEP))


FIELDS = field_names(UsageEvent)
_SAME = tuple(name for name in FIELDS if name in field_names(UsageRecord) and name != "metadata")
"""What an event and its record have under one name."""


def record_of(event: Mapping[str, Any]) -> UsageRecord:
    """The record of an event's fields: its moment kept, in the minute that holds it; a latency is a histogram of one.

    Checks nothing: what was stored once must become a record or a rejected one, whatever the rules are by then.
    """
    moment: datetime = event["occurred_at"]
    failed, latency = event["is_error"], event["latency_ms"]
    metadata = {**event["metadata"], "event_id": event["event_id"]}
    if event["error_message"] is not None:
        metadata["error_message"] = event["error_message"]
    return UsageRecord(
        bucket_start=moment,
        bucket_end=moment.replace(second=0, microsecond=0) + MINUTE,
        granularity="1m",
        request_count=1,
        success_count=None if failed is None else int(not failed),
        error_count=None if failed is None else int(failed),
        total_latency_ms=latency,
        min_latency_ms=latency,
        max_latency_ms=latency,
        latency_histogram=None if latency is None else {latency_bucket(latency): 1},
        metadata=metadata,
        **{name: event[name] for name in _SAME},
    )


@lru_cache(10_000)
def latency_bucket(milliseconds: int) -> int:
    """The histogram bucket of one latency, the very one that `latency.latency_buckets` gives."""
    return int(latency_buckets(np.array([milliseconds], dtype=np.int64))[0])


def refuse_future(event: UsageEvent, now: datetime) -> None:
    """Raise `UsageError` for an event from after `now`, apart from a little difference of clocks."""
    if event.occurred_at > now + CLOCK_SKEW:
        raise UsageError(
            f"occurred_at of event {event.event_id!r} is {event.occurred_at.isoformat()}, which is in the future (it is "
            f"{now.isoformat()} now); send the moment of the request, and check the sender's clock and time zone."
        )


def event_of(payload: Mapping[str, Any]) -> UsageEvent:
    """An event from JSON: the fields of `UsageEvent`, times as ISO text with a zone, money as a number or text."""
    unknown = sorted(set(payload) - set(FIELDS))
    if unknown:
        raise UsageError(f"The event has the unknown field {unknown[0]!r}; it may have {', '.join(FIELDS)}.")
    values = {name: value for name, value in payload.items() if value is not None}
    missing = [name for name in FIELDS[:6] if name not in values]
    if missing:
        raise UsageError(f"The event has no {missing[0]}; it must have {', '.join(FIELDS[:6])}.")
    occurred = values["occurred_at"]
    if isinstance(occurred, str):
        try:
            values["occurred_at"] = datetime.fromisoformat(occurred)
        except ValueError:
            raise UsageError(f"occurred_at is {occurred!r}; write an ISO time with its zone like 2026-06-01T12:00:00Z.") from None
    for name in _MONEY:
        if name in values and not isinstance(values[name], bool):
            try:
                values[name] = Decimal(str(values[name]))
            except InvalidOperation:
                raise UsageError(f"{name} is {values[name]!r}; it must be a number.") from None
    return UsageEvent(**values)


def _texts(event: UsageEvent) -> str | None:
    for name in (*_REQUIRED_TEXT, *_TEXT):
        value = getattr(event, name)
        if value is None and name not in _REQUIRED_TEXT:
            continue
        if not isinstance(value, str) or not value:
            hint = "" if name in _REQUIRED_TEXT else "; leave it out when it is unknown"
            return f"{name} is {value!r}; it must be text that is not empty{hint}."
        if len(value) > LONGEST_TEXT:
            return f"{name} has {len(value)} characters; it may have {LONGEST_TEXT}."
        if not _storable(value):
            return f"{name} is {value!r}, which holds a NUL character or half a surrogate pair; it must be text."
    return None


def _choices(event: UsageEvent) -> str | None:
    for name, allowed in (("provider", PROVIDERS), ("request_type", REQUEST_TYPES), ("service_type", SERVICE_TYPES)):
        value = getattr(event, name)
        if value not in allowed and not (value is None and name != "provider"):
            return f"{name} is {value!r}; it must be one of {', '.join(allowed)}."
    if event.is_error is not None and not isinstance(event.is_error, bool):
        return f"is_error is {event.is_error!r}; it must be true, false or left out."
    currency = event.currency
    if not (
        isinstance(currency, str) and len(currency) == 3 and currency.isascii() and currency.isalpha() and currency.isupper()
    ):
        return f"currency is {currency!r}; it must be three capital letters like USD."
    return None


def _moment(event: UsageEvent) -> str | None:
    moment = event.occurred_at
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        return f"occurred_at is {moment!s}; it must be a time with its zone like 2026-06-01T12:00:00Z."
    if moment < EARLIEST:
        return f"occurred_at is {moment.isoformat()}; it must be {EARLIEST:%Y-%m-%d} or later."
    return None


def _numbers(event: UsageEvent) -> str | None:
    limits = {**dict.fromkeys(_COUNTS, MOST_TOKENS), "latency_ms": MOST_LATENCY_MS}
    for name, most in limits.items():
        value = getattr(event, name)
        if value is None and name not in ("input_tokens", "output_tokens"):
            continue
        if not _whole(value) or not 0 <= value <= most:
            return f"{name} is {value!r}; it must be a whole number from 0 to {most}."
    for name in _MONEY:
        value = getattr(event, name)
        if value is not None and not (isinstance(value, Decimal) and value.is_finite() and 0 <= value <= MOST_MONEY):
            return f"{name} is {value!s}; it must be a decimal number from 0 to {MOST_MONEY}."
    if (event.quantity is None) != (event.quantity_unit is None):
        return f"quantity is {event.quantity} and quantity_unit {event.quantity_unit!r}; give both or neither."
    problem = token_problem(event.input_tokens, event.output_tokens, event.cached_input_tokens, event.cache_creation_tokens)
    return f"{problem}." if problem else None


def _objects(event: UsageEvent) -> str | None:
    details = event.token_details
    if not isinstance(details, Mapping) or not all(
        isinstance(k, str) and _whole(v) and 0 <= v <= MOST_TOKENS for k, v in details.items()
    ):
        return f"token_details is {details!r}; it must be names with whole numbers from 0 to {MOST_TOKENS}."
    if not isinstance(event.metadata, Mapping):
        return f"metadata is {event.metadata!r}; it must be an object."
    for name in ("token_details", "metadata"):
        try:
            text = json.dumps(dict(getattr(event, name)), ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            return f"{name} cannot be written as JSON ({error}); it may hold text, finite numbers, true, false, null, lists and objects."
        if len(text) > LONGEST_METADATA:
            return f"{name} has {len(text)} characters as JSON; it may have {LONGEST_METADATA}."
        if not _storable(text) or "\\u0000" in text:
            return f"{name} holds a NUL character or half a surrogate pair; its texts must be text."
    return None


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _storable(text: str) -> bool:
    """What PostgreSQL takes as text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\x00" not in text
