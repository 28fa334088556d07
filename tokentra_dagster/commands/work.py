"""Work that changes data: sync, import, build. Each runs as a Dagster job, so that the UI's history shows it."""

from __future__ import annotations

from pathlib import Path

import click

from tokentra_dagster.commands.common import echo_json, echo_table, parse_moment, settings


@click.command()
@click.option("--connection", "name", required=True, help="NAME or ORG/NAME.")
@click.option("--from", "start", required=True, help="Date or time, UTC.")
@click.option("--to", "end", required=True, help="Date or time, UTC; excluded.")
@click.option("--granularity", type=click.Choice(["1m", "1h", "1d"]), help="Default: the connection's option, else 1h.")
@click.option("--json", "as_json", is_flag=True)
def sync(name: str, start: str, end: str, granularity: str | None, as_json: bool) -> None:
    """Replace a window of one connection with what the provider says now."""
    from tokentra_dagster.errors import UsageError
    from tokentra_dagster.ingest.sync import granularity_of
    from tokentra_dagster.ingest.windows import aligned
    from tokentra_dagster.runtime import prepare
    from tokentra_dagster.warehouse.directory import find_connection

    first, last = parse_moment(start, "--from"), parse_moment(end, "--to")
    database = prepare(settings())
    with database.connect() as db:
        row = find_connection(db, name)
    if row.integration is None:
        raise UsageError(f"{row.label} holds {row.source} usage; nobody is asked for it.")
    aligned(first, last, granularity or granularity_of(row))
    outcome = run_sync(row.integration, [row.label], first, last, granularity or "")
    with database.connect() as db:
        history = db.execute(
            "SELECT status, window_start, window_end, granularity, records_loaded, records_replaced, records_rejected, costs_loaded, error "
            "FROM raw.sync_history WHERE run_id = %s AND provider_connection_id = %s ORDER BY started_at DESC LIMIT 1",
            [outcome.run_id, row.id],
        ).fetchone()
    _report(row.label, outcome, history, as_json)


def run_sync(integration: str, labels: list[str], first, last, granularity: str = ""):  # type: ignore[no-untyped-def]
    """One Dagster run of the integration's sync over `[first, last)`."""
    from tokentra_dagster.runs import run_job

    tags = {}
    from tokentra_dagster.ingest.assets import partition_range_tags

    tags = partition_range_tags(first, last)
    config = {
        "connections": labels,
        "window_start": first.isoformat(),
        "window_end": last.isoformat(),
        "granularity": granularity,
    }
    return run_job(f"sync_{integration}_job", {"ops": {f"sync_{integration}": {"config": config}}}, tags)


def _report(label: str, outcome, history, as_json: bool) -> None:  # type: ignore[no-untyped-def]
    from tokentra_dagster.errors import TokenTraError

    if history is None:
        raise TokenTraError(f"{label} was not synced: {outcome.error or 'see the run'} (Dagster run {outcome.run_id}).")
    if as_json:
        echo_json({"connection": label, "run_id": outcome.run_id, **history})
    if history["status"] != "completed":
        raise TokenTraError(f"{label}: {history['error']} (Dagster run {outcome.run_id})")
    if not as_json:
        click.echo(
            f"{label}: {history['records_loaded']:,} records ({history['records_replaced']:,} replaced, {history['records_rejected']:,} rejected) "
            f"and {history['costs_loaded'] or 0:,} cost lines for {history['window_start']:%Y-%m-%d %H:%M} to {history['window_end']:%Y-%m-%d %H:%M} UTC. "
            "Next: tokentra build"
        )


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--org", "org_name", required=True)
@click.option("--provider", type=click.Choice(["openai", "anthropic", "google", "azure", "aws"]), required=True)
@click.option(
    "--map",
    "maps",
    multiple=True,
    metavar="TARGET=COLUMN",
    help="Also TARGET=@constant, COLUMN*NUMBER, COLUMN*COLUMN. Same-named columns need none.",
)
@click.option(
    "--name", help="Connection the usage belongs to (default: file-PROVIDER). Importing the same window again replaces it."
)
@click.option("--granularity", type=click.Choice(["1m", "1h", "1d"]), help="For aggregated rows; without it rows are requests.")
@click.option("--bucket-seconds", type=int, help="Length of an aggregated row's bucket where it is not the granularity's.")
@click.option("--timezone", help="IANA time zone of times that name none (default UTC).")
@click.option(
    "--input",
    "input_convention",
    type=click.Choice(["includes-cache", "excludes-cache"]),
    default="includes-cache",
    show_default=True,
)
@click.option("--dry-run", is_flag=True, help="Show what would be loaded and what would be rejected and why; change nothing.")
@click.option("--json", "as_json", is_flag=True)
def import_(file: Path, org_name: str, provider: str, maps: tuple[str, ...], name: str | None, granularity: str | None,
            bucket_seconds: int | None, timezone: str | None, input_convention: str, dry_run: bool, as_json: bool) -> None:  # fmt: skip
    """Load a CSV, JSON Lines or Parquet FILE (gzip too), request-level or aggregated."""
    from tokentra_dagster.commands.importing import import_file

    import_file(
        file, org=org_name, provider=provider, maps=maps, name=name or f"file-{provider}", granularity=granularity,
        bucket_seconds=bucket_seconds, timezone=timezone, input_convention=input_convention, dry_run=dry_run, as_json=as_json,
    )  # fmt: skip


@click.command()
@click.option("--full-refresh", is_flag=True, help="Build everything anew instead of what changed.")
def build(full_refresh: bool) -> None:
    """Bring staging, intermediate models and rollups up to what is loaded, and run every check."""
    from tokentra_dagster.runs import must_succeed, run_job
    from tokentra_dagster.runtime import prepare

    prepare(settings())
    config = {"ops": {"dbt_models": {"config": {"full_refresh": full_refresh}}}}
    outcome = must_succeed(run_job("build_job", config), "The build")
    if outcome.failed_checks:
        from tokentra_dagster.errors import TokenTraError

        raise TokenTraError(f"Built, but checks failed: {'; '.join(outcome.failed_checks)} (Dagster run {outcome.run_id}).")
    click.echo("Built; every check passed.")


__all__ = ["build", "echo_table", "import_", "run_sync", "sync"]
