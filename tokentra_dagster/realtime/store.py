"""Events as they arrive, kept in `raw.usage_events` once each (correction 34, docs/decisions/0012)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

from tokentra_dagster.errors import UsageError
from tokentra_dagster.realtime.event_prices import price_events
from tokentra_dagster.realtime.events import FIELDS, UsageEvent, refuse_future
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import Connection

_TYPES = {
    "occurred_at": "timestamptz", "is_error": "boolean", "reported_cost": "numeric", "quantity": "numeric", "estimated_cost": "numeric",
    "token_details": "jsonb", "metadata": "jsonb",
    **dict.fromkeys(
        ("input_tokens", "output_tokens", "cached_input_tokens", "cache_creation_tokens", "latency_ms"), "bigint"
    ),
}  # fmt: skip
_COLUMNS = (*FIELDS, "estimated_cost", "cost_basis")
# In the order of their ids, so that two senders of the same events wait for each other and never in a circle.
_APPEND = f"""
WITH written AS (
  INSERT INTO raw.usage_events (org_id, received_at, {", ".join(_COLUMNS)})
  SELECT %s, %s, e.* FROM unnest({", ".join(f"%s::{_TYPES.get(name, 'text')}[]" for name in _COLUMNS)}) AS e ({", ".join(_COLUMNS)})
  ORDER BY e.event_id
  ON CONFLICT (org_id, event_id) DO NOTHING
  RETURNING org_id, provider, event_number
), pending AS (
  INSERT INTO raw.pending_usage_events (org_id, provider, event_number)
  SELECT org_id, provider, event_number FROM written
  RETURNING event_number
)
SELECT count(*) AS stored, EXISTS (SELECT FROM app.organizations WHERE id = %s) AS org_is_known,
  CASE WHEN count(*) > 0 THEN raw.announce_events(%s) END AS is_announced
FROM pending
"""


@dataclass(frozen=True, slots=True)
class Appended:
    """Counts of events. `duplicates` had an id that the organisation had sent before, in this batch or earlier; the first counts."""

    stored: int
    duplicates: int


def append(database: Database, org_id: UUID, events: Sequence[UsageEvent], *, now: datetime | None = None) -> Appended:
    """Store the organisation's events, all or none; when it returns, they are on disk. `now` is for tests.

    Raises `UsageError` for an unknown organisation and an event from the future; nothing is stored then.
    """
    with database.connect(application="tokentra events") as db:
        return append_in(db, org_id, events, now=now)


def append_in(db: Connection, org_id: UUID, events: Sequence[UsageEvent], *, now: datetime | None = None) -> Appended:
    """`append` over a connection that the caller keeps open; commits, or is part of the caller's `db.transaction()`."""
    if not events:
        return Appended(0, 0)
    received = now or datetime.now(UTC)
    for event in events:
        refuse_future(event, received)
    columns = [*map(_column, FIELDS, [events] * len(FIELDS)), *map(list, zip(*price_events(events), strict=True))]
    with db.transaction():
        row = db.execute(_APPEND, [org_id, received, *columns, org_id, org_id]).fetchone()
        assert row is not None
        if not row["org_is_known"]:
            raise UsageError(f"No organisation has the id {org_id}; run `tokentra org add NAME` and send events with its id.")
    return Appended(row["stored"], len(events) - row["stored"])


def _column(name: str, events: Sequence[UsageEvent]) -> list[Any]:
    values = [getattr(event, name) for event in events]
    return [json.dumps(dict(value)) for value in values] if _TYPES.get(name) == "jsonb" else values


_COMPARE = f"""
SELECT e.event_id, s.received_at = %s AS is_new, ({", ".join(f"s.{name}" for name in FIELDS)}) IS NOT DISTINCT FROM
  ({", ".join(f"e.{name}" for name in FIELDS)}) AS is_same
FROM unnest({", ".join(f"%s::{_TYPES.get(name, 'text')}[]" for name in FIELDS)}) AS e ({", ".join(FIELDS)})
JOIN raw.usage_events AS s ON s.org_id = %s AND s.event_id = e.event_id
"""


def compare_in(
    db: Connection, org_id: UUID, events: Sequence[UsageEvent], *, received_at: datetime
) -> dict[str, Literal["stored", "duplicate", "conflict"]]:
    """By id, what `append_in` with `now=received_at` did with the organisation's events, each id once: stored them, found them stored
    before, or found another event of that id, which stays as it was (`conflict`)."""
    rows = db.execute(_COMPARE, [received_at, *map(_column, FIELDS, [events] * len(FIELDS)), org_id])
    return {row["event_id"]: "conflict" if not row["is_same"] else "stored" if row["is_new"] else "duplicate" for row in rows}
