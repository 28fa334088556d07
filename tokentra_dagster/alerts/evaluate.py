"""Evaluate: read what the warehouse says, raise what is news, resolve what no longer holds. Repeatable; nothing is sent here.

Each source of alerts is a transaction of its own under one lock, so that two evaluators raise once, and one source that fails
stops no other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import psycopg

from tokentra_dagster.alerts.alert import QUOTA_KINDS, Alert
from tokentra_dagster.alerts.event_alerts import (
    AnomalyInsight,
    EventRules,
    FailedRun,
    FailingSync,
    anomaly_alerts,
    run_alert,
    sync_alerts,
)
from tokentra_dagster.alerts.quota_alerts import ProjectionRule, QuotaStatus, holding, news, uncovered
from tokentra_dagster.alerts.store import Raised, keep_current, lock_evaluation, raise_alerts, read, resolve
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import Connection


@dataclass(frozen=True, slots=True)
class Rules:
    projection: ProjectionRule = field(default_factory=ProjectionRule)
    events: EventRules = field(default_factory=EventRules)


@dataclass(slots=True)
class Evaluation:
    """What was raised, how many alerts were resolved or opened again, and what could not be evaluated and why."""

    raised: list[Raised] = field(default_factory=list)
    changed: int = 0
    errors: list[str] = field(default_factory=list)

    @property
    def is_news(self) -> bool:
        return bool(self.raised or self.changed or self.errors)


Source = Callable[[Connection, datetime, Rules], tuple[list[Raised], int]]


def evaluate(database: Database, now: datetime | None = None, rules: Rules | None = None, dry_run: bool = False) -> Evaluation:
    """Raise what is news. `now` moves time, for tests. With `dry_run` everything is rolled back: it says what would be raised."""
    found = Evaluation()
    with database.connect(application="tokentra alerts") as db:
        for name, source in SOURCES.items():
            try:
                with db.transaction(force_rollback=dry_run):
                    lock_evaluation(db)
                    raised, changed = source(db, now or datetime.now(UTC), rules or Rules())
            except psycopg.Error as error:
                found.errors.append(f"{name}: {_first_line(error)}")
            else:
                found.raised += raised
                found.changed += changed
            db.commit()
    return found


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _quotas(db: Connection, now: datetime, rules: Rules) -> tuple[list[Raised], int]:
    built = db.execute("SELECT to_regclass('marts.quota_status') IS NOT NULL AS it_is").fetchone()
    if not built or not built["it_is"]:
        return [], 0
    # The view speaks as of this moment, which is where the period's end is compared with, too.
    db.execute("SELECT set_config('tokentra.moment', %s, true)", [now.isoformat()])
    statuses = [QuotaStatus.of(row) for row in db.execute("SELECT * FROM marts.quota_status ORDER BY org_id, quota_name")]
    holds = holding(statuses, rules.projection)
    known = read(
        db, "a.kind = ANY(%(kinds)s) AND a.subject = ANY(%(subjects)s) AND a.period_start >= %(earliest)s",
        kinds=list(QUOTA_KINDS), subjects=[alert.subject for alert in holds],
        earliest=min((alert.period_start for alert in holds), default=now),
    )  # fmt: skip
    keys = {one.alert.key for one in known}
    raised = raise_alerts(db, news(holds, keys))
    keys |= {one.alert.key for one in raised}
    return raised, keep_current(db, QUOTA_KINDS, {alert.key for alert in uncovered(holds, keys)}, now)


# Newest analysis first, so that an event is told as it is known last.
_ANOMALIES = """
SELECT org_id, severity, title, description, metric, dimension, dimension_value, direction, starts_at, ends_at
FROM analytics.insights
WHERE kind = 'anomaly' AND ends_at >= %s AND starts_at <= %s
ORDER BY org_id, period_end DESC, "window", starts_at, severity, title
"""


def _anomalies(db: Connection, now: datetime, rules: Rules) -> tuple[list[Raised], int]:
    oldest = now - rules.events.anomaly_age
    insights = [AnomalyInsight(**row) for row in db.execute(_ANOMALIES, [oldest, now])]
    earliest = min((insight.starts_at for insight in insights), default=now)
    known = [one.alert for one in read(db, "a.kind = 'anomaly' AND a.period_end >= %(earliest)s", earliest=earliest)]
    raised = raise_alerts(db, anomaly_alerts(insights, known, now, rules.events))
    past = [
        one.id for one in read(db, "a.kind = 'anomaly' AND a.resolved_at IS NULL AND a.period_end < %(oldest)s", oldest=oldest)
    ]
    resolve(db, past, now)
    return raised, len(past)


_FAILING = """
SELECT c.id AS connection_id, c.org_id, o.name || '/' || c.name AS label, c.provider, streak.*
FROM app.provider_connections AS c
JOIN app.organizations AS o ON o.id = c.org_id
CROSS JOIN LATERAL (
  SELECT max(h.started_at) AS at FROM raw.sync_history AS h
  WHERE h.provider_connection_id = c.id AND h.kind = 'sync' AND h.status = 'completed'
) AS good
CROSS JOIN LATERAL (
  SELECT count(*) AS failures, min(h.started_at) AS first_failed_at, max(h.started_at) AS last_failed_at,
    (array_agg(h.error ORDER BY h.started_at DESC, h.id))[1] AS error, bool_and(h.error_kind IS NOT DISTINCT FROM 'transient') AS only_transient
  FROM raw.sync_history AS h
  WHERE h.provider_connection_id = c.id AND h.kind = 'sync' AND h.status = 'failed' AND h.started_at > coalesce(good.at, '-infinity')
) AS streak
WHERE c.is_active AND streak.failures > 0
ORDER BY label
"""


def _syncs(db: Connection, now: datetime, rules: Rules) -> tuple[list[Raised], int]:
    failing = [FailingSync(**row) for row in db.execute(_FAILING)]
    open_now = read(db, "a.kind = 'failed_sync' AND a.resolved_at IS NULL")
    still = {str(one.connection_id): one.first_failed_at for one in failing}
    over = [one.id for one in open_now if still.get(one.alert.subject) != one.alert.period_start]
    resolve(db, over, now)
    return raise_alerts(db, sync_alerts(failing, rules.events)), len(over)


def raise_failed_run(db: Connection, run: FailedRun, rules: EventRules | None = None) -> tuple[Raised | None, Alert]:
    """Raise the alert of a failed run, or count it to the streak that it belongs to. The caller's transaction."""
    lock_evaluation(db)
    streaks = [
        (one.alert.period_start, one.last_seen_at)
        for one in read(db, "a.kind = 'failed_run' AND a.resolved_at IS NULL AND a.subject = %(job)s", job=run_alert(run).subject)
    ]
    alert = run_alert(run, streaks, rules)
    raised = raise_alerts(db, [alert])
    # The last failure, not the moment at which we heard of it: a daemon that was away for days hears of all at once.
    db.execute(
        "UPDATE app.alerts SET last_seen_at = CASE WHEN %(new)s THEN %(at)s ELSE greatest(last_seen_at, %(at)s) END "
        "WHERE kind = 'failed_run' AND subject = %(job)s AND period_start = %(start)s",
        {"new": bool(raised), "at": run.failed_at, "job": alert.subject, "start": alert.period_start},
    )
    return (raised[0] if raised else None), alert


def open_runs(db: Connection) -> list[Raised]:
    """Alerts of failed runs whose job has not succeeded since, as far as is known."""
    return read(db, "a.kind = 'failed_run' AND a.resolved_at IS NULL")


SOURCES: dict[str, Source] = {"quotas": _quotas, "anomalies": _anomalies, "syncs": _syncs}
