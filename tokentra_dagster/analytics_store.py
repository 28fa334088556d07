"""Where results of the analyses go: the tidy tables of schema `analytics` (docs/analytics.md)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field, fields
from typing import Any
from uuid import UUID

from psycopg import sql
from psycopg.types.json import Jsonb

from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.analytics.results import InsightRow, MetricRow, RecommendationRow, as_json
from tokentra_dagster.warehouse.directory import Connection

KEY = ("org_id", "analysis", "window", "period_start", "period_end")


@dataclass(frozen=True, slots=True)
class Findings:
    """What one analysis says of one organisation's window: the whole `document`, and the rows of the three tables."""

    analysis: str
    window: str
    period: Period
    currency: str
    document: Any
    metrics: Sequence[MetricRow] = ()
    insights: Sequence[InsightRow] = ()
    recommendations: Sequence[RecommendationRow] = field(default=())


def store(db: Connection, org_id: UUID, found: Findings) -> None:
    """Replace what stood for the same organisation, analysis, window and end. The caller's transaction."""
    key = (org_id, found.analysis, found.window, found.period.start, found.period.end)
    # One writer of a window at a time: two would each delete what the other has not committed, and both would insert.
    db.execute(
        "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))",
        [f"analytics {org_id} {found.analysis} {found.window} {found.period.end}"],
    )
    for table in ("metrics", "insights", "recommendations", "documents"):
        db.execute(
            sql.SQL('DELETE FROM analytics.{} WHERE org_id = %s AND analysis = %s AND "window" = %s AND period_end = %s').format(
                sql.Identifier(table)
            ),
            [org_id, found.analysis, found.window, found.period.end],
        )
    _copy(db, "metrics", key, found.metrics, MetricRow, {"currency": found.currency})
    _copy(db, "insights", key, found.insights, InsightRow, {})
    _copy(db, "recommendations", key, found.recommendations, RecommendationRow, {"currency": found.currency})
    db.execute(
        'INSERT INTO analytics.documents (org_id, analysis, "window", period_start, period_end, document) VALUES (%s, %s, %s, %s, %s, %s)',
        [*key, Jsonb(as_json(found.document), dumps=lambda value: json.dumps(value, allow_nan=False))],
    )


def _copy(db: Connection, table: str, key: tuple[Any, ...], rows: Iterable[Any], kind: type, more: dict[str, Any]) -> None:
    names = [*KEY, *(column.name for column in fields(kind)), *more]
    columns = sql.SQL(", ").join(map(sql.Identifier, names))
    statement = sql.SQL("COPY analytics.{} ({}) FROM STDIN").format(sql.Identifier(table), columns)
    with db.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row((*key, *astuple(row), *more.values()))
