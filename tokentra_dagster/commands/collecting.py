"""`tokentra collect` and `tokentra keys`: events of applications, and who may send them."""

from __future__ import annotations

import click

from tokentra_dagster.commands.common import echo_json, echo_table, open_database, settings


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 inside a container.")
@click.option("--port", type=click.IntRange(1, 65535), help="Default: TOKENTRA_COLLECTOR_PORT or 4318.")
def collect(host: str, port: int | None) -> None:
    """Take usage events over HTTP until Ctrl-C: POST /v1/events, and OTLP traces at /v1/traces (docs/collector.md).

    Live usage is at /v1/live and /v1/live/feed (docs/live.md).
    """
    from tokentra_dagster.collector.application import create_app
    from tokentra_dagster.collector.auth import organization_of_key
    from tokentra_dagster.collector.server import listen, serve
    from tokentra_dagster.realtime.live_routes import live_router

    listening = listen(host, port or settings().collector_port or 4318)
    with listening:
        database = open_database()
        app = create_app(database, routers=[live_router(database, organization_of_key)])
        serve(app, listening, lambda url: click.echo(f"Collector: {url}/v1/events"))


@click.group()
def keys() -> None:
    """Keys: with which applications of an organisation send events."""


@keys.command("add")
@click.argument("name")
@click.option("--org", "org_name", required=True, help="Organisation whose events it sends.")
@click.option("--json", "as_json", is_flag=True)
def keys_add(name: str, org_name: str, as_json: bool) -> None:
    """Make a key for NAME, the application or team that will use it. It is shown only now."""
    from tokentra_dagster.collector.keys import add_key

    with open_database().connect() as db:
        key = add_key(db, org_name, name)
    if as_json:
        echo_json({"organization": org_name, "name": name, "key": key})
        return
    click.echo(f"{org_name}/{name} may send events. Its key, shown only now: {key}")


@keys.command("list")
@click.option("--org", "org_name", help="Only of this organisation.")
@click.option("--json", "as_json", is_flag=True)
def keys_list(org_name: str | None, as_json: bool) -> None:
    """List keys by how they begin, when they were last used, and which are revoked."""
    from dataclasses import asdict

    from tokentra_dagster.collector.keys import list_keys

    with open_database().connect() as db:
        found = list_keys(db, org_name)
    if as_json:
        echo_json([asdict(key) for key in found])
        return
    from rich.markup import escape

    columns = [(name, False) for name in ("key", "begins with", "made", "last used", "revoked")]
    echo_table(
        "Keys", columns,
        ([escape(key.label), f"{key.key_prefix}...", *(f"{at:%Y-%m-%d %H:%M}" if at else unknown for at, unknown in
          ((key.created_at, ""), (key.last_used_at, "never"), (key.revoked_at, "")))] for key in found),
    )  # fmt: skip


@keys.command("revoke")
@click.argument("name")
def keys_revoke(name: str) -> None:
    """Take back NAME (or ORG/NAME, or the key's id); collectors refuse it within two seconds."""
    from tokentra_dagster.collector.keys import revoke_key

    with open_database().connect() as db:
        key = revoke_key(db, name)
    click.echo(f"{key.label} ({key.key_prefix}...) sends nothing any more.")
