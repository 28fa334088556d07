"""docs/coding-tools.md is true: its commands run on logs as the tools write them, and its options are those of the code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from click.testing import CliRunner

from tests.providers.test_session_logs import END, START, TOOLS
from tests.warehouse_data import rows
from tokentra_dagster.cli import cli
from tokentra_dagster.ingest.sync import OWN_OPTIONS
from tokentra_dagster.providers import INTEGRATIONS
from tokentra_dagster.simulator.session_logs import requests

PAGE = (Path(__file__).parents[2] / "docs" / "coding-tools.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.splitlines()]


def test_every_command_of_the_page_runs(database, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKENTRA_DATABASE_URL", database.url)
    monkeypatch.setenv("TOKENTRA_HOME", str(tmp_path / "home"))
    for tool, place in (("claude_code", "logs/claude/ann"), ("codex", "logs/codex")):
        TOOLS[tool][1](tmp_path / place, requests(1, START, END, TOOLS[tool][2], 50))
    said = {}
    for command in COMMANDS:
        done = CliRunner().invoke(cli, shlex.split(command)[1:], catch_exceptions=False)
        assert done.exit_code == 0, (command, done.output)
        said[command] = done.output
    assert "session logs in logs/claude" in said["tokentra connection test acme/claude-code"]
    found = rows(
        database,
        "SELECT c.integration, r.source, sum(r.request_count)::int AS requests, sum(r.estimated_cost) AS cost, array_agg(DISTINCT r.user_ids[1]) AS users "
        "FROM raw.usage_records AS r JOIN app.provider_connections AS c ON c.id = r.provider_connection_id GROUP BY 1, 2 ORDER BY 1",
    )
    assert [tuple(row.values()) for row in found] == [
        ("claude_code", "provider_api", 50, 0, ["ann"]), ("codex", "provider_api", 50, 0, ["ann"]),
    ]  # fmt: skip


def test_with_an_api_key_the_log_stands_beside_the_providers_report(database, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENTRA_DATABASE_URL", database.url)
    monkeypatch.setenv("TOKENTRA_HOME", str(tmp_path / "home"))
    for arguments in (
        "org add acme",
        f"connection add --org acme --provider anthropic --integration claude_code --name cc --option folder={tmp_path} --option billing=api",
    ):
        assert CliRunner().invoke(cli, arguments.split(), catch_exceptions=False).exit_code == 0
    assert rows(database, "SELECT source FROM app.provider_connections") == [{"source": "file"}]


def test_the_page_names_every_option_and_only_those():
    of_the_page = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.M))
    for tool in TOOLS:
        assert of_the_page == {*INTEGRATIONS[tool].options, "granularity"}
    assert "granularity" in OWN_OPTIONS
