"""docs/providers-google.md is true: its commands run, its options are those of the code, its metrics and words are those that are read."""

from __future__ import annotations

import os
import re
import shlex
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.providers import google_server
from tests.warehouse_data import one, rows
from tokentra_dagster.cli import cli
from tokentra_dagster.ingest.sync import sync_connection
from tokentra_dagster.ingest.windows import aligned
from tokentra_dagster.providers import INTEGRATIONS, google, google_metrics, google_usage
from tokentra_dagster.providers.google_billing import WORDS
from tokentra_dagster.providers.options import COMMON
from tokentra_dagster.warehouse.directory import find_connection

PAGE = (Path(__file__).parents[2] / "docs" / "providers-google.md").read_text()
COMMANDS = [text for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for text in block.splitlines() if text.strip()]
DAY = datetime(2026, 11, 20, tzinfo=UTC)
SECRET = "TOPSECRET-access-token"


@pytest.fixture
def tokentra(database, tmp_path):
    env = {
        **os.environ, "TOKENTRA_DATABASE_URL": database.url, "TOKENTRA_HOME": str(tmp_path / "home"),
        "GOOGLE_USAGE_KEY": SECRET, "COLUMNS": "200",
    }  # fmt: skip
    return lambda *arguments: CliRunner().invoke(cli, arguments, env=env, catch_exceptions=False).output


def test_every_command_of_the_page_runs(tokentra, database, monkeypatch):
    """In order. Only the address is added; a sync runs the same code without Dagster around it."""
    monkeypatch.setenv("GOOGLE_USAGE_KEY", SECRET)
    monkeypatch.setattr(google, "RETENTION_DAYS", 3_600)  # the page's dates do not move
    with google_server.running() as server:
        server.put("token_count", DAY, 1_000_000, project="acme-assistant", type="input")
        server.put("token_count", DAY, 500_000, project="acme-search", type="output")
        server.put("model_invocation_count", DAY, 9, project="acme-assistant", response_code="200")
        told = google_server.distribution("explicit", [0, 9, 0], 150.0, bounds=[100.0, 200.0])
        server.put("model_invocation_latencies", DAY, told, project="acme-assistant", latency_type="total")
        said = {}
        for command in COMMANDS:
            program, *arguments = shlex.split(command)
            assert program == "tokentra"
            if arguments[:2] == ["connection", "add"]:
                arguments += ["--base-url", server.url]
            if arguments[0] == "sync":
                with database.connect() as db:
                    connection = find_connection(db, arguments[2])
                start, end = (datetime.fromisoformat(text).replace(tzinfo=UTC) for text in arguments[4::2])
                sync_connection(database, connection, aligned(start, end, "1h"), now=DAY + timedelta(days=2))
                continue
            said[tuple(arguments[:2])] = tokentra(*arguments)
            assert said[tuple(arguments[:2])].startswith(
                ("Added acme", "Changed acme/", "acme/google: google: login accepted; 2 projects can be read")
            )
    assert len(COMMANDS) == 6 and len(said) == 3
    found = rows(
        database,
        "SELECT provider_project_id, model_family, input_tokens, output_tokens, request_count, p50_latency_ms, cost_basis, estimated_cost "
        "FROM raw.usage_records ORDER BY 1",
    )
    assert [(*row.values(),)[:4] for row in found] == [
        ("acme-assistant", "gemini-flash", 1_000_000, 0), ("acme-search", "gemini-flash", 0, 500_000),
    ]  # fmt: skip
    assert found[0]["request_count"] == 9 and found[0]["p50_latency_ms"] == pytest.approx(150, rel=0.03)
    assert [(row["cost_basis"], float(row["estimated_cost"])) for row in found] == [("estimate", 0.3), ("estimate", 1.25)]
    assert one(database, "SELECT count(*) FROM raw.sync_history WHERE status = 'completed'") == 1


def test_the_page_names_every_option_and_only_those():
    table = PAGE.split("| option |")[1].split("\n\n")[0]
    named = {name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert named == set(INTEGRATIONS["google"].options) == {*google.OPTIONS, *COMMON}
    used = {pair.split("=")[0] for command in COMMANDS for pair in re.findall(r"--option (\S+)", command)}
    assert used == named


def test_the_page_tells_the_metrics_the_types_the_words_and_how_far_back_is_read():
    for name in (*google_metrics.COUNTED, *google.DETAILS.values(), *google_usage.CACHES, "input", "output"):
        assert f"`{name}`" in PAGE
    assert f"`{','.join(WORDS)}`" in PAGE and f"`{','.join(google.DETAILS)}`" in PAGE
    entry = INTEGRATIONS["google"]
    assert (entry.settles_after, entry.costs_settle_after) == (timedelta(days=3), timedelta(days=7))
    assert f"keeps these metrics for {google.RETENTION_DAYS} days" in PAGE and f"`{google.RETENTION_DAYS}`" in PAGE
