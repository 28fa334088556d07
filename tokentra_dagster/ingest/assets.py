"""Dagster assets that fill the raw schema: one asset per integration, daily partitions, and one for imported files.

An asset fetches the connections, calls `sync_connection` for each, and returns evidence. One connection's failure never
stops another's: the run's metadata and the check `every_connection_synced` say which failed and why. Transient failures
make the step retry with back-off; a repeat changes nothing that was already right.
"""

# No `from __future__ import annotations` here: Dagster reads the annotations of assets as they are.

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
from pydantic import Field

from tokentra_dagster.errors import TokenTraError, TransientError
from tokentra_dagster.ingest.intake import LoadResult
from tokentra_dagster.ingest.sync import granularity_of, sync_connection
from tokentra_dagster.ingest.windows import aligned, moment
from tokentra_dagster.markdown import bullets, table
from tokentra_dagster.providers import INTEGRATIONS
from tokentra_dagster.resources import Warehouse
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import ConnectionRow, connections

OWNERS = ["team:data-platform"]
DAILY = dg.DailyPartitionsDefinition(start_date="2023-01-01", timezone="UTC", end_offset=1)
MAX_RETRIES = 3


class SyncConfig(dg.Config):
    """What to sync. Empty `connections` means every active one of the integration; a window narrows the partitions' days."""

    connections: list[str] = Field(default_factory=list)
    window_start: str = ""
    window_end: str = ""
    granularity: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one connection: a result, or why not."""

    connection: ConnectionRow
    result: LoadResult | None = None
    error: TokenTraError | None = None


def sync_all(
    database: Database,
    rows: Sequence[ConnectionRow],
    start: datetime,
    end: datetime,
    granularity: str,
    run_id: str | None,
    log: Any,
) -> list[Outcome]:
    """Each connection in turn; an error ends only its own."""
    outcomes: list[Outcome] = []
    for row in rows:
        window = aligned(start, end, granularity or granularity_of(row))
        try:
            result = sync_connection(database, row, window, run_id=run_id)
            log.info(f"{row.label}: {result.loaded} records, {result.costs} cost lines, {result.rejected} rejected")
            outcomes.append(Outcome(row, result))
        except TokenTraError as error:
            log.error(f"{row.label}: {error}")
            outcomes.append(Outcome(row, error=error))
    return outcomes


def evidence(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Metadata a person would look at: counts, tokens, time range and a row per connection."""
    done = [outcome.result for outcome in outcomes if outcome.result]
    counted = ("loaded", "replaced", "rejected", "costs", "input_tokens", "output_tokens")
    connections = table(
        ["connection", "records", "replaced", "rejected", "cost lines", "input tokens", "output tokens", "error"],
        ((one.connection.label, *(getattr(one.result, name, None) for name in counted), one.error) for one in outcomes),
        empty="No connection was synced.",
    )
    metadata: dict[str, Any] = {
        "connections": dg.MetadataValue.md(connections),
        "dagster/row_count": sum(result.loaded for result in done),
        "rejected": sum(result.rejected for result in done),
        "input_tokens": sum(result.input_tokens for result in done),
        "output_tokens": sum(result.output_tokens for result in done),
        "failed_connections": sum(1 for outcome in outcomes if outcome.error),
    }
    if notes := bullets(f"{result.connection}: {note}" for result in done for note in result.notes):
        metadata["notes"] = dg.MetadataValue.md(notes)
    if done:
        metadata["window_start"] = min(result.window_start for result in done).isoformat()
        metadata["window_end"] = max(result.window_end for result in done).isoformat()
    return metadata


def _window(context: dg.AssetExecutionContext, config: SyncConfig, now: datetime) -> tuple[datetime, datetime]:
    if config.window_start and config.window_end:
        return moment(config.window_start, "window_start"), moment(config.window_end, "window_end")
    days = context.partition_time_window
    return days.start.astimezone(UTC), min(days.end.astimezone(UTC), now)


def _chosen(database: Database, integration: str, names: Sequence[str]) -> list[ConnectionRow]:
    with database.connect() as db:
        everyone = [row for row in connections(db) if row.integration == integration]
    if not names:
        return [row for row in everyone if row.is_active]
    chosen = [row for row in everyone if names and (row.label in names or row.name in names or str(row.id) in names)]
    unknown = [name for name in names if not any(name in (row.label, row.name, str(row.id)) for row in chosen)]
    if unknown:
        raise dg.Failure(
            f"No {integration} connection is named {', '.join(unknown)}. There are: {', '.join(row.label for row in everyone) or 'none'}."
        )
    return chosen


def usage_key(integration: str) -> dg.AssetKey:
    return dg.AssetKey(["raw", f"{integration}_usage"])


def costs_key(integration: str) -> dg.AssetKey:
    return dg.AssetKey(["raw", f"{integration}_costs"])


RECORDS = dg.AssetKey(["raw", "usage_records"])
COSTS = dg.AssetKey(["raw", "provider_costs"])


def written_keys(integration: str) -> dict[dg.AssetKey, dg.AssetKey]:
    """What a sync materialises, and the table that each of it is in. Costs only where the integration tells them."""
    tells_costs = INTEGRATIONS[integration].costs_settle_after is not None
    return {usage_key(integration): RECORDS} | ({costs_key(integration): COSTS} if tells_costs else {})


def integration_sync(integration: str) -> dg.AssetsDefinition:
    """The asset that syncs every connection of one integration. Its runs queue in the pool of its name."""
    texts = {
        RECORDS: f"Usage that {integration} reports, replaced a window at a time in raw.usage_records.",
        COSTS: f"What {integration} billed per day, in raw.provider_costs.",
    }

    @dg.multi_asset(
        name=f"sync_{integration}",
        specs=[
            dg.AssetSpec(
                key, group_name="raw", owners=OWNERS, kinds={"python", "postgres"}, partitions_def=DAILY, description=texts[written]
            )
            for key, written in written_keys(integration).items()
        ],
        check_specs=[
            dg.AssetCheckSpec(
                "every_connection_synced", asset=usage_key(integration), description="Fails when a connection of this run could not be synced; its metadata says why."
            )
        ],
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool=integration,
    )  # fmt: skip
    def sync(context: dg.AssetExecutionContext, config: SyncConfig, warehouse: Warehouse) -> Iterator[Any]:
        database = warehouse.database()
        rows = _chosen(database, integration, config.connections)
        start, end = _window(context, config, datetime.now(UTC))
        outcomes = sync_all(database, rows, start, end, config.granularity, context.run_id, context.log)
        failed = [outcome for outcome in outcomes if outcome.error]
        if any(isinstance(outcome.error, TransientError) for outcome in failed) and context.retry_number < MAX_RETRIES:
            waits = [outcome.error.retry_after or 0 for outcome in failed if isinstance(outcome.error, TransientError)]
            raise dg.RetryRequested(max_retries=MAX_RETRIES, seconds_to_wait=min(max(*waits, 5 * 2**context.retry_number), 300))
        metadata = evidence(outcomes)
        for key, written in written_keys(integration).items():
            yield dg.MaterializeResult(asset_key=key, metadata=metadata)
            context.log_event(
                dg.AssetMaterialization(written, metadata={"written_by": f"sync_{integration}", "run_id": context.run_id})
            )
        yield dg.AssetCheckResult(
            asset_key=usage_key(integration), check_name="every_connection_synced", passed=not failed,
            metadata={outcome.connection.label: str(outcome.error) for outcome in failed},
        )  # fmt: skip

    return sync


SYNCS = [integration_sync(name) for name in INTEGRATIONS]
TABLES = [
    dg.AssetSpec(
        RECORDS, deps=[*map(usage_key, INTEGRATIONS), dg.AssetKey(["raw", "imported_usage"]), dg.AssetKey(["raw", "usage_events"])],
        group_name="raw", owners=OWNERS, kinds={"postgres", "table"}, description="Every usage record of every source (specification 2.1).",
    ),
    dg.AssetSpec(
        COSTS, deps=[costs_key(name) for name in INTEGRATIONS if COSTS in written_keys(name).values()], group_name="raw", owners=OWNERS,
        kinds={"postgres", "table"}, description="What providers billed, per day and line.",
    ),
]  # fmt: skip
JOBS = {
    name: dg.define_asset_job(
        f"sync_{name}_job", selection=dg.AssetSelection.assets(*written_keys(name)),
        description=f"Sync {name} connections for a range of days.",
    )
    for name in INTEGRATIONS
}  # fmt: skip


def partition_range_tags(start: datetime, end: datetime) -> dict[str, str]:
    """Tags that make one run cover the days of `[start, end)`."""
    return {
        "dagster/asset_partition_range_start": start.astimezone(UTC).strftime("%Y-%m-%d"),
        "dagster/asset_partition_range_end": (end.astimezone(UTC) - timedelta(microseconds=1)).strftime("%Y-%m-%d"),
    }
