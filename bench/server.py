"""A PostgreSQL of the benchmark's own, with an organisation, a connection and attribution rules; gone afterwards."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import ConnectionRow, add_connection, add_organization, add_rule, find_connection
from tokentra_dagster.warehouse.embedded import EmbeddedServer
from tokentra_dagster.warehouse.migrate import migrate


@contextmanager
def fresh_database() -> Iterator[Database]:
    """A migrated, empty database on a server that is stopped and removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="tokentra-bench-"))
    folder.chmod(0o755)
    server = EmbeddedServer(folder / "var")
    try:
        database = Database(server.start())
        migrate(database)
        yield database
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def bench_connection(database: Database) -> ConnectionRow:
    """One organisation's file connection, with a rule for each project and each fifth key."""
    with database.connect() as db:
        add_organization(db, "bench")
        add_connection(db, org="bench", name="requests", provider="openai", source="file")
        for number in range(8):
            add_rule(
                db,
                org="bench",
                match_field="project",
                match_value=f"proj_{number}",
                team=f"team-{number % 4}",
                project=f"project-{number}",
            )
        add_rule(db, org="bench", match_field="api_key", match_value="key_*5", feature="search", priority=200)
        return find_connection(db, "bench/requests")
