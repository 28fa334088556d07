"""What an organisation used in a period, from the daily and hourly rollups. Reads only; imports neither Dagster nor Arrow."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from psycopg import sql

from tokentra_dagster.errors import TokenTraError, UsageError
from tokentra_dagster.warehouse.directory import Connection

DIMENSIONS = {
    "provider": sql.SQL("r.provider"),
    "model": sql.SQL("r.model"),
    "modelFamily": sql.SQL("r.model_family"),
    "team": sql.SQL("(SELECT t.name FROM app.teams AS t WHERE t.id = r.team_id)"),
    "project": sql.SQL("(SELECT p.name FROM app.projects AS p WHERE p.id = r.project_id)"),
    "costCenter": sql.SQL("(SELECT c.name FROM app.cost_centers AS c WHERE c.id = r.cost_center_id)"),
    "feature": sql.SQL("r.feature"),
    "environment": sql.SQL("r.environment"),
    "requestType": sql.SQL("r.request_type"),
    "serviceType": sql.SQL("r.service_type"),
    "day": sql.SQL("r.date::text"),
}


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """Usage of one value of the dimension, or of everything. `requests` and `cost` None: unknown; `unpriced_tokens` have no price."""

    value: str | None
    requests: int | None
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    total_tokens: int
    estimated_cost: Decimal | None
    unpriced_tokens: int

    def as_json(self) -> dict[str, Any]:
        """The specification's names (section 3); money as a string, so that no digit is lost."""
        return {
            "value": self.value,
            "totalRequests": self.requests,
            "inputTokens": self.input_tokens,
            "outputTokens": self.output_tokens,
            "cachedTokens": self.cached_tokens,
            "totalTokens": self.total_tokens,
            "estimatedCost": None if self.estimated_cost is None else f"{self.estimated_cost:f}",
            "unpricedTokens": self.unpriced_tokens,
        }


_MEASURES = sql.SQL(
    "sum(r.request_count)::bigint AS requests, coalesce(sum(r.input_tokens), 0)::bigint AS input_tokens, "
    "coalesce(sum(r.output_tokens), 0)::bigint AS output_tokens, coalesce(sum(r.cached_input_tokens), 0)::bigint AS cached_tokens, "
    "coalesce(sum(r.total_tokens), 0)::bigint AS total_tokens, sum(r.estimated_cost) AS estimated_cost, "
    "coalesce(sum(r.unpriced_tokens), 0)::bigint AS unpriced_tokens"
)


def summarize(connection: Connection, org_id: UUID, start: datetime, end: datetime, by: str | None = None) -> list[SummaryRow]:
    """Totals of `[start, end)`, both midnight UTC, by a dimension (most tokens first) or as one row without.

    Raises `UsageError` for an unknown dimension or a period that is not whole UTC days.
    """
    if by is not None and by not in DIMENSIONS:
        raise UsageError(f"dimension is {by!r}; it must be one of {', '.join(DIMENSIONS)}.")
    must_be_whole_days(start, end)
    must_be_built(connection, "marts.daily_usage_rollup")
    value = DIMENSIONS[by] if by else sql.SQL("NULL::text")
    rows = connection.execute(
        sql.SQL(
            "SELECT {value} AS value, {measures} FROM marts.daily_usage_rollup AS r "
            "WHERE r.org_id = %s AND r.date >= %s AND r.date < %s GROUP BY 1 ORDER BY {order}"
        ).format(value=value, measures=_MEASURES, order=sql.SQL("1") if by == "day" else sql.SQL("total_tokens DESC, 1")),
        [org_id, start.date(), end.date()],
    ).fetchall()
    found = [SummaryRow(**row) for row in rows]
    return found if by or found else [SummaryRow(None, None, 0, 0, 0, 0, None, 0)]


def must_be_whole_days(start: datetime, end: datetime) -> None:
    """Raises `UsageError` unless `[start, end)` is one UTC day or more, and whole ones."""
    for name, moment in (("--from", start), ("--to", end)):
        if (moment.hour, moment.minute, moment.second, moment.microsecond) != (0, 0, 0, 0):
            raise UsageError(f"{name} is {moment:%Y-%m-%dT%H:%M}; a summary covers whole UTC days, so give a date.")
    if end <= start:
        raise UsageError(
            f"The period is empty: --to ({end:%Y-%m-%d}) is the day after the last one and must be later than --from ({start:%Y-%m-%d})."
        )


def must_be_built(connection: Connection, mart: str) -> None:
    """Raises `TokenTraError` before the first build."""
    if connection.execute("SELECT to_regclass(%s) IS NULL AS missing", [mart]).fetchone() == {"missing": True}:
        raise TokenTraError("Nothing has been built yet; run `tokentra sync` or `tokentra import`, then `tokentra build`.")
