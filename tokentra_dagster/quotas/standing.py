"""Where quotas stand, and stood: by usage, by what their counters hold, with the versions they had and what usage corrected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from tokentra_dagster.quotas.terms import LIMITS, TERMS, Terms, differences
from tokentra_dagster.warehouse.directory import Connection

MEASURES = ("tokens", "requests", "input_tokens", "output_tokens")
COLUMNS = {
    "tokens": "total_tokens",
    "requests": "total_requests",
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
}
"""Column of the marts for each measure."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One of the four things that a quota counts, in its current period. `in_usage` and `projected` are what the rollups say (None:
    unknown, or not built yet); `used` and `reserved` are what the next reservation is judged by."""

    measure: str
    limit: int | None
    in_usage: int | None
    projected: int | None
    used: int
    reserved: int

    @property
    def counted(self) -> int:
        return self.used + self.reserved

    @property
    def utilization_pct(self) -> float | None:
        """Of what is counted, reservations included; None without a limit."""
        return None if self.limit is None else 100 * self.counted / self.limit


@dataclass(frozen=True, slots=True)
class Standing:
    """A quota in its current period. `status` is by usage (ok, warning, critical, exceeded; None: unknown), as alerts judge it.
    `rebuilt_at`: when the counter was last made what usage says; None: nothing was reserved in this period."""

    quota_id: UUID
    period_start: datetime
    period_end: datetime
    status: str | None
    data_until: datetime | None
    rebuilt_at: datetime | None
    measures: tuple[Measure, ...]


@dataclass(frozen=True, slots=True)
class Version:
    """A state that the quota was in, in [valid_from, valid_to); `changes` in words, none of the first."""

    version: int
    valid_from: datetime
    valid_to: datetime | None
    name: str
    scope: str
    terms: Terms
    is_active: bool
    changes: tuple[str, ...] = ()


def is_built(db: Connection) -> bool:
    """Whether the models about quotas are there."""
    row = db.execute("SELECT to_regclass('marts.quota_usage_history') IS NOT NULL AS it_is").fetchone()
    return bool(row and row["it_is"])


_COUNTERS = """
SELECT q.id, q.token_limit, q.request_limit, q.input_token_limit, q.output_token_limit, (c).period_start, (c).period_end, (c).rebuilt_at,
  (c).used_tokens, (c).used_requests, (c).used_input_tokens, (c).used_output_tokens,
  (c).reserved_tokens, (c).reserved_requests, (c).reserved_input_tokens, (c).reserved_output_tokens
FROM app.usage_quotas AS q CROSS JOIN LATERAL app.read_quota_counter(q, app.quota_clock(), app.rollup_change_number()) AS c
WHERE q.id = ANY(%s)
"""


def standings(db: Connection, ids: Sequence[UUID]) -> dict[UUID, Standing]:
    """Where these quotas stand now. Reads only; the owner's (counters of others are not a reader's)."""
    by_usage: dict[UUID, dict[str, Any]] = {}
    if is_built(db):
        rows = db.execute("SELECT * FROM intermediate.int_quota_status WHERE quota_id = ANY(%s)", [list(ids)])
        by_usage = {row["quota_id"]: row for row in rows}
    found = {}
    for row in db.execute(_COUNTERS, [list(ids)]).fetchall():
        usage = by_usage.get(row["id"], {})
        found[row["id"]] = Standing(
            row["id"], row["period_start"], row["period_end"], usage.get("status"), usage.get("data_until"), row["rebuilt_at"],
            tuple(
                Measure(
                    measure, row[column], usage.get(COLUMNS[measure]), usage.get(f"projected_{COLUMNS[measure]}"),
                    row[f"used_{measure}"], row[f"reserved_{measure}"],
                )
                for measure, column in zip(MEASURES, LIMITS, strict=True)
            ),
        )  # fmt: skip
    return found


def knows_scope(db: Connection, org_id: UUID, scope_type: str, scope_value: str) -> bool | None:
    """Whether any usage of that scope was ever rolled up; None: nothing was built yet."""
    if not is_built(db):
        return None
    row = db.execute(
        "SELECT EXISTS (SELECT FROM intermediate.int_usage_by_scope WHERE org_id = %s AND scope_type = %s AND scope_value = %s) AS it_is",
        [org_id, scope_type, scope_value],
    ).fetchone()
    return bool(row and row["it_is"])


def history(db: Connection, quota_id: UUID, limit: int) -> list[dict[str, Any]]:
    """The newest periods of `marts.quota_usage_history`, the newest first."""
    return db.execute(
        "SELECT * FROM marts.quota_usage_history WHERE quota_id = %s ORDER BY period_start DESC LIMIT %s", [quota_id, limit]
    ).fetchall()


def versions(db: Connection, quota_id: UUID) -> list[Version]:
    """Every state of the quota, the first first."""
    rows = db.execute(
        "SELECT v.*, concat_ws(' ', v.scope_type, coalesce(t.name, p.name, v.user_identifier, v.api_key_id, v.feature, "
        "v.team_id::text, v.project_id::text)) AS scope FROM app.usage_quota_versions AS v LEFT JOIN app.teams AS t ON t.id = v.team_id "
        "LEFT JOIN app.projects AS p ON p.id = v.project_id WHERE v.quota_id = %s ORDER BY v.version",
        [quota_id],
    )
    found: list[Version] = []
    for row in rows:
        terms = Terms(**{name: row[name] for name in TERMS})
        columns = {name: row[name] for name in ("version", "valid_from", "valid_to", "name", "scope", "is_active")}
        found.append(Version(terms=terms, changes=_changes(found[-1], terms, row) if found else (), **columns))
    return found


def _changes(before: Version, terms: Terms, row: dict[str, Any]) -> tuple[str, ...]:
    said = [f"{what} {getattr(before, what)} -> {row[what]}" for what in ("name", "scope") if getattr(before, what) != row[what]]
    said += differences(before.terms, terms, TERMS)
    if before.is_active != row["is_active"]:
        said.append("resumed" if row["is_active"] else "paused")
    if before.valid_to != row["valid_from"]:
        said.append("came back after it was deleted")
    return tuple(said)
