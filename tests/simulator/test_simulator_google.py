"""Simulated Google through its SDKs and our own source: totals are the simulator's truth, request for request, token for token, cent for cent."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.providers.base import ConnectionConfig, Window
from tokentra_dagster.providers.google import GoogleSource
from tokentra_dagster.records import split
from tokentra_dagster.simulator.google_billing import billed, table_of
from tokentra_dagster.simulator.google_monitoring import GoogleMonitoring
from tokentra_dagster.simulator.google_streams import google_projects
from tokentra_dagster.simulator.server import RunningSimulator

NOW = datetime(2026, 11, 24, 13, 37, tzinfo=UTC)
DAY = datetime(2026, 11, 22, tzinfo=UTC)
ONE_DAY = Window(DAY, DAY + timedelta(days=1), "1h")


@pytest.fixture(scope="module")
def running():
    with RunningSimulator(now=NOW) as simulator:
        yield simulator


@pytest.fixture
def simulator(running):
    running.simulation.reset()
    return running


def source(simulator, org="acme", **options):
    given = {
        "projects": ",".join(google_projects(simulator.simulation.organisation(org))), "bigquery_endpoint": simulator.bigquery_url,
        "billing_table": table_of(org), "max_retries": "1", "timeout_seconds": "5",
    } | options  # fmt: skip
    return GoogleSource(ConnectionConfig("google", f"google-token-{org}", simulator.google_url, given), now=lambda: NOW)


def used(records):
    total = Counter()
    for r in records:
        total.update(
            requests=r.request_count, errors=r.error_count, successes=r.success_count, input=r.input_tokens, output=r.output_tokens,
            cached=r.cached_input_tokens or 0, written=r.cache_creation_tokens or 0, written_1h=r.token_details.get("cache_write_1h", 0),
            audio=r.token_details.get("input_audio", 0), milliseconds=r.total_latency_ms, measured=sum(r.latency_histogram.values()),
        )  # fmt: skip
    return dict(+total)


def true(simulator, org, start, end):
    of = Counter(simulator.simulation.totals(org, "google", "vertex", start, end))
    written, errors = of["cache_5m"] + of["cache_1h"], of["client_errors"] + of["server_errors"]
    return dict(+Counter({
        "requests": of["requests"], "errors": errors, "successes": of["requests"] - errors,
        "input": of["input"] + of["input_audio"] + of["uncached"] + of["cache_read"] + written, "output": of["output"],
        "cached": of["cache_read"], "written": written, "written_1h": of["cache_1h"], "audio": of["input_audio"],
        "milliseconds": of["latency_ms"], "measured": of["requests"],
    }))  # fmt: skip


@pytest.mark.parametrize("org", ["acme", "globex"])
@pytest.mark.parametrize("width", ["1m", "1h", "1d"])
def test_google_tells_the_truth_into_the_day_that_goes_on(simulator, org, width):
    window = Window(DAY + timedelta(days=2 if width == "1m" else -4), DAY + timedelta(days=3), width)
    opened = source(simulator, org)
    usage, _, rejected = split(opened.usage(window))
    assert rejected == [] and opened.remarks() == []
    assert used(usage) == true(simulator, org, window.start, window.end)


def test_the_bill_is_the_simulators_to_the_last_digit_page_by_page(simulator):
    window = Window(NOW.replace(hour=0, minute=0) - timedelta(days=40), NOW.replace(hour=0, minute=0) + timedelta(days=1), "1d")
    before = simulator.simulation.requests["google bigquery queries"]
    _, costs, rejected = split(source(simulator).costs(window))
    assert rejected == [] and simulator.simulation.requests["google bigquery queries"] > before + 1
    assert sum(c.amount for c in costs) == billed(simulator.simulation, "acme", window.start, window.end) > 0
    assert {c.model for c in costs} == {
        "gemini-2.5-flash", "gemini-2.5-pro", "gemini-2.5-flash-lite", "gemini-embedding", "claude-sonnet-4-5",
    }  # fmt: skip
    assert {c.metadata["service"] for c in costs} == {"Vertex AI"}
    (credited,) = {c.model for c in costs if "credits" in c.metadata}
    assert credited == "gemini-2.5-pro"


def test_what_was_provisioned_is_told_apart_and_billed_by_the_hour(simulator):
    opened = source(simulator, "globex")
    usage = split(opened.usage(Window(DAY, DAY + timedelta(days=1), "1d")))[0]
    assert {(r.provider_project_id, r.model, r.service_type, r.service_tier) for r in usage if r.service_type == "batch" or r.service_tier} == {
        ("globex-claims", "gemini-2.5-pro", "sync", "provisioned"), ("globex-claims", "gemini-2.5-flash-lite", "batch", None),
    }  # fmt: skip
    costs = split(opened.costs(ONE_DAY))[1]
    (units,) = [c for c in costs if c.model is None]
    assert (units.quantity, units.quantity_unit, units.provider_project_id) == (96, "hour", "globex-claims")
    assert not [c for c in costs if c.model == "gemini-2.5-pro"]


def test_projects_have_names_and_rules(simulator):
    names = {name.id for name in source(simulator).names()}
    usage = split(source(simulator).usage(Window(DAY, DAY + timedelta(days=1), "1d")))[0]
    assert {r.provider_project_id for r in usage} <= names
    rules = [rule["match_value"] for rule in simulator.simulation.attribution("acme") if rule["provider"] == "google"]
    assert {"acme-assistant", "acme-studio"} <= set(rules)


def test_what_is_withdrawn_disappears_from_usage_and_bill(simulator):
    simulator.simulation.withdraw("acme", "google", {"project_id": "acme-sandbox"})
    usage = split(source(simulator).usage(ONE_DAY))[0]
    assert used(usage) == true(simulator, "acme", ONE_DAY.start, ONE_DAY.end)
    assert not [r for r in usage if r.provider_project_id == "acme-sandbox"]
    assert not [c for c in split(source(simulator).costs(ONE_DAY))[1] if c.provider_project_id == "acme-sandbox"]


@pytest.mark.parametrize("kind", ["repeated_page_token", "invalid_page_token", "unknown_result", "unavailable", "overloaded"])
def test_pages_go_wrong_as_elsewhere(simulator, kind):
    window = Window(DAY - timedelta(days=28), DAY, "1h")
    simulator.simulation.fault(kind, "google", "token_count", skip=0)
    usage, _, rejected = split(source(simulator, details="none").usage(window))
    if kind == "unknown_result":
        assert {r.reason.partition(" have the type ")[2].split(";")[0] for r in rejected} == {"'telepathy'"}
    else:
        assert rejected == [] and sum(r.input_tokens for r in usage) == true(simulator, "acme", window.start, window.end)["input"]


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("revoked_key", PermanentError, "the login was not accepted"),
        ("forbidden", PermanentError, "BigQuery Data Viewer"),
        ("rate_limit", TransientError, "try again later"),
        ("server_error", TransientError, "try again later"),
        ("truncated_json", TransientError, "broke off or cannot be read"),
        ("dropped", TransientError, "could not reach Google"),
        ("timeout", TransientError, "timed out"),
    ],
)
def test_bigquery_fails_in_one_sentence_and_what_passes_is_asked_again(simulator, kind, error, said):
    honest = sum(c.amount for c in split(source(simulator).costs(ONE_DAY))[1])
    patience = {"timeout_seconds": "0.3"} if kind == "timeout" else {}
    simulator.simulation.fault(kind, "google", "bigquery queries", times=2, seconds=2)
    with pytest.raises(error, match=said) as raised:
        list(source(simulator, **patience).costs(ONE_DAY))
    assert "google-token-acme" not in str(raised.value) and "\n" not in str(raised.value)
    if error is TransientError:
        simulator.simulation.reset()
        simulator.simulation.fault(kind, "google", "bigquery queries", seconds=2)
        assert sum(c.amount for c in split(source(simulator, **patience).costs(ONE_DAY))[1]) == honest


def test_an_amount_that_is_none_is_rejected_and_not_lost(simulator):
    simulator.simulation.fault("bad_record", "google", "bigquery queries")
    _, costs, rejected = split(source(simulator).costs(ONE_DAY))
    assert costs and [r.reason for r in rejected] == [
        "google billing export: cost is Decimal('NaN'); a finite number is required"
    ]


def test_a_project_or_a_token_of_another_is_refused(simulator):
    with pytest.raises(PermanentError, match="Monitoring Viewer"):
        list(source(simulator, projects="globex-claims").usage(ONE_DAY))
    stranger = ConnectionConfig("google", "nobody", simulator.google_url, {"projects": "acme-assistant"})
    with pytest.raises(PermanentError, match="the login was not accepted"):
        list(GoogleSource(stranger, now=lambda: NOW).usage(ONE_DAY))


def test_a_grpc_port_that_is_taken_is_not_shared(simulator):
    """Two servers on one port would answer in turns."""
    port = int(simulator.google_url.rpartition(":")[2])
    with pytest.raises(Exception, match=f"cannot listen on 127.0.0.1:{port} for Google"):
        GoogleMonitoring(simulator.simulation, port=port)
