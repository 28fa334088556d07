"""Claude Code's session logs: `projects/**/*.jsonl` below its folder, one line per message or part of one.

Rules (providers.md 6.5, after ccusage): a message is known by its id and its request's. An answer that streams is written several
times with counts that grow: the largest counts. Sessions that are resumed repeat earlier lines in a new file. A sub-agent's log
(a sidechain) may replay a message of its parent under another request id: the parent's counts. `cache_creation` is taken before the
flat field; the model `<synthetic>` is Claude Code itself. `input_tokens` is without the cache (providers.md, section 0).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from tokentra_dagster.providers.base import ConnectionConfig, Window
from tokentra_dagster.providers.payload import BadItem, optional_count, optional_text
from tokentra_dagster.providers.session_logs import MARGIN, Call, Log, SessionLogs, in_window, moment_of
from tokentra_dagster.records import EntityName, Item, RejectedItem, token_problem

TOOL = "claude_code"
PATTERNS = ("projects/**/*.jsonl",)
LENGTHS, LONGEST = (200_000,), 1_000_000
_SYNTHETIC = "<synthetic>"
_WRITES = {"ephemeral_5m_input_tokens": "cache_write_5m", "ephemeral_1h_input_tokens": "cache_write_1h"}


@dataclass(slots=True)
class _Message:
    """The best line of one message and request so far, and when its first was written."""

    call: Call
    first_at: datetime
    has_speed: bool

    @property
    def rank(self) -> tuple[bool, int, bool]:
        return (not self.call.is_subagent, self.call.input_tokens + self.call.output_tokens, self.has_speed)


_Messages = dict[str, dict[str | None, _Message]]
"""By the message's id and the request's."""


class ClaudeCodeSource:
    """The logs of one person, or of several whose folders were gathered."""

    def __init__(self, config: ConnectionConfig) -> None:
        self._logs = SessionLogs(config, TOOL, LENGTHS, LONGEST)
        self._remarks: list[str] = []

    def usage(self, window: Window) -> Iterator[Item]:
        """Records of the messages whose first line is in the window."""
        messages: _Messages = {}
        for log in self._logs.files(PATTERNS, window.start - MARGIN):
            yield from (in_window(item, window) for item in self._read(log, window, messages))
        found = (message for requests in messages.values() for message in _without_replays(requests))
        yield from self._logs.records(
            (replace(one.call, at=one.first_at) for one in found if window.start <= one.first_at < window.end), window
        )

    def costs(self, window: Window) -> Iterator[Item]:
        """Nothing: the log's costs are notional."""
        yield from ()

    def names(self) -> Iterator[EntityName]:
        yield from self._logs.names()

    def remarks(self) -> list[str]:
        return self._remarks

    def check(self) -> str:
        return self._logs.check()

    def _read(self, log: Log, window: Window, messages: _Messages) -> Iterator[RejectedItem]:
        """Take the file's messages around the window; yields what cannot be one."""
        for line in self._logs.lines(log, (b'"usage"',)):
            if isinstance(line, RejectedItem):
                yield line
                continue
            at = None
            try:
                message = line.value.get("message")
                if not isinstance(message, Mapping) or not isinstance(message.get("usage"), Mapping):
                    continue  # a tool's result may speak of usage, too
                at = moment_of(line)
                if not window.start - MARGIN <= at < window.end + MARGIN:
                    continue
                call = _call(line.value, message, at, log.user)
                if call is None:
                    continue
                # Without an id nothing tells a repeat: the line is its own message.
                requests = messages.setdefault(optional_text(message, "id") or f"{line.file}:{line.number}", {})
                request = optional_text(line.value, "requestId")
                found = _Message(call, at, "speed" in message["usage"])
                known = requests.setdefault(request, found)
                found.first_at = known.first_at = min(known.first_at, at)
                requests[request] = max(known, found, key=lambda one: one.rank)
            except BadItem as bad:
                if at is None or window.start <= at < window.end:
                    yield line.rejected(TOOL, bad, at)


def _without_replays(requests: Mapping[str | None, _Message]) -> list[_Message]:
    """Of one message's requests those of sessions; of sub-agents alone, which may all replay what is not here, the first."""
    own = [one for one in requests.values() if not one.call.is_subagent]
    return own or [min(requests.values(), key=lambda one: one.first_at)]


def _call(line: Mapping[str, Any], message: Mapping[str, Any], at: datetime, user: str | None) -> Call | None:
    """What the line says of its request; None where no provider was asked. Raises `BadItem`."""
    model = optional_text(message, "model")
    if model == _SYNTHETIC or line.get("isApiErrorMessage") is True:
        return None
    if model is None:
        raise BadItem("message.model is missing; it is required")
    usage = message["usage"]
    uncached, output = optional_count(usage, "input_tokens"), optional_count(usage, "output_tokens")
    if uncached is None or output is None:
        raise BadItem("message.usage has no input_tokens or no output_tokens; both are required")
    read = optional_count(usage, "cache_read_input_tokens")
    written, details = _written(usage)
    total = uncached + (read or 0) + (written or 0)
    if problem := token_problem(total, output, read, written):
        raise BadItem(problem)
    return Call(
        at, model, total, output, read, written, details, folder=optional_text(line, "cwd"), user=user,
        is_subagent=line.get("isSidechain") is True, tier=optional_text(usage, "service_tier"),
    )  # fmt: skip


def _written(usage: Mapping[str, Any]) -> tuple[int | None, tuple[tuple[str, int], ...]]:
    """Cache writes and their parts: the object where there is one, else the flat field."""
    parts = usage.get("cache_creation")
    if not isinstance(parts, Mapping):
        return optional_count(usage, "cache_creation_input_tokens"), ()
    details = tuple((name, optional_count(parts, field) or 0) for field, name in _WRITES.items())
    return sum(count for _, count in details), details
