"""Reading the parts of a provider's JSON strictly: a count is a whole number, money is a Decimal, a time has a zone.

`BadItem` says what is wrong with one item; its caller makes a `RejectedItem` of it, never a zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

DAY = timedelta(days=1)


class BadItem(ValueError):
    """Why one item cannot be used."""


def count(item: Mapping[str, Any], name: str) -> int:
    """A required whole number."""
    value = optional_count(item, name)
    if value is None:
        raise BadItem(f"{name} is missing; it is required")
    return value


def optional_count(item: Mapping[str, Any], name: str) -> int | None:
    """A whole number, not negative; None when absent or null."""
    value: object = item.get(name)
    if isinstance(value, Decimal) and value == value.to_integral_value():
        value = int(value)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadItem(f"{name} is {value!r}; a whole number is required")
    if value < 0:
        raise BadItem(f"{name} is {value}; a count cannot be negative")
    return value


def optional_text(item: Mapping[str, Any], name: str) -> str | None:
    value = item.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise BadItem(f"{name} is {value!r}; text is required")
    return value


def mapping(item: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = item.get(name)
    if not isinstance(value, Mapping):
        raise BadItem(f"{name} is {value!r}; an object is required")
    return value


def amount(item: Mapping[str, Any], name: str) -> Decimal:
    """Money that arrives as a number or as text; every digit is kept."""
    value = item.get(name)
    if isinstance(value, bool) or not isinstance(value, int | str | Decimal):
        raise BadItem(f"{name} is {value!r}; a decimal number is required")
    try:
        number = Decimal(value)
    except InvalidOperation:
        raise BadItem(f"{name} is {value!r}; a decimal number is required") from None
    if not number.is_finite():
        raise BadItem(f"{name} is {value!r}; a finite number is required")
    return number


def optional_amount(item: Mapping[str, Any], name: str) -> Decimal | None:
    return None if item.get(name) is None else amount(item, name)


def cents_to_units(cents: Decimal) -> Decimal:
    """Exact, whatever the number of digits: division would round to the context's precision."""
    sign, digits, exponent = cents.as_tuple()
    assert isinstance(exponent, int)  # `amount` let only finite numbers through
    return Decimal((sign, digits, exponent - 2))


def instant(item: Mapping[str, Any], name: str) -> datetime:
    """An RFC 3339 time with its zone, in UTC."""
    value = item.get(name)
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise BadItem(f"{name} is {value!r}; a time with its zone is required, e.g. 2026-01-31T00:00:00Z")
    return moment.astimezone(UTC)


def utc_instant(item: Mapping[str, Any], name: str) -> datetime:
    """A time that is in UTC unless it says otherwise."""
    moment = optional_utc_instant(item, name)
    if moment is None:
        raise BadItem(f"{name} is missing; a time is required, e.g. 2026-01-31 00:00:00")
    return moment


def optional_utc_instant(item: Mapping[str, Any], name: str) -> datetime | None:
    value = item.get(name)
    if value is None or value == "":
        return None
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise BadItem(f"{name} is {value!r}; a time is required, e.g. 2026-01-31 00:00:00") from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def day_floor(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def day_ceiling(moment: datetime) -> datetime:
    floor = day_floor(moment)
    return floor if floor == moment else floor + DAY


def spans(start: datetime, end: datetime, longest: timedelta) -> Iterator[tuple[datetime, datetime]]:
    """`[start, end)` cut into consecutive pieces, none longer than `longest`."""
    while start < end:
        stop = min(start + longest, end)
        yield start, stop
        start = stop
