"""Columns of a FOCUS file by version: the specification's in alphabetical order, then ours, which begin with `x_` (ColumnHandling).

Versions differ here in who is named. 1.3 adds ServiceProviderName and HostProviderName, 1.4 removes ProviderName and
PublisherName and adds InvoiceDetailId (FOCUS, appendix "Version Migration Guidance").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tokentra_dagster.exports.columns import Column, Kind

VERSIONS = ("1.2", "1.3", "1.4")
DEFAULT_VERSION = "1.3"
"""The newest one that lets an estimate stand in BilledCost and EffectiveCost; 1.4 wants 0 there from who issues no invoices."""
GRANULARITIES = ("hour", "day")
NEEDED_DIMENSIONS = ("provider", "model", "model_family", "service_type")
"""Every row has them: a price belongs to them."""
NEEDED_METRICS = (
    "total_tokens", "input_tokens", "output_tokens", "cached_tokens", "cache_creation_tokens", "request_count", "estimated_cost",
    "unpriced_tokens", "record_count",
)  # fmt: skip
TAGS = ("team", "cost_center", "feature", "environment")
"""Dimensions that are attributed by the customer, as keys of Tags. A project is the sub account; users and keys are never tags."""

_VERSIONS_OF = {
    "HostProviderName": ("1.3", "1.4"),
    "InvoiceDetailId": ("1.4",),
    "ProviderName": ("1.2", "1.3"),
    "PublisherName": ("1.2", "1.3"),
    "ServiceProviderName": ("1.3", "1.4"),
}
TOKEN_COLUMNS = ("x_UncachedInputTokens", "x_CacheReadInputTokens", "x_CacheWriteInputTokens", "x_OutputTokens")
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("BillingPeriodEnd", "BillingPeriodStart", "ChargePeriodEnd", "ChargePeriodStart"), "time"),
    **dict.fromkeys(("BilledCost", "ContractedCost", "EffectiveCost", "ListCost", "x_EstimatedCost"), "money"),
    **dict.fromkeys(("ContractedUnitPrice", "ListUnitPrice"), "money"),
    **dict.fromkeys(("ConsumedQuantity", "PricingQuantity"), "quantity"),
    **dict.fromkeys((*TOKEN_COLUMNS, "x_UnpricedTokens"), "count"),
}  # fmt: skip
ADDITIVE = {"BilledCost", "ContractedCost", "EffectiveCost", "ListCost"} | {name for name in _KINDS if name.startswith("x_")}

_ALWAYS = (
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd", "BillingPeriodStart",
    "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargeFrequency", "ChargePeriodEnd", "ChargePeriodStart",
    "ConsumedQuantity", "ConsumedUnit", "ContractedCost", "ContractedUnitPrice", "EffectiveCost", "HostProviderName",
    "InvoiceDetailId", "InvoiceId", "InvoiceIssuerName", "ListCost", "ListUnitPrice", "PricingCategory", "PricingQuantity",
    "PricingUnit", "ProviderName", "PublisherName", "ServiceCategory", "ServiceName", "ServiceProviderName",
    "ServiceSubcategory", "SkuId", "SkuMeter", "SkuPriceDetails", "SkuPriceId",
)  # fmt: skip
_OURS = ("x_CostBasis", "x_CostIsEstimated", "x_EstimatedCost", "x_UnpricedTokens", *TOKEN_COLUMNS)
_OF_DIMENSION = {
    "team": ("Tags", "x_TeamId"),
    "cost_center": ("Tags", "x_CostCenterId"),
    "feature": ("Tags",),
    "environment": ("Tags",),
    "project": ("SubAccountId", "SubAccountName"),
    "user": ("x_UserId", "x_UserName"),
    "api_key": ("x_ApiKeyId", "x_ApiKeyName"),
    "request_type": ("x_RequestType",),
}


def focus_columns(version: str, dimensions: Sequence[str], currency: str, *, user_names: bool = True) -> list[Column]:
    """What a file of these dimensions has, by Column ID. Costs are in `currency`, unit prices in it per million tokens."""
    names = {name for name in _ALWAYS if version in _VERSIONS_OF.get(name, VERSIONS)} | set(_OURS)
    for dimension in dimensions:
        names |= set(_OF_DIMENSION.get(dimension, ()))
    if not user_names:
        names.discard("x_UserName")
    return [_column(name, currency) for name in sorted(names, key=lambda name: (name.startswith("x_"), name))]


def _column(name: str, currency: str) -> Column:
    column = Column(name, name, _KINDS.get(name, "text"), "", additive=name in ADDITIVE)
    if column.kind == "money":
        return replace(column, unit=f"{currency} per PricingUnit" if name.endswith("UnitPrice") else currency)
    return replace(column, unit="tokens") if column.kind == "count" else column
