"""Channels: where alerts go, which of them, and the destination behind (the same code as exports')."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from tokentra_dagster.alerts.alert import KINDS, OPERATOR_KINDS, SEVERITIES
from tokentra_dagster.alerts.messages import Message, event_of, letter_of, slack_of
from tokentra_dagster.errors import UsageError
from tokentra_dagster.exports.destinations.base import SAFE, Allowances, Delivered, clean_text
from tokentra_dagster.exports.destinations.slack import SlackWebhook
from tokentra_dagster.exports.destinations.smtp import Mailbox
from tokentra_dagster.exports.destinations.webhook import Webhook
from tokentra_dagster.secret_references import is_reference, resolve_secret
from tokentra_dagster.warehouse.directory import Connection, one_named, organization_id

CHANNEL_KINDS = ("email", "webhook", "slack")
_FILES = ("store", "attach_bytes", "attachBytes")
"""Settings of exports that an alert has no use for."""


@dataclass(frozen=True, slots=True)
class Channel:
    """A row of `app.alert_channels`. `org_id` None: the operators', which hear of every organisation and of none."""

    id: UUID
    org_id: UUID | None
    organization: str | None
    name: str
    kind: str
    config: Mapping[str, Any]
    alert_kinds: Sequence[str]
    least_severity: str
    is_active: bool
    created_at: datetime

    @property
    def label(self) -> str:
        return f"{self.organization or 'operators'}/{self.name}"


def send(channel: Channel, message: Message, allowances: Allowances = SAFE) -> Delivered:
    """Send it now. Raises `PermanentError` or `TransientError`."""
    destination = open_destination(channel.kind, channel.config, allowances)
    if isinstance(destination, Mailbox):
        return destination.send(letter_of(message, destination.sender, destination.recipients))
    if isinstance(destination, Webhook):
        return destination.send(str(message.id), event_of(message))
    return destination.send(str(message.id), slack_of(message))


def open_destination(kind: str, config: Mapping[str, Any], allowances: Allowances = SAFE) -> Mailbox | Webhook | SlackWebhook:
    """Check the settings and build the destination; nothing is asked or sent yet, no secret is read. Raises `UsageError` or
    `PermanentError`."""
    for name in _FILES:
        if name in config:
            raise UsageError(f"{kind}: the setting {name!r} is about files, which an alert has none of; leave it out.")
    if kind == "email":
        return Mailbox.parse(config, allowances)
    if kind == "webhook":
        return Webhook.parse(config, allowances)
    if kind == "slack":
        return SlackWebhook.parse(config, allowances)
    raise UsageError(f"The kind of channel is {kind!r}; it must be one of {', '.join(CHANNEL_KINDS)}.")


def check_secrets(channel: Channel) -> None:
    """Raise `PermanentError` where this process cannot read a secret that the channel needs."""
    for value in channel.config.values():
        if isinstance(value, str) and is_reference(value):
            resolve_secret(value)


def add_channel(
    db: Connection, *, org: str | None, name: str, kind: str, config: Mapping[str, Any], alert_kinds: Sequence[str] = (),
    least_severity: str = "warning", allowances: Allowances = SAFE,
) -> tuple[UUID, bool]:  # fmt: skip
    """The channel's id, and whether it is new. One of that name gets the new settings, and what had failed there is tried again.

    Without `alert_kinds`: an organisation's channel gets everything, the operators' what fails. It gets what is raised from now on.
    """
    if not name.strip() or name != clean_text(name) or "/" in name:
        raise UsageError(f"The channel's name is {name!r}; it must be one line, not empty, without slashes.")
    if unknown := [one for one in alert_kinds if one not in KINDS]:
        raise UsageError(f"The kinds of alert are {', '.join(unknown)}; they must be of {', '.join(KINDS)}.")
    if least_severity not in SEVERITIES:
        raise UsageError(f"The least severity is {least_severity!r}; it must be one of {', '.join(SEVERITIES)}.")
    open_destination(kind, config, allowances)
    org_id = organization_id(db, org) if org else None
    chosen = list(alert_kinds) or list(KINDS if org_id else OPERATOR_KINDS)
    row = db.execute(
        "INSERT INTO app.alert_channels AS c (org_id, name, kind, config, alert_kinds, least_severity) VALUES (%s, %s, %s, %s, %s, %s) "
        "ON CONFLICT (org_id, name) DO UPDATE SET kind = excluded.kind, config = excluded.config, alert_kinds = excluded.alert_kinds, "
        "least_severity = excluded.least_severity, is_active = true, updated_at = now() RETURNING id, xmax = 0 AS is_new",
        [org_id, name, kind, Jsonb(dict(config)), chosen, least_severity],
    ).fetchone()
    assert row is not None
    try_again(db, row["id"])
    return row["id"], row["is_new"]


_CHANNELS = "SELECT c.id, c.org_id, o.name AS organization, c.name, c.kind, c.config, c.alert_kinds, c.least_severity, c.is_active, c.created_at FROM app.alert_channels AS c LEFT JOIN app.organizations AS o ON o.id = c.org_id"


def channels(db: Connection, *, active_only: bool = False) -> list[Channel]:
    rows = db.execute(_CHANNELS + " WHERE c.is_active OR NOT %s ORDER BY o.name NULLS FIRST, c.name", [active_only])
    return [Channel(**row) for row in rows]


def find_channel(db: Connection, name: str) -> Channel:
    """By `ORG/NAME` or `operators/NAME`, by name where it is the only one, or by id. Raises `UsageError` that lists them."""
    return one_named(channels(db), name, what="channel", owners="Several", add="tokentra alerts channels add")


def set_active(db: Connection, name: str, active: bool) -> Channel:
    """Pause or resume. What waits, or had failed, is sent after resuming where it still holds."""
    channel = find_channel(db, name)
    db.execute("UPDATE app.alert_channels SET is_active = %s, updated_at = now() WHERE id = %s", [active, channel.id])
    if active:
        try_again(db, channel.id)
    return channel


def try_again(db: Connection, channel_id: UUID) -> int:
    """What had failed or waits for its next attempt is due at once."""
    return db.execute(
        "UPDATE app.alert_deliveries SET status = 'waiting', attempts = 0, next_attempt_at = now() "
        "WHERE channel_id = %s AND status IN ('failed', 'waiting')",
        [channel_id],
    ).rowcount


def delete_channel(db: Connection, name: str) -> Channel:
    """It and the record of what was sent there."""
    channel = find_channel(db, name)
    db.execute("DELETE FROM app.alert_channels WHERE id = %s", [channel.id])
    return channel
