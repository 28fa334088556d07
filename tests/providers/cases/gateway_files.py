"""Gateways that are read from exported files: Langfuse's scheduled exports and Helicone's export tool."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import ClassVar

from tests.providers import helicone_files, langfuse_files
from tests.providers.cases.coding_tools import FILES
from tests.providers.conformance import DAY, HOURS, NOW, ONE_DAY, PERMANENT, TRANSIENT, Case, Totals
from tests.providers.langfuse_server import generations
from tokentra_dagster.providers import open_source
from tokentra_dagster.providers.base import ConnectionConfig, Source, Window

_BEGIN = DAY - timedelta(days=92)
_NETWORK = dict.fromkeys((*PERMANENT, *TRANSIENT, "paging", "secret"), FILES + "; S3 is in test_langfuse_export_source.py")


class LangfuseExportCase(Case):
    name = "langfuse_export"
    not_applicable: ClassVar = _NETWORK

    @contextmanager
    def running(self, folder: Path) -> Iterator[None]:
        self.folder = folder
        self.made = generations(7, _BEGIN, NOW, 1500)
        self._write()
        yield

    def source(self, **options: str) -> Source:
        return open_source(ConnectionConfig("openai", "", None, {"location": str(self.folder)} | options, self.name))

    def truth(self, start: datetime, end: datetime) -> Totals:
        found: Totals = Totals()
        for one in self.made:
            if one.model.startswith("gpt") and start <= one.at < end:
                found.update(requests=1, input=one.sent, output=one.received, cached=one.read, written=one.written)
        return +found

    def crowd(self, times: int) -> tuple[Window, int | None]:
        self.made = generations(11, DAY, DAY + HOURS, 300 * times)
        self._write()
        return Window(DAY, DAY + HOURS, "1h"), 300 * times

    def restate(self, start: datetime, end: datetime) -> None:
        self.made = [replace(one, received=one.received + 3) if start <= one.at < end else one for one in self.made]
        self._write()

    def fault(self, kind: str, times: int = 1) -> None:
        path = self.folder / langfuse_files.PROJECT / "observations_v2" / f"{langfuse_files.stem(DAY - timedelta(days=86))}.jsonl"
        text = path.read_text()
        path.write_text(text[: len(text) - 9] if kind == "truncated" else text.replace('"input": "', '"input": "-'))

    def _write(self) -> None:
        """Weekly runs, in the end daily and hourly ones, in every format."""
        ends = [_BEGIN + timedelta(days=6 + 7 * n) for n in range(12)]
        ends += [ends[-1] + n * ONE_DAY for n in range(1, 8)] + [DAY + timedelta(hours=n) for n in range(1, 110)]
        start = _BEGIN
        for number, end in enumerate(ends):
            kind = langfuse_files.KINDS[number % len(langfuse_files.KINDS)]
            langfuse_files.write(self.folder, langfuse_files.run(self.made, start, end, kind))
            start = end


class HeliconeCase(Case):
    name = "helicone"
    not_applicable: ClassVar = _NETWORK

    @contextmanager
    def running(self, folder: Path) -> Iterator[None]:
        self.folder = folder
        self.made = helicone_files.requests(8, _BEGIN, NOW, 1500)
        self._write()
        yield

    def source(self, **options: str) -> Source:
        return open_source(ConnectionConfig("openai", "", None, {"location": str(self.folder)} | options, self.name))

    def truth(self, start: datetime, end: datetime) -> Totals:
        found: Totals = Totals()
        for one in self.made:
            if one.provider == "OPENAI" and start <= one.at < end:
                told = not one.is_cached
                found.update(
                    requests=1,
                    input=one.sent * told,
                    output=one.received * told,
                    cached=one.read * told,
                    written=one.written * told,
                )
        return +found

    def crowd(self, times: int) -> tuple[Window, int | None]:
        self.made = helicone_files.requests(11, DAY, DAY + HOURS, 300 * times)
        self._write()
        return Window(DAY, DAY + HOURS, "1h"), 300 * times

    def restate(self, start: datetime, end: datetime) -> None:
        self.made = [replace(one, received=one.received + 3) if start <= one.at < end else one for one in self.made]
        self._write()

    def fault(self, kind: str, times: int = 1) -> None:
        path = self.folder / "0.jsonl"
        text = path.read_text()
        path.write_text(text[: len(text) - 9] if kind == "truncated" else text.replace('"prompt_tokens": ', '"prompt_tokens": -'))

    def _write(self) -> None:
        """Four files that overlap, in both formats that say everything."""
        mixed = random.Random(9).sample(self.made, len(self.made))
        fourth = len(mixed) * 7 // 30
        for n in range(4):
            part = mixed[n * fourth : n * fourth + fourth * 4 // 3]
            (self.folder / f"{n}.jsonl").write_text(helicone_files.lines(part))
        (self.folder / "rest.json").write_text(helicone_files.array(mixed[4 * fourth :]))
