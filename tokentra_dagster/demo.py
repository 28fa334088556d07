"""`tokentra demo`: the whole platform once, on two simulated organisations, over HTTP through the real connectors."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from tokentra_dagster.allocation import allocated
from tokentra_dagster.commands.look import echo_allocation, echo_summary
from tokentra_dagster.commands.work import run_sync
from tokentra_dagster.errors import TokenTraError
from tokentra_dagster.ingest.assets import partition_range_tags
from tokentra_dagster.ingest.windows import DAY
from tokentra_dagster.providers import integration_of
from tokentra_dagster.records import floor
from tokentra_dagster.runs import must_succeed, run_job
from tokentra_dagster.runtime import prepare
from tokentra_dagster.settings import Settings
from tokentra_dagster.summary import summarize
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import add_connection, add_organization, add_rule, disable_connection, organization_id

ORGANIZATIONS = ("acme", "globex")


@dataclass(frozen=True, slots=True)
class Demonstrated:
    """One connection of every organisation: `address` names the simulator's (`RunningSimulator`). Texts have places for the organisation.

    `package` is what an extra installs; without it the connection is left out, and the demo says so.
    """

    name: str
    provider: str
    integration: str
    address: str
    secret: str
    options: Mapping[str, str] = field(default_factory=dict)
    package: str | None = None

    @property
    def is_installed(self) -> bool:
        try:
            return self.package is None or find_spec(self.package) is not None
        except ModuleNotFoundError:  # the package that it would be in is missing, too
            return False


CONNECTIONS = (
    Demonstrated("openai", "openai", "openai", "openai_url", "sk-admin-{org}"),
    Demonstrated("anthropic", "anthropic", "anthropic", "anthropic_url", "sk-ant-admin01-{org}"),
    Demonstrated(
        "aws", "aws", "aws", "aws_url", "AKIASIM{org}:simulated",
        {"regions": "us-east-1,eu-central-1", "cost_export": "s3://{org}-bedrock/export/bedrock"},
    ),
    Demonstrated(
        "azure", "azure", "azure", "azure_url", "azure-token-{org}", 
        {"subscriptions": "{subscription}", "cost_export": "{azure_costs}"}, "azure.monitor.querymetrics",
    ),
    Demonstrated(
        "google", "google", "google", "google_url", "google-token-{org}",
        {
            "projects": "{projects}", "bigquery_endpoint": "{bigquery}", "billing_table": "{billing_table}",
            # Google itself keeps six weeks.
            "retention_days": "400",
        },
        "google.cloud.monitoring_v3",
    ),
    Demonstrated("gateway", "openai", "langfuse", "langfuse_url", "pk-lf-{org}:sk-lf-{org}", {"models": "gpt-*,orion-*"}),
)  # fmt: skip


def run_demo(settings: Settings, days: int) -> None:
    """Set up, sync, build, check, summarise. Raises `TokenTraError` when any part fails; run again, it changes no total."""
    from tokentra_dagster.simulator.gateway_files import write_azure_costs
    from tokentra_dagster.simulator.server import RunningSimulator

    with _step("Database"):
        database = prepare(settings)
    shown = [one for one in CONNECTIONS if one.is_installed]
    for one in CONNECTIONS:
        if one not in shown:
            click.echo(f"Without {one.name}: its packages are not installed; pip install 'tokentra-usage[{one.name}]' adds them.")
    today = floor(datetime.now(UTC), "1d")
    start, end = today - days * DAY, today
    # The simulator's clock stands still at the start of today, so that a second demo on the same day sees the same answers.
    with RunningSimulator(now=end) as simulator, TemporaryDirectory(prefix="tokentra-demo-") as folder:
        with _step("Organisations, connections and attribution rules"):
            for name in ORGANIZATIONS:
                org = simulator.simulation.organisation(name)
                write_azure_costs(simulator.simulation, org, Path(folder, name), start, end)
            _set_up(database, simulator, shown, Path(folder))
        for one in shown:
            labels = [f"{org}/{one.name}" for org in ORGANIZATIONS]
            said = " and ".join(labels)
            with _step(f"Syncing {said}, {days} days"):
                outcome = must_succeed(run_sync(one.integration, labels, start, end), f"The sync of {said}")
                if outcome.failed_checks:
                    raise TokenTraError(f"Not everything was synced: {_failures(database, outcome.run_id)}")
        with _step("dbt build and checks"):
            outcome = must_succeed(run_job("build_job"), "The build")
    _rest(database, shown)
    if outcome.failed_checks:
        raise TokenTraError(f"Checks failed: {'; '.join(outcome.failed_checks)}")
    with _step("Analytics of the windows that end today"):
        must_succeed(run_job("analytics_job", tags=partition_range_tags(end - DAY, end)), "The analysis")
    _show(database, start, end)


def _set_up(database: Database, simulator, shown: list[Demonstrated], folder: Path) -> None:  # type: ignore[no-untyped-def]
    from tokentra_dagster.simulator.azure_streams import SUBSCRIPTIONS
    from tokentra_dagster.simulator.google_billing import table_of
    from tokentra_dagster.simulator.google_streams import google_projects

    with database.connect() as db:
        for name in ORGANIZATIONS:
            add_organization(db, name)
            places = {
                "org": name, "bigquery": simulator.bigquery_url, "subscription": SUBSCRIPTIONS[name],
                "projects": ",".join(google_projects(simulator.simulation.organisation(name))), "billing_table": table_of(name),
                "azure_costs": str(folder / name),
            }  # fmt: skip
            for one in shown:
                variable = f"TOKENTRA_SECRET_DEMO_{name}_{one.name}".upper()
                os.environ[variable] = one.secret.format(**places)
                options = {key: value.format(**places) for key, value in one.options.items()}
                add_connection(
                    db, org=name, name=one.name, provider=one.provider, secret_ref=f"env:{variable}", base_url=getattr(simulator, one.address),
                    options=options, integration=one.integration, source=integration_of(one.integration).source_of(options),
                )  # fmt: skip
            for fill in simulator.simulation.attribution(name):
                add_rule(db, org=name, **fill)


def _rest(database: Database, shown: list[Demonstrated]) -> None:
    """The simulator is gone, so the hourly syncs of `tokentra up` must not ask it. What was synced stays; a second demo wakes them."""
    with database.connect() as db:
        for name in ORGANIZATIONS:
            for one in shown:
                disable_connection(db, f"{name}/{one.name}")


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
            echo_allocation(
                f"{name}, what OpenAI counts by the gateway's teams", "team", allocated(db, org_id, start, end, "team")
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
