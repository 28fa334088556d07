"""Scheduled exports for tests: June of the built warehouse's organisation, into a folder."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tokentra_dagster.exports.destinations.base import Allowances
from tokentra_dagster.exports.manifest import verify
from tokentra_dagster.exports.scheduled.changes import add_export
from tokentra_dagster.exports.scheduled.runs import ExportRun, plan_due, read_runs
from tokentra_dagster.exports.scheduled.schedules import ScheduledExport
from tokentra_dagster.warehouse.database import Database

HERE = Allowances(plain_text=True, private_targets=True)
JULY, DUE = datetime(2026, 7, 1, tzinfo=UTC), datetime(2026, 7, 1, 6, tzinfo=UTC)


def scheduled(database: Database, folder: Path, name: str = "monthly", **changes: Any) -> ScheduledExport:
    """Due on the first of a month at 06:00 UTC, of the month before; as if it had been made in June."""
    values: dict[str, Any] = {
        "org": "acme", "name": name, "schedule": "0 6 1 * *", "relative_period": "last_month", "delivery_method": "download",
        "delivery_config": {"folder": str(folder)}, "allowances": HERE,
    }  # fmt: skip
    since = changes.pop("since", datetime(2026, 6, 15, tzinfo=UTC))
    with database.connect() as db:
        made, _ = add_export(db, **values | changes)
        db.execute("UPDATE app.scheduled_exports SET due_since = %s WHERE id = %s", [since, made.id])
    return made


def planned(database: Database, export: ScheduledExport, now: datetime = DUE) -> list[ExportRun]:
    """Everything that has come due until then."""
    with database.connect() as db:
        plan_due(db, export.id, now)
        return runs(database, export)


def runs(database: Database, export: ScheduledExport) -> list[ExportRun]:
    with database.connect() as db:
        return read_runs(db, "r.export_id = %(id)s", id=export.id)


def history(database: Database, run: ExportRun) -> list[str]:
    with database.connect() as db:
        rows = db.execute("SELECT attempt, event FROM app.export_attempts WHERE run_id = %s ORDER BY id", [run.id])
        return [f"{row['attempt']} {row['event']}" for row in rows]


def received(folder: Path) -> dict[str, dict[str, Any]]:
    """What lies in a folder of deliveries: whole exports with their manifests, by path. Fails for one that is not whole."""
    found = {}
    for manifest in sorted(folder.rglob("*.manifest.json")):
        file = manifest.with_name(manifest.name.removesuffix(".manifest.json"))
        verify(file)
        found[str(file.relative_to(folder))] = json.loads(manifest.read_text())
    return found
