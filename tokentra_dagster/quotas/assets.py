"""Dagster's side of quotas: counters are made what usage says every five minutes, where they are not, and after every build.

Alerts about quotas are judged by usage and evaluate by themselves (`alerts/assets.py`).
"""

# No `from __future__ import annotations` here: Dagster reads the annotations of assets and schedules as they are.

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from tokentra_dagster.markdown import table
from tokentra_dagster.quotas.counters import APPLICATION, Evaluation, corrections, evaluate, news
from tokentra_dagster.resources import Warehouse

COUNTERS = dg.AssetKey(["app", "quota_counters"])
SHOWN = timedelta(hours=24)
MOST_ROWS = 50


def evidence(found: Evaluation, lately: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Metadata a person would look at: what usage corrected, now and lately (also after builds), and what had expired."""
    shown = ("quota", "measure", "counted_before", "counted", "difference", "in_usage")
    corrected = table(
        ["when (UTC)", "quota", "measure", "counted", "is", "difference", "in usage"],
        ([row["corrected_at"].astimezone(UTC), *(row[name] for name in shown)] for row in lately),
        empty="None in the last 24 hours.",
    )
    expired = table(["quota", "reservations"], found.expired, empty="No reservation had expired.")
    return {
        "corrections": dg.MetadataValue.md(corrected),
        "expired": dg.MetadataValue.md(expired),
        "counters": found.counters,
        "counters_corrected": len({one.quota_id for one in found.corrections}),
        "tokens_corrected": sum(one.difference for one in found.corrections if one.measure == "tokens"),
        "reservations_expired": sum(count for _, count in found.expired),
    }


@dg.asset(
    key=COUNTERS,
    deps=[dg.AssetKey(["marts", "quota_status"])],
    group_name="quotas",
    owners=["team:data-platform"],
    kinds={"python", "postgres"},
    description="What counts against each quota now: rebuilt from usage and what was settled; expired reservations give back their room.",
)
def quota_counters(warehouse: Warehouse) -> dg.MaterializeResult[None]:
    database = warehouse.database()
    found = evaluate(database)
    with database.connect(application=APPLICATION) as db:
        lately = corrections(db, since=datetime.now(UTC) - SHOWN, limit=MOST_ROWS)
    return dg.MaterializeResult(metadata=evidence(found, lately))


quotas_job = dg.define_asset_job(
    "quotas_job", selection=dg.AssetSelection.assets(COUNTERS), description="Make the counters of quotas what usage says."
)


@dg.schedule(
    job=quotas_job,
    name="quotas_every_5_minutes",
    cron_schedule="*/5 * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Compares every counter with usage; where all agree and nothing has expired, no run is started.",
)
def quotas_schedule(warehouse: Warehouse) -> dg.RunRequest | dg.SkipReason:
    with warehouse.database().connect(application=APPLICATION) as db:
        why = news(db)
    return dg.RunRequest(tags={"why": why}) if why else dg.SkipReason("Counters agree with usage.")
