"""Scheduled exports as they stand in the database (`app.scheduled_exports`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID
from zoneinfo import ZoneInfo

from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.errors import UsageError
from tokentra_dagster.exports.scheduled.due import next_due, period_of, zone_named
from tokentra_dagster.warehouse.directory import Connection, one_named

if TYPE_CHECKING:
    from tokentra_dagster.exports.request import ExportRequest

_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@dataclass(frozen=True, slots=True)
class ScheduledExport:
    """A row of `app.scheduled_exports`. `time_zone` None: the organisation's."""

    id: UUID
    org_id: UUID
    organization: str
    organization_zone: str
    name: str
    schedule: str
    time_zone: str | None
    relative_period: str
    export_config: Mapping[str, Any]
    delivery_method: str
    delivery_config: Mapping[str, Any]
    wait_until_final: bool
    catch_up: str
    enabled: bool
    due_since: datetime
    created_at: datetime

    @property
    def label(self) -> str:
        return f"{self.organization}/{self.name}"

    @property
    def zone(self) -> ZoneInfo:
        return zone_named(self.time_zone or self.organization_zone)

    def period(self, due_at: datetime) -> Period:
        return period_of(self.relative_period, due_at, self.zone)

    def next_due(self, after: datetime, count: int = 1) -> list[datetime]:
        return next_due(self.schedule, self.zone, after, count)

    def request(self, period: Period) -> ExportRequest:
        """Raises `UsageError` for what an export cannot be asked."""
        return request_of(str(self.org_id), period, self.export_config)


def request_of(organization: str, period: Period, config: Mapping[str, Any]) -> ExportRequest:
    """Names may be the specification's (`includeMetadata`) or ours. Raises `UsageError`."""
    # Here, because it takes pandas along, which lists and histories have no use for.
    from tokentra_dagster.exports.request import ExportRequest

    known = [field.name for field in fields(ExportRequest) if field.name not in ("organization", "period")]
    values: dict[str, Any] = {}
    for name, value in config.items():
        ours = _CAPITAL.sub("_", name).lower()
        if ours not in known:
            raise UsageError(f"The export's setting {name!r} is not known; known settings are {', '.join(known)}.")
        values[ours] = value
    return ExportRequest(organization, period, **values)


_EXPORTS = """
SELECT e.id, e.org_id, o.name AS organization, o.time_zone AS organization_zone, e.name, e.schedule, e.time_zone, e.relative_period,
  e.export_config, e.delivery_method, e.delivery_config, e.wait_until_final, e.catch_up, e.enabled, e.due_since, e.created_at
FROM app.scheduled_exports AS e JOIN app.organizations AS o ON o.id = e.org_id
"""


def _read(db: Connection, where: str, *parameters: Any, ending: str = "ORDER BY o.name, e.name") -> list[ScheduledExport]:
    return [ScheduledExport(**row) for row in db.execute(f"{_EXPORTS} WHERE {where} {ending}", parameters)]


def scheduled_exports(db: Connection, *, enabled_only: bool = False) -> list[ScheduledExport]:
    return _read(db, "(e.enabled OR NOT %s)", enabled_only)


def export_with_id(db: Connection, export_id: UUID) -> ScheduledExport | None:
    return next(iter(_read(db, "e.id = %s", export_id)), None)


def locked_export(db: Connection, export_id: UUID) -> ScheduledExport | None:
    """As it is now, and nobody else's to plan or change until the transaction ends."""
    return next(iter(_read(db, "e.id = %s", export_id, ending="FOR UPDATE OF e")), None)


def find_export(db: Connection, name: str) -> ScheduledExport:
    """By `ORG/NAME`, by name where it is the only one, or by id. Raises `UsageError` that lists the ones there are."""
    return one_named(
        scheduled_exports(db), name, what="scheduled export", owners="Several organisations", add="tokentra exports add"
    )
