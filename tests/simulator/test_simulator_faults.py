"""What can be made to go wrong, and what the real connectors make of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tokentra_dagster.errors import PermanentError, TransientError, UsageError
from tokentra_dagster.providers.base import Source, Window
from tokentra_dagster.records import split
from tokentra_dagster.simulator.faults import KINDS
from tokentra_dagster.simulator.server import RunningSimulator

DAY = timedelta(days=1)
TODAY = datetime(2026, 11, 24, tzinfo=UTC)
ONE_DAY = Window(TODAY - DAY, TODAY, "1d")
LONG = Window(TODAY - 40 * DAY, TODAY, "1h")
"""Several pages at both providers."""


@pytest.fixture(params=["openai", "anthropic"])
def provider(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def source(request: pytest.FixtureRequest, provider: str) -> Source:
    options = {"endpoints": "completions"} if provider == "openai" else {}
    return request.getfixturevalue(provider)(**options)


@pytest.fixture
def patient(request: pytest.FixtureRequest, provider: str) -> Source:
    """Retries once."""
    options = {"endpoints": "completions"} if provider == "openai" else {}
    return request.getfixturevalue(provider)(max_retries="1", **options)


@pytest.mark.parametrize("kind", ["rate_limit", "server_error", "unavailable", "overloaded", "truncated_json", "dropped"])
def test_what_passes_by_itself_is_transient(simulator: RunningSimulator, source: Source, provider: str, kind: str):
    simulator.simulation.fault(kind, provider)
    with pytest.raises(TransientError):
        list(source.usage(ONE_DAY))
    assert list(source.usage(ONE_DAY))


@pytest.mark.parametrize("kind", ["rate_limit", "server_error", "truncated_json", "dropped"])
def test_one_retry_recovers_with_every_record(simulator: RunningSimulator, patient: Source, provider: str, kind: str):
    honest = list(patient.usage(ONE_DAY))
    simulator.simulation.fault(kind, provider, retry_after=0)
    assert list(patient.usage(ONE_DAY)) == honest
    assert simulator.simulation.faults.described() == []


def test_a_rate_limit_says_when_to_come_back(simulator: RunningSimulator, source: Source):
    simulator.simulation.fault("rate_limit", retry_after=7)
    with pytest.raises(TransientError) as refused:
        list(source.usage(ONE_DAY))
    assert refused.value.retry_after == 7
    simulator.simulation.fault("rate_limit")
    with pytest.raises(TransientError) as refused:
        list(source.usage(ONE_DAY))
    assert refused.value.retry_after is None


def test_a_slow_answer_is_a_time_out(simulator: RunningSimulator, request: pytest.FixtureRequest, provider: str):
    source = request.getfixturevalue(provider)(timeout_seconds="0.3")
    simulator.simulation.fault("timeout", provider, seconds=5)
    with pytest.raises(TransientError, match="timed out"):
        list(source.usage(ONE_DAY))


@pytest.mark.parametrize(("kind", "status"), [("revoked_key", 401), ("forbidden", 403)])
def test_what_a_person_must_fix_is_permanent(simulator: RunningSimulator, patient: Source, provider: str, kind: str, status: int):
    simulator.simulation.fault(kind, provider)
    with pytest.raises(PermanentError, match=f"HTTP {status}.*Admin API key"):
        list(patient.usage(ONE_DAY))


def test_openai_recovers_from_page_tokens_that_repeat_or_are_refused(simulator: RunningSimulator, openai):
    source = openai(endpoints="completions")
    honest = list(source.usage(LONG))
    for kind in ("repeated_page_token", "invalid_page_token"):
        simulator.simulation.fault(kind, "openai", "usage/completions")
        assert list(source.usage(LONG)) == honest
        assert simulator.simulation.faults.described() == []


def test_anthropic_never_reads_half_a_report(simulator: RunningSimulator, anthropic):
    source = anthropic()
    simulator.simulation.fault("repeated_page_token", "anthropic")
    with pytest.raises(TransientError, match="same page"):
        list(source.usage(LONG))
    simulator.simulation.fault("invalid_page_token", "anthropic")
    with pytest.raises(PermanentError, match=r"HTTP 400.*page token"):
        list(source.usage(LONG))


def test_empty_buckets_are_no_usage(simulator: RunningSimulator, source: Source, provider: str):
    simulator.simulation.fault("empty_buckets", provider)
    assert list(source.usage(ONE_DAY)) == []


@pytest.mark.parametrize("kind", ["unknown_result", "bad_record"])
def test_one_bad_item_is_rejected_and_the_others_are_kept(simulator: RunningSimulator, source: Source, provider: str, kind: str):
    honest, _, _ = split(source.usage(ONE_DAY))
    simulator.simulation.fault(kind, provider)
    usage, _, rejected = split(source.usage(ONE_DAY))
    assert len(rejected) == 1 and usage == honest[1:]


def test_amounts_as_text_are_the_same_amounts(simulator: RunningSimulator, openai):
    source = openai()
    honest = list(source.costs(ONE_DAY))
    simulator.simulation.fault("string_amounts", "openai", "costs")
    assert list(source.costs(ONE_DAY)) == honest and simulator.simulation.faults.described() == []


def test_a_fault_waits_for_its_provider_and_path_and_lasts_as_often_as_asked(simulator: RunningSimulator, openai, anthropic):
    simulator.simulation.fault("server_error", "openai", "usage/images", times=2)
    assert list(anthropic().usage(ONE_DAY)) and list(openai(endpoints="completions").usage(ONE_DAY))
    for _ in range(2):
        with pytest.raises(TransientError):
            list(openai(endpoints="images").usage(ONE_DAY))
    assert list(openai(endpoints="images").usage(ONE_DAY))


@pytest.mark.parametrize(
    "wrong", [{"kind": "gremlins"}, {"kind": "dropped", "provider": "azure"}, {"kind": "dropped", "times": 0}]
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
