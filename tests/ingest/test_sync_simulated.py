"""Both providers' connectors over HTTP into a real database: what is loaded is what the simulator holds to be true."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from tests.simulated_sync import DAY, NOW, TODAY, loaded, loaded_cost, true_cost, true_level, truth
from tests.warehouse_data import one, rows

YESTERDAY = TODAY - DAY
SETTLED = timedelta(days=4)


@pytest.mark.parametrize("org", ["acme", "globex"])
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize(("granularity", "days"), [("1m", 1), ("1h", 3), ("1d", 9)])
def test_every_endpoint_is_loaded_token_for_token_and_request_for_request(
    connect, simulation, database, provider: str, org: str, granularity: str, days: int
):
    connected = connect(provider, org)
    start, end = TODAY - (days - 1) * DAY, TODAY + DAY  # into the day that goes on
    result = connected.sync(start, end, granularity)
    expected = truth(simulation, connected.connection, start, end)
    assert loaded(database, connected.connection) == expected
    assert expected["completions" if provider == "openai" else "messages"]["requests"] > 100
    assert len(expected) == {("openai", "acme"): 10, ("openai", "globex"): 6}.get((provider, org), 2)
    assert loaded_cost(database, connected.connection) == true_cost(simulation, connected.connection, start, end) > 1
    assert result.rejected == 0 and result.loaded == one(database, "SELECT count(*) FROM raw.usage_records")


def test_stored_bytes_of_an_hour_are_as_many_byte_hours(connect, simulation, database):
    connected = connect("openai", endpoints="vector_stores")
    connected.sync(YESTERDAY, TODAY)
    found = rows(database, "SELECT bucket_end, quantity::bigint AS bytes FROM raw.usage_records ORDER BY 1")
    assert len(found) == 24
    assert all(row["bytes"] == true_level(simulation, connected.connection, row["bucket_end"]) for row in found)


def test_days_before_the_analytics_history_come_from_the_legacy_reports(connect, simulation, database):
    connected = connect("anthropic")
    start, end = datetime(2025, 12, 30, tzinfo=UTC), datetime(2026, 1, 3, tzinfo=UTC)
    begins = datetime(2026, 1, 1, tzinfo=UTC)
    connected.sync(start, end)
    expected = truth(simulation, connected.connection, start, end)
    # The legacy reports know neither request counts nor code execution.
    newer = truth(simulation, connected.connection, begins, end)
    expected["messages"]["requests"] = newer["messages"]["requests"]
    expected["code_execution"] = newer["code_execution"]
    assert loaded(database, connected.connection) == expected
    unknown = one(database, "SELECT count(*) FROM raw.usage_records WHERE request_count IS NULL AND timestamp < %s", begins)
    assert unknown == one(database, "SELECT count(*) FROM raw.usage_records WHERE timestamp < %s", begins) > 100


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_syncing_twice_changes_nothing(connect, database, provider: str):
    connected = connect(provider)
    content = (
        "SELECT timestamp, model, provider_project_id, api_key_id, user_ids, service_tier, service_type, context_window, "
        "input_tokens, output_tokens, request_count, quantity, token_details, provider_metadata, estimated_cost "
        "FROM raw.usage_records ORDER BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, provider_metadata::text"
    )
    costs = "SELECT bucket_start, line_item, model, token_type, amount FROM raw.provider_costs ORDER BY 1, 2, 3, 4, 5"
    first = connected.sync(YESTERDAY, TODAY)
    before = rows(database, content), rows(database, costs)
    second = connected.sync(YESTERDAY, TODAY)
    assert (rows(database, content), rows(database, costs)) == before and len(before[0]) > 100 and before[1]
    assert second.replaced == second.loaded == first.loaded


@pytest.mark.parametrize(
    ("provider", "match"),
    [("openai", {"project_id": "proj_acme_assistant"}), ("anthropic", {"workspace_id": "wrkspc_acme_assistant"})],
)
def test_what_the_provider_restates_or_withdraws_is_followed(connect, simulation, database, provider: str, match: dict):
    connected = connect(provider)
    start, end = TODAY - 6 * DAY, TODAY - 4 * DAY
    (project,) = match.values()
    of_project = "SELECT count(*) FROM raw.usage_records WHERE provider_project_id = %s"
    connected.sync(start, end)
    honest = loaded(database, connected.connection)

    simulation.restate("acme", provider, 1.5, match, start, start + DAY)
    connected.sync(start, end)
    restated = loaded(database, connected.connection)
    assert restated == truth(simulation, connected.connection, start, end) and restated != honest
    assert loaded_cost(database, connected.connection) == true_cost(simulation, connected.connection, start, end)

    simulation.withdraw("acme", provider, match)
    assert one(database, of_project, project) > 0
    connected.sync(start, end)
    left = loaded(database, connected.connection)
    assert left == truth(simulation, connected.connection, start, end)
    assert sum(total["input"] for total in left.values()) > 0
    # What a vector store holds is a property of the store; withdrawn usage does not change it.
    gone = of_project + " AND quantity_unit IS DISTINCT FROM 'byte_hours'"
    assert one(database, gone, project) == 0

    simulation.reset()
    connected.sync(start, end)
    assert loaded(database, connected.connection) == honest


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_late_data_appears_when_the_window_is_read_again(connect, simulation, database, provider: str):
    connected = connect(provider)
    connected.sync(YESTERDAY, TODAY + DAY)
    at_once = loaded(database, connected.connection)
    assert at_once == truth(simulation, connected.connection, YESTERDAY, TODAY + DAY)
    simulation.now = NOW + SETTLED
    connected.sync(YESTERDAY, TODAY + DAY)
    settled = loaded(database, connected.connection)
    assert settled == truth(simulation, connected.connection, YESTERDAY, TODAY + DAY)
    assert settled.keys() == at_once.keys()
    assert sum(t["requests"] for t in settled.values()) > sum(t["requests"] for t in at_once.values())


def test_connections_synced_in_parallel_do_not_disturb_each_other(connect, simulation, database):
    everyone = [connect(provider, org) for provider in ("openai", "anthropic") for org in ("acme", "globex")]
    with ThreadPoolExecutor(len(everyone)) as pool:
        list(pool.map(lambda connected: connected.sync(YESTERDAY, TODAY), everyone))
    for connected in everyone:
        assert loaded(database, connected.connection) == truth(simulation, connected.connection, YESTERDAY, TODAY)
    assert one(database, "SELECT count(*) FROM raw.sync_history WHERE status = 'completed'") == len(everyone)
