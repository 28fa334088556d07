"""Langfuse, answered by a local server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from tests.providers.conformance import DAY, HOURS, NOW, Case, Totals
from tests.providers.langfuse_server import PUBLIC, SECRET, Langfuse, generations
from tokentra_dagster.providers import open_source
from tokentra_dagster.providers.base import ConnectionConfig, Source, Window


class LangfuseCase(Case):
    name = "langfuse"
    secret = SECRET

    @contextmanager
    def running(self, folder: Path) -> Iterator[None]:
        self.peer = Langfuse(generations(6, DAY - timedelta(days=92), NOW, 1500))
        with self.peer.running():
            yield

    def source(self, **options: str) -> Source:
        given = {"max_retries": "1", "timeout_seconds": "2"} | options
        return open_source(ConnectionConfig("openai", f"{PUBLIC}:{SECRET}", self.peer.url, given, "langfuse"))

    def truth(self, start: datetime, end: datetime) -> Totals:
        found: Totals = Totals()
        for one in self.peer.made:
            if one.model.startswith("gpt") and start <= one.at < end:
                found.update(requests=1, input=one.sent, output=one.received, cached=one.read, written=one.written)
        return +found

    def answers(self) -> int:
        return self.peer.answers

    def restate(self, start: datetime, end: datetime) -> None:
        self.peer.made = [replace(one, received=one.received + 3) if start <= one.at < end else one for one in self.peer.made]

    def crowd(self, times: int) -> tuple[Window, int | None]:
        self.peer.made = generations(11, DAY, DAY + HOURS, 300 * times)
        return Window(DAY, DAY + HOURS, "1h"), 300 * times

    def fault(self, kind: str, times: int = 1) -> None:
        self.peer.patience = self.patience
        self.peer.faults += [kind] * times
