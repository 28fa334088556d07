"""OpenAI and Anthropic, answered by the simulator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import ClassVar

import pytest

from tests.providers.conformance import DAY, NOW, Case, Totals
from tokentra_dagster.providers import anthropic, openai
from tokentra_dagster.providers.anthropic import AnthropicSource
from tokentra_dagster.providers.base import ConnectionConfig, Source, Window
from tokentra_dagster.providers.openai import OpenAISource
from tokentra_dagster.simulator.faults import Fault
from tokentra_dagster.simulator.server import RunningSimulator

FAULTS = {
    "wrong_key": "revoked_key", "forbidden": "forbidden", "rate_limit": "rate_limit", "server_error": "server_error",
    "timeout": "timeout", "dropped": "dropped", "truncated": "truncated_json", "bad_record": "bad_record",
}  # fmt: skip
ORG = "globex"
_INPUT = {
    "text", "audio", "image", "uncached", "cached_text", "cached_audio", "cached_image", "cache_read", "cache_write_30m",
    "cache_write_12h", "cache_5m", "cache_1h",
}  # fmt: skip
_CACHED = {"cached_text", "cached_audio", "cached_image", "cache_read"}
_WRITTEN = {"cache_write_30m", "cache_write_12h", "cache_5m", "cache_1h"}


class SimulatedCase(Case):
    provider: ClassVar[str]
    endpoints: ClassVar[tuple[str, ...]]
    path: ClassVar[str] = ""

    @contextmanager
    def running(self, folder: Path) -> Iterator[None]:
        with RunningSimulator(now=NOW) as self.simulator:
            yield

    def truth(self, start: datetime, end: datetime) -> Totals:
        found: Totals = Counter()
        for endpoint in self.endpoints:
            used = self.simulator.simulation.totals(ORG, self.provider, endpoint, start, end)
            found.update(
                requests=used.get("requests", 0),
                input=sum(used.get(unit, 0) for unit in _INPUT),
                output=sum(count for unit, count in used.items() if unit.startswith("output")),
                cached=sum(used.get(unit, 0) for unit in _CACHED),
                written=sum(used.get(unit, 0) for unit in _WRITTEN),
            )
        return +found

    def answers(self) -> int:
        return self.simulator.simulation.requests.total()

    def restate(self, start: datetime, end: datetime) -> None:
        self.simulator.simulation.restate(ORG, self.provider, 1.3, start=start, end=end)

    def fault(self, kind: str, times: int = 1) -> None:
        patience = self.patience if kind == "rate_limit" else None
        self.simulator.simulation.faults.add(
            Fault(FAULTS[kind], self.provider, self.path, times, retry_after=patience, seconds=5)
        )

    def crowd(self, times: int) -> tuple[Window, int | None]:
        self.short_pages(self.fixture("monkeypatch"))
        return Window(DAY - times * timedelta(hours=6), DAY, "1h"), None

    def short_pages(self, patch: pytest.MonkeyPatch) -> None:
        """Pages of about three hours, so that a short window has several."""


class OpenAICase(SimulatedCase):
    name = provider = "openai"
    endpoints = ("completions", "embeddings", "moderations")
    path = "usage/completions"
    secret = f"sk-admin-{ORG}"

    def short_pages(self, patch: pytest.MonkeyPatch) -> None:
        patch.setitem(openai.USAGE_LIMITS, "1h", 3)

    def source(self, **options: str) -> Source:
        given = {"endpoints": ",".join(self.endpoints), "max_retries": "1", "timeout_seconds": "2"} | options
        return OpenAISource(ConnectionConfig("openai", self.secret, self.simulator.openai_url, given))


class AnthropicCase(SimulatedCase):
    name = provider = "anthropic"
    endpoints = ("messages",)
    path = "analytics/usage"
    secret = f"sk-ant-admin01-{ORG}"

    def short_pages(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(anthropic, "ROWS_PER_PAGE", 30)

    def source(self, **options: str) -> Source:
        given = {"max_retries": "1", "timeout_seconds": "2"} | options
        return AnthropicSource(ConnectionConfig("anthropic", self.secret, self.simulator.anthropic_url, given), now=lambda: NOW)
