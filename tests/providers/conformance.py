"""What every source must do, said once: a `Case` starts a real peer with known usage; `test_conformance.py` asks all of them the same.

A new source writes one file in `tests/providers/cases/` and is listed in `cases/__init__.py`. What does not apply to it, it says in
`not_applicable`, with the reason: the suite shows that as a skip.
"""

from __future__ import annotations

import gc
import multiprocessing
import tracemalloc
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import clear_cache

from tokentra_dagster.providers.base import Source, Window
from tokentra_dagster.records import Item, UsageRecord

NOW = datetime(2026, 11, 24, 13, 37, tzinfo=UTC)
"""The moment at which every peer stands still."""
DAY = datetime(2026, 11, 20, tzinfo=UTC)
"""A whole day that every peer has usage of, and that is restated no more unless `restate` says so."""
ONE_DAY = timedelta(days=1)
HOURS = timedelta(hours=3)
"""Those that `crowd` fills where the peer lists requests: few, so that what is kept for each hour is soon all there."""
PERMANENT = ("wrong_key", "forbidden")
TRANSIENT = ("rate_limit", "server_error", "timeout", "dropped")
BROKEN = ("truncated", "bad_record")
TOPICS = ("paging", "restatement", *PERMANENT, *TRANSIENT, *BROKEN, "secret", "patience", "memory")

FORK = multiprocessing.get_context("fork")

Totals = Counter[str]
"""requests, input, output, cached, written: what counts in a window. What a source cannot tell is in nobody's totals."""


class Case(ABC):
    """One source's peer."""

    name: ClassVar[str]
    """The integration."""
    not_applicable: ClassVar[Mapping[str, str]] = {}
    """Topic -> why the source has no such thing."""
    fixture: Callable[[str], Any]
    """A fixture of the tests by its name, e.g. `server_url`."""
    secret: ClassVar[str] = ""
    """What must appear in no error, log or repr."""
    long_windows: ClassVar[tuple[timedelta, timedelta]] = (timedelta(days=31), timedelta(days=93))
    """Of hours and of days: what is beyond the providers' own limits."""
    largest_day: ClassVar[timedelta] = ONE_DAY
    """How much of a day is read where a whole one would be large."""
    patience: float = 0.0
    """Seconds for which the fault `rate_limit` asks (Retry-After)."""

    may_fork: ClassVar[bool] = True
    """Whether the source can be read in a forked process."""

    @abstractmethod
    def running(self, folder: Path) -> AbstractContextManager[None]:
        """Start the peer. `folder` is this test's own."""

    @abstractmethod
    def source(self, **options: str) -> Source:
        """The source at the peer, with the right key and at most one retry."""

    @abstractmethod
    def truth(self, start: datetime, end: datetime) -> Totals:
        """By the peer's own account, never through the source."""

    def answers(self) -> int:
        """How many requests the peer has answered so far."""
        raise NotImplementedError

    def restate(self, start: datetime, end: datetime) -> None:
        """Change what was used in the past."""
        raise NotImplementedError

    def fault(self, kind: str, times: int = 1) -> None:
        """Let the next `times` answers go wrong: one of PERMANENT, TRANSIENT, BROKEN. `rate_limit` asks for `patience`."""
        raise NotImplementedError

    def crowd(self, times: int) -> tuple[Window, int | None]:
        """A window with `times` as much to read as with one, many pages long, and of how many requests; None where the peer itself
        sums them, so that each record is what is read."""
        raise NotImplementedError

    def empty_window(self) -> Window:
        """One without any usage, of which the source may speak."""
        return Window(datetime(2023, 6, 1, tzinfo=UTC), datetime(2023, 6, 2, tzinfo=UTC), "1h")


def peak(source: Source, window: Window, may_fork: bool) -> tuple[int, int]:
    """Bytes that reading the window needs at its peak when nothing of it is kept, and how many items it gave. In a process of its own:
    what the peer needs is not counted; unless it may not fork."""
    if not may_fork:
        try:
            return _needed(source, window)
        finally:
            tracemalloc.stop()
            gc.unfreeze()
    here, there = FORK.Pipe()
    reader = FORK.Process(target=lambda: there.send(_needed(source, window)), daemon=True)
    reader.start()
    try:
        assert here.poll(60), "it did not end in a minute"
        found: tuple[int, int] = here.recv()
        return found
    finally:
        reader.kill()
        reader.join()


def _needed(source: Source, window: Window) -> tuple[int, int]:
    # What was there before is not looked at; circular rubbish and the addresses that urllib remembers would look like something kept.
    gc.freeze()
    tracemalloc.start()
    items = 0
    for _ in source.usage(window):
        items += 1
        clear_cache()
        gc.collect()
    return tracemalloc.get_traced_memory()[1], items


def totals(items: Iterable[Item]) -> Totals:
    """What usage records add up to."""
    found: Totals = Counter()
    for item in items:
        if isinstance(item, UsageRecord):
            found.update(
                requests=item.request_count or 0, input=item.input_tokens, output=item.output_tokens,
                cached=item.cached_input_tokens or 0, written=item.cache_creation_tokens or 0,
            )  # fmt: skip
    return +found


def key_of(record: UsageRecord) -> tuple[object, ...]:
    """All that a record says, so that two readings can be compared."""
    return tuple(repr(getattr(record, name)) for name in UsageRecord.__slots__)
