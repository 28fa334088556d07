"""Small usage for tests that load: a connection, records, and the totals of what the warehouse then holds."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from tokentra_dagster.batch import batches_of
from tokentra_dagster.ingest.intake import Intake, LoadResult
from tokentra_dagster.ingest.load import load_window
from tokentra_dagster.ingest.windows import aligned
from tokentra_dagster.records import GRANULARITY_SECONDS, CostRecord, Item, RejectedItem, UsageRecord
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import ConnectionRow, add_connection, add_organization, find_connection

DAY = datetime(2026, 6, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def connection(
    database: Database, org: str = "acme", name: str = "openai", provider: str = "openai", **settings: Any
) -> ConnectionRow:
    with database.connect() as db:
        add_organization(db, org)
        add_connection(db, org=org, name=name, provider=provider, **{"source": "provider_api"} | settings)
        return find_connection(db, f"{org}/{name}")


def record(start: datetime = DAY, granularity: str = "1h", **fields: Any) -> UsageRecord:
    values: dict[str, Any] = {
        "model": "gpt-4o-2024-08-06",
        "request_type": "chat",
        "input_tokens": 100,
        "output_tokens": 10,
        "request_count": 1,
    }
    end = start + timedelta(seconds=GRANULARITY_SECONDS[granularity])
    return UsageRecord(bucket_start=start, bucket_end=end, granularity=granularity, **(values | fields))  # type: ignore[arg-type]


def load(
    database: Database,
    row: ConnectionRow,
    items: Iterable[Item],
    start: datetime = DAY,
    end: datetime = DAY + 24 * HOUR,
    granularity: str = "1h",
    kind: str = "sync",
    now: datetime = DAY + timedelta(days=30),
    settles_after: timedelta = timedelta(0),
) -> LoadResult:
    """Replace the window with the items, as a sync or an import does."""

    def fill(intake: Intake) -> None:
        usage = []
        for item in items:
            if isinstance(item, UsageRecord):
                usage.append(item)
            elif isinstance(item, CostRecord):
                intake.add_cost(item)
            else:
                assert isinstance(item, RejectedItem)
                intake.reject(item.reason, item.payload, item.bucket_start)
        for batch in batches_of(usage):
            intake.add(batch)

    return load_window(
        database, row, aligned(start, end, granularity), kind=kind, fill=fill, settles_after=settles_after, now=now
    )


def rows(database: Database, statement: str, *parameters: Any) -> list[dict[str, Any]]:
    with database.connect() as db:
        return db.execute(statement, parameters).fetchall()


def one(database: Database, statement: str, *parameters: Any) -> Any:
    """The single value of a statement."""
    (row,) = rows(database, statement, *parameters)
    (value,) = row.values()
    return value
