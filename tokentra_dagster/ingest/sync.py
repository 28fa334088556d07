"""Sync one connection: ask the provider for a window and replace it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

from tokentra_dagster.batch import ROWS_PER_BATCH, batch_of
from tokentra_dagster.errors import PermanentError, UsageError
from tokentra_dagster.ingest.intake import Intake, LoadResult
from tokentra_dagster.ingest.load import load_window
from tokentra_dagster.providers import integration_of, open_source
from tokentra_dagster.providers.base import ConnectionConfig, Source, Window
from tokentra_dagster.records import GRANULARITIES, CostRecord, EntityName, Item, RejectedItem, UsageRecord
from tokentra_dagster.secret_references import resolve_secret
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import ConnectionRow

OWN_OPTIONS = ("granularity", "stale_after_hours")
DEFAULT_GRANULARITY = "1h"
DEFAULT_STALE_AFTER = timedelta(hours=26)


def source_of(connection: ConnectionRow) -> Source:
    """The provider behind a connection, its secret resolved."""
    name = connection.integration
    if name is None:
        raise PermanentError(f"{connection.label} holds {connection.source} usage; nobody is asked for it.")
    entry = integration_of(name)
    if not connection.secret_ref and entry.must_have_key:
        raise PermanentError("The connection has no secret; add it again with --secret env:NAME or --secret file:PATH.")
    secret = resolve_secret(connection.secret_ref) if connection.secret_ref else ""
    options = {name: str(value) for name, value in connection.options.items() if name not in OWN_OPTIONS}
    return open_source(ConnectionConfig(connection.provider, secret, connection.base_url, options, name))


def check_options(integration: str, provider: str, base_url: str | None, options: dict[str, str]) -> None:
    """Raise before a connection is stored with options that could never work."""
    granularity = options.get("granularity", DEFAULT_GRANULARITY)
    if granularity not in GRANULARITIES:
        raise UsageError(f"granularity is {granularity!r}; it must be one of {', '.join(GRANULARITIES)}.")
    _hours(options.get("stale_after_hours", "26"))
    others = {name: value for name, value in options.items() if name not in OWN_OPTIONS}
    open_source(ConnectionConfig(provider, "not-a-key", base_url, others, integration))


def granularity_of(connection: ConnectionRow) -> str:
    """What width of bucket the connection is synced at: its option `granularity`, else one hour."""
    return str(connection.options.get("granularity", DEFAULT_GRANULARITY))


def stale_after(connection: ConnectionRow) -> timedelta:
    """How old the newest usage may be before a check warns: the connection's option `stale_after_hours`, else 26 hours."""
    hours = connection.options.get("stale_after_hours")
    return DEFAULT_STALE_AFTER if hours is None else _hours(str(hours))


def _hours(text: str) -> timedelta:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 8760:
        raise UsageError(f"stale_after_hours is {text!r}; it must be a whole number of hours from 1 to 8760.")
    return timedelta(hours=int(text))


def sync_connection(
    database: Database, connection: ConnectionRow, window: Window, *, run_id: str | None = None, now: datetime | None = None
) -> LoadResult:
    """Replace one window of one connection with what the provider says now. `now` is for tests; errors as the provider module raises them.

    A secret that cannot be read is a failed sync like any other: the history shows it.
    """
    opened: list[Source] = []

    def prepare() -> None:
        opened.append(source_of(connection))
        refresh_names(database, connection, opened[0])

    def fill(intake: Intake) -> None:
        (source,) = opened
        for batch in _batches(source.usage(window), intake):
            intake.add(batch)
        for item in source.costs(window):
            if isinstance(item, CostRecord):
                intake.add_cost(item)
            elif isinstance(item, RejectedItem):
                intake.reject(item.reason, item.payload, item.bucket_start)
        intake.result.notes += source.remarks()

    return load_window(
        database, connection, window, kind="sync", fill=fill, settles_after=integration_of(connection.integration or connection.provider).settles_after,
        run_id=run_id, now=now or datetime.now(UTC), prepare=prepare,
    )  # fmt: skip


def refresh_names(database: Database, connection: ConnectionRow, source: Source, minutes: int = 15) -> int:
    """Read the provider's names for its ids unless they were read in the last `minutes`; returns how many."""
    with database.connect() as db:
        recent = db.execute(
            "SELECT EXISTS (SELECT FROM raw.provider_entities WHERE provider_connection_id = %s AND seen_at > now() - make_interval(mins => %s)) AS yes",
            [connection.id, minutes],
        ).fetchone()
        if recent and recent["yes"]:
            return 0
    names = list(source.names())
    with database.connect() as db:
        _store_names(db, connection, names)
    return len(names)


def _store_names(db, connection: ConnectionRow, names: Iterable[EntityName]) -> None:  # type: ignore[no-untyped-def]
    from psycopg.types.json import Jsonb

    unique = {(name.kind, name.id): name for name in names}
    db.cursor().executemany(
        "INSERT INTO raw.provider_entities (provider_connection_id, org_id, provider, kind, entity_id, name, provider_metadata) "
        "VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (provider_connection_id, kind, entity_id) DO UPDATE "
        "SET name = excluded.name, provider_metadata = excluded.provider_metadata, seen_at = now()",
        [
            (connection.id, connection.org_id, connection.provider, name.kind, name.id, name.name, Jsonb(name.metadata))
            for name in unique.values()
        ],
    )


def _batches(items: Iterator[Item], intake: Intake):  # type: ignore[no-untyped-def]
    """Usage in batches; what was rejected or is a cost goes to the spool at once."""
    records: list[UsageRecord] = []
    for item in items:
        if isinstance(item, UsageRecord):
            records.append(item)
            if len(records) >= ROWS_PER_BATCH:
                yield batch_of(records)
                records = []
        elif isinstance(item, RejectedItem):
            intake.reject(item.reason, item.payload, item.bucket_start)
        else:
            intake.add_cost(item)
    if records:
        yield batch_of(records)
