"""The simulated gateway through our own sources: what it tells is what OpenAI counts for the same streams, under other names."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.providers import open_source
from tokentra_dagster.providers.base import ConnectionConfig, Window
from tokentra_dagster.records import split
from tokentra_dagster.simulator import gateway
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
