"""Vertex AI: Cloud Monitoring, answered by the simulator by gRPC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tests.providers.cases.simulated import ORG, SimulatedCase
from tests.providers.conformance import DAY, NOW, Totals
from tokentra_dagster.providers.base import ConnectionConfig, Source, Window
from tokentra_dagster.providers.google import GoogleSource
from tokentra_dagster.providers.google_metrics import SPANS
from tokentra_dagster.simulator.google_streams import google_projects


class GoogleCase(SimulatedCase):
    name = provider = "google"
    path = "token_count"
    secret = f"google-token-{ORG}"
    # The simulator keeps everything, and so does whoever sets retention_days.
    long_windows = (timedelta(days=31), timedelta(days=93))

    # gRPC's own threads do not survive a fork.
    may_fork = False

    def crowd(self, times: int) -> tuple[Window, int | None]:
        """Whole days: busy hours fill more of a histogram than quiet ones."""
        self.fixture("monkeypatch").setitem(SPANS, "1h", timedelta(hours=6))
        return Window(DAY - timedelta(days=times), DAY, "1h"), None

    def source(self, **options: str) -> Source:
        projects = ",".join(google_projects(self.simulator.simulation.organisation(ORG)))
        given = {"projects": projects, "retention_days": "120", "max_retries": "1", "timeout_seconds": "2"} | options
        return GoogleSource(ConnectionConfig("google", self.secret, self.simulator.google_url, given), now=lambda: NOW)

    def truth(self, start: datetime, end: datetime) -> Totals:
        used = self.simulator.simulation.totals(ORG, "google", "vertex", start, end)
        read, written = used.get("cache_read", 0), used.get("cache_5m", 0) + used.get("cache_1h", 0)
        return +Totals(
            requests=used.get("requests", 0), output=used.get("output", 0), cached=read, written=written,
            input=sum(used.get(unit, 0) for unit in ("input", "input_audio", "uncached")) + read + written,
        )  # fmt: skip

    def empty_window(self) -> Window:
        """Tomorrow: what is older than it keeps, Google has forgotten."""
        return Window(datetime(2026, 11, 25, tzinfo=UTC), datetime(2026, 11, 26, tzinfo=UTC), "1h")
