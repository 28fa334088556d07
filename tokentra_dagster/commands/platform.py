"""The platform itself: start it, show it, its database, the simulator."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import click

from tokentra_dagster.commands.common import echo_json, open_database, parse_moment, settings


@click.command()
@click.option(
    "--port", type=click.IntRange(1, 65535), help="Port of the Dagster UI on 127.0.0.1 (default: TOKENTRA_UI_PORT or 3000)."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address the UI listens on; 0.0.0.0 inside a container.")
def up(port: int | None, host: str) -> None:
    """Start the database, the collector of events, the Dagster UI and the daemon; Ctrl-C stops what it started."""
    from tokentra_dagster.platform import run_platform

    chosen = settings()
    raise SystemExit(run_platform(chosen, port or chosen.ui_port, host))


@click.command()
@click.option("--days", default=60, show_default=True, type=click.IntRange(1, 365))
def demo(days: int) -> None:
    """Run the whole platform once on two simulated organisations, and show what it found."""
    from tokentra_dagster.demo import run_demo

    run_demo(settings(), days)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8321, show_default=True, type=click.IntRange(1, 65535))
@click.option("--now", help="The simulator's clock, e.g. 2026-06-30T12:00Z (default: the real time).")
@click.option(
    "--files",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write what gateways and coding tools leave in files, and end.",
)
@click.option(
    "--days", default=7, show_default=True, type=click.IntRange(1, 400), help="With --files: the last so many whole days."
)
def simulate(host: str, port: int, now: str | None, files: Path | None, days: int) -> None:
    """Serve the simulated usage APIs of OpenAI, Anthropic, AWS, Azure, Google and Langfuse until Ctrl-C (docs/simulator.md)."""

    clock = parse_moment(now, "--now") if now else None
    if files is not None:
        from tokentra_dagster.records import floor
        from tokentra_dagster.simulator.gateway_files import write
        from tokentra_dagster.simulator.simulation import Simulation

        simulation = Simulation(clock)
        end = floor(simulation.clock(), "1d")
        write(simulation, files, end - days * timedelta(days=1), end)
        click.echo(f"Wrote {days} days, to {end:%Y-%m-%d} (end excluded), below {files}")
        return
    from tokentra_dagster.simulator.server import (
        ANTHROPIC_PATH,
        AWS_PATH,
        AZURE_PATH,
        GOOGLE_PATH,
        LANGFUSE_PATH,
        OPENAI_PATH,
        serve,
    )

    def announce(url: str, google: str | None) -> None:
        click.echo(f"OpenAI:    {url}{OPENAI_PATH}   (key sk-admin-acme or sk-admin-globex)")
        click.echo(f"Anthropic: {url}{ANTHROPIC_PATH}   (key sk-ant-admin01-acme or sk-ant-admin01-globex)")
        click.echo(f"AWS:       {url}{AWS_PATH}   (access key AKIASIMacme:any or AKIASIMglobex:any)")
        click.echo(f"Azure:     {url}{AZURE_PATH}   (token azure-token-acme or azure-token-globex)")
        click.echo(f"Langfuse:  {url}{LANGFUSE_PATH}   (keys pk-lf-acme:sk-lf-acme or pk-lf-globex:sk-lf-globex)")
        if google:
            click.echo(
                f"Google:    {google}   (gRPC; token google-token-acme or google-token-globex; the bill at {url}{GOOGLE_PATH})"
            )

    serve(host, port, now=clock, ready=announce)


@click.group("db")
def database() -> None:
    """The database: the embedded PostgreSQL, or the one of TOKENTRA_DATABASE_URL."""


@database.command("start")
def db_start() -> None:
    """Start the embedded server (if it is the one in use) and migrate."""
    click.echo(f"Running at {open_database().public_address}")


@database.command("stop")
def db_stop() -> None:
    """Stop the embedded server."""
    from tokentra_dagster.errors import UsageError
    from tokentra_dagster.warehouse.embedded import EmbeddedServer

    chosen = settings()
    if chosen.database_url:
        raise UsageError("TOKENTRA_DATABASE_URL names a server of your own; tokentra only stops the embedded one.")
    click.echo("Stopped." if EmbeddedServer(chosen.home, chosen.database_port).stop() else "It was not running.")


@database.command("status")
@click.option("--json", "as_json", is_flag=True)
def db_status(as_json: bool) -> None:
    """Say whether it runs, where, and which migration it is at. Starts nothing; exit status 1 when it does not run."""
    from tokentra_dagster.warehouse.database import Database
    from tokentra_dagster.warehouse.embedded import EmbeddedServer
    from tokentra_dagster.warehouse.migrate import current, head

    chosen = settings()
    url = chosen.database_url or EmbeddedServer(chosen.home, chosen.database_port).url()
    running = url is not None
    status = {"running": running, "embedded": chosen.database_url is None, "address": None, "migration": None, "newest": head()}
    if url:
        found = Database(url)
        status |= {"address": found.public_address, "migration": current(found)}
    if as_json:
        echo_json(status)
    elif running:
        click.echo(f"Running at {status['address']}, migration {status['migration']} of {status['newest']}")
    else:
        click.echo("Not running; `tokentra db start` starts it.")
    raise SystemExit(0 if running else 1)


@database.command("url")
def db_url() -> None:
    """Print its address with the password, for psql, dbt or a BI tool."""
    click.echo(open_database().url)


@database.command("migrate")
def db_migrate() -> None:
    """Bring the schema to the newest version; safe to repeat."""
    from tokentra_dagster.warehouse.database import Database
    from tokentra_dagster.warehouse.migrate import current, migrate

    opened = Database.open(settings())
    changed = migrate(opened)
    click.echo(f"{'Migrated to' if changed else 'Already at'} {current(opened)}.")


@database.command("grant-reader")
@click.argument("name")
@click.option(
    "--org", "organizations", multiple=True, metavar="ORG", help="Organisation whose usage it reads; may be given again."
)
@click.option("--all-orgs", is_flag=True, help="It reads every organisation's usage.")
@click.option(
    "--secret",
    help="Where its password is: env:NAME or file:PATH. Without it a new login's password is made up and printed once.",
)
@click.option(
    "--may-reserve",
    is_flag=True,
    help="It may also reserve from their quotas (docs/quotas.md); granting again without it takes that away.",
)
@click.option("--json", "as_json", is_flag=True)
def db_grant_reader(
    name: str, organizations: tuple[str, ...], all_orgs: bool, secret: str | None, may_reserve: bool, as_json: bool
) -> None:
    """Make or change the login NAME that reads the marts of some organisations: for BI tools and programs."""
    from tokentra_dagster.secret_references import resolve_secret
    from tokentra_dagster.warehouse.access import grant_reader

    password = resolve_secret(secret) if secret else None
    opened = open_database()
    with opened.connect() as db:
        granted = grant_reader(
            db, name, organizations=organizations, all_organizations=all_orgs, password=password, may_reserve=may_reserve
        )
    seen = "every organisation" if all_orgs else ", ".join(organizations)
    if as_json:
        echo_json(
            {"name": name, "organizations": None if all_orgs else list(organizations), "address": opened.public_address,
             "is_new": granted.is_new, "may_reserve": may_reserve, "password": granted.password}
        )  # fmt: skip
        return
    click.echo(f"{name} {'is new and' if granted.is_new else 'now'} reads {seen} at {opened.public_address}.")
    if may_reserve:
        click.echo("It may reserve from their quotas.")
    if granted.password:
        click.echo(f"Its password, shown only now: {granted.password}")


@database.command("revoke-reader")
@click.argument("name")
def db_revoke_reader(name: str) -> None:
    """Take the reader NAME away and end its sessions."""
    from tokentra_dagster.warehouse.access import revoke_reader

    with open_database().connect() as db:
        revoke_reader(db, name)
    click.echo(f"{name} reads nothing any more.")
