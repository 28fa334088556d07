"""What Azure billed, from Cost Management exports in a folder: the newest run of a month, every line of models, nothing half."""

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

from tests.providers.azure_server import SUBSCRIPTION
from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.providers.azure import AzureSource
from tokentra_dagster.providers.azure_cost_lines import billed_model
from tokentra_dagster.providers.base import ConnectionConfig, Window
from tokentra_dagster.records import split

RESOURCE = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/ai/providers/Microsoft.CognitiveServices/accounts/acme-ai"
FIELDS = (
    "date", "meterCategory", "meterSubCategory", "meterName", "ProductName", "ResourceId", "quantity", "unitOfMeasure", "chargeType",
    "costInBillingCurrency", "billingCurrency", "paygCostInBillingCurrency", "resourceLocation",
)  # fmt: skip
NOVEMBER = Window(datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC), "1h")


def line(day="11/20/2026", cost="1.25", **other):
    row = dict(
        zip(
            FIELDS,
            (
                day, "Foundry Models", "Azure OpenAI", "gpt 4o 0806 Inp glbl Tokens", "Azure OpenAI", RESOURCE, "500", "1K", "Usage",
                cost, "USD", "1.5", "EastUS2",
            ),
            strict=True,
        )
    )  # fmt: skip
    return row | other


def table(rows, kind):
    if kind == "parquet":
        sink = io.BytesIO()
        numbers = ("quantity", "costInBillingCurrency", "paygCostInBillingCurrency")
        columns = {name: [row[name] for row in rows] for name in FIELDS}
        typed = {
            name: pa.array([Decimal(v) for v in values], pa.decimal128(38, 12)) if name in numbers else pa.array(values)
            for name, values in columns.items()
        }
        pq.write_table(pa.table(typed), sink)
        return sink.getvalue()
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS)
    writer.writeheader()
    writer.writerows(rows)
    content = ("\ufeff" + text.getvalue()).encode()
    return gzip.compress(content) if kind == "csv.gz" else content


def export(
    folder,
    rows,
    run="1",
    month="2026-11",
    submitted="2026-11-24T05:06:07.1234567Z",
    kind="csv",
    name="actual",
    type="ActualCost",
    parts=1,
    days=(1, 24),
):
    place = folder / name / f"{month.replace('-', '')}01-{month.replace('-', '')}30" / run
    place.mkdir(parents=True)
    blobs = []
    for part in range(parts):
        content = table(rows[part::parts], kind)
        (place / f"part_{part}_0001.{kind}").write_bytes(content)
        blobs.append(
            {
                "blobName": f" exports/{name}/{run}/part_{part}_0001.{kind}",
                "byteCount": len(content),
                "dataRowCount": len(rows[part::parts]),
            }
        )
    plain = {"csv": ("Csv", "None"), "csv.gz": ("Csv", "gzip"), "parquet": ("Parquet", "snappy")}[kind]
    manifest = {
        "manifestVersion": "2024-04-01",
        "exportConfig": {"exportName": name, "type": type, "dataVersion": "2023-05-01"},
        "deliveryConfig": {"fileFormat": plain[0], "compressionMode": plain[1]},
        "runInfo": {
            "submittedTime": submitted,
            "runId": run,
            "startDate": f"{month}-{days[0]:02}T00:00:00",
            "endDate": f"{month}-{days[1]:02}T00:00:00Z",
        },
        "blobs": blobs,
    }
    (place / "manifest.json").write_text(json.dumps(manifest))
    return place


def costs(*folders, window=NOVEMBER, **options):
    given = {"subscriptions": SUBSCRIPTION, "cost_export": ",".join(map(str, folders))} | options
    source = AzureSource(ConnectionConfig("azure", "", None, given))
    _, found, rejected = split(source.costs(window))
    return found, rejected, source.remarks()


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet"])
def test_lines_of_a_day_are_summed_by_what_they_were_for(tmp_path, kind):
    rows = [
        line(),
        line(cost="0.000000000012"),
        line(day="2026-11-21", meterName="gpt 4o 0806 cached Inp glbl Tokens"),
        line(meterCategory="Storage", meterSubCategory="Blob", ProductName="Blob"),
        line(cost="-0.25", chargeType="Refund"),
    ]
    export(tmp_path, rows, kind=kind, parts=2)
    found, rejected, remarks = costs(tmp_path)
    assert rejected == [] and remarks == []
    assert {(c.bucket_start.day, c.cost_type, c.token_type): c.amount for c in found} == {
        (20, "Usage", "input_tokens"): Decimal("1.250000000012"), (21, "Usage", "cache_read_input_tokens"): Decimal("1.25"),
        (20, "Refund", "input_tokens"): Decimal("-0.25"),
    }  # fmt: skip
    first = found[0]
    assert (first.model, first.provider_project_id, first.currency) == ("gpt 4o 0806", "acme-ai", "USD")
    assert (first.quantity, first.quantity_unit, first.list_amount) == (Decimal(1000), "1K", Decimal("3.0"))
    assert first.bucket_end - first.bucket_start == timedelta(days=1)


def test_the_newest_run_of_a_month_counts_and_no_other(tmp_path):
    export(tmp_path, [line(cost="1")], run="a", submitted="2026-11-22T05:00:00Z")
    export(tmp_path, [line(cost="2")], run="b", submitted="2026-11-24T05:00:00.1Z")
    export(tmp_path, [line(cost="4", day="10/31/2026")], run="c", month="2026-10", submitted="2026-11-25T05:00:00Z")
    found, _, _ = costs(tmp_path)
    assert [c.amount for c in found] == [Decimal(2)]
    october = Window(datetime(2026, 10, 31, tzinfo=UTC), datetime(2026, 11, 21, tzinfo=UTC), "1d")
    assert sum(c.amount for c in costs(tmp_path, window=october)[0]) == 6


@pytest.mark.parametrize("days", [(20, 21), (1, 20)])
def test_a_later_run_of_selected_dates_does_not_replace_the_month(tmp_path, days):
    export(tmp_path, [line(day=f"11/{day}/2026", cost="1") for day in range(10, 25)], run="a")
    export(tmp_path, [line(cost="1")], run="b", submitted="2026-12-03T05:00:00Z", days=days)
    assert sum(c.amount for c in costs(tmp_path)[0]) == 15


def test_a_month_of_which_there_is_only_a_part_is_refused(tmp_path):
    export(tmp_path, [line()], days=(20, 21))
    with pytest.raises(PermanentError, match="only runs that begin on a later day"):
        costs(tmp_path)


def test_columns_of_the_older_agreement_are_found_by_their_other_names(tmp_path):
    place = export(tmp_path, [line()])
    file = place / "part_0_0001.csv"
    text = file.read_text("utf-8-sig")
    for new, old in (
        ("date", "Date"),
        ("costInBillingCurrency", "CostInBillingCurrency"),
        ("billingCurrency", "BillingCurrencyCode"),
    ):
        text = text.replace(f"{new},", f"{old},", 1)
    file.write_text(text)
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["blobs"][0]["byteCount"] = file.stat().st_size
    (place / "manifest.json").write_text(json.dumps(manifest))
    found, _, _ = costs(tmp_path)
    assert [c.amount for c in found] == [Decimal("1.25")]


def test_a_month_without_an_export_is_a_remark_and_costs_nothing(tmp_path):
    export(tmp_path, [line()])
    window = Window(datetime(2026, 12, 1, tzinfo=UTC), datetime(2026, 12, 3, tzinfo=UTC), "1h")
    found, _, remarks = costs(tmp_path, window=window)
    assert found == [] and remarks == [f"{tmp_path} holds no export of 2026-12: nothing is known of what was billed then."]


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet"])
def test_a_file_that_is_half_there_is_never_a_smaller_bill(tmp_path, kind):
    place = export(tmp_path, [line(day=f"11/{day}/2026") for day in range(10, 25)], kind=kind)
    file = place / f"part_0_0001.{kind}"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises((TransientError, PermanentError), match=r"part_0_0001"):
        costs(tmp_path)
    file.unlink()
    with pytest.raises(TransientError, match="is not what its manifest says"):
        costs(tmp_path)


def test_a_line_without_an_amount_leaves_no_charge_of_nothing(tmp_path):
    export(tmp_path, [line(), line(day="11/21/2026", cost="lots")])
    found, rejected, _ = costs(tmp_path)
    assert [c.amount for c in found] == [Decimal("1.25")] and len(rejected) == 1


def test_a_line_that_cannot_be_read_is_rejected_and_the_others_count(tmp_path):
    export(tmp_path, [line(), line(cost="lots"), line(day="someday"), line(billingCurrency="")])
    found, rejected, _ = costs(tmp_path)
    assert [c.amount for c in found] == [Decimal("1.25")]
    assert sorted(r.reason.split(": ")[1].split(" is ")[0] for r in rejected) == [
        "billingCurrency",
        "costInBillingCurrency",
        "date",
    ]
    assert all(r.payload["file"] == "part_0_0001.csv" for r in rejected)


def test_two_exports_in_one_folder_could_bill_twice_and_are_refused(tmp_path):
    export(tmp_path, [line()], name="team")
    export(tmp_path, [line()], name="company")
    with pytest.raises(PermanentError, match=r"holds several exports \(company, team\)"):
        costs(tmp_path)
    found, _, _ = costs(tmp_path / "team", tmp_path / "company")
    assert len(found) == 2


def test_amortised_costs_are_not_the_invoice_and_a_folder_without_any_says_so(tmp_path):
    export(tmp_path, [line()], type="AmortizedCost")
    with pytest.raises(PermanentError, match=r"holds no export of the type ActualCost or Usage \(there is AmortizedCost\)"):
        costs(tmp_path)
    with pytest.raises(PermanentError, match=r"there is no manifest\.json"):
        (tmp_path / "empty").mkdir()
        costs(tmp_path / "empty")
    with pytest.raises(PermanentError, match="there is no folder"):
        costs(tmp_path / "nowhere")


def test_words_choose_the_lines(tmp_path):
    export(tmp_path, [line(), line(meterCategory="SaaS", meterSubCategory="Claude Sonnet", ProductName="Anthropic", cost="7")])
    assert sum(c.amount for c in costs(tmp_path, cost_words="claude")[0]) == 7
    assert sum(c.amount for c in costs(tmp_path, cost_words="Claude,OpenAI")[0]) == Decimal("8.25")


@pytest.mark.parametrize(
    ("meter", "expected"),
    [
        ("gpt 4o 1120 cached Inp glbl Tokens", ("gpt 4o 1120", "cache_read_input_tokens")),
        ("gpt-4o-mini-0718-Outp-regnl Tokens", ("gpt-4o-mini-0718", "output_tokens")),
        ("gpt-4o-0806-Batch-Inp-glbl Tokens", ("gpt-4o-0806", "input_tokens")),
        ("5.4 opt Gl 1M Tokens", ("5.4", "output_tokens")),
        ("GPT 5 outpt Glbl 1M Tokens", ("GPT 5", "output_tokens")),
        ("Provisioned Managed Global Unit", (None, None)),
    ],
)  # fmt: skip
def test_a_meter_names_its_model_and_kind_of_token(meter, expected):
    assert billed_model(meter) == expected
