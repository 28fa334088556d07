"""Azure OpenAI: Azure Monitor and Resource Manager, answered by the simulator."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.providers.cases.simulated import ORG, SimulatedCase
from tests.providers.conformance import NOW, Totals
from tokentra_dagster.providers.azure import AzureSource
from tokentra_dagster.providers.azure_metrics import SPANS
from tokentra_dagster.providers.base import ConnectionConfig, Source, Window
from tokentra_dagster.simulator.azure_streams import SUBSCRIPTIONS


class AzureCase(SimulatedCase):
    name = provider = "azure"
    path = "getBatch"
    secret = f"azure-token-{ORG}"
    # Azure keeps 93 days up to now, and the window ends before that.
    long_windows = (timedelta(days=31), timedelta(days=89))

    def short_pages(self, patch: pytest.MonkeyPatch) -> None:
        patch.setitem(SPANS, "1h", timedelta(hours=6))

    def source(self, **options: str) -> Source:
        given = {"subscriptions": SUBSCRIPTIONS[ORG], "max_retries": "1", "timeout_seconds": "2"} | options
        return AzureSource(ConnectionConfig("azure", self.secret, self.simulator.azure_url, given), now=lambda: NOW)

    def truth(self, start: datetime, end: datetime) -> Totals:
        used = self.simulator.simulation.totals(ORG, "azure", "models", start, end)
        read, written = used.get("cache_read", 0), used.get("cache_5m", 0) + used.get("cache_1h", 0)
        return +Totals(
            requests=used.get("requests", 0), input=used.get("input", 0) + used.get("uncached", 0) + read + written,
            output=used.get("output", 0), cached=read, written=written,
        )  # fmt: skip

    def empty_window(self) -> Window:
        """Tomorrow: what is older than 93 days, Azure has forgotten."""
        return Window(datetime(2026, 11, 25, tzinfo=UTC), datetime(2026, 11, 26, tzinfo=UTC), "1h")
