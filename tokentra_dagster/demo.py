"""`tokentra demo`: the whole platform once, on two simulated organisations, over HTTP through the real connectors."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import click

from tokentra_dagster.commands.look import echo_summary
from tokentra_dagster.commands.work import run_sync
from tokentra_dagster.errors import TokenTraError
from tokentra_dagster.ingest.assets import partition_range_tags
from tokentra_dagster.ingest.windows import DAY
from tokentra_dagster.records import floor
from tokentra_dagster.runs import must_succeed, run_job
from tokentra_dagster.runtime import prepare
from tokentra_dagster.settings import Settings
from tokentra_dagster.summary import summarize
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import add_connection, add_organization, add_rule, disable_connection, organization_id

ORGANIZATIONS = ("acme", "globex")
SECRETS = {"openai": "sk-admin-{org}", "anthropic": "sk-ant-admin01-{org}", "aws": "AKIASIM{org}:simulated"}
OPTIONS = {"aws": {"regions": "us-east-1,eu-central-1", "cost_export": "s3://{org}-bedrock/export/bedrock"}}


def run_demo(settings: Settings, days: int) -> None:
    """Set up, sync, build, check, summarise. Raises `TokenTraError` when any part fails; run again, it changes no total."""
    from tokentra_dagster.simulator.server import RunningSimulator

    with _step("Database"):
        database = prepare(settings)
    today = floor(datetime.now(UTC), "1d")
    start, end = today - days * DAY, today
    # The simulator's clock stands still at the start of today, so that a second demo on the same day sees the same answers.
    with RunningSimulator(now=end) as simulator:
        with _step("Organisations, connections and attribution rules"):
            _set_up(database, simulator)
        for org in ORGANIZATIONS:
            for provider in SECRETS:
                with _step(f"Syncing {org}/{provider}, {days} days"):
                    outcome = must_succeed(run_sync(provider, [f"{org}/{provider}"], start, end), f"The sync of {org}/{provider}")
                    if outcome.failed_checks:
                        raise TokenTraError(f"{org}/{provider} was not synced: {_failures(database, outcome.run_id)}")
        with _step("dbt build and checks"):
            outcome = must_succeed(run_job("build_job"), "The build")
    _rest(database)
    if outcome.failed_checks:
        raise TokenTraError(f"Checks failed: {'; '.join(outcome.failed_checks)}")
    with _step("Analytics of the windows that end today"):
        must_succeed(run_job("analytics_job", tags=partition_range_tags(end - DAY, end)), "The analysis")
    _show(database, start, end)


def _set_up(database: Database, simulator) -> None:  # type: ignore[no-untyped-def]
    urls = {"openai": simulator.openai_url, "anthropic": simulator.anthropic_url, "aws": simulator.aws_url}
    with database.connect() as db:
        for name in ORGANIZATIONS:
            add_organization(db, name)
            for provider, pattern in SECRETS.items():
                variable = f"TOKENTRA_SECRET_DEMO_{name}_{provider}".upper()
                os.environ[variable] = pattern.format(org=name)
                options = {option: value.format(org=name) for option, value in OPTIONS.get(provider, {}).items()}
                add_connection(
                    db, org=name, name=provider, provider=provider, secret_ref=f"env:{variable}", base_url=urls[provider],
                    options=options, integration=provider,
                )  # fmt: skip
            for fill in simulator.simulation.attribution(name):
                add_rule(db, org=name, **fill)


def _rest(database: Database) -> None:
    """The simulator is gone, so the hourly syncs of `tokentra up` must not ask it. What was synced stays; a second demo wakes them."""
    with database.connect() as db:
        for name in ORGANIZATIONS:
            for provider in SECRETS:
                disable_connection(db, f"{name}/{provider}")


def _failures(database: Database, run_id: str) -> str:
    with database.connect() as db:
        rows = db.execute("SELECT error FROM raw.sync_history WHERE run_id = %s AND status = 'failed'", [run_id]).fetchall()
    return "; ".join(row["error"] for row in rows)


def _show(database: Database, start: datetime, end: datetime) -> None:
    with database.connect() as db:
        for name in ORGANIZATIONS:
            org_id = organization_id(db, name)
            for by in ("provider", "model", "team"):
                echo_summary(
                    f"{name}, {start:%Y-%m-%d} to {end:%Y-%m-%d} (UTC, end excluded), by {by}",
                    by,
                    summarize(db, org_id, start, end, by),
                )
        synced = db.execute(
            "SELECT count(*) AS windows, sum(records_loaded) AS records, sum(records_rejected) AS rejected, sum(costs_loaded) AS costs "
            "FROM (SELECT DISTINCT ON (provider_connection_id) * FROM raw.sync_history WHERE status = 'completed' "
            "ORDER BY provider_connection_id, started_at DESC) AS newest"
        ).fetchone()
    assert synced is not None
    click.echo(
        f"Synced {synced['windows']} connections: {synced['records']:,} records, {synced['costs']:,} cost lines, {synced['rejected']:,} rejected.\n"
        f"More:  tokentra report --org acme --from {start:%Y-%m-%d} --to {end:%Y-%m-%d} --out report.html\n"
        f"       tokentra summary --org acme --from {end - timedelta(days=7):%Y-%m-%d} --to {end:%Y-%m-%d} --by project\n"
        "       tokentra up        the Dagster UI: the asset graph, every run and check\n"
        "       psql \"$(tokentra db url)\" -c 'select * from daily_usage_rollup limit 5'\n"
        "Your own: tokentra org add, tokentra connection add, tokentra sync, tokentra build"
    )


@contextmanager
def _step(what: str) -> Iterator[None]:
    click.echo(f"{what} ... ", nl=False)
    started = time.monotonic()
    yield
    click.echo(f"{time.monotonic() - started:.1f} s")
