"""`tokentra alerts channels`: where alerts go."""

from __future__ import annotations

import click

from tokentra_dagster.commands.common import echo_json, echo_table, open_database, pairs, settings


@click.group()
def channels() -> None:
    """Channels: where alerts go, and which of them."""


@channels.command("add")
@click.argument("name")
@click.option("--org", "org_name", help="Organisation whose alerts it gets.")
@click.option(
    "--operators", is_flag=True, help="For those who run the platform: failed runs, and failed syncs of every organisation."
)
@click.option("--kind", type=click.Choice(["email", "webhook", "slack"]), required=True)
@click.option(
    "--set", "config", multiple=True, metavar="SETTING=VALUE", help="A setting of that kind (docs/alerts.md); secrets as env:NAME or file:PATH."
)  # fmt: skip
@click.option(
    "--alert", "alert_kinds", multiple=True, metavar="KIND", help="Only alerts of this kind; more than once for several."
)
@click.option("--least", type=click.Choice(["info", "warning", "critical"]), default="warning", show_default=True)
def add(name: str, org_name: str | None, operators: bool, kind: str, config: tuple[str, ...], alert_kinds: tuple[str, ...],
        least: str) -> None:  # fmt: skip
    """Add a channel, or change the one of that name. It gets what is raised from now on."""
    from tokentra_dagster.alerts.channels import add_channel
    from tokentra_dagster.errors import UsageError
    from tokentra_dagster.exports.destinations.base import Allowances

    if operators == bool(org_name):
        raise UsageError("Say whose alerts the channel gets: --org NAME or --operators.")
    with open_database().connect() as db:
        _, new = add_channel(
            db, org=org_name, name=name, kind=kind, config=pairs(config, "--set"), alert_kinds=alert_kinds, least_severity=least,
            allowances=Allowances.of(settings()),
        )  # fmt: skip
    label = f"{org_name or 'operators'}/{name}"
    click.echo(f"{'Added' if new else 'Changed'} {label}. Try it: tokentra alerts channels test {label}")


@channels.command("list")
@click.option("--json", "as_json", is_flag=True)
def list_(as_json: bool) -> None:
    """List channels with what waits or has failed there, and the last error."""
    with open_database().connect() as db:
        rows = db.execute(
            """
            SELECT coalesce(o.name, 'operators') || '/' || c.name AS channel, c.kind, c.is_active AS active, c.least_severity, c.alert_kinds,
              d.sent, d.waiting, d.failed, d.last_sent_at, d.error
            FROM app.alert_channels AS c
            LEFT JOIN app.organizations AS o ON o.id = c.org_id
            CROSS JOIN LATERAL (
              SELECT count(*) FILTER (WHERE status = 'sent') AS sent, count(*) FILTER (WHERE status = 'waiting') AS waiting,
                count(*) FILTER (WHERE status = 'failed') AS failed, max(sent_at) AS last_sent_at,
                (array_agg(error ORDER BY next_attempt_at DESC) FILTER (WHERE status IN ('waiting', 'failed') AND error IS NOT NULL))[1] AS error
              FROM app.alert_deliveries WHERE channel_id = c.id
            ) AS d
            ORDER BY o.name NULLS FIRST, c.name
            """
        ).fetchall()
    if as_json:
        echo_json(rows)
        return
    from rich.markup import escape

    columns = [("channel", False), ("kind", False), ("active", False), ("from", False), ("sent", True), ("waiting", True), ("failed", True), ("error", False)]  # fmt: skip
    echo_table(
        "Channels", columns,
        ([escape(r["channel"]), r["kind"], "yes" if r["active"] else "no", r["least_severity"], f"{r['sent']:,}", f"{r['waiting']:,}",
          f"{r['failed']:,}", escape(r["error"] or "")] for r in rows),
    )  # fmt: skip


@channels.command("test")
@click.argument("name")
def test(name: str) -> None:
    """Really send a message to NAME (or ORG/NAME, operators/NAME) that says it is a test."""
    from tokentra_dagster.alerts.channels import find_channel
    from tokentra_dagster.alerts.deliver import send_test
    from tokentra_dagster.exports.destinations.base import Allowances

    database = open_database()
    with database.connect() as db:
        channel = find_channel(db, name)
    delivered = send_test(database, channel, Allowances.of(settings()))
    click.echo(f"{channel.label}: sent to {delivered.where}")
    for one in delivered.refused:
        click.echo(f"Not to {one.recipient}: {one.reason}")


@channels.command("pause")
@click.argument("name")
def pause(name: str) -> None:
    """Send nothing to NAME until it is resumed; alerts are still raised."""
    from tokentra_dagster.alerts.channels import set_active

    with open_database().connect() as db:
        channel = set_active(db, name, False)
    click.echo(f"{channel.label} is paused. Again: tokentra alerts channels resume {channel.label}")


@channels.command("resume")
@click.argument("name")
def resume(name: str) -> None:
    """Send to NAME again, also what was raised meanwhile or had failed, where it still holds."""
    from tokentra_dagster.alerts.channels import set_active

    with open_database().connect() as db:
        channel = set_active(db, name, True)
    click.echo(f"{channel.label} is active.")


@channels.command("delete")
@click.argument("name")
def delete(name: str) -> None:
    """Delete NAME and the record of what was sent there; the alerts stay in the history."""
    from tokentra_dagster.alerts.channels import delete_channel

    with open_database().connect() as db:
        channel = delete_channel(db, name)
    click.echo(f"{channel.label} is deleted.")
