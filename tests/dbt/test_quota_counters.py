"""Counters are a cache: usage corrects them, and what was settled and is not in usage yet is neither lost nor counted twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import psycopg
import pytest

from tests.dbt.conftest import MODELS_ONLY
from tests.quota_data import quota
from tests.warehouse_data import DAY, HOUR, connection, load, record, rows
from tokentra_dagster.quotas import Request, check, reserve, settle
from tokentra_dagster.quotas.counters import rebuild_counters
from tokentra_dagster.warehouse.access import grant_reader, reader_role, revoke_reader
from tokentra_dagster.warehouse.database import Database

MODELS = "+quota_usage_history +quota_status"
MINUTE = timedelta(minutes=1)
NO_RESTATEMENTS, THREE_DAYS = timedelta(0), timedelta(days=3)


@contextmanager
def at(database: Database, moment: datetime) -> Iterator[psycopg.Connection[Any]]:
    with database.connect(autocommit=True) as db:
        db.execute("SELECT set_config('tokentra.moment', %s, false)", [moment.isoformat()])
        yield db


def used(database: Database, moment: datetime, org: UUID, **settled: Any) -> None:
    """Reserve and settle this as of the moment."""
    with at(database, moment) as db:
        assert settle(db, reserve(db, Request(org, tokens=0)).id, **settled).changed


def rebuilt(database: Database, moment: datetime, measure: str = "tokens") -> tuple[int, int, int]:
    """(counted before, counted now, in usage) of the one quota."""
    with at(database, moment) as db:
        found = [row for row in db.execute("SELECT * FROM rebuild_quota_counters()").fetchall() if row["measure"] == measure]
    (row,) = found
    assert row["difference"] == row["counted"] - row["counted_before"]
    return row["counted_before"], row["counted"], row["in_usage"]


@pytest.fixture
def row(database: Database) -> Any:
    row = connection(database)
    quota(database, row.org_id, enforcement_mode="block", token_limit=10000, request_limit=100)
    return row


def hours(tokens: dict[int, int], **fields: Any) -> list:
    return [record(DAY + n * HOUR, input_tokens=count, output_tokens=0, **fields) for n, count in tokens.items()]


def test_the_first_reservation_of_a_period_knows_what_was_used_before(database, build, row):
    load(database, row, hours({-1: 7, 1: 500, 2: 400}), DAY - HOUR, DAY + 3 * HOUR)
    build(*MODELS_ONLY)
    with at(database, DAY + 3 * HOUR) as db:
        assert check(db, Request(row.org_id, tokens=9100)).allowed and not check(db, Request(row.org_id, tokens=9101)).allowed
        assert not reserve(db, Request(row.org_id, tokens=9101)).id
        (violation,) = reserve(db, Request(row.org_id, tokens=9101)).decision.violations
        assert violation.current_usage == 900
        assert reserve(db, Request(row.org_id, tokens=9100)).id


def test_what_was_settled_counts_until_usage_covers_it_and_never_twice(database, build, row):
    used(database, DAY + HOUR + 10 * MINUTE, row.org_id, tokens=300)
    used(database, DAY + 2 * HOUR + 30 * MINUTE, row.org_id, tokens=50)
    assert rebuilt(database, DAY + 3 * HOUR) == (350, 350, 0), "no usage at all yet"
    load(database, row, hours({1: 310}), DAY, DAY + 2 * HOUR)
    build(*MODELS_ONLY)
    assert rebuilt(database, DAY + 3 * HOUR) == (350, 360, 310), "usage of the first hour, the settlement of the second"
    load(database, row, hours({2: 55}), DAY + 2 * HOUR, DAY + 3 * HOUR)
    build(*MODELS_ONLY)
    assert rebuilt(database, DAY + 3 * HOUR) == (360, 365, 365)
    assert rebuilt(database, DAY + 3 * HOUR) == (365, 365, 365)


def test_usage_that_ends_inside_an_hour_leaves_what_was_settled_after_it(database, build, row):
    """500 of other clients until 10:20 and 300 of ours since: 800, and not the larger of the two."""
    used(database, DAY + 10 * HOUR + 5 * MINUTE, row.org_id, tokens=40)
    used(database, DAY + 10 * HOUR + 40 * MINUTE, row.org_id, tokens=300)
    load(database, row, hours({10: 500}), DAY, DAY + 11 * HOUR, now=DAY + 10 * HOUR + 20 * MINUTE)
    build(*MODELS_ONLY)
    assert rebuilt(database, DAY + 11 * HOUR) == (340, 800, 500)


def test_while_usage_may_still_change_the_larger_account_of_each_hour_counts(database, build, row):
    """Provisional hours: 1 is reported late (settled is larger), 2 has other clients too (usage is larger)."""
    used(database, DAY + HOUR + 10 * MINUTE, row.org_id, tokens=300)
    used(database, DAY + 2 * HOUR + 10 * MINUTE, row.org_id, tokens=100)
    load(database, row, hours({1: 120, 2: 700}), DAY, DAY + 4 * HOUR, now=DAY + 4 * HOUR, settles_after=THREE_DAYS)
    build(*MODELS_ONLY)
    assert rebuilt(database, DAY + 5 * HOUR) == (400, 1000, 820)
    load(database, row, hours({1: 280, 2: 700}), DAY, DAY + 4 * HOUR, settles_after=NO_RESTATEMENTS)
    build(*MODELS_ONLY)
    assert rebuilt(database, DAY + 5 * HOUR) == (1000, 980, 980), "final usage is right, also where it is less"


def test_restated_usage_corrects_counters_in_both_directions_and_the_difference_is_shown(database, build, row):
    used(database, DAY + 2 * HOUR, row.org_id, tokens=0)
    for tokens, expected in ((900, (0, 900, 900)), (1500, (900, 1500, 1500)), (200, (1500, 200, 200))):
        load(database, row, hours({1: tokens}), DAY, DAY + 3 * HOUR)
        build(*MODELS_ONLY)
        assert rebuilt(database, DAY + 4 * HOUR) == expected


def test_a_build_is_seen_by_the_next_reservation_even_if_nobody_rebuilt(database, build, row):
    """The counter knows which build it is of."""
    with at(database, DAY + 4 * HOUR) as db:
        held = reserve(db, Request(row.org_id, tokens=1000)).id
        load(database, row, hours({1: 9000}), DAY, DAY + 3 * HOUR)
        assert check(db, Request(row.org_id, tokens=9000)).allowed, "loaded, but not built"
        build(*MODELS_ONLY)
        assert not check(db, Request(row.org_id, tokens=1)).allowed
        assert not reserve(db, Request(row.org_id, tokens=1)).id
        settle(db, held, tokens=900)
        assert reserve(db, Request(row.org_id, tokens=100)).id
    assert rows(database, "SELECT used_tokens, reserved_tokens, usage_tokens, data_until FROM quota_counters") == [
        {"used_tokens": 9900, "reserved_tokens": 100, "usage_tokens": 9000, "data_until": DAY + 3 * HOUR}
    ]


def test_requests_that_no_source_counts_are_those_that_were_settled(database, build, row):
    used(database, DAY + HOUR, row.org_id, tokens=10, requests=60)
    load(database, row, hours({1: 900}, request_count=None), DAY, DAY + 3 * HOUR)
    build(*MODELS_ONLY)
    assert rebuilt(database, DAY + 4 * HOUR) == (10, 900, 900)
    with at(database, DAY + 4 * HOUR) as db:
        assert check(db, Request(row.org_id, tokens=0, requests=40)).allowed
        assert not check(db, Request(row.org_id, tokens=0, requests=41)).allowed


def test_a_day_that_a_source_reports_whole_is_held_against_all_that_was_settled_on_it(database, build, row):
    for hour in (3, 9, 15):
        used(database, DAY + hour * HOUR, row.org_id, tokens=100)
    load(
        database, row, [record(DAY, "1d", input_tokens=350, output_tokens=0)], DAY, DAY + 24 * HOUR, granularity="1d",
        now=DAY + 20 * HOUR, settles_after=THREE_DAYS,
    )  # fmt: skip
    build(*MODELS_ONLY)
    assert rebuilt(database, DAY + 20 * HOUR) == (300, 350, 350)


def test_open_reservations_survive_a_rebuild_and_expired_ones_do_not(database, build, row):
    with at(database, DAY + HOUR) as db:
        reserve(db, Request(row.org_id, tokens=100), expires_after=60)
        reserve(db, Request(row.org_id, tokens=10), expires_after=600)
    for seconds, reserved in ((59, 110), (60, 10), (600, 0)):
        rebuilt(database, DAY + HOUR + timedelta(seconds=seconds))
        assert rows(database, "SELECT reserved_tokens FROM quota_counters") == [{"reserved_tokens": reserved}]


def test_what_is_long_over_is_forgotten_and_an_unknown_quota_is_an_error(database, build, row):
    used(database, DAY + HOUR, row.org_id, tokens=100)
    with at(database, DAY + HOUR) as db:
        reserve(db, Request(row.org_id, tokens=5))
        used(database, DAY + 4 * 24 * HOUR, row.org_id, tokens=7)
    assert rebuilt(database, DAY + 4 * 24 * HOUR) == (7, 7, 0)
    tables = ("quota_counters", "quota_settled", "quota_reservations", "quota_holds")
    assert [len(rows(database, f"SELECT * FROM {table}")) for table in tables] == [1, 1, 1, 0]
    with database.connect() as db, pytest.raises(psycopg.errors.NoDataFound, match="no quota has the id 00000000"):
        db.execute("SELECT rebuild_quota_counters(%s)", [UUID(int=7)])


def test_the_python_call_lists_what_changed_first(database, build, row):
    with database.connect(autocommit=True) as db:
        settle(db, reserve(db, Request(row.org_id, tokens=0)).id, input_tokens=5, output_tokens=0)
        db.execute("UPDATE quota_counters SET used_tokens = 99")
    first, *others = rebuild_counters(database)
    assert (first.measure, first.counted_before, first.counted, first.difference, first.not_yet_in_usage) == (
        "tokens",
        99,
        5,
        -94,
        5,
    )
    assert {other.measure: (other.difference, other.counted) for other in others} == {
        "requests": (0, 1), "input_tokens": (0, 5), "output_tokens": (0, 0),
    }  # fmt: skip


def test_a_login_that_reserves_counts_usage_that_it_may_not_read_itself(database, build, row):
    """The first reservation after a build recounts with the owner's rights, whoever makes it."""
    now = datetime.now(UTC)
    hour = now.replace(minute=0, second=0, microsecond=0)
    load(database, row, [record(hour, input_tokens=9000, output_tokens=0)], hour, hour + HOUR, now=now)
    build(*MODELS_ONLY)
    with database.connect() as db:
        grant_reader(db, "gateway_dbt", organizations=["acme"], password="p", may_reserve=True)
        db.execute("REVOKE SELECT ON ALL TABLES IN SCHEMA marts, intermediate, raw FROM " + reader_role(db))
    parts = urlsplit(database.url)
    login = Database(f"postgresql://gateway_dbt:p@{parts.hostname}:{parts.port}{parts.path}")
    try:
        with login.connect(autocommit=True) as db:
            request = Request(row.org_id, tokens=1001)
            assert not check(db, request).allowed and not reserve(db, request).id
            assert reserve(db, Request(row.org_id, tokens=1000)).id
    finally:
        with database.connect() as db:
            revoke_reader(db, "gateway_dbt")
