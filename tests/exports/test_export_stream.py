"""Rows as they stream from the server: blocks, types, pseudonyms (correction 38, issue 6.7)."""

from __future__ import annotations

import hashlib
import threading
import time
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest

from tests.exports.export_rows import batch_of, rows_of
from tokentra_dagster.errors import PermanentError, TokenTraError
from tokentra_dagster.exports.columns import BUCKETS, DIMENSION_COLUMNS, METRIC_COLUMNS
from tokentra_dagster.exports.pseudonyms import order_salt, pseudonym, pseudonymised, read_key
from tokentra_dagster.exports.stream import Blocks, parse, stream
from tokentra_dagster.warehouse.database import Database

COLUMNS = [BUCKETS["hour"], DIMENSION_COLUMNS["feature"][0], METRIC_COLUMNS["total_tokens"], METRIC_COLUMNS["estimated_cost"]]


def test_a_block_ends_with_a_row_and_none_is_lost():
    rows = [f"{n},{'x' * n}\n".encode() for n in range(500)]
    blocks, found = Blocks(size=1000), list[list[bytes]]()
    reader = threading.Thread(target=lambda: found.extend(blocks))
    reader.start()
    for row in rows:
        blocks.write(row)
    blocks.end(None)
    reader.join()
    assert [row for block in found for row in block] == rows
    assert max(sum(map(len, block)) for block in found) < 1000 + 505 and len(found) > 100


def test_what_the_server_copies_keeps_its_types_and_what_is_unknown(database: Database):
    statement = """VALUES
        ('2026-06-01 13:00Z'::TIMESTAMPTZ, 'a,"b"' || chr(10) || 'c', 9007199254740993, 1234567890123.000000000001),
        ('2026-06-01 14:00Z', NULL, NULL, NULL), ('2026-06-01 15:00Z', '', 0, 0), ('2026-06-01 16:00Z', 'NULL', -1, -0.5)"""
    (batch,) = stream(database, statement, COLUMNS)
    hours = [datetime(2026, 6, 1, hour, tzinfo=UTC) for hour in (13, 14, 15, 16)]
    assert [tuple(row.values()) for row in batch.to_pylist()] == [
        (hours[0], 'a,"b"\nc', 2**53 + 1, Decimal("1234567890123.000000000001")), (hours[1], None, None, None),
        (hours[2], "", 0, Decimal(0)), (hours[3], "NULL", -1, Decimal("-0.5")),
    ]  # fmt: skip


def sessions(database: Database) -> int:
    with database.connect() as db:
        row = db.execute(
            "SELECT count(*) AS sessions FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'tokentra export'"
        ).fetchone()
    assert row is not None
    return row["sessions"]


def test_a_reader_that_stops_early_stops_the_query_too(database: Database):
    endless = "SELECT '2026-06-01Z'::TIMESTAMPTZ, 'f', generate_series(1, 1000000000000), 0.5"
    batches, began = stream(database, endless, COLUMNS, size=10_000), time.monotonic()
    assert next(batches).num_rows > 0 and sessions(database) == 1
    batches.close()
    while sessions(database) and time.monotonic() - began < 30:
        time.sleep(0.05)
    assert sessions(database) == 0


def test_a_query_that_fails_midway_is_one_sentence_and_not_a_short_file(database: Database):
    broken = "SELECT '2026-06-01Z'::TIMESTAMPTZ, 'f', n, 1 / (50000 - n) FROM generate_series(1, 60000) AS n"
    with pytest.raises(TokenTraError, match=r"The export broke off: division by zero\. Try again\."):
        list(stream(database, broken, COLUMNS, size=10_000))


def test_rows_are_of_the_snapshot_that_the_caller_sees(database: Database):
    rows = "SELECT '2026-06-01Z'::TIMESTAMPTZ, name, 1, 0.5 FROM app.organizations"
    with database.connect() as db:
        db.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        exported = db.execute("SELECT pg_export_snapshot() AS snapshot").fetchone()
        assert exported is not None
        with database.connect() as other:
            other.execute("INSERT INTO app.organizations (name) VALUES ('later')")
        assert list(stream(database, rows, COLUMNS, exported["snapshot"])) == []
    (batch,) = stream(database, rows, COLUMNS)
    assert batch.column(1).to_pylist() == ["later"]


def test_a_row_of_nothing_known_is_a_row():
    assert parse(b"2026-06-01\n\n", [BUCKETS["day"]]).column(0).to_pylist() == [date(2026, 6, 1), None]


def test_no_row_is_cut_off_where_the_specification_stops_silently(database: Database):
    """Correction 38: `.limit(n)` of section 12.1 with n = 1,000,000, here 100,000; as many rows as there are come out of the stream."""
    wanted, limit = 120_000, 100_000
    rows = "SELECT '2026-06-01Z'::TIMESTAMPTZ, 'f', n, 0.5 FROM generate_series(1, %d) AS n"
    with database.connect() as db:
        specifications_way = db.execute(
            f"SELECT count(*) AS rows FROM ({rows % wanted} LIMIT {limit}) AS cut".encode()
        ).fetchone()
    sizes, total = [], 0
    for batch in stream(database, rows % wanted, COLUMNS, size=100_000):
        sizes.append(batch.num_rows)
        total += sum(batch.column(2).to_pylist())
    assert specifications_way == {"rows": limit}
    assert sum(sizes) == wanted and total == wanted * (wanted + 1) // 2
    assert max(sizes) < wanted / 10, "memory holds a batch, not the export"


def test_a_pseudonym_is_stable_and_needs_the_key():
    ours, theirs = b"a long secret of ours", b"a long secret of others"
    assert pseudonym(ours, "ann") == pseudonym(ours, "ann") != pseudonym(ours, "bob")
    assert pseudonym(ours, "ann") != pseudonym(theirs, "ann")
    # RFC 4231, test case 2: whoever has the key can compute the same elsewhere.
    expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    assert pseudonym(b"Jefe", "what do ya want for nothing?") == expected
    # A list of users and no key leads nowhere: neither their hashes nor those under a guessed key are among the pseudonyms.
    users = [f"user-{n}@acme.test" for n in range(1000)]
    shown = {pseudonym(ours, user) for user in users}
    guesses = {hashlib.sha256(user.encode()).hexdigest() for user in users} | {pseudonym(b"", user) for user in users}
    assert len(shown) == 1000 and not shown & guesses and order_salt(ours) not in shown


def test_unknown_users_stay_unknown_among_pseudonyms():
    column = batch_of(rows_of(["ann", None, "bob", "ann"])).column(1)
    ann, bob = pseudonym(b"k", "ann"), pseudonym(b"k", "bob")
    assert pseudonymised(column, b"k").to_pylist() == [ann, None, bob, ann]


def test_the_key_is_read_where_the_reference_points_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EXPORT_KEY", "sixteen or longer")
    (tmp_path / "key").write_text("another long secret\n")
    (tmp_path / "short").write_text("hunter2")
    assert read_key("env:EXPORT_KEY") == b"sixteen or longer" and read_key(f"file:{tmp_path / 'key'}") == b"another long secret"
    for reference in ("env:EXPORT_KEY_NOT_SET", f"file:{tmp_path / 'none'}", f"file:{tmp_path / 'short'}"):
        with pytest.raises(PermanentError, match=r"cannot be read|shorter than 16 characters") as error:
            read_key(reference)
        assert reference in str(error.value) and "hunter2" not in str(error.value)
