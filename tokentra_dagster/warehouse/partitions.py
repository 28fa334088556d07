"""Monthly partitions of `raw.usage_records`: made before a load needs them (correction 2).

A month's table is filled with what the default partition already holds of it and then attached, which does not block
readers of the other months, as `CREATE TABLE ... PARTITION OF` would.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import sql

PARTITION_LOCK = 7_265_002


def months(start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime]]:
    """The UTC months that `[start, end)` touches, as `[first, next first)`."""
    first = datetime(start.astimezone(UTC).year, start.astimezone(UTC).month, 1, tzinfo=UTC)
    while first < end:
        following = datetime(first.year + first.month // 12, first.month % 12 + 1, 1, tzinfo=UTC)
        yield first, following
        first = following


def partition_name(month: datetime) -> str:
    """As in the specification: `usage_records_y2025m01`."""
    return f"usage_records_y{month.year:04d}m{month.month:02d}"


def partition_month(name: str) -> datetime | None:
    """The first moment of the month that a partition of this name holds; None for any other table."""
    found = re.fullmatch(r"usage_records_y(\d{4})m(\d{2})", name)
    return datetime(int(found[1]), int(found[2]), 1, tzinfo=UTC) if found else None


def ensure_partitions(connection: psycopg.Connection[Any], start: datetime, end: datetime) -> list[str]:
    """Make the partitions that `[start, end)` needs; returns the names of new ones. Commits."""
    made: list[str] = []
    for month, following in months(start, end):
        name = partition_name(month)
        with connection.transaction():
            if _exists(connection, name):
                continue
            connection.execute("SELECT pg_advisory_xact_lock(%s)", [PARTITION_LOCK])
            if _exists(connection, name):
                continue
            _make(connection, name, month, following)
            made.append(name)
    connection.commit()
    return made


def _exists(connection: psycopg.Connection[Any], name: str) -> bool:
    """By the catalogue: `to_regclass` would repeat from its cache, after the wait for the lock, that the table is missing."""
    query = "SELECT FROM pg_catalog.pg_class WHERE relnamespace = 'raw'::regnamespace AND relname = %s"
    return connection.execute(query, [name]).fetchone() is not None


def _make(connection: psycopg.Connection[Any], name: str, month: datetime, following: datetime) -> None:
    table = sql.Identifier("raw", name)
    bounds = sql.SQL("timestamp >= {} AND timestamp < {}").format(sql.Literal(month), sql.Literal(following))
    run = connection.execute
    run(sql.SQL("CREATE TABLE {} (LIKE raw.usage_records INCLUDING ALL)").format(table))
    if run(sql.SQL("SELECT EXISTS (SELECT FROM raw.usage_records_default WHERE {}) AS found").format(bounds)).fetchone()["found"]:  # type: ignore[index]
        run("LOCK TABLE raw.usage_records_default IN ACCESS EXCLUSIVE MODE")
        names = sql.SQL(", ").join(map(sql.Identifier, _stored_columns(connection)))
        run(
            sql.SQL(
                "WITH moved AS (DELETE FROM raw.usage_records_default WHERE {} RETURNING *) INSERT INTO {} ({}) SELECT {} FROM moved"
            ).format(bounds, table, names, names)
        )
    run(sql.SQL("ALTER TABLE {} ADD CONSTRAINT in_month CHECK ({})").format(table, bounds))
    run(
        sql.SQL("ALTER TABLE raw.usage_records ATTACH PARTITION {} FOR VALUES FROM ({}) TO ({})").format(
            table, sql.Literal(month), sql.Literal(following)
        )
    )
    run(sql.SQL("ALTER TABLE {} DROP CONSTRAINT in_month").format(table))


def _stored_columns(connection: psycopg.Connection[Any]) -> list[str]:
    rows = connection.execute(
        "SELECT column_name FROM information_schema.columns "
        "WHERE table_schema = 'raw' AND table_name = 'usage_records' AND is_generated = 'NEVER' ORDER BY ordinal_position"
    )
    return [row["column_name"] for row in rows]
