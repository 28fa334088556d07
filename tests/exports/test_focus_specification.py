"""The rules of tests/exports/focus_specification.py notice what breaks them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from tests.exports.focus_specification import column_violations, good_row, violations


def test_a_row_that_breaks_nothing_passes():
    assert violations(good_row(), "1.2") == []


@pytest.mark.parametrize(
    ("changes", "section"),
    [
        ({"BilledCost": None}, "BilledCost MUST NOT be null"),
        ({"ServiceCategory": "AI"}, "servicecategory.md"),
        ({"ChargeClass": "Refund"}, "chargeclass.md"),
        ({"BillingCurrency": "usd"}, "currency_format.md"),
        ({"ChargePeriodEnd": good_row()["ChargePeriodStart"]}, "exclusive end bound"),
        ({"ConsumedUnit": "tokens"}, "unit_format.md"),
        ({"SkuPriceDetails": '{"ModelId": "m"}'}, "skupricedetails.md"),
        ({"Tags": '{"a": {"b": 1}}'}, "key_value_format.md"),
        ({"Tags": '{"a": 1, "a": 2}'}, "not unique"),
        ({"ListUnitPrice": Decimal(3)}, "listcost.md: the product"),
        ({"SubAccountName": None}, "subaccountname.md"),
        ({"EffectiveCost": Decimal(4)}, "effectivecost.md"),
        ({"ServiceName": " "}, "string_handling.md"),
        ({"PricingQuantity": None, "ListUnitPrice": None, "ContractedUnitPrice": None}, "pricingquantity.md"),
    ],
    ids=str,
)  # fmt: skip
def test_a_row_that_breaks_a_rule_is_found(changes: dict[str, Any], section: str):
    assert any(section in said for said in violations(good_row(**changes), "1.2"))


def test_an_estimate_in_billed_cost_breaks_version_1_4():
    row = good_row(ServiceProviderName="x", HostProviderName="x")
    assert any("1.4 columns/billedcost.md" in said for said in violations(row, "1.4"))


def test_a_header_that_breaks_a_rule_is_found():
    names = ["x_ours", "BilledCost"]
    said = " ".join(column_violations(names, {"x_ours": "int64", "BilledCost": "double"}, "1.2"))
    for words in ("ListCost MUST be present", "BilledCost is double", "custom column x_ours", "alphabetically"):
        assert words in said
