"""The analyses as Dagster assets: a daily partition holds what they say of the windows that end with that UTC day.

One step computes all that are asked, organisation by organisation; each result replaces what stood in schema `analytics`.
"""

# No `from __future__ import annotations` here: Dagster reads the annotations of assets as they are.

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any
from uuid import UUID

import dagster as dg

from tokentra_dagster.analyses import ANALYSES, Analysis, Request, windows_of
from tokentra_dagster.analytics_store import Findings, store
from tokentra_dagster.charts import png_markdown
from tokentra_dagster.figures import figure_of
from tokentra_dagster.list_prices import ListPrices
from tokentra_dagster.resources import Warehouse
from tokentra_dagster.tables import markdown, tables_of
from tokentra_dagster.usage_source import WarehouseUsage
from tokentra_dagster.warehouse.directory import Connection

DAILY = dg.DailyPartitionsDefinition(start_date="2023-01-01", timezone="UTC")
MARTS = (
    "hourly_usage_rollup", "daily_usage_rollup", "hourly_usage_totals", "daily_usage_by_user", "daily_usage_by_api_key",
    "daily_active_entities", "user_activity", "quota_status", "dim_teams", "dim_projects", "dim_cost_centers", "dim_users",
    "dim_api_keys",
)  # fmt: skip
SHOWN = ("30d", "month", "90d", "7d")
"""Which window the UI shows: the first of these that an analysis has."""
SHOWN_TABLES = 3
SHOWN_ORGANIZATIONS = 3
# The newest whole day is analysed anew whenever a build has changed the marts; older days when a person asks (docs/analytics.md).
FOLLOW_MARTS = (
    dg.AutomationCondition.in_latest_time_window()
    & dg.AutomationCondition.any_deps_updated().since(dg.AutomationCondition.newly_requested()).with_label("marts were built")
    & ~dg.AutomationCondition.in_progress()
    & ~dg.AutomationCondition.any_deps_in_progress()
    & ~dg.AutomationCondition.any_deps_missing()
)


@dataclass(frozen=True, slots=True)
class Stored:
    """What was written for one organisation and window."""

    organization: str
    window: str
    result: Any
    metrics: int
    insights: int
    recommendations: int


def _spec(analysis: Analysis) -> dg.AssetSpec:
    return dg.AssetSpec(
        key=["analytics", analysis.name],
        deps=[dg.AssetKey(["marts", mart]) for mart in MARTS],
        description=f"{analysis.title}, for the windows {', '.join(analysis.windows)} that end with the partition's day.",
        group_name="analytics",
        kinds={"python", "postgres"},
        owners=["team:data-platform"],
        partitions_def=DAILY,
        automation_condition=FOLLOW_MARTS,
        skippable=False,
    )


@dg.multi_asset(
    specs=[_spec(analysis) for analysis in ANALYSES.values()],
    can_subset=True,
    pool="analytics",
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def analytics(context: dg.AssetExecutionContext, warehouse: Warehouse) -> Iterator[dg.MaterializeResult[None]]:
    """Every selected analysis over every organisation that has usage."""
    selected = {key.path[-1] for key in context.selected_asset_keys}
    days = [date.fromisoformat(key) for key in context.partition_keys]
    with warehouse.database().connect() as db:
        organizations = _organizations(db)
        for name, analysis in ANALYSES.items():
            if name in selected:
                written = [
                    stored
                    for day in days
                    for org_id, organization in organizations.items()
                    for stored in analyse(db, org_id, organization, analysis, day)
                ]
                context.log.info(f"{name}: {len(written)} windows of {len(organizations)} organisations")
                yield dg.MaterializeResult(asset_key=["analytics", name], metadata=evidence(name, written))


def analyse(db: Connection, org_id: UUID, organization: str, analysis: Analysis, day: date) -> Iterator[Stored]:
    """Compute and store an analysis for each of its windows that end with the day. Commits each window by itself."""
    usage = WarehouseUsage(db, org_id)
    for window, period in windows_of(day).items():
        if window not in analysis.windows:
            continue
        result = analysis.compute(Request(usage, period, usage.known_until(period), ListPrices()))
        found = Findings(
            analysis.name, window, period, usage.currency, result,
            analysis.metric_rows(result), analysis.insight_rows(result), analysis.recommendation_rows(result),
        )  # fmt: skip
        store(db, org_id, found)
        db.commit()
        yield Stored(organization, window, result, len(found.metrics), len(found.insights), len(found.recommendations))


def evidence(name: str, written: list[Stored]) -> Mapping[str, Any]:
    """How many rows, and a table and a plot of one window of each of the first few organisations."""
    shown = {stored.organization: stored for stored in sorted(written, key=lambda one: SHOWN.index(one.window), reverse=True)}
    metadata: dict[str, Any] = {
        "dagster/row_count": sum(stored.metrics for stored in written),
        "insights": sum(stored.insights for stored in written),
        "recommendations": sum(stored.recommendations for stored in written),
    }
    for organization, stored in list(shown.items())[:SHOWN_ORGANIZATIONS]:
        title = f"{organization}, {stored.window}"
        metadata[f"{title}: tables"] = dg.MetadataValue.md("\n\n".join(map(markdown, tables_of(stored.result)[:SHOWN_TABLES])))
        metadata[f"{title}: plot"] = dg.MetadataValue.md(png_markdown(figure_of(stored.result), f"{name} of {title}"))
    return metadata


def _organizations(db: Connection) -> dict[UUID, str]:
    """Those with usage, in order of their names."""
    rows = db.execute(
        "SELECT id, name FROM app.organizations AS o "
        "WHERE EXISTS (SELECT FROM marts.daily_usage_rollup AS r WHERE r.org_id = o.id) ORDER BY name"
    )
    return {row["id"]: row["name"] for row in rows}
