"""Small events for tests, and what they are to become."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from tests.warehouse_data import DAY, rows
from tokentra_dagster.realtime.events import UsageEvent
from tokentra_dagster.realtime.flush import Flushed, flush
from tokentra_dagster.realtime.store import append
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import add_organization

NOON = DAY.replace(hour=12)


def event(event_id: str = "e1", at: datetime = NOON, **fields: Any) -> UsageEvent:
    values: dict[str, Any] = {"provider": "openai", "model": "gpt-4o-2024-08-06", "input_tokens": 100, "output_tokens": 10}
    return UsageEvent(event_id=event_id, occurred_at=at, **(values | fields))


def organization(database: Database, name: str = "acme"):
    with database.connect() as db:
        return add_organization(db, name)[0]


def send(database: Database, org_id, *events: UsageEvent, now: datetime = NOON):
    return append(database, org_id, events, now=now)


def flush_all(database: Database, now: datetime = NOON, **options: Any) -> list[Flushed]:
    """Flush, and fail the test with what failed."""
    done = flush(database, now=now, **options)
    for one in done:
        if one.error:
            raise one.error
    return done


def counted(database: Database) -> dict[str, int]:
    """How often each event is a record."""
    found = rows(database, "SELECT provider_metadata ->> 'event_id' AS id, count(*) AS n FROM raw.usage_records GROUP BY 1")
    return {row["id"]: row["n"] for row in found}
