"""Which source counts (correction 11): changing it changes totals, so it is logged as a change of all that it touches."""

from __future__ import annotations

from uuid import UUID

from tokentra_dagster.ingest.load import log_change
from tokentra_dagster.warehouse.directory import Connection


def set_authority(db: Connection, org_id: UUID, provider: str, source: str) -> bool:
    """Make `source` the one that counts for the organisation and provider. True when the rollups must be rebuilt. Commits."""
    with db.transaction():
        before = db.execute(
            "SELECT source FROM app.source_authorities WHERE org_id = %s AND provider = %s", [org_id, provider]
        ).fetchone()
        db.execute(
            "INSERT INTO app.source_authorities (org_id, provider, source) VALUES (%s, %s, %s) "
            "ON CONFLICT (org_id, provider) DO UPDATE SET source = excluded.source",
            [org_id, provider, source],
        )
        if before and before["source"] == source:
            return False
        return log_all_usage(db, org_id, provider, "authority")


def log_all_usage(db: Connection, org_id: UUID, provider: str, reason: str) -> bool:
    """Log the whole span of an organisation's usage of a provider as changed; False when there is none."""
    spans = db.execute(
        """
        SELECT c.id, min(first.timestamp) AS start, max(last.bucket_end) AS "end"
        FROM app.provider_connections AS c
        CROSS JOIN LATERAL (SELECT timestamp FROM raw.usage_records WHERE provider_connection_id = c.id ORDER BY timestamp LIMIT 1) AS first
        CROSS JOIN LATERAL (SELECT bucket_end FROM raw.usage_records WHERE provider_connection_id = c.id ORDER BY timestamp DESC LIMIT 1) AS last
        WHERE c.org_id = %s AND c.provider = %s GROUP BY c.id
        """,
        [org_id, provider],
    ).fetchall()
    for span in spans:
        log_change(
            db, org_id=org_id, provider=provider, connection_id=span["id"], windows=[(span["start"], span["end"])], reason=reason
        )
    return bool(spans)
