"""Check and reserve on a real database: what is decided, for every scope, limit and period, and what settling does (issue 7)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.quota_calendar import period_of
from tests.quota_data import quota
from tests.warehouse_data import HOUR, connection, one, rows
from tokentra_dagster.errors import UsageError
from tokentra_dagster.quotas import QuotaRefused, Request, check, release, reserve, reserved, settle
from tokentra_dagster.quotas.reservations import RESERVE
from tokentra_dagster.warehouse.database import Database

NOON = datetime(2026, 6, 10, 12, 30, tzinfo=UTC)
MIDNIGHT = datetime(2026, 6, 11, tzinfo=UTC)


@pytest.fixture
def org(database: Database) -> UUID:
    return connection(database).org_id


@contextmanager
def at(database: Database, moment: datetime = NOON) -> Iterator[psycopg.Connection[Any]]:
    """The owner's session at that moment."""
    with database.connect(autocommit=True) as db:
        db.execute("SELECT set_config('tokentra.moment', %s, false)", [moment.isoformat()])
        yield db


def counted(database: Database, quota_id: UUID) -> list[tuple[int, int]]:
    """(used, reserved) tokens of each period's counter, in order."""
    found = rows(
        database, "SELECT used_tokens, reserved_tokens FROM quota_counters WHERE quota_id = %s ORDER BY period_start", quota_id
    )
    return [tuple(row.values()) for row in found]


def test_exactly_on_the_limit_passes_and_one_beyond_is_refused_with_the_figures(database, org):
    made = quota(database, org, enforcement_mode="block", token_limit=1000)
    with at(database) as db:
        assert reserve(db, Request(org, tokens=400)).decision.decision == "allowed"
        assert check(db, Request(org, tokens=600)).allowed and not check(db, Request(org, tokens=601)).allowed
        refused = reserve(db, Request(org, tokens=601))
        (violation,) = refused.decision.violations
        assert (violation.quota_id, violation.limit_type, violation.enforcement_mode) == (made, "tokens", "block")
        assert (violation.current_usage, violation.limit, violation.projected_usage) == (400, 1000, 1001)
        assert (refused.id, refused.decision.retry_after, refused.decision.applicable_quotas) == (None, None, (made,))
        assert refused.decision.reason == (
            "quota q allows 1000 tokens until 2026-06-11 00:00 UTC; 400 are used or reserved and the request needs 601"
        )
        assert reserve(db, Request(org, tokens=600)).id, "what was refused holds nothing"
        assert counted(database, made) == [(0, 1000)]
        assert reserve(db, Request(org, tokens=0)).id and not reserve(db, Request(org, tokens=1)).decision.allowed
    assert rows(database, "SELECT kind, count(*) AS n FROM quota_events GROUP BY kind") == [{"kind": "block", "n": 2}]


@pytest.mark.parametrize(
    ("limit", "fits", "beyond"),
    [
        ("token_limit", {"tokens": 100}, {"tokens": 101}),
        ("request_limit", {"tokens": 0, "requests": 100}, {"tokens": 0, "requests": 101}),
        ("input_token_limit", {"input_tokens": 100, "output_tokens": 900}, {"input_tokens": 101, "output_tokens": 0}),
        ("output_token_limit", {"input_tokens": 900, "output_tokens": 100}, {"input_tokens": 0, "output_tokens": 101}),
        ("input_token_limit", {"tokens": 1000, "output_tokens": 900}, {"tokens": 1000, "output_tokens": 899}),
        ("output_token_limit", {"tokens": 100}, {"tokens": 101}),
    ],
)
def test_each_of_the_four_limits_refuses_beyond_itself(database, org, limit, fits, beyond):
    """Correction 29. A part of the tokens that nobody knows may be all of them."""
    quota(database, org, enforcement_mode="block", **{limit: 100})
    with at(database) as db:
        assert not reserve(db, Request(org, **beyond)).decision.allowed
        assert reserve(db, Request(org, **fits)).decision.allowed


def test_each_limit_warns_at_its_thresholds(database, org):
    """Correction 29: the specification warns of tokens only, and at one threshold."""
    limits = {"token_limit": 1000, "request_limit": 1000, "input_token_limit": 1000, "output_token_limit": 1000}
    quota(database, org, enforcement_mode="block", **limits)
    with at(database) as db:
        for amount, level, threshold in ((799, None, None), (800, "warning", 80), (950, "critical", 95), (1000, "critical", 95)):
            parts = {"tokens": amount, "requests": amount, "input_tokens": amount}
            for part in ({**parts, "output_tokens": 0}, {"tokens": amount, "output_tokens": amount, "requests": 1}):
                said = check(db, Request(org, **part))
                assert said.allowed and {(w.level, w.threshold) for w in said.warnings} == (
                    {(level, threshold)} if level else set()
                )
        assert [w.limit_type for w in check(db, Request(org, tokens=800, requests=800)).warnings] == [
            "tokens", "requests", "input_tokens", "output_tokens",
        ]  # fmt: skip
        assert check(db, Request(org, tokens=950)).warnings[0].utilization_pct == 95.0


def test_every_scope_takes_its_own_requests_and_no_others(database, org):
    """Correction 28 before the request."""
    other = connection(database, org="globex").org_id
    with database.connect() as db:
        team = db.execute("INSERT INTO teams (org_id, name) VALUES (%s, 't') RETURNING id", [org]).fetchone()["id"]
        project = db.execute("INSERT INTO projects (org_id, name) VALUES (%s, 'p') RETURNING id", [org]).fetchone()["id"]
    scopes = {
        "team": {"team_id": team}, "project": {"project_id": project}, "user": {"user_identifier": "ann"},
        "api_key": {"api_key_id": "k1"}, "feature": {"feature": "chat"}, "organization": {},
    }  # fmt: skip
    made = {kind: quota(database, org, kind, scope_type=kind, **columns) for kind, columns in scopes.items()}
    paused = quota(database, org, "paused", is_active=False, enforcement_mode="block", token_limit=1)
    names = {identifier: kind for kind, identifier in made.items()}
    with at(database) as db:
        for kind, columns in scopes.items():
            said = reserve(db, Request(org, tokens=1, **columns)).decision
            assert {names[q] for q in said.applicable_quotas} == {kind, "organization"}
        assert (
            len(check(db, Request(org, tokens=1, **{k: v for c in scopes.values() for k, v in c.items()})).applicable_quotas) == 6
        )
        assert check(db, Request(org, tokens=1, user_identifier="bob", feature="Chat")).applicable_quotas == (
            made["organization"],
        )
        assert check(db, Request(other, tokens=1, user_identifier="ann")).applicable_quotas == ()
        assert reserve(db, Request(other, tokens=1)).id, "without a quota everything passes"
    assert counted(database, made["organization"]) == [(0, 6)] and counted(database, made["user"]) == [(0, 1)]
    assert counted(database, paused) == []


@pytest.mark.parametrize(
    ("period_type", "day", "hour"), [("hourly", 1, 0), ("daily", 1, 6), ("weekly", 0, 3), ("monthly", 31, 2)]
)
def test_a_new_period_starts_a_new_counter(database, org, period_type, day, hour):
    made = quota(
        database,
        org,
        enforcement_mode="throttle",
        token_limit=10,
        period_type=period_type,
        period_reset_day=day,
        period_reset_hour=hour,
    )
    start, end = period_of(period_type, day, hour, NOON)
    with at(database, end - timedelta(seconds=1)) as db:
        assert reserve(db, Request(org, tokens=10), expires_after=86400).id
        refused = reserve(db, Request(org, tokens=1)).decision
        assert (refused.decision, refused.retry_at, refused.retry_after) == ("throttled", end, 1)
    with at(database, end) as db:
        assert reserve(db, Request(org, tokens=10)).id
    assert rows(database, "SELECT period_start, period_end FROM quota_counters WHERE quota_id = %s ORDER BY 1", made) == [
        {"period_start": start, "period_end": end},
        {"period_start": end, "period_end": period_of(period_type, day, hour, end)[1]},
    ]


def test_throttle_says_when_enough_of_what_is_reserved_expires(database, org):
    quota(database, org, enforcement_mode="throttle", token_limit=100, request_limit=50)
    with at(database) as db:
        for seconds, tokens in ((300, 30), (60, 20), (120, 50)):
            assert reserve(db, Request(org, tokens=tokens), expires_after=seconds).id
        assert [reserve(db, Request(org, tokens=tokens)).decision.retry_after for tokens in (20, 21, 70, 71, 100)] == [
            60, 120, 120, 300, 300,
        ]  # fmt: skip
        larger = reserve(db, Request(org, tokens=101)).decision
        assert (larger.decision, larger.retry_after) == ("throttled", None), "it never fits: no time is right"
        settle(db, reserve(db, Request(org, tokens=0, requests=47)).id, tokens=0)
        assert reserve(db, Request(org, tokens=0)).decision.retry_after == 60
        assert reserve(db, Request(org, tokens=0, requests=4)).decision.retry_at == MIDNIGHT, (
            "what is used comes back with the period"
        )
    with at(database, NOON + timedelta(seconds=60)) as db:
        assert not check(db, Request(org, tokens=21)).allowed
        assert check(db, Request(org, tokens=20)).allowed and reserve(db, Request(org, tokens=20)).id, "expiry frees room"
        assert not reserve(db, Request(org, tokens=1)).id
    assert one(database, "SELECT count(*) FROM quota_events WHERE kind = 'throttle'") == 9


def test_alert_lets_pass_and_says_so_and_block_weighs_more_than_throttle(database, org):
    alerts = quota(database, org, "alerts", enforcement_mode="alert", token_limit=10)
    throttles = quota(database, org, "throttles", enforcement_mode="throttle", token_limit=20)
    blocks = quota(database, org, "blocks", enforcement_mode="block", token_limit=30)
    with at(database) as db:
        said = {tokens: reserve(db, Request(org, tokens=tokens)).decision for tokens in (31, 21, 11)}
        assert [(d.allowed, d.decision) for d in said.values()] == [(False, "blocked"), (False, "throttled"), (True, "allowed")]
        assert {v.quota_name for v in said[31].violations} == {"alerts", "throttles", "blocks"}
        assert "quota blocks" in said[31].reason and said[31].retry_after is None and "quota throttles" in said[21].reason
        assert [v.quota_name for v in said[11].violations] == ["alerts"] and said[11].reason is None
    assert [counted(database, q) for q in (alerts, throttles, blocks)] == [[(0, 11)]] * 3, "all together, or not at all"


def test_settling_replaces_the_estimate_once_and_releasing_gives_it_back(database, org):
    made = quota(database, org, enforcement_mode="block", token_limit=100, request_limit=3)
    with at(database) as db:
        first, second, third = (reserve(db, Request(org, tokens=30)).id for _ in range(3))
        assert not reserve(db, Request(org, tokens=0)).id, "three requests"
        assert settle(db, first, input_tokens=40, output_tokens=5).changed
        again = settle(db, first, tokens=99)
        assert (again.state, again.changed, counted(database, made)) == ("settled", False, [(45, 60)])
        assert release(db, first).state == "settled", "what was used cannot be given back"
        assert release(db, second).changed and not release(db, second).changed
        assert counted(database, made) == [(45, 30)] and reserve(db, Request(org, tokens=25)).id
        assert settle(db, second, tokens=7).changed, "released, but it happened all the same"
        assert counted(database, made) == [(52, 55)]
        for unknown in (uuid4(), None):
            for call in (lambda unknown=unknown: settle(db, unknown, tokens=1), lambda unknown=unknown: release(db, unknown)):
                with pytest.raises(
                    UsageError, match=r"no reservation has the id .*: it was never made, or ended more than two days ago"
                ):
                    call()
        assert settle(db, third, tokens=500).changed, "more than was estimated, and beyond the limit: it happened"
    assert counted(database, made) == [(552, 25)]


def test_a_settlement_counts_in_the_period_of_its_reservation_also_after_expiry_and_the_periods_end(database, org):
    made = quota(database, org, enforcement_mode="block", token_limit=100)
    with at(database, MIDNIGHT - timedelta(minutes=1)) as db:
        late, kept = reserve(db, Request(org, tokens=30), expires_after=30).id, reserve(db, Request(org, tokens=20)).id
    with at(database, MIDNIGHT - timedelta(seconds=1)) as db:
        assert reserve(db, Request(org, tokens=50)).id
        assert counted(database, made) == [(0, 70)]
    with at(database, MIDNIGHT + HOUR) as db:
        assert settle(db, late, tokens=31).was_expired and settle(db, kept, tokens=21).was_expired
        assert reserve(db, Request(org, tokens=100)).id, "the new period has all its room"
    assert counted(database, made) == [(52, 50), (0, 100)]
    assert one(database, "SELECT max(minute) FROM quota_settled") == MIDNIGHT - timedelta(minutes=1)


def test_the_same_key_is_the_same_reservation_and_a_refused_one_may_try_again(database, org):
    made = quota(database, org, enforcement_mode="throttle", token_limit=100)
    with at(database) as db:
        first = reserve(db, Request(org, tokens=90), idempotency_key="k", expires_after=60)
        assert reserve(db, Request(org, tokens=90), idempotency_key="k") == first and counted(database, made) == [(0, 90)]
        assert first.decision.warnings
        with pytest.raises(UsageError, match=r"'k' was used for another estimate, .*: use a new key"):
            reserve(db, Request(org, tokens=91), idempotency_key="k")
        assert not reserve(db, Request(org, tokens=50), idempotency_key="later").decision.allowed
        other = connection(database, org="globex").org_id
        assert reserve(db, Request(other, tokens=1), idempotency_key="k").id != first.id
    with at(database, NOON + timedelta(seconds=61)) as db:
        assert reserve(db, Request(org, tokens=50), idempotency_key="later").id


def test_the_context_manager_reserves_settles_and_releases(database, org):
    made = quota(database, org, enforcement_mode="block", token_limit=100)
    with at(database) as db:
        with reserved(db, Request(org, input_tokens=50, output_tokens=10)) as held:
            assert counted(database, made) == [(0, 60)]
            held.use(input_tokens=48, output_tokens=3)
        assert counted(database, made) == [(51, 0)]
        with reserved(db, Request(org, tokens=9)):
            pass
        assert counted(database, made) == [(60, 0)], "without a word, the estimate counts"
        with pytest.raises(ZeroDivisionError), reserved(db, Request(org, tokens=9)):
            raise ZeroDivisionError
        assert counted(database, made) == [(60, 0)]
        with pytest.raises(ZeroDivisionError), reserved(db, Request(org, tokens=9)) as held:
            held.use(tokens=4)
            raise ZeroDivisionError
        assert counted(database, made) == [(64, 0)], "it failed after it had used something"
        with (
            pytest.raises(QuotaRefused, match="The request is blocked: quota q allows 100 tokens") as refused,
            reserved(db, Request(org, tokens=37)),
        ):
            raise AssertionError("never reached")
        assert refused.value.decision.violations[0].projected_usage == 101


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "give the total, or input and output tokens"),
        ({"input_tokens": 5}, "give the total, or input and output tokens"),
        ({"tokens": -1}, "use whole numbers from 0 to 10\\^15"),
        ({"tokens": 10**16}, "use whole numbers from 0 to 10\\^15"),
        ({"tokens": 1, "requests": -1}, "use whole numbers from 0 to 10\\^15"),
        ({"tokens": 10, "input_tokens": 5, "output_tokens": 4}, "are not input tokens 5 and output tokens 4 together"),
        ({"tokens": 10, "input_tokens": 11}, "are not input tokens 11 and output tokens NULL together"),
        ({"tokens": 1, "org_id": UUID(int=7)}, "no organisation has the id 00000000"),
    ],
)
def test_a_wrong_request_is_an_error_that_says_what_is_allowed(database, org, values, words):
    with at(database) as db:
        for call in (check, reserve):
            with pytest.raises(UsageError, match=words):
                call(db, Request(**({"org_id": org} | values)))
        with pytest.raises(UsageError, match="expires after 0 seconds is not possible: use 1 to 86400"):
            reserve(db, Request(org, tokens=1), expires_after=0)
    with database.connect() as db, pytest.raises(UsageError, match="autocommit=True"):
        reserve(db, Request(org, tokens=1))


def test_checking_changes_nothing_and_needs_no_right_to_write(database, org):
    quota(database, org, enforcement_mode="block", token_limit=100)
    with database.connect(autocommit=True) as db:
        db.execute("SET default_transaction_read_only = on")
        assert check(db, Request(org, tokens=100)).allowed and not check(db, Request(org, tokens=101)).allowed
        db.execute("SET default_transaction_read_only = off")
        assert reserve(db, Request(org, tokens=60)).id
        db.execute("SET default_transaction_read_only = on")
        assert check(db, Request(org, tokens=40)).allowed and not check(db, Request(org, tokens=41)).allowed
    assert one(database, "SELECT count(*) FROM quota_events") == 0


def test_a_changed_limit_counts_at_once_another_period_recounts_and_another_scope_begins_anew(database, org):
    made = quota(database, org, enforcement_mode="block", token_limit=100)
    with at(database) as db:
        settle(db, reserve(db, Request(org, tokens=60)).id, tokens=60)
        db.execute("UPDATE usage_quotas SET token_limit = 59")
        assert not check(db, Request(org, tokens=0)).allowed
        db.execute("UPDATE usage_quotas SET token_limit = 100, period_type = 'monthly'")
        assert not check(db, Request(org, tokens=41)).allowed and not reserve(db, Request(org, tokens=41)).id
        db.execute("UPDATE usage_quotas SET scope_type = 'user', user_identifier = 'ann'")
        assert reserve(db, Request(org, tokens=100, user_identifier="ann")).id
        db.execute("DELETE FROM usage_quotas")
    assert counted(database, made) == [] and rows(database, "SELECT * FROM quota_holds") == []


def test_the_python_calls_commit_without_waiting_for_the_disk_and_leave_the_session_as_it_was(database, org):
    quota(database, org)
    shown = "SELECT current_setting('synchronous_commit') AS s"
    with database.connect(autocommit=True) as db:
        db.execute("SET synchronous_commit = on")
        parameters = asdict(Request(org, tokens=1)) | {"expires_after": 60, "idempotency_key": None}
        assert db.execute(RESERVE.replace("SELECT r.*", shown), parameters).fetchone() == {"s": "off"}
        assert db.execute(shown).fetchone() == {"s": "on"}
