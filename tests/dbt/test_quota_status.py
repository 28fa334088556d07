"""Where a quota stands now: four limits, thresholds, projection, freshness, and the specification's `check_quota_status`."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from tests.dbt.conftest import MODELS_ONLY
from tests.quota_data import change, delete, quota, specification_status, status_at
from tests.warehouse_data import DAY, HOUR, connection, load, one, record, rows

D = timedelta(days=1)
MODELS = "+quota_usage_history +quota_status"


def test_all_four_limits_count_and_exactly_on_a_limit_is_not_exceeded(database, build):
    """Correction 29, beside the specification's own function on the same usage."""
    row = connection(database)
    load(database, row, [record(DAY + n * HOUR, input_tokens=90, output_tokens=10) for n in range(10)])
    expected = {
        "tokens passed": ({"token_limit": 999}, "exceeded", "exceeded"),
        "tokens exactly": ({"token_limit": 1000}, "critical", "exceeded"),
        "tokens at critical": ({"token_limit": 1000, "critical_threshold_pct": 100, "warning_threshold_pct": 100}, "critical", "exceeded"),
        "tokens at warning": ({"token_limit": 1250}, "warning", "warning"),
        "tokens below": ({"token_limit": 1251}, "ok", "ok"),
        "requests exactly": ({"request_limit": 10}, "critical", "exceeded"),
        "requests at warning": ({"request_limit": 12}, "warning", "warning"),
        "input passed": ({"input_token_limit": 899}, "exceeded", "ok"),
        "output passed": ({"output_token_limit": 99}, "exceeded", "ok"),
        "output critical": ({"output_token_limit": 105, "token_limit": 10**9}, "critical", "ok"),
    }  # fmt: skip
    ids = {name: quota(database, row.org_id, name, **columns) for name, (columns, _, _) in expected.items()}
    build(*MODELS_ONLY)
    found = status_at(database, DAY + 23 * HOUR)
    assert {name: found[name]["status"] for name in expected} == {name: ours for name, (_, ours, _) in expected.items()}
    theirs = specification_status(database, ids.values(), DAY, DAY + D)
    assert {name: theirs[ids[name]] for name in expected} == {name: spec for name, (_, _, spec) in expected.items()}
    critical = found["output critical"]
    assert (critical["output_token_utilization_pct"], critical["max_utilization_pct"]) == (10000 / 105, 10000 / 105)
    assert (critical["output_tokens_remaining"], found["tokens exactly"]["tokens_remaining"]) == (5, 0)
    assert (critical["requests_remaining"], critical["request_utilization_pct"]) == (None, None)


def test_the_projection_goes_by_hours_that_usage_covers(database, build):
    """Correction 22: three rows in six hours of a day of 24 are four times as much by its end, not eight."""
    row = connection(database)
    load(database, row, [record(DAY + n * HOUR, input_tokens=100, output_tokens=0) for n in (0, 1, 5)], DAY, DAY + 6 * HOUR)
    quota(database, row.org_id, token_limit=1150, request_limit=10)
    quota(database, row.org_id, "unused", scope_type="user", user_identifier="nobody")
    build(*MODELS_ONLY)
    six = status_at(database, DAY + 6 * HOUR)["q"]
    assert (six["hours_elapsed"], six["hours_remaining"], six["total_tokens"]) == (6, 18, 300)
    assert (six["projected_total_tokens"], six["projected_total_requests"]) == (1200, 12)
    assert six["projected_to_exceed"] is True and six["status"] == "ok"
    three = status_at(database, DAY + 3 * HOUR + timedelta(minutes=30))["q"]
    assert (three["total_tokens"], three["hours_elapsed"]) == (200, 3.5)
    assert three["projected_total_tokens"] == round(200 * 24 / 3.5)
    first = status_at(database, DAY + timedelta(minutes=59))["q"]
    assert (first["projected_total_tokens"], first["projected_to_exceed"]) == (None, None)
    late = status_at(database, DAY + 12 * HOUR)
    assert (late["q"]["hours_elapsed"], late["q"]["projected_total_tokens"]) == (6, 1200), (
        "six hours of nothing known are not zero"
    )
    assert (late["unused"]["total_tokens"], late["unused"]["projected_total_tokens"]) == (0, None)
    assert (
        datetime.fromisoformat(late["q"]["data_until"]) == datetime.fromisoformat(late["q"]["complete_until"]) == DAY + 6 * HOUR
    )


def test_data_until_is_what_the_rollups_hold_not_what_was_loaded_since(database, build):
    row, other = connection(database), connection(database, name="anthropic", provider="anthropic")
    quota(database, row.org_id)
    load(database, row, [record()], DAY, DAY + 6 * HOUR)
    load(database, other, [record()], DAY, DAY + 2 * HOUR)
    build(*MODELS_ONLY)
    load(database, row, [record(DAY + 7 * HOUR)], DAY, DAY + 9 * HOUR)
    freshness = "SELECT data_until, complete_until, total_tokens FROM intermediate.int_quota_status"
    assert rows(database, freshness) == [{"data_until": DAY + 6 * HOUR, "complete_until": DAY + 2 * HOUR, "total_tokens": 0}]
    build(*MODELS_ONLY)
    assert rows(database, freshness)[0]["data_until"] == DAY + 9 * HOUR


def test_the_view_and_the_function_are_right_at_the_moment_of_reading(database, build):
    """No build in between: a quota that was just set, changed, paused or deleted."""
    now = datetime.now(UTC)
    hour = now.replace(minute=0, second=0, microsecond=0)
    row = connection(database)
    load(database, row, [record(hour - HOUR), record(hour)], hour - HOUR, hour + HOUR, now=hour + HOUR)
    build(*MODELS_ONLY)
    made = quota(database, row.org_id, period_type="hourly", token_limit=200, created_at=now)
    check = "SELECT * FROM check_quota_status(p_quota_id => %s)"
    if datetime.now(UTC) - hour < HOUR - timedelta(seconds=20):
        assert rows(database, "SELECT quota_id, total_tokens, status, period_start FROM quota_status") == [
            {"quota_id": made, "total_tokens": 110, "status": "ok", "period_start": hour}
        ]
        assert rows(database, check, made) == [
            {
                "quota_id": made, "quota_name": "q", "scope_type": "organization", "current_tokens": 110, "token_limit": 200,
                "token_utilization_pct": 55.0, "current_requests": 1, "request_limit": None, "request_utilization_pct": None,
                "status": "ok", "period_remaining_hours": 0,
            }
        ]  # fmt: skip
        with database.connect() as db:
            db.execute("UPDATE usage_quotas SET token_limit = 109")
        assert rows(database, check, made)[0]["status"] == "exceeded"
    with database.connect() as db:
        db.execute("UPDATE usage_quotas SET is_active = false")
    assert rows(database, "SELECT * FROM quota_status") == []
    assert len(rows(database, check, made)) == 1, "a paused quota has a status for who asks for it"
    with database.connect() as db:
        db.execute("DELETE FROM usage_quotas")
    for gone in (made, uuid.UUID(int=7), None):
        with pytest.raises(psycopg.errors.NoDataFound, match=f"no quota has the id {gone or 'NULL'}: the quotas .* usage_quotas"):
            rows(database, check, gone)


def test_status_as_of_a_moment_is_of_the_quotas_of_that_time(database, build):
    row = connection(database)
    load(database, row, [record(DAY + n * HOUR) for n in range(48)], DAY, DAY + 2 * D)
    changed, deleted = quota(database, row.org_id, "changed", token_limit=100), quota(database, row.org_id, "deleted")
    change(database, changed, DAY + 12 * HOUR, token_limit=300)
    delete(database, deleted, DAY + D)
    build(*MODELS_ONLY)
    assert {name: (q["token_limit"], q["total_tokens"]) for name, q in status_at(database, DAY + 2 * HOUR).items()} == {
        "changed": (100, 220),
        "deleted": (1000, 220),
    }
    assert {name: (q["token_limit"], q["total_tokens"]) for name, q in status_at(database, DAY + D + HOUR).items()} == {
        "changed": (300, 110)
    }
    assert status_at(database, DAY - HOUR) == {}
    for moment in (datetime.now(UTC) + D, None):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="must not be NULL or in the future"):
            status_at(database, moment)
    with database.connect() as db:
        assert len(db.execute("SELECT quota_status_at(%s)", [DAY]).fetchall()) == 2
        now_again = db.execute("SELECT quota_moment() = now() AS same").fetchone()
        assert now_again == {"same": True}, "a question about the past leaves nothing behind"


def test_counts_are_bigint_and_a_question_before_the_first_build_says_what_to_do(database, build):
    """Correction 10."""
    row = connection(database)
    made = quota(database, row.org_id, request_limit=5 * 10**9)
    for statement in ("SELECT * FROM check_quota_status(%s)", "SELECT quota_status_at(now() - make_interval(secs => 1)) AS s WHERE %s IS NOT NULL"):  # fmt: skip
        with pytest.raises(psycopg.errors.UndefinedTable, match="run `tokentra build`"):
            rows(database, statement, made)
    load(database, row, [record(DAY, request_count=4 * 10**9)])
    build(*MODELS_ONLY)
    assert status_at(database, DAY + 2 * HOUR)["q"]["total_requests"] == 4 * 10**9
    types = one(database, "SELECT pg_get_function_result('check_quota_status(uuid)'::regprocedure)")
    assert "current_tokens bigint" in types and "current_requests bigint" in types and "request_limit bigint" in types


def test_dbt_may_replace_every_table_and_view_below_the_functions(database, build):
    row = connection(database)
    made = quota(database, row.org_id)
    load(database, row, [record()])
    build(*MODELS_ONLY)
    # Without the hours that remain: one may pass between.
    status = "SELECT to_jsonb(s) - 'period_remaining_hours' AS status FROM check_quota_status(%s) AS s"
    with database.connect() as db:
        before = db.execute(status, [made]).fetchall()
        db.commit()
        build(*MODELS_ONLY, "--full-refresh")
        assert db.execute(status, [made]).fetchall() == before != []
