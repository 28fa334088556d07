"""`tokentra analyze`: what usage says, as tables or as JSON under the specification's names. Reads only; imports no Dagster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tokentra_dagster.analytics.periods import COMPARISONS, GRANULARITIES
from tokentra_dagster.commands.common import Command, echo_json, echo_table, open_database, pairs, parse_moment

if TYPE_CHECKING:
    from tokentra_dagster.analyses import Analysis, Request

MOST_ROWS = 31
METRICS = ("tokens", "requests", "errors", "cost", "latency")


@click.group()
def analyze() -> None:
    """Summary, trends, breakdowns, efficiency, patterns, comparisons, anomalies, forecast of an organisation's usage."""


def analysis(command: Command) -> Command:
    """The options that every analysis has."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="One JSON document in the specification's names."),
        click.option("--to", "end", required=True, help="The moment after the last one, UTC."),
        click.option("--from", "start", required=True, help="First moment, UTC, e.g. 2026-06-01 or 2026-06-01T12:00."),
        click.option("--org", "org_name", required=True),
    ):
        command = option(command)
    return command


def narrowed(command: Command) -> Command:
    return click.option(
        "--where",
        "filters",
        multiple=True,
        metavar="DIMENSION=VALUE",
        help="Only usage with this value; more than once narrows further.",
    )(command)


@contextmanager
def reading(org_name: str, start: str, end: str) -> Iterator[Request]:
    """The organisation's usage of [start, end), and what is known of it so far."""
    from tokentra_dagster.analyses import Request
    from tokentra_dagster.analytics.periods import Period
    from tokentra_dagster.list_prices import ListPrices
    from tokentra_dagster.usage_source import WarehouseUsage
    from tokentra_dagster.warehouse.directory import organization_id

    period = Period(parse_moment(start, "--from"), parse_moment(end, "--to"))
    with open_database().connect() as db:
        usage = WarehouseUsage(db, organization_id(db, org_name))
        yield Request(usage, period, usage.known_until(period), ListPrices())


def echo(org_name: str, result: Any, as_json: bool, sentences: Sequence[tuple[str, str, str]] = ()) -> None:
    """A result for a program, or for a person: its tables, then what follows from it (level, title, description)."""
    from tokentra_dagster.analytics.results import as_json as to_json

    if as_json:
        echo_json(to_json(result))
        return
    from tokentra_dagster.tables import figure_text, is_number, tables_of

    for table in tables_of(result):
        shown = table.rows[:MOST_ROWS]
        more = f" ({len(shown)} of {len(table.rows)}; --json has all)" if len(table.rows) > len(shown) else ""
        columns = [(heading, is_number(table, number)) for number, heading in enumerate(table.headings)]
        echo_table(f"{org_name}: {table.title}{more}", columns, ([figure_text(value) for value in row] for row in shown))
    for level, title, description in sentences:
        click.echo(f"{level}: {title}. {description}")


def _run(name: str, org_name: str, start: str, end: str, as_json: bool) -> None:
    from tokentra_dagster.analyses import ANALYSES

    analysis = ANALYSES[name]
    with reading(org_name, start, end) as request:
        result = analysis.compute(request)
    echo(org_name, result, as_json, _sentences(analysis, result))


def _sentences(analysis: Analysis, result: Any) -> list[tuple[str, str, str]]:
    insights = [(row.severity, row.title, row.description) for row in analysis.insight_rows(result)]
    advice = [
        (f"recommended ({row.priority})", row.title, f"{row.description} {row.action}")
        for row in analysis.recommendation_rows(result)
    ]
    return insights + advice


@analyze.command()
@analysis
@narrowed
@click.option(
    "--compare",
    "comparison",
    type=click.Choice(COMPARISONS),
    help="Changes since the period before, or a month, quarter or year earlier.",
)
def summary(org_name: str, start: str, end: str, as_json: bool, filters: tuple[str, ...], comparison: Any) -> None:
    """Totals, rates, latency, distinct counts; with --compare how they changed."""
    from tokentra_dagster.analytics.summary import usage_summary

    with reading(org_name, start, end) as request:
        result = usage_summary(request.usage, request.period, pairs(filters, "--where"), comparison)
    echo(org_name, result, as_json)


@analyze.command()
@analysis
@narrowed
@click.option(
    "--granularity", type=click.Choice(GRANULARITIES), help="Width of a bucket; by the length of the period if left out."
)
@click.option("--metric", type=click.Choice(METRICS), default="tokens", show_default=True)
def trend(org_name: str, start: str, end: str, as_json: bool, filters: tuple[str, ...], granularity: Any, metric: Any) -> None:
    """A metric over time, with its direction, peak and trough."""
    from tokentra_dagster.analytics.trends import usage_trend

    with reading(org_name, start, end) as request:
        result = usage_trend(request.usage, request.period, granularity, metric, pairs(filters, "--where"))
    echo(org_name, result, as_json)


@analyze.command()
@analysis
@narrowed
@click.option(
    "--by", "dimension", required=True, metavar="DIMENSION", help="provider, model, team, project, feature, user, apiKey, ..."
)
@click.option("--limit", type=int, default=10, show_default=True)
def breakdown(org_name: str, start: str, end: str, as_json: bool, filters: tuple[str, ...], dimension: str, limit: int) -> None:
    """The values of a dimension with most tokens, and all others as one."""
    from tokentra_dagster.analytics.breakdowns import usage_breakdown

    with reading(org_name, start, end) as request:
        result = usage_breakdown(request.usage, request.period, dimension, limit, pairs(filters, "--where"), trend=True)
    echo(org_name, result, as_json)


@analyze.command()
@analysis
@click.option(
    "--path", "steps", multiple=True, required=True, metavar="DIMENSION=VALUE", help="Where to look; more than once goes deeper."
)
@click.option("--by", "dimension", required=True, metavar="DIMENSION")
@click.option("--limit", type=int, help="Values to show; all if left out.")
def drilldown(
    org_name: str, start: str, end: str, as_json: bool, steps: tuple[str, ...], dimension: str, limit: int | None
) -> None:
    """A dimension inside a value of another, to any depth."""
    from tokentra_dagster.analytics.breakdowns import drilldown as drill

    with reading(org_name, start, end) as request:
        result = drill(request.usage, request.period, pairs(steps, "--path"), dimension, limit)
    echo(org_name, result, as_json)


@analyze.command()
@analysis
def efficiency(org_name: str, start: str, end: str, as_json: bool) -> None:
    """Ratios by model and feature, recommendations, and what could have been saved."""
    _run("efficiency", org_name, start, end, as_json)


@analyze.command()
@analysis
@click.option("--time-zone", default="UTC", show_default=True, help="IANA name, e.g. Europe/Berlin.")
def patterns(org_name: str, start: str, end: str, as_json: bool, time_zone: str) -> None:
    """Hours of the day, days of the week, peak and growth."""
    from tokentra_dagster.analytics.patterns import analyze_usage_patterns

    with reading(org_name, start, end) as request:
        result = analyze_usage_patterns(request.usage, request.period, time_zone)
    echo(org_name, result, as_json)


@analyze.command()
@analysis
def seasonality(org_name: str, start: str, end: str, as_json: bool) -> None:
    """Hours, days and weeks against the average; busy and quiet times."""
    _run("seasonality", org_name, start, end, as_json)


@analyze.command()
@analysis
def models(org_name: str, start: str, end: str, as_json: bool) -> None:
    """Each model's usage, share and trend."""
    _run("models", org_name, start, end, as_json)


@analyze.command()
@analysis
@narrowed
@click.option("--previous-from", help="First moment of the period to compare with; the one just before if left out.")
@click.option("--previous-to", help="The moment after its last one.")
@click.option("--by", "dimensions", multiple=True, metavar="DIMENSION", help="Compare the values of a dimension too.")
def compare(
    org_name: str, start: str, end: str, as_json: bool, filters: tuple[str, ...], previous_from: str | None, previous_to: str | None,
    dimensions: tuple[str, ...],
) -> None:  # fmt: skip
    """Fourteen metrics against another period: significance, insights, recommendations, health."""
    from tokentra_dagster.analyses import ANALYSES, COMPARED, with_previous
    from tokentra_dagster.analytics.comparison import compare_usage
    from tokentra_dagster.analytics.comparison_periods import ComparisonPeriods, DateRange

    if (previous_from is None) != (previous_to is None):
        raise click.UsageError("Give both --previous-from and --previous-to, or neither.")
    with reading(org_name, start, end) as request:
        periods = with_previous(request.period)
        if previous_from and previous_to:
            earlier = DateRange(parse_moment(previous_from, "--previous-from"), parse_moment(previous_to, "--previous-to"))
            periods = ComparisonPeriods(periods.current, earlier)
        result = compare_usage(request.usage, periods, dimensions or COMPARED, pairs(filters, "--where"))
    echo(org_name, result, as_json, _sentences(ANALYSES["comparison"], result))


@analyze.command()
@analysis
def anomalies(org_name: str, start: str, end: str, as_json: bool) -> None:
    """Hours and days unlike others of their kind, and what moved most in them."""
    _run("anomalies", org_name, start, end, as_json)


@analyze.command()
@analysis
def forecast(org_name: str, start: str, end: str, as_json: bool) -> None:
    """Where the calendar month that holds --to's last moment will end, with intervals."""
    _run("forecast", org_name, start, end, as_json)


@analyze.command()
@analysis
def coverage(org_name: str, start: str, end: str, as_json: bool) -> None:
    """How much of the usage has a team, project, feature, user, ..."""
    _run("coverage", org_name, start, end, as_json)


@analyze.command()
@analysis
@click.option("--order-by", type=click.Choice(("tokens", "requests", "cost")), default="tokens", show_default=True)
@click.option("--limit", type=int, help="Users to show; all if left out.")
def users(org_name: str, start: str, end: str, as_json: bool, order_by: str, limit: int | None) -> None:
    """What each user did; totals are over everyone."""
    from tokentra_dagster.analytics.user_report import analyze_user_activity

    with reading(org_name, start, end) as request:
        result = analyze_user_activity(request.usage, request.period, order_by, limit)
    echo(org_name, result, as_json)


@analyze.command()
@analysis
def dashboard(org_name: str, start: str, end: str, as_json: bool) -> None:
    """Summary, trends, breakdowns, top users, quotas and recent activity in one."""
    _run("dashboard", org_name, start, end, as_json)


@click.command()
@click.option("--org", "org_name", required=True)
@click.option("--from", "start", required=True, help="First moment, UTC, e.g. 2026-06-01.")
@click.option("--to", "end", required=True, help="The moment after the last one, UTC.")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The HTML file to write.")
@click.option("--time-zone", default="UTC", show_default=True, help="IANA name, for hours of the day and days of the week.")
def report(org_name: str, start: str, end: str, out: Path, time_zone: str) -> None:
    """One HTML page with everything: summary, trends, breakdowns, patterns, quotas, anomalies, forecast, advice."""
    from tokentra_dagster.report.collect import collect
    from tokentra_dagster.report.page import render

    if not out.parent.is_dir():
        raise click.BadParameter(f"the folder {out.parent} does not exist; create it first", param_hint="--out")
    with reading(org_name, start, end) as request:
        page = render(collect(replace(request, time_zone=time_zone), org_name))
    out.write_text(page, encoding="utf-8")
    click.echo(f"Wrote {out} ({len(page.encode()) // 1024:,} kB).")
