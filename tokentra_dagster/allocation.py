"""Whose usage it was where two sources saw it: the provider's totals under the names of a gateway (correction 11, decision 0020).

Reads only; imports neither Dagster nor Arrow.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from psycopg import sql

from tokentra_dagster.errors import UsageError
from tokentra_dagster.summary import must_be_built, must_be_whole_days
from tokentra_dagster.warehouse.directory import Connection

DIMENSIONS = {"team": "team", "project": "project", "costCenter": "cost_center", "feature": "feature", "environment": "environment", "user": "user"}  # fmt: skip
"""The command's words (those of the specification, section 3) and the view's."""
_NAMES = {"team": "teams", "project": "projects", "cost_center": "cost_centers"}
"""Whose values are ids of a directory's table."""


@dataclass(frozen=True, slots=True)
class AllocatedRow:
    """What one value of the dimension has of one provider, and how that is known: `direct`, `allocated` or `unattributed`."""

    provider: str
    value: str | None
    basis: str
    requests: int | None
    total_tokens: int
    estimated_cost: Decimal | None

    def as_json(self) -> dict[str, Any]:
        """Money as a string, so that no digit is lost."""
        return {
            "provider": self.provider,
            "value": self.value,
            "basis": self.basis,
            "totalRequests": self.requests,
            "totalTokens": self.total_tokens,
            "estimatedCost": None if self.estimated_cost is None else f"{self.estimated_cost:f}",
        }


def allocated(connection: Connection, org_id: UUID, start: datetime, end: datetime, by: str) -> list[AllocatedRow]:
    """The days of `[start, end)`, both midnight UTC, of which two sources speak, most tokens first.

    Raises `UsageError` for an unknown dimension or a period that is not whole UTC days, and `TokenTraError` before the first build.
    """
    if by not in DIMENSIONS:
        raise UsageError(f"dimension is {by!r}; it must be one of {', '.join(DIMENSIONS)}.")
    must_be_whole_days(start, end)
    must_be_built(connection, "marts.daily_usage_allocation")
    dimension = DIMENSIONS[by]
    value: sql.Composable = sql.SQL("a.value")
    if dimension in _NAMES:
        value = sql.SQL("(SELECT d.name FROM app.{} AS d WHERE d.id::text = a.value)").format(sql.Identifier(_NAMES[dimension]))
    rows = connection.execute(
        sql.SQL(
            "SELECT a.provider, {value} AS value, a.basis, sum(a.request_count)::bigint AS requests, "
            "sum(a.total_tokens)::bigint AS total_tokens, sum(a.estimated_cost) AS estimated_cost FROM marts.daily_usage_allocation AS a "
            "WHERE a.org_id = %s AND a.dimension = %s AND a.date >= %s AND a.date < %s GROUP BY 1, 2, 3 ORDER BY total_tokens DESC, 1, 2, 3"
        ).format(value=value),
        [org_id, dimension, start.date(), end.date()],
    ).fetchall()
    return [AllocatedRow(**row) for row in rows]
