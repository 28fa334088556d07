"""Simulated Azure through its SDK and our own source: totals are the simulator's truth, request for request, token for token."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from tokentra_dagster.providers.azure import AzureSource
from tokentra_dagster.providers.base import ConnectionConfig, Window
from tokentra_dagster.records import split
from tokentra_dagster.simulator import azure_bill
from tokentra_dagster.simulator.azure_streams import SUBSCRIPTIONS
from tokentra_dagster.simulator.gateway_files import write_azure_costs
from tokentra_dagster.simulator.server import RunningSimulator

NOW = datetime(2026, 11, 24, 13, 37, tzinfo=UTC)
DAY = datetime(2026, 11, 22, tzinfo=UTC)


@pytest.fixture(scope="module")
def running():
    with RunningSimulator(now=NOW) as simulator:
        yield simulator


@pytest.fixture
def simulator(running):
    running.simulation.reset()
    return running


def source(simulator, org, **options):
    given = {"subscriptions": SUBSCRIPTIONS[org], "max_retries": "1"} | options
    return AzureSource(ConnectionConfig("azure", f"azure-token-{org}", simulator.azure_url, given), now=lambda: NOW)


def used(records):
    total = Counter()
    for r in records:
        total.update(
            requests=r.request_count, errors=r.error_count, successes=r.success_count, input=r.input_tokens, output=r.output_tokens,
            cached=r.cached_input_tokens or 0, written=r.cache_creation_tokens or 0, written_1h=r.token_details.get("cache_write_1h", 0),
        )  # fmt: skip
    return dict(total)


def true(simulator, org, start, end):
    of = simulator.simulation.totals(org, "azure", "models", start, end)
    written, errors = of["cache_5m"] + of["cache_1h"], of["client_errors"] + of["server_errors"]
    return {
        "requests": of["requests"], "errors": errors, "successes": of["requests"] - errors,
        "input": of.get("input", 0) + of["uncached"] + of["cache_read"] + written, "output": of["output"],
        "cached": of["cache_read"], "written": written, "written_1h": of["cache_1h"],
    }  # fmt: skip


@pytest.mark.parametrize("org", ["acme", "globex"])
@pytest.mark.parametrize("width", ["1m", "1h", "1d"])
def test_azure_tells_the_truth(simulator, org, width):
    days = 1 if width == "1m" else 7
    window = Window(DAY + timedelta(days=2 - days), DAY + timedelta(days=2), width)
    opened = source(simulator, org)
    usage, _, rejected = split(opened.usage(window))
    assert rejected == [] and opened.remarks() == []
    assert used(usage) == true(simulator, org, window.start, window.end)


def test_both_families_tell_the_same_of_openai_models_and_are_never_added(simulator):
    window = Window(DAY, DAY + timedelta(days=1), "1h")
    newer, older = (split(source(simulator, "acme", metrics=name).usage(window))[0] for name in ("models", "azure_openai"))
    of_openai = [r for r in newer if not r.model.startswith("claude")]
    assert 0 < len(of_openai) == len(older) < len(newer)
    assert used(of_openai) == used(older)
    assert {r.model for r in older} == {r.model for r in of_openai}


def test_deployments_are_named_by_account_and_matched_by_the_rules(simulator):
    opened = source(simulator, "acme")
    names = {name.id for name in opened.names()}
    usage = split(opened.usage(Window(DAY, DAY + timedelta(days=1), "1d")))[0]
    assert {r.provider_project_id for r in usage} <= names
    assert "acme-eastus2/assistant-gpt-4.1" in names
    rules = [rule for rule in simulator.simulation.attribution("acme") if rule["provider"] == "azure"]
    assert {"*/assistant-*", "*/studio-*"} <= {rule["match_value"] for rule in rules}


def test_batch_and_provisioned_deployments_are_told_apart(simulator):
    window = Window(DAY, DAY + timedelta(days=1), "1d")
    kinds = {
        (r.metadata["deployment"], r.service_type, r.service_tier)
        for org in ("acme", "globex")
        for r in split(source(simulator, org).usage(window))[0]
        if r.service_type == "batch" or r.service_tier
    }
    assert kinds == {("insights-gpt-4o-mini", "batch", None), ("claims-gpt-4.1", "sync", "provisioned")}


def test_the_bill_is_what_the_simulator_charges(simulator, tmp_path):
    org = simulator.simulation.organisation("acme")
    start = datetime(2026, 10, 30, tzinfo=UTC)
    write_azure_costs(simulator.simulation, org, tmp_path, start, DAY)
    opened = source(simulator, "acme", cost_export=str(tmp_path))
    _, costs, rejected = split(opened.costs(Window(start, start + timedelta(days=4), "1h")))
    assert rejected == [] and opened.remarks() == []
    assert sum(c.amount for c in costs) == azure_bill.billed(simulator.simulation, org, start, start + timedelta(days=4)) > 0
    assert {"gpt-4.1", "gpt-4o-mini", "claude-sonnet-4-5"} <= {c.model for c in costs}
    write_azure_costs(
        simulator.simulation, simulator.simulation.organisation("globex"), tmp_path / "globex", DAY, DAY + timedelta(days=1)
    )
    of_globex = split(
        source(simulator, "globex", cost_export=str(tmp_path / "globex")).costs(Window(DAY, DAY + timedelta(days=1), "1d"))
    )[1]
    assert [c.amount for c in of_globex if c.line_item == "Provisioned Managed Unit"] == [24 * 50]


def test_what_is_withdrawn_disappears(simulator):
    window = Window(DAY, DAY + timedelta(days=1), "1h")
    simulator.simulation.withdraw("acme", "azure", {"deployment": "sandbox-gpt-4o"})
    usage = split(source(simulator, "acme").usage(window))[0]
    assert used(usage) == true(simulator, "acme", window.start, window.end)
    assert not [r for r in usage if r.metadata["deployment"] == "sandbox-gpt-4o"]
