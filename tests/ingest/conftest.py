"""The simulator with a clock that stands still, and connections to it that are synced for real."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

import pytest

from tests.simulated_sync import NOW
from tokentra_dagster.ingest import sync
from tokentra_dagster.ingest.intake import LoadResult
from tokentra_dagster.ingest.windows import aligned
from tokentra_dagster.providers import open_source
from tokentra_dagster.providers.anthropic import AnthropicSource
from tokentra_dagster.providers.base import ConnectionConfig, Source
from tokentra_dagster.simulator.server import RunningSimulator
from tokentra_dagster.simulator.simulation import KEY_PREFIX, Simulation
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import ConnectionRow, add_connection, add_organization, find_connection


@pytest.fixture(scope="session")
def shared_simulator() -> Iterator[RunningSimulator]:
    with RunningSimulator(now=NOW) as running:
        yield running


@pytest.fixture
def simulation(shared_simulator: RunningSimulator, monkeypatch: pytest.MonkeyPatch) -> Simulation:
    """Without faults or changes, at `NOW`. Anthropic's history is 365 days long, so its connector shares the clock."""
    found = shared_simulator.simulation
    found.reset()
    found.now = NOW

    def open_it(config: ConnectionConfig) -> Source:
        return AnthropicSource(config, now=found.clock) if config.provider == "anthropic" else open_source(config)

    monkeypatch.setattr(sync, "open_source", open_it)
    return found


@dataclass(frozen=True)
class Synced:
    """One connection that can be synced again and again."""

    database: Database
    connection: ConnectionRow
    simulation: Simulation

    def sync(self, start: datetime, end: datetime, granularity: str = "1h") -> LoadResult:
        window = aligned(start, end, granularity)
        return sync.sync_connection(self.database, self.connection, window, now=self.simulation.clock())


Connect = Callable[..., Synced]


@pytest.fixture
def connect(
    database: Database, shared_simulator: RunningSimulator, simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> Connect:
    """Adds a connection to the simulator; options as keywords."""
    urls = {"openai": shared_simulator.openai_url, "anthropic": shared_simulator.anthropic_url}

    def add(provider: str, org: str = "acme", **options: str) -> Synced:
        secret = f"TEST_KEY_{org}_{provider}".upper()
        monkeypatch.setenv(secret, KEY_PREFIX[provider] + org)
        quick = {"max_retries": "0", "timeout_seconds": "10"}
        with database.connect() as db:
            add_organization(db, org)
            add_connection(
                db, org=org, name=provider, provider=provider, secret_ref=f"env:{secret}", base_url=urls[provider],
                options=quick | options, source="provider_api",
            )  # fmt: skip
            return Synced(database, find_connection(db, f"{org}/{provider}"), simulation)

    return add
