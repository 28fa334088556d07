"""Deliver one due export, once; a repeat can only come of a crash or of a person, and has the same message id.

The file is written to a folder of ours and what it holds is committed, before any of it is delivered: whoever comes after a crash
delivers the same bytes again. Only where they are gone the file is written anew, and the history says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.errors import PermanentError, TokenTraError, TransientError, UsageError
from tokentra_dagster.exports.destinations.base import SAFE, Allowances, Delivered, Delivery, Facts, doubled
from tokentra_dagster.exports.destinations.opening import open_destination
from tokentra_dagster.exports.export import SIDECAR, export
from tokentra_dagster.exports.request import ExportRequest
from tokentra_dagster.exports.scheduled.finality import not_final
from tokentra_dagster.exports.scheduled.runs import Attempt, ExportRun, lock_of, read_run, waits
from tokentra_dagster.exports.scheduled.schedules import ScheduledExport, export_with_id
from tokentra_dagster.exports.scheduled.staging import (
    describe,
    is_whole,
    other_attempts,
    remove,
    staged_runs,
    staging_folder,
    touched,
    written_files,
)
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import Connection
from tokentra_dagster.warehouse.locks import only_one

STEPS = ("claimed", "started", "written", "recorded", "delivered", "booked")
"""What `at_step` hears of, in order; a process may die between any two."""
Step = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class DeliveryRules:
    """How long until the next attempt, and how long a delivered file stays staged."""

    first_pause: timedelta = timedelta(minutes=1)
    longest_pause: timedelta = timedelta(hours=1)
    """Also where trying again cannot help until somebody mends it: nothing is given up."""
    staged_for: timedelta = timedelta(days=7)

    def pause(self, attempts: int) -> timedelta:
        """After so many attempts, at least 1: doubled each time."""
        return doubled(self.first_pause, self.longest_pause, attempts)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one call. `status` is delivered, failed (tried again later), waiting (for final usage) or taken (by another process)."""

    run: ExportRun
    status: str
    says: str
    """Where it went, or why not, in one sentence."""
    folder: Path | None = None
    """Where the delivered files are staged."""
    cause: Exception | None = None


def deliver_due(
    database: Database, run_id: UUID, home: Path, allowances: Allowances = SAFE, *, by_hand: bool = False, anyway: bool = False,
    fresh: bool = False, now: datetime | None = None, rules: DeliveryRules | None = None, at_step: Step = lambda _: None,
) -> Outcome:  # fmt: skip
    """Write, stage, deliver and write down one due export. `by_hand` delivers again what was delivered; `anyway` does not wait for final
    usage; `fresh` writes a new file even where one is staged. Raises `UsageError` for a run that there is not; what goes wrong later is
    in the outcome, and in the history."""
    moment, chosen = now or datetime.now(UTC), rules or DeliveryRules()
    with database.connect(autocommit=True, application="tokentra scheduled export") as db, only_one(db, lock_of(run_id)) as ours:
        run = read_run(db, run_id)
        scheduled = export_with_id(db, run.export_id) if run else None
        if run is None or scheduled is None:
            raise UsageError(f"There is no run {run_id} of a scheduled export; it was deleted with its export.")
        if not ours:
            return Outcome(run, "taken", "Another process is delivering it.")
        at_step("claimed")
        if run.status == "delivered" and not by_hand:
            return Outcome(run, "delivered", f"Was delivered to {run.delivered_to} before.", _staged(home, run))
        if not scheduled.enabled and not by_hand:
            return Outcome(run, "waiting", f"{scheduled.label} is paused; `tokentra exports resume` goes on.")
        if scheduled.wait_until_final and not anyway and (fresh or run.written_at is None):
            why = not_final(db, scheduled.org_id, run.period)
            if why:
                waits(db, run.id, why)
                return Outcome(run, "waiting", why)
        attempt = Attempt.start(db, run.id, "hand" if by_hand else "schedule")
        attempt.will_be_tried_again(moment + chosen.pause(attempt.number))
        at_step("started")
        try:
            folder, current = _written(database, db, scheduled, run, attempt, home, fresh, at_step)
            delivered = _deliver(scheduled, current, folder, allowances)
            at_step("delivered")
            refused = "; ".join(f"{one.recipient} did not get it: {one.reason}" for one in delivered.refused) or None
            attempt.delivered(delivered.where, refused)
            at_step("booked")
            return Outcome(read_run(db, run.id) or current, "delivered", refused or delivered.where, folder)
        except Exception as error:
            # Also what nobody foresaw: it stays visible, and is tried again.
            if db.broken:
                raise TransientError(
                    f"The database went away while {scheduled.label} was delivered; it is tried again."
                ) from error
            says = _sentence(error, scheduled.label)
            wait = chosen.longest_pause if isinstance(error, PermanentError | UsageError) else timedelta(0)
            if isinstance(error, TransientError):
                wait = timedelta(seconds=min(error.retry_after or 0, 86400))
            attempt.failed(says, moment + wait)
            return Outcome(read_run(db, run.id) or run, "failed", says, cause=error)


def _sentence(error: Exception, label: str) -> str:
    if isinstance(error, TokenTraError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"The file of {label} cannot be written to TOKENTRA_HOME: {error.strerror}; it is tried again."
    return f"{type(error).__name__} while delivering {label}; it is tried again."


def _staged(home: Path, run: ExportRun) -> Path | None:
    """The folder that holds what was written down, whole; None where it is gone."""
    if run.written_by_attempt is None:
        return None
    folder = staging_folder(home, run.id, run.written_by_attempt)
    return folder if is_whole(folder, run.files) else None


def _written(
    database: Database, db: Connection, scheduled: ScheduledExport, run: ExportRun, attempt: Attempt, home: Path, fresh: bool,
    at_step: Step,
) -> tuple[Path, ExportRun]:  # fmt: skip
    """The folder of the files to deliver, and the run as it is written down: staged before, or written now."""
    staged = _staged(home, run)
    if staged is not None and not fresh:
        return staged, run
    says = ""
    if run.written_at is not None:
        says = "Written anew by hand." if fresh else "Written again: the staged file was gone or changed."
    request = scheduled.request(run.period)
    folder = staging_folder(home, run.id, attempt.number)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name(request, scheduled)
    manifest = export(database, request, path)
    at_step("written")
    attempt.written(manifest, describe(written_files(path, SIDECAR)), says)
    at_step("recorded")
    remove(other_attempts(folder))
    current = read_run(db, run.id)
    assert current is not None
    return folder, current


def file_name(request: ExportRequest, scheduled: ScheduledExport) -> str:
    """As the request names it, by the days of the export's own zone."""
    start, end = (moment.astimezone(scheduled.zone).replace(tzinfo=UTC) for moment in (request.period.start, request.period.end))
    return replace(request, period=Period(start, end)).file_name


def delivery_folder(scheduled: ScheduledExport, run: ExportRun) -> str:
    """Of its own for each organisation, export and due time: one never overwrites another's files."""
    organization = re.sub(r"[^\w.-]+", "-", scheduled.organization).strip("-.")
    if organization != scheduled.organization:
        organization = f"{organization}-{str(scheduled.org_id)[:8]}".lstrip("-")
    return f"{organization}/{scheduled.name}/{run.due_at:%Y-%m-%dT%H%MZ}"


def _deliver(scheduled: ScheduledExport, run: ExportRun, folder: Path, allowances: Allowances) -> Delivered:
    destination = open_destination(scheduled.delivery_method, scheduled.delivery_config, allowances)
    manifest = run.manifest
    assert manifest is not None and run.written_at is not None
    *files, manifest_file = [folder / file.name for file in run.files]
    facts = Facts(
        organisation=scheduled.organization, export_name=scheduled.name, period_start=run.period.start, period_end=run.period.end,
        rows=manifest["row_count"], size_bytes=manifest["size_bytes"], sha256=manifest["sha256"],
    )  # fmt: skip
    return destination.deliver(
        Delivery(str(run.id), tuple(files), manifest_file, facts, run.written_at, delivery_folder(scheduled, run))
    )


def tidy(database: Database, home: Path, now: datetime | None = None, rules: DeliveryRules | None = None) -> int:
    """Take away staged files that were delivered a while ago, or whose export was deleted. How many runs' files went."""
    staged = staged_runs(home)
    if not staged:
        return 0
    before = (now or datetime.now(UTC)) - (rules or DeliveryRules()).staged_for
    with database.connect(application="tokentra scheduled export") as db:
        rows = db.execute(
            "SELECT id FROM app.export_runs WHERE id = ANY(%s) AND (delivered_at IS NULL OR delivered_at >= %s)",
            [list(staged), before],
        ).fetchall()
    kept = {row["id"] for row in rows}
    # One that is being written anew has a young folder.
    gone = [path for run, path in staged.items() if run not in kept and touched(path) < before.timestamp()]
    remove(gone)
    return len(gone)
