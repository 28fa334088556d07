"""Whether a period's usage is final: synced to its end, no longer restated, and built (correction 40's exports that wait for it)."""

from __future__ import annotations

from uuid import UUID

from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.warehouse.directory import Connection

MODELS = (
    "hourly_usage_rollup", "daily_usage_rollup", "hourly_usage_by_user", "daily_usage_by_user",
    "hourly_usage_by_api_key", "daily_usage_by_api_key",
)  # fmt: skip
"""The incremental models that exports read; records at the edges of hours are the source itself."""
_UNBUILT = """
SELECT count(*) AS changes FROM raw.usage_changes
WHERE org_id = %(org)s AND window_start < %(end)s AND window_end > %(start)s AND change_number > (
  SELECT min(coalesce(progress.change_number, 0)) FROM unnest(%(models)s::text[]) AS wanted (model)
  LEFT JOIN raw.model_progress AS progress ON progress.model = wanted.model)
"""
_BEHIND = """
SELECT connection.name, max(history.covered_until) AS covered_until
FROM app.provider_connections AS connection
LEFT JOIN raw.sync_history AS history ON history.provider_connection_id = connection.id AND history.status = 'completed'
WHERE connection.org_id = %(org)s AND connection.is_active AND connection.integration IS NOT NULL
GROUP BY connection.id, connection.name
HAVING coalesce(max(history.covered_until) < %(end)s, true)
ORDER BY connection.name
"""
_DAYS = """
SELECT coverage.date, bool_or(coverage.is_provisional) AS is_provisional,
  bool_or(NOT coverage.is_complete AND connection.integration IS NOT NULL) AS is_incomplete
FROM marts.usage_coverage AS coverage
JOIN app.provider_connections AS connection ON connection.id = coverage.provider_connection_id
WHERE coverage.org_id = %(org)s AND coverage.is_authoritative AND connection.is_active
  AND coverage.date >= (%(start)s AT TIME ZONE 'UTC')::date AND coverage.date < (%(end)s AT TIME ZONE 'UTC' + interval '1 day' - interval '1 microsecond')::date
GROUP BY coverage.date ORDER BY coverage.date
"""


def not_final(db: Connection, org_id: UUID, period: Period) -> str | None:
    """Why the period may still change, in one sentence; None: it is final. A day is final as a whole UTC day."""
    values = {"org": org_id, "start": period.start, "end": period.end, "models": list(MODELS)}
    behind = db.execute(_BEHIND, values).fetchall()
    if behind:
        seen = behind[0]["covered_until"]
        until = f"only up to {seen:%Y-%m-%d %H:%M} UTC" if seen else "never yet"
        more = f" (and {len(behind) - 1} more)" if len(behind) > 1 else ""
        return f"Waits until {period.end:%Y-%m-%d %H:%M} UTC is synced: {behind[0]['name']} was synced {until}{more}."
    row = db.execute("SELECT to_regclass('marts.usage_coverage') IS NOT NULL AS is_built").fetchone()
    if row != {"is_built": True}:
        return "Waits for the first build: run `tokentra build`."
    row = db.execute(_UNBUILT, values).fetchone()
    if row and row["changes"]:
        return "Waits for the build of what was loaded last: `tokentra build` does it now."
    days = db.execute(_DAYS, values).fetchall()
    for which, why in (
        ("is_incomplete", "no sync has seen all of {}: run `tokentra sync` over it"),
        ("is_provisional", "a provider may still restate {}"),
    ):
        if found := [day["date"] for day in days if day[which]]:
            more = f" and {len(found) - 1} more days" if len(found) > 1 else ""
            return f"Waits for final usage: {why.format(f'{found[0]:%Y-%m-%d}{more}')}."
    return None
