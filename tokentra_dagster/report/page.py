"""The report as one HTML page that needs nothing else: charts are SVG in it, and its style follows dark, light, phone and print."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from tokentra_dagster.charts import short_number, svg
from tokentra_dagster.figures import figure_of, forecast_figure, trend_figure
from tokentra_dagster.report.collect import Report
from tokentra_dagster.tables import Table, figure_text, is_number, quota_table, savings_table, tables_of

CARDS = (
    ("Cost", "estimated_cost", None), ("Tokens", "total_tokens", None), ("Requests", "total_requests", None),
    ("Cache hit rate", "cache_hit_rate", False), ("Error rate", "error_rate", True), ("Average latency", "avg_latency_ms", True),
    ("Users", "unique_users", None), ("Unpriced tokens", "unpriced_tokens", True),
)  # fmt: skip
UNITS = {"cache_hit_rate": " %", "error_rate": " %", "avg_latency_ms": " ms"}
ANOMALIES, ADVICE = 12, 6


def render(report: Report, written_at: datetime | None = None) -> str:
    """The page. `written_at` is now if left out."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"figure": figure_text}
    environment.tests |= {"number_column": lambda number, table: is_number(table, number)}
    template = environment.from_string(files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        report=report, written_at=written_at or datetime.now(UTC), cards=_cards(report), sections=_sections(report), most=ADVICE,
    )  # fmt: skip


def _cards(report: Report) -> list[dict[str, Any]]:
    """Headline figures with how they changed since the period before."""
    from tokentra_dagster.analytics.results import change

    summary, compared = report.dashboard.summary, report.dashboard.summary.comparison
    cards = []
    for name, field, lower_is_better in CARDS:
        value = getattr(summary, field)
        moved = change(
            value, getattr(compared.previous_value, field) if compared else None, lower_is_better=bool(lower_is_better)
        )
        judged = "" if lower_is_better is None or moved.direction == "flat" else "better" if moved.is_improvement else "worse"
        cards.append({
            "name": name, "value": _headline(field, value, report.currency), "change": moved.percentage, "judged": judged,
            "exact": figure_text(value),
        })  # fmt: skip
    return cards


def _headline(field: str, value: Any, currency: str) -> str:
    if value is None:
        return "unknown"
    if field == "estimated_cost":
        return f"{currency} {value:,.2f}"
    return f"{figure_text(value) if abs(value) < 100_000 else short_number(float(value))}{UNITS.get(field, '')}"


def _sections(report: Report) -> list[dict[str, Any]]:
    """Each with its charts (SVG) and tables."""
    trends = report.trends.trends
    sections: list[dict[str, Any]] = [
        _section("Trends", [
            svg(trend_figure(trends["cost"], report.currency, report.anomalies), f"Cost by {report.trends.granularity}"),
            svg(trend_figure(trends["tokens"], "tokens", report.anomalies), f"Tokens by {report.trends.granularity}"),
            svg(trend_figure(trends["requests"], "requests", report.anomalies), f"Requests by {report.trends.granularity}"),
        ], tables_of(report.trends)),
        _section("Where the month will end", [svg(forecast_figure(report.forecast.cost, report.currency), "Forecast of cost")],
                 tables_of(report.forecast)),
        *(
            _section(f"By {found.dimension}", [svg(figure_of(found), f"Usage by {found.dimension}")], tables_of(found))
            for found in report.breakdowns
        ),
        _section("Patterns", [svg(figure_of(report.patterns), "Tokens by weekday and hour")], tables_of(report.patterns)[:2]),
        _section("Compared with the period before", [], tables_of(report.comparison)[:1]),
        _section("Anomalies", [], [_first(table, ANOMALIES) for table in tables_of(report.anomalies)],
                 "Nothing unusual was found." if not report.anomalies.anomalies else ""),
        _section("What could have been saved", [svg(figure_of(report.efficiency), "Potential savings")],
                 [savings_table(report.efficiency)], "; ".join(report.efficiency.savings.assumptions) + "."),
        _section("Attribution", [svg(figure_of(report.coverage), "Attribution coverage")], tables_of(report.coverage)),
    ]  # fmt: skip
    if report.dashboard.quota_statuses:
        sections.insert(1, _section("Quotas", [], [quota_table(report.dashboard)]))
    return sections


def _section(title: str, charts: list[str], tables: list[Table], text: str = "") -> dict[str, Any]:
    from markupsafe import Markup

    # Our own SVG, in which every name from outside is escaped by the library that draws it.
    return {"title": title, "charts": [Markup(chart) for chart in charts], "tables": tables, "text": text}


def _first(table: Table, most: int) -> Table:
    title = table.title if len(table.rows) <= most else f"{table.title}: {most} of {len(table.rows)}"
    return Table(title, table.headings, table.rows[:most])
