"""Work that one process at a time may do, whichever machine it runs on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tokentra_dagster.warehouse.directory import Connection


@contextmanager
def only_one(db: Connection, work: str) -> Iterator[bool]:
    """Whether the work of this name is ours; it is nobody else's meanwhile. Never waits, and a process that dies lets go."""
    key = [f"tokentra {work}"]
    row = db.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0)) AS ours", key).fetchone()
    ours = bool(row and row["ours"])
    try:
        yield ours
    finally:
        if ours and not db.broken:
            db.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", key)
