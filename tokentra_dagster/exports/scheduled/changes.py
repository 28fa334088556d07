"""Adding, changing, pausing and deleting scheduled exports. Each plans first what came due by the old settings: nothing is lost by a change."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from tokentra_dagster.errors import UsageError
from tokentra_dagster.exports.destinations.base import SAFE, Allowances
from tokentra_dagster.exports.destinations.opening import open_destination
from tokentra_dagster.exports.scheduled.due import CATCH_UP, RELATIVE_PERIODS, check_schedule, period_of, zone_named
from tokentra_dagster.exports.scheduled.runs import plan_due
from tokentra_dagster.exports.scheduled.schedules import ScheduledExport, export_with_id, find_export, request_of
from tokentra_dagster.warehouse.directory import Connection, organization_id

_NAME = re.compile(r"\w(?:[\w .-]{0,98}[\w-])?")


def add_export(
    db: Connection, *, org: str, name: str, schedule: str, relative_period: str, delivery_method: str,
    delivery_config: Mapping[str, Any], export_config: Mapping[str, Any] | None = None, time_zone: str | None = None,
    wait_until_final: bool = False, catch_up: str = "all", allowances: Allowances = SAFE,
) -> tuple[ScheduledExport, bool]:  # fmt: skip
    """The export, and whether it is new. One of that name gets the new settings: they hold for what is not written yet, and what has
    failed is tried again; what came due before stays due by the old schedule. Raises `UsageError` or `PermanentError` for what could
    never run."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"The export's name is {name!r}; it must be letters, digits, spaces, - _ and . (files lie in a folder of that name), at most 100."
        )
    config = dict(export_config or {})
    check_schedule(schedule)
    if time_zone is not None:
        zone_named(time_zone)
    for what, value, known in (("period", relative_period, RELATIVE_PERIODS), ("catch-up", catch_up, CATCH_UP)):
        if value not in known:
            raise UsageError(f"The {what} is {value!r}; it must be one of {', '.join(known)}.")
    request_of(org, period_of(relative_period, datetime.now(UTC), zone_named("UTC")), config)
    open_destination(delivery_method, delivery_config, allowances)
    org_id = organization_id(db, org)
    now = datetime.now(UTC)
    with db.transaction():
        before = db.execute("SELECT id FROM app.scheduled_exports WHERE org_id = %s AND name = %s", [org_id, name]).fetchone()
        if before:
            # A schedule that somebody broke in the table has no due times to keep, and is mended by this.
            with suppress(UsageError):
                plan_due(db, before["id"], now)
        return _upsert(db, [
            org_id, name, schedule, time_zone, relative_period, Jsonb(config), delivery_method, Jsonb(dict(delivery_config)),
            wait_until_final, catch_up, now,
        ])  # fmt: skip


def _upsert(db: Connection, values: list[Any]) -> tuple[ScheduledExport, bool]:
    row = db.execute(
        "INSERT INTO app.scheduled_exports AS e (org_id, name, schedule, time_zone, relative_period, export_config, delivery_method, "
        "delivery_config, wait_until_final, catch_up, due_since) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) "
        "ON CONFLICT (org_id, name) DO UPDATE SET schedule = excluded.schedule, time_zone = excluded.time_zone, "
        "relative_period = excluded.relative_period, export_config = excluded.export_config, delivery_method = excluded.delivery_method, "
        "delivery_config = excluded.delivery_config, wait_until_final = excluded.wait_until_final, catch_up = excluded.catch_up, "
        "enabled = true, due_since = excluded.due_since, updated_at = now() RETURNING id, xmax = 0 AS is_new",
        values,
    ).fetchone()
    assert row is not None
    try_again(db, row["id"])
    found = export_with_id(db, row["id"])
    assert found is not None
    return found, row["is_new"]


def pause(db: Connection, name: str) -> ScheduledExport:
    """Deliver nothing until it is resumed. What has come due stays due; what comes due in the pause does not count."""
    export = find_export(db, name)
    with db.transaction():
        plan_due(db, export.id, datetime.now(UTC))
        db.execute("UPDATE app.scheduled_exports SET enabled = false, updated_at = now() WHERE id = %s", [export.id])
    return export


def resume(db: Connection, name: str) -> ScheduledExport:
    """Due times count again from now on; what waits or has failed is tried at once."""
    export = find_export(db, name)
    with db.transaction():
        db.execute(
            "UPDATE app.scheduled_exports SET enabled = true, updated_at = now(), "
            "due_since = CASE WHEN enabled THEN due_since ELSE %s END WHERE id = %s",
            [datetime.now(UTC), export.id],
        )
        try_again(db, export.id)
    return export


def try_again(db: Connection, export_id: UUID) -> int:
    """What waits or has failed is due at once."""
    return db.execute(
        "UPDATE app.export_runs SET next_attempt_at = now() WHERE export_id = %s AND status IN ('waiting', 'failed')", [export_id]
    ).rowcount


def delete_export(db: Connection, name: str) -> ScheduledExport:
    """It, and the record of what it delivered; what was delivered stays where it is."""
    export = find_export(db, name)
    db.execute("DELETE FROM app.scheduled_exports WHERE id = %s", [export.id])
    return export
