"""docs/exports.md is true: its commands run, in its order, and its tables are those of the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tokentra_dagster.exports.columns import DIMENSION_COLUMNS
from tokentra_dagster.exports.focus.charges import BASES
from tokentra_dagster.exports.focus.columns import TOKEN_COLUMNS, VERSIONS, focus_columns
from tokentra_dagster.exports.manifest import verify
from tokentra_dagster.exports.request import COMPRESSIONS, GRANULARITIES
from tokentra_dagster.warehouse.database import Database

PAGE = (Path(__file__).parents[2] / "docs" / "exports.md").read_text()
FILE = "tokentra_usage_2026-06-01_to_2026-06-30_day.csv"


def sections(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def done(built: Database, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder in which every command of the page ran, and what each printed."""
    folder = tmp_path_factory.mktemp("exports")
    env = {
        **os.environ, "TOKENTRA_DATABASE_URL": built.url, "TOKENTRA_HOME": str(folder / "home"), "EXPORT_KEY": "a long secret of ours",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    printed = {}
    for line in (line for block in sections("sh") for line in block.splitlines()):
        ran = subprocess.run(["bash", "-euo", "pipefail", "-c", line], cwd=folder, env=env, capture_output=True, text=True)
        assert ran.returncode == 0, f"{line}\n{ran.stderr}"
        printed[line] = ran.stdout
    return folder, printed


def said(printed: dict[str, str], words: str) -> str:
    (found,) = [output for line, output in printed.items() if words in line]
    return found


def test_every_command_runs_and_writes_whole_files(done: tuple[Path, dict[str, str]]):
    folder, printed = done
    files = {path.name for path in folder.iterdir() if path.is_file() and "manifest" not in path.name}
    assert files == {
        FILE, FILE.replace("day", "hour"), "pseudonyms.csv", "tokentra_focus-1.3_2026-06-01_to_2026-06-30_day.parquet",
    }  # fmt: skip
    assert all(verify(folder / name)["row_count"] for name in files)
    assert said(printed, "head -1").startswith('{"date": "2026-06-01", "provider": ')
    assert said(printed, "sha256sum").split()[0] in said(printed, "grep sha256")
    assert "ann@acme" not in (folder / "pseudonyms.csv").read_text()


def test_the_python_example_says_what_the_manifest_says(
    done: tuple[Path, dict[str, str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(done[0])
    exec(sections("python")[0], {})
    manifest = verify(Path(FILE))
    assert capsys.readouterr().out == f"{manifest['row_count']} {manifest['totals']['total_tokens']}\n"


def test_the_tables_name_what_there_is():
    rows = {match[0]: match[1] for match in re.findall(r"^\| `(\w+)`(?:, `\w+`)* \| ([^|]*) \|", PAGE, re.MULTILINE)}
    for format in ("csv", "json", "parquet"):
        assert tuple(re.findall(r"`(\w+)`", rows[format])) == COMPRESSIONS[format]
    assert re.findall(r"`(\w+)`", PAGE.split("- `--granularity`: ")[1].split(". ")[0]) == list(GRANULARITIES)
    listed = re.findall(r"`(\w+)`", PAGE.split("- `--dimensions`: ")[1].split(";")[0])
    assert set(listed) == set(DIMENSION_COLUMNS)


def test_every_column_of_ours_and_every_basis_is_explained():
    for version in VERSIONS:
        assert f"{version}" in PAGE
        ours = [column.name for column in focus_columns(version, tuple(DIMENSION_COLUMNS), "USD") if column.name.startswith("x_")]
        assert ours and set(TOKEN_COLUMNS) < set(ours) and all(f"`{name}`" in PAGE for name in ours)
    assert all(f"`{basis}`" in PAGE for basis in BASES)
