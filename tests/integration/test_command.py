"""`tokentra` as a person runs it: a file in, rollups built, a summary out; and what it says when something is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.warehouse_data import one, rows

Run = Callable[..., subprocess.CompletedProcess[str]]
CSV = """timestamp,model,prompt_tokens,completion_tokens,user_id,team
2026-06-01T10:00:00Z,gpt-4o-2024-08-06,100,10,ann,Search
2026-06-01T10:30:00Z,gpt-4o-2024-08-06,200,20,bob,Search
2026-06-01T23:59:59Z,no-such-model,5,5,ann,
2026-06-02T00:00:00Z,gpt-4o-2024-08-06,1,1,ann,Ops
"""


@pytest.fixture
def tokentra(database, tmp_path: Path) -> Run:
    """Runs the command on this test's own database and folder."""
    env = {**os.environ, "TOKENTRA_DATABASE_URL": database.url, "TOKENTRA_HOME": str(tmp_path / "home"), "COLUMNS": "200"}

    def run(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).parent / "tokentra"), *arguments]
        return subprocess.run(command, env={**env, **extra}, cwd=tmp_path, capture_output=True, text=True)

    return run


def test_a_file_becomes_a_summary_and_the_history_shows_the_runs(tokentra, database, tmp_path):
    (tmp_path / "usage.csv").write_text(CSV)
    assert tokentra("org", "add", "acme").returncode == 0
    before = tokentra("summary", "--org", "acme", "--from", "2026-06-01", "--to", "2026-06-03")
    assert before.returncode == 1 and "tokentra build" in before.stderr and "Traceback" not in before.stderr
    imported = tokentra("import", "usage.csv", "--org", "acme", "--provider", "openai")
    assert imported.returncode == 0 and "4 records (0 replaced, 0 rejected)" in imported.stdout, imported.stderr
    assert "DEBUG" not in imported.stderr + imported.stdout
    built = tokentra("build")
    assert (built.returncode, built.stdout) == (0, "Built; every check passed.\n"), built.stderr
    found = json.loads(
        tokentra("summary", "--org", "acme", "--from", "2026-06-01", "--to", "2026-06-02", "--by", "model", "--json").stdout
    )
    assert [(r["value"], r["totalTokens"], r["totalRequests"], r["unpricedTokens"]) for r in found["items"]] == [
        ("gpt-4o-2024-08-06", 330, 2, 0),
        ("no-such-model", 10, 1, 10),
    ]
    assert found["items"][1]["estimatedCost"] is None
    teams = json.loads(
        tokentra("summary", "--org", "acme", "--from", "2026-06-01", "--to", "2026-06-03", "--by", "team", "--json").stdout
    )
    assert {r["value"]: r["totalTokens"] for r in teams["items"]} == {"Search": 330, None: 10, "Ops": 2}
    again = tokentra("import", "usage.csv", "--org", "acme", "--provider", "openai")
    assert "4 records (4 replaced, 0 rejected)" in again.stdout
    names = rows(database, "SELECT pipeline_name AS name, status FROM dagster.runs ORDER BY create_timestamp")
    assert [(r["name"], r["status"]) for r in names] == [
        ("import_job", "SUCCESS"),
        ("build_job", "SUCCESS"),
        ("import_job", "SUCCESS"),
    ]
    seen = one(
        database,
        "SELECT event FROM dagster.event_logs WHERE asset_key LIKE '%%daily_usage_rollup%%' AND dagster_event_type = 'ASSET_MATERIALIZATION'",
    )
    # The import of four records over two days is the one change that this build took in.
    assert "| acme | openai | import | 1 | 2026-06-01 10:00 | 2026-06-02 01:00 |" in seen and "up_to_change" in seen
    checks = one(database, "SELECT count(DISTINCT check_name) FROM dagster.asset_check_executions")
    assert checks >= 3
    # The specification's tables answer unqualified.
    for table in ("usage_records", "hourly_usage_rollup", "daily_usage_rollup"):
        assert one(database, f"SELECT sum(total_tokens)::int FROM {table}") == 342
    assert one(database, "SELECT count(*) FROM usage_quotas") == 0


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("summary", "--org", "nobody", "--from", "2026-06-01", "--to", "2026-06-02"), 2, "nobody"),
        (("summary", "--org", "acme", "--from", "June", "--to", "2026-06-02"), 2, "write a date like 2026-06-01"),
        (("summary", "--org", "acme", "--from", "2026-06-02", "--to", "2026-06-01"), 2, "period is empty"),
        (("sync", "--connection", "acme/nothing", "--from", "2026-06-01", "--to", "2026-06-02"), 2, "acme/nothing"),
        (("connection", "add", "--org", "acme", "--provider", "openai", "--name", "x", "--secret", "sk-secret"), 2, "env:"),
        (("connection", "test", "acme/nothing"), 2, "acme/nothing"),
    ],
)
def test_a_mistake_gets_one_sentence_and_no_traceback(tokentra, arguments, status, words):
    tokentra("org", "add", "acme")
    done = tokentra(*arguments)
    assert "Traceback" not in done.stderr and words in done.stderr, done.stderr
    assert done.returncode == status
    assert "sk-secret" not in done.stderr + done.stdout


def test_an_unknown_setting_is_refused_with_those_that_are_known(tokentra):
    done = tokentra("doctor", TOKENTRA_DATABSE_URL="x")
    assert (
        done.returncode == 1 and "TOKENTRA_DATABSE_URL is not a setting" in done.stderr and "TOKENTRA_DATABASE_URL" in done.stderr
    )


def test_a_database_that_is_not_there_is_said_in_one_sentence_without_its_password(tokentra):
    done = tokentra("org", "add", "acme", TOKENTRA_DATABASE_URL="postgresql://u:hidden@127.0.0.1:9/none")
    assert done.returncode == 1 and "127.0.0.1:9/none" in done.stderr
    assert "hidden" not in done.stderr and "Traceback" not in done.stderr


def test_reading_commands_import_neither_dagster_nor_arrow():
    code = "import sys; from tokentra_dagster.cli import cli; import tokentra_dagster.summary; print([m for m in ('dagster', 'pyarrow', 'sqlalchemy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_dagster_accepts_the_definitions(tmp_path: Path):
    command = [str(Path(sys.executable).parent / "dagster"), "definitions", "validate", "-m", "tokentra_dagster.definitions"]
    env = {**os.environ, "TOKENTRA_HOME": str(tmp_path / "home"), "DAGSTER_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
