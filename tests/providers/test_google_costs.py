"""What Google billed, from rows of the billing export as files: every cost type with its sign, less the credits, nothing half."""

from __future__ import annotations

import csv
import gzip
import io
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokentra_dagster.errors import PermanentError
from tokentra_dagster.providers.base import ConnectionConfig, Window
from tokentra_dagster.providers.google import GoogleSource
from tokentra_dagster.providers.google_billing import query
from tokentra_dagster.providers.google_cost_lines import COLUMNS, billed_model, columns_of
from tokentra_dagster.records import split

NOVEMBER = Window(datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC), "1h")
VERTEX = {"id": "C7E2-9256-1C43", "description": "Vertex AI"}
FLASH = "Gemini 2.5 Flash GA Text Input - Predictions"


def row(at="2026-11-20 17:00:00 UTC", cost=1.25, sku=FLASH, credits=(), **other):
    """A row as BigQuery exports it in JSON, with the columns that matter and some that do not."""
    usage = {"amount": 500.0, "unit": "count", "amount_in_pricing_units": 0.5, "pricing_unit": "1k"}
    return {
        "billing_account_id": "0123AB", "service": VERTEX, "sku": {"id": "FD3B", "description": sku}, "usage_start_time": at,
        "usage_end_time": at, "project": {"id": "acme-assistant", "name": "Assistant", "labels": [{"key": "team", "value": "care"}]},
        "location": {"location": "us-central1", "region": "us-central1"}, "cost": cost, "currency": "USD",
        "currency_conversion_rate": 1.0, "usage": usage, "credits": [{"name": "c", "type": kind, "amount": a} for kind, a in credits],
        "invoice": {"month": "202611"}, "cost_type": "regular", "cost_at_list": 1.5, "export_time": "2026-11-21 03:00:00 UTC",
    } | other  # fmt: skip


def content(rows, kind):
    lines = "".join(json.dumps(one) + "\n" for one in rows).encode()
    if kind in ("json", "jsonl"):
        return lines
    if kind == "ndjson.gz":
        return gzip.compress(lines)
    if kind == "parquet":
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), sink)
        return sink.getvalue()
    text = io.StringIO()
    flat = [
        {f"{name}_{part}": value for name, of in one.items() if isinstance(of, dict) for part, value in of.items() if part != "labels"}
        | {name: value for name, value in one.items() if not isinstance(value, (dict, list))}
        | {"credits": json.dumps(one["credits"])}
        for one in rows
    ]  # fmt: skip
    writer = csv.DictWriter(text, flat[0])
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue().encode()


def costs(folder, window=NOVEMBER, **options):
    given = {"projects": "acme", "billing_files": str(folder)} | options
    source = GoogleSource(ConnectionConfig("google", "", None, given))
    _, found, rejected = split(source.costs(window))
    return found, rejected


@pytest.mark.parametrize("kind", ["jsonl", "json", "ndjson.gz", "csv", "parquet"])
def test_rows_of_a_day_are_summed_by_what_they_were_for_less_their_credits(tmp_path, kind):
    rows = [
        row(credits=(("COMMITTED_USAGE_DISCOUNT", -0.25), ("PROMOTION", -0.5))),
        row(at="2026-11-20 23:59:59 UTC", cost=0.000000000012, credits=(("PROMOTION", -0.000000000002),)),
        row(at="2026-11-21 00:00:00 UTC", sku="Gemini 2.5 Flash GA Text Input Caching"),
        row(cost=-0.75, cost_type="adjustment"),
        row(cost=9.0, service={"id": "95FF", "description": "Cloud Storage"}, sku="Standard Storage"),
    ]
    (tmp_path / f"part-0.{kind}").write_bytes(content(rows[:2], kind))
    (tmp_path / f"part-1.{kind}").write_bytes(content(rows[2:], kind))
    found, rejected = costs(tmp_path)
    assert rejected == []
    assert {(c.bucket_start.day, c.cost_type, c.model, c.token_type): c.amount for c in found} == {
        (20, "regular", "gemini-2.5-flash", "input_tokens"): Decimal("0.50000000001"),
        (21, "regular", "gemini-2.5-flash", "cache_read_input_tokens"): Decimal("1.25"),
        (20, "adjustment", "gemini-2.5-flash", "input_tokens"): Decimal("-0.75"),
    }
    first = found[0]
    assert (first.line_item, first.provider_project_id, first.currency) == (FLASH, "acme-assistant", "USD")
    assert (first.quantity, first.quantity_unit, first.list_amount) == (Decimal(1), "1k", Decimal(3))
    assert first.bucket_end - first.bucket_start == timedelta(days=1)
    assert first.metadata["credits"] == {"COMMITTED_USAGE_DISCOUNT": "-0.25", "PROMOTION": "-0.500000000002"}
    assert first.metadata["cost_before_credits"] == "1.250000000012"
    assert (first.metadata["sku_id"], first.metadata["invoice_month"], first.metadata["region"]) == (
        "FD3B",
        "202611",
        "us-central1",
    )


def test_a_late_row_and_a_correction_change_the_days_they_are_about(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(content([row(cost=1.0)], "jsonl"))
    assert sum(c.amount for c in costs(tmp_path)[0]) == 1
    (tmp_path / "b.jsonl").write_bytes(
        content([row(cost=0.25), row(cost=-1.0, cost_type="adjustment", invoice={"month": "202612"})], "jsonl")
    )
    found, _ = costs(tmp_path)
    assert sorted((c.amount, c.metadata["invoice_month"]) for c in found) == [
        (Decimal(-1), "202612"),
        (Decimal("1.25"), "202611"),
    ]
    day = Window(datetime(2026, 11, 20, 5, tzinfo=UTC), datetime(2026, 11, 20, 6, tzinfo=UTC), "1h")
    assert sum(c.amount for c in costs(tmp_path, day)[0]) == Decimal("0.25")
    assert costs(tmp_path, Window(datetime(2026, 11, 21, tzinfo=UTC), datetime(2026, 11, 22, tzinfo=UTC), "1h"))[0] == []


def test_another_currency_is_kept_or_converted_at_its_rows_rate(tmp_path):
    rows = [row(cost=0.92, currency="eur", currency_conversion_rate=0.92, credits=(("PROMOTION", -0.46),)), row(cost=1.0)]
    (tmp_path / "a.jsonl").write_bytes(content(rows, "jsonl"))
    assert {c.currency: c.amount for c in costs(tmp_path)[0]} == {"EUR": Decimal("0.46"), "USD": Decimal(1)}
    found, rejected = costs(tmp_path, billing_currency="usd")
    assert {(c.currency, c.metadata["billed_currency"]): c.amount for c in found} == {
        ("USD", "EUR"): Decimal("0.5"),
        ("USD", "USD"): Decimal(1),
    }
    (tmp_path / "b.jsonl").write_bytes(content([row(currency="EUR", currency_conversion_rate=None)], "jsonl"))
    _, rejected = costs(tmp_path, billing_currency="usd")
    assert [r.reason for r in rejected] == [
        "google billing export: currency_conversion_rate is None; a decimal number is required"
    ]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"cost": "lots"}, "cost is 'lots'"),
        ({"cost": None}, "cost is None"),
        ({"usage_start_time": "someday"}, "usage_start_time is 'someday'"),
        ({"currency": ""}, "currency is missing"),
        ({"credits": "[{"}, "credits is '[{'"),
        ({"credits": [{"amount": "much"}]}, "credits.amount is 'much'"),
    ],
)
def test_a_row_that_cannot_be_read_is_rejected_and_the_others_count(tmp_path, damage, said):
    (tmp_path / "a.jsonl").write_bytes(content([row(), row() | damage], "jsonl"))
    found, (rejected,) = costs(tmp_path)
    assert sum(c.amount for c in found) == Decimal("1.25")
    assert said in rejected.reason and rejected.payload["from"] == "a.jsonl"


@pytest.mark.parametrize("kind", ["jsonl", "ndjson.gz", "csv", "parquet"])
def test_a_file_that_is_half_there_is_never_a_smaller_bill(tmp_path, kind):
    whole = content([row(at=f"2026-11-{day} 01:00:00 UTC") for day in range(10, 25)], kind)
    (tmp_path / f"a.{kind}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PermanentError, match=r"cannot be read"):
        costs(tmp_path)


def test_a_folder_that_would_bill_twice_or_not_at_all_says_so(tmp_path):
    with pytest.raises(PermanentError, match="there is no folder"):
        costs(tmp_path / "nowhere")
    with pytest.raises(PermanentError, match=r"holds no \.json"):
        costs(tmp_path)
    (tmp_path / "a.jsonl").write_bytes(content([row()], "jsonl"))
    (tmp_path / "copy.jsonl").write_bytes(content([row()], "jsonl"))
    with pytest.raises(PermanentError, match="are the same file, which would bill twice"):
        costs(tmp_path)
    (tmp_path / "copy.jsonl").write_text(json.dumps({name: value for name, value in row().items() if name != "credits"}))
    with pytest.raises(PermanentError, match=r"has no column credits; export it, too \(in CSV: TO_JSON_STRING"):
        costs(tmp_path)
    with pytest.raises(PermanentError, match="would bill the same twice; give one of them"):
        costs(tmp_path, billing_table="acme.billing.gcp_billing_export_v1_1")
    with pytest.raises(PermanentError, match=r"give PROJECT\.DATASET\.TABLE"):
        costs(tmp_path, billing_table="billing")


def test_words_choose_the_rows_and_a_text_that_names_no_model_keeps_its_sku(tmp_path):
    rows = [
        row(),
        row(sku="Vertex AI Provisioned Throughput - Generative AI Scale Unit", cost=7.0),
        row(service={"id": "x", "description": "Claude"}),
    ]
    (tmp_path / "a.jsonl").write_bytes(content(rows, "jsonl"))
    found, _ = costs(tmp_path)
    assert {c.line_item: c.amount for c in found if c.model is None} == {
        "Vertex AI Provisioned Throughput - Generative AI Scale Unit": 7
    }
    assert sum(c.amount for c in found) == Decimal("9.5")
    assert sum(c.amount for c in costs(tmp_path, billing_words="Scale Unit")[0]) == 7


@pytest.mark.parametrize(
    ("sku", "expected"),
    [
        ("Gemini 2.5 Flash GA Text Input - Predictions", ("gemini-2.5-flash", "input_tokens")),
        ("Gemini 2.5 Flash GA Thinking Text Output - Predictions", ("gemini-2.5-flash", "output_tokens")),
        ("Gemini 2.5 Pro Text Input Caching (Long)", ("gemini-2.5-pro", "cache_read_input_tokens")),
        ("Gemini 3.8 Flash Text Input Caching Storage", ("gemini-3.8-flash", None)),
        ("Gemini 3.5 Flash Global Text Input Priority - Predictions", ("gemini-3.5-flash", "input_tokens")),
        ("Gemini 3.1 Flash Image Text Output - Predictions", ("gemini-3.1-flash-image", "output_tokens")),
        ("Gemini 3.1 Flash Lite Global Audio Input - Predictions", ("gemini-3.1-flash-lite", "input_tokens")),
        ("Generate content output token count gemini 2.5 flash short input text", ("gemini-2.5-flash", "output_tokens")),
        (
            "Generate content cached input token count gemini 3.8 flash tts text",
            ("gemini-3.8-flash-tts", "cache_read_input_tokens"),
        ),
        ("Claude Sonnet 4.5 - Cache Write Tokens", ("claude-sonnet-4-5", "cache_write_input_tokens")),
        ("Claude Haiku 4.5 Output Tokens", ("claude-haiku-4-5", "output_tokens")),
        ("Cloud Vertex AI Model Garden Model as a Service GLM-5.2 Input", ("glm-5.2", "input_tokens")),
        ("Grounding with Google Search on Gemini 3", (None, None)),
        ("Vertex AI Training N1 Standard", (None, None)),
    ],
)
def test_a_sku_names_its_model_and_kind_of_token(sku, expected):
    assert billed_model(sku) == expected


def test_the_query_asks_for_the_tables_own_columns_in_the_partitions_that_can_hold_them():
    read, missing = columns_of(["Service", "sku", "usage_start_time", "cost", "currency", "labels"])
    assert read == ["Service", "sku", "usage_start_time", "cost", "currency"] and missing == ["credits"]
    assert columns_of(COLUMNS) == (list(COLUMNS), [])
    plain, pruned = (query("a.b.c", read, by_arrival) for by_arrival in (False, True))
    assert plain.startswith("SELECT Service, sku, usage_start_time, cost, currency FROM `a.b.c` WHERE usage_start_time >= @first")
    assert "_PARTITIONTIME" not in plain and "_PARTITIONTIME IS NULL OR _PARTITIONTIME >=" in pruned


def test_a_table_without_credits_is_refused_before_it_is_read(provider):
    fields = [{"name": name, "type": "STRING"} for name in ("service", "sku", "usage_start_time", "cost", "currency")]
    table = {"tableReference": {"projectId": "acme", "datasetId": "billing", "tableId": "v"}, "schema": {"fields": fields}}
    provider.on("/bigquery/v2/projects/acme/datasets/billing/tables/v", table)
    given = {"projects": "acme", "billing_table": "acme.billing.v", "bigquery_endpoint": provider.url, "max_retries": "0"}
    source = GoogleSource(ConnectionConfig("google", "token", "http://127.0.0.1:9", given))
    with pytest.raises(PermanentError, match=r"acme\.billing\.v has no column credits; name a table of the billing export"):
        list(source.costs(NOVEMBER))
    assert provider.requests[0].headers["authorization"] == "Bearer token"
