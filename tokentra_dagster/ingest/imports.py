"""Dagster's side of imported files: the asset that loads one, and the job that applies today's attribution rules.

`tokentra import` and `tokentra rule apply` run these, so that the UI's history shows who changed what and when.
"""

# No `from __future__ import annotations` here: Dagster reads the annotations of assets and operations as they are.

from collections.abc import Iterator
from datetime import UTC
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from tokentra_dagster.ingest.assets import OWNERS, RECORDS
from tokentra_dagster.ingest.file_import import ImportRequest, Scan, load_file, scan
from tokentra_dagster.ingest.intake import LoadResult
from tokentra_dagster.ingest.reattribute import apply_rules as apply_attribution_rules
from tokentra_dagster.markdown import table
from tokentra_dagster.resources import Warehouse
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import ConnectionRow, add_connection, find_connection, organization_id

IMPORTED = dg.AssetKey(["raw", "imported_usage"])


class ImportConfig(dg.Config):
    """The options of `tokentra import`; empty means not given. `file` is a path on the machine that runs the job."""

    file: str
    org: str
    provider: str
    name: str = ""
    maps: list[str] = Field(default_factory=list)
    granularity: str = ""
    bucket_seconds: int = 0
    timezone: str = ""
    input_convention: str = "includes-cache"

    def request(self) -> ImportRequest:
        return ImportRequest(
            file=Path(self.file), maps=self.maps, granularity=self.granularity or None,
            bucket_seconds=self.bucket_seconds or None, timezone=self.timezone or None,
            input_convention=self.input_convention,
        )  # fmt: skip


def file_connection(database: Database, org: str, provider: str, name: str) -> ConnectionRow:
    """The file connection of that name, made where it is new. Raises `UsageError` if it belongs to something else."""
    with database.connect() as db:
        connection_id, _ = add_connection(db, org=org, name=name, provider=provider, source="file")
        return find_connection(db, str(connection_id))


def evidence(file: str, found: Scan, result: LoadResult) -> dict[str, Any]:
    """Metadata a person would look at."""
    reasons = sorted(found.reasons.items(), key=lambda item: -item[1].rows)[:20]
    models = sorted(found.models.items(), key=lambda item: -item[1])[:20]
    return {
        "file": file,
        "connection": result.connection,
        "dagster/row_count": result.loaded,
        "replaced": result.replaced,
        "rejected": result.rejected,
        "rejected_because": dg.MetadataValue.md(
            table(
                ["rows", "reason", "first line"],
                ((reason.rows, kind, reason.first.line) for kind, reason in reasons),
                empty="Nothing was rejected.",
            )
        ),
        "window_start": dg.MetadataValue.timestamp(result.window_start.astimezone(UTC)),
        "window_end": dg.MetadataValue.timestamp(result.window_end.astimezone(UTC)),
        "input_tokens": result.input_tokens,
        "output_tokens": result.output_tokens,
        "requests": result.requests,
        "rows_with_unknown_tokens": found.unknown_tokens,
        "models": dg.MetadataValue.md(table(["model", "records"], models, empty="No record was loaded.")),
    }


@dg.asset(
    key=IMPORTED,
    group_name="raw",
    owners=OWNERS,
    kinds={"python", "postgres"},
    description="Usage from one file (CSV, JSON Lines or Parquet), which replaces the hours it covers in its own connection.",
)
def imported_usage(context: dg.AssetExecutionContext, config: ImportConfig, warehouse: Warehouse) -> Iterator[Any]:
    file, plan = config.request().open()
    found = scan(file, plan)
    window = found.window(plan)
    database = warehouse.database()
    connection = file_connection(database, config.org, config.provider, config.name or f"file-{config.provider}")
    result = load_file(database, connection, file, plan, window, context.run_id)
    context.log.info(f"{connection.label}: {result.loaded} records, {result.replaced} replaced, {result.rejected} rejected")
    yield dg.MaterializeResult(asset_key=IMPORTED, metadata=evidence(file.path.name, found, result))
    written_by = {"written_by": "imported_usage", "run_id": context.run_id}
    context.log_event(dg.AssetMaterialization(RECORDS, metadata=written_by))


import_job = dg.define_asset_job(
    "import_job", selection=dg.AssetSelection.assets(IMPORTED), description="Load one file of usage into its own connection."
)


class RulesConfig(dg.Config):
    """Whose usage to attribute again."""

    org: str


@dg.op(description="Apply today's attribution rules to usage that is loaded already; what a source itself said is kept.")
def apply_rules(context: dg.OpExecutionContext, config: RulesConfig, warehouse: Warehouse) -> None:
    database = warehouse.database()
    with database.connect() as db:
        org_id = organization_id(db, config.org)
    changed = apply_attribution_rules(database, org_id)
    for label, rows in changed.items():
        context.log.info(f"{label}: {rows} records changed")
    context.add_output_metadata({"changed": sum(changed.values()), **changed})
    if any(changed.values()):
        written_by = {"written_by": "apply_rules", "run_id": context.run_id}
        context.log_event(dg.AssetMaterialization(RECORDS, metadata=written_by))


@dg.job(description="Apply today's attribution rules to all usage of an organisation.")
def apply_rules_job() -> None:
    apply_rules()
