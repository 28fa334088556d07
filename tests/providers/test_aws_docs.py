"""docs/providers-aws.md is true: its commands run, its options are those of the code, its policy is JSON."""

from __future__ import annotations

import json
import os
import re
import shlex
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.providers.aws_bucket import SECRET
from tests.providers.aws_server import AwsServer
from tests.providers.test_aws_invocation_logs import line
from tests.warehouse_data import one, rows
from tokentra_dagster.cli import cli
from tokentra_dagster.ingest.sync import sync_connection
from tokentra_dagster.ingest.windows import aligned
from tokentra_dagster.providers import INTEGRATIONS, aws, aws_invocation_logs
from tokentra_dagster.providers.aws_cost_lines import COSTS, REQUIRED
from tokentra_dagster.providers.options import COMMON
from tokentra_dagster.warehouse.directory import find_connection

PAGE = (Path(__file__).parents[2] / "docs" / "providers-aws.md").read_text()
COMMANDS = [text for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for text in block.splitlines() if text.strip()]
DAY = datetime(2026, 11, 20, tzinfo=UTC)


@pytest.fixture
def tokentra(database, tmp_path):
    env = {
        **os.environ, "TOKENTRA_DATABASE_URL": database.url, "TOKENTRA_HOME": str(tmp_path / "home"), "AWS_USAGE_KEY": SECRET, "COLUMNS": "200",
    }  # fmt: skip
    return lambda *arguments: CliRunner().invoke(cli, arguments, env=env, catch_exceptions=False).output


def test_every_command_of_the_page_runs(tokentra, database, monkeypatch):
    """In order. Only the address is added; a sync runs the same code without Dagster around it."""
    monkeypatch.setenv("AWS_USAGE_KEY", SECRET)
    monkeypatch.setitem(aws.KEPT, "1h", timedelta(days=36_500))  # the page's dates do not move
    server = AwsServer()
    model = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
    for metric, value in (("Invocations", 1), ("InputTokenCount", 5), ("CacheReadInputTokens", 2)):
        server.put(metric, {"ModelId": model}, DAY, value)
    expected = {
        ("org", "add"): "Added acme",
        ("connection", "add"): ("Added acme/", "Changed acme/"),
        ("connection", "test"): (
            "acme/bedrock: aws: key accepted; CloudWatch lists Bedrock usage of 1 models in us-east-1",
            "acme/bedrock-log: aws_invocation_logs: key accepted; s3://acme-logs/bedrock/ holds the log of 123456789012 in us-east-1",
        ),
    }
    assert len(COMMANDS) == 11
    try:
        server.log(DAY, [line(DAY), line(DAY)])
        for command in COMMANDS:
            program, *arguments = shlex.split(command)
            assert program == "tokentra"
            if arguments[:2] == ["connection", "add"]:
                arguments += ["--base-url", server.url]
            if arguments[0] == "sync":
                with database.connect() as db:
                    connection = find_connection(db, arguments[2])
                sync_connection(
                    database,
                    connection,
                    aligned(*(datetime.fromisoformat(a).replace(tzinfo=UTC) for a in arguments[4::2]), "1h"),
                )
                continue
            said = tokentra(*arguments)
            assert said.startswith(expected[arguments[0], arguments[1]]), command + said
    finally:
        server.stop()
    found = rows(
        database, "SELECT source, model_family, input_tokens, cached_input_tokens, request_count, cost_basis FROM raw.usage_records ORDER BY source"
    )  # fmt: skip
    assert [tuple(row.values()) for row in found] == [
        ("gateway", "claude-sonnet", 2, None, 1, "estimate"), *[("provider_api", "claude-sonnet", 7, 2, 1, "estimate")] * 2,
    ]  # fmt: skip
    assert one(database, "SELECT count(*) FROM raw.sync_history WHERE status = 'completed'") == 2


def test_the_page_names_every_option_and_only_those():
    table = PAGE.split("| option | of |")[1].split("\n\n")[0]
    of = {name: line.split("|")[2].strip() for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    for integration, word, module in (("aws", "`aws`", aws), ("aws_invocation_logs", "log", aws_invocation_logs)):
        options = set(INTEGRATIONS[integration].options)
        assert options == {*module.OPTIONS, *COMMON}
        assert options == {name for name, where in of.items() if where in ("both", word)}
    used = {pair.split("=")[0] for command in COMMANDS for pair in re.findall(r"--option (\S+)", command)}
    assert used == set(of)


def test_the_policy_is_json_and_allows_what_the_code_asks_for():
    policy = json.loads(PAGE.split("```json\n")[1].split("```")[0])
    assert {action for statement in policy["Statement"] for action in statement["Action"]} == {
        "cloudwatch:ListMetrics", "cloudwatch:GetMetricData", "bedrock:ListInferenceProfiles", "bedrock:ListFoundationModels",
        "s3:ListBucket", "s3:GetObject",
    }  # fmt: skip
    assert {statement["Effect"] for statement in policy["Statement"]} == {"Allow"}


def test_the_page_tells_the_columns_and_how_far_back_is_read():
    assert all(f"`{name}`" in PAGE for name in (*REQUIRED, COSTS["unblended"]))
    assert (INTEGRATIONS["aws"].settles_after, INTEGRATIONS["aws"].costs_settle_after) == (timedelta(days=3), timedelta(days=12))
    assert "the days of the last 12 days and one more" in PAGE
    # The daily sync asks for no more than CloudWatch lists, and keeps, in whatever width.
    reach = INTEGRATIONS["aws"].costs_settle_after + timedelta(days=2)
    assert reach <= aws.LISTED < aws.KEPT["1m"]
    assert INTEGRATIONS["aws_invocation_logs"].settles_after == timedelta(days=1)
    for width, kept in (("minutes", aws.KEPT["1m"]), ("hours", aws.KEPT["1h"])):
        assert f"{width} for {kept.days} days" in PAGE
