"""Counters of quotas are a cache of usage and settlements; here they are made right again (docs/decisions/0011)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from tokentra_dagster.warehouse.database import Database


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


def rebuild_counters(database: Database) -> list[Correction]:
    """Rebuild the counters of all current periods from usage. Call it after a build, as the owner. What changed comes first."""
    with database.connect() as db:
        found: list[dict[str, Any]] = db.execute("SELECT * FROM app.rebuild_quota_counters()").fetchall()
    return sorted((Correction(**row) for row in found), key=lambda c: (c.difference == 0, c.quota_name, c.measure))
