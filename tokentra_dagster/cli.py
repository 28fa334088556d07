"""`tokentra`: what a person runs by hand. Errors are one clear sentence and exit status 1 (2 for wrong usage).

Commands import what they need when they run, so that `--help` and the reading commands start at once.
"""

from __future__ import annotations

import sys

import click

from tokentra_dagster.commands.alerts import alerts
from tokentra_dagster.commands.analyze import analyze, report
from tokentra_dagster.commands.collecting import collect, keys
from tokentra_dagster.commands.exporting import export
from tokentra_dagster.commands.look import allocation, doctor, summary
from tokentra_dagster.commands.platform import database, demo, simulate, up
from tokentra_dagster.commands.quota import quota
from tokentra_dagster.commands.retention import retention
from tokentra_dagster.commands.scheduled_exports import exports
from tokentra_dagster.commands.setup import connection, org, rule
from tokentra_dagster.commands.top import top
from tokentra_dagster.commands.work import build, import_, sync
from tokentra_dagster.errors import TokenTraError, UsageError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="tokentra-usage")
def cli() -> None:
    """Usage of AI providers that agrees with the bill: sync, load, roll up, look."""


for command in (
    up,
    demo,
    simulate,
    database,
    org,
    connection,
    rule,
    sync,
    import_,
    build,
    summary,
    allocation,
    top,
    analyze,
    report,
    export,
    exports,
    alerts,
    collect,
    keys,
    quota,
    retention,
    doctor,
):
    cli.add_command(command)


def main() -> None:
    """Entry point: turns our own errors into one sentence on stderr."""
    try:
        cli(standalone_mode=True)
    except TokenTraError as error:
        click.echo(f"tokentra: {error}", err=True)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except BrokenPipeError:
        sys.exit(0)


if __name__ == "__main__":
    main()
