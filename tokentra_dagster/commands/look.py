"""Looking: the summary, and the doctor who says what is wrong."""

from __future__ import annotations

import click

from tokentra_dagster.commands.common import Command, echo_json, echo_table, open_database, parse_moment, settings


def of_days(command: Command) -> Command:
    """The options of what is about some days of one organisation."""
    for option in (
        click.option("--to", "end", required=True, help="The day after the last one."),
        click.option("--from", "start", required=True, help="First UTC day, e.g. 2026-06-01."),
        click.option("--org", "org_name", required=True),
    ):
        command = option(command)
    return command


@click.command()
@of_days
@click.option(
    "--by",
    metavar="DIMENSION",
    help="provider, model, modelFamily, team, project, costCenter, feature, environment, requestType, serviceType or day.",
)
@click.option("--json", "as_json", is_flag=True)
def summary(org_name: str, start: str, end: str, by: str | None, as_json: bool) -> None:
    """Tokens, requests and cost of an organisation in [--from, --to)."""
    from tokentra_dagster.summary import summarize
    from tokentra_dagster.warehouse.directory import organization_id

    first, last = parse_moment(start, "--from"), parse_moment(end, "--to")
    with open_database().connect() as db:
        rows = summarize(db, organization_id(db, org_name), first, last, by)
    if as_json:
        echo_json(
            {
                "organization": org_name,
                "startDate": start,
                "endDate": end,
                "dimension": by,
                "items": [row.as_json() for row in rows],
            }
        )
        return
    echo_summary(f"{org_name}, {first:%Y-%m-%d} to {last:%Y-%m-%d} (UTC, end excluded)", by, rows)


def echo_summary(title: str, by: str | None, rows) -> None:  # type: ignore[no-untyped-def]
    """The rows as a table; unknown figures are a dash, never 0."""
    columns = [
        (by or "", False),
        ("requests", True),
        ("input tokens", True),
        ("of it cached", True),
        ("output tokens", True),
        ("cost USD", True),
        ("unpriced tokens", True),
    ]
    nobody = "(unattributed)" if by else "everything"
    echo_table(
        title, columns,
        ([row.value or nobody, _count(row.requests), _count(row.input_tokens), _count(row.cached_tokens), _count(row.output_tokens),
          "-" if row.estimated_cost is None else f"{row.estimated_cost:,.2f}", _count(row.unpriced_tokens)] for row in rows),
    )  # fmt: skip


@click.command()
@of_days
@click.option(
    "--by",
    metavar="DIMENSION",
    default="team",
    show_default=True,
    help="team, project, costCenter, feature, environment or user.",
)
@click.option("--json", "as_json", is_flag=True)
def allocation(org_name: str, start: str, end: str, by: str, as_json: bool) -> None:
    """Whose usage it was where a gateway and its provider both saw it: the provider's totals under the gateway's names."""
    from tokentra_dagster.allocation import allocated
    from tokentra_dagster.warehouse.directory import organization_id

    first, last = parse_moment(start, "--from"), parse_moment(end, "--to")
    with open_database().connect() as db:
        rows = allocated(db, organization_id(db, org_name), first, last, by)
    if as_json:
        items = [row.as_json() for row in rows]
        echo_json({"organization": org_name, "startDate": start, "endDate": end, "dimension": by, "items": items})
    elif rows:
        echo_allocation(
            f"{org_name}, {first:%Y-%m-%d} to {last:%Y-%m-%d} (UTC, end excluded), where two sources saw it", by, rows
        )
    else:
        click.echo("No day of this period has two sources of one provider's usage; `tokentra summary` shows what was used.")


def echo_allocation(title: str, by: str, rows) -> None:  # type: ignore[no-untyped-def]
    """The rows as a table; unknown figures are a dash, never 0."""
    columns = [("provider", False), (by, False), ("basis", False), ("requests", True), ("tokens", True), ("cost USD", True)]
    echo_table(
        title, columns,
        ([row.provider, row.value or "(unattributed)", row.basis, _count(row.requests), _count(row.total_tokens),
          "-" if row.estimated_cost is None else f"{row.estimated_cost:,.2f}"] for row in rows),
    )  # fmt: skip


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


@click.command()
@click.option("--json", "as_json", is_flag=True)
def doctor(as_json: bool) -> None:
    """Check the installation: database, migrations, connections and their keys, last syncs, rollups. Exit status 1 when something is wrong."""
    from tokentra_dagster.health import examine

    findings = examine(settings())
    if as_json:
        echo_json([{"check": f.check, "ok": f.ok, "says": f.says} for f in findings])
    else:
        for finding in findings:
            click.echo(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.check}: {finding.says}")
    raise SystemExit(0 if all(finding.ok for finding in findings) else 1)
