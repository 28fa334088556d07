"""Codex's session logs: `sessions/YYYY/MM/DD/*.jsonl` and `archived_sessions/` below its folder.

Rules (providers.md 6.5): a `token_count` event tells the tokens of the last request and of the session so far. The last request's
count; where it is missing, the growth of the session's. An event that repeats the session's sum tells nothing new. A forked session
begins with its parent's events under new times and without ids: the longest beginning that both share is the parent's. The model is
that of the `turn_context` before. `input_tokens` holds the cache reads, `output_tokens` the reasoning (providers.md, section 0).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tokentra_dagster.providers.base import ConnectionConfig, Window
from tokentra_dagster.providers.payload import BadItem, count, optional_count, optional_text
from tokentra_dagster.providers.session_logs import Call, Line, Log, SessionLogs, in_window, moment_of
from tokentra_dagster.records import EntityName, Item, RejectedItem, token_problem

TOOL = "codex"
PATTERNS = ("sessions/**/*.jsonl", "archived_sessions/**/*.jsonl")
LENGTHS, LONGEST = (272_000,), 10_000_000
_MARKS = (b'"token_count"', b'"turn_context"', b'"session_meta"')

Counts = tuple[int, int | None, int, int | None]
"""Input, of it cached, output, of it reasoning."""


@dataclass(slots=True)
class _Event:
    """One `token_count`: what it says of the last request and of the session so far, and of which model and directory."""

    line: Line
    last: Counts | None
    total: Counts | None
    model: str | None
    folder: str | None
    problem: str | None = None

    @property
    def says(self) -> tuple[Counts | None, Counts | None]:
        return self.last, self.total


@dataclass(slots=True)
class _Session:
    forked_from: str | None = None
    is_subagent: bool = False
    events: list[_Event] = field(default_factory=list)
    rejected: list[RejectedItem] = field(default_factory=list)


class CodexSource:
    """The logs of one person, or of several whose folders were gathered."""

    def __init__(self, config: ConnectionConfig) -> None:
        self._logs = SessionLogs(config, TOOL, LENGTHS, LONGEST)
        self._parents_missing = 0

    def usage(self, window: Window) -> Iterator[Item]:
        """Records of the requests whose event is in the window."""
        rejected: list[RejectedItem] = []
        self._parents_missing = 0
        yield from self._logs.records(self._calls(window, rejected), window)
        yield from (in_window(item, window) for item in rejected)

    def costs(self, window: Window) -> Iterator[Item]:
        """Nothing: the log knows no costs."""
        yield from ()

    def names(self) -> Iterator[EntityName]:
        yield from self._logs.names()

    def remarks(self) -> list[str]:
        missing = self._parents_missing
        sessions = f"{missing} forked sessions have their parents" if missing != 1 else "One forked session has its parent"
        return [f"codex: {sessions} outside the folder; what they repeat of them is counted here"] if missing else []

    def check(self) -> str:
        return self._logs.check()

    def _calls(self, window: Window, rejected: list[RejectedItem]) -> Iterator[Call]:
        seen: set[tuple[str | None, str]] = set()
        for log in self._logs.files(PATTERNS, window.start):
            # A session that was archived meanwhile is the same session.
            place = (log.user, log.name.partition("/")[2])
            if place in seen:
                continue
            seen.add(place)
            session = self._session(log)
            rejected += session.rejected
            for event, before in _growth(session, self._repeated(session)):
                try:
                    at = moment_of(event.line)
                except BadItem as bad:
                    rejected.append(event.line.rejected(TOOL, bad, None))
                    continue
                if not window.start <= at < window.end:
                    continue
                try:
                    yield _call(event, before, at, session.is_subagent, log.user)
                except BadItem as bad:
                    rejected.append(event.line.rejected(TOOL, bad, at))

    def _session(self, log: Log) -> _Session:
        session, model, folder = _Session(), None, None
        for line in self._logs.lines(log, _MARKS):
            if isinstance(line, RejectedItem):
                session.rejected.append(line)
                continue
            payload = line.value.get("payload")
            if not isinstance(payload, Mapping):
                continue
            kind = line.value.get("type")
            if kind == "session_meta":
                session.forked_from = session.forked_from or _text(payload, "forked_from_id")
                source = payload.get("source")
                session.is_subagent = session.is_subagent or (isinstance(source, Mapping) and "subagent" in source)
                folder = _text(payload, "cwd") or folder
            elif kind == "turn_context":
                model, folder = _text(payload, "model") or model, _text(payload, "cwd") or folder
            elif kind == "event_msg" and payload.get("type") == "token_count" and isinstance(payload.get("info"), Mapping):
                session.events.append(_event(line, payload["info"], model, folder))
        return session

    def _repeated(self, session: _Session) -> int:
        """How many events at the beginning are the parent's."""
        if session.forked_from is None:
            return 0
        found = [one for one in self._logs.every_file(PATTERNS) if session.forked_from in one.path.name]
        if not found:
            self._parents_missing += 1
            return 0
        parent = self._session(found[0])
        pairs = zip(session.events, parent.events, strict=False)
        return next(
            (n for n, (own, other) in enumerate(pairs) if own.says != other.says), min(len(session.events), len(parent.events))
        )


def _growth(session: _Session, repeated: int) -> Iterator[tuple[_Event, Counts | None]]:
    """The session's own events that tell of a request, and the sum before each."""
    before: Counts | None = None
    for number, event in enumerate(session.events):
        is_news = event.total is None or event.total != before
        if number >= repeated and is_news:
            yield event, before
        before = event.total or before


def _event(line: Line, info: Mapping[str, Any], model: str | None, folder: str | None) -> _Event:
    try:
        return _Event(line, _counts(info.get("last_token_usage")), _counts(info.get("total_token_usage")), model, folder)
    except BadItem as bad:
        return _Event(line, None, None, model, folder, str(bad))


def _counts(usage: Any) -> Counts | None:
    """Raises `BadItem` for counts that cannot be."""
    if not isinstance(usage, Mapping):
        return None
    return (
        count(usage, "input_tokens"), optional_count(usage, "cached_input_tokens"), count(usage, "output_tokens"),
        optional_count(usage, "reasoning_output_tokens"),
    )  # fmt: skip


def _call(event: _Event, before: Counts | None, at: datetime, is_subagent: bool, user: str | None) -> Call:
    """Raises `BadItem`."""
    if event.problem:
        raise BadItem(event.problem)
    if event.model is None:
        raise BadItem("no turn_context before it names a model")
    tokens = event.last or (_difference(event.total, before) if event.total else None)
    if tokens is None:
        raise BadItem("it has neither last_token_usage nor total_token_usage")
    sent, cached, received, reasoning = tokens
    if problem := token_problem(sent, received, cached, None):
        raise BadItem(problem)
    details = (("reasoning", reasoning),) if reasoning is not None else ()
    return Call(at, event.model, sent, received, cached, None, details, folder=event.folder, user=user, is_subagent=is_subagent)


def _difference(total: Counts, before: Counts | None) -> Counts:
    """What was added to the session's sums; all of them where they began anew."""
    if before is None or total[0] < before[0] or total[2] < before[2]:
        return total
    grown: Sequence[int | None] = [
        None if now is None else max(now - (then or 0), 0) for now, then in zip(total, before, strict=True)
    ]
    return grown[0] or 0, grown[1], grown[2] or 0, grown[3]


def _text(payload: Mapping[str, Any], name: str) -> str | None:
    try:
        return optional_text(payload, name)
    except BadItem:
        return None
