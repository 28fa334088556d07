"""Alerts in the database: raising, resolving, acknowledging, snoozing, and reading them back."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from tokentra_dagster.alerts.alert import KINDS, Alert, Key
from tokentra_dagster.errors import UsageError
from tokentra_dagster.warehouse.directory import Connection, organization_id

EVALUATION_LOCK = 7_265_012
SEVERITY_RANK = "array_position(ARRAY['info', 'warning', 'critical'], {})"
SNOOZED = (
    "EXISTS (SELECT FROM app.alert_snoozes AS z WHERE z.org_id IS NOT DISTINCT FROM a.org_id AND z.snoozed_until > {} "
    "AND (z.kind IS NULL OR z.kind = a.kind) AND (z.subject IS NULL OR z.subject = a.subject))"
)


@dataclass(frozen=True, slots=True)
class Raised:
    """An alert as it is stored."""

    id: UUID
    alert: Alert
    organization: str | None
    raised_at: datetime
    last_seen_at: datetime
    resolved_at: datetime | None
    acknowledged_at: datetime | None
    acknowledged_by: str | None
    acknowledgement_note: str | None
    is_snoozed: bool

    @property
    def short_id(self) -> str:
        """What a person types: as much of the id as is nearly always enough."""
        return str(self.id)[:8]

    @property
    def wants_telling(self) -> bool:
        """It holds, and nobody has said that they know."""
        return self.resolved_at is None and self.acknowledged_at is None


def lock_evaluation(db: Connection) -> None:
    """One evaluation at a time, until the transaction ends: two would each not see what the other raises."""
    db.execute("SELECT pg_advisory_xact_lock(%s)", [EVALUATION_LOCK])


def raise_alerts(db: Connection, alerts: Iterable[Alert]) -> list[Raised]:
    """Store those that are new by their key; the others stay as they are. The caller's transaction. Returns the new ones."""
    ids = []
    for alert in alerts:
        row = db.execute(
            "INSERT INTO app.alerts (org_id, kind, subject, period_start, period_end, severity, title, body, details) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (org_id, kind, subject, period_start) DO NOTHING RETURNING id",
            [alert.org_id, alert.kind, alert.subject, alert.period_start, alert.period_end, alert.severity, alert.title, alert.body,
             Jsonb(dict(alert.details))],
        ).fetchone()  # fmt: skip
        if row:
            ids.append(row["id"])
    return read(db, "a.id = ANY(%(ids)s)", ids=ids)


def keep_current(db: Connection, kinds: Collection[str], holds: Collection[Key], now: datetime) -> int:
    """Resolve the alerts of these kinds that no longer hold, and open those again that hold again: neither is sent. How many changed."""
    changed = 0
    for raised in read(db, "a.kind = ANY(%(kinds)s) AND (a.resolved_at IS NULL OR a.period_end > %(now)s)", kinds=list(kinds), now=now):  # fmt: skip
        held = raised.alert.key in holds
        if held == (raised.resolved_at is None):
            continue
        db.execute("UPDATE app.alerts SET resolved_at = %s WHERE id = %s", [None if held else now, raised.id])
        changed += 1
    return changed


def resolve(db: Connection, ids: Collection[UUID], now: datetime) -> None:
    db.execute("UPDATE app.alerts SET resolved_at = %s WHERE id = ANY(%s) AND resolved_at IS NULL", [now, list(ids)])


def read(db: Connection, where: str = "true", order: str = "a.raised_at, a.id", **parameters: Any) -> list[Raised]:
    """Alerts `a` with organisations `o`, by conditions of this package (never of a person)."""
    rows = db.execute(
        f"SELECT a.*, o.name AS organization, {SNOOZED.format('now()')} AS is_snoozed FROM app.alerts AS a "
        f"LEFT JOIN app.organizations AS o ON o.id = a.org_id WHERE {where} ORDER BY {order}",
        parameters,
    )
    return [_raised(row) for row in rows]


def _raised(row: dict[str, Any]) -> Raised:
    ours = ("org_id", "kind", "subject", "period_start", "period_end", "severity", "title", "body", "details")
    rest = {name: value for name, value in row.items() if name not in ours}
    return Raised(alert=Alert(**{name: row[name] for name in ours}), **rest)


def find(db: Connection, identifier: str) -> Raised:
    """By id or by its beginning. Raises `UsageError` where that is none or several."""
    text = identifier.strip().lower()
    if len(text) < 4 or not set(text) <= set("0123456789abcdef-"):
        raise UsageError(f"An alert's id is {identifier!r}; give at least its first four characters (`tokentra alerts list`).")
    found = read(db, "a.id::text LIKE %(start)s", start=f"{text}%")
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"Several alerts' ids begin with {identifier}; give more: {', '.join(str(one.id) for one in found[:5])}."
        )
    raise UsageError(f"No alert has the id {identifier}; `tokentra alerts history` lists them.")


def acknowledge(db: Connection, identifier: str, by: str, note: str | None = None) -> tuple[Raised, bool]:
    """Somebody knows: it is not sent any more where it has not been. A second time changes nothing; the answer says whether now."""
    alert = find(db, identifier)
    done = db.execute(
        "UPDATE app.alerts SET acknowledged_at = now(), acknowledged_by = %s, acknowledgement_note = %s "
        "WHERE id = %s AND acknowledged_at IS NULL",
        [by, note, alert.id],
    )
    return find(db, str(alert.id)), bool(done.rowcount)


def snooze(
    db: Connection, org_id: UUID | None, kind: str | None, subject: str | None, until: datetime, by: str, note: str | None = None
) -> None:
    """Send no alerts of this kind, about this subject, or both, until then. Replaces what was said of the same before."""
    if kind is not None and kind not in KINDS:
        raise UsageError(f"The kind of alert is {kind!r}; it must be one of {', '.join(KINDS)}.")
    end_snooze(db, org_id, kind, subject)
    db.execute(
        "INSERT INTO app.alert_snoozes (org_id, kind, subject, snoozed_until, snoozed_by, note) VALUES (%s, %s, %s, %s, %s, %s)",
        [org_id, kind, subject, until, by, note],
    )


def end_snooze(db: Connection, org_id: UUID | None, kind: str | None, subject: str | None) -> bool:
    """Whether there was one."""
    done = db.execute(
        "DELETE FROM app.alert_snoozes WHERE org_id IS NOT DISTINCT FROM %s AND kind IS NOT DISTINCT FROM %s AND subject IS NOT DISTINCT FROM %s",
        [org_id, kind, subject],
    )
    return bool(done.rowcount)


def snoozes(db: Connection) -> list[dict[str, Any]]:
    """Those that last, with the name of the quota or connection where the subject is one."""
    return db.execute(
        "SELECT o.name AS organization, z.kind, coalesce(q.name, c.name, z.subject) AS subject, z.snoozed_until, z.snoozed_by, z.note "
        "FROM app.alert_snoozes AS z LEFT JOIN app.organizations AS o ON o.id = z.org_id "
        "LEFT JOIN app.usage_quotas AS q ON q.id::text = z.subject LEFT JOIN app.provider_connections AS c ON c.id::text = z.subject "
        "WHERE z.snoozed_until > now() ORDER BY z.snoozed_until"
    ).fetchall()


def quota_id(db: Connection, org: str, name: str) -> tuple[UUID, UUID]:
    """The organisation's and the quota's id. Raises `UsageError` that lists the quotas there are."""
    org_id = organization_id(db, org)
    rows = db.execute("SELECT id, name FROM app.usage_quotas WHERE org_id = %s ORDER BY name", [org_id]).fetchall()
    for row in rows:
        if name in (row["name"], str(row["id"])):
            return org_id, row["id"]
    raise UsageError(f"{org} has no quota named {name!r}. There are: {', '.join(row['name'] for row in rows) or 'none'}.")


def deliveries(db: Connection, ids: Collection[UUID]) -> list[dict[str, Any]]:
    """What became of these alerts: a row per alert and channel."""
    return db.execute(
        "SELECT d.alert_id, c.name AS channel, c.kind AS channel_kind, d.status, d.attempts, d.sent_at, d.next_attempt_at, d.error, d.message_id "
        "FROM app.alert_deliveries AS d JOIN app.alert_channels AS c ON c.id = d.channel_id WHERE d.alert_id = ANY(%s) ORDER BY c.name",
        [list(ids)],
    ).fetchall()
