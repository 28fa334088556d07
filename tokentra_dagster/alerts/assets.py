"""Dagster's side of alerts: an asset that raises and sends, a schedule and a sensor that start it only where there is news, and a
sensor that makes an alert of every failed run.
"""

# No `from __future__ import annotations` here: Dagster reads the annotations of assets, schedules and sensors as they are.

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from tokentra_dagster.alerts.deliver import Attempt, deliver, is_due
from tokentra_dagster.alerts.evaluate import Evaluation, evaluate, open_runs, raise_failed_run
from tokentra_dagster.alerts.event_alerts import FailedRun
from tokentra_dagster.alerts.store import resolve
from tokentra_dagster.exports.destinations.base import Allowances
from tokentra_dagster.markdown import table
from tokentra_dagster.resources import Warehouse
from tokentra_dagster.settings import Settings
from tokentra_dagster.warehouse.database import Database

ALERTS = dg.AssetKey(["app", "alerts"])
QUOTA_STATUS = dg.AssetKey(["marts", "quota_status"])
ASSET_JOB = "__ASSET_JOB"
"""Dagster's name for runs of assets without a job, e.g. those that follow changes."""
ASSETS = "assets of "
SUBJECT_TAG = "tokentra/subject"
"""On runs of a job that are about different things, e.g. exports: each has a streak of its own, and no other's success ends it."""
OF = " of "
FORGOTTEN_AFTER = timedelta(days=7)
"""A job that nobody has run since its failure."""


def evidence(found: Evaluation, attempts: Sequence[Attempt]) -> dict[str, Any]:
    """Metadata a person would look at: what was raised, and what came of sending it."""
    raised = table(
        ["severity", "organisation", "kind", "alert"],
        ((one.alert.severity, one.organization, one.alert.kind, one.alert.title) for one in found.raised[:50]),
        empty="Nothing new.",
    )
    sent = table(
        ["channel", "alerts", "status", "says"],
        ((one.channel, one.alerts, one.status, one.says) for one in attempts),
        empty="Nothing was sent.",
    )
    return {
        "raised": dg.MetadataValue.md(raised),
        "sent": dg.MetadataValue.md(sent),
        "alerts_raised": len(found.raised),
        "messages_sent": sum(1 for one in attempts if one.status == "sent"),
        "messages_not_sent": sum(1 for one in attempts if one.status != "sent"),
    }


@dg.asset(
    key=ALERTS,
    deps=[QUOTA_STATUS, dg.AssetKey(["analytics", "anomalies"]), dg.AssetKey(["raw", "usage_records"])],
    group_name="alerts",
    owners=["team:data-platform"],
    kinds={"python", "postgres"},
    pool="alerts",
    description="Alerts about quotas, anomalies, failed syncs and failed runs: raised once, sent to the channels that want them.",
)
def alerts(context: dg.AssetExecutionContext, warehouse: Warehouse) -> dg.MaterializeResult[None]:
    database = warehouse.database()
    resolve_runs(database, context.instance)
    found = evaluate(database)
    attempts = deliver(database, Allowances.of(Settings.from_environment()))
    for attempt in attempts:
        if attempt.status != "sent":
            context.log.warning(f"{attempt.channel}: {attempt.status}: {attempt.says}")
    if found.errors:
        # After sending: what could be evaluated has gone out.
        raise dg.Failure(f"Not evaluated: {'; '.join(found.errors)}", metadata=evidence(found, attempts))
    return dg.MaterializeResult(metadata=evidence(found, attempts))


alerts_job = dg.define_asset_job(
    "alerts_job", selection=dg.AssetSelection.assets(ALERTS), description="Raise and send the alerts that are new."
)


def _look(warehouse: Warehouse) -> dg.RunRequest | dg.SkipReason:
    """A run where something would be raised or sent."""
    database = warehouse.database()
    if evaluate(database, dry_run=True).is_news:
        return dg.RunRequest()
    with database.connect(application="tokentra alerts") as db:
        return dg.RunRequest() if is_due(db) else dg.SkipReason("Nothing is new.")


@dg.schedule(
    job=alerts_job,
    name="alerts_every_5_minutes",
    cron_schedule="*/5 * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Raises and sends alerts; five minutes without news start no run.",
)
def alerts_schedule(context: dg.ScheduleEvaluationContext, warehouse: Warehouse) -> dg.RunRequest | dg.SkipReason:
    resolve_runs(warehouse.database(), context.instance)
    return _look(warehouse)


@dg.asset_sensor(
    asset_key=QUOTA_STATUS,
    job=alerts_job,
    name="alerts_after_quota_status",
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Raises and sends alerts as soon as a build has brought the quotas up to new usage; nothing new starts no run.",
)
def alerts_sensor(context: dg.SensorEvaluationContext, warehouse: Warehouse) -> dg.RunRequest | dg.SkipReason:
    return _look(warehouse)


@dg.run_failure_sensor(
    name="failed_runs",
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Makes an alert for the operators of every run that fails, one for a job that keeps failing; the schedule sends it.",
)
def failed_runs(context: dg.RunFailureSensorContext, warehouse: Warehouse) -> None:
    database = warehouse.database()
    # A success since the last failure ends that streak: this failure is news then.
    resolve_runs(database, context.instance)
    with database.connect(application="tokentra failed runs") as db:
        raised, alert = raise_failed_run(db, failed_run(context))
    context.log.info(f"{'Raised' if raised else 'Known already'}: {alert.title}")


def failed_run(context: dg.RunFailureSensorContext) -> FailedRun:
    """What Dagster knows of the run, in our terms."""
    run = context.dagster_run
    record = context.instance.get_run_record_by_id(run.run_id)
    ended = record.end_time if record else None
    events = context.get_step_failure_events()
    steps = tuple(event.step_key for event in events if event.step_key)
    said = next((_cause(event.step_failure_data) for event in events), context.failure_event.message or "")
    return FailedRun(
        run_id=run.run_id,
        job=_job(run, steps),
        failed_at=datetime.fromtimestamp(ended, UTC) if ended else datetime.now(UTC),
        error=next((line for line in said.strip().splitlines() if line.strip()), "no error was kept"),
        steps=steps,
    )


def _job(run: dg.DagsterRun, steps: Sequence[str]) -> str:
    if run.job_name == ASSET_JOB:
        return f"{ASSETS}{', '.join(sorted(steps)) or 'no step'}"
    subject = run.tags.get(SUBJECT_TAG)
    return f"{run.job_name}{OF}{subject}" if subject else run.job_name


def _cause(failure: Any) -> str:
    """What the step itself said it died of, without the module of the error's class."""
    if failure.user_failure_data and failure.user_failure_data.description:
        return str(failure.user_failure_data.description)
    error = failure.error
    while error is not None and error.cause is not None:
        error = error.cause
    return re.sub(r"^(?:\w+\.)+(\w+:)", r"\1", error.message) if error is not None else ""


def resolve_runs(database: Database, instance: dg.DagsterInstance) -> None:
    """Resolve alerts of failed runs whose job has succeeded since, or that are forgotten. Asks Dagster only where one is open."""
    with database.connect(application="tokentra alerts") as db:
        now = datetime.now(UTC)
        done = []
        for raised in open_runs(db):
            job, steps = raised.alert.subject, raised.alert.details.get("steps", [])
            if now - raised.last_seen_at > FORGOTTEN_AFTER or _succeeded(instance, job, steps, raised.last_seen_at):
                done.append(raised.id)
        resolve(db, done, now)


def _succeeded(instance: dg.DagsterInstance, job: str, steps: Sequence[str], since: datetime) -> bool:
    of_assets = job.startswith(ASSETS)
    name, _, subject = (ASSET_JOB, "", "") if of_assets else job.partition(OF)
    about = {SUBJECT_TAG: subject} if subject else None
    records = instance.get_run_records(
        dg.RunsFilter(job_name=name, tags=about, statuses=[dg.DagsterRunStatus.SUCCESS], updated_after=since),
        limit=100 if of_assets else 1,
    )
    if not of_assets or not steps:
        return bool(records)
    # A run of other assets says nothing about these.
    wanted = set(steps)
    return any(
        wanted <= {stats.step_key for stats in instance.get_run_step_stats(record.dagster_run.run_id, list(wanted))}
        for record in records
    )
