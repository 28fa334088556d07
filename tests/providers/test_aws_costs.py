"""What AWS billed for Bedrock: exports as Data Exports writes them, in moto's S3 over HTTP."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.providers.aws_bucket import SECRET, running_bucket
from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.providers import open_source
from tokentra_dagster.providers.aws_s3 import Location
from tokentra_dagster.providers.base import ConnectionConfig, Window
from tokentra_dagster.records import CostRecord, RejectedItem, split

NOVEMBER = datetime(2026, 11, 1, tzinfo=UTC)
EXPORT = "exports/bedrock/"
PROFILE = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc123"
SONNET = "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-sonnet-4-5-20250929-v1:0"


@pytest.fixture(scope="module")
def moto():
    with running_bucket() as bucket:
        yield bucket


@pytest.fixture
def bucket(moto):
    for page in moto._client.get_paginator("list_objects_v2").paginate(Bucket="acme-logs"):
        for found in page.get("Contents", []):
            moto.remove(found["Key"])
    return moto


@pytest.fixture
def source(bucket):
    def open_it(**options):
        given = {"regions": "us-east-1", "cost_export": f"s3://acme-logs/{EXPORT}", "max_retries": "1"} | options
        return open_source(ConnectionConfig("aws", SECRET, bucket.url, given))

    return open_it


def line(amount, at=NOVEMBER, kind="Usage", usage="USE1-Claude4.6Sonnet-input-tokens", **fields):
    return {
        "line_item_product_code": "AmazonBedrock", "line_item_usage_start_date": f"{at:%Y-%m-%dT%H:%M:%S}.000Z",
        "line_item_line_item_type": kind, "line_item_usage_type": usage, "line_item_currency_code": "USD",
        "line_item_unblended_cost": amount, "line_item_net_unblended_cost": amount, "line_item_operation": "InvokeModelInference",
        "line_item_usage_account_id": "123456789012", "line_item_resource_id": "", "line_item_iam_principal": "",
        "line_item_usage_amount": "1000", "pricing_unit": "1K tokens", "pricing_public_on_demand_cost": "0.5", "product_region_code": "us-east-1",
        "product_servicecode": "AmazonBedrock", "product": {"product_name": "Amazon Bedrock"},
    } | fields  # fmt: skip


def csv_file(lines):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]))
    writer.writeheader()
    for row in lines:
        writer.writerow({name: json.dumps(value) if isinstance(value, dict) else value for name, value in row.items()})
    return gzip.compress(text.getvalue().encode())


def parquet_file(lines):
    doubles = {
        "line_item_unblended_cost",
        "line_item_net_unblended_cost",
        "line_item_usage_amount",
        "pricing_public_on_demand_cost",
    }
    kinds = {"line_item_usage_start_date": pa.timestamp("ms"), "product": pa.map_(pa.string(), pa.string())}
    columns = {}
    for name in lines[0]:
        values = [row[name] for row in lines]
        if name in doubles:
            columns[name] = pa.array([float(v) for v in values], pa.float64())
        elif name == "line_item_usage_start_date":
            columns[name] = pa.array([datetime.fromisoformat(v).replace(tzinfo=None) for v in values], kinds[name])
        elif name == "product":
            columns[name] = pa.array([list(v.items()) for v in values], kinds[name])
        else:
            columns[name] = pa.array(values, pa.string())
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def export(bucket, *files, month="2026-11", execution="one", ending="csv.gz", where="", encode=csv_file):
    """The files of a month and then its manifest, as an export writes them."""
    keys = [f"{EXPORT}data/BILLING_PERIOD={month}/{where}bedrock-{number:05}.{ending}" for number in range(len(files))]
    for key, lines in zip(keys, files, strict=True):
        bucket.put(key, encode(lines))
    manifest = {"executionId": execution, "dataFiles": [f"s3://acme-logs/{key}" for key in keys], "columns": []}
    bucket.put(f"{EXPORT}metadata/BILLING_PERIOD={month}/{where}bedrock-Manifest.json", json.dumps(manifest).encode())


def days(first=1, last=30, month=11):
    return Window(datetime(2026, month, first, tzinfo=UTC), datetime(2026, month, last, tzinfo=UTC) + timedelta(days=1), "1h")


def costs(source, window=None):
    return split(source.costs(window or days()))[1]


# ---- What a line means ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ending", "encode"), [("csv.gz", csv_file), ("parquet", parquet_file)])
def test_a_days_lines_of_the_same_thing_are_one_charge_exact_to_the_last_digit(bucket, source, ending, encode):
    at = NOVEMBER + timedelta(days=3, hours=5)
    principal = "arn:aws:sts::123456789012:assumed-role/app/alice"
    fields = {"line_item_resource_id": SONNET, "line_item_iam_principal": principal}
    export(bucket, [line("0.1", at, **fields), line("0.2", at + timedelta(hours=1), **fields)], ending=ending, encode=encode)
    (one,) = costs(source())
    assert one == CostRecord(
        bucket_start=NOVEMBER + timedelta(days=3), bucket_end=NOVEMBER + timedelta(days=4), amount=Decimal("0.3"), list_amount=one.list_amount,
        line_item="USE1-Claude4.6Sonnet-input-tokens", model="us.anthropic.claude-sonnet-4-5-20250929-v1:0", cost_type="Usage",
        token_type="input_tokens", api_key_id="arn:aws:iam::123456789012:role/app", user_id=principal, quantity=Decimal(2000),
        quantity_unit="1K tokens", metadata=one.metadata,
    )  # fmt: skip
    assert one.list_amount == 1
    assert one.metadata == {
        "account_id": "123456789012", "operation": "InvokeModelInference", "product_code": "AmazonBedrock", "product_name": "Amazon Bedrock",
        "region": "us-east-1", "resource_id": SONNET,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("usage", "model", "token_type", "tier"),
    [
        ("USE1-Claude4.6Sonnet-input-tokens", "Claude4.6Sonnet", "input_tokens", None),
        ("EUC1-Nova-Lite-output-tokens-batch", "Nova-Lite", "output_tokens", "batch"),
        ("USE1-Claude4.6Sonnet-cache-read-input-token-count", "Claude4.6Sonnet", "cache_read_input_tokens", None),
        ("USE1-Claude4.6Sonnet-cache-write-input-token-count", "Claude4.6Sonnet", "cache_write_input_tokens", None),
        ("USW2-gpt-oss-120b-mantle-input-tokens-flex", "gpt-oss-120b", "input_tokens", "flex"),
        ("USE1-ProvisionedThroughput-ModelUnits", None, None, None),
    ],
)
def test_the_usage_type_tells_model_kind_of_token_and_tier(bucket, source, usage, model, token_type, tier):
    export(bucket, [line("1", usage=usage)])
    (one,) = costs(source())
    assert (one.model, one.token_type, one.metadata.get("service_tier")) == (model, token_type, tier)


def test_models_sold_through_the_marketplace_are_of_bedrock_and_other_products_are_not(bucket, source):
    market = {
        "line_item_product_code": "9x8y7z",
        "product_servicecode": "9x8y7z",
        "product": {"product_name": "Claude 3.5 Sonnet (Amazon Bedrock Edition)"},
    }
    other = {"line_item_product_code": "AmazonEC2", "product_servicecode": "AmazonEC2", "product": {"product_name": "Amazon EC2"}}
    own = {"line_item_product_code": "own", "product_servicecode": "own", "product": {}}
    lines = [line("1", **market), line("10", **other), line("100", **own)]
    for ending, encode in (("csv.gz", csv_file), ("parquet", parquet_file)):
        export(bucket, lines, ending=ending, encode=encode)
        (one,) = costs(source())
        assert (one.amount, one.model) == (1, "Claude 3.5 Sonnet")
        assert sum(c.amount for c in costs(source(cost_products="own"))) == 101


def test_everything_that_changes_the_invoice_is_counted(bucket, source):
    lines = [
        line("10"), line("-1.5", kind="Credit"), line("-2", kind="Refund"), line("0.8", kind="Tax"), line("3", kind="SavingsPlanCoveredUsage"),
        line("-3", kind="SavingsPlanNegation"), line("5", kind="RIFee"), line("0", kind="DiscountedUsage"), line("-1", kind="EdpDiscount"),
    ]  # fmt: skip
    export(bucket, lines)
    found = costs(source())
    assert sum(one.amount for one in found) == Decimal("11.3")
    assert {one.cost_type: one.amount for one in found}["Credit"] == Decimal("-1.5")
    net = [line("10", line_item_net_unblended_cost="9"), line("-1", kind="EdpDiscount", line_item_net_unblended_cost="0")]
    export(bucket, net)
    assert sum(one.amount for one in costs(source(cost_column="net_unblended"))) == 9


def test_an_application_profile_is_a_project(bucket, source):
    export(bucket, [line("1", line_item_resource_id=PROFILE)])
    (one,) = costs(source())
    assert (one.provider_project_id, one.model) == ("abc123", "Claude4.6Sonnet")


# ---- Days and months --------------------------------------------------------------------------------------------------


def test_days_are_of_the_window_and_months_are_read_as_they_are_touched(bucket, source):
    october = [line("1", NOVEMBER - timedelta(hours=1)), line("2", NOVEMBER - timedelta(days=9))]
    november = [line("4", NOVEMBER), line("8", NOVEMBER + timedelta(days=2, hours=23))]
    export(bucket, october, month="2026-10")
    export(bucket, november)
    opened = source()
    window = Window(NOVEMBER - timedelta(days=1), NOVEMBER + timedelta(days=2, hours=5), "1h")
    by_day = Counter()
    for one in costs(opened, window):
        by_day[f"{one.bucket_start:%m-%d}"] += one.amount
    assert by_day == {"10-31": 1, "11-01": 4, "11-03": 8}
    assert opened.remarks() == []
    opened = source()
    assert costs(opened, days(month=9)) == []
    assert "BILLING_PERIOD=2026-09: nothing is known" in opened.remarks()[0]


def test_a_month_in_several_files_and_the_newest_of_several_exports(bucket, source):
    export(bucket, [line("1")], [line("2")])
    assert sum(one.amount for one in costs(source())) == 3
    bucket.remove(f"{EXPORT}metadata/BILLING_PERIOD=2026-11/bedrock-Manifest.json")
    export(bucket, [line("5")], where="20261102-one/")
    assert sum(one.amount for one in costs(source())) == 5


def test_an_export_that_is_rewritten_while_it_is_read_is_not_half_used(bucket, source, monkeypatch):
    export(bucket, [line("1")], execution="one")
    real = Location.opened

    def and_then_rewritten(self, key):
        if key.endswith(".csv.gz"):
            export(bucket, [line("2")], execution="two")
        return real(self, key)

    monkeypatch.setattr(Location, "opened", and_then_rewritten)
    with pytest.raises(TransientError, match="was rewritten while BILLING_PERIOD=2026-11 was read"):
        costs(source())
    monkeypatch.undo()
    bucket.remove(f"{EXPORT}data/BILLING_PERIOD=2026-11/bedrock-00000.csv.gz")
    with pytest.raises(TransientError, match="was rewritten"):
        costs(source())


# ---- What cannot be used ---------------------------------------------------------------------------------------------


def test_a_line_that_cannot_be_a_charge_is_kept_with_its_reason(bucket, source):
    export(bucket, [line("1"), line("a lot"), line("2", line_item_usage_start_date="soon")])
    usage, good, rejected = split(source().costs(days()))
    assert [one.amount for one in good] == [1] and usage == []
    assert all(isinstance(item, RejectedItem) for item in rejected)
    assert ["line_item_unblended_cost is 'a lot'" in rejected[0].reason, "'soon'" in rejected[1].reason] == [True, True]


@pytest.mark.parametrize(
    "content",
    [gzip.compress(b"a,b\n1,2\n"), b"not gzip", csv_file([line("1")] * 400)[:300]],
    ids=["other columns", "not gzip", "cut off"],
)
def test_a_file_that_cannot_be_read_stops_with_its_name(bucket, source, content):
    export(bucket, [line("1")])
    bucket.put(f"{EXPORT}data/BILLING_PERIOD=2026-11/bedrock-00000.csv.gz", content)
    with pytest.raises(PermanentError, match=r"bedrock-00000.csv.gz (has no column|cannot be read)"):
        costs(source())


def test_a_wrong_place_is_not_a_month_without_charges(bucket, source):
    with pytest.raises(PermanentError, match="must end with the export's name"):
        costs(source())
    assert costs(source(cost_export="")) == []
    with pytest.raises(PermanentError, match="option cost_export has the value"):
        source(cost_export="acme-logs")


def test_a_bill_of_many_lines_is_read_in_little_memory(bucket, source):
    import tracemalloc

    other = {"line_item_product_code": "AmazonEC2", "product_servicecode": "AmazonEC2", "product": {"product_name": "Amazon EC2"}}
    lines = [line("0.01", NOVEMBER + timedelta(hours=n % 700)) if n % 50 == 0 else line("1", **other) for n in range(40_000)]
    export(bucket, lines, ending="parquet", encode=parquet_file)
    opened = source()
    tracemalloc.start()
    found = costs(opened)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(one.amount for one in found) == 8
    assert peak < 30 << 20
