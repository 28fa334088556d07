"""How faults are switched on, wait and are used up. What a sync makes of each is in tests/ingest/test_sync_faults.py."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tokentra_dagster.errors import TransientError, UsageError
from tokentra_dagster.providers.base import Source, Window
from tokentra_dagster.simulator.faults import KINDS
from tokentra_dagster.simulator.server import RunningSimulator

DAY = timedelta(days=1)
TODAY = datetime(2026, 11, 24, tzinfo=UTC)
ONE_DAY = Window(TODAY - DAY, TODAY, "1d")


@pytest.fixture(params=["openai", "anthropic"])
def provider(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def source(request: pytest.FixtureRequest, provider: str) -> Source:
    options = {"endpoints": "completions"} if provider == "openai" else {}
    return request.getfixturevalue(provider)(**options)


def test_a_rate_limit_says_when_to_come_back(simulator: RunningSimulator, source: Source):
    simulator.simulation.fault("rate_limit", retry_after=7)
    with pytest.raises(TransientError) as refused:
        list(source.usage(ONE_DAY))
    assert refused.value.retry_after == 7
    simulator.simulation.fault("rate_limit")
    with pytest.raises(TransientError) as refused:
        list(source.usage(ONE_DAY))
    assert refused.value.retry_after is None


def test_a_fault_waits_for_its_provider_and_path_and_lasts_as_often_as_asked(simulator: RunningSimulator, openai, anthropic):
    simulator.simulation.fault("server_error", "openai", "usage/images", times=2)
    assert list(anthropic().usage(ONE_DAY)) and list(openai(endpoints="completions").usage(ONE_DAY))
    for _ in range(2):
        with pytest.raises(TransientError):
            list(openai(endpoints="images").usage(ONE_DAY))
    assert list(openai(endpoints="images").usage(ONE_DAY))


def test_a_fault_lets_as_many_requests_pass_as_it_skips(simulator: RunningSimulator, request_to):
    simulator.simulation.fault("unavailable", "openai", "users", skip=2)
    asked = [
        request_to(f"{simulator.openai_url}/organization/{path}", {"Authorization": "Bearer sk-admin-acme"}).status
        for path in ("users", "projects", "users", "users", "users")
    ]
    assert asked == [200, 200, 200, 503, 200]


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "gremlins"},
        {"kind": "dropped", "provider": "nobody"},
        {"kind": "dropped", "times": 0},
        {"kind": "dropped", "skip": -1},
        {"kind": "rate_limit", "retry_after": "soon"},
        {"kind": "timeout", "seconds": -1},
    ],
)
def test_a_fault_that_cannot_be_is_refused(simulator: RunningSimulator, wrong: dict):
    with pytest.raises(UsageError, match="must be"):
        simulator.simulation.fault(**wrong)


def test_every_kind_of_fault_can_be_switched_on_by_http(simulator: RunningSimulator, request_to):
    for kind in KINDS:
        assert request_to(f"{simulator.url}/_simulator/faults", body={"kind": kind}).status == 200
    state = request_to(f"{simulator.url}/_simulator/state").json
    assert [fault["kind"] for fault in state["faults"]] == list(KINDS)
    assert request_to(f"{simulator.url}/_simulator/changes", method="DELETE").json["faults"] == []
