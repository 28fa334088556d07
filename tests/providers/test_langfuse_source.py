"""Langfuse: which generations are the provider's, and what their free-form usage means (providers.md 6.3)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from tests.providers.langfuse_server import NOON, PUBLIC, SECRET, Generated, Langfuse
from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.providers import open_source
from tokentra_dagster.providers.base import ConnectionConfig, Source, Window
from tokentra_dagster.records import split

WINDOW = Window(NOON - timedelta(hours=12), NOON + timedelta(hours=12), "1h")


@pytest.fixture
def peer() -> Iterator[Langfuse]:
    with Langfuse([Generated("g1", NOON, "gpt-4o", 100, 10)]).running() as running:
        yield running


def source(peer: Langfuse, provider: str = "openai", **options: str) -> Source:
    given = {"max_retries": "0", "timeout_seconds": "2"} | options
    return open_source(ConnectionConfig(provider, f"{PUBLIC}:{SECRET}", peer.url, given, "langfuse"))


def read(peer: Langfuse, provider: str = "openai", **options: str):
    usage, _, rejected = split(source(peer, provider, **options).usage(WINDOW))
    return usage, rejected


@pytest.mark.parametrize(
    ("details", "sent", "received", "read_", "written"),
    [
        ({"input": 100, "output": 10, "total": 110}, 100, 10, None, None),
        ({"input": 100, "output": 10, "total": 110, "input_cached_tokens": 40}, 100, 10, 40, None),
        ({"input": 60, "output": 10, "total": 110, "input_cached_tokens": 40}, 100, 10, 40, None),
        ({"input": 5, "output": 10, "total": 65, "cache_read_input_tokens": 30, "cache_creation_input_tokens": 20}, 55, 10, 30, 20),
        # As Langfuse takes OpenAI's usage apart: what was reasoned and heard is in neither input nor output.
        (
            {"input": 50, "input_cached_tokens": 40, "input_audio_tokens": 10, "output": 10, "output_reasoning_tokens": 7, "total": 117},
            100, 17, 40, None,
        ),
        # As Claude Code's writer says it.
        ({"input": 5, "output": 1, "input_cache_creation_5m": 2, "input_cache_creation_1h": 3, "input_cache_read": 9, "total": 20}, 19, 1, 9, 5),
        ({"input": 12, "total": 12}, 12, 0, None, None),
    ],
)  # fmt: skip
def test_whether_input_holds_the_cache_and_output_the_reasoning_is_told_by_the_total(
    peer, details, sent, received, read_, written
):
    peer.raw["g1"] = {"usageDetails": details}
    ((record,), rejected) = read(peer)
    assert rejected == []
    assert (record.input_tokens, record.output_tokens) == (sent, received)
    assert (record.cached_input_tokens, record.cache_creation_tokens) == (read_, written)


def test_where_the_total_does_not_tell_the_item_is_rejected_until_a_person_says(peer):
    peer.raw["g1"] = {"usageDetails": {"input": 60, "output": 10, "input_cached_tokens": 40}}
    usage, (item,) = read(peer)
    assert usage == [] and "set the option input_includes_cache" in item.reason and item.payload["id"] == "g1"
    for said, sent in (("yes", 60), ("no", 100)):
        assert read(peer, input_includes_cache=said)[0][0].input_tokens == sent


@pytest.mark.parametrize("details", [{}, None, {"total": 500}, {"web_searches": 2, "total": 2}])
def test_a_generation_that_tells_no_parts_is_a_request_whose_tokens_are_unknown(peer, details):
    peer.raw["g1"] = {"usageDetails": details, "level": "ERROR"}
    ((record,), _) = read(peer)
    assert (record.request_count, record.error_count) == (1, 1)
    assert record.metadata["tokens_unknown"] == ["input_tokens", "output_tokens"]


def test_embeddings_are_requests_too_and_agents_that_repeat_their_sum_are_not(peer):
    peer.made += [
        Generated(f"g-{kind}", NOON, "text-embedding-3-small", 7, 0, type=kind) for kind in ("EMBEDDING", "AGENT", "SPAN")
    ]
    found = {record.request_type: record.input_tokens for record in read(peer)[0]}
    assert found == {"chat": 100, "embedding": 7}


def test_models_of_other_providers_are_left_out_and_named(peer):
    peer.made += [Generated("g2", NOON, "claude-sonnet-4-6", 7, 7), Generated("g3", NOON, "my-own", 9, 9)]
    opened = source(peer)
    assert sum(record.input_tokens for record in opened.usage(WINDOW)) == 100
    assert opened.remarks() == [
        "langfuse: 2 models were left out as another provider's (claude-sonnet-4-6, my-own); the option models says which are read"
    ]
    assert read(peer, "azure", models="MY-*")[0][0].input_tokens == 9
    with pytest.raises(PermanentError, match="the option models is missing; say which models are aws's"):
        source(peer, "aws")


def test_users_and_environments_are_told_and_a_generation_without_a_model_is_rejected(peer):
    peer.raw["g1"] = {"userId": "ann"}
    ((record,), _) = read(peer)
    assert (record.user_id, record.environment, record.provider_project_id, record.total_latency_ms) == (
        "ann",
        "production",
        "p1",
        1250,
    )
    peer.raw["g1"] = {"model": None}
    assert read(peer)[1][0].reason == "langfuse: the generation names no model"
    peer.raw["g1"] = {"model": None, "providedModelName": "gpt-4o"}
    assert read(peer)[0][0].model == "gpt-4o"


def test_an_observation_that_comes_twice_counts_once_and_a_cursor_that_does_ends_the_sync(peer, monkeypatch):
    peer.made *= 3
    assert read(peer)[0][0].request_count == 1
    monkeypatch.setattr(Langfuse, "_page", lambda *_: {"data": [], "meta": {"cursor": "again"}})
    with pytest.raises(TransientError, match="the same cursor came twice"):
        read(peer)


@pytest.mark.parametrize("page", [{}, {"data": None}, {"data": ["x"]}])
def test_an_answer_without_observations_is_no_empty_project(peer, monkeypatch, page):
    monkeypatch.setattr(Langfuse, "_page", lambda *_: page)
    with pytest.raises(TransientError, match="has no list of observations"):
        read(peer)


def test_a_check_says_what_the_keys_see(peer):
    assert source(peer).check() == "langfuse: keys accepted; newest generation 2026-11-20T12:00:00Z"
    peer.made = []
    assert source(peer).check() == "langfuse: keys accepted; no generation yet"
