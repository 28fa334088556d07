"""What goes wrong between us and a provider, through both SDKs: retried while it may pass, then said in one clear sentence."""

from __future__ import annotations

import subprocess
import sys
import traceback

import pytest

from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.providers import INTEGRATIONS, open_source
from tokentra_dagster.providers.base import ConnectionConfig
from tokentra_dagster.providers.failures import DamagedPage, read_json, retry_after

EMPTY = {"data": [], "has_more": False, "next_page": None}
SOON = {"retry-after-ms": "1"}
PATHS = {"openai": "/v1/organization/usage/completions", "anthropic": "/v1/organizations/analytics/usage"}


@pytest.fixture(params=["openai", "anthropic"])
def vendor(request):
    return request.param


@pytest.fixture
def ask(vendor, days, request, monkeypatch):
    """Asks the vendor for one day of usage; options as keywords."""
    open_it = request.getfixturevalue(vendor)
    restrict = {"endpoints": "completions"} if vendor == "openai" else {}
    return lambda **options: list(open_it(**restrict, **options).usage(days((2026, 11, 1), (2026, 11, 2))))


@pytest.fixture
def path(vendor):
    return PATHS[vendor]


def said(message="Something happened", kind="some_error"):
    return {"type": "error", "error": {"type": kind, "message": message}}


def test_a_429_with_retry_after_is_waited_for_and_asked_again(provider, ask, path, answer):
    provider.on(path, answer(said(), status=429, headers={"retry-after": "0.05"}), EMPTY)
    assert ask() == []
    assert len(provider.requests) == 2


def test_a_429_without_retry_after_backs_off_and_is_asked_again(provider, ask, path, answer):
    provider.on(path, answer(said(), status=429), EMPTY)
    assert ask() == []
    assert len(provider.requests) == 2


def test_a_429_that_stays_is_transient_and_carries_the_wait(provider, ask, path, answer):
    provider.on(path, lambda asked: answer(said("slow down"), status=429, headers={"retry-after": "7"}))
    with pytest.raises(TransientError, match=r"HTTP 429 \(slow down\); wait 7 s") as caught:
        ask(max_retries="0")
    assert caught.value.retry_after == 7
    assert len(provider.requests) == 1


def test_a_429_without_a_wait_is_transient_and_says_none(provider, ask, path, answer):
    provider.on(path, lambda asked: answer(said(), status=429))
    with pytest.raises(TransientError) as caught:
        ask(max_retries="0")
    assert caught.value.retry_after is None


@pytest.mark.parametrize("status", [500, 503, 529, 408, 409])
def test_a_passing_server_error_is_asked_again(provider, ask, path, answer, status):
    provider.on(path, answer(said(), status=status, headers=SOON), EMPTY)
    assert ask() == []
    assert len(provider.requests) == 2


def test_a_server_error_that_stays_is_transient_after_the_allowed_retries(provider, ask, path, answer):
    provider.on(path, lambda asked: answer("<html>Bad gateway</html>", status=502, headers=SOON))
    with pytest.raises(TransientError, match="HTTP 502"):
        ask(max_retries="2")
    assert len(provider.requests) == 3


def test_a_time_out_is_transient_and_names_the_option(provider, ask, path, answer):
    provider.on(path, lambda asked: answer(EMPTY, delay=2))
    with pytest.raises(TransientError, match=r"timed out.*timeout_seconds"):
        ask(max_retries="0", timeout_seconds="0.2")


def test_an_unreachable_provider_is_transient(provider, ask):
    provider.stop()
    with pytest.raises(TransientError, match="could not reach the provider"):
        ask(max_retries="0")


def test_a_connection_that_breaks_off_is_asked_again(provider, ask, path, answer):
    provider.on(path, answer(EMPTY, cut=True), EMPTY)
    assert ask() == []
    assert len(provider.requests) == 2


@pytest.mark.parametrize("body", ['{"data": [{"start_', '{"has_more": false}', "[]", "", '{"data": null}'])
def test_a_damaged_page_is_asked_again(provider, ask, path, body):
    provider.on(path, body, EMPTY)
    assert ask() == []
    assert len(provider.requests) == 2


def test_a_page_that_stays_damaged_is_transient_and_says_what_is_wrong(provider, ask, path):
    provider.on(path, lambda asked: '{"data": [{"start_')
    with pytest.raises(TransientError, match=r"answered 2 times .*not JSON"):
        ask()
    assert len(provider.requests) == 2


def test_a_page_damaged_in_the_middle_of_the_pages_is_never_a_partial_result(provider, ask, path):
    provider.on(path, EMPTY | {"has_more": True, "next_page": "t"}, lambda asked: '{"data"')
    if "analytics" in path:
        with pytest.raises(TransientError):
            ask()
    else:
        with pytest.raises(TransientError):
            bucket = {"start_time": 1793491200 - 86400, "end_time": 1793491200, "results": []}
            provider.on(path, EMPTY | {"data": [bucket], "has_more": True, "next_page": "t"}, lambda asked: '{"data"')
            ask()


@pytest.mark.parametrize("status", [401, 403])
def test_a_revoked_or_insufficient_key_is_permanent_and_says_which_key_is_needed(provider, ask, path, answer, status):
    provider.on(path, lambda asked: answer(said("no such key"), status=status))
    with pytest.raises(PermanentError, match=rf"HTTP {status} \(no such key\).*Admin API key \(sk-"):
        ask()
    assert len(provider.requests) == 1


@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_refused_request_is_permanent_with_the_providers_own_words(provider, ask, path, answer, status):
    provider.on(path, lambda asked: answer(said("group_by is too long"), status=status))
    with pytest.raises(PermanentError, match=rf"HTTP {status} \(group_by is too long\); .*option"):
        ask()
    assert len(provider.requests) == 1


def test_the_secret_is_in_no_error_and_no_repr(provider, ask, path, answer, vendor, secret):
    shown = [repr(ConnectionConfig(vendor, secret)), repr(open_source(ConnectionConfig(vendor, secret)))]
    shown.append(repr(vars(open_source(ConnectionConfig(vendor, secret)))["_caller"]))
    echoes = [
        answer(said(f"Incorrect API key provided: {secret}"), status=401),
        answer(said(f"Incorrect key {secret}"), status=400),
        answer(f"proxy error for Bearer {secret}", status=502),
    ]
    for echo in echoes:
        provider.on(path, echo)
        with pytest.raises((PermanentError, TransientError)) as caught:
            ask(max_retries="0")
        assert caught.value.__cause__ is None and caught.value.__context__ is None
        shown += [str(caught.value), repr(caught.value), "".join(traceback.format_exception(caught.value))]
    provider.stop()
    with pytest.raises(TransientError) as caught:
        ask(max_retries="0")
    shown.append("".join(traceback.format_exception(caught.value)))
    assert not [text for text in shown if secret in text]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"endpoint": "x"}, "unknown option 'endpoint'; valid options are .*timeout_seconds, max_retries"),
        ({"max_retries": "-1"}, "a whole number, 0 or more"),
        ({"max_retries": "2.5"}, "a whole number, 0 or more"),
        ({"timeout_seconds": "0"}, "a number above 0"),
        ({"timeout_seconds": "soon"}, "'soon'"),
        ({"timeout_seconds": "inf"}, "a number above 0"),
    ],
)
def test_an_unknown_option_or_value_is_refused_with_what_is_allowed(vendor, options, message):
    with pytest.raises(PermanentError, match=message):
        open_source(ConnectionConfig(vendor, "k", options=options))


@pytest.mark.parametrize(
    ("vendor", "options", "message"),
    [
        ("openai", {"endpoints": "completions, dreams"}, "'dreams'; valid values.*completions, decisions, embeddings"),
        ("openai", {"endpoints": " , "}, "valid values"),
        ("openai", {"costs": "maybe"}, "'maybe'; valid values are on, off"),
        ("anthropic", {"api": "new"}, "'new'; valid values are auto, analytics, legacy"),
        ("anthropic", {"group_by": "model,rbac_group_id"}, "'rbac_group_id'; valid values"),
        ("anthropic", {"group_by": "model,claude_tag_user_id"}, "'claude_tag_user_id'; valid values"),
        ("anthropic", {"group_by": "model,actor,speed,product,workspace_id,service_tier"}, "at most 5"),
        ("anthropic", {"group_by": "actor"}, "must contain model"),
    ],
)
def test_a_providers_own_options_are_checked(vendor, options, message):
    with pytest.raises(PermanentError, match=message):
        open_source(ConnectionConfig(vendor, "k", options=options))


def test_an_unknown_integration_lists_those_that_are_known():
    with pytest.raises(PermanentError, match=r"unknown integration 'opena'; there are .*openai"):
        open_source(ConnectionConfig("opena", "k"))


def test_a_connection_without_a_key_says_which_key_is_needed(vendor):
    with pytest.raises(PermanentError, match="has no key; give it an Admin API key"):
        open_source(ConnectionConfig(vendor, " "))


def test_listing_the_sources_imports_no_sdk():
    code = (
        "import sys, tokentra_dagster.providers; print({'openai', 'anthropic', 'httpx2', 'boto3', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_registry_lists_the_options_that_the_source_takes(vendor):
    for option in INTEGRATIONS[vendor].options:
        with pytest.raises(PermanentError, match=f"option {option} has the value"):
            open_source(ConnectionConfig(vendor, "k", options={option: "?"}))


def test_retry_after_is_read_as_milliseconds_seconds_or_a_date():
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert retry_after({"retry-after": "1.5"}) == 1.5
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after({"retry-after": "later"}) is None
    assert retry_after({}) is None


def test_numbers_that_json_does_not_know_are_damage():
    with pytest.raises(DamagedPage, match="NaN"):
        read_json(b'{"value": NaN}')
