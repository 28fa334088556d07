"""One row of Cloud Billing's export to BigQuery: whether a model was billed in it, what for, and how much is left to pay.

What is paid is `cost` plus the sum of `credits.amount`, which are negative. A correction is a row of its own, with its sign; every cost type
counts. A row belongs to the UTC day on which its usage starts. What a SKU counts is in its text only:
`Gemini 2.5 Flash GA Text Input - Predictions` is input of `gemini-2.5-flash`. The columns are those of the standard and the detailed
export (docs.cloud.google.com/billing/docs/how-to/export-data-bigquery-tables/standard-usage); as files they are nested as there, or flat
with a point or an underscore (`sku.description`, `sku_description`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

from tokentra_dagster.providers.bill_lines import plus
from tokentra_dagster.providers.payload import DAY, BadItem, amount, day_floor, optional_amount
from tokentra_dagster.records import CostRecord

NESTED = {
    "service": ("id", "description"),
    "sku": ("id", "description"),
    "project": ("id", "name"),
    "location": ("location", "region"),
    "usage": ("amount", "unit", "amount_in_pricing_units", "pricing_unit"),
    "invoice": ("month",),
    "adjustment_info": ("id", "description", "mode", "type"),
}
FLAT = (
    "billing_account_id", "usage_start_time", "cost", "currency", "currency_conversion_rate", "credits", "cost_type", "cost_at_list",
    "transaction_type", "seller_name",
)  # fmt: skip
REQUIRED = ("service", "sku", "usage_start_time", "cost", "currency", "credits")
"""Without these a bill would be wrong and not say so: credits lower it."""
COLUMNS = (*NESTED, *FLAT)
_TO_CENT_FRACTIONS = Decimal("0.000000000001")
_NUMBERS = re.compile(r"^-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?$")

_PREDICTIONS = re.compile(
    r"^(?P<model>gemini .+?)(?: ga| global| regional| thinking)* (?:text|image|audio|video|document) (?P<way>input|output)\b(?P<rest>.*)$",
    re.IGNORECASE,
)
_TOKEN_COUNT = re.compile(
    r"^generate[ _]content (?:\w+ )*?(?P<cached>cached )?(?P<way>input|output) token count (?:for )?(?P<model>gemini .+?)"
    r"(?: (?:short|long|input|output|text|audio|image|video|batch|priority|flex))*$",
    re.IGNORECASE,
)
_CLAUDE = re.compile(
    r"^(?:anthropic )?(?P<model>claude(?: [a-z0-9.]+)+?)(?: -| ga| global| regional| batch)* "
    r"(?P<kind>cache (?:read|hit|write)|cached input|input|output)\b",
    re.IGNORECASE,
)
_SERVICE = re.compile(r"^.*model as a service (?P<model>\S+(?: \S+)*?) (?P<way>input|output)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Charge:
    """What rows that are summed share."""

    day: datetime
    currency: str
    type: str
    sku: str | None
    project: str | None
    unit: str | None
    metadata: tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Sums:
    cost: Decimal = Decimal(0)
    credits: Counter[str] = field(default_factory=Counter)
    """Type of credit -> sum, in the charge's currency."""
    list_amount: Decimal | None = None
    quantity: Decimal | None = None

    def add(self, row: Measured, /) -> None:
        self.cost += row.cost
        for kind, value in row.credits:
            self.credits[kind] += value  # type: ignore[assignment]
        self.list_amount = plus(self.list_amount, row.list_amount)
        self.quantity = plus(self.quantity, row.quantity)


@dataclass(frozen=True, slots=True)
class Measured:
    cost: Decimal
    credits: tuple[tuple[str, Decimal], ...]
    list_amount: Decimal | None
    quantity: Decimal | None


def columns_of(found: Iterable[str]) -> tuple[list[str], list[str]]:
    """The columns of a file or table that are read, and those of `REQUIRED` that it has in no spelling."""
    spelled = {name.lower(): name for name in found}
    read: list[str] = []
    missing: list[str] = []
    for name in COLUMNS:
        flat = [
            spelled[f"{name}{point}{part}"]
            for part in NESTED.get(name, ())
            for point in "._"
            if f"{name}{point}{part}" in spelled
        ]
        here = [spelled[name]] if name in spelled else flat
        read += here
        if name in REQUIRED and not here:
            missing.append(name)
    return read, missing


def is_of_models(row: Mapping[str, Any], words: Sequence[str]) -> bool:
    told = " ".join(
        _text(row, *place) or "" for place in (("service", "id"), ("service", "description"), ("sku", "description"))
    ).lower()
    return any(word in told for word in words)


def measured(row: Mapping[str, Any], in_dollars: bool) -> Measured:
    """What the row charges. Raises `BadItem`."""
    rate = _rate(row) if in_dollars else None
    listed, unit = optional_amount(row, "cost_at_list") if _said(row, "cost_at_list") else None, _unit(row)
    quantity = _field(row, "usage", "amount_in_pricing_units" if unit[1] else "amount")
    return Measured(
        cost=_converted(amount(row, "cost"), rate),
        credits=tuple((kind, _converted(value, rate)) for kind, value in _credits(row)),
        list_amount=None if listed is None else _converted(listed, rate),
        quantity=None if quantity is None or quantity == "" else amount({"usage.amount": quantity}, "usage.amount"),
    )


def charge(row: Mapping[str, Any], in_dollars: bool) -> Charge:
    """What the row is about. Raises `BadItem`."""
    currency = _text(row, "currency")
    if currency is None:
        raise BadItem("currency is missing; it is required")
    about = {
        "service": _text(row, "service", "description"),
        "service_id": _text(row, "service", "id"),
        "sku_id": _text(row, "sku", "id"),
        "region": _text(row, "location", "region") or _text(row, "location", "location"),
        "invoice_month": _text(row, "invoice", "month"),
        "project_name": _text(row, "project", "name"),
        "billing_account_id": _text(row, "billing_account_id"),
        "adjustment": _text(row, "adjustment_info", "type") or _text(row, "adjustment_info", "description"),
        "transaction_type": _text(row, "transaction_type"),
        "seller": _text(row, "seller_name"),
        "billed_currency": currency.upper() if in_dollars else None,
        "currency_conversion_rate": _text(row, "currency_conversion_rate"),
    }
    return Charge(
        day=_day(row.get("usage_start_time")),
        currency="USD" if in_dollars else currency.upper(),
        type=_text(row, "cost_type") or "regular",
        sku=_text(row, "sku", "description"),
        project=_text(row, "project", "id"),
        unit=_unit(row)[0],
        metadata=tuple(sorted((name, value) for name, value in about.items() if value is not None)),
    )


def cost(one: Charge, sums: Sums) -> CostRecord:
    model, token_type = billed_model(one.sku or "")
    credited = {kind: str(value) for kind, value in sorted(sums.credits.items())}
    return CostRecord(
        bucket_start=one.day,
        bucket_end=one.day + DAY,
        amount=sums.cost + sum(sums.credits.values(), Decimal(0)),
        list_amount=sums.list_amount,
        currency=one.currency,
        line_item=one.sku,
        model=model,
        cost_type=one.type,
        token_type=token_type,
        provider_project_id=one.project,
        quantity=sums.quantity,
        quantity_unit=one.unit if sums.quantity is not None else None,
        metadata=dict(one.metadata) | ({"cost_before_credits": str(sums.cost), "credits": credited} if credited else {}),
    )


def billed_model(sku: str) -> tuple[str | None, str | None]:
    """The model that a SKU's text names, spelled as Vertex AI spells models, and the kind of token; None where it says neither."""
    if found := _PREDICTIONS.match(sku):
        rest = found["rest"].lower()
        if "caching" in rest or "cached" in rest:
            return _id(found["model"]), None if "storage" in rest else "cache_read_input_tokens"
        return _id(found["model"]), f"{found['way'].lower()}_tokens"
    if found := _TOKEN_COUNT.match(sku):
        return _id(found["model"]), "cache_read_input_tokens" if found["cached"] else f"{found['way'].lower()}_tokens"
    if found := _CLAUDE.match(sku):
        kind = found["kind"].lower()
        token_type = (
            "cache_write_input_tokens" if "write" in kind else "cache_read_input_tokens" if "cache" in kind else f"{kind}_tokens"
        )
        return _id(found["model"]).replace(".", "-"), token_type
    if found := _SERVICE.match(sku):
        return _id(found["model"]), f"{found['way'].lower()}_tokens"
    return None, None


# ---- Parts of a row --------------------------------------------------------------------------------------------------


def _id(model: str) -> str:
    return re.sub(r"\s+", "-", model.strip().lower())


def _field(row: Mapping[str, Any], *place: str) -> Any:
    if len(place) == 1:
        return row.get(place[0])
    outer = row.get(place[0])
    if isinstance(outer, Mapping):
        return outer.get(place[1])
    return row.get(".".join(place), row.get("_".join(place)))


def _said(row: Mapping[str, Any], *place: str) -> bool:
    return _field(row, *place) not in (None, "")


def _text(row: Mapping[str, Any], *place: str) -> str | None:
    value = _field(row, *place)
    return None if value is None or value == "" or isinstance(value, (Mapping, list)) else str(value)


def _unit(row: Mapping[str, Any]) -> tuple[str | None, bool]:
    """What the quantity counts, and whether that is the unit of the price."""
    priced = _text(row, "usage", "pricing_unit")
    return (priced, True) if priced and _said(row, "usage", "amount_in_pricing_units") else (_text(row, "usage", "unit"), False)


def _credits(row: Mapping[str, Any]) -> list[tuple[str, Decimal]]:
    """Type and amount of each. As text it is JSON, as `TO_JSON_STRING(credits)` writes it, or their sum."""
    value = row.get("credits")
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value, parse_float=Decimal)
        except ValueError:
            raise BadItem(f"credits is {value[:100]!r}; a JSON list is required") from None
    if value in (None, "", [], {}):
        return []
    if isinstance(value, (Decimal, int)) or (isinstance(value, str) and _NUMBERS.match(value)):
        return [("credits", amount({"credits": value}, "credits"))]
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        raise BadItem(f"credits is {str(value)[:100]!r}; a list of credits is required")
    return [(str(one.get("type") or "credits"), amount({"credits.amount": one.get("amount")}, "credits.amount")) for one in value]


def _rate(row: Mapping[str, Any]) -> Decimal:
    """How many of the billed currency one US dollar was."""
    if (_text(row, "currency") or "").upper() == "USD":
        return Decimal(1)
    rate = amount(row, "currency_conversion_rate")
    if rate <= 0:
        raise BadItem(f"currency_conversion_rate is {rate}; a number above 0 is required to convert into dollars")
    return rate


def _converted(value: Decimal, rate: Decimal | None) -> Decimal:
    if rate is None or rate == 1:
        return value
    return (value / rate).quantize(_TO_CENT_FRACTIONS, ROUND_HALF_EVEN)


def _day(value: object) -> datetime:
    """`2026-11-20 17:00:00 UTC` as BigQuery writes it, ISO 8601, or a datetime; UTC where no zone is said."""
    try:
        moment = (
            value
            if isinstance(value, datetime)
            else datetime.fromisoformat(re.sub(r" ?UTC$", "+00:00", str(value or "").strip()))
        )
    except ValueError:
        raise BadItem(f"usage_start_time is {value!r}; a time such as 2026-01-31 17:00:00 UTC is required") from None
    return day_floor(moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment)
