"""Import one file: look through it (`scan`), then replace the window that it covers (`load_file`).

The window is `[floor(first), ceiling(last))` in whole hours of UTC (whole days for day buckets), so a row that an older
copy of the file had in one of its hours and the new one lacks disappears, and other hours are not touched. The file is
read twice in bounded memory; it must not change in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from tokentra_dagster.errors import UsageError
from tokentra_dagster.ingest.file_columns import Rejection, convert
from tokentra_dagster.ingest.files import UsageFile, open_file
from tokentra_dagster.ingest.mapping import Plan, make_plan
from tokentra_dagster.ingest.windows import ceiling
from tokentra_dagster.providers.base import Window
from tokentra_dagster.records import floor

if TYPE_CHECKING:
    from tokentra_dagster.ingest.intake import Intake, LoadResult
    from tokentra_dagster.warehouse.database import Database
    from tokentra_dagster.warehouse.directory import ConnectionRow

MOST_KINDS = 100
MOST_MODELS = 1_000
OTHER = "other reasons"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportRequest:
    """What a person asked for; the options of `tokentra import`."""

    file: Path
    maps: Sequence[str] = ()
    granularity: str | None = None
    bucket_seconds: int | None = None
    timezone: str | None = None
    input_convention: str = "includes-cache"

    def open(self) -> tuple[UsageFile, Plan]:
        """The file and how to read it. Raises `UsageError` where either cannot be."""
        file = open_file(self.file)
        plan = make_plan(
            file.columns, self.maps, granularity=self.granularity, bucket_seconds=self.bucket_seconds,
            timezone=self.timezone, input_convention=self.input_convention,
        )  # fmt: skip
        return file, plan


@dataclass(slots=True)
class Reason:
    """Rows rejected for one kind of reason, and the first of them."""

    rows: int
    first: Rejection


@dataclass(slots=True)
class Scan:
    """What a file holds: rows that can be loaded and rows that cannot, with their totals. Times UTC, `[first, last)`."""

    loadable: int = 0
    rejected: int = 0
    reasons: dict[str, Reason] = field(default_factory=dict)
    first: datetime | None = None
    last: datetime | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    requests: int = 0
    unknown_tokens: int = 0
    models: dict[str, int] = field(default_factory=dict)

    def window(self, plan: Plan) -> Window:
        """What the file replaces. Raises `UsageError` when no row can be loaded."""
        if self.first is None or self.last is None:
            worst = max(self.reasons.values(), key=lambda reason: reason.rows, default=None)
            why = f" Line {worst.first.line}: {worst.first.reason}." if worst else ""
            held = f"all {self.rejected:,} are rejected" if self.rejected else "there is none"
            raise UsageError(f"The file has no row that can be loaded ({held}); nothing was changed.{why}")
        width = "1d" if plan.granularity == "1d" else "1h"
        return Window(floor(self.first, width), ceiling(self.last, width), plan.stored_granularity)


def scan(file: UsageFile, plan: Plan) -> Scan:
    """Read the whole file; changes nothing."""
    found = Scan()
    for chunk in file.chunks():
        converted = convert(chunk, plan)
        batch = converted.batch
        found.loadable += batch.num_rows
        found.unknown_tokens += converted.unknown_tokens
        for rejection in converted.rejected:
            found.rejected += 1
            known = rejection.kind in found.reasons or len(found.reasons) < MOST_KINDS
            reason = found.reasons.setdefault(rejection.kind if known else OTHER, Reason(0, rejection))
            reason.rows += 1
        if batch.num_rows == 0:
            continue
        found.input_tokens += pc.sum(batch.column("input_tokens")).as_py()
        found.output_tokens += pc.sum(batch.column("output_tokens")).as_py()
        found.requests += pc.sum(batch.column("request_count")).as_py() or 0
        first = pc.min(batch.column("bucket_start")).as_py().astimezone(UTC)
        last = pc.max(batch.column("bucket_end")).as_py().astimezone(UTC)
        found.first = first if found.first is None else min(first, found.first)
        found.last = last if found.last is None else max(last, found.last)
        for item in pc.value_counts(batch.column("model")).to_pylist():
            if item["values"] in found.models or len(found.models) < MOST_MODELS:
                found.models[item["values"]] = found.models.get(item["values"], 0) + item["counts"]
    return found


def load_file(
    database: Database, connection: ConnectionRow, file: UsageFile, plan: Plan, window: Window, run_id: str | None = None
) -> LoadResult:
    """Replace the connection's window with the file's rows, in one transaction; rejected rows are kept with line and payload."""
    from tokentra_dagster.ingest.load import load_window

    return load_window(
        database, connection, window, kind="import", fill=_filler(file, plan), settles_after=timedelta(0), run_id=run_id
    )


def _filler(file: UsageFile, plan: Plan) -> Callable[[Intake], None]:
    def fill(intake: Intake) -> None:
        for chunk in file.chunks():
            converted = convert(chunk, plan)
            for rejection in converted.rejected:
                intake.reject(rejection.reason, rejection.payload, rejection.bucket_start, rejection.line)
            if converted.batch.num_rows:
                lines = converted.lines
                intake.add(converted.batch, line=lambda row, lines=lines: int(lines[row]))  # type: ignore[misc]

    return fill
