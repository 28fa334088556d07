"""One row per export and due time, and the history of attempts (`app.export_runs`, `app.export_attempts`; correction 40)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.errors import UsageError
from tokentra_dagster.exports.manifest import Manifest
from tokentra_dagster.exports.scheduled.due import caught_up, due_times, is_due_time, run_id
from tokentra_dagster.exports.scheduled.schedules import ScheduledExport, locked_export
from tokentra_dagster.exports.scheduled.staging import StagedFile
from tokentra_dagster.warehouse.directory import Connection

LEFT_OUT = "It was missed while nothing ran, and the export's catch-up leaves it out; `tokentra exports run` delivers it by hand."


@dataclass(frozen=True, slots=True)
class ExportRun:
    """A row of `app.export_runs`: what became of one due time."""

    id: UUID
    export_id: UUID
    export: str
    """`ORG/NAME`, as commands take it."""
    due_at: datetime
    period: Period
    status: str
    attempts: int
    next_attempt_at: datetime
    error: str | None
    written_at: datetime | None
    written_by_attempt: int | None
    manifest: Mapping[str, Any] | None = field(repr=False)
    files: Sequence[StagedFile]
    delivered_at: datetime | None
    delivered_to: str | None


@dataclass(frozen=True, slots=True)
class Event:
    """A row of `app.export_attempts`."""

    attempt: int
    event: str
    happened_at: datetime
    started_by: str
    says: str


def plan_due(db: Connection, export_id: UUID, now: datetime) -> int:
    """Write down every due time that has come since the last one; how many are new. Nothing of a paused export. One transaction."""
    with db.transaction():
        export = locked_export(db, export_id)
        if export is None or not export.enabled:
            return 0
        row = db.execute("SELECT max(due_at) AS newest FROM app.export_runs WHERE export_id = %s", [export_id]).fetchone()
        newest = row["newest"] if row else None
        since = max(export.due_since, newest) if newest else export.due_since
        missed = due_times(export.schedule, export.zone, since, now)
        kept, left_out = caught_up(missed, export.catch_up)
        _insert(db, export, left_out, "skipped", LEFT_OUT)
        _insert(db, export, kept, "waiting", None)
        return len(missed)


def plan_one(db: Connection, export: ScheduledExport, due_at: datetime, now: datetime) -> UUID:
    """The id of one due time's run, written down where it is not yet. Raises `UsageError` for a time that is none, or not come yet."""
    known = read_run(db, run_id(export.id, due_at))
    if known is not None:
        # Also one of a schedule that was changed since.
        return known.id
    if not is_due_time(export.schedule, export.zone, due_at):
        after = export.next_due(due_at)
        hint = f"; the next one after it is {after[0]:%Y-%m-%dT%H:%MZ}" if after else ""
        raise UsageError(
            f"{export.label} is not due at {due_at:%Y-%m-%dT%H:%MZ}{hint}. `tokentra exports show {export.label}` lists due times."
        )
    if due_at > now:
        raise UsageError(f"{export.label} is due at {due_at:%Y-%m-%dT%H:%MZ}, which has not come yet; its period is not over.")
    plan_due(db, export.id, now)
    with db.transaction():
        _insert(db, export, [due_at], "waiting", None)
    return run_id(export.id, due_at)


def _insert(db: Connection, export: ScheduledExport, moments: Iterable[datetime], status: str, error: str | None) -> None:
    for moment in moments:
        period = export.period(moment)
        db.execute(
            "INSERT INTO app.export_runs (id, org_id, export_id, due_at, period_start, period_end, status, next_attempt_at, error) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (export_id, due_at) DO NOTHING",
            [run_id(export.id, moment), export.org_id, export.id, moment, period.start, period.end, status, moment, error],
        )


def lock_of(run: UUID) -> str:
    """The name under which one process delivers the run (`warehouse.locks.only_one`)."""
    return f"export run {run}"


def read_runs(db: Connection, where: str = "true", order: str = "r.due_at, r.id", **parameters: Any) -> list[ExportRun]:
    """Runs `r` of exports `e`, by conditions of this package (never of a person)."""
    rows = db.execute(
        "SELECT r.*, o.name || '/' || e.name AS export FROM app.export_runs AS r JOIN app.scheduled_exports AS e ON e.id = r.export_id "
        f"JOIN app.organizations AS o ON o.id = e.org_id WHERE {where} ORDER BY {order}",
        parameters,
    )
    return [_run(row) for row in rows]


def _run(row: dict[str, Any]) -> ExportRun:
    same = ("id", "export_id", "export", "due_at", "status", "attempts", "next_attempt_at", "error", "written_at",
            "written_by_attempt", "manifest", "delivered_at", "delivered_to")  # fmt: skip
    return ExportRun(
        period=Period(row["period_start"], row["period_end"]),
        files=tuple(StagedFile(**file) for file in row["files"] or ()),
        **{name: row[name] for name in same},
    )


def read_run(db: Connection, run: UUID) -> ExportRun | None:
    return next(iter(read_runs(db, "r.id = %(run)s", run=run)), None)


def open_runs(db: Connection, now: datetime) -> list[ExportRun]:
    """Of exports that are not paused: what is due and not delivered, the oldest first."""
    return read_runs(db, "r.status IN ('waiting', 'failed') AND r.next_attempt_at <= %(now)s AND e.enabled", now=now)


def events(db: Connection, run: UUID) -> list[Event]:
    rows = db.execute(
        "SELECT attempt, event, happened_at, started_by, says FROM app.export_attempts WHERE run_id = %s ORDER BY id", [run]
    )
    return [Event(**row) for row in rows]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt, which adds to the history what it did. Each method is one transaction."""

    db: Connection
    run: UUID
    number: int
    started_by: str

    @classmethod
    def start(cls, db: Connection, run: UUID, started_by: str) -> Attempt:
        with db.transaction():
            row = db.execute(
                "UPDATE app.export_runs SET attempts = attempts + 1 WHERE id = %s RETURNING attempts", [run]
            ).fetchone()
            assert row is not None
            attempt = cls(db, run, row["attempts"], started_by)
            attempt._add("started")
        return attempt

    def will_be_tried_again(self, at: datetime) -> None:
        """Before anything can go wrong: a process that is killed delays the next attempt as any failure does."""
        self.db.execute("UPDATE app.export_runs SET next_attempt_at = %s WHERE id = %s", [at, self.run])

    def written(self, manifest: Manifest, files: Sequence[StagedFile], says: str) -> None:
        """What will be delivered, before any of it is: from here on a repeat is the same content."""
        with self.db.transaction():
            self.db.execute(
                "UPDATE app.export_runs SET written_at = %s, written_by_attempt = %s, manifest = %s, files = %s WHERE id = %s",
                [
                    manifest.created_at,
                    self.number,
                    Jsonb(manifest.as_json()),
                    Jsonb([file.as_json() for file in files]),
                    self.run,
                ],
            )
            self._add("written", says)

    def delivered(self, where: str, refused: str | None) -> None:
        """The first time stays when it is delivered again."""
        with self.db.transaction():
            self.db.execute(
                "UPDATE app.export_runs SET status = 'delivered', delivered_at = coalesce(delivered_at, clock_timestamp()), "
                "delivered_to = %s, error = %s WHERE id = %s",
                [where, refused, self.run],
            )
            self._add("delivered", "; ".join(filter(None, [where, refused])))

    def failed(self, says: str, again_at: datetime) -> None:
        """A delivery that fails when it is repeated by hand does not undo the first."""
        with self.db.transaction():
            self.db.execute(
                "UPDATE app.export_runs SET status = 'failed', error = %s, next_attempt_at = greatest(next_attempt_at, %s) "
                "WHERE id = %s AND status <> 'delivered'",
                [says, again_at, self.run],
            )
            self._add("failed", says)

    def _add(self, event: str, says: str = "") -> None:
        self.db.execute(
            "INSERT INTO app.export_attempts (run_id, attempt, event, started_by, says) VALUES (%s, %s, %s, %s, %s)",
            [self.run, self.number, event, self.started_by, says],
        )


def waits(db: Connection, run: UUID, why: str) -> None:
    """Why it is not tried yet, for whoever looks."""
    db.execute(
        "UPDATE app.export_runs SET error = %(why)s WHERE id = %(run)s AND status = 'waiting' AND error IS DISTINCT FROM %(why)s",
        {"why": why, "run": run},
    )
