"""Correction 31: many connections against one limit never pass it, and are never refused while room is left."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.quota_data import quota
from tests.warehouse_data import connection, one, rows
from tokentra_dagster.quotas import Request, release, reserve, settle
from tokentra_dagster.warehouse.database import Database

CONNECTIONS = 16


def all_at_once(
    database: Database, work: Callable[[psycopg.Connection[Any], int], Any], connections: int = CONNECTIONS
) -> list[Any]:
    """What each connection's `work(db, number)` gives; they begin together."""
    together = threading.Barrier(connections)

    def run(number: int) -> Any:
        with database.connect(autocommit=True) as db:
            db.execute("SET deadlock_timeout = '50ms'")
            together.wait()
            return work(db, number)

    with ThreadPoolExecutor(connections) as pool:
        return list(pool.map(run, range(connections)))


def specification_check(db: psycopg.Connection[Any], org_id: UUID, tokens: int) -> bool:
    """`checkQuotaBeforeRequest` of section 8, for one quota with a token limit: reads current_tokens and compares."""
    row = db.execute("SELECT current_tokens, token_limit FROM usage_quotas WHERE org_id = %s AND is_active", [org_id]).fetchone()
    return (row["current_tokens"] + tokens) / row["token_limit"] * 100 < 100


def test_two_requests_at_once_both_pass_the_specifications_check_and_only_one_of_ours(database):
    org = connection(database).org_id
    made = quota(database, org, enforcement_mode="block", token_limit=100)
    with database.connect(autocommit=True) as one_client, database.connect(autocommit=True) as another:
        assert [specification_check(db, org, 60) for db in (one_client, another)] == [True, True]
        for db in (one_client, another):
            db.execute("UPDATE usage_quotas SET current_tokens = current_tokens + 60 WHERE id = %s", [made])
        assert one(database, "SELECT current_tokens FROM usage_quotas") == 120, "the limit of 100 is passed"
    passed = all_at_once(database, lambda db, _: reserve(db, Request(org, tokens=60)).decision.allowed, 2)
    assert sorted(passed) == [False, True]
    assert one(database, "SELECT reserved_tokens FROM quota_counters") == 60


def test_many_connections_fill_a_limit_exactly(database):
    """16 connections ask for 30 each of a limit that has room for 200 requests: 200 pass, whoever is first."""
    org = connection(database).org_id
    quota(database, org, enforcement_mode="block", token_limit=1999, request_limit=200)

    def fill(db: psycopg.Connection[Any], number: int) -> int:
        return sum(reserve(db, Request(org, tokens=9 + number % 2)).decision.allowed for _ in range(30))

    passed = all_at_once(database, fill)
    counter = rows(database, "SELECT reserved_tokens, reserved_requests FROM quota_counters")[0]
    assert sum(passed) == counter["reserved_requests"] <= 200 and counter["reserved_tokens"] <= 1999
    assert counter["reserved_requests"] == 200 or counter["reserved_tokens"] >= 1999 - 8, "nobody was refused while room was left"
    assert one(database, "SELECT sum(tokens)::bigint FROM quota_holds") == counter["reserved_tokens"]


def test_settling_and_releasing_beside_it_keeps_the_limit_and_gives_all_room_back(database):
    """At no time are more than 20 requests open; in the end what is used is what was settled."""
    org = connection(database).org_id
    quota(database, org, enforcement_mode="throttle", request_limit=20, token_limit=10**9)
    seen: list[int] = []
    settled: list[int] = []

    def work(db: psycopg.Connection[Any], number: int) -> None:
        generator = random.Random(number)
        for _ in range(25):
            held = reserve(db, Request(org, tokens=1000, requests=2))
            seen.append(db.execute("SELECT reserved_requests + used_requests AS n FROM quota_counters").fetchone()["n"])
            if held.id and generator.random() < 0.9:
                release(db, held.id)
            elif held.id:
                tokens = generator.randrange(2000)
                settle(db, held.id, tokens=tokens, requests=0)
                settled.append(tokens)

    all_at_once(database, work)
    assert max(seen) <= 20 and max(seen) > 2, "they did overlap"
    assert rows(database, "SELECT used_tokens, used_requests, reserved_tokens, reserved_requests FROM quota_counters") == [
        {"used_tokens": sum(settled), "used_requests": 0, "reserved_tokens": 0, "reserved_requests": 0}
    ]
    assert one(database, "SELECT sum(tokens)::bigint FROM quota_settled") == sum(settled)
    assert rows(database, "SELECT * FROM quota_holds") == []


def test_several_quotas_at_once_never_deadlock_and_are_taken_together_or_not_at_all(database):
    """Users and features in every combination beside one for all; counters begin while others wait for them, and are rebuilt."""
    org = connection(database).org_id
    quota(database, org, "all", enforcement_mode="block", request_limit=150)
    for name in ("ann", "bob", "cid"):
        quota(database, org, name, scope_type="user", user_identifier=name, enforcement_mode="block", request_limit=60)
    for name in ("chat", "mail", "code"):
        quota(database, org, name, scope_type="feature", feature=name, enforcement_mode="throttle", request_limit=60)

    def work(db: psycopg.Connection[Any], number: int) -> int:
        generator = random.Random(number)
        passed = 0
        for turn in range(20):
            request = Request(
                org,
                tokens=1,
                user_identifier=generator.choice(["ann", "bob", "cid"]),
                feature=generator.choice(["chat", "mail", "code"]),
            )
            held = reserve(db, request)
            passed += held.decision.allowed
            if held.id and generator.random() < 0.5:
                settle(db, held.id, tokens=3)
            if number == 0 and turn % 5 == 0:
                db.execute("SELECT rebuild_quota_counters()")
        return passed

    passed = sum(all_at_once(database, work))
    counted = {
        row["name"]: row["n"]
        for row in rows(
            database,
            "SELECT q.name, c.used_requests + c.reserved_requests AS n FROM quota_counters AS c JOIN usage_quotas AS q ON q.id = c.quota_id",
        )
    }
    assert counted["all"] == passed <= 150
    assert counted["ann"] + counted["bob"] + counted["cid"] == counted["chat"] + counted["mail"] + counted["code"] == passed
    assert max(n for name, n in counted.items() if name != "all") <= 60
    assert passed == 150 or max(n for name, n in counted.items() if name != "all") == 60


def test_one_key_from_many_connections_is_one_reservation(database):
    org = connection(database).org_id
    quota(database, org, enforcement_mode="block", request_limit=5)
    ids = all_at_once(database, lambda db, number: reserve(db, Request(org, tokens=1), idempotency_key=f"k{number % 4}").id)
    assert len(set(ids)) == 4 and None not in ids
    assert one(database, "SELECT reserved_requests FROM quota_counters") == 4


def test_one_reservation_settled_by_many_connections_counts_once(database):
    org = connection(database).org_id
    quota(database, org)
    with database.connect(autocommit=True) as db:
        held = reserve(db, Request(org, tokens=10)).id
    assert sum(all_at_once(database, lambda db, _: settle(db, held, tokens=7).changed)) == 1
    assert rows(database, "SELECT used_tokens, reserved_tokens FROM quota_counters") == [{"used_tokens": 7, "reserved_tokens": 0}]


@pytest.mark.parametrize(("quicker", "allowed", "warned"), [(50, True, 0), (70, True, 1), (90, False, 0)])
def test_who_finds_that_somebody_was_quicker_gives_back_what_it_took_and_is_judged_anew(database, quicker, allowed, warned):
    """20 of a team's and ann's limit of 100, which was free when it was looked at; meanwhile ann uses 50, 70 or 90."""
    org = connection(database).org_id
    with database.connect() as db:
        team = db.execute("INSERT INTO teams (org_id, name) VALUES (%s, 't') RETURNING id", [org]).fetchone()["id"]
    of_team, of_ann = UUID(int=1), UUID(int=2)  # in this order they are taken
    quota(database, org, "team", id=of_team, scope_type="team", team_id=team, enforcement_mode="block", token_limit=100)
    quota(database, org, "ann", id=of_ann, scope_type="user", user_identifier="ann", enforcement_mode="block", token_limit=100)
    both = Request(org, tokens=20, team_id=team, user_identifier="ann")
    with database.connect(autocommit=True) as db:
        release(db, reserve(db, both).id)  # the counters are there
    with database.connect() as first, database.connect(autocommit=True) as second, ThreadPoolExecutor(1) as pool:
        first.execute("SELECT * FROM reserve_quota(%s, p_user_identifier => 'ann', p_estimated_tokens => %s)", [org, quicker])
        waits = pool.submit(reserve, second, both)
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
        while not one(database, waiting, second.info.backend_pid):
            assert not waits.done()
        first.commit()
        answer = waits.result(30)
    assert (answer.decision.allowed, len(answer.decision.warnings)) == (allowed, warned)
    taken = 20 if allowed else 0
    counters = "SELECT quota_id, reserved_tokens, reserved_requests FROM quota_counters ORDER BY quota_id"
    assert rows(database, counters) == [
        {"quota_id": of_team, "reserved_tokens": taken, "reserved_requests": taken // 20},
        {"quota_id": of_ann, "reserved_tokens": quicker + taken, "reserved_requests": 1 + taken // 20},
    ]
    assert rows(database, "SELECT quota_id, sum(tokens)::int AS n FROM quota_holds GROUP BY quota_id ORDER BY quota_id") == [
        {"quota_id": row["quota_id"], "n": row["reserved_tokens"]} for row in rows(database, counters) if row["reserved_tokens"]
    ]
    assert one(database, "SELECT count(*) FROM quota_reservations WHERE state = 'open'") == (2 if allowed else 1)
