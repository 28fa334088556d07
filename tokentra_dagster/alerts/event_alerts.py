"""Alerts about things that happen: anomalies of usage, syncs that fail, Dagster runs that fail. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from tokentra_dagster.alerts.alert import LONGEST_TEXT, LONGEST_TITLE, Alert, clipped, moment, name_of


@dataclass(frozen=True, slots=True)
class EventRules:
    """How old is no longer news, and how patient we are."""

    anomaly_age: timedelta = timedelta(days=3)
    """Since an anomaly's end: analysing last year again raises nothing."""
    transient_failures: int = 4
    """A sync that may mend itself alerts from this failure in a row on: one run with its three retries."""
    run_streak: timedelta = timedelta(days=1)
    """A job that fails again after a longer pause is news again."""


@dataclass(frozen=True, slots=True)
class AnomalyInsight:
    """A row of `analytics.insights` of kind anomaly: one event over `[starts_at, ends_at)`."""

    org_id: UUID
    severity: str
    title: str
    description: str
    metric: str | None
    dimension: str | None
    dimension_value: str | None
    direction: str | None
    starts_at: datetime
    ends_at: datetime


@dataclass(frozen=True, slots=True)
class FailingSync:
    """A connection whose syncs fail: since when, how often in a row, and with which error last."""

    connection_id: UUID
    org_id: UUID
    label: str
    """`ORGANISATION/NAME`, as commands take it."""
    provider: str
    failures: int
    first_failed_at: datetime
    last_failed_at: datetime
    error: str | None
    only_transient: bool


@dataclass(frozen=True, slots=True)
class FailedRun:
    """A Dagster run that failed. `job` is what later runs are compared by: a job's name, or the steps of assets that ran by themselves."""

    run_id: str
    job: str
    failed_at: datetime
    error: str
    steps: tuple[str, ...] = ()


def anomaly_alerts(
    insights: Iterable[AnomalyInsight], known: Iterable[Alert], now: datetime, rules: EventRules | None = None
) -> list[Alert]:
    """One alert per event. The same event is found again every day and in every window, longer or told by another series: what has
    the direction of a known alert and overlaps with at least half of the shorter of the two is that alert's event."""
    oldest = now - (rules or EventRules()).anomaly_age
    seen = [alert for alert in known if alert.kind == "anomaly"]
    found: list[Alert] = []
    for insight in insights:
        if insight.ends_at < oldest or insight.starts_at >= insight.ends_at:
            continue
        alert = _anomaly(insight)
        if not any(_same_event(alert, other) for other in seen):
            found.append(alert)
        # As it is known now it may be longer, and another window tells only a part of it.
        seen.append(alert)
    return found


def _same_event(one: Alert, other: Alert) -> bool:
    if (one.org_id, one.subject) != (other.org_id, other.subject) or one.period_end is None or other.period_end is None:
        return False
    together = min(one.period_end, other.period_end) - max(one.period_start, other.period_start)
    return together * 2 >= min(one.period_end - one.period_start, other.period_end - other.period_start)


def _anomaly(insight: AnomalyInsight) -> Alert:
    # As analytics groups anomalies into events: errors stand apart from usage, a drop from a spike.
    what = "errors" if insight.metric == "errors" else "usage"
    return Alert(
        org_id=insight.org_id,
        kind="anomaly",
        subject=f"{insight.direction or 'change'} of {what}",
        period_start=insight.starts_at,
        period_end=insight.ends_at,
        severity=insight.severity,
        title=clipped(insight.title, LONGEST_TITLE),
        body=clipped(insight.description, LONGEST_TEXT),
        details={
            "metric": insight.metric,
            "dimension": insight.dimension,
            "dimension_value": None if insight.dimension_value is None else name_of(insight.dimension_value),
            "direction": insight.direction,
        },
    )


def sync_alerts(failing: Iterable[FailingSync], rules: EventRules | None = None) -> list[Alert]:
    """One alert per connection and streak of failures: at once where trying again cannot help, else after `transient_failures`."""
    patience = (rules or EventRules()).transient_failures
    return [_sync(one) for one in failing if not one.only_transient or one.failures >= patience]


def _sync(one: FailingSync) -> Alert:
    label = name_of(one.label)
    if one.only_transient:
        advice = "It is tried again with every sync; what was loaded before stays."
    else:
        advice = f"What was loaded before stays. Mend what the error names and try `tokentra connection test {label}`; the next sync goes on."
    failed = "the last sync failed" if one.failures == 1 else f"the last {one.failures} syncs failed"
    return Alert(
        org_id=one.org_id,
        kind="failed_sync",
        subject=str(one.connection_id),
        period_start=one.first_failed_at,
        severity="warning" if one.only_transient else "critical",
        title=f"Usage of {label} is not being synced",
        body=f"Since {moment(one.first_failed_at)} {failed}: {clipped(one.error or 'no error was kept', LONGEST_TEXT)} {advice}",
        details={
            "connection": label,
            "provider": one.provider,
            "failures": one.failures,
            "permanent": not one.only_transient,
        },
    )


def run_alert(run: FailedRun, open_since: Sequence[tuple[datetime, datetime]] = (), rules: EventRules | None = None) -> Alert:
    """The alert of a failed run. `open_since`: first and last failure of the job's alerts that no success has ended; where the last
    is less than `run_streak` ago, this failure belongs to that streak and has its key."""
    pause = (rules or EventRules()).run_streak
    streak = [first for first, last in open_since if run.failed_at - last <= pause]
    steps = f" in {', '.join(name_of(step) for step in run.steps[:5])}" if run.steps else ""
    return Alert(
        org_id=None,
        kind="failed_run",
        subject=clipped(run.job, LONGEST_TITLE),
        period_start=max(streak, default=run.failed_at),
        severity="critical",
        title=clipped(f"The Dagster run of {run.job} failed", LONGEST_TITLE),
        body=(
            f"Run {run.run_id} failed at {moment(run.failed_at)}{steps}: {clipped(run.error, LONGEST_TEXT)} "
            "The Dagster UI shows its log under Runs; run it again there once the cause is mended."
        ),
        details={
            "run_id": run.run_id,
            "job": clipped(run.job, LONGEST_TITLE),
            "steps": [name_of(step) for step in run.steps[:20]],
        },
    )
