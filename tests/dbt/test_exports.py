"""Exports from a built warehouse: totals equal the marts' and the records that were put in (corrections 37, 38)."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.dbt.usage_case import UsageCase, grouped, ids, known, summed, utc
from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.errors import UsageError
from tokentra_dagster.exports.columns import METRIC_COLUMNS
from tokentra_dagster.exports.export import export
from tokentra_dagster.exports.manifest import verify
from tokentra_dagster.exports.request import ExportRequest
from tokentra_dagster.usage_source import WarehouseUsage

JUNE = Period(utc("2026-06-01"), utc("2026-07-01"))
FIRST, LAST = datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 7, 1, tzinfo=UTC)
ADDITIVE = tuple(name for name, column in METRIC_COLUMNS.items() if column.additive)


def asked(**changes: Any) -> ExportRequest:
    return ExportRequest(**{"organization": "acme", "period": JUNE, "names": "raw", **changes})


def plain(value: Any) -> Any:
    return None if pd.isna(value) else value if isinstance(value, Decimal) else int(value)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("granularity", ["minute", "hour", "day", "month"])
@pytest.mark.parametrize("dimensions", [(), ("provider", "model", "team"), ("user",), ("user", "model", "api_key")], ids=str)
def test_totals_equal_the_marts_and_what_is_left_out_is_said(
    acme: UsageCase, tmp_path: Path, granularity: str, dimensions: tuple[str, ...]
):
    manifest = export(
        acme.database, asked(granularity=granularity, dimensions=dimensions, metrics=ADDITIVE), tmp_path / "usage.csv"
    )
    with acme.database.connect() as db:
        frame = WarehouseUsage(db, acme.org_id).frame(JUNE, dimensions, granularity)  # type: ignore[arg-type]
        whole = WarehouseUsage(db, acme.org_id).frame(JUNE)
    assert manifest.row_count == len(frame) == len(read(tmp_path / "usage.csv"))
    for name in ADDITIVE:
        expected = known(plain(value) for value in frame[name])
        assert manifest.totals[name] == expected, name
        column = [row[name] for row in read(tmp_path / "usage.csv") if row[name]]
        assert known(map(Decimal, column)) == expected
    for name in ("total_tokens", "record_count"):
        assert manifest.totals[name] + manifest.left_out[name] == whole[name].sum()
    assert (manifest.left_out["record_count"] > 0) == (granularity in ("minute", "hour"))


def test_a_row_says_what_plain_arithmetic_says_of_its_records(acme: UsageCase, tmp_path: Path):
    names = {identifier: name for name, identifier in ids(acme.database, "teams").items()}
    metrics = (
        "input_tokens",
        "cached_tokens",
        "error_count",
        "estimated_cost",
        "unpriced_tokens",
        "error_rate",
        "avg_latency_ms",
    )
    export(acme.database, asked(dimensions=("team", "model"), metrics=metrics), tmp_path / "usage.csv")
    expected = grouped(acme.within(FIRST, LAST), lambda u: (u.moment.date().isoformat(), u.of("team") or "", u.record.model))
    rows = read(tmp_path / "usage.csv")
    assert {(row["date"], row["team_name"], row["model"]) for row in rows} == set(expected) and len(rows) == len(expected)
    for row in rows:
        assert names.get(row["team_id"], "") == row["team_name"]
        wanted = summed(expected[row["date"], row["team_name"], row["model"]])
        for name in metrics:
            found = float(row[name]) if row[name] else None
            assert found == (None if wanted[name] is None else pytest.approx(float(wanted[name]))), (row, name)


def test_names_stand_beside_identifiers_where_the_specification_selects_columns_that_are_not_there(
    acme: UsageCase, tmp_path: Path
):
    """Correction 37: `select("date,team,project,cached_tokens")` of usage_records, as section 12.1 writes it."""
    with acme.database.connect() as db:
        there = {
            row["attname"]
            for row in db.execute("SELECT attname FROM pg_attribute WHERE attrelid = 'raw.usage_records'::regclass")
        }
    assert not {"team", "project", "date"} & there
    export(acme.database, asked(names="friendly"), tmp_path / "usage.csv")
    rows = read(tmp_path / "usage.csv")
    assert {"Date (UTC)", "Team ID", "Team", "Project ID", "Project", "Cached Tokens", "Estimated Cost (USD)"} <= set(rows[0])
    assert {row["Team"] for row in rows} == {"Research", "Search", ""}
    assert {row["Project"] for row in rows} == {"Chat", ""}
    assert {row["Team ID"] for row in rows} - {""} == {ids(acme.database, "teams")[name] for name in ("Research", "Search")}


def test_a_month_is_one_row_where_the_specification_gives_its_days(acme: UsageCase, tmp_path: Path):
    """Correction 37: its table for `monthly` is the daily rollup, row by row."""
    with acme.database.connect() as db:
        days = db.execute("SELECT DISTINCT date FROM marts.daily_usage_rollup WHERE org_id = %s", [acme.org_id]).fetchall()
    assert len(days) > 1
    manifest = export(acme.database, asked(granularity="monthly", dimensions=()), tmp_path / "usage.csv")
    (row,) = read(tmp_path / "usage.csv")
    assert row["month"] == "2026-06-01" and manifest.granularity == "month"
    assert int(row["total_tokens"]) == sum(u.record.input_tokens + u.record.output_tokens for u in acme.counted)


@pytest.mark.parametrize("name", ["Research", None])
def test_a_filter_takes_a_name_or_an_identifier(acme: UsageCase, tmp_path: Path, name: str | None):
    value = ids(acme.database, "teams")["Research"] if name is None else name
    manifest = export(acme.database, asked(filters={"team": [value]}, dimensions=()), tmp_path / "usage.csv")
    of_team = [u for u in acme.counted if u.of("team") == "Research"]
    assert manifest.totals["total_tokens"] == sum(u.record.input_tokens + u.record.output_tokens for u in of_team) > 0


def test_a_filter_keeps_several_values_and_usage_without_one(acme: UsageCase, tmp_path: Path):
    manifest = export(
        acme.database, asked(filters={"user": ["ann", "bob", None], "provider": ["google"]}), tmp_path / "usage.csv"
    )
    kept = [u for u in acme.counted if u.provider == "google" and u.of("user") in ("ann", "bob", None)]
    assert manifest.totals["request_count"] == len(kept) > 0


def test_a_filter_of_a_team_that_is_not_there_names_those_that_are(acme: UsageCase, tmp_path: Path):
    with pytest.raises(UsageError, match="team is 'Serach', which there is not; there are: Research, Search"):
        export(acme.database, asked(filters={"team": ["Serach"]}), tmp_path / "usage.csv")
    assert not list(tmp_path.iterdir())


def test_a_period_without_usage_gives_a_file_with_headers_and_a_manifest(acme: UsageCase, tmp_path: Path):
    """The specification answers `No data found` and writes none."""
    empty = Period(utc("2020-01-01"), utc("2020-02-01"))
    for format in ("csv", "xlsx", "json", "jsonl", "parquet"):
        manifest = export(acme.database, asked(period=empty, format=format, include_metadata=True), tmp_path / f"u.{format}")
        assert manifest.row_count == 0 and manifest.totals["total_tokens"] == 0 and manifest.freshness.newest_sync is None
        assert verify(tmp_path / f"u.{format}")["row_count"] == 0
    assert (tmp_path / "u.csv").read_text().startswith("date,provider,model,team_id,team_name")
    assert json.loads((tmp_path / "u.json").read_text())["data"] == []
    assert list(pd.read_parquet(tmp_path / "u.parquet").columns)[:3] == ["date", "provider", "model"]
    assert pd.read_excel(tmp_path / "u.xlsx", engine="calamine").columns[0] == "date"


def test_every_format_holds_the_same_rows(acme: UsageCase, tmp_path: Path):
    request = {"dimensions": ("user", "model"), "metrics": ("total_tokens", "estimated_cost"), "granularity": "hour"}
    manifests = {
        f: export(acme.database, asked(format=f, **request), tmp_path / f"u.{f}") for f in ("csv", "xlsx", "json", "parquet")
    }
    assert len({(m.row_count, tuple(m.totals.items())) for m in manifests.values()}) == 1
    parquet, excel = pd.read_parquet(tmp_path / "u.parquet"), pd.read_excel(tmp_path / "u.xlsx", engine="calamine")
    document = json.loads((tmp_path / "u.json").read_text(), parse_float=Decimal)["data"]
    assert document == [
        {name: None if pd.isna(value) else value for name, value in row.items()}
        | {"hour": row["hour"].strftime("%Y-%m-%dT%H:%M:%SZ")}
        for row in parquet.to_dict("records")
    ]
    assert excel["total_tokens"].tolist() == parquet["total_tokens"].tolist()
    assert excel["hour"].tolist() == parquet["hour"].dt.tz_localize(None).tolist()


def test_users_are_left_out_or_have_stable_pseudonyms(acme: UsageCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EXPORT_KEY", "a long secret of ours")
    request = {"dimensions": ("user", "model"), "metrics": ("total_tokens",), "granularity": "month"}
    private = {"users": "pseudonymised", "user_key": "env:EXPORT_KEY"}
    kept = export(acme.database, asked(**request), tmp_path / "kept.csv")
    export(acme.database, asked(**request, **private), tmp_path / "once.csv")
    export(acme.database, asked(**request, **private, filters={"user": ["ann"]}, include_metadata=True), tmp_path / "ann.csv")
    left_out = export(acme.database, asked(**request, users="left_out", filters={"user": ["ann"]}), tmp_path / "without.csv")
    rows, shown = read(tmp_path / "once.csv"), read(tmp_path / "kept.csv")
    assert "user_name" in shown[0] and "user_name" not in rows[0]
    assert len({row["user_id"] for row in rows}) == len({row["user_id"] for row in shown}) == 4
    tokens: dict[str, int] = defaultdict(int)
    for row in rows:
        tokens[row["user_id"]] += int(row["total_tokens"])
    (ann,) = {row["user_id"] for row in read(tmp_path / "ann.csv")}
    assert len(ann) == 64 and tokens[ann] == sum(int(row["total_tokens"]) for row in shown if row["user_id"] == "ann")
    assert "user_id" not in read(tmp_path / "without.csv")[0] and left_out.filters == {"user": ["(left out)"]}
    assert kept.totals["total_tokens"] == sum(tokens.values())
    for file in tmp_path.iterdir():
        assert file.name.startswith("kept") or not {"ann", "bob"} & set(file.read_text().replace('"', ",").split(",")), file


def test_the_manifest_names_the_newest_sync_and_the_days_that_may_change(acme: UsageCase, tmp_path: Path):
    manifest = export(acme.database, asked(), tmp_path / "usage.csv")
    with acme.database.connect() as db:
        newest = db.execute(
            "SELECT id FROM raw.sync_history WHERE org_id = %s AND status = 'completed' ORDER BY completed_at DESC, id LIMIT 1",
            [acme.org_id],
        ).fetchone()
        days = db.execute(
            "SELECT DISTINCT date FROM marts.usage_coverage WHERE org_id = %s AND is_authoritative AND is_provisional ORDER BY date",
            [acme.org_id],
        ).fetchall()
    said = verify(tmp_path / "usage.csv")
    assert newest and said["newest_sync"]["id"] == str(newest["id"]) and said["pending_syncs"] == 0
    assert said["provisional_days"] == [day["date"].isoformat() for day in days]
    assert said["time_zone"] == "UTC" and said["period"] == {"start": "2026-06-01T00:00:00Z", "end": "2026-07-01T00:00:00Z"}
    assert said["totals"]["estimated_cost"] == format(manifest.totals["estimated_cost"], "f")


def test_a_file_that_lost_its_end_is_not_what_its_manifest_describes(acme: UsageCase, tmp_path: Path):
    path = tmp_path / "usage.csv"
    export(acme.database, asked(), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UsageError, match="its manifest says"):
        verify(path)


def test_an_export_that_fails_leaves_the_file_that_was_there(acme: UsageCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "usage.csv"
    export(acme.database, asked(), path)
    before = path.read_bytes()
    monkeypatch.setattr("tokentra_dagster.exports.stream.BATCH_BYTES", 100)
    monkeypatch.setattr("tokentra_dagster.exports.writers.csv.CsvWriter.write_lines", _fail)
    with pytest.raises(OSError, match="No space left"):
        export(acme.database, asked(), path)
    assert path.read_bytes() == before and not (tmp_path / "usage.csv.part").exists()
    assert verify(path)


def _fail(*_: Any) -> None:
    raise OSError("No space left on device")


@pytest.mark.parametrize("organization", ["acme", "globex"])
def test_an_export_holds_one_organisation(acme: UsageCase, tmp_path: Path, organization: str):
    manifest = export(acme.database, asked(organization=organization, dimensions=()), tmp_path / "usage.csv")
    assert (manifest.totals["request_count"] == 24 * 200_000_000) == (organization == "globex")
