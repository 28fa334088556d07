"""`tokentra alerts`: what was raised and where it went, saying that one knows, quiet for a while, and raising and sending by hand."""

from __future__ import annotations

import getpass
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from tokentra_dagster.commands.alert_channels import channels
from tokentra_dagster.commands.common import echo_json, echo_table, open_database, parse_moment, settings

if TYPE_CHECKING:
    from tokentra_dagster.alerts.store import Raised

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@click.group()
def alerts() -> None:
    """Alerts: quotas, anomalies, failed syncs and runs; raised once, sent to channels."""


alerts.add_command(channels)


@alerts.command("list")
@click.option("--org", "org_name", help="Only of this organisation.")
@click.option("--json", "as_json", is_flag=True)
def list_(org_name: str | None, as_json: bool) -> None:
    """What holds now, and what is snoozed. `history` has everything."""
    from tokentra_dagster.alerts.store import snoozes

    with open_database().connect() as db:
        found = _read(db, org_name, "a.resolved_at IS NULL", 500)
        quiet = snoozes(db)
    if as_json:
        echo_json({"alerts": [_as_json(one) for one in found], "snoozes": quiet})
        return
    if found:
        _table("Alerts that hold", found)
    else:
        click.echo("No alert holds.")
    for one in quiet:
        what = " and ".join(str(one[name]) for name in ("kind", "subject") if one[name])
        click.echo(f"Snoozed until {one['snoozed_until']:%Y-%m-%d %H:%M} UTC: {what} of {one['organization'] or 'the platform'}")


@alerts.command()
@click.option("--org", "org_name", help="Only of this organisation.")
@click.option("--limit", type=click.IntRange(1, 10000), default=50, show_default=True, help="The newest so many.")
@click.option("--json", "as_json", is_flag=True)
def history(org_name: str | None, limit: int, as_json: bool) -> None:
    """What was raised, the newest first, with where it went."""
    from tokentra_dagster.alerts.store import deliveries

    with open_database().connect() as db:
        found = _read(db, org_name, "true", limit)
        sent: dict[Any, list[dict[str, Any]]] = {}
        for row in deliveries(db, [one.id for one in found]):
            sent.setdefault(row["alert_id"], []).append(row)
    if as_json:
        echo_json([_as_json(one) | {"deliveries": sent.get(one.id, [])} for one in found])
        return
    if not found:
        click.echo("No alert has been raised.")
        return
    echo_table(
        "Alerts", [(name, False) for name in ("id", "raised (UTC)", "severity", "organisation", "alert", "state", "sent")],
        ([*_cells(one), ", ".join(f"{row['channel']}: {row['status']}" for row in sent.get(one.id, []))] for one in found),
    )  # fmt: skip


@alerts.command()
@click.argument("alert_id")
@click.option("--json", "as_json", is_flag=True)
def show(alert_id: str, as_json: bool) -> None:
    """One alert in full: figures, state, and each channel with what came of it. The beginning of the id is enough."""
    from tokentra_dagster.alerts.store import deliveries, find

    with open_database().connect() as db:
        one = find(db, alert_id)
        sent = deliveries(db, [one.id])
    if as_json:
        echo_json(_as_json(one) | {"deliveries": sent})
        return
    click.echo(f"{one.alert.title} ({one.organization or 'platform'}, {one.alert.severity}, {one.alert.kind})\n{one.alert.body}")
    click.echo(f"Id {one.id}, raised {one.raised_at:%Y-%m-%d %H:%M} UTC, {_state(one)}")
    if one.acknowledged_at:
        note = f": {one.acknowledgement_note}" if one.acknowledgement_note else ""
        click.echo(f"Acknowledged by {one.acknowledged_by} at {one.acknowledged_at:%Y-%m-%d %H:%M} UTC{note}")
    for row in sent:
        when = f" at {row['sent_at']:%Y-%m-%d %H:%M} UTC" if row["sent_at"] else f" after {row['attempts']} attempts"
        click.echo(
            f"{row['channel']} ({row['channel_kind']}): {row['status']}{when}{': ' + row['error'] if row['error'] else ''}"
        )


@alerts.command()
@click.argument("alert_id")
@click.option("--note", help="What is being done, for whoever looks next.")
@click.option("--by", help="Who knows (default: the name of your login).")
def ack(alert_id: str, note: str | None, by: str | None) -> None:
    """Say that you know of an alert: it is not sent any more where it has not been."""
    from tokentra_dagster.alerts.store import acknowledge

    with open_database().connect() as db:
        one, new = acknowledge(db, alert_id, by or _login(), note)
    click.echo(
        f"Acknowledged: {one.alert.title}" if new else f"Acknowledged already, by {one.acknowledged_by}: {one.alert.title}"
    )


_SUBJECT = [
    click.argument("alert_id", required=False),
    click.option("--org", "org_name", help="With --quota or --kind: the organisation; without it alerts of the platform itself."),
    click.option("--quota", help="Everything about this quota."),
    click.option("--kind", help="Every alert of this kind, e.g. anomaly."),
]


def _with_subject(command: Any) -> Any:
    for decorator in reversed(_SUBJECT):
        command = decorator(command)
    return command


@alerts.command()
@_with_subject
@click.option("--for", "duration", metavar="TIME", help="E.g. 30m, 4h, 2d, 1w.")
@click.option("--until", help="Date or time, UTC.")
@click.option("--note")
def snooze(alert_id: str | None, org_name: str | None, quota: str | None, kind: str | None, duration: str | None,
           until: str | None, note: str | None) -> None:  # fmt: skip
    """Send nothing of an alert's kind and subject, of a quota, or of a kind for a while. It is still raised, and what still holds
    at the end is sent then."""
    from tokentra_dagster.alerts.store import snooze as snooze_

    if (duration is None) == (until is None):
        raise click.UsageError("Say how long: --for 4h or --until 2026-06-01.")
    end = _from_now(duration) if duration else parse_moment(str(until), "--until")
    if end <= datetime.now(UTC):
        raise click.BadParameter(f"{end:%Y-%m-%d %H:%M} UTC is over", param_hint="--until")
    with open_database().connect() as db:
        org_id, chosen, subject, what = _subject(db, alert_id, org_name, quota, kind)
        snooze_(db, org_id, chosen, subject, end, _login(), note)
    click.echo(f"Quiet until {end:%Y-%m-%d %H:%M} UTC: {what}")


@alerts.command()
@_with_subject
def unsnooze(alert_id: str | None, org_name: str | None, quota: str | None, kind: str | None) -> None:
    """End a snooze; say what as you did with `snooze`."""
    from tokentra_dagster.alerts.store import end_snooze

    with open_database().connect() as db:
        org_id, chosen, subject, what = _subject(db, alert_id, org_name, quota, kind)
        there = end_snooze(db, org_id, chosen, subject)
    click.echo(f"No longer quiet: {what}" if there else f"Was not snoozed: {what}")


@alerts.command()
@click.option("--dry-run", is_flag=True, help="Say what would be raised; raise and send nothing.")
@click.option("--json", "as_json", is_flag=True)
def evaluate(dry_run: bool, as_json: bool) -> None:
    """Raise what is new and send it, as the schedule does every five minutes."""
    from tokentra_dagster.alerts.deliver import deliver
    from tokentra_dagster.alerts.evaluate import evaluate as evaluate_
    from tokentra_dagster.errors import TokenTraError
    from tokentra_dagster.exports.destinations.base import Allowances

    database = open_database()
    found = evaluate_(database, dry_run=dry_run)
    sent = [] if dry_run else deliver(database, Allowances.of(settings()))
    if as_json:
        messages = [{"channel": s.channel, "alerts": s.alerts, "status": s.status, "says": s.says} for s in sent]
        echo_json(
            {"dry_run": dry_run, "raised": [_as_json(one) for one in found.raised], "sent": messages, "errors": found.errors}
        )
    else:
        if found.raised:
            _table("Would be raised" if dry_run else "Raised", found.raised)
        else:
            click.echo("Nothing new.")
        for one in sent:
            click.echo(f"{one.channel}: {one.alerts} alert{'s' if one.alerts != 1 else ''} {one.status} ({one.says})")
    if found.errors:
        raise TokenTraError(f"Not evaluated: {'; '.join(found.errors)}.")


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"


def _subject(db: Any, alert_id: str | None, org_name: str | None, quota: str | None, kind: str | None) -> tuple[Any, str | None, str | None, str]:  # fmt: skip
    """Organisation, kind and subject of a snooze, and how to name it."""
    from tokentra_dagster.alerts.store import find, quota_id
    from tokentra_dagster.warehouse.directory import organization_id

    if (alert_id is not None) == (quota is not None or kind is not None):
        raise click.UsageError("Say what: an alert's id, or --quota and --org, or --kind.")
    if alert_id is not None:
        one = find(db, alert_id)
        return one.alert.org_id, one.alert.kind, one.alert.subject, one.alert.title
    if quota is not None:
        if org_name is None:
            raise click.UsageError("--quota needs --org.")
        org_id, subject = quota_id(db, org_name, quota)
        return org_id, kind, str(subject), f"{kind or 'everything'} of quota {quota} of {org_name}"
    return organization_id(db, org_name) if org_name else None, kind, None, f"{kind} of {org_name or 'the platform'}"


def _from_now(text: str) -> datetime:
    found = re.fullmatch(r"([1-9][0-9]{0,4})([mhdw])", text)
    if not found:
        raise click.BadParameter(f"{text!r} is no duration; use e.g. 30m, 4h, 2d or 1w", param_hint="--for")
    return datetime.now(UTC) + timedelta(**{_UNITS[found[2]]: int(found[1])})


def _read(db: Any, org_name: str | None, where: str, limit: int) -> list[Raised]:
    from tokentra_dagster.alerts.store import read
    from tokentra_dagster.warehouse.directory import organization_id

    org_id = organization_id(db, org_name) if org_name else None
    order = f"a.raised_at DESC, a.id LIMIT {int(limit)}"
    return read(db, f"{where} AND (%(org)s::uuid IS NULL OR a.org_id = %(org)s)", order, org=org_id)


def _table(title: str, found: list[Raised]) -> None:
    echo_table(
        title, [(name, False) for name in ("id", "raised (UTC)", "severity", "organisation", "alert", "state")],
        (_cells(one) for one in found),
    )  # fmt: skip


def _cells(one: Raised) -> list[str]:
    from rich.markup import escape

    when = f"{one.raised_at:%Y-%m-%d %H:%M}"
    return [
        one.short_id,
        when,
        one.alert.severity,
        escape(one.organization or "(platform)"),
        escape(one.alert.title),
        _state(one),
    ]


def _state(one: Raised) -> str:
    if one.resolved_at:
        return f"resolved {one.resolved_at:%Y-%m-%d %H:%M}"
    return "acknowledged" if one.acknowledged_at else "snoozed" if one.is_snoozed else "holds"


def _as_json(one: Raised) -> dict[str, Any]:
    alert = one.alert
    return {
        "id": one.id, "organization": one.organization, "kind": alert.kind, "severity": alert.severity, "subject": alert.subject,
        "title": alert.title, "body": alert.body, "period_start": alert.period_start, "period_end": alert.period_end,
        "raised_at": one.raised_at, "resolved_at": one.resolved_at, "acknowledged_at": one.acknowledged_at,
        "acknowledged_by": one.acknowledged_by, "acknowledgement_note": one.acknowledgement_note, "is_snoozed": one.is_snoozed,
        "details": alert.details,
    }  # fmt: skip
