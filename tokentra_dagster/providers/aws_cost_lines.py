"""One line of a CUR 2.0 export: whether Bedrock was billed in it, and what for.

A line belongs to the UTC day on which its usage starts; a fee or tax of a whole month to the month's first day. Every type of line
counts: usage, discounts, credits and refunds (negative), fees, taxes, and both sides of a savings plan (what it covers, at the
on-demand price, and its negation), so that the sum of the unblended costs is the invoice. Nothing is amortised.

Models of other companies that AWS sells through its Marketplace have a product code that says nothing; their product name has
"Amazon Bedrock" in it. Sources: docs.aws.amazon.com/bedrock/latest/userguide/cost-mgmt-understanding-cur-data.html and
docs.aws.amazon.com/cur/latest/userguide/table-dictionary-cur2-line-item.html.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tokentra_dagster.model_names import name_in_arn
from tokentra_dagster.providers.aws_catalogue import APPLICATION, principal_of
from tokentra_dagster.providers.bill_lines import Amounts, Measured
from tokentra_dagster.providers.payload import DAY, BadItem, amount, day_floor, optional_amount
from tokentra_dagster.records import CostRecord

COSTS = {"unblended": "line_item_unblended_cost", "net_unblended": "line_item_net_unblended_cost"}
REQUIRED = (
    "line_item_product_code", "line_item_usage_start_date", "line_item_line_item_type", "line_item_usage_type", "line_item_currency_code", "product",
)  # fmt: skip
OPTIONAL = (
    "line_item_operation", "line_item_usage_account_id", "line_item_resource_id", "line_item_iam_principal", "line_item_usage_amount",
    "pricing_unit", "pricing_public_on_demand_cost", "product_region_code", "product_servicecode",
)  # fmt: skip
DECIDING = ("line_item_product_code", "product_servicecode", "product")
WORD = "Bedrock"
_REGION = re.compile(r"^[A-Z]{2,5}\d?-")
_TOKENS = (
    ("cache_read_input_tokens", re.compile(r"[-_:]?cache[-_]?read", re.IGNORECASE)),
    ("cache_write_input_tokens", re.compile(r"[-_:]?cache[-_]?write", re.IGNORECASE)),
    ("input_tokens", re.compile(r"[-_:]?(?:mantle-)?input[-_]?token", re.IGNORECASE)),
    ("output_tokens", re.compile(r"[-_:]?(?:mantle-)?output[-_]?token", re.IGNORECASE)),
)
_TIERS = ("batch", "flex", "priority", "reserved")


@dataclass(frozen=True, slots=True)
class Charge:
    """What lines that are summed share: everything but their hour."""

    day: datetime
    currency: str
    cost_type: str
    usage_type: str | None
    token_type: str | None
    model: str | None
    profile_id: str | None
    principal: str | None
    user_id: str | None
    unit: str | None
    metadata: tuple[tuple[str, str], ...]


def measured(row: Mapping[str, Any], column: str) -> Measured:
    """What the line charges in `column`. Raises `BadItem`."""
    return Measured(
        amount(row, column), optional_amount(row, "pricing_public_on_demand_cost"), optional_amount(row, "line_item_usage_amount")
    )


def charge(row: Mapping[str, Any]) -> Charge:
    """What the line is about. Raises `BadItem`."""
    usage_type = _text(row, "line_item_usage_type")
    resource = _text(row, "line_item_resource_id")
    product = row.get("product")
    name = _text(product, "product_name") if isinstance(product, Mapping) else None
    token_type, place = next(
        ((kind, found.start()) for kind, word in _TOKENS if (found := word.search(usage_type or ""))), (None, None)
    )
    model = _model_of(resource) or _billed_model(usage_type, place, name)
    identity = _text(row, "line_item_iam_principal")
    metadata = {
        "account_id": _text(row, "line_item_usage_account_id"),
        "operation": _text(row, "line_item_operation"),
        "product_code": _text(row, "line_item_product_code"),
        "product_name": name,
        "region": _text(row, "product_region_code"),
        "service_tier": next((tier for tier in _TIERS if tier in (usage_type or "").lower()), None),
        "resource_id": resource,
    }
    currency = _text(row, "line_item_currency_code")
    if currency is None:
        raise BadItem("line_item_currency_code is missing; it is required")
    return Charge(
        day=day_floor(_moment(row)),
        currency=currency.upper(),
        cost_type=_text(row, "line_item_line_item_type") or "Usage",
        usage_type=usage_type,
        token_type=token_type,
        model=model,
        profile_id=resource.rsplit("/", 1)[-1] if resource and APPLICATION in resource else None,
        principal=principal_of(identity),
        user_id=identity,
        unit=_text(row, "pricing_unit"),
        metadata=tuple(sorted((key, value) for key, value in metadata.items() if value is not None)),
    )


def cost(one: Charge, sums: Amounts) -> CostRecord:
    return CostRecord(
        bucket_start=one.day,
        bucket_end=one.day + DAY,
        amount=sums.amount,
        list_amount=sums.list_amount,
        currency=one.currency,
        line_item=one.usage_type,
        model=one.model,
        cost_type=one.cost_type,
        token_type=one.token_type,
        provider_project_id=one.profile_id,
        api_key_id=one.principal,
        user_id=one.user_id,
        quantity=sums.quantity,
        quantity_unit=one.unit if sums.quantity is not None else None,
        metadata=dict(one.metadata),
    )


def _moment(row: Mapping[str, Any]) -> datetime:
    """CUR writes UTC, with or without saying so."""
    value = row.get("line_item_usage_start_date")
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        raise BadItem(f"line_item_usage_start_date is {value!r}; a time such as 2026-11-01T00:00:00Z is required") from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _model_of(resource: str | None) -> str | None:
    """The model that the resource of a line is, if it is one."""
    named = name_in_arn(resource) if resource and resource.startswith("arn:") else None
    return named if named and "." in named else None


def _billed_model(usage_type: str | None, place: int | None, product_name: str | None) -> str | None:
    """The model as the bill spells it: `USE1-Claude4.6Sonnet-input-tokens` is of Claude4.6Sonnet."""
    if product_name and "(" in product_name:
        return product_name.partition("(")[0].strip() or None
    if not usage_type or place is None:
        return None
    return _REGION.sub("", usage_type[:place]).strip("-_:") or None


def _text(row: Mapping[str, Any], name: str) -> str | None:
    value = row.get(name)
    return None if value is None or value == "" else str(value)
