"""`tokentra export` as a person meets it: what it writes, what it says, what it refuses."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.warehouse_data import connection
from tokentra_dagster.cli import cli
from tokentra_dagster.errors import TokenTraError, UsageError
from tokentra_dagster.exports.columns import DIMENSION_COLUMNS, METRIC_COLUMNS
from tokentra_dagster.exports.focus.columns import DEFAULT_VERSION, VERSIONS
from tokentra_dagster.exports.manifest import verify
from tokentra_dagster.exports.request import COLUMN_NAMES, COMPRESSIONS, FORMATS, GRANULARITIES, PROFILES, USER_IDENTIFIERS
from tokentra_dagster.warehouse.database import Database

PERIOD = ("--from", "2026-06-01", "--to", "2026-07-01")
Run = Callable[..., Result]


@pytest.fixture
def run(built: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`tokentra export --org acme` of June in a folder of its own; an error of ours is raised as it is."""
    monkeypatch.chdir(tmp_path)
    env = {"TOKENTRA_DATABASE_URL": built.url, "TOKENTRA_HOME": str(tmp_path / "home")}

    def invoke(*arguments: str, org: str = "acme", period: tuple[str, ...] = PERIOD) -> Result:
        done = CliRunner().invoke(cli, ["export", "--org", org, *period, *arguments], env=env)
        if isinstance(done.exception, TokenTraError):
            raise done.exception
        return done

    return invoke


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_it_says_what_it_wrote_and_what_to_know_of_it(run: Run, tmp_path: Path):
    done = run()
    path = Path("tokentra_usage_2026-06-01_to_2026-06-30_day.csv")
    manifest = verify(path)
    assert manifest["row_count"] == len(read(path)) and done.exit_code == 0
    lines = done.output.splitlines()
    assert lines[0] == f"Wrote {manifest['row_count']} rows ({path.stat().st_size:,} bytes) to {path}."
    tokens, cost = manifest["totals"]["total_tokens"], manifest["totals"]["estimated_cost"]
    assert (
        lines[1]
        == f"Totals: {tokens:,} tokens, {manifest['totals']['request_count']:,} requests, {float(cost):,.2f} USD estimated cost."
    )
    assert lines[2] == f"Manifest: {path}.manifest.json"
    assert lines[3] == "Unpriced: 66 tokens without a known price, so the cost is of the others only."
    assert len(lines) == 4, "nothing else is to say of days that are final and whole"


def test_tokens_without_a_price_are_said_also_where_the_file_does_not_count_them(run: Run):
    assert "Unpriced: 66 tokens" in run("--metrics", "estimated_cost").output


def test_what_an_hourly_file_leaves_out_is_said(run: Run):
    assert "Left out: 3 records with 1,824 tokens known only by longer spans than the hour; --granularity day has all." in (
        run("--granularity", "hour").output
    )


def test_days_that_may_change_and_syncs_that_wait_are_said(built: Database, tmp_path: Path):
    from dataclasses import replace
    from datetime import UTC, date, datetime
    from uuid import uuid4

    from tests.exports.export_rows import PERIOD as JUNE
    from tokentra_dagster.commands.exporting import sentences
    from tokentra_dagster.exports.export import export
    from tokentra_dagster.exports.manifest import Freshness, NewestSync
    from tokentra_dagster.exports.request import ExportRequest

    request = ExportRequest("acme", JUNE)
    moment = datetime(2026, 6, 8, tzinfo=UTC)
    days = tuple(date(2026, 6, day) for day in range(1, 8))
    freshness = Freshness(NewestSync(uuid4(), "openai", moment, moment), 1, days, days[:1])
    manifest = replace(export(built, request, tmp_path / "u.csv"), freshness=freshness)
    said = sentences(manifest, request, None)
    assert (
        "Provisional: a provider may still change 2026-06-01, 2026-06-02, 2026-06-03, 2026-06-04, 2026-06-05 and 2 more days; "
        "export again later."
    ) in said
    assert "Incomplete: no sync has seen all of 2026-06-01; run `tokentra sync`." in said
    assert "Pending: 1 sync loaded after the last build and not in the file; run `tokentra build`." in said


def test_filters_of_one_dimension_add_up_and_an_empty_one_is_usage_without_a_value(run: Run):
    run("--filter", "team=Search", "--dimensions", "team", "--names", "raw", "--out", "one.csv")
    run("--filter", "team=Search", "--filter", "team=", "--dimensions", "team", "--names", "raw", "--out", "two.csv")
    assert {row["team_name"] for row in read(Path("one.csv"))} == {"Search"}
    assert {row["team_name"] for row in read(Path("two.csv"))} == {"Search", ""}


def test_no_dimensions_and_chosen_metrics(run: Run):
    run(
        "--dimensions",
        "",
        "--metrics",
        "total_tokens, record_count",
        "--granularity",
        "month",
        "--names",
        "raw",
        "--out",
        "u.csv",
    )
    (row,) = read(Path("u.csv"))
    assert row == {"month": "2026-06-01", "total_tokens": row["total_tokens"], "record_count": "13"}


def test_out_is_a_file_or_a_folder(run: Run, tmp_path: Path):
    (tmp_path / "folder").mkdir()
    run("--out", "folder", "--format", "jsonl", "--compression", "gzip")
    run("--out", "folder/mine.csv")
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == [
        "mine.csv", "mine.csv.manifest.json", "tokentra_usage_2026-06-01_to_2026-06-30_day.jsonl.gz",
        "tokentra_usage_2026-06-01_to_2026-06-30_day.jsonl.gz.manifest.json",
    ]  # fmt: skip


def test_standard_output_is_the_file_and_nothing_else(run: Run, tmp_path: Path):
    run("--out", "u.parquet", "--format", "parquet")
    done = run("--out", "-", "--format", "parquet")
    assert done.stdout_bytes == (tmp_path / "u.parquet").read_bytes() and "Totals: " in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["u.parquet", "u.parquet.manifest.json"]


def test_json_prints_the_manifest(run: Run):
    done = run("--json", "--profile", "focus", "--granularity", "hourly", "--out", "f.csv")
    assert json.loads(done.output) == json.loads(Path("f.csv.manifest.json").read_text())


@pytest.mark.parametrize(
    ("version", "words"), [("1.3", "all costs are estimates"), ("1.4", "BilledCost and EffectiveCost are 0")]
)
def test_a_focus_file_says_what_its_costs_are(run: Run, version: str, words: str):
    done = run("--profile", "focus", "--focus-version", version)
    assert f"FOCUS {version}: " in done.output and words in done.output and "marked in x_CostBasis" in done.output
    assert verify(Path(f"tokentra_focus-{version}_2026-06-01_to_2026-06-30_day.csv"))["focus_version"] == version


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--format", "xls"], "The format is 'xls'; it must be one of csv, json, jsonl, parquet, xlsx."),
        (["--filter", "team"], "--filter is 'team'; write DIMENSION=VALUE, or DIMENSION= for usage without a value."),
        (["--filter", "team=Serach"], "The filter of team is 'Serach', which there is not; there are: Search."),
        (["--metrics", "x"], "The metrics have no 'x'; there are total_tokens,"),
        (["--metrics", ""], "The export has no metrics"),
        (["--out", "nowhere/u.csv"], "--out is 'nowhere/u.csv', but there is no folder nowhere; make it first."),
        (["--out", "-", "--json"], "--out is -, so that standard output is the file; leave --json out."),
        (["--profile", "focus", "--names", "raw"], "A FOCUS export has the specification's column names; leave --names out."),
        (["--users", "pseudonymised"], "Pseudonymised users need a key"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_is_said_in_one_sentence_and_nothing_is_written(run: Run, tmp_path: Path, arguments: list[str], says: str):
    with pytest.raises(UsageError) as error:
        run(*arguments)
    assert str(error.value).startswith(says) and not [path for path in tmp_path.iterdir() if path.is_file()]


def test_an_empty_period_and_an_unknown_organisation_are_refused(run: Run):
    with pytest.raises(UsageError, match="The period is empty"):
        run(period=("--from", "2026-06-02", "--to", "2026-06-01"))
    with pytest.raises(UsageError, match="--to is 'tomorrow'; write a date"):
        run(period=("--from", "2026-06-02", "--to", "tomorrow"))
    with pytest.raises(TokenTraError, match="No organisation is named 'acmee'"):
        run(org="acmee")


@pytest.mark.parametrize("format", FORMATS)
def test_a_disk_that_fails_leaves_the_old_file(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str):
    out = f"u.{format}"
    run("--out", out, "--format", format)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tokentra_dagster.exports.export.content_hash", full)
    with pytest.raises(
        TokenTraError, match=rf"^{out} cannot be written: No space left on device; what was there before is unchanged\.$"
    ):
        run("--out", out, "--format", format)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_before_the_first_build_it_says_what_to_do(database: Database, tmp_path: Path):
    connection(database, org="acme")
    done = CliRunner().invoke(
        cli, ["export", "--org", "acme", *PERIOD, "--out", str(tmp_path)], env={"TOKENTRA_DATABASE_URL": database.url}
    )
    assert "run `tokentra sync` or `tokentra import`, then `tokentra build`" in str(done.exception)


def test_help_names_what_there_is_and_imports_no_arrow():
    code = "import sys\nfrom tokentra_dagster.cli import cli\ntry:\n cli(['export', '--help'])\nfinally:\n print({'pyarrow', 'numpy', 'dagster', 'psycopg'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    words = set(done.stdout.replace(",", " ").replace(".", " . ").replace(";", " ").replace(":", " ").split())
    expected = {*FORMATS, *GRANULARITIES, *COLUMN_NAMES, *COMPRESSIONS["csv"], *USER_IDENTIFIERS, *PROFILES}
    assert (
        expected <= words and all(version in done.stdout for version in VERSIONS) and f"Default: {DEFAULT_VERSION}" in done.stdout
    )
    assert done.stdout.endswith("set()\n") and {"provider", "model", "team"} <= set(DIMENSION_COLUMNS) and METRIC_COLUMNS


def test_an_export_imports_no_dagster(built: Database, tmp_path: Path):
    code = "import sys\nfrom tokentra_dagster.cli import cli\ncli(sys.argv[1:], standalone_mode=False)\nprint({'dagster', 'sqlalchemy'} & set(sys.modules))"
    command = [sys.executable, "-c", code, "export", "--org", "acme", *PERIOD, "--profile", "focus", "--out", str(tmp_path)]
    env = {"TOKENTRA_DATABASE_URL": built.url, "PATH": "", "PYTHONPATH": ":".join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.stdout.endswith("set()\n"), done.stderr
