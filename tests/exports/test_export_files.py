"""Every format read back by another library than the one that wrote it (correction 39)."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zipfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import openpyxl
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from python_calamine import CalamineWorkbook

from tests.exports.export_rows import COLUMNS, NASTY, START, rows_of, written
from tokentra_dagster.exports.text import FORMULA_STARTS
from tokentra_dagster.exports.writers import WriterOptions, open_writer

ROWS = rows_of([*NASTY, None])
FORMATS = ("csv", "xlsx", "json", "jsonl", "parquet")


def as_digits(value: Decimal | None) -> str:
    """Plain digits without trailing zeros; nothing for unknown."""
    return "" if value is None else format(value.normalize(), "f")


def csv_rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_csv_read_by_the_standard_library_has_every_value(tmp_path: Path):
    header, *found = csv_rows(written("csv", tmp_path / "u.csv", ROWS))
    assert header == ["hour", "feature", "total_tokens", "estimated_cost", "error_rate"]
    assert len(found) == len(ROWS)
    for row, (moment, text, tokens, cost, rate) in zip(found, ROWS, strict=True):
        expected = f"'{text}" if text and text.startswith(FORMULA_STARTS) else text or ""
        assert row[:4] == [
            moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
            expected,
            "" if tokens is None else str(tokens),
            as_digits(cost),
        ]
        assert (float(row[4]) if row[4] else None) == rate


def test_csv_read_by_pandas_has_types_and_unknown_values(tmp_path: Path):
    path = written("csv", tmp_path / "u.csv", ROWS)
    found = pd.read_csv(
        path, dtype={"total_tokens": "Int64"}, parse_dates=["hour"], keep_default_na=False, na_values={"total_tokens": [""]}
    )
    assert found["hour"].dt.tz is not None and found["hour"].tolist() == [row[0] for row in ROWS]
    assert [None if pd.isna(value) else value for value in found["total_tokens"]] == [row[2] for row in ROWS]


def test_an_empty_text_in_csv_is_quoted_and_an_unknown_one_is_not(tmp_path: Path):
    lines = written("csv", tmp_path / "u.csv", rows_of(["", None])).read_text().splitlines()
    assert lines[1].split(",")[1] == '""' and lines[2].split(",")[1] == ""


def test_json_is_exact_and_null_where_unknown(tmp_path: Path):
    expected = [
        {
            "hour": m.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "feature": f,
            "total_tokens": t,
            "estimated_cost": c,
            "error_rate": r and Decimal(repr(r)),
        }
        for m, f, t, c, r in ROWS
    ]
    text = written("json", tmp_path / "u.json", ROWS, metadata={"Note": 'a "b"'}).read_text(encoding="utf-8")
    document = json.loads(text, parse_float=Decimal)
    assert document == {"data": expected, "metadata": {"Note": 'a "b"'}}
    lines = written("jsonl", tmp_path / "u.jsonl", ROWS).read_text(encoding="utf-8").split("\n")
    assert [json.loads(line, parse_float=Decimal) for line in lines[:-1]] == expected and lines[-1] == ""


def test_parquet_has_typed_columns_where_the_specification_makes_doubles_of_every_number(tmp_path: Path):
    """Correction 39. Its way: the type of the first row's value, and a JavaScript number is a DOUBLE."""
    path = written("parquet", tmp_path / "u.parquet", ROWS, metadata={"Note": "b"})
    found = {field.name: field.type for field in parquet.read_schema(path)}
    assert found == {
        "hour": pa.timestamp("us", "UTC"), "feature": pa.dictionary(pa.int32(), pa.string()), "total_tokens": pa.int64(),
        "estimated_cost": pa.decimal128(38, 12), "error_rate": pa.float64(),
    }  # fmt: skip
    physical = parquet.ParquetFile(path).schema
    assert [physical.column(place).physical_type for place in range(5)] == [
        "INT64",
        "BYTE_ARRAY",
        "INT64",
        "FIXED_LEN_BYTE_ARRAY",
        "DOUBLE",
    ]
    assert parquet.read_metadata(path).metadata[b"tokentra.Note"] == b"b"
    rows = parquet.read_table(path).to_pydict()
    assert list(zip(*rows.values(), strict=True)) == ROWS

    def specifications_way(value: int | Decimal) -> float:
        return float(value)

    large, small = 2**53 + 1, Decimal("1234567890.123456789012")
    assert specifications_way(large) != large and Decimal(specifications_way(small)) != small
    exact = written("parquet", tmp_path / "e.parquet", [(START, "x", large, small, None)])
    row = parquet.read_table(exact).to_pylist()[0]
    assert row["total_tokens"] == large and row["estimated_cost"] == small


def test_a_workbook_read_by_calamine_has_every_value(tmp_path: Path):
    path = written("xlsx", tmp_path / "u.xlsx", ROWS)
    header, *found = CalamineWorkbook.from_path(path).get_sheet_by_name("Usage Data").to_python()
    assert header == ["hour", "feature", "total_tokens", "estimated_cost", "error_rate"]
    for row, (moment, text, tokens, cost, rate) in zip(found, ROWS, strict=True):
        assert pd.Timestamp(row[0], tz="UTC") == moment and row[1] == (text or ""), text
        assert row[2] == ("" if tokens is None else tokens)
        assert row[3:] == ["" if cost is None else pytest.approx(float(cost)), "" if rate is None else pytest.approx(rate)]


def test_a_workbook_looks_as_the_specification_draws_it(tmp_path: Path):
    path = written("xlsx", tmp_path / "u.xlsx", ROWS, names="friendly", metadata={"Organization": "=acme()", "Total Rows": "2"})
    book = openpyxl.load_workbook(path)
    assert book.sheetnames == ["Usage Data", "Export Metadata"]
    sheet = book["Usage Data"]
    assert [cell.value for cell in sheet[1]] == [
        "Hour (UTC)",
        "Feature",
        "Total Tokens",
        "Estimated Cost (USD)",
        "Error Rate (%)",
    ]
    assert all(cell.font.b and cell.fill.fgColor.rgb == "FFE0E0E0" for cell in sheet[1])
    assert sheet.auto_filter.ref == f"A1:E{len(ROWS) + 1}" and sheet.freeze_panes == "A2"
    assert [cell.number_format for cell in sheet[4]] == ["yyyy-mm-dd hh:mm", "General", "#,##0", "#,##0.0000", "0.00"]
    assert [[cell.value for cell in row] for row in book["Export Metadata"]] == [
        ["Property", "Value"], ["Organization", "=acme()"], ["Total Rows", "2"],
    ]  # fmt: skip


def test_no_text_in_a_workbook_is_a_formula_where_the_specifications_library_would_keep_it_one(tmp_path: Path):
    """Correction 39: openpyxl, told to write a text as it is, makes a formula of it; so does a csv opened in a spreadsheet."""
    book = openpyxl.Workbook()
    book.active["A1"] = "=1+1"
    book.save(tmp_path / "theirs.xlsx")
    assert openpyxl.load_workbook(tmp_path / "theirs.xlsx").active["A1"].data_type == "f"

    path = written("xlsx", tmp_path / "u.xlsx", ROWS)
    for row, (_, text, tokens, *_rest) in zip(openpyxl.load_workbook(path)["Usage Data"].iter_rows(min_row=2), ROWS, strict=True):
        if text:
            assert row[1].data_type in ("s", "inlineStr"), text
            assert bool(row[1].quotePrefix) == text.startswith(FORMULA_STARTS)
        assert tokens is None or row[2].data_type == "n"
    with zipfile.ZipFile(path) as archive:
        assert b"<f>" not in archive.read("xl/worksheets/sheet1.xml")


def test_no_text_in_a_csv_starts_as_a_formula_where_the_specification_writes_it_as_it_is(tmp_path: Path):
    """Correction 39, its csv-writer re-enacted; a negative number stays a number."""
    theirs = io.StringIO()
    csv.writer(theirs).writerow([NASTY[1]])
    assert next(csv.reader([theirs.getvalue()]))[0].startswith("=")
    _, *found = csv_rows(written("csv", tmp_path / "u.csv", ROWS))
    assert not [row[1] for row in found if row[1].startswith(FORMULA_STARTS)]
    assert "-5" in {row[2] for row in found} and "-1234567.891" in {row[3] for row in found}


def test_rows_past_a_sheets_end_go_on_in_the_next_one_with_its_own_header(tmp_path: Path):
    """Excel's limit is 1,048,576 rows; here a sheet ends after 5, inside a batch and at the end of one."""
    rows = rows_of([f"f{n}" for n in range(12)])
    path = written("xlsx", tmp_path / "u.xlsx", rows, batch_size=8, sheet_rows=5)
    book = CalamineWorkbook.from_path(path)
    assert book.sheet_names == ["Usage Data", "Usage Data 2", "Usage Data 3"]
    sheets = [book.get_sheet_by_name(name).to_python() for name in book.sheet_names]
    assert [len(sheet) for sheet in sheets] == [5, 5, 5] and {tuple(sheet[0]) for sheet in sheets} == {tuple(sheets[0][0])}
    assert [row[1] for sheet in sheets for row in sheet[1:]] == [row[1] for row in rows]
    assert WriterOptions().sheet_rows == 1_048_576
    assert [sheet.auto_filter.ref for sheet in openpyxl.load_workbook(path)] == ["A1:E5"] * 3


def test_a_text_that_no_cell_can_hold_is_shortened_and_not_dropped(tmp_path: Path):
    path = written("xlsx", tmp_path / "u.xlsx", rows_of(["x" * 40_000]))
    cell = CalamineWorkbook.from_path(path).get_sheet_by_index(0).to_python()[1][1]
    assert len(cell) == 32_767 and cell.endswith("x…")


@pytest.mark.parametrize("format", ["csv", "json", "jsonl"])
def test_a_compressed_file_unpacks_to_the_plain_one(tmp_path: Path, format: str):
    plain = written(format, tmp_path / "u", ROWS).read_bytes()
    assert gzip.decompress(written(format, tmp_path / "u.gz", ROWS, compression="gzip").read_bytes()) == plain
    packed = pa.input_stream(str(written(format, tmp_path / "u.zst", ROWS, compression="zstd")), compression="zstd")
    assert packed.read() == plain


@pytest.mark.parametrize("codec", ["zstd", "gzip", "none"])
def test_parquet_compresses_inside(tmp_path: Path, codec: str):
    path = written("parquet", tmp_path / "u.parquet", ROWS, compression=codec)
    used = parquet.read_metadata(path).row_group(0).column(2).compression
    assert used == {"zstd": "ZSTD", "gzip": "GZIP", "none": "UNCOMPRESSED"}[codec]


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_without_rows_has_its_columns(tmp_path: Path, format: str):
    path = written(format, tmp_path / f"u.{format}", [])
    read: dict[str, Any] = {
        "csv": lambda: pd.read_csv(path).columns, "xlsx": lambda: pd.read_excel(path, engine="calamine").columns,
        "parquet": lambda: pd.read_parquet(path).columns, "json": lambda: json.loads(path.read_text()), "jsonl": path.read_text,
    }  # fmt: skip
    found = read[format]()
    names = [column.name for column in COLUMNS]
    assert (found if format.startswith("json") else list(found)) == {"json": {"data": []}, "jsonl": ""}.get(format, names)


@pytest.mark.parametrize("format", FORMATS)
def test_the_size_of_a_batch_changes_nothing(tmp_path: Path, format: str):
    if format in ("parquet", "xlsx"):
        read = pd.read_parquet if format == "parquet" else lambda path: pd.read_excel(path, engine="calamine")
        once, twice = (read(written(format, tmp_path / f"{size}", ROWS, size)) for size in (1, 1000))
        pd.testing.assert_frame_equal(once, twice, check_categorical=False)
    else:
        assert len({written(format, tmp_path / f"{size}", ROWS, size).read_bytes() for size in (1, 7, 1000)}) == 1


texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.one_of(st.none(), texts), max_size=8), st.lists(st.decimals(-(10**20), 10**20, places=12), min_size=1, max_size=5)
)
def test_any_text_and_any_amount_come_back_from_csv_and_json(tmp_path: Path, texts: list[str | None], costs: list[Decimal]):
    rows = [(START, text, n, costs[n % len(costs)], None) for n, text in enumerate(texts)]
    _, *found = csv_rows(written("csv", tmp_path / "u.csv", rows))
    assert [re.sub("^'", "", row[1]) for row in found] == [re.sub("^'", "", text or "") for text in texts]
    assert [Decimal(row[3]) for row in found] == [row[3] for row in rows]
    data = json.loads(written("json", tmp_path / "u.json", rows).read_text("utf-8"), parse_float=Decimal)["data"]
    assert [(row["feature"], row["estimated_cost"]) for row in data] == [(row[1], row[3]) for row in rows]


@pytest.mark.parametrize("format", FORMATS)
def test_a_writer_can_be_abandoned(tmp_path: Path, format: str):
    writer = open_writer(format, tmp_path / "u", COLUMNS, WriterOptions())
    writer.abandon()
    assert [file.name for file in tmp_path.iterdir()] == ["u"]


def test_a_workbook_that_cannot_be_written_is_the_systems_error(tmp_path: Path):
    writer = open_writer("xlsx", tmp_path / "u.xlsx", COLUMNS, WriterOptions())
    (tmp_path / "u.xlsx").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        writer.close()
