"""Claude Code and Codex: folders written by the simulator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

from tests.providers.conformance import DAY, NOW, PERMANENT, TRANSIENT, Case, Totals
from tokentra_dagster.providers import open_source
from tokentra_dagster.providers.base import ConnectionConfig, Source
from tokentra_dagster.simulator import session_logs

FILES = "it is a folder of files: nobody is asked over a network"


class _SessionLogsCase(Case):
    provider: ClassVar[str]
    models: ClassVar[tuple[str, ...]]
    writer: ClassVar[Any]
    has_writes: ClassVar[bool] = False
    mark: ClassVar[str]
    not_applicable: ClassVar = dict.fromkeys((*PERMANENT, *TRANSIENT, "paging", "secret"), FILES) | {
        "memory": "what repeats an earlier line is known when all are read, so a person's requests of the window are kept, without their texts"
    }

    @contextmanager
    def running(self, folder: Path) -> Iterator[None]:
        self.folder = folder
        self.made = session_logs.requests(4, DAY - timedelta(days=90), NOW, self.models, 900)
        self._write()
        yield

    def source(self, **options: str) -> Source:
        return open_source(ConnectionConfig(self.provider, "", None, {"folder": str(self.folder)} | options, self.name))

    def truth(self, start: datetime, end: datetime) -> Totals:
        found: Totals = Totals()
        for one in self.made:
            if start <= one.at < end:
                written = one.written_5m + one.written_1h if self.has_writes else 0
                found.update(requests=1, input=one.input_tokens, output=one.output_tokens, cached=one.cached, written=written)
        return +found

    def restate(self, start: datetime, end: datetime) -> None:
        self.made = [replace(one, output_tokens=one.output_tokens + 7) if start <= one.at < end else one for one in self.made]
        self._write()

    def fault(self, kind: str, times: int = 1) -> None:
        path = next(path for path in sorted(self.folder.rglob("*.jsonl")) if "archived_sessions" not in path.parts)
        lines = path.read_text().splitlines(keepends=True)
        place = next(number for number, line in enumerate(lines) if self.mark in line)
        half = lines[place][: len(lines[place]) // 2] + self.mark + "\n"
        lines[place] = half if kind == "truncated" else lines[place].replace('"output_tokens": ', '"output_tokens": -')
        path.write_text("".join(lines))

    def _write(self) -> None:
        type(self).writer(self.folder, self.made)


class ClaudeCodeCase(_SessionLogsCase):
    name = "claude_code"
    provider = "anthropic"
    models = ("claude-sonnet-4-6", "claude-haiku-4-5-20251001")
    writer = staticmethod(session_logs.write_claude_code)
    has_writes = True
    mark = '"usage"'


class CodexCase(_SessionLogsCase):
    name = "codex"
    provider = "openai"
    models = ("gpt-5.4", "gpt-5.4-mini")
    writer = staticmethod(session_logs.write_codex)
    mark = '"token_count"'
