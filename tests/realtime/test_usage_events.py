"""What an event may be: each refusal is one sentence with the field, its value and what is allowed."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.realtime.event_data import NOON, event
from tokentra_dagster.errors import UsageError
from tokentra_dagster.latency import latency_buckets
from tokentra_dagster.realtime.events import event_of, latency_bucket, refuse_future

JSON = {
    "event_id": "e1", "occurred_at": "2026-06-01T14:00:00+02:00", "provider": "openai", "model": "gpt-4o", "input_tokens": 3, "output_tokens": 4,
}  # fmt: skip


def test_an_event_from_json_has_utc_decimals_and_nothing_that_was_not_said():
    found = event_of({**JSON, "reported_cost": 0.1, "feature": None})
    assert (found.occurred_at, found.occurred_at.tzinfo, found.reported_cost) == (NOON, UTC, Decimal("0.1"))
    assert (found.feature, found.is_error, found.latency_ms, found.cached_input_tokens) == (None, None, None, None)


def test_a_cost_that_a_float_made_long_is_rounded_to_a_trillionth():
    assert event_of({**JSON, "reported_cost": 0.1 + 0.2}).reported_cost == Decimal("0.300000000000")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"event_id": ""}, "event_id is ''; it must be text that is not empty."),
        ({"event_id": 7}, "event_id is 7; it must be text"),
        ({"event_id": "x" * 501}, "event_id has 501 characters; it may have 500."),
        ({"team": ""}, "team is ''; it must be text that is not empty; leave it out when it is unknown."),
        ({"user_id": "a\x00b"}, "user_id is 'a\\x00b', which holds a NUL"),
        ({"feature": "\ud800"}, "half a surrogate pair"),
        ({"provider": "aggregated"}, "provider is 'aggregated'; it must be one of openai, anthropic, google, azure, aws."),
        ({"request_type": "talk"}, "request_type is 'talk'; it must be one of chat,"),
        ({"service_type": "slow"}, "service_type is 'slow'; it must be one of sync, batch, real-time."),
        ({"currency": "usd"}, "currency is 'usd'; it must be three capital letters like USD."),
        ({"is_error": 1}, "is_error is 1; it must be true, false or left out."),
        ({"occurred_at": datetime(2026, 6, 1)}, "it must be a time with its zone"),
        ({"occurred_at": datetime(1970, 1, 1, tzinfo=UTC)}, "it must be 2015-01-01 or later"),
        ({"input_tokens": -1}, "input_tokens is -1; it must be a whole number from 0 to"),
        ({"input_tokens": 1.5}, "input_tokens is 1.5; it must be a whole number"),
        ({"output_tokens": True}, "output_tokens is True; it must be a whole number"),
        ({"output_tokens": 10**400}, "it must be a whole number"),
        ({"latency_ms": 10**9 + 1}, "latency_ms is 1000000001; it must be a whole number from 0 to 1000000000."),
        ({"cached_input_tokens": 60, "cache_creation_tokens": 60}, "exceed input_tokens 100; input must include both."),
        ({"reported_cost": Decimal("NaN")}, "reported_cost is NaN; it must be a decimal number from 0"),
        ({"reported_cost": 0.5}, "reported_cost is 0.5; it must be a decimal number"),
        ({"reported_cost": Decimal(-1)}, "reported_cost is -1; it must be"),
        ({"quantity": Decimal(1)}, "quantity is 1 and quantity_unit None; give both or neither."),
        ({"token_details": {"input_audio": -1}}, "it must be names with whole numbers"),
        ({"metadata": []}, "metadata is []; it must be an object."),
        ({"metadata": {"x": float("nan")}}, "metadata cannot be written as JSON"),
        ({"metadata": {"x": object()}}, "metadata cannot be written as JSON"),
        ({"metadata": {"x": "\x00"}}, "metadata holds a NUL character"),
        ({"metadata": {"x": "y" * 10_001}}, "metadata has 10010 characters as JSON; it may have 10000."),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_sentence(fields, words):
    event_id, at = fields.pop("event_id", "e1"), fields.pop("occurred_at", NOON)
    with pytest.raises(UsageError) as refused:
        event(event_id, at, **fields)
    assert words in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"totalTokens": 3}, "unknown field 'totalTokens'; it may have event_id, occurred_at,"),
        (
            {"model": None},
            "The event has no model; it must have event_id, occurred_at, provider, model, input_tokens, output_tokens.",
        ),
        ({"occurred_at": "yesterday"}, "occurred_at is 'yesterday'; write an ISO time"),
        ({"occurred_at": "2026-06-01T12:00:00"}, "it must be a time with its zone"),
        ({"occurred_at": 5}, "occurred_at is 5; it must be a time with its zone"),
        ({"reported_cost": "much"}, "reported_cost is 'much'; it must be a number."),
        ({"reported_cost": True}, "reported_cost is True; it must be a decimal number"),
    ],
)
def test_json_that_is_no_event_is_refused_in_one_sentence(change, words):
    with pytest.raises(UsageError) as refused:
        event_of({**JSON, **change})
    assert words in str(refused.value)


def test_a_little_difference_of_clocks_is_no_future():
    refuse_future(event(at=NOON + timedelta(minutes=5)), NOON)
    with pytest.raises(UsageError, match=r"is in the future .* check the sender's clock"):
        refuse_future(event(at=NOON + timedelta(minutes=6)), NOON)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            [*JSON, "latency_ms", "reported_cost", "quantity", "quantity_unit", "is_error", "metadata", "token_details"]
        ),
        ANYTHING,
    )
)
def test_whatever_json_comes_is_an_event_or_one_sentence(change):
    try:
        found = event_of({**JSON, **change})
    except UsageError as refused:
        assert str(refused)
    else:
        json.dumps(dict(found.metadata), allow_nan=False)


def test_the_bucket_of_one_latency_is_that_of_many():
    every = np.array([0, 1, 2, 3, 49, 50, 51, 1000, 10**6, 10**9])
    assert [latency_bucket(int(one)) for one in every] == latency_buckets(every).tolist()
