"""csv, JSON and Parquet read by DuckDB, which wrote none of them: every value, its type, the metadata (issue 6, item 1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.exports.export_rows import NASTY, PERIOD, Row, rows_of, written
from tokentra_dagster.exports.export import export
from tokentra_dagster.exports.request import ExportRequest
from tokentra_dagster.exports.text import neutral
from tokentra_dagster.exports.writers.parquet import GROUP_ROWS
from tokentra_dagster.warehouse.database import Database

ROWS = rows_of([*NASTY, None, *NASTY])
TYPES = {
    "hour": "TIMESTAMP WITH TIME ZONE", "feature": "VARCHAR", "total_tokens": "BIGINT", "estimated_cost": "DECIMAL(38,12)",
    "error_rate": "DOUBLE",
}  # fmt: skip
ENDINGS = {"none": "", "gzip": ".gz", "zstd": ".zst"}


def read(source: str) -> list[tuple[Any, ...]]:
    return duckdb.sql(f"SELECT epoch_us(hour), * EXCLUDE (hour) FROM {source}").fetchall()


def as_read(rows: Sequence[Row]) -> list[tuple[Any, ...]]:
    return [(int(moment.timestamp()) * 1_000_000, *others) for moment, *others in rows]


@pytest.mark.parametrize("compression", ENDINGS)
def test_csv_has_every_value_and_what_is_unknown(tmp_path: Path, compression: str):
    path = written("csv", tmp_path / f"u.csv{ENDINGS[compression]}", ROWS, compression=compression)
    found = read(f"read_csv('{path}', header = true, columns = {TYPES}, allow_quoted_nulls = false)")
    assert found == [(at, text and neutral(text), *others) for at, text, *others in as_read(ROWS)]


@pytest.mark.parametrize("compression", ENDINGS)
def test_json_lines_have_every_value(tmp_path: Path, compression: str):
    path = written("jsonl", tmp_path / f"u.jsonl{ENDINGS[compression]}", ROWS, compression=compression)
    assert read(f"read_json('{path}', format = 'newline_delimited', columns = {TYPES})") == as_read(ROWS)


def test_json_has_every_value_and_the_metadata(tmp_path: Path):
    path = written("json", tmp_path / "u.json", ROWS, metadata={"Organization": 'a "b"\n'})
    row = ", ".join(f"{name} {kind}" for name, kind in TYPES.items())
    document = f"read_json('{path}', columns = {{'data': 'STRUCT({row})[]', 'metadata': 'JSON'}})"
    assert read(f"(SELECT unnest(data, recursive := true) FROM {document})") == as_read(ROWS)
    assert duckdb.sql(f"SELECT metadata ->> 'Organization' FROM {document}").fetchall() == [('a "b"\n',)]


@pytest.mark.parametrize("compression", ["zstd", "gzip", "none"])
def test_parquet_has_types_dictionaries_and_metadata(tmp_path: Path, compression: str):
    path = written("parquet", tmp_path / "u.parquet", ROWS, metadata={"Organization": "ünit"}, compression=compression)
    described = duckdb.sql(f"DESCRIBE SELECT * FROM '{path}'").fetchall()
    assert {name: kind for name, kind, *_ in described} == TYPES
    assert read(f"'{path}'") == as_read(ROWS)
    codec, encodings = duckdb.sql(
        f"SELECT compression, encodings FROM parquet_metadata('{path}') WHERE path_in_schema = 'feature'"
    ).fetchall()[0]
    assert codec == {"zstd": "ZSTD", "gzip": "GZIP", "none": "UNCOMPRESSED"}[compression] and "RLE_DICTIONARY" in encodings
    keys = dict(duckdb.sql(f"SELECT decode(key), decode(value) FROM parquet_kv_metadata('{path}')").fetchall())
    assert keys["tokentra.Organization"] == "ünit"


def test_row_groups_are_large_and_hold_all_of_many_small_batches(tmp_path: Path):
    rows = rows_of([f"feature {n % 70}" if n % 7 else None for n in range(GROUP_ROWS + 2_000)])
    path = written("parquet", tmp_path / "u.parquet", rows, batch_size=1000)
    groups = duckdb.sql(f"SELECT DISTINCT row_group_id, row_group_num_rows FROM parquet_metadata('{path}') ORDER BY 1").fetchall()
    assert groups == [(0, 66_000), (1, GROUP_ROWS + 2_000 - 66_000)]
    assert read(f"'{path}'") == as_read(rows)


@pytest.mark.parametrize("profile", ["usage", "focus"])
def test_an_export_of_the_warehouse_adds_up_to_its_manifest(built: Database, tmp_path: Path, profile: str):
    for format in ("csv", "jsonl", "parquet"):
        path = tmp_path / f"u.{format}"
        names = {} if profile == "focus" else {"names": "raw"}
        manifest = export(built, ExportRequest("acme", PERIOD, format=format, profile=profile, **names), path)
        cost = "x_EstimatedCost" if profile == "focus" else "estimated_cost"
        tokens = "x_UncachedInputTokens" if profile == "focus" else "total_tokens"
        source = f"read_json('{path}')" if format == "jsonl" else f"'{path}'"
        found = duckdb.sql(f"SELECT count(*), sum({tokens}::BIGINT), sum({cost}::DECIMAL(38, 12)) FROM {source}").fetchall()
        assert found == [(manifest.row_count, manifest.totals[tokens], manifest.totals[cost])]
