"""Counters of quotas are a cache of usage and settlements; here they are made right again (docs/decisions/0011).

Each counter is rebuilt in a transaction of its own, so that no reservation waits for more than one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg

from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import Connection

APPLICATION = "tokentra quotas"


@dataclass(frozen=True, slots=True)
class Correction:
    """What a rebuild changed of one quota and measure (tokens, requests, input_tokens, output_tokens); counts."""

    quota_id: UUID
    quota_name: str
    period_start: datetime
    measure: str
    counted_before: int
    counted: int
    difference: int
    in_usage: int

    @property
    def not_yet_in_usage(self) -> int:
        """What was settled and usage does not hold yet."""
        return self.counted - self.in_usage


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found: the counters of current periods, what usage corrected of them, and how many reservations had expired
    per quota (`ORG/NAME`)."""

    counters: int
    corrections: tuple[Correction, ...]
    expired: tuple[tuple[str, int], ...]


def rebuild_counters(database: Database) -> list[Correction]:
    """Rebuild the counters of all current periods from usage. Call it after a build, as the owner. What changed comes first.
    Settlements and reservations of what ended more than two days ago are forgotten."""
    with database.connect(autocommit=True, application=APPLICATION) as db:
        return _rebuild(db)


def evaluate(database: Database) -> Evaluation:
    """Give back what expired reservations hold, rebuild every counter, forget what is long over. Safe to repeat, and beside requests."""
    with database.connect(autocommit=True, application=APPLICATION) as db:
        expired = _expire(db)
        rebuilt = _rebuild(db)
    counters = len({found.quota_id for found in rebuilt})
    return Evaluation(counters, tuple(found for found in rebuilt if found.difference), tuple(expired.items()))


_NEWS = """
SELECT CASE
  WHEN EXISTS (
    SELECT FROM app.quota_counters AS c WHERE c.earliest_expiry <= app.quota_clock() AND EXISTS (
      SELECT FROM app.quota_holds AS h WHERE h.quota_id = c.quota_id AND h.period_start = c.period_start AND h.expires_at <= app.quota_clock()
    )
  ) THEN 'reservations have expired'
  WHEN EXISTS (SELECT FROM app.quotas_to_rebuild()) THEN 'usage says otherwise than counters'
  WHEN EXISTS (SELECT FROM app.quota_reservations WHERE created_at < app.quota_clock() - interval '49 hours') THEN 'reservations are long over'
END AS why
"""


def news(db: Connection) -> str | None:
    """Why an evaluation would change something now; None: it would not. Reads only."""
    row = db.execute(_NEWS).fetchone()
    return row["why"] if row else None


def corrections(
    db: Connection, *, since: datetime | None = None, quota_id: UUID | None = None, limit: int = 50
) -> list[dict[str, Any]]:
    """What usage corrected, the newest first: rows of `app.quota_corrections` with `quota`, `ORG/NAME`."""
    return db.execute(
        """
        SELECT k.corrected_at, k.quota_id, o.name || '/' || q.name AS quota, k.period_start, k.measure, k.counted_before, k.counted, k.difference, k.in_usage
        FROM app.quota_corrections AS k
        CROSS JOIN LATERAL (
          SELECT v.name FROM app.usage_quota_versions AS v WHERE v.quota_id = k.quota_id ORDER BY v.version DESC LIMIT 1
        ) AS q
        JOIN app.organizations AS o ON o.id = k.org_id
        WHERE (%(since)s::timestamptz IS NULL OR k.corrected_at >= %(since)s) AND (%(quota)s::uuid IS NULL OR k.quota_id = %(quota)s)
        ORDER BY k.corrected_at DESC, k.id LIMIT %(limit)s
        """,
        {"since": since, "quota": quota_id, "limit": limit},
    ).fetchall()


_CURRENT = """
SELECT q.id FROM app.usage_quotas AS q
JOIN app.quota_counters AS c ON c.quota_id = q.id
  AND c.period_start = app.quota_period_start(q.period_type, q.period_reset_day, q.period_reset_hour, app.quota_clock())
ORDER BY q.id
"""


def _rebuild(db: Connection) -> list[Correction]:
    db.execute("SELECT app.forget_quota_counters(app.quota_clock() - interval '2 days')")
    found: list[Correction] = []
    for quota in db.execute(_CURRENT).fetchall():
        try:
            found += [Correction(**row) for row in db.execute("SELECT * FROM app.rebuild_quota_counters(%s)", [quota["id"]])]
        except psycopg.errors.NoDataFound:
            continue  # deleted meanwhile
    return sorted(found, key=lambda c: (c.difference == 0, c.quota_name, c.measure))


def _expire(db: Connection) -> dict[str, int]:
    expired: dict[str, int] = {}
    rows = db.execute(
        "SELECT c.quota_id, c.period_start, o.name || '/' || q.name AS label FROM app.quota_counters AS c "
        "JOIN app.usage_quotas AS q ON q.id = c.quota_id JOIN app.organizations AS o ON o.id = q.org_id "
        "WHERE c.earliest_expiry <= app.quota_clock() ORDER BY c.quota_id, c.period_start"
    ).fetchall()
    for row in rows:
        gone = db.execute("SELECT app.expire_quota_holds(%s, %s) AS n", [row["quota_id"], row["period_start"]]).fetchone()
        if gone and gone["n"]:
            expired[row["label"]] = expired.get(row["label"], 0) + gone["n"]
    return expired
