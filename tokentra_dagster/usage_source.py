"""One organisation's usage as the analytics read it (`analytics.sources.UsageSource`), from the stored functions (docs/functions.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any
from uuid import UUID

import pandas as pd
import psycopg
from psycopg import Cursor
from psycopg.rows import tuple_row
from psycopg.types.json import Jsonb

from tokentra_dagster.analytics.periods import Granularity, Period
from tokentra_dagster.analytics.sources import COST, COUNTS
from tokentra_dagster.errors import TokenTraError, UsageError
from tokentra_dagster.warehouse.directory import Connection

NAMES = {
    "team": "SELECT team_id::TEXT, team_name FROM marts.dim_teams WHERE org_id = %s",
    "project": "SELECT project_id::TEXT, project_name FROM marts.dim_projects WHERE org_id = %s",
    "cost_center": "SELECT cost_center_id::TEXT, cost_center_name FROM marts.dim_cost_centers WHERE org_id = %s",
    "user": "SELECT user_id, display_name FROM marts.dim_users WHERE org_id = %s",
    "api_key": "SELECT api_key_id, api_key_name FROM marts.dim_api_keys WHERE org_id = %s",
}
SUMMARY_FILTERS = ("provider", "model", "team", "project", "feature", "environment")


@dataclass(frozen=True)
class WarehouseUsage:
    """Reads with one connection; raises `TokenTraError` where nothing has been built yet."""

    connection: Connection
    org_id: UUID

    @cached_property
    def currency(self) -> str:
        row = self._one("SELECT currency FROM app.organizations WHERE id = %s", self.org_id)
        return str(row["currency"])

    def frame(
        self,
        period: Period,
        by: Sequence[str] = (),
        granularity: Granularity | None = None,
        where: Mapping[str, str | None] | None = None,
    ) -> pd.DataFrame:
        columns = ", ".join((*COUNTS, COST))
        with self._cursor() as cursor, _clear_about(where):
            cursor.execute(
                f"SELECT time_bucket, dimension_values, {columns} FROM marts.get_usage_frame(%s, %s, %s, %s, %s, %s)",
                [self.org_id, period.start, period.end, list(by), granularity, Jsonb(dict(where or {}))],
            )
            rows = cursor.fetchall()
        moments, values, *measures = zip(*rows, strict=True) if rows else ((),) * (2 + len(COUNTS) + 1)
        found: dict[str, Any] = {}
        if granularity is not None:
            found["moment"] = pd.array(moments, dtype="datetime64[us, UTC]")
        for place, name in enumerate(by):
            found[name] = pd.Series([value[place] for value in values], dtype=object)
        found |= {name: pd.array(column, dtype="Int64") for name, column in zip(COUNTS, measures, strict=False)}
        found[COST] = pd.Series(measures[-1], dtype=object)
        return pd.DataFrame(found)

    def first_usage(self) -> datetime | None:
        row = self._one(
            "SELECT least((SELECT min(hour) FROM marts.hourly_usage_rollup WHERE org_id = %s), "
            "(SELECT min(date)::TIMESTAMP AT TIME ZONE 'UTC' FROM marts.daily_usage_rollup WHERE org_id = %s "
            "AND active_hours IS NULL)) AS first",
            self.org_id, self.org_id,
        )  # fmt: skip
        first: datetime | None = row["first"]
        return first and first.astimezone(UTC)

    def summary(self, period: Period, where: Mapping[str, str | None] | None = None) -> Mapping[str, Any]:
        named = dict(where or {})
        filters = [named.pop(name, None) for name in SUMMARY_FILTERS]
        if named or None in (where or {}).values():
            raise UsageError(
                f"A summary is narrowed by a value of {', '.join(SUMMARY_FILTERS)}, not by {dict(where or {})}; use a drilldown."
            )
        return self._one(
            "SELECT * FROM marts.get_usage_summary(%s, %s, %s, %s, %s, %s, %s, %s, %s)",
            self.org_id,
            period.start,
            period.end,
            *filters,
        )

    def known_until(self, period: Period) -> datetime:
        """Up to when a period's usage is known: the end of the newest hour that holds usage (of the newest day where usage is known by
        day only), never later than now, and inside the period."""
        row = self._one(
            "SELECT greatest((SELECT max(hour) + interval '1 hour' FROM marts.hourly_usage_totals WHERE org_id = %s), "
            "(SELECT (max(date) + 1)::TIMESTAMP AT TIME ZONE 'UTC' FROM marts.daily_usage_rollup WHERE org_id = %s "
            "AND active_hours IS NULL)) AS until",
            self.org_id, self.org_id,
        )  # fmt: skip
        newest: datetime = row["until"] or period.end
        return max(min(period.end, newest.astimezone(UTC), datetime.now(UTC)), period.start)

    def labels(self, dimension: str) -> Mapping[str, str]:
        if dimension not in NAMES:
            return {}
        with self._cursor() as cursor:
            rows = cursor.execute(NAMES[dimension], [self.org_id]).fetchall()
        return {value: name for value, name in rows if name is not None}

    def users(self, period: Period, order_by: str = "tokens", limit: int | None = None) -> Sequence[Mapping[str, Any]]:
        return self._all(
            "SELECT * FROM marts.get_top_users(%s, %s, %s, %s, %s)",
            self.org_id, period.start.date(), period.end.date(), limit, order_by,
        )  # fmt: skip

    def coverage(self, period: Period) -> Mapping[str, Mapping[str, Any]]:
        rows = self._all("SELECT * FROM marts.get_usage_coverage(%s, %s, %s)", self.org_id, period.start, period.end)
        return {row["dimension"]: row for row in rows}

    def quota_statuses(self) -> Sequence[Mapping[str, Any]]:
        return self._all(
            "SELECT status.* FROM app.usage_quotas AS quota CROSS JOIN LATERAL app.check_quota_status(quota.id) AS status "
            "WHERE quota.org_id = %s AND quota.is_active ORDER BY status.quota_name, status.quota_id",
            self.org_id,
        )

    def recent_activity(self, limit: int) -> Sequence[Mapping[str, Any]]:
        # Each connection's newest are found by the records' key; over all of them at once every record would be read.
        return self._all(
            "SELECT newest.* FROM app.provider_connections AS connection CROSS JOIN LATERAL ("
            "SELECT * FROM raw.usage_records AS record WHERE record.provider_connection_id = connection.id "
            "ORDER BY record.timestamp DESC, record.id LIMIT %s) AS newest "
            "WHERE connection.org_id = %s ORDER BY newest.timestamp DESC, newest.id LIMIT %s",
            limit, self.org_id, limit,
        )  # fmt: skip

    def _cursor(self) -> Cursor[tuple[Any, ...]]:
        self._require_marts()
        return self.connection.cursor(row_factory=tuple_row)

    def _all(self, statement: str, *parameters: Any) -> Sequence[Mapping[str, Any]]:
        self._require_marts()
        return self.connection.execute(statement, parameters).fetchall()

    def _one(self, statement: str, *parameters: Any) -> Mapping[str, Any]:
        (row,) = self._all(statement, *parameters)
        return row

    def _require_marts(self) -> None:
        """Once for all reads of this object, which may be hundreds."""
        if not self._marts_are_built:
            raise TokenTraError("Nothing has been built yet; run `tokentra sync` or `tokentra import`, then `tokentra build`.")

    @cached_property
    def _marts_are_built(self) -> bool:
        row = self.connection.execute("SELECT to_regclass('marts.daily_usage_rollup') IS NOT NULL AS built").fetchone()
        return row == {"built": True}


@contextmanager
def _clear_about(where: Mapping[str, str | None] | None) -> Iterator[None]:
    try:
        yield
    except psycopg.errors.InvalidTextRepresentation:
        raise UsageError(
            f"Usage cannot be narrowed by {dict(where or {})}: a team, project or cost center is given by its id, as a breakdown shows it."
        ) from None
