"""One line of a Cost Management export: whether a model was billed in it, and what for.

Agreements spell their columns differently (`costInBillingCurrency`, `CostInBillingCurrency`, `Cost`, `PreTaxCost`): names are compared
without case, the first that is there counts. A line belongs to its `date`. What a meter counts is in its name only:
`gpt 4o 0806 cached Inp glbl Tokens` is cached input of `gpt 4o 0806`.
https://learn.microsoft.com/azure/cost-management-billing/dataset-schema/schema-index
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tokentra_dagster.errors import PermanentError
from tokentra_dagster.providers.bill_lines import Amounts, Measured
from tokentra_dagster.providers.payload import DAY, BadItem, amount, day_floor, optional_amount
from tokentra_dagster.records import CostRecord

REQUIRED = {
    "date": ("date", "usagedatetime", "usagedate"),
    "cost": ("costinbillingcurrency", "pretaxcost", "cost"),
    "currency": ("billingcurrency", "billingcurrencycode", "currency"),
    "meter": ("metername", "meter"),
    "category": ("metercategory",),
}
OPTIONAL = {
    "subcategory": ("metersubcategory",),
    "product": ("productname", "product"),
    "resource": ("resourceid", "instanceid", "instancename"),
    "subscription": ("subscriptionid", "subscriptionguid"),
    "region": ("resourcelocation",),
    "quantity": ("quantity", "usagequantity"),
    "unit": ("unitofmeasure",),
    "type": ("chargetype",),
    "list_cost": ("paygcostinbillingcurrency",),
}
_KINDS = (
    ("cache_read_input_tokens", re.compile(r"[\s-]*\b(?:cached|cchd|cd)[\s-]+inp", re.IGNORECASE)),
    ("output_tokens", re.compile(r"[\s-]*\b(?:outp|outpt|opt|output)\b", re.IGNORECASE)),
    ("input_tokens", re.compile(r"[\s-]*\b(?:inp|input)\b", re.IGNORECASE)),
)
_BATCH = re.compile(r"[\s-]+batch\b", re.IGNORECASE)
_AMERICAN = re.compile(r"^(\d{1,2})/(\d{1,2})/(\d{4})$")


@dataclass(frozen=True, slots=True)
class Columns:
    """Our name of a column -> the file's."""

    names: Mapping[str, str]

    @classmethod
    def of(cls, file: str, found: Sequence[str]) -> Columns:
        """Raises `PermanentError` where a required column is missing."""
        spelled = {name.lower(): name for name in found}
        names: dict[str, str] = {}
        for ours, spellings in (REQUIRED | OPTIONAL).items():
            theirs = next((spelled[one] for one in spellings if one in spelled), None)
            if theirs is not None:
                names[ours] = theirs
            elif ours in REQUIRED:
                raise PermanentError(
                    f"azure: {file} has no column {' or '.join(spellings)}; export actual cost and usage details"
                )
        return cls(names)

    @property
    def required(self) -> tuple[str, ...]:
        return tuple(self.names[name] for name in REQUIRED)

    @property
    def optional(self) -> tuple[str, ...]:
        return tuple(self.names[name] for name in OPTIONAL if name in self.names)

    @property
    def deciding(self) -> tuple[str, ...]:
        return tuple(self.names[name] for name in ("category", "subcategory", "product") if name in self.names)

    def text(self, row: Mapping[str, Any], name: str) -> str | None:
        value = row.get(self.names.get(name, ""))
        return None if value is None or value == "" else str(value)


@dataclass(frozen=True, slots=True)
class Charge:
    """What lines that are summed share."""

    day: datetime
    currency: str
    type: str | None
    meter: str
    unit: str | None
    account: str | None
    metadata: tuple[tuple[str, str], ...]


def is_of_models(row: Mapping[str, Any], columns: Columns, words: Sequence[str]) -> bool:
    told = " ".join(str(row.get(name) or "") for name in columns.deciding).lower()
    return any(word in told for word in words)


def measured(row: Mapping[str, Any], columns: Columns) -> Measured:
    """What the line charges, at list price, and for how much. Raises `BadItem`."""
    names = columns.names
    return Measured(
        amount(row, names["cost"]), optional_amount(row, names.get("list_cost", "")), optional_amount(row, names.get("quantity", "")),
    )  # fmt: skip


def charge(row: Mapping[str, Any], columns: Columns) -> Charge:
    """What the line is about. Raises `BadItem`."""
    currency, meter, resource = (columns.text(row, name) for name in ("currency", "meter", "resource"))
    if currency is None:
        raise BadItem(f"{columns.names['currency']} is missing; it is required")
    metadata = {name: columns.text(row, name) for name in ("category", "subcategory", "product", "subscription", "region")}
    return Charge(
        day=_day(row.get(columns.names["date"]), columns.names["date"]),
        currency=currency.upper(),
        type=columns.text(row, "type"),
        meter=meter or "",
        unit=columns.text(row, "unit"),
        account=resource.rstrip("/").rsplit("/", 1)[-1] if resource else None,
        metadata=tuple(sorted((name, value) for name, value in metadata.items() if value is not None)),
    )


def cost(one: Charge, sums: Amounts) -> CostRecord:
    model, token_type = billed_model(one.meter)
    return CostRecord(
        bucket_start=one.day,
        bucket_end=one.day + DAY,
        amount=sums.amount,
        list_amount=sums.list_amount,
        currency=one.currency,
        line_item=one.meter or None,
        model=model,
        cost_type=one.type,
        token_type=token_type,
        provider_project_id=one.account,
        quantity=sums.quantity,
        quantity_unit=one.unit if sums.quantity is not None else None,
        metadata=dict(one.metadata),
    )


def billed_model(meter: str) -> tuple[str | None, str | None]:
    """The model as the meter spells it, and the kind of token; None where the name says neither."""
    for kind, words in _KINDS:
        found = words.search(meter)
        if found and "token" in meter.lower():
            return _BATCH.sub("", meter[: found.start()]).strip(" -") or None, kind
    return None, None


def _day(value: object, name: str) -> datetime:
    """`01/31/2026` is the 31st of January; anything else is ISO 8601. UTC where no zone is said."""
    text = str(value or "").strip()
    american = _AMERICAN.match(text)
    try:
        if american:
            month, day, year = map(int, american.groups())
            return datetime(year, month, day, tzinfo=UTC)
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise BadItem(f"{name} is {value!r}; a day such as 01/31/2026 or 2026-01-31 is required") from None
    return day_floor(moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment)
