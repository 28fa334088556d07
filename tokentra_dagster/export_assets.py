"""Dagster's side of scheduled exports: an asset that delivers what is due, and a sensor that starts one run per export and due time."""

# No `from __future__ import annotations` here: Dagster reads the annotations of assets and sensors as they are.

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import dagster as dg
from pydantic import Field

from tokentra_dagster.alerts.assets import SUBJECT_TAG
from tokentra_dagster.errors import TokenTraError, UsageError
from tokentra_dagster.exports.destinations.base import Allowances
from tokentra_dagster.exports.preview import first_rows
from tokentra_dagster.exports.scheduled.deliver import DeliveryRules, Outcome, deliver_due, tidy
from tokentra_dagster.exports.scheduled.due import last_due
from tokentra_dagster.exports.scheduled.finality import not_final
from tokentra_dagster.exports.scheduled.runs import (
    Event,
    ExportRun,
    events,
    lock_of,
    open_runs,
    plan_due,
    plan_one,
    read_runs,
    waits,
)
from tokentra_dagster.exports.scheduled.schedules import ScheduledExport, find_export, scheduled_exports
from tokentra_dagster.markdown import table
from tokentra_dagster.resources import Warehouse
from tokentra_dagster.settings import Settings
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import Connection
from tokentra_dagster.warehouse.locks import only_one

EXPORTS = dg.AssetKey(["app", "export_runs"])
RUN_TAG = "tokentra/export_run"
"""On runs: which due time."""
PREVIEWED = 10
SHOWN = 30
MOST_LAUNCHED = 25
"""Runs that one look starts; after a long downtime the next looks start the rest."""


class ExportConfig(dg.Config):
    """Which export to deliver. Empty: everything that is due."""

    export: str = Field(default="", description="ORG/NAME of a scheduled export; empty: everything that is due.")
    due: str = Field(default="", description="Its due time, UTC, e.g. 2026-07-01T06:00Z; empty: the last one.")
    again: bool = Field(default=False, description="Also where it was delivered already: the same message id, the same file.")
    fresh: bool = Field(default=False, description="Write a new file, also where one is staged.")
    anyway: bool = Field(default=False, description="Do not wait until the period is final.")


@dg.asset(
    key=EXPORTS,
    deps=[dg.AssetKey(["marts", name]) for name in ("hourly_usage_rollup", "daily_usage_rollup")],
    group_name="exports",
    owners=["team:data-platform"],
    kinds={"python", "postgres"},
    pool="exports",
    description="Scheduled exports: each due time's file, written, delivered whole to its destination, once, and written down.",
)
def export_runs(context: dg.AssetExecutionContext, config: ExportConfig, warehouse: Warehouse) -> dg.MaterializeResult[None]:
    database, settings = warehouse.database(), Settings.from_environment()
    outcomes = []
    for run_id in _wanted(database, config):
        done = deliver_due(
            database, run_id, settings.home, Allowances.of(settings), by_hand=config.again or config.fresh, anyway=config.anyway, fresh=config.fresh
        )  # fmt: skip
        context.log.info(f"{done.run.export}, due {done.run.due_at:%Y-%m-%d %H:%M} UTC: {done.status}: {done.says}")
        outcomes.append(done)
    tidy(database, settings.home)
    with database.connect(application="tokentra scheduled export") as db:
        metadata = evidence(db, outcomes)
    failed = [done for done in outcomes if done.status == "failed"]
    if failed:
        # After the others: each is written down, and tried again.
        says = "; ".join(f"{done.run.export}, due {done.run.due_at:%Y-%m-%d %H:%M} UTC: {done.says}" for done in failed)
        raise dg.Failure(f"Not delivered: {says}", metadata=metadata) from failed[0].cause
    return dg.MaterializeResult(metadata=metadata)


def _wanted(database: Database, config: ExportConfig) -> list[UUID]:
    now = datetime.now(UTC)
    with database.connect(application="tokentra scheduled export") as db:
        if config.export:
            export = find_export(db, config.export)
            due = _moment(config.due) if config.due else last_due(export.schedule, export.zone, now)
            return [plan_one(db, export, due, now)]
        if config.due:
            raise UsageError("The run config has a due time and no export; say which export it is of, or leave it out.")
        _plan(db, now)
        return [run.id for run in open_runs(db, now)]


def _plan(db: Connection, now: datetime) -> dict[UUID, ScheduledExport]:
    """Write down what has come due; the exports that are not paused, by id."""
    found = {export.id: export for export in scheduled_exports(db, enabled_only=True)}
    for export in found.values():
        try:
            plan_due(db, export.id, now)
        except TokenTraError as error:
            # Changed behind our back, e.g. to a zone that the time zone database has not: the others go on.
            dg.get_dagster_logger().error(f"{export.label} cannot be planned: {error}")
    return found


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"The due time is {text!r}; give UTC, e.g. 2026-07-01T06:00Z.") from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def evidence(db: Connection, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Metadata a person would look at: what came of this run, the history, and the first rows of what was delivered."""
    delivered = [done for done in outcomes if done.status == "delivered"]
    done_table = table(
        ["export", "due (UTC)", "status", "rows", "bytes", "says"],
        ((done.run.export, done.run.due_at, done.status, (done.run.manifest or {}).get("row_count"),
          (done.run.manifest or {}).get("size_bytes"), done.says) for done in outcomes),
        empty="Nothing was due.",
    )  # fmt: skip
    metadata: dict[str, Any] = {
        "deliveries": dg.MetadataValue.md(done_table),
        "history": dg.MetadataValue.md(history(db)),
        "delivered": len(delivered),
        "not_delivered": len(outcomes) - len(delivered),
        "rows": sum((done.run.manifest or {}).get("row_count") or 0 for done in delivered),
    }
    if len(outcomes) == 1:
        (one,) = outcomes
        metadata["attempts"] = dg.MetadataValue.md(_attempts(events(db, one.run.id)))
        metadata["message_id"] = str(one.run.id)
    if delivered:
        metadata["preview"] = dg.MetadataValue.md(preview(delivered[-1]))
    return metadata


def history(db: Connection) -> str:
    """Markdown: what became of the newest due times."""
    return table(
        ["export", "due (UTC)", "period from (UTC)", "status", "rows", "attempts", "delivered (UTC)", "says"],
        ((run.export, run.due_at, run.period.start, run.status, (run.manifest or {}).get("row_count"), run.attempts, run.delivered_at,
          run.error or run.delivered_to or "") for run in read_runs(db, order=f"r.due_at DESC, r.id LIMIT {SHOWN}")),
        empty="Nothing has come due yet.",
    )  # fmt: skip


def _attempts(found: Sequence[Event]) -> str:
    return table(
        ["attempt", "event", "at (UTC)", "by", "says"],
        ((one.attempt, one.event, f"{one.happened_at:%Y-%m-%d %H:%M:%S}", one.started_by, one.says) for one in found),
        empty="None.",
    )


def preview(done: Outcome) -> str:
    """Markdown: the first rows of the file as it was delivered."""
    manifest = done.run.manifest
    if done.folder is None or manifest is None:
        return "The staged file is gone; the receiver has it."
    try:
        titles, rows = first_rows(done.folder / manifest["file_name"], manifest["format"], manifest["compression"], PREVIEWED)
    except Exception as error:
        # It has been delivered: that must not fail for want of a look at it.
        return f"The first rows cannot be shown ({type(error).__name__})."
    return table(titles, rows, empty="No usage in the period.")


export_job = dg.define_asset_job(
    "export_job",
    selection=dg.AssetSelection.assets(EXPORTS),
    description="Deliver a scheduled export, or everything that is due.",
)


@dg.sensor(
    job=export_job,
    name="due_exports",
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Starts one run per scheduled export and due time; catches up after downtime, waits for final usage where asked, and "
    "starts failed ones again when their pause is over.",
)
def due_exports(context: dg.SensorEvaluationContext, warehouse: Warehouse) -> dg.SensorResult:
    now, database = datetime.now(UTC), warehouse.database()
    requests: list[dg.RunRequest] = []
    with database.connect(autocommit=True, application="tokentra scheduled export") as db:
        exports = _plan(db, now)
        for run in open_runs(db, now):
            if len(requests) == MOST_LAUNCHED:
                break
            if _is_to_start(db, context.instance, exports.get(run.export_id), run, now):
                requests.append(_request(context.instance, run))
    return dg.SensorResult(run_requests=requests, skip_reason=None if requests else "Nothing is due.")


def _is_to_start(db: Connection, instance: dg.DagsterInstance, export: ScheduledExport | None, run: ExportRun, now: datetime) -> bool:  # fmt: skip
    """Not while its run is under way here or elsewhere, nor before its period is final where that is asked."""
    if export is None:
        return False
    newest = next(iter(instance.get_run_records(dg.RunsFilter(tags={RUN_TAG: str(run.id)}), limit=1)), None)
    if newest is not None:
        if not newest.dagster_run.is_finished:
            return False
        started = instance.get_runs_count(dg.RunsFilter(tags={RUN_TAG: str(run.id)}))
        # One that died before it could write anything down is not started again at once.
        pause = DeliveryRules().pause(started) if run.attempts < started else timedelta(0)
        if newest.create_timestamp.replace(tzinfo=UTC) + pause > now:
            return False
    if export.wait_until_final and run.written_at is None and (why := not_final(db, export.org_id, run.period)):
        waits(db, run.id, why)
        return False
    with only_one(db, lock_of(run.id)) as free:
        return free


def _request(instance: dg.DagsterInstance, run: ExportRun) -> dg.RunRequest:
    started = instance.get_runs_count(dg.RunsFilter(tags={RUN_TAG: str(run.id)}))
    config = ExportConfig(export=run.export, due=f"{run.due_at:%Y-%m-%dT%H:%M:%SZ}")
    return dg.RunRequest(
        # The same key is never run twice by a sensor: two looks at the same moment start one run, and one that failed may go again.
        run_key=f"{run.id}/{started}",
        run_config=dg.RunConfig(ops={"app__export_runs": config}),
        tags={RUN_TAG: str(run.id), SUBJECT_TAG: run.export},
    )
