"""docs/providers-azure.md is true: its commands run, its options are those of the code, its role allows what is asked."""

from __future__ import annotations

import json
import os
import re
import shlex
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.providers import azure_server
from tests.warehouse_data import one, rows
from tokentra_dagster.cli import cli
from tokentra_dagster.ingest.sync import sync_connection
from tokentra_dagster.ingest.windows import aligned
from tokentra_dagster.providers import INTEGRATIONS, azure, azure_metrics
from tokentra_dagster.providers.azure_cost_export import WORDS
from tokentra_dagster.providers.options import COMMON
from tokentra_dagster.warehouse.directory import find_connection

PAGE = (Path(__file__).parents[2] / "docs" / "providers-azure.md").read_text()
COMMANDS = [text for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for text in block.splitlines() if text.strip()]
DAY = datetime(2026, 11, 20, tzinfo=UTC)


@pytest.fixture
def tokentra(database, tmp_path):
    env = {
        **os.environ, "TOKENTRA_DATABASE_URL": database.url, "TOKENTRA_HOME": str(tmp_path / "home"),
        "AZURE_USAGE_SECRET": azure_server.TOKEN, "COLUMNS": "200",
    }  # fmt: skip
    return lambda *arguments: CliRunner().invoke(cli, arguments, env=env, catch_exceptions=False).output


def test_every_command_of_the_page_runs(tokentra, database, monkeypatch):
    """In order. Only the address is added; a sync runs the same code without Dagster around it."""
    monkeypatch.setenv("AZURE_USAGE_SECRET", azure_server.TOKEN)
    monkeypatch.setattr(azure, "KEPT", timedelta(days=36_500))  # the page's dates do not move
    of = {"ModelDeploymentName": "chat", "ModelName": "gpt-4o", "ModelVersion": "2024-08-06"}
    with azure_server.running() as server:
        server.deploy("chat", "gpt-4o", "2024-08-06", "GlobalStandard")
        server.put("InputTokens", DAY, 1_000_000, **of)
        server.put("OutputTokens", DAY, 0, **of)
        server.put("ModelRequests", DAY, 9, **of, StatusCode="200")
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
                sync_connection(database, connection, aligned(start, end, "1h"))
                continue
            said[tuple(arguments[:2])] = tokentra(*arguments)
            assert said[tuple(arguments[:2])].startswith(
                ("Added acme", "Changed acme/", "acme/azure: azure: login accepted; 1 accounts")
            )
    assert len(COMMANDS) == 6 and len(said) == 3
    found = rows(
        database, "SELECT model, model_family, input_tokens, request_count, cost_basis, estimated_cost FROM raw.usage_records"
    )
    assert [(*row.values(),)[:5] for row in found] == [("gpt-4o-2024-08-06", "gpt-4o", 1_000_000, 9, "estimate")]
    assert found[0]["estimated_cost"] == 2.5
    assert one(database, "SELECT count(*) FROM raw.sync_history WHERE status = 'completed'") == 1


def test_the_page_names_every_option_and_only_those():
    table = PAGE.split("| option |")[1].split("\n\n")[0]
    named = {name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert named == set(INTEGRATIONS["azure"].options) == {*azure.OPTIONS, *COMMON}
    used = {pair.split("=")[0] for command in COMMANDS for pair in re.findall(r"--option (\S+)", command)}
    assert used == named


def test_the_page_tells_the_metrics_the_words_and_how_far_back_is_read():
    role = json.loads(PAGE.split("```json\n")[1].split("```")[0])
    assert {action.rpartition("/")[0] for action in role["Actions"]} == {
        "Microsoft.Insights/metrics", "Microsoft.CognitiveServices/accounts", "Microsoft.CognitiveServices/accounts/deployments",
    }  # fmt: skip
    for family in azure_metrics.FAMILIES.values():
        for metric in azure_metrics.questions(family, azure_metrics.DETAILS)[1].metrics:
            assert f"`{metric}`" in PAGE
    assert f"`{','.join(WORDS)}`" in PAGE and f"`{','.join(azure_metrics.DETAILS)}`" in PAGE
    entry = INTEGRATIONS["azure"]
    assert (entry.settles_after, entry.costs_settle_after) == (timedelta(days=3), timedelta(days=7))
    assert f"keeps metrics for {azure_metrics.KEPT.days} days" in PAGE
