"""`tokentra retention`: take away what has expired, as a Dagster job, or only say what would go."""

from __future__ import annotations

from typing import Any

import click

from tokentra_dagster.commands.common import echo_json, echo_table, open_database, settings


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what would go and what must stay and why; change nothing.")
@click.option("--json", "as_json", is_flag=True)
def retention(dry_run: bool, as_json: bool) -> None:
    """Take away usage that the TOKENTRA_RETENTION_ settings no longer keep; never what is not rolled up yet."""
    removed, waits = _preview() if dry_run else _run()
    if as_json:
        echo_json({"dry_run": dry_run, "removed": removed, "waits": waits})
        return
    if removed:
        echo_table(
            "Would go" if dry_run else "Gone",
            [("what", False), ("before (UTC)", False), ("rows", True)],
            [[gone["partition"] or gone["what"], gone["before"][:10], f"{gone['rows']:,}"] for gone in removed],
        )
    else:
        click.echo("Nothing has expired.")
    for reason in waits:
        click.echo(f"Stays for now: {reason}")


def _preview() -> tuple[list[dict[str, Any]], list[str]]:
    from datetime import UTC, datetime

    from tokentra_dagster.dbt_manifest import rollups
    from tokentra_dagster.warehouse.retention import preview

    chosen = settings()
    report = preview(open_database(), chosen.retention, rollups(chosen), datetime.now(UTC))
    return [removed.as_json() for removed in report.removed], report.waits


def _run() -> tuple[list[dict[str, Any]], list[str]]:
    from tokentra_dagster.runs import must_succeed, run_job
    from tokentra_dagster.runtime import prepare

    database = prepare(settings())
    outcome = must_succeed(run_job("retention_job"), "Retention")
    with database.connect() as db:
        row = db.execute("SELECT removed, waits FROM raw.retention_history WHERE run_id = %s", [outcome.run_id]).fetchone()
    assert row is not None, "a run that succeeded is in the history"
    return row["removed"], row["waits"]
