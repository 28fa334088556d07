"""What an export holds, beside the file as `<file>.manifest.json`: with it the receiver can prove that nothing is missing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.errors import UsageError
from tokentra_dagster.warehouse.directory import Connection

SUFFIX = ".manifest.json"
VERSION = 1

# The syncs that the marts hold: completed, and built (as intermediate.int_usage_freshness has it).
SYNCS = """
SELECT history.id, connection.name AS connection, history.completed_at, history.covered_until,
  EXISTS (
    SELECT FROM raw.usage_changes AS change
    WHERE change.sync_id = history.id
      AND change.change_number > (
        SELECT coalesce(max(progress.change_number), 0) FROM raw.model_progress AS progress
        WHERE progress.model = 'hourly_usage_rollup')
  ) AS is_pending
FROM raw.sync_history AS history
JOIN app.provider_connections AS connection ON connection.id = history.provider_connection_id
WHERE history.org_id = %s AND history.status = 'completed' AND history.window_start < %s AND history.covered_until > %s
"""
NEWEST_SYNC = f"SELECT * FROM ({SYNCS}) AS sync WHERE NOT is_pending ORDER BY completed_at DESC, id LIMIT 1"
PENDING_SYNCS = f"SELECT count(*) AS number FROM ({SYNCS}) AS sync WHERE is_pending"
DAYS = """
SELECT date, bool_or(is_provisional) AS is_provisional, bool_or(NOT is_complete) AS is_incomplete
FROM marts.usage_coverage
WHERE org_id = %s AND is_authoritative AND date >= %s AND date < %s AND (is_provisional OR NOT is_complete)
GROUP BY date ORDER BY date
"""


@dataclass(frozen=True, slots=True)
class NewestSync:
    """The last sync or import of the period that is in the export."""

    id: UUID
    connection: str
    completed_at: datetime
    covered_until: datetime


@dataclass(frozen=True, slots=True)
class Freshness:
    """How final the period is. Days are UTC; `provisional_days` may still be restated by a provider, of `incomplete_days` no sync has
    seen all; `pending_syncs` are loaded but not yet in the marts."""

    newest_sync: NewestSync | None
    pending_syncs: int
    provisional_days: tuple[date, ...]
    incomplete_days: tuple[date, ...]


@dataclass(frozen=True, slots=True)
class ManifestColumn:
    """`title` is what stands in the file, `name` the marts' name, `type` Arrow's."""

    title: str
    name: str
    type: str
    unit: str | None


@dataclass(frozen=True, slots=True)
class Manifest:
    """`totals` are sums over the rows per additive metric, None where no row knows it; `left_out` is usage of the period that is only
    known by wider buckets than the export's, in tokens and records. `sha256` and `size_bytes` are of the file as it lies there."""

    file_name: str
    format: str
    compression: str
    size_bytes: int
    sha256: str
    organization: str
    organization_id: UUID
    period: Period
    granularity: str
    time_zone: str
    currency: str
    filters: Mapping[str, Sequence[str | None]]
    user_identifiers: str
    columns: tuple[ManifestColumn, ...]
    row_count: int
    totals: Mapping[str, int | Decimal | None]
    left_out: Mapping[str, int]
    freshness: Freshness
    created_at: datetime
    version: int = VERSION
    profile: str = "usage"
    focus_version: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values: moments and days in ISO 8601, money as text with all its digits."""
        plain = asdict(self)
        plain |= plain.pop("freshness")
        result: dict[str, Any] = _plain(plain)
        return result

    def write(self, file: Path) -> Path:
        """Put it beside the file; returns where."""
        path = manifest_path(file)
        path.write_text(json.dumps(self.as_json(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return path


def manifest_path(file: Path) -> Path:
    return file.with_name(file.name + SUFFIX)


def verify(file: Path) -> dict[str, Any]:
    """The manifest of a file that is whole. Raises `UsageError` where the file or its manifest is not what it was."""
    path = manifest_path(file)
    if not path.is_file():
        raise UsageError(f"{file.name} has no {path.name} beside it; fetch both.")
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    size = file.stat().st_size
    if size != manifest["size_bytes"]:
        raise UsageError(f"{file.name} has {size} bytes, its manifest says {manifest['size_bytes']}; fetch it again.")
    if content_hash(file) != manifest["sha256"]:
        raise UsageError(f"{file.name} is not the file that its manifest describes (SHA-256 differs); fetch it again.")
    return manifest


def content_hash(file: Path) -> str:
    """SHA-256 of the bytes, hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_freshness(connection: Connection, org_id: UUID, period: Period) -> Freshness:
    """From the same snapshot as the rows, when the caller's transaction is one."""
    window = [org_id, period.end, period.start]
    newest = connection.execute(NEWEST_SYNC, window).fetchone()
    pending = connection.execute(PENDING_SYNCS, window).fetchone()
    days = connection.execute(
        DAYS,
        [
            org_id,
            period.start.date(),
            (period.end.date() if _is_midnight(period.end) else date.fromordinal(period.end.toordinal() + 1)),
        ],
    ).fetchall()
    assert pending is not None
    return Freshness(
        newest_sync=NewestSync(**{name: newest[name] for name in ("id", "connection", "completed_at", "covered_until")})
        if newest
        else None,
        pending_syncs=pending["number"],
        provisional_days=tuple(day["date"] for day in days if day["is_provisional"]),
        incomplete_days=tuple(day["date"] for day in days if day["is_incomplete"]),
    )


def _is_midnight(moment: datetime) -> bool:
    return moment.time() == datetime.min.time()


def _plain(value: Any) -> Any:
    match value:
        case Mapping():
            return {name: _plain(item) for name, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case datetime() | date():
            return value.isoformat().replace("+00:00", "Z")
        case Decimal():
            return format(value, "f")
        case UUID():
            return str(value)
    return value
