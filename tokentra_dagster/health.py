"""The doctor: what is wrong with this installation, in sentences. Reads only; asks each active connection one cheap question."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tokentra_dagster.errors import TokenTraError
from tokentra_dagster.settings import Settings
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import Connection, ConnectionRow, connections
from tokentra_dagster.warehouse.embedded import EmbeddedServer
from tokentra_dagster.warehouse.migrate import current, head


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: is it well, and what to know or do."""

    check: str
    ok: bool
    says: str


def examine(settings: Settings) -> list[Finding]:
    """Every finding, in the order in which to repair them. Starts nothing."""
    url = settings.database_url or EmbeddedServer(settings.home, settings.database_port).url()
    if url is None:
        return [Finding("database", False, "the embedded server does not run; start it with `tokentra db start`")]
    database = Database(url)
    try:
        with database.connect() as db:
            found = [Finding("database", True, f"PostgreSQL {db.info.server_version // 10000} at {database.public_address}")]
            at = current(database)
            if at != head():
                return [*found, Finding("migrations", False, f"at {at}, newest is {head()}; run `tokentra db migrate`")]
            return [*found, Finding("migrations", True, f"at {at}"), *_contents(db)]
    except TokenTraError as error:
        return [Finding("database", False, str(error))]


def _contents(db: Connection) -> Iterator[Finding]:
    rows = connections(db, active_only=True, asked=True)
    if not rows:
        yield Finding("connections", True, "none yet; add one with `tokentra connection add`")
    with ThreadPoolExecutor(8) as pool:
        yield from pool.map(_key, rows)
    for row in db.execute(
        "SELECT DISTINCT ON (h.provider_connection_id) o.name || '/' || c.name AS label, h.status, h.error, h.window_end FROM raw.sync_history AS h "
        "JOIN app.provider_connections AS c ON c.id = h.provider_connection_id AND c.is_active JOIN app.organizations AS o ON o.id = c.org_id "
        "ORDER BY h.provider_connection_id, h.started_at DESC"
    ):
        good = row["status"] != "failed"
        yield Finding(
            f"last sync of {row['label']}",
            good,
            f"{row['status']}, to {row['window_end']:%Y-%m-%d %H:%M} UTC" if good else row["error"],
        )
    stray = db.execute("SELECT count(*) AS n FROM raw.usage_records_default").fetchone()
    assert stray is not None
    yield Finding(
        "partitions",
        True,
        f"{stray['n']} records wait in the default partition" if stray["n"] else "every record is in its month",
    )
    yield _rollups(db)


def _key(row: ConnectionRow) -> Finding:
    from tokentra_dagster.ingest.sync import source_of

    try:
        return Finding(f"connection {row.label}", True, source_of(row).check())
    except TokenTraError as error:
        return Finding(f"connection {row.label}", False, str(error))


def _rollups(db: Connection) -> Finding:
    row = db.execute(
        "SELECT (SELECT max(change_number) FROM raw.usage_changes) AS newest, min(change_number) AS built FROM raw.model_progress"
    ).fetchone()
    assert row is not None
    if row["newest"] is None:
        return Finding("rollups", True, "nothing is loaded yet")
    behind = row["newest"] - (row["built"] or 0)
    return Finding("rollups", behind == 0, "up to date" if behind == 0 else f"{behind} changes behind; run `tokentra build`")
