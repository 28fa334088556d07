"""Simulated AWS through boto3 and our own sources: their totals are the simulator's truth, token for token."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from tokentra_dagster.errors import TransientError
from tokentra_dagster.providers.aws import AwsSource
from tokentra_dagster.providers.aws_invocation_logs import AwsInvocationLogSource
from tokentra_dagster.providers.base import ConnectionConfig, Window
from tokentra_dagster.records import split
from tokentra_dagster.simulator.aws_objects import Bucket
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


def metrics(simulator, org, **options):
    given = {
        "regions": "us-east-1,eu-central-1",
        "max_retries": "1",
        "cost_export": f"s3://{org}-bedrock/export/bedrock",
    } | options
    return AwsSource(ConnectionConfig("aws", f"AKIASIM{org}:any", simulator.aws_url, given), now=lambda: NOW)


def log(simulator, org):
    options = {"location": f"s3://{org}-bedrock/logs", "max_retries": "1"}
    return AwsInvocationLogSource(ConnectionConfig("aws", f"AKIASIM{org}:any", simulator.aws_url, options, "aws_invocation_logs"))


def used(records):
    total = Counter()
    for r in records:
        total.update(
            requests=r.request_count, input=r.input_tokens, cached=r.cached_input_tokens or 0, written=r.cache_creation_tokens or 0,
            output=r.output_tokens, errors=r.error_count, latency=r.total_latency_ms or 0,
        )  # fmt: skip
    return dict(total)


def true(simulator, org, start, end):
    of = simulator.simulation.totals(org, "aws", "bedrock", start, end)
    inside = of["uncached"] + of["cache_read"] + of["cache_write"]
    return {
        "requests": of["requests"], "input": inside, "cached": of["cache_read"], "written": of["cache_write"], "output": of["output"],
        "errors": of["client_errors"] + of["server_errors"], "latency": of["latency_ms"],
    }  # fmt: skip


@pytest.mark.parametrize("org", ["acme", "globex"])
@pytest.mark.parametrize("width", ["1h", "1d"])
def test_cloudwatch_tells_the_truth(simulator, org, width):
    window = Window(DAY - timedelta(days=5), DAY + timedelta(days=2), width)
    usage, _, rejected = split(metrics(simulator, org).usage(window))
    assert rejected == []
    assert used(usage) == true(simulator, org, window.start, window.end)


@pytest.mark.parametrize("org", ["acme", "globex"])
def test_the_log_tells_the_same_although_requests_come_twice(simulator, org):
    window = Window(DAY, DAY + timedelta(hours=8), "1h")
    usage, _, rejected = split(log(simulator, org).usage(window))
    assert rejected == []
    assert used(usage) == true(simulator, org, window.start, window.end)
    assert all(r.user_id and r.api_key_id for r in usage)


def test_the_bill_is_what_the_simulator_charges(simulator):
    start = datetime(2026, 10, 30, tzinfo=UTC)
    _, costs, rejected = split(metrics(simulator, "acme").costs(Window(start, start + timedelta(days=4), "1h")))
    assert rejected == []
    bucket = Bucket(simulator.simulation, simulator.simulation.organisation("acme"))
    assert sum(c.amount for c in costs) == bucket.billed(start, start + timedelta(days=4)) > 0
    assert {c.model for c in costs} >= {"global.anthropic.claude-haiku-4-5-20251001-v1:0", "amazon.nova-lite-v1:0"}


def test_profiles_are_projects_in_both(simulator):
    names = {name.id: name.name for name in metrics(simulator, "acme").names()}
    window = Window(DAY, DAY + timedelta(hours=2), "1h")
    seen = [
        {r.provider_project_id for r in source.usage(window)} - {None}
        for source in (metrics(simulator, "acme"), log(simulator, "acme"))
    ]
    assert seen == [set(names), set(names)] and set(names.values()) == {"assistant"}


def test_what_is_restated_or_withdrawn_is_followed(simulator):
    window = Window(DAY, DAY + timedelta(days=1), "1h")
    before = used(metrics(simulator, "acme").usage(window))
    simulator.simulation.restate("acme", "aws", 2, {"region": "eu-central-1"}, DAY, DAY + timedelta(days=1))
    after = used(metrics(simulator, "acme").usage(window))
    assert after == true(simulator, "acme", window.start, window.end) and after["requests"] > before["requests"]
    simulator.simulation.withdraw("acme", "aws", {})
    assert list(metrics(simulator, "acme").usage(window)) == []


@pytest.mark.parametrize("kind", ["rate_limit", "server_error", "truncated_json", "invalid_page_token"])
def test_a_fault_passes_and_one_that_stays_is_an_error(simulator, kind):
    window = Window(DAY - timedelta(days=13), DAY + timedelta(days=1), "1h")
    truth = true(simulator, "acme", window.start, window.end)
    simulator.simulation.fault(kind, "aws", "GetMetricData")
    assert used(metrics(simulator, "acme", models="none").usage(window)) == truth
    assert simulator.simulation.faults.waiting == []
    if kind != "invalid_page_token":
        simulator.simulation.fault(kind, "aws", "GetMetricData", times=50)
        with pytest.raises(TransientError):
            list(metrics(simulator, "acme").usage(Window(DAY, DAY + timedelta(hours=1), "1h")))


@pytest.mark.parametrize(("days", "width"), [(31, "1h"), (93, "1d")])
def test_long_windows_are_the_sum_of_their_days(simulator, days, width):
    window = Window(DAY - timedelta(days=days), DAY, width)
    usage, _, _ = split(metrics(simulator, "acme", latency_percentiles="off").usage(window))
    assert used(usage) == true(simulator, "acme", window.start, window.end)
    assert len({(r.bucket_start, r.model, r.metadata["region"], r.provider_project_id) for r in usage}) == len(usage)


def test_a_window_before_any_usage_is_empty(simulator):
    start = datetime(2025, 9, 1, tzinfo=UTC)
    assert list(metrics(simulator, "globex", regions="us-west-2").usage(Window(DAY, DAY + timedelta(days=1), "1h"))) == []
    assert list(log(simulator, "acme").usage(Window(start, start + timedelta(days=1), "1h"))) == []
