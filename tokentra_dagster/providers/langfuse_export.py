"""Langfuse's scheduled export to blob storage: the observations of `observations_v2/`, from a folder or S3 (providers.md 6.3).

Below the prefix each project has a folder, a further integration of it one inside, with `observations_v2/`, `manifests/` and others.
A run exports what began in one window, both of whose ends belong to it, into a file that is named by the window's end. So a window is
read from the files that end in it or up to a week after it, and an observation that is in two files counts once: the newer file's.
A run is complete when its manifest is there; without one its files are left out, unless they are older than the first manifest.
What an observation says is in `langfuse_generations`; of prompts and answers nothing is kept.

Sources: https://langfuse.com/docs/api-and-data-platform/features/export-to-blob-storage and .../blob-storage-export-fields;
langfuse/langfuse, worker/src/features/blobstorage/ (names of files, manifest), packages/shared/src/server/repositories/events.ts
(an observation is in the window of its start_time).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from tokentra_dagster.errors import PermanentError
from tokentra_dagster.providers import export_place, langfuse_generations
from tokentra_dagster.providers.base import ConnectionConfig, Window
from tokentra_dagster.providers.export_place import Place, place_of
from tokentra_dagster.providers.export_rows import is_table, rows
from tokentra_dagster.providers.langfuse_generations import TYPES, Generations
from tokentra_dagster.providers.options import Options
from tokentra_dagster.providers.payload import BadItem, optional_utc_instant, utc_instant
from tokentra_dagster.records import EntityName, Item, RejectedItem

OPTIONS = (*export_place.OPTIONS, *langfuse_generations.OPTIONS)
TABLE = "observations_v2"
LONGEST_RUN = timedelta(days=7)
"""The longest window that can be chosen for a run."""
SETTLED = timedelta(days=2)
"""What a scheduled sync reads again; runs further apart come too late for it."""
_COLUMNS = (
    "id", "trace_id", "project_id", "type", "level", "user_id", "environment", "start_time", "end_time", "completion_start_time",
    "provided_model_name", "usage_details",
)  # fmt: skip
_SECOND = timedelta(seconds=1)
_END = re.compile(r"(?:^|/)(\d{4}-\d\d-\d\d)T(\d\d)-(\d\d)-(\d\d)\.[a-z.]+$")
_NO_PROJECT = frozenset((TABLE, "manifests", "scores", "traces", "observations"))


@dataclass(frozen=True, slots=True)
class _Run:
    """What a manifest says of one run: its window, when it was complete, and its files of observations."""

    start: datetime
    written: datetime
    keys: tuple[str, ...]


class LangfuseExportSource:
    """The exports below one place, for one provider."""

    def __init__(self, config: ConnectionConfig) -> None:
        options = Options(config, OPTIONS)
        self._name = config.asked
        self._generations = Generations(config, options)
        self._place: Place = place_of(config, options)
        self._remarks: list[str] = []

    def usage(self, window: Window) -> Iterator[Item]:
        """Records of the generations that began in the window."""
        self._remarks = []
        found = [file for root in self._roots() for file in self._files(root, window)]
        # The newest file first: of an observation that comes again, the first counts.
        yield from self._generations.records(self._observations([key for _, key in sorted(found, reverse=True)], window), window)

    def costs(self, window: Window) -> Iterator[Item]:
        """Nothing: its costs are estimates."""
        yield from ()

    def names(self) -> Iterator[EntityName]:
        """Nothing: an observation names its user itself."""
        yield from ()

    def remarks(self) -> list[str]:
        return [*self._remarks, *self._generations.remarks()]

    def check(self) -> str:
        """The newest file. Raises as `usage` does."""
        roots = self._roots()
        ends = (end for root in roots for file in self._place.objects(f"{root}{TABLE}/") if (end := _end_of(file.key)))
        newest = max(ends, default=None)
        said = f"newest run up to {newest:%Y-%m-%d %H:%M} UTC" if newest else "no run yet"
        return f"{self._name}: {len(roots)} exports below {self._place.url}; {said}"

    # ---- Which files there are ---------------------------------------------------------------------------------------

    def _roots(self) -> list[str]:
        """The folders that hold `observations_v2/`: of the place itself, its projects, and their further integrations."""
        found: list[str] = []
        level = [""]
        for _ in range(3):
            deeper: list[str] = []
            for root in level:
                names = self._place.folders(root)
                found += [root] if TABLE in names else []
                deeper += [f"{root}{name}/" for name in names if name not in _NO_PROJECT]
            level = deeper
        if not found:
            raise PermanentError(
                f"{self._name}: {self._place.url} holds no PROJECT/{TABLE}/; correct the option location, and export enriched observations"
            )
        return found

    def _files(self, root: str, window: Window) -> Iterator[tuple[tuple[datetime, datetime], str]]:
        """The complete files that can hold observations of the window, each with when it was written and the end of its run."""
        first = next((end for file in self._place.objects(f"{root}manifests/") if (end := _end_of(file.key))), None)
        runs = {key: run for run in self._runs(root, window) for key in run.keys}
        there: set[str] = set()
        ends: list[datetime] = []
        unfinished: list[str] = []
        for key, end in self._named(f"{root}{TABLE}/", window):
            there.add(key)
            ends.append(end)
            if run := runs.get(key):
                if run.start < window.end:
                    yield (run.written, end), key
            elif first is None or end < first:
                yield (end, end), key
            else:
                unfinished.append(key)
        if unfinished:
            self._remarks.append(
                f"{self._name}: {len(unfinished)} files were left out, because their runs have no manifest and are not complete "
                f"({', '.join(unfinished[:3])})"
            )
        if lost := sorted(key for key, run in runs.items() if run.start < window.end and key not in there):
            raise PermanentError(
                f"{self._name}: a manifest names {lost[0]}, which is not there; nothing was loaded, copy the whole run"
            )
        if ends and (apart := max((b - a for a, b in pairwise(ends)), default=timedelta())) > SETTLED:
            self._remarks.append(
                f"{self._name}: runs of {root or self._place.url} are up to {apart.days} days apart, later than what a scheduled sync reads "
                "again; export daily or more often, or sync those days by hand"
            )

    def _named(self, folder: str, window: Window) -> Iterator[tuple[str, datetime]]:
        """Files whose run ends in the window or up to the longest run after it, with that end. Names are cut to whole seconds."""
        since = window.start - _SECOND
        for file in self._place.objects(folder, after=f"{folder}{since:%Y-%m-%dT%H-%M-%S}"):
            end = _end_of(file.key)
            if end is None:
                if is_table(file.key):
                    self._remarks.append(f"{self._name}: {file.key} is named by no time and was left out")
            elif since <= end <= window.end + LONGEST_RUN:
                yield file.key, end

    def _runs(self, root: str, window: Window) -> Iterator[_Run]:
        for key, end in self._named(f"{root}manifests/", window):
            with self._place.opened(key) as file:
                try:
                    said = json.load(file)
                    # Keys are the bucket's; a copy may lie elsewhere.
                    names = [str(one["key"]).rpartition("/")[2] for one in said["files"] if one["table"] == TABLE]
                    start = utc_instant(said["window"], "minTimestamp")
                    written = optional_utc_instant(said, "createdAt") or end
                except (ValueError, KeyError, TypeError) as error:
                    raise PermanentError(
                        f"{self._name}: {key} is no manifest of an export ({type(error).__name__}: {error}); nothing was loaded, copy it again"
                    ) from None
            yield _Run(start, written, tuple(f"{root}{TABLE}/{name}" for name in names))

    # ---- What a row says ---------------------------------------------------------------------------------------------

    def _observations(self, keys: Iterable[str], window: Window) -> Iterator[Mapping[str, Any] | RejectedItem]:
        """Observations of requests to a model, in the API's spelling. A row that is none has no time: every window that reads it says so."""
        for key in keys:
            with self._place.opened(key) as file:
                for number, row in rows(file, key, _COLUMNS):
                    try:
                        if isinstance(row, BadItem):
                            raise row
                        if row.get("type") is None:
                            raise BadItem("the row has no type")
                        if row["type"] in TYPES:
                            yield _observation(row)
                    except BadItem as bad:
                        kept = {"file": key, "row": number}
                        yield RejectedItem(reason=f"{self._name}: {bad}", payload=kept, bucket_start=window.start)


def _observation(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """As the API says it. Raises `BadItem` for a time that is none."""
    start = utc_instant(row, "start_time")
    return {
        "id": row.get("id"),
        "traceId": row.get("trace_id"),
        "type": row["type"],
        "startTime": start.isoformat(),
        "projectId": row.get("project_id"),
        "userId": row.get("user_id"),
        "environment": row.get("environment"),
        "level": row.get("level"),
        "model": row.get("provided_model_name"),
        "usageDetails": _usage(row),
        # The columns latency and time_to_first_token are in milliseconds in exports from before April 2026.
        "latency": _seconds(start, optional_utc_instant(row, "end_time")),
        "timeToFirstToken": _seconds(start, optional_utc_instant(row, "completion_start_time")),
    }


def _usage(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """An object, also as text (CSV); its counts may be text (ClickHouse quotes large numbers). Raises `BadItem` for what is none."""
    said = row.get("usage_details")
    if isinstance(said, str):
        try:
            said = json.loads(said)
        except ValueError:
            raise BadItem("usage_details is no JSON object") from None
    if said is None:
        return None
    if not isinstance(said, Mapping):
        raise BadItem(f"usage_details is {said!r}; an object is required")
    return {
        name: int(count) if isinstance(count, str) and count.isascii() and count.isdigit() else count
        for name, count in said.items()
    }


def _seconds(start: datetime, end: datetime | None) -> float | None:
    return None if end is None else (end - start).total_seconds()


def _end_of(key: str) -> datetime | None:
    """The end of the run that a file is named by."""
    found = _END.search(key)
    try:
        return datetime.fromisoformat(f"{found[1]}T{found[2]}:{found[3]}:{found[4]}").replace(tzinfo=UTC) if found else None
    except ValueError:
        return None
