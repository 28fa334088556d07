"""Deliver: each alert to each channel that wants it, once; a repeat can only come of a crash, and has the same message id.

A channel is served by one process at a time, under a lock that it holds while it sends. All that is new for a channel goes in one
message, whose id and alerts are committed before it is sent. While a message waits to be tried again, nothing later is sent
there: when the receiver is back, it gets that message and then one with the rest.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from psycopg.types.json import Jsonb

from tokentra_dagster.alerts.alert import QUOTA_KINDS
from tokentra_dagster.alerts.channels import Channel, channels, check_secrets, send
from tokentra_dagster.alerts.messages import Message, message_id, message_of
from tokentra_dagster.alerts.store import SEVERITY_RANK, SNOOZED, Raised, read
from tokentra_dagster.errors import PermanentError, TokenTraError, TransientError
from tokentra_dagster.exports.destinations.base import SAFE, Allowances, Delivered, doubled
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import Connection
from tokentra_dagster.warehouse.locks import only_one


@dataclass(frozen=True, slots=True)
class DeliveryRules:
    """How often, how long, how much."""

    most_in_message: int = 500
    first_pause: timedelta = timedelta(minutes=1)
    longest_pause: timedelta = timedelta(minutes=30)
    most_attempts: int = 60
    """Then it is given up: after some 28 hours."""
    pause_for_secrets: timedelta = timedelta(minutes=10)
    """Where this process cannot read a secret of the channel; another may."""
    channels_at_once: int = 8

    def pause(self, attempts: int) -> timedelta:
        """After so many attempts, at least 1: doubled each time."""
        return doubled(self.first_pause, self.longest_pause, attempts)


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of one message. `status` is sent, waiting (tried again later) or failed."""

    channel: str
    message_id: UUID
    alerts: int
    status: str
    says: str = ""
    """Where it went, or the error."""


def deliver(
    database: Database, allowances: Allowances = SAFE, now: datetime | None = None, rules: DeliveryRules | None = None
) -> list[Attempt]:
    """Send what is new or due to every active channel, several at a time. `now` moves the time of repeats, for tests."""
    chosen = rules or DeliveryRules()
    with database.connect(application="tokentra alerts") as db:
        everyone = channels(db, active_only=True)
    with ThreadPoolExecutor(max_workers=chosen.channels_at_once, thread_name_prefix="alerts") as pool:
        served = pool.map(lambda channel: _serve(database, channel, allowances, now or datetime.now(UTC), chosen), everyone)
        return [attempt for attempts in served for attempt in attempts]


def is_due(db: Connection, now: datetime | None = None) -> bool:
    """Whether `deliver` would send something."""
    moment = now or datetime.now(UTC)
    return any(_due(db, channel, moment) or (not _waits(db, channel) and _new(db, channel, 1)) for channel in channels(db, active_only=True))  # fmt: skip


def send_test(database: Database, channel: Channel, allowances: Allowances = SAFE) -> Delivered:
    """Really send a message that says it is a test. Raises `PermanentError` or `TransientError`."""
    return send(channel, Message(uuid4(), (), datetime.now(UTC)), allowances)


def _serve(database: Database, channel: Channel, allowances: Allowances, now: datetime, rules: DeliveryRules) -> list[Attempt]:
    with (
        database.connect(autocommit=True, application=f"tokentra alerts {channel.name}") as db,
        only_one(db, f"alert channel {channel.id}") as ours,
    ):
        current = next((one for one in channels(db, active_only=True) if one.id == channel.id), None)
        if not ours or current is None:
            return []
        try:
            check_secrets(current)
        except PermanentError as error:
            # Of this process only: a person's shell may lack what the daemon has, so nothing is given up.
            return _put_off(db, current, str(error), now, rules)
        done: list[Attempt] = []
        for identifier in _due(db, current, now):
            done += _send(db, current, identifier, allowances, now, rules)
        while not _waits(db, current):
            planned = _plan(db, current, now, rules)
            if planned is None:
                break
            done += _send(db, current, planned, allowances, now, rules)
        return done


def _new(db: Connection, channel: Channel, most: int) -> list[Raised]:
    """Alerts that this channel wants, that hold, that nobody has acknowledged, that are not snoozed, and that it has not had."""
    return read(
        db,
        "a.resolved_at IS NULL AND a.acknowledged_at IS NULL AND a.raised_at >= %(since)s AND a.kind = ANY(%(kinds)s) "
        "AND (%(org)s::uuid IS NULL OR a.org_id = %(org)s) "
        f"AND {SEVERITY_RANK.format('a.severity')} >= {SEVERITY_RANK.format('%(least)s::text')} AND NOT {SNOOZED.format('now()')} "
        "AND NOT EXISTS (SELECT FROM app.alert_deliveries AS d WHERE d.alert_id = a.id AND d.channel_id = %(channel)s)",
        f"{SEVERITY_RANK.format('a.severity')} DESC, a.raised_at, a.id LIMIT {int(most)}",
        since=channel.created_at, kinds=list(channel.alert_kinds), org=channel.org_id, least=channel.least_severity, channel=channel.id,
    )  # fmt: skip


def _plan(db: Connection, channel: Channel, now: datetime, rules: DeliveryRules) -> UUID | None:
    """Commit to one message of what is new; None where nothing is."""
    with db.transaction():
        alerts = _new(db, channel, rules.most_in_message)
        if not alerts:
            return None
        identifier = message_id(channel.id, [one.id for one in alerts])
        db.execute(
            "INSERT INTO app.alert_deliveries (alert_id, channel_id, message_id, next_attempt_at) SELECT unnest(%s::uuid[]), %s, %s, %s",
            [[one.id for one in alerts], channel.id, identifier, now],
        )
    return identifier


_OF_MESSAGE = "channel_id = %(channel)s AND message_id = %(message)s AND status = 'waiting'"


def _due(db: Connection, channel: Channel, now: datetime) -> list[UUID]:
    """Messages to be tried (again), the oldest first."""
    rows = db.execute(
        "SELECT d.message_id FROM app.alert_deliveries AS d JOIN app.alerts AS a ON a.id = d.alert_id "
        "WHERE d.channel_id = %s AND d.status = 'waiting' GROUP BY d.message_id "
        f"HAVING min(d.next_attempt_at) <= %s AND NOT bool_and({SNOOZED.format('now()')}) ORDER BY min(a.raised_at)",
        [channel.id, now],
    )
    return [row["message_id"] for row in rows]


def _waits(db: Connection, channel: Channel) -> bool:
    """Whether a message is to be tried again before anything new. One that is snoozed as a whole holds up nobody."""
    row = db.execute(
        "SELECT EXISTS (SELECT FROM app.alert_deliveries AS d JOIN app.alerts AS a ON a.id = d.alert_id "
        f"WHERE d.channel_id = %s AND d.status = 'waiting' AND NOT {SNOOZED.format('now()')}) AS it_does",
        [channel.id],
    ).fetchone()
    return bool(row and row["it_does"])


def _send(
    db: Connection, channel: Channel, identifier: UUID, allowances: Allowances, now: datetime, rules: DeliveryRules
) -> list[Attempt]:
    key: dict[str, Any] = {"channel": channel.id, "message": identifier}
    alerts = read(
        db, f"a.id IN (SELECT alert_id FROM app.alert_deliveries WHERE {_OF_MESSAGE})", **key
    )  # fmt: skip
    if not any(one.wants_telling for one in alerts):
        db.execute(f"UPDATE app.alert_deliveries SET status = 'skipped' WHERE {_OF_MESSAGE}", key)
        return []
    # Counted before it is sent: a crash in between delays the repeat, as any failure does.
    row = db.execute(
        f"UPDATE app.alert_deliveries SET attempts = attempts + 1 WHERE {_OF_MESSAGE} RETURNING attempts", key
    ).fetchone()
    assert row is not None
    attempts = int(row["attempts"])
    db.execute(
        f"UPDATE app.alert_deliveries SET next_attempt_at = %(next)s WHERE {_OF_MESSAGE}",
        key | {"next": now + rules.pause(attempts)},
    )
    message = message_of(channel.id, alerts)
    try:
        delivered = send(channel, message, allowances)
    except Exception as error:
        # Also what nobody foresaw: one channel must not stop the others, and the next pass tries again.
        says = str(error) if isinstance(error, TokenTraError) else f"{type(error).__name__} while sending to {channel.label}; it is tried again."  # fmt: skip
        failed = isinstance(error, PermanentError) or attempts >= rules.most_attempts
        status = "failed" if failed else "waiting"
        wait = timedelta(seconds=min(error.retry_after or 0, 86400)) if isinstance(error, TransientError) else timedelta(0)
        db.execute(
            f"UPDATE app.alert_deliveries SET status = %(status)s, error = %(error)s, next_attempt_at = greatest(next_attempt_at, %(next)s) WHERE {_OF_MESSAGE}",
            key | {"status": status, "error": says, "next": now + wait},
        )
        return [Attempt(channel.label, identifier, len(alerts), status, says)]
    _sent(db, key, delivered, [one for one in alerts if one.alert.kind in QUOTA_KINDS])
    return [Attempt(channel.label, identifier, len(alerts), "sent", delivered.where)]


def _sent(db: Connection, key: dict[str, Any], delivered: Delivered, quotas: list[Raised]) -> None:
    refused = "; ".join(f"{one.recipient} did not get it: {one.reason}" for one in delivered.refused) or None
    with db.transaction():
        db.execute(
            f"UPDATE app.alert_deliveries SET status = 'sent', sent_at = clock_timestamp(), error = %(error)s WHERE {_OF_MESSAGE}",
            key | {"error": refused},
        )
        for one in quotas:
            db.execute(
                "INSERT INTO app.quota_events (quota_id, period_start, kind, details) VALUES (%s, %s, 'alert', %s) ON CONFLICT DO NOTHING",
                [UUID(one.alert.subject), one.alert.period_start, Jsonb({"alert_id": str(one.id), "alert": one.alert.kind})],
            )


def _put_off(db: Connection, channel: Channel, why: str, now: datetime, rules: DeliveryRules) -> list[Attempt]:
    """Nothing can be sent from here; what would have been waits, and shows why."""
    due = _due(db, channel, now)
    if not due and not _waits(db, channel):
        planned = _plan(db, channel, now, rules)
        due = [planned] if planned else []
    attempts = []
    for identifier in due:
        alerts = db.execute(
            f"UPDATE app.alert_deliveries SET error = %(error)s, next_attempt_at = %(next)s WHERE {_OF_MESSAGE}",
            {"channel": channel.id, "message": identifier, "error": why, "next": now + rules.pause_for_secrets},
        ).rowcount
        attempts.append(Attempt(channel.label, identifier, alerts, "waiting", why))
    return attempts
