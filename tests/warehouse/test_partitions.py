"""Partitions are made as needed; a record never fails for want of one (correction 2)."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import psycopg
import pytest

from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.partitions import PARTITION_LOCK, ensure_partitions, months

INSERT = """
INSERT INTO raw.usage_records (org_id, provider_connection_id, provider, source, timestamp, bucket_start, bucket_end, granularity, model, input_tokens)
VALUES (gen_random_uuid(), gen_random_uuid(), 'openai', 'file', %(at)s, %(at)s, %(at)s + interval '1 hour', '1h', 'gpt-4o', 7)
"""


def test_months_end_at_the_year_and_an_end_on_the_first_takes_no_further_month() -> None:
    found = [
        (a.strftime("%Y-%m"), b.strftime("%Y-%m"))
        for a, b in months(datetime(2025, 11, 30, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC))
    ]
    assert found == [("2025-11", "2025-12"), ("2025-12", "2026-01"), ("2026-01", "2026-02")]


def test_a_record_of_a_month_nobody_prepared_is_kept_and_moves_into_its_partition_later(database: Database) -> None:
    with database.connect() as db:
        db.execute(INSERT, {"at": datetime(2031, 5, 17, 3, tzinfo=UTC)})
        db.commit()
        assert db.execute("SELECT count(*) AS n FROM raw.usage_records_default").fetchone() == {"n": 1}
        made = ensure_partitions(db, datetime(2031, 5, 1, tzinfo=UTC), datetime(2031, 5, 2, tzinfo=UTC))
        assert made == ["usage_records_y2031m05"]
        assert ensure_partitions(db, datetime(2031, 5, 1, tzinfo=UTC), datetime(2031, 6, 1, tzinfo=UTC)) == []
        assert db.execute("SELECT count(*) AS n FROM raw.usage_records_default").fetchone() == {"n": 0}
        assert db.execute("SELECT input_tokens, tableoid::regclass::text AS home FROM raw.usage_records").fetchone() == {
            "input_tokens": 7, "home": "usage_records_y2031m05",
        }  # fmt: skip


def test_who_waits_for_another_to_make_a_month_sees_that_it_is_made(database: Database) -> None:
    """PostgreSQL caches that a table is missing: a wait for an advisory lock does not make it look again, a catalogue query does."""
    may = datetime(2031, 5, 1, tzinfo=UTC), datetime(2031, 5, 2, tzinfo=UTC)
    with database.connect() as holder, database.connect() as waiter, ThreadPoolExecutor(1) as thread:
        holder.execute("SELECT pg_advisory_xact_lock(%s)", [PARTITION_LOCK])
        made = thread.submit(ensure_partitions, waiter, *may)
        waiting = "SELECT count(*) AS n FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        deadline = time.monotonic() + 20
        while holder.execute(waiting).fetchone() == {"n": 0}:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert ensure_partitions(holder, *may) == ["usage_records_y2031m05"]
        assert made.result(20) == []


def test_the_specifications_names_work_with_the_default_search_path(database: Database) -> None:
    import psycopg

    with psycopg.connect(database.url) as plain:
        assert plain.execute("SELECT count(*) FROM usage_records").fetchone() == (0,)
        assert plain.execute("SELECT count(*) FROM usage_quotas").fetchone() == (0,)


def test_the_key_holds_the_partition_column_and_no_index_asks_what_time_it_is(database: Database) -> None:
    """Correction 1: PostgreSQL refuses both of the specification's ways; ours are there."""
    partitioned = "CREATE TABLE {} (id UUID PRIMARY KEY, timestamp TIMESTAMPTZ NOT NULL) PARTITION BY RANGE (timestamp)"
    with database.connect(autocommit=True) as db:
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="partition"):
            db.execute(partitioned.format("theirs"))
        with pytest.raises(psycopg.errors.InvalidObjectDefinition, match="IMMUTABLE"):
            db.execute("CREATE INDEX recent ON raw.usage_records (org_id) WHERE timestamp > now() - interval '7 days'")
        row = db.execute(
            "SELECT i.indkey::INT[] @> ARRAY[a.attnum::INT] AS holds FROM pg_index AS i "
            "JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attname = 'timestamp' "
            "WHERE i.indrelid = 'raw.usage_records'::regclass AND i.indisprimary"
        ).fetchone()
        assert row == {"holds": True}
