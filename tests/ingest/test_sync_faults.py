"""Every kind of fault through the real connectors into a real database: everything is loaded, or nothing is touched."""

from __future__ import annotations

from typing import Any

import pytest

from tests.simulated_sync import DAY, TODAY, loaded, loaded_cost, true_cost, truth
from tests.warehouse_data import one, rows
from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.ingest.intake import LoadResult
from tokentra_dagster.simulator.faults import KINDS

END = TODAY
PATH = {"openai": "usage/completions", "anthropic": "analytics/usage"}
START = {"openai": TODAY - 8 * DAY, "anthropic": TODAY - 5 * DAY}
"""Two pages by the hour."""
COSTS = {"openai": "organization/costs", "anthropic": "analytics/cost"}
TRANSIENT = ("rate_limit", "server_error", "unavailable", "overloaded", "timeout", "truncated_json", "dropped")
PERMANENT = ("revoked_key", "forbidden")
REJECTED = ("unknown_result", "bad_record")
BY_PROVIDER: dict[tuple[str, str], type[Exception] | None] = {
    ("openai", "repeated_page_token"): None,
    ("openai", "invalid_page_token"): None,
    ("anthropic", "repeated_page_token"): TransientError,
    ("anthropic", "invalid_page_token"): PermanentError,
}
"""OpenAI's pages are buckets with a time to go on from; Anthropic's are rows without a key, so half a report is never used."""

FAILURES = [
    *((provider, kind, error) for error, kinds in ((TransientError, TRANSIENT), (PermanentError, PERMANENT))
      for kind in kinds for provider in PATH),
    *((provider, kind, error) for (provider, kind), error in BY_PROVIDER.items() if error),
]  # fmt: skip


@pytest.fixture
def connected(connect, request: pytest.FixtureRequest):
    provider, options = request.param if isinstance(request.param, tuple) else (request.param, {})
    narrow = {"endpoints": "completions"} if provider == "openai" else {}
    return connect(provider, **narrow, **options)


def _sync(connected) -> LoadResult:
    return connected.sync(START[connected.connection.provider], END)


def _expected(connected) -> dict[str, dict[str, int]]:
    everything = truth(connected.simulation, connected.connection, START[connected.connection.provider], END)
    return {name: used for name, used in everything.items() if name in ("completions", "messages", "code_execution")}


def test_every_kind_of_fault_is_tried_with_both_providers():
    tried = {(provider, kind) for provider, kind, _ in FAILURES} | {key for key, error in BY_PROVIDER.items() if error is None}
    tried |= {(provider, kind) for kind in (*REJECTED, "empty_buckets", "string_amounts") for provider in PATH}
    assert tried == {(provider, kind) for provider in PATH for kind in KINDS}


@pytest.mark.parametrize(
    ("connected", "kind", "error"), FAILURES, indirect=["connected"], ids=[f"{p}-{k}" for p, k, _ in FAILURES]
)
def test_a_sync_that_fails_on_a_later_page_leaves_the_old_window_and_says_why(
    connected, simulation, database, kind: str, error: type[Exception]
):
    provider = connected.connection.provider
    _sync(connected)
    old, old_cost = loaded(database, connected.connection), loaded_cost(database, connected.connection)
    assert old == _expected(connected)

    simulation.restate("acme", provider, 2)  # so that new pages could be told from old ones
    # Faults about page tokens wait for the second page by themselves.
    seconds = {"seconds": 2.0} if kind == "timeout" else {}
    simulation.fault(kind, provider, PATH[provider], skip=0 if "page_token" in kind else 1, **seconds)
    if kind == "timeout":
        connected = _impatient(connected)
    with pytest.raises(error):
        _sync(connected)
    assert simulation.faults.described() == []
    assert (loaded(database, connected.connection), loaded_cost(database, connected.connection)) == (old, old_cost)
    (failed,) = rows(database, "SELECT * FROM raw.sync_history WHERE status = 'failed'")
    assert failed["error_kind"] == ("transient" if error is TransientError else "permanent")
    assert failed["error"].startswith(f"{provider}: ") and failed["completed_at"] is not None
    assert "sk-a" not in failed["error"].replace("sk-admin-...", "").replace("sk-ant-admin01-...", "")  # never the key


@pytest.mark.parametrize("connected", list(PATH), indirect=True)
def test_usage_is_not_replaced_when_the_costs_of_the_window_fail(connected, simulation, database):
    _sync(connected)
    old = loaded(database, connected.connection)
    provider = connected.connection.provider
    simulation.restate("acme", provider, 2)
    simulation.fault("server_error", provider, COSTS[provider])
    with pytest.raises(TransientError):
        _sync(connected)
    assert loaded(database, connected.connection) == old
    _sync(connected)
    assert loaded(database, connected.connection) == _expected(connected) != old


@pytest.mark.parametrize("kind", ["rate_limit", "timeout", "truncated_json", "dropped"])
@pytest.mark.parametrize(
    "connected", [(provider, {"max_retries": "1", "timeout_seconds": "1"}) for provider in PATH], indirect=True, ids=list(PATH)
)
def test_what_passes_by_itself_is_retried_and_nothing_is_lost_or_doubled(connected, simulation, database, kind: str):
    provider = connected.connection.provider
    retry = {"retry_after": 0} if kind == "rate_limit" else {"seconds": 1.5}
    simulation.fault(kind, provider, PATH[provider], skip=1, **retry)
    _sync(connected)
    assert simulation.faults.described() == []
    assert loaded(database, connected.connection) == _expected(connected)
    assert one(database, "SELECT status FROM raw.sync_history") == "completed"


@pytest.mark.parametrize("kind", ["repeated_page_token", "invalid_page_token"])
@pytest.mark.parametrize("connected", ["openai"], indirect=True)
def test_paging_that_goes_wrong_at_openai_still_loads_everything(connected, simulation, database, kind: str):
    simulation.fault(kind, "openai", PATH["openai"])
    _sync(connected)
    assert simulation.faults.described() == []
    assert loaded(database, connected.connection) == _expected(connected)
    assert loaded_cost(database, connected.connection) == true_cost(
        simulation, connected.connection, START[connected.connection.provider], END
    )


@pytest.mark.parametrize("connected", list(PATH), indirect=True)
def test_amounts_as_text_keep_every_digit(connected, simulation, database):
    simulation.fault("string_amounts", connected.connection.provider, COSTS[connected.connection.provider])
    _sync(connected)
    assert simulation.faults.described() == []
    assert (
        loaded_cost(database, connected.connection)
        == true_cost(simulation, connected.connection, START[connected.connection.provider], END)
        > 1
    )


@pytest.mark.parametrize("kind", REJECTED)
@pytest.mark.parametrize("connected", list(PATH), indirect=True)
def test_one_bad_result_is_kept_with_its_reason_and_the_others_are_loaded(connected, simulation, database, kind: str):
    provider = connected.connection.provider
    honest = _sync(connected)
    simulation.fault(kind, provider, PATH[provider])
    result = _sync(connected)
    assert (result.rejected, result.loaded) == (1, honest.loaded - 1)
    (rejected,) = rows(database, "SELECT reason, payload, bucket_start FROM raw.rejected_records")
    assert PATH[provider] in rejected["reason"] and rejected["bucket_start"] is not None and rejected["payload"]
    reasons = {
        ("openai", "unknown_result"): "telepathy",
        ("openai", "bad_record"): "exceed",
        ("anthropic", "unknown_result"): "usage is None",
        ("anthropic", "bad_record"): "cannot be negative",
    }
    assert reasons[provider, kind] in rejected["reason"]
    assert one(database, "SELECT records_rejected FROM raw.sync_history ORDER BY started_at DESC LIMIT 1") == 1

    missing = _requests(_expected(connected)) - _requests(loaded(database, connected.connection))
    if provider == "openai":
        assert missing == rejected["payload"]["num_model_requests"] > 0
    elif kind == "bad_record":
        assert missing == rejected["payload"]["usage"]["requests"] > 0
    else:
        assert missing > 0  # an unknown row at Anthropic has lost its counts
    _sync(connected)
    assert loaded(database, connected.connection) == _expected(connected)
    assert one(database, "SELECT count(*) FROM raw.rejected_records") == 0


def _requests(totals: dict[str, dict[str, int]]) -> int:
    return sum(used["requests"] + used["spans"] for used in totals.values())


@pytest.mark.parametrize("connected", list(PATH), indirect=True)
def test_empty_buckets_are_no_usage_and_the_next_sync_brings_it_back(connected, simulation, database):
    provider = connected.connection.provider
    connected.sync(TODAY - DAY, TODAY)
    assert loaded(database, connected.connection)
    simulation.fault("empty_buckets", provider, PATH[provider])
    result = connected.sync(TODAY - DAY, TODAY)
    assert (result.loaded, result.rejected) == (0, 0) and result.replaced > 0
    assert loaded(database, connected.connection) == {}
    _sync(connected)
    assert loaded(database, connected.connection) == _expected(connected)


def _impatient(connected: Any) -> Any:
    """The same connection with a shorter time-out."""
    from dataclasses import replace

    row = connected.connection
    return replace(connected, connection=replace(row, options={**row.options, "timeout_seconds": "0.5"}))
