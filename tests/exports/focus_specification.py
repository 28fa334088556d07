"""What FOCUS says of the columns of Cost and Usage that a file of ours may have, by version; written from the specification.

Sources. 1.2: github.com/FinOps-Open-Cost-and-Usage-Spec/FOCUS_Spec, tag v1.2, specification/columns and specification/attributes.
1.3: the appendix "Version Migration Guidance" of 1.4, which lists what 1.3 changed from 1.2 and 1.4 from 1.3.
1.4: its requirements as Microsoft's "FOCUS conformance full report" (2026-07-15) quotes them one by one from tag v1.4,
specification/datasets/cost_and_usage. Allowed values are those of 1.2; the migration guidance names no change to them.
Column IDs cite the section of the same name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

ALL = ("1.2", "1.3", "1.4")
NOT_NULL, NULL = False, True


@dataclass(frozen=True, slots=True)
class Rule:
    """One column. `level` is Mandatory, Conditional or Recommended; `type` is FOCUS's; `allowed` are the values, empty where any is;
    `section` is the file of the specification that says so."""

    name: str
    level: str
    type: str
    nullable: bool
    section: str
    versions: tuple[str, ...] = ALL
    allowed: tuple[str, ...] = ()


def _rules(level: str, type: str, nullable: bool, *names: str, versions: tuple[str, ...] = ALL) -> list[Rule]:
    return [Rule(name, level, type, nullable, f"columns/{name.lower()}.md", versions) for name in names]


M, C, R = "Mandatory", "Conditional", "Recommended"
RULES = [
    *_rules(M, "Decimal", NOT_NULL, "BilledCost", "ContractedCost", "EffectiveCost", "ListCost"),
    *_rules(M, "String", NOT_NULL, "BillingAccountId", "BillingCurrency", "InvoiceIssuerName", "ServiceName"),
    *_rules(M, "String", NULL, "BillingAccountName", "ChargeDescription", "PricingUnit"),
    *_rules(M, "Decimal", NULL, "PricingQuantity"),
    *_rules(M, "DateTime", NOT_NULL, "BillingPeriodEnd", "BillingPeriodStart", "ChargePeriodEnd", "ChargePeriodStart"),
    Rule(
        "ChargeCategory", M, "String", NOT_NULL, "columns/chargecategory.md, allowed values", ALL,
        ("Usage", "Purchase", "Tax", "Credit", "Adjustment"),
    ),
    Rule("ChargeClass", M, "String", NULL, "columns/chargeclass.md, allowed values", ALL, ("Correction",)),
    Rule(
        "ChargeFrequency", R, "String", NOT_NULL, "columns/chargefrequency.md, allowed values", ALL, ("One-Time", "Recurring", "Usage-Based")
    ),
    Rule(
        "PricingCategory", C, "String", NULL, "columns/pricingcategory.md, allowed values", ALL, ("Standard", "Dynamic", "Committed", "Other")
    ),
    Rule(
        "ServiceCategory", M, "String", NOT_NULL, "columns/servicecategory.md, allowed values", ALL,
        ("AI and Machine Learning", "Analytics", "Business Applications", "Compute", "Databases", "Developer Tools", "Multicloud", "Identity",
         "Integration", "Internet of Things", "Management and Governance", "Media", "Migration", "Mobile", "Networking", "Security", "Storage",
         "Web", "Other"),
    ),
    # Those whose parent is "AI and Machine Learning".
    Rule(
        "ServiceSubcategory", R, "String", NOT_NULL, "columns/servicesubcategory.md, allowed values", ALL,
        ("AI Platforms", "Bots", "Generative AI", "Machine Learning", "Natural Language Processing", "Other (AI and Machine Learning)"),
    ),
    *_rules(M, "String", NOT_NULL, "ProviderName", "PublisherName", versions=("1.2", "1.3")),
    *_rules(M, "String", NOT_NULL, "ServiceProviderName", versions=("1.3", "1.4")),
    *_rules(M, "String", NULL, "HostProviderName", versions=("1.3", "1.4")),
    *_rules(C, "Decimal", NULL, "ConsumedQuantity", "ContractedUnitPrice", "ListUnitPrice"),
    *_rules(C, "String", NULL, "ConsumedUnit", "SkuId", "SkuMeter", "SkuPriceId", "SubAccountId", "SubAccountName"),
    *_rules(C, "JSON", NULL, "SkuPriceDetails", "Tags"),
    *_rules(R, "String", NULL, "InvoiceId", versions=("1.2", "1.3")),
    *_rules(C, "String", NULL, "InvoiceId", "InvoiceDetailId", versions=("1.4",)),
]  # fmt: skip
ARROW_TYPES = {
    "Decimal": re.compile(r"decimal128\(38, \d+\)"),
    "DateTime": re.compile(r"timestamp\[us, tz=UTC\]"),
    "String": re.compile(r"dictionary<values=string, .*"),
    "JSON": re.compile(r"dictionary<values=string, .*"),
}
UNIT = re.compile(r"(?:[1-9]\d* )?(?:Tokens|Requests)")
"""UnitFormat: `<plural-units>` and `<quantity> <plural-units>`; Token and Request are among its count-based units."""


def rules_of(version: str) -> dict[str, Rule]:
    return {rule.name: rule for rule in RULES if version in rule.versions}


def violations(row: Mapping[str, Any], version: str) -> list[str]:
    """What one row breaks. ListUnitPrice and ContractedUnitPrice are let be null in rows of usage: an unknown price is a deviation
    that docs/decisions/0016 states."""
    found = []

    def check(holds: bool, section: str) -> None:
        if not holds:
            found.append(section)

    for name, rule in rules_of(version).items():
        value = row.get(name)
        if name not in row:
            continue
        check(value is not None or rule.nullable, f"{rule.section}: {name} MUST NOT be null")
        check(value is None or not rule.allowed or value in rule.allowed, f"{rule.section}: {name} is {value!r}")
        if rule.type == "JSON" and value is not None:
            pairs = json.loads(value, object_pairs_hook=list)
            keys = [key for key, _ in pairs]
            check(len(keys) == len(set(keys)), f"attributes/key_value_format.md: keys of {name} are not unique")
            check(
                all(isinstance(item, str | int | float | bool | None) for _, item in pairs),
                f"attributes/key_value_format.md: {name} is nested",
            )
        if rule.type == "String" and value is not None:
            check(value.strip() != "", f"attributes/string_handling.md: {name} is empty")
    check(bool(re.fullmatch("[A-Z]{3}", row["BillingCurrency"])), "attributes/currency_format.md")
    check(row["ChargePeriodStart"] < row["ChargePeriodEnd"], "columns/chargeperiodend.md: exclusive end bound")
    check(
        row["BillingPeriodStart"] <= row["ChargePeriodStart"] and row["ChargePeriodEnd"] <= row["BillingPeriodEnd"],
        "columns/billingperiodend.md: a charge lies in its billing period",
    )
    check(row["ChargeFrequency"] != "Usage-Based" or row["ChargeCategory"] != "Purchase", "columns/chargefrequency.md")
    check(
        row["ConsumedQuantity"] is not None and row["ConsumedUnit"] is not None, "columns/consumedquantity.md: not null for Usage"
    )
    check(row["PricingQuantity"] is not None and row["PricingUnit"] is not None, "columns/pricingquantity.md: not null for Usage")
    check(bool(UNIT.fullmatch(row["ConsumedUnit"]) and UNIT.fullmatch(row["PricingUnit"])), "attributes/unit_format.md")
    check(row["SkuId"] is not None and row["SkuPriceId"] is not None, "columns/skuid.md, skupriceid.md: not null for Usage")
    check(row["PricingCategory"] is not None, "columns/pricingcategory.md: not null for Usage")
    if row["SkuPriceDetails"] is not None:
        keys = json.loads(row["SkuPriceDetails"])
        check(all(key.startswith("x_") for key in keys), "columns/skupricedetails.md: x_ unless FOCUS defines the key")
    for price, cost in (("ListUnitPrice", "ListCost"), ("ContractedUnitPrice", "ContractedCost")):
        if row[price] is not None:
            check(row[price] >= 0 and row[price] * row["PricingQuantity"] == row[cost], f"columns/{cost.lower()}.md: the product")
        elif version != "1.4":
            check(row[cost] == row["BilledCost"], f"columns/{cost.lower()}.md: without a unit price it matches BilledCost")
    if "SubAccountId" in row:
        check((row["SubAccountId"] is None) == (row["SubAccountName"] is None), "columns/subaccountname.md")
    if version == "1.4":
        check(row["BilledCost"] == 0, "1.4 columns/billedcost.md: not estimated; 0 from who is not authorized to invoice")
        check(row["HostProviderName"] == row["ServiceProviderName"], "1.4 columns/hostprovidername.md: match in all other cases")
    check(row["EffectiveCost"] == row["BilledCost"], "1.4 columns/effectivecost.md: equal for Usage that nothing covers")
    return found


def column_violations(names: list[str], types: Mapping[str, str], version: str) -> list[str]:
    """What the header breaks: presence, types, names, order."""
    rules = rules_of(version)
    found = [
        f"{rule.section}: {rule.name} MUST be present" for rule in rules.values() if rule.level == M and rule.name not in names
    ]
    for name in names:
        if name in rules and not ARROW_TYPES[rules[name].type].fullmatch(types[name]):
            found.append(f"{rules[name].section}: {name} is {types[name]}")
        if name not in rules and not re.fullmatch("x_([A-Z][a-z]+)+", name):
            found.append(f"attributes/column_handling.md: custom column {name} must be x_ and Pascal case")
        if len(name) > 50:
            found.append(f"attributes/column_handling.md: {name} exceeds 50 characters")
    focus, ours = [name for name in names if name in rules], [name for name in names if name not in rules]
    if names != sorted(focus) + sorted(ours):
        found.append(
            "attributes/column_handling.md, 1.4 dataset_completeness.md: FOCUS columns, then custom ones, alphabetically"
        )
    return found


def good_row(**changes: Any) -> dict[str, Any]:
    """A row of 1.2 that breaks nothing, for tests of the rules themselves."""
    start = datetime(2026, 6, 1)
    return {
        **{name: "x" for name, rule in rules_of("1.2").items() if rule.type == "String"},
        **{name: rule.allowed[0] for name, rule in rules_of("1.2").items() if rule.allowed},
        **dict.fromkeys(("BilledCost", "ContractedCost", "EffectiveCost", "ListCost"), Decimal(5)),
        **dict.fromkeys(("ContractedUnitPrice", "ListUnitPrice"), Decimal("2.5")), "PricingQuantity": Decimal(2), "ConsumedQuantity": Decimal(2),
        "ConsumedUnit": "Tokens", "PricingUnit": "1000000 Tokens", "BillingCurrency": "USD", "BillingPeriodStart": start,
        "BillingPeriodEnd": start + timedelta(days=30), "ChargePeriodStart": start, "ChargePeriodEnd": start + timedelta(hours=1),
        "SkuPriceDetails": '{"x_ModelId": "m"}', "Tags": None, **changes,
    }  # fmt: skip
