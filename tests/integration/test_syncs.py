"""Syncs as Dagster runs them: a step retried after a transient failure, and one connection's failure that stops no other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from tests.warehouse_data import connection, one, rows
from tokentra_dagster.definitions import defs
from tokentra_dagster.ingest.assets import partition_range_tags, usage_key
from tokentra_dagster.resources import Warehouse
from tokentra_dagster.simulator.server import RunningSimulator

START = datetime(2026, 6, 1, tzinfo=UTC)
END = START + timedelta(days=2)


@pytest.fixture
def simulator() -> Iterator[RunningSimulator]:
    with RunningSimulator(now=datetime(2026, 6, 20, tzinfo=UTC)) as running:
        yield running


@pytest.fixture
def sync(database, monkeypatch, tmp_path):
    """Runs a provider's sync job over two days in this process."""
    monkeypatch.setenv("TOKENTRA_DATABASE_URL", database.url)
    monkeypatch.setenv("TOKENTRA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TOKENTRA_SECRET_GOOD", "sk-admin-acme")
    monkeypatch.setenv("TOKENTRA_SECRET_REVOKED", "sk-admin-nobody")

    def run(provider: str = "openai", connections: tuple[str, ...] = ()) -> dg.ExecuteInProcessResult:
        config = {"ops": {f"sync_{provider}": {"config": {"connections": list(connections)}}}}
        job = defs.resolve_job_def(f"sync_{provider}_job")
        with dg.DagsterInstance.ephemeral() as instance:
            return job.execute_in_process(
                run_config=config, tags=partition_range_tags(START, END), instance=instance,
                raise_on_error=False, resources={"warehouse": Warehouse()},
            )  # fmt: skip

    return run


def _check(result: dg.ExecuteInProcessResult) -> dg.AssetCheckEvaluation:
    (evaluation,) = result.get_asset_check_evaluations()
    return evaluation


def test_one_connection_with_a_revoked_key_fails_loudly_and_the_others_are_synced(sync, database, simulator):
    connection(database, name="good", secret_ref="env:TOKENTRA_SECRET_GOOD", base_url=simulator.openai_url)
    connection(database, name="revoked", secret_ref="env:TOKENTRA_SECRET_REVOKED", base_url=simulator.openai_url)
    connection(database, name="unset", secret_ref="env:TOKENTRA_SECRET_NOT_SET", base_url=simulator.openai_url)
    result = sync()
    assert result.success
    check = _check(result)
    assert not check.passed and check.asset_key == usage_key("openai") and set(check.metadata) == {"acme/revoked", "acme/unset"}
    assert "admin key" in str(check.metadata["acme/revoked"].value).lower()
    assert "TOKENTRA_SECRET_NOT_SET is not set" in str(check.metadata["acme/unset"].value)
    history = rows(
        database,
        "SELECT c.name, h.status, h.error_kind FROM raw.sync_history AS h "
        "JOIN app.provider_connections AS c ON c.id = h.provider_connection_id ORDER BY 1",
    )
    assert [tuple(row.values()) for row in history] == [
        ("good", "completed", None),
        ("revoked", "failed", "permanent"),
        ("unset", "failed", "permanent"),
    ]
    truth = simulator.simulation.totals("acme", "openai", "completions", START, END)["requests"]
    loaded = "SELECT sum(request_count)::bigint FROM usage_records WHERE request_type = 'chat'"
    assert one(database, loaded) == truth > 1000
    assert not {"sk-admin-acme", "sk-admin-nobody"} & set(re.findall(r"sk-[a-z-]+", str(result.all_events)))


def test_a_step_is_retried_after_a_transient_failure_and_then_loads_everything_once(sync, database, simulator):
    connection(
        database, name="busy", secret_ref="env:TOKENTRA_SECRET_GOOD", base_url=simulator.openai_url, options={"max_retries": "0"}
    )
    simulator.simulation.fault("unavailable", "openai", "usage/embeddings")
    result = sync()
    assert result.success and _check(result).passed
    statuses = rows(database, "SELECT status, error_kind FROM raw.sync_history ORDER BY started_at")
    assert [tuple(row.values()) for row in statuses] == [("failed", "transient"), ("completed", None)]
    assert len([event for event in result.all_events if event.is_step_up_for_retry]) == 1
    truth = simulator.simulation.totals("acme", "openai", "completions", START, END)["requests"]
    assert one(database, "SELECT sum(request_count)::bigint FROM usage_records WHERE request_type = 'chat'") == truth


def test_a_connection_that_does_not_exist_is_named_with_those_that_do(sync, database, simulator):
    connection(database, name="good", secret_ref="env:TOKENTRA_SECRET_GOOD", base_url=simulator.openai_url)
    result = sync(connections=("acme/bad",))
    assert not result.success
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert "acme/bad" in failure.step_failure_data.error.message + str(failure.step_failure_data.user_failure_data)
    assert "acme/good" in failure.step_failure_data.error.message + str(failure.step_failure_data.user_failure_data)


def test_what_a_sync_materialises_says_how_much_of_what_and_when(sync, database, simulator):
    connection(database, name="good", secret_ref="env:TOKENTRA_SECRET_GOOD", base_url=simulator.openai_url)
    result = sync()
    (materialised,) = [e for e in result.get_asset_materialization_events() if e.asset_key == usage_key("openai")][:1]
    metadata = {name: entry.value for name, entry in materialised.materialization.metadata.items()}
    assert metadata["dagster/row_count"] == one(database, "SELECT count(*) FROM usage_records")
    assert metadata["input_tokens"] == one(database, "SELECT sum(input_tokens)::bigint FROM usage_records")
    assert (metadata["window_start"], metadata["window_end"]) == (START.isoformat(), END.isoformat())
    assert "| acme/good |" in metadata["connections"] and metadata["failed_connections"] == 0
