"""Folders of JSONL session logs that coding tools leave on a machine: which files, which lines, and requests summed into records.

Of a line only counts, times, models and ids are taken; what was said is never stored, also not of a line that is refused.
Sources: providers.md 6.5. Each tool's own rules are in its module.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from tokentra_dagster.errors import PermanentError
from tokentra_dagster.providers.base import ConnectionConfig, Window
from tokentra_dagster.providers.options import Options
from tokentra_dagster.providers.payload import BadItem
from tokentra_dagster.providers.request_groups import prompt_length
from tokentra_dagster.records import GRANULARITY_SECONDS, EntityName, Item, RejectedItem, UsageRecord, floor

OPTIONS = ("folder", "layout", "user", "billing")
LAYOUTS = ("person", "people")
BILLING = ("subscription", "api")
LONGEST_LINE = 64 << 20
"""A line can hold a whole file that the model was shown."""
MARGIN = timedelta(hours=1)
"""One answer is written as several lines; those of one beside the window's edge are looked for so far."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request of the tool to a model. Tokens as in `UsageRecord`; `None` is not said."""

    at: datetime
    model: str
    input_tokens: int
    output_tokens: int
    cached: int | None
    written: int | None
    details: tuple[tuple[str, int], ...] = ()
    folder: str | None = None
    """The directory in which the tool ran."""
    user: str | None = None
    is_subagent: bool = False
    tier: str | None = None


@dataclass(frozen=True, slots=True)
class Log:
    """A file, its name within the folder of whoever used the tool, and who that was."""

    path: Path
    name: str
    user: str | None


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is JSON, and where it stands."""

    file: str
    number: int
    value: Mapping[str, Any]

    def rejected(self, tool: str, reason: object, at: datetime | None) -> RejectedItem:
        return RejectedItem(reason=f"{tool}: {reason}", payload={"file": self.file, "line": self.number}, bucket_start=at)


class SessionLogs:
    """The folders of one connection, and how its usage is billed."""

    def __init__(self, config: ConnectionConfig, tool: str, lengths: Sequence[int], longest: int) -> None:
        options = Options(config, OPTIONS)
        self._tool, self._lengths, self._longest = tool, lengths, longest
        self.folders = tuple(Path(text).expanduser() for text in options.texts("folder"))
        if not self.folders:
            raise PermanentError(f"{tool}: the option folder is missing; give it the folder of the logs, e.g. folder=~/.claude")
        self._people = options.one_of("layout", LAYOUTS, "person") == "people"
        self._user = options.text("user")
        if self._people and self._user:
            raise options.wrong("user", self._user, "with layout=people each folder's own name is the user; leave user out")
        self._billing = options.one_of("billing", BILLING, "subscription")
        self._projects: set[str] = set()

    def check(self) -> str:
        """How many logs there are. Raises `PermanentError` for a folder that is none or cannot be read."""
        count = sum(1 for _ in self.every_file(("**/*.jsonl",)))
        return f"{self._tool}: {count:,} session logs in {', '.join(map(str, self.folders))}"

    def files(self, patterns: Sequence[str], since: datetime) -> Iterator[Log]:
        """Logs that may hold lines from `since` on, in order."""
        for log in self.every_file(patterns):
            # What was last written before cannot speak of later.
            if datetime.fromtimestamp(log.path.stat().st_mtime, UTC) >= since:
                yield log

    def every_file(self, patterns: Sequence[str]) -> Iterator[Log]:
        """All logs. Raises `PermanentError` for a folder that is none."""
        for folder in self.folders:
            if not folder.is_dir():
                raise PermanentError(f"{self._tool}: there is no folder {folder}; correct the option folder")
            below = sorted(path for path in folder.iterdir() if path.is_dir()) if self._people else [folder]
            for own in below:
                user = own.name if self._people else self._user
                for pattern in patterns:
                    for path in sorted(own.glob(pattern)):
                        if path.is_file():
                            yield Log(path, str(path.relative_to(own)), user)

    def lines(self, log: Log, marks: Sequence[bytes]) -> Iterator[Line | RejectedItem]:
        """The lines that contain one of `marks`. One that is no JSON is rejected; the last may be half written and comes again."""
        number, name = 0, f"{log.user}/{log.name}" if self._people else log.name
        try:
            with log.path.open("rb") as file:
                while line := file.readline(LONGEST_LINE):
                    number += 1
                    is_whole = line.endswith(b"\n")
                    if not any(mark in line for mark in marks):
                        continue
                    try:
                        value = json.loads(line)
                        if not isinstance(value, Mapping):
                            raise ValueError
                    except (ValueError, RecursionError):
                        if is_whole or len(line) == LONGEST_LINE:
                            yield Line(name, number, {}).rejected(self._tool, "the line is no JSON object", None)
                        continue
                    yield Line(name, number, value)
        except OSError as error:
            raise PermanentError(
                f"{self._tool}: {log.path} cannot be read ({error.strerror}); allow it to the user that syncs"
            ) from None

    def records(self, calls: Iterable[Call], window: Window) -> Iterator[UsageRecord]:
        """One record for what shares every dimension; prompts of another price tier are apart (`context_window`)."""
        sums: dict[tuple[Any, ...], list[Any]] = {}
        for call in calls:
            start = floor(call.at, window.granularity)
            length = prompt_length(call.input_tokens, self._lengths, self._longest)
            project = Path(call.folder).name if call.folder else None
            if project:
                self._projects.add(project)
            key = (
                start,
                call.model,
                call.user,
                project,
                call.is_subagent,
                call.tier,
                length,
                call.cached is None,
                call.written is None,
            )
            total = sums.setdefault(key, [0, 0, 0, 0, 0, {}])
            for place, value in enumerate((1, call.input_tokens, call.output_tokens, call.cached or 0, call.written or 0)):
                total[place] += value
            for name, value in call.details:
                total[5][name] = total[5].get(name, 0) + value
        for key in sorted(sums, key=lambda key: (key[0], str(key))):
            yield self._record(key, sums[key], window)

    def names(self) -> Iterator[EntityName]:
        """Directories in which the tool ran, as far as they were read."""
        for project in sorted(self._projects):
            yield EntityName(kind="project", id=project, name=project)

    def _record(self, key: tuple[Any, ...], total: list[Any], window: Window) -> UsageRecord:
        start, model, user, project, is_subagent, tier, length, no_reads, no_writes = key
        metadata: dict[str, Any] = {"tool": self._tool, "billing": self._billing} | ({"is_subagent": True} if is_subagent else {})
        return UsageRecord(
            bucket_start=start,
            bucket_end=start + timedelta(seconds=GRANULARITY_SECONDS[window.granularity]),
            granularity=window.granularity,
            model=model,
            request_type="chat",
            service_type="sync",
            service_tier=tier,
            request_count=total[0],
            input_tokens=total[1],
            output_tokens=total[2],
            cached_input_tokens=None if no_reads else total[3],
            cache_creation_tokens=None if no_writes else total[4],
            token_details=total[5],
            # A subscription is paid by the month; nothing is billed for a token.
            reported_cost=Decimal(0) if self._billing == "subscription" else None,
            provider_project_id=project,
            user_id=user,
            context_window=length,
            metadata=metadata,
        )


def moment_of(line: Line) -> datetime:
    """When the line was written. Raises `BadItem` without a time."""
    text = line.value.get("timestamp")
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise BadItem("timestamp is missing or is no time with its zone")
    return moment.astimezone(UTC)


def in_window(item: RejectedItem, window: Window) -> Item:
    """What cannot be dated is kept with the window that met it."""
    return item if item.bucket_start else RejectedItem(reason=item.reason, payload=item.payload, bucket_start=window.start)
