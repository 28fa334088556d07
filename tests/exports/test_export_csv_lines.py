"""csv as the server writes it is byte for byte what the writer makes of batches, and counted from those bytes (docs/decisions/0014)."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.exports.export_rows import NASTY, PERIOD
from tokentra_dagster.exports.columns import Column
from tokentra_dagster.exports.export import export
from tokentra_dagster.exports.manifest import verify
from tokentra_dagster.exports.request import GRANULARITIES, ExportRequest
from tokentra_dagster.exports.rows import RowReader
from tokentra_dagster.exports.stream import stream, stream_rows
from tokentra_dagster.exports.writers import WriterOptions
from tokentra_dagster.exports.writers.csv import CsvWriter, field_sql, without_last
from tokentra_dagster.warehouse.database import Database

KINDS = ("time", "date", "text", "count", "quantity", "money", "ratio")
COLUMNS = [Column(kind, kind, kind, f"c_{kind}") for kind in KINDS]
EVERYONE = ("provider", "model", "team", "project", "cost_center", "feature", "environment", "user", "api_key", "request_type")
EVERYTHING = (
    "total_tokens",
    "cached_tokens",
    "request_count",
    "estimated_cost",
    "avg_latency_ms",
    "error_rate",
    "cache_hit_rate",
)


@pytest.fixture
def table(database: Database) -> Iterator[psycopg.Connection[Any]]:
    with database.connect(autocommit=True) as db:
        db.execute(
            "CREATE TABLE public.hostile (n SERIAL, c_time TIMESTAMPTZ, c_date DATE, c_text TEXT, c_count BIGINT, c_quantity NUMERIC, "
            "c_money NUMERIC, c_ratio DOUBLE PRECISION)"
        )
        # What a cautious administrator may have set, and what must not reach the file.
        db.execute(f"ALTER DATABASE {db.info.dbname} SET datestyle = 'German'")
        db.execute(f"ALTER DATABASE {db.info.dbname} SET extra_float_digits = -3")
        db.execute(f"ALTER DATABASE {db.info.dbname} SET timezone = 'Asia/Kolkata'")
        yield db


texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=6)
starts = st.sampled_from(["=", "+", "-", "@", "\t", "\r", "\n", " ", "'", '"', ",", "\\", "\\.", "é", "！", "\x0b", "@\x0c"])
rows = st.tuples(
    st.none() | st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)).map(lambda at: at.replace(second=0, microsecond=0, tzinfo=UTC)),
    st.none() | st.dates(date(1970, 1, 1), date(2200, 1, 1)),
    st.none() | texts | st.builds(str.__add__, starts, texts),
    st.none() | st.integers(-(2**63), 2**63 - 1),
    st.none() | st.decimals(-(10**20), 10**20, places=6),
    st.none() | st.decimals(-(10**20), 10**20, places=12) | st.sampled_from([Decimal("1E-12"), Decimal("-0.50"), Decimal(0)]),
    st.none() | st.floats(-(2.0**53), 2.0**53),
)  # fmt: skip
MOMENT = datetime(2026, 6, 1, 13, tzinfo=UTC)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(rows, min_size=1, max_size=12))
@example([(MOMENT, MOMENT.date(), text, -5, Decimal(7), Decimal("-1.50"), 100.0) for text in (*NASTY, None)])
@example([(MOMENT, MOMENT.date(), "x", 0, None, None, s * r) for s in (1, -1) for e in (-308, -8, -5, -4, -3, 8, 9, 12, 13, 14, 15)
          for r in (10.0**e, 1.25 * 10.0**e)] + [(None, None, None, None, None, None, ratio) for ratio in (0.0, -0.0, 1 / 3, 5e-324)])  # fmt: skip
def test_any_value_gives_the_same_bytes_either_way(
    table: psycopg.Connection[Any], database: Database, tmp_path: Path, found: list[tuple[Any, ...]]
):
    table.execute("TRUNCATE public.hostile RESTART IDENTITY")
    with table.cursor() as cursor:
        names = ", ".join(column.sql for column in COLUMNS)
        cursor.executemany(f"INSERT INTO public.hostile ({names}) VALUES (%s, %s, %s, %s, %s, %s, %s)".encode(), found)
    ways = {
        "batches": CsvWriter(tmp_path / "batches", COLUMNS, WriterOptions()),
        "lines": CsvWriter(tmp_path / "lines", COLUMNS, WriterOptions()),
    }
    select = "SELECT {} FROM public.hostile ORDER BY n"
    for batch in stream(database, select.format(", ".join(column.sql for column in COLUMNS)), COLUMNS):
        ways["batches"].write(batch)
    for block in stream_rows(database, select.format(", ".join([*map(field_sql, COLUMNS), "n", "NULL"]))):
        ways["lines"].write_lines(without_last(block, 2))
    for writer in ways.values():
        writer.close()
    lines, batches = ((tmp_path / name).read_bytes() for name in ("lines", "batches"))
    assert [pair for pair in zip(lines.split(b"\r\n"), batches.split(b"\r\n"), strict=True) if len(set(pair)) > 1] == []
    with (tmp_path / "lines").open(newline="", encoding="utf-8") as file:
        assert len(list(csv.reader(file))) == len(found) + 1


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(("names", "compression"), [("raw", "none"), ("friendly", "gzip"), ("raw", "zstd")])
@pytest.mark.parametrize(
    "changes",
    [{"dimensions": EVERYONE, "metrics": EVERYTHING}, {"dimensions": ("user",), "metrics": ("estimated_cost",), "users": "left_out"},
     {"filters": {"project": ("=1+1",)}, "metrics": ("record_count", "unpriced_tokens", "total_tokens")}],
    ids=["everything", "little", "filtered"],
)  # fmt: skip
def test_a_file_and_its_manifest_are_the_same_either_way(
    built: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, granularity: str, names: Any, compression: str, changes: Any
):
    request = ExportRequest("acme", PERIOD, granularity=granularity, names=names, compression=compression, **changes)
    monkeypatch.setattr(RowReader, "__iter__", None)
    ours = export(built, request, tmp_path / "u.csv")
    monkeypatch.undo()
    monkeypatch.setattr(RowReader, "is_pseudonymised", True)
    theirs = export(built, request, tmp_path / "v.csv")
    assert unpacked(tmp_path / "u.csv", compression) == unpacked(tmp_path / "v.csv", compression)
    assert verify(tmp_path / "u.csv")["row_count"] == ours.row_count > 0
    assert replace(ours, file_name="", created_at=theirs.created_at) == replace(theirs, file_name="")


def test_pseudonyms_are_made_here_and_the_file_never_holds_an_identifier(
    built: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("EXPORT_KEY", "sixteen or longer")
    secret = {"users": "pseudonymised", "user_key": "env:EXPORT_KEY"}
    export(built, ExportRequest("acme", PERIOD, dimensions=("user",), **secret), tmp_path / "u.csv")
    assert b"ann@acme.test" not in (tmp_path / "u.csv").read_bytes() and b"User ID" in (tmp_path / "u.csv").read_bytes()
    # Without users in the file there is nothing to hide, and the server writes it.
    monkeypatch.setattr(RowReader, "__iter__", None)
    export(built, ExportRequest("acme", PERIOD, dimensions=("model",), **secret), tmp_path / "v.csv")


def test_an_export_without_rows_is_a_header_and_adds_up_to_nothing(built: Database, tmp_path: Path):
    manifest = export(built, ExportRequest("acme", PERIOD, filters={"model": ("none",)}, names="raw"), tmp_path / "u.csv")
    assert manifest.row_count == 0 and set(manifest.totals.values()) == {0}
    assert (tmp_path / "u.csv").read_text().startswith("date,provider,") and (tmp_path / "u.csv").read_bytes().count(b"\n") == 1


def unpacked(path: Path, compression: str) -> bytes:
    with pa.input_stream(str(path), compression=None if compression == "none" else compression) as file:
        return bytes(file.read())
