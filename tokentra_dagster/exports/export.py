"""One export: rows of one snapshot to one file, whole or not at all, with its manifest beside it (specification section 12)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

from tokentra_dagster.errors import TokenTraError
from tokentra_dagster.exports.columns import TYPES, Column
from tokentra_dagster.exports.focus.rows import USAGE_BYTES, FocusReader, usage_request
from tokentra_dagster.exports.manifest import Freshness, Manifest, ManifestColumn, content_hash, read_freshness
from tokentra_dagster.exports.pseudonyms import pseudonym, read_key
from tokentra_dagster.exports.request import ExportRequest
from tokentra_dagster.exports.rows import ALWAYS_COUNTED, RowReader, Totals, period_totals, row_reader
from tokentra_dagster.exports.text import iso
from tokentra_dagster.exports.writers import WriterOptions, open_writer
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import Connection, organization_id

SIDECAR = ".metadata.json"
UNFINISHED = ".part"


def export(database: Database, request: ExportRequest, path: Path) -> Manifest:
    """Write the file at `path`, its manifest and, for csv and jsonl with metadata, `<file>.metadata.json`. A failure leaves what was
    there before. Raises `UsageError` for what the organisation has not, `PermanentError` for a key that cannot be read."""
    key = read_key(request.user_key) if request.user_key else None
    options = WriterOptions(compression=request.compression or "none", names=request.names)
    created_at = datetime.now(UTC).replace(microsecond=0)
    unfinished = path.with_name(path.name + UNFINISHED)
    with database.connect(application="tokentra export") as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        org_id = organization_id(connection, request.organization)
        organization, currency = _organization(connection, org_id)
        freshness = read_freshness(connection, org_id, request.period)
        reader: RowReader | FocusReader
        if request.profile == "focus":
            usage = row_reader(database, connection, org_id, usage_request(request), currency, key, USAGE_BYTES)
            reader = FocusReader(usage, request, organization, org_id, currency)
        else:
            reader = row_reader(database, connection, org_id, request, currency, key)
        shown = shown_filters(request, key)
        try:
            writer = open_writer(request.format, unfinished, reader.columns, options)
            try:
                reader.into(writer)
                metadata = metadata_of(request, organization, currency, shown, reader.totals, freshness, created_at)
                writer.close(metadata if request.include_metadata else None)
            except BaseException:
                writer.abandon()
                raise
            totals = reader.totals
            left_out = _left_out(connection, org_id, request, totals)
            manifest = Manifest(
                file_name=path.name,
                format=request.format,
                compression=options.compression,
                size_bytes=unfinished.stat().st_size,
                sha256=content_hash(unfinished),
                profile=request.profile,
                focus_version=request.focus_version,
                organization=organization,
                organization_id=org_id,
                period=request.period,
                granularity=request.granularity,
                time_zone="UTC",
                currency=currency,
                filters=shown,
                user_identifiers=request.users,
                columns=tuple(_described(column, request) for column in reader.columns),
                row_count=totals.row_count,
                totals=totals.sums,
                left_out=left_out,
                freshness=freshness,
                created_at=created_at,
            )
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    if request.include_metadata and request.format in ("csv", "jsonl"):
        text = json.dumps(metadata, indent=2, ensure_ascii=False)
        path.with_name(path.name + SIDECAR).write_text(text + "\n", encoding="utf-8")
    manifest.write(path)
    return manifest


def metadata_of(
    request: ExportRequest, organization: str, currency: str, filters: Mapping[str, Sequence[str | None]], totals: Totals,
    freshness: Freshness, created_at: datetime,
) -> dict[str, str]:  # fmt: skip
    """The specification's properties and what makes the numbers readable, in the order of its sheet."""
    newest = freshness.newest_sync
    return {
        "Export Date": iso(created_at),
        **({"FOCUS Version": request.focus_version} if request.focus_version else {}),
        "Organization": organization,
        "Start Date": iso(request.period.start),
        "End Date": f"{iso(request.period.end)} (not included)",
        "Granularity": request.granularity,
        "Time Zone": "UTC",
        "Currency": currency,
        "Total Rows": str(totals.row_count),
        "Dimensions": ", ".join(request.grouping),
        **({} if request.focus_version else {"Metrics": ", ".join(request.metrics)}),
        "Filters": "; ".join(f"{name} = {_listed(values)}" for name, values in filters.items()) or "none",
        "User Identifiers": request.users.replace("_", " "),
        "Newest Sync": iso(newest.completed_at) if newest else "none",
        "Provisional Days": _listed(day.isoformat() for day in freshness.provisional_days) or "none",
    }


def shown_filters(request: ExportRequest, key: bytes | None) -> dict[str, list[str | None]]:
    """The filters as the receiver may know them: of users what the rows show of them."""
    shown = {name: list(values) for name, values in request.filters.items()}
    if "user" in shown and request.users == "left_out":
        shown["user"] = ["(left out)"]
    elif "user" in shown and key is not None:
        shown["user"] = [value and pseudonym(key, value) for value in shown["user"]]
    return shown


def _listed(values: Iterable[str | None]) -> str:
    return ", ".join("(none)" if value is None else value for value in values)


def _described(column: Column, request: ExportRequest) -> ManifestColumn:
    return ManifestColumn(column.title(request.names), column.name, str(TYPES[column.kind]), column.unit)


def _left_out(connection: Connection, org_id: Any, request: ExportRequest, totals: Totals) -> dict[str, int]:
    """Only minutes and hours leave anything out: what a provider tells by day is in none of them."""
    if request.granularity not in ("minute", "hour"):
        return dict.fromkeys(ALWAYS_COUNTED, 0)
    whole = period_totals(connection, org_id, request)
    return {name: whole[name] - int(totals.sums[name] or 0) for name in ALWAYS_COUNTED}


def _organization(connection: Connection, org_id: Any) -> tuple[str, str]:
    built = connection.execute("SELECT to_regclass('marts.daily_usage_rollup') IS NOT NULL AS is_built").fetchone()
    if built != {"is_built": True}:
        raise TokenTraError("Nothing has been built yet; run `tokentra sync` or `tokentra import`, then `tokentra build`.")
    row = connection.execute("SELECT name, currency FROM app.organizations WHERE id = %s", [org_id]).fetchone()
    assert row is not None
    return row["name"], row["currency"]
