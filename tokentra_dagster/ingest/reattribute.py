"""Apply today's attribution rules to usage that is loaded already.

Each distinct combination of what rules look at is decided once, by the same code as at load time; only rows whose answer
differs are written. What a source itself said (files, gateways: `said`) is kept.
"""

from __future__ import annotations

from uuid import UUID

import pyarrow as pa

from tokentra_dagster.ingest.attribution import FILLED, KEY_COLUMNS
from tokentra_dagster.ingest.load import attribution_of, log_change
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import connections

_KEYS = "u.provider_project_id, u.api_key_id, u.user_ids[1] AS user_id, u.model"


def apply_rules(database: Database, org_id: UUID) -> dict[str, int]:
    """Re-attribute the organisation's usage; returns rows changed per connection label. One transaction per connection."""
    changed: dict[str, int] = {}
    with database.connect() as db:
        for connection in connections(db):
            if connection.org_id != org_id:
                continue
            attribution = attribution_of(db, connection)
            with db.transaction():
                combinations = db.execute(
                    f"SELECT DISTINCT {_KEYS} FROM raw.usage_records AS u WHERE u.provider_connection_id = %s", [connection.id]
                ).fetchall()
                keys = {name: pa.array([row[name] for row in combinations], pa.string()) for name in KEY_COLUMNS}
                answers = attribution.columns(keys)
                decided = zip(*(column.to_pylist() for column in (*keys.values(), *answers.values())), strict=True)
                changed[connection.label] = _write(db, connection, decided)
    return changed


def _write(db, connection, decided) -> int:  # type: ignore[no-untyped-def]
    db.execute(
        "CREATE TEMP TABLE decided (provider_project_id TEXT, api_key_id TEXT, user_id TEXT, model TEXT, "
        "team_id UUID, project_id UUID, cost_center_id UUID, feature TEXT, environment TEXT) ON COMMIT DROP"
    )
    with db.cursor().copy("COPY decided FROM STDIN") as copy:
        for row in decided:
            copy.write_row(row)
    new = {name: f"CASE WHEN u.said ? '{name}' THEN u.{name} ELSE d.{name} END" for name in FILLED}
    row = db.execute(
        f"""
        WITH written AS (
          UPDATE raw.usage_records AS u SET {", ".join(f"{name} = {value}" for name, value in new.items())}, updated_at = now()
          FROM decided AS d
          WHERE u.provider_connection_id = %s
            AND u.provider_project_id IS NOT DISTINCT FROM d.provider_project_id AND u.api_key_id IS NOT DISTINCT FROM d.api_key_id
            AND u.user_ids[1] IS NOT DISTINCT FROM d.user_id AND u.model = d.model
            AND ({", ".join(f"u.{name}" for name in FILLED)}) IS DISTINCT FROM ({", ".join(new.values())})
          RETURNING u.timestamp, u.bucket_end
        )
        SELECT count(*) AS rows, min(timestamp) AS start, max(bucket_end) AS "end" FROM written
        """,
        [connection.id],
    ).fetchone()
    db.execute("DROP TABLE decided")
    if row["rows"]:
        log_change(
            db, org_id=connection.org_id, provider=connection.provider, connection_id=connection.id,
            windows=[(row["start"], row["end"])], reason="attribution",
        )  # fmt: skip
    return int(row["rows"])
