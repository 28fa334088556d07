"""FOCUS files from a built warehouse: they keep the specification's rules, and they add up to the usage export (docs/decisions/0016)."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from python_calamine import CalamineWorkbook

from tests.exports.focus_data import usage_batch
from tests.exports.focus_specification import column_violations, rules_of, violations
from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.exports.export import export
from tokentra_dagster.exports.focus.charges import METERS, charges_of
from tokentra_dagster.exports.focus.rows import usage_columns
from tokentra_dagster.exports.manifest import Manifest, verify
from tokentra_dagster.exports.request import ExportRequest
from tokentra_dagster.warehouse.database import Database

JUNE = Period(datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 7, 1, tzinfo=UTC))
VERSIONS = ("1.2", "1.3", "1.4")
EVERYONE = ("team", "project", "cost_center", "feature", "environment", "user", "api_key", "request_type")
TOKENS = ("x_UncachedInputTokens", "x_CacheReadInputTokens", "x_CacheWriteInputTokens", "x_OutputTokens")


def asked(**changes: Any) -> ExportRequest:
    return ExportRequest(**{"organization": "acme", "period": JUNE, "profile": "focus", "format": "parquet", **changes})


def rows(database: Database, folder: Path, **changes: Any) -> list[dict[str, Any]]:
    path = folder / "focus.parquet"
    export(database, asked(**changes), path)
    return pq.read_table(path).to_pylist()


def total(found: list[dict[str, Any]], name: str) -> Any:
    return sum((row[name] for row in found if row[name] is not None), Decimal(0))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("granularity", ["hour", "day"])
@pytest.mark.parametrize("dimensions", [(), EVERYONE], ids=["nobody", "everyone"])
def test_every_row_keeps_the_rules_of_its_version(
    built: Database, tmp_path: Path, version: str, granularity: str, dimensions: tuple[str, ...]
):
    found = rows(built, tmp_path, focus_version=version, granularity=granularity, dimensions=dimensions)
    schema = pq.read_schema(tmp_path / "focus.parquet")
    assert column_violations(schema.names, {field.name: str(field.type) for field in schema}, version) == []
    assert len(found) > 8 and [said for row in found for said in violations(row, version)] == []


def test_versions_differ_in_the_columns_that_name_entities(built: Database, tmp_path: Path):
    def columns(version: str) -> set[str]:
        return set(rows(built, tmp_path, focus_version=version)[0])

    assert columns("1.3") - columns("1.2") == {"ServiceProviderName", "HostProviderName"}
    assert columns("1.3") - columns("1.4") == {"ProviderName", "PublisherName"}
    assert columns("1.4") - columns("1.3") == {"InvoiceDetailId"}
    assert all(name in rules_of("1.4") or name.startswith("x_") for name in columns("1.4"))


@pytest.mark.parametrize("granularity", ["hour", "day"])
@pytest.mark.parametrize("dimensions", [(), ("model", "team", "project"), EVERYONE], ids=str)
@pytest.mark.parametrize("filters", [{}, {"team": ["Search"]}, {"provider": ["openai", "anthropic"], "team": [None]}], ids=str)
def test_the_file_adds_up_to_the_usage_export(
    built: Database, tmp_path: Path, granularity: str, dimensions: tuple[str, ...], filters: dict[str, list[str | None]]
):
    same = {"granularity": granularity, "dimensions": dimensions, "filters": filters}
    metrics = ("total_tokens", "input_tokens", "output_tokens", "cached_tokens", "cache_creation_tokens", "request_count",
               "estimated_cost", "unpriced_tokens", "record_count")  # fmt: skip
    usage = export(built, asked(profile="usage", metrics=metrics, **same), tmp_path / "usage.parquet")
    focus = export(built, asked(**same), tmp_path / "focus.parquet")
    found = pq.read_table(tmp_path / "focus.parquet").to_pylist()
    assert {name: focus.totals[name] for name in metrics} == {name: usage.totals[name] for name in metrics}
    assert focus.left_out == usage.left_out and focus.row_count == len(found) >= usage.row_count
    cost, tokens = usage.totals["estimated_cost"] or 0, [row for row in found if row["ConsumedUnit"] == "Tokens"]
    for name in ("BilledCost", "EffectiveCost", "ContractedCost", "ListCost", "x_EstimatedCost"):
        assert total(found, name) == (focus.totals[name] or 0) == cost, name
    assert total(tokens, "ConsumedQuantity") == total(tokens, "PricingQuantity") * 10**6 == usage.totals["total_tokens"]
    assert total(found, "x_UnpricedTokens") == usage.totals["unpriced_tokens"]
    kinds = [total(found, name) for name in TOKENS]
    assert sum(kinds) == usage.totals["total_tokens"] and kinds[3] == usage.totals["output_tokens"]
    assert (kinds[1], kinds[2]) == (usage.totals["cached_tokens"] or 0, usage.totals["cache_creation_tokens"] or 0)


def test_costs_are_known_split_or_marked(built: Database, tmp_path: Path):
    found = rows(built, tmp_path, dimensions=("team",))

    def of(model: str, day: int = 1) -> list[tuple[Any, ...]]:
        return [
            (row["SkuMeter"], int(row["ConsumedQuantity"]), row["x_EstimatedCost"], row["ListUnitPrice"], row["x_CostBasis"])
            for row in found
            if json.loads(row["SkuPriceDetails"])["x_ModelId"] == model and row["ChargePeriodStart"].day == day
        ]

    assert of("gpt-4o-2024-08-06")[:3] == [
        ("Input Tokens", 3003, Decimal("0.0075075"), Decimal("2.5"), "ListPrice"),
        ("Cache Read Input Tokens", 1200, Decimal("0.0015"), Decimal("1.25"), "ListPrice"),
        ("Output Tokens", 90, Decimal("0.0009"), Decimal("10"), "ListPrice"),
    ]
    assert [row[0] for row in of("claude-sonnet-4-6")] == [
        "Input Tokens", "Cache Read Input Tokens", "Cache Write Input Tokens", "Output Tokens",
    ]  # fmt: skip
    mixed = (100 * 3 + 500 * Decimal("0.3") + 150 * Decimal("3.75") + 150 * 6 + 7 * 15) / Decimal(10**6)
    assert of("claude-sonnet-4-6", 2) == [("Tokens", 907, mixed, None, "Estimate")]
    assert of("mystery-1") == [
        ("Input Tokens", 30, None, None, "Unpriced"), ("Cache Read Input Tokens", 20, None, None, "Unpriced"),
        ("Output Tokens", 5, None, None, "Unpriced"),
    ]  # fmt: skip
    assert of("whisper-1") == [("Requests", 8, None, None, "Unpriced")]
    assert of("gpt-4o-mini") == [("Tokens", 22, Decimal("0.0000021"), None, "PartlyUnpriced")]
    assert [row[4] for row in of("claude-x", 2)] == ["OtherCurrency"] * 2
    assert of("gemini-2.5-pro") == [("Tokens", 1200, Decimal("0.000246"), None, "Estimate")]


def test_usage_without_a_price_is_never_free_without_a_mark(built: Database, tmp_path: Path):
    for version in VERSIONS:
        for row in rows(built, tmp_path, focus_version=version):
            is_zero = row["ListCost"] == 0
            assert is_zero == (row["x_EstimatedCost"] is None) == (row["x_CostBasis"] in ("Unpriced", "OtherCurrency"))
            assert not is_zero or (
                row["ListUnitPrice"] is None
                and ("price unknown" in row["ChargeDescription"]) != ("currency" in row["ChargeDescription"])
            )


def test_version_1_4_leaves_billed_cost_to_who_invoices(built: Database, tmp_path: Path):
    found = rows(built, tmp_path, focus_version="1.4")
    assert total(found, "BilledCost") == total(found, "EffectiveCost") == 0
    assert total(found, "ListCost") == total(found, "x_EstimatedCost") > 0


def test_charge_periods_are_half_open_and_end_with_the_export(built: Database, tmp_path: Path):
    def periods(period: Period, granularity: str) -> set[tuple[datetime, datetime]]:
        found = rows(built, tmp_path, period=period, granularity=granularity, filters={"provider": ["openai"]})
        return {(row["ChargePeriodStart"], row["ChargePeriodEnd"]) for row in found}

    first, hour = JUNE.start, timedelta(hours=1)
    assert periods(JUNE, "hour") == {(first + n * hour, first + (n + 1) * hour) for n in range(3)}
    assert periods(JUNE, "day") == {(first, first + 24 * hour)}
    assert periods(Period(first + hour, first + 3 * hour), "day") == {(first + hour, first + 3 * hour)}
    found = rows(built, tmp_path)
    assert {(row["BillingPeriodStart"], row["BillingPeriodEnd"]) for row in found} == {(JUNE.start, JUNE.end)}


def test_attribution_is_in_tags_sub_account_and_our_columns(built: Database, tmp_path: Path):
    found = rows(built, tmp_path, dimensions=EVERYONE)
    (ours, *_) = [row for row in found if row["SubAccountName"]]
    assert json.loads(ours["Tags"]) == {"team": "Search", "cost_center": "R&D", "feature": "answers", "environment": "production"}
    assert ours["SubAccountName"] == "=1+1" and ours["x_UserId"] == "ann@acme.test" and ours["x_ApiKeyId"] == "key-1"
    (nobodys, *_) = [row for row in found if row["Tags"] is None]
    assert (nobodys["SubAccountId"], nobodys["x_TeamId"], nobodys["x_UserId"]) == (None, None, None)


def test_users_are_left_out_or_pseudonyms_in_every_column(built: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EXPORT_KEY", "a long secret of ours")
    private = {"format": "csv", "dimensions": EVERYONE, "filters": {"user": ["ann@acme.test"]}}
    export(built, asked(**private), tmp_path / "kept.csv")
    export(built, asked(**private, users="pseudonymised", user_key="env:EXPORT_KEY"), tmp_path / "hidden.csv")
    export(built, asked(**private, users="left_out"), tmp_path / "without.csv")
    texts = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert {name for name, text in texts.items() if "ann@acme" in text} == {"kept.csv", "kept.csv.manifest.json"}
    assert (
        "x_UserId" in texts["hidden.csv"] and "x_UserName" not in texts["hidden.csv"] and "x_UserId" not in texts["without.csv"]
    )


def test_every_format_holds_the_same_rows(built: Database, tmp_path: Path):
    manifests = {f: export(built, asked(format=f), tmp_path / f"f.{f}") for f in ("csv", "json", "jsonl", "parquet", "xlsx")}
    assert len({(m.row_count, tuple(m.totals.items())) for m in manifests.values()}) == 1
    expected = pq.read_table(tmp_path / "f.parquet").to_pylist()
    document = json.loads((tmp_path / "f.json").read_text(), parse_float=Decimal, parse_int=Decimal)["data"]
    lines = [json.loads(line, parse_float=Decimal, parse_int=Decimal) for line in (tmp_path / "f.jsonl").read_text().splitlines()]
    with (tmp_path / "f.csv").open(newline="", encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    header, *cells = CalamineWorkbook.from_path(tmp_path / "f.xlsx").get_sheet_by_name("Usage Data").to_python()
    assert lines == document and len(document) == len(records) == len(cells) == len(expected) and header == list(expected[0])
    for row, in_json, in_csv, in_sheet in zip(expected, document, records, cells, strict=True):
        for name, value in row.items():
            text = value.strftime("%Y-%m-%dT%H:%M:%SZ") if isinstance(value, datetime) else value
            assert in_json[name] == text
            if isinstance(value, Decimal | int):
                assert (
                    Decimal(in_csv[name]) == value
                    and "E" not in in_csv[name]
                    and float(in_sheet[header.index(name)]) == pytest.approx(float(value))
                )
            elif value is None:
                assert in_csv[name] == "" and in_sheet[header.index(name)] == ""
            else:
                assert in_csv[name] == ("'=1+1" if text == "=1+1" else text)


def test_the_manifest_says_which_version_and_proves_the_file(built: Database, tmp_path: Path):
    request = asked(format="csv", include_metadata=True, focus_version="1.2")
    manifest: Manifest = export(built, request, tmp_path / request.file_name)
    said = verify(tmp_path / "tokentra_focus-1.2_2026-06-01_to_2026-06-30_day.csv")
    assert (said["profile"], said["focus_version"], said["row_count"]) == ("focus", "1.2", manifest.row_count)
    assert {column["title"]: column["unit"] for column in said["columns"]}["ListUnitPrice"] == "USD per PricingUnit"
    beside = json.loads((tmp_path / (request.file_name + ".metadata.json")).read_text())
    assert beside["FOCUS Version"] == "1.2" and beside["Total Rows"] == str(manifest.row_count)


def test_a_period_without_usage_has_a_header_and_no_rows(built: Database, tmp_path: Path):
    empty = Period(datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 2, 1, tzinfo=UTC))
    manifest = export(built, asked(period=empty), tmp_path / "f.parquet")
    assert manifest.row_count == 0 and manifest.totals["BilledCost"] == 0 and len(pq.read_schema(tmp_path / "f.parquet")) > 30


def test_prices_in_dollars_explain_no_cost_in_another_currency():
    """The list is in dollars; a cost in euros that has the same digits is not a list price."""
    batch = usage_batch(input_tokens=1000, estimated_cost=Decimal("0.0025"))
    assert [METERS[meter].name for meter in charges_of(usage_columns(batch, "EUR")[0]).meter] == ["Tokens"]
    assert [METERS[meter].name for meter in charges_of(usage_columns(batch, "USD")[0]).meter] == ["Input Tokens"]
