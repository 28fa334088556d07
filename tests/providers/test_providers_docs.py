"""docs/providers.md is true: its commands run, and its lists are those of the code."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.warehouse_data import one, rows
from tokentra_dagster.cli import cli
from tokentra_dagster.errors import PermanentError
from tokentra_dagster.ingest.assets import Outcome, evidence
from tokentra_dagster.ingest.sync import sync_connection
from tokentra_dagster.ingest.windows import aligned
from tokentra_dagster.providers import INTEGRATIONS, anthropic, openai
from tokentra_dagster.providers.openai_endpoints import ENDPOINTS
from tokentra_dagster.warehouse.directory import add_connection, add_organization, find_connection

OF_THE_PAGE = {name: INTEGRATIONS[name] for name in ("openai", "anthropic")}
PAGE = (Path(__file__).parents[2] / "docs" / "providers.md").read_text()
EXPECTED = {
    ("org", "add"): "Added acme",
    ("connection", "add"): ("Added acme/", "Changed acme/"),
    ("connection", "test"): ("acme/openai: openai: key accepted", "acme/anthropic: anthropic: key accepted"),
    ("sync", "--connection"): ("acme/openai: 1 records", "acme/anthropic: 0 records"),
}
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.splitlines() if line.strip()]


@pytest.fixture
def tokentra(database, tmp_path, secret):
    """Runs a command on this test's own database, with both keys in the environment: syncs as a process, others in this one."""
    env = {
        **os.environ, "TOKENTRA_DATABASE_URL": database.url, "TOKENTRA_HOME": str(tmp_path / "home"),
        "OPENAI_ADMIN_KEY": secret, "ANTHROPIC_ADMIN_KEY": secret, "COLUMNS": "200",
    }  # fmt: skip

    def run(*arguments: str) -> str:
        if arguments[0] != "sync":
            return CliRunner().invoke(cli, arguments, env=env, catch_exceptions=False).output
        command = [str(Path(sys.executable).parent / "tokentra"), *arguments]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_every_command_of_the_page_runs(tokentra, provider, database):
    """In order. Only the address is added, so that a local server stands where the providers are."""
    hour = {"start_time": 1780308000, "end_time": 1780311600}
    result = {
        "object": "organization.usage.completions.result", "input_tokens": 7, "output_tokens": 1, "num_model_requests": 1,
    }  # fmt: skip
    provider.on(
        "/v1/organization/usage/completions",
        lambda asked: {"data": [hour | {"results": [result]}] if asked.one("bucket_width") == "1h" else [], "has_more": False},
    )
    provider.on(
        "/v1/organizations/analytics/usage", lambda asked: {"data": [], "data_refreshed_at": "2026-06-07T00:00:00Z"}
    )  # fmt: skip
    addresses = {"openai": f"{provider.url}/v1", "anthropic": provider.url}
    assert len(COMMANDS) == 13
    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        assert program == "tokentra"
        if arguments[:2] == ["connection", "add"]:
            arguments += ["--base-url", addresses[arguments[arguments.index("--provider") + 1]]]
        said = tokentra(*arguments)
        assert said.startswith(EXPECTED[arguments[0], arguments[1]]), command + said
    assert one(database, "SELECT sum(input_tokens) FROM raw.usage_records") == 7
    settled = "SELECT extract(day FROM started_at - final_before)::int AS days, records_loaded AS n FROM raw.sync_history"
    assert [(row["days"], row["n"]) for row in rows(database, f"{settled} ORDER BY started_at")] == [(3, 1), (3, 0)]
    options = {row["name"]: row["options"] for row in rows(database, "SELECT name, options FROM app.provider_connections")}
    assert options["anthropic"] == {"timeout_seconds": "120", "max_retries": "6"}
    assert options["openai"] == {"costs": "off", "granularity": "1m"}


def test_connections_are_added_without_asking_the_provider(tokentra, provider):
    tokentra("org", "add", "acme")
    arguments = ["connection", "add", "--org", "acme", "--provider", "openai", "--name", "x", "--secret", "env:NOT_SET"]
    assert tokentra(*arguments, "--base-url", provider.url).startswith("Added acme/x")
    with pytest.raises(PermanentError, match=r"'dreams'.*completions, decisions"):
        tokentra(*arguments, "--option", "endpoints=dreams")
    assert provider.requests == []


def test_the_page_names_every_option_and_only_those():
    table = PAGE.split("| option | values")[1].split("\n\n")[0]
    named = set(re.findall(r"^\| `(\w+)`", table, re.M))
    assert named == {option for entry in OF_THE_PAGE.values() for option in entry.options} | {"granularity"}
    used = {pair.split("=")[0] for command in COMMANDS for pair in re.findall(r"--option (\S+)", command)}
    assert used == named


def test_the_page_tells_the_groupings_of_the_code():
    assert f"`{','.join(openai.COSTS_GROUP_BY)}`" in PAGE
    assert f"`{','.join(anthropic.GROUP_BY)}`" in PAGE
    words = {
        "project_id": "project", "user_id": "user", "api_key_id": "key", "service_tier": "service tier",
        "api_source": "API source", "vector_store_id": "vector store", "context_level": "context level",
    }  # fmt: skip
    table = PAGE.split("### OpenAI usage")[1].split("| endpoint |")[1].split("\n\n")[0]
    told = {
        name: line.rsplit("|", 2)[1].strip() for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert told == {name: ", ".join(words.get(by, by) for by in endpoint.group_by) for name, endpoint in ENDPOINTS.items()}


def test_the_page_tells_how_long_is_read_again():
    usage, costs = (
        {getattr(entry, name).days for entry in OF_THE_PAGE.values()} for name in ("settles_after", "costs_settle_after")
    )
    assert (usage, costs) == ({3}, {7})
    assert "the days of the last 3 days and one more | the days of the last 7 days and one more" in PAGE


def test_the_notes_of_a_run_tell_how_far_the_providers_figures_reach(database, provider, monkeypatch, secret, answer):
    """A whole sync through the connector, and what the Dagster asset shows of it."""
    monkeypatch.setenv("ANTHROPIC_ADMIN_KEY", secret)
    provider.on("/v1/organizations/analytics/usage", {"data": [], "data_refreshed_at": "2026-06-07T00:00:00Z"})
    provider.on("/v1/organizations/users", answer({"error": {"message": "no"}}, status=403))
    with database.connect() as db:
        add_organization(db, "acme", "UTC", "USD")
        add_connection(
            db,
            org="acme",
            name="a",
            provider="anthropic",
            source="provider_api",
            secret_ref="env:ANTHROPIC_ADMIN_KEY",
            base_url=provider.url,
            options={},
        )
        row = find_connection(db, "acme/a")
    june = aligned(datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 6, 2, tzinfo=UTC), "1h")
    result = sync_connection(database, row, june)
    notes = evidence([Outcome(row, result)])["notes"].value
    assert notes.splitlines() == [
        "- acme/a: Anthropic's figures reach to 2026-06-07T00:00:00Z.",
        "- acme/a: The key may not list users; their ids stay without names.",
    ]


def test_the_schedules_reach_back_as_far_as_the_page_says(database, tmp_path):
    code = """
import json
from datetime import UTC, datetime
import dagster as dg
from tokentra_dagster.ingest.schedules import SCHEDULES
from tokentra_dagster.resources import Warehouse
now = datetime(2026, 11, 24, 12, tzinfo=UTC)
found = {}
for schedule in SCHEDULES:
    with dg.DagsterInstance.ephemeral() as instance:
        context = dg.build_schedule_context(instance, resources={'warehouse': Warehouse()}, scheduled_execution_time=now)
        tick = schedule.evaluate_tick(context)
        if not tick.run_requests:
            assert tick.skip_message.startswith("No active connection reads "), tick
            continue
        (request,) = tick.run_requests
        days = [value for name, value in request.tags.items() if name.startswith("dagster/asset_partition_range")]
        found[schedule.name] = [schedule.cron_schedule, sorted(days)]
import sys
print(json.dumps(found), {'openai', 'anthropic'} & set(sys.modules))
"""
    with database.connect() as db:
        add_organization(db, "acme")
        for name in OF_THE_PAGE:
            add_connection(db, org="acme", name=name, provider=name, source="provider_api", secret_ref="env:KEY")
    env = {**os.environ, "TOKENTRA_DATABASE_URL": database.url, "TOKENTRA_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, imported = done.stdout.rsplit("} ", 1)
    assert imported.strip() == "set()"
    schedules = json.loads(found + "}")
    assert set(schedules) == {f"sync_{provider}_{every}" for provider in OF_THE_PAGE for every in ("hourly", "daily")}
    for name, (cron, days) in schedules.items():
        hourly = name.endswith("hourly")
        assert cron == ("5 * * * *" if hourly else "35 3 * * *")
        assert days == ["2026-11-20" if hourly else "2026-11-16", "2026-11-24"]
