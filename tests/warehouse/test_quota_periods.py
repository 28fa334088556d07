"""Period arithmetic in the database against an independent one, and where the specification's differs (correction 27)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.quota_calendar import period_of, periods_of
from tests.warehouse_data import one, rows

TYPES = ("hourly", "daily", "weekly", "monthly")
MOMENTS = st.datetimes(datetime(1999, 1, 1), datetime(2105, 12, 31), timezones=st.just(UTC))
EDGES = st.builds(
    lambda day, hour, nudge: datetime(2023, 12, 25, hour, tzinfo=UTC) + timedelta(days=day, microseconds=nudge),
    st.integers(0, 800), st.integers(0, 23), st.sampled_from([-1, 0, 1]),
)  # fmt: skip
SCHEDULES = st.sampled_from(TYPES).flatmap(
    lambda kind: st.tuples(st.just(kind), st.integers(0, 6) if kind == "weekly" else st.integers(1, 31), st.integers(0, 23))
)
PERIOD = "SELECT quota_period_start(%(t)s, %(d)s, %(h)s, %(m)s) AS s, quota_period_end(%(t)s, %(d)s, %(h)s, %(m)s) AS e"


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def _period(db, kind: str, day: int, hour: int, moment: datetime) -> tuple[datetime, datetime]:
    row = db.execute(PERIOD, {"t": kind, "d": day, "h": hour, "m": moment}).fetchone()
    return row["s"], row["e"]


@pytest.fixture
def db(database):
    with database.connect() as connection:
        yield connection


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SCHEDULES, st.one_of(MOMENTS, EDGES))
def test_a_period_is_what_an_independent_calendar_says_and_holds_its_moment(db, schedule, moment):
    start, end = found = _period(db, *schedule, moment)
    assert found == period_of(*schedule, moment)
    assert start <= moment < end
    assert _period(db, *schedule, start) == found == _period(db, *schedule, end - timedelta(microseconds=1))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SCHEDULES, EDGES, st.integers(1, 3000))
def test_periods_follow_one_another_without_gap(db, schedule, first, hours):
    until = first + timedelta(hours=hours)
    found = db.execute("SELECT period_start, period_end FROM quota_periods(%s, %s, %s, %s, %s)", [*schedule, first, until])
    periods = [(r["period_start"], r["period_end"]) for r in found]
    assert periods == periods_of(*schedule, first, until)
    assert all(before[1] == after[0] for before, after in pairwise(periods))


@pytest.mark.parametrize(
    ("kind", "day", "hour", "moment", "start", "end"),
    [
        ("weekly", 0, 0, "2026-06-03 12:00", "2026-05-31 00:00", "2026-06-07 00:00"),
        ("weekly", 0, 0, "2026-05-31 00:00", "2026-05-31 00:00", "2026-06-07 00:00"),
        ("weekly", 6, 23, "2026-06-06 22:59", "2026-05-30 23:00", "2026-06-06 23:00"),
        ("monthly", 31, 0, "2026-02-15 00:00", "2026-01-31 00:00", "2026-02-28 00:00"),
        ("monthly", 31, 0, "2026-02-28 00:00", "2026-02-28 00:00", "2026-03-31 00:00"),
        ("monthly", 31, 0, "2028-02-28 23:59", "2028-01-31 00:00", "2028-02-29 00:00"),
        ("monthly", 30, 6, "2026-02-28 05:59", "2026-01-30 06:00", "2026-02-28 06:00"),
        ("monthly", 31, 0, "2026-04-30 00:00", "2026-04-30 00:00", "2026-05-31 00:00"),
        ("monthly", 1, 0, "2026-12-31 23:59", "2026-12-01 00:00", "2027-01-01 00:00"),
        ("monthly", 1, 23, "2026-01-01 22:00", "2025-12-01 23:00", "2026-01-01 23:00"),
        ("daily", 1, 5, "2026-06-01 04:59", "2026-05-31 05:00", "2026-06-01 05:00"),
        ("hourly", 1, 9, "2026-06-01 04:59", "2026-06-01 04:00", "2026-06-01 05:00"),
    ],
)
def test_named_edges(db, kind, day, hour, moment, start, end):
    assert _period(db, kind, day, hour, at(moment)) == (at(start), at(end))


def test_the_time_zone_of_the_session_and_of_the_moment_change_nothing(db):
    kathmandu = timezone(timedelta(hours=5, minutes=45))
    moment = datetime(2026, 6, 1, 2, 0, tzinfo=kathmandu)
    for zone in ("UTC", "Asia/Kathmandu", "America/New_York"):
        db.execute(f"SET timezone = '{zone}'")
        assert _period(db, "monthly", 1, 0, moment) == (at("2026-05-01"), at("2026-06-01"))
        assert _period(db, "daily", 1, 0, at("2026-03-08 12:00")) == (at("2026-03-08"), at("2026-03-09"))
        days = db.execute("SELECT * FROM quota_periods('daily', 1, 0, '2026-03-07 00:00+00', '2026-03-10 00:00+00')").fetchall()
        assert [row["period_start"] for row in days] == [at("2026-03-07"), at("2026-03-08"), at("2026-03-09")]


def test_the_functions_are_immutable_so_that_postgres_may_fold_them(database):
    found = rows(database, "SELECT proname, provolatile FROM pg_proc WHERE proname LIKE 'quota_period%%'")
    assert {(r["proname"], r["provolatile"]) for r in found} == {
        (name, "i") for name in ("quota_period_start", "quota_period_end", "quota_periods")
    }
    plan = rows(
        database,
        "EXPLAIN VERBOSE SELECT quota_period_start(k, 1, 0, m) FROM (VALUES ('daily', now()), ('weekly', now())) AS v (k, m)",
    )
    assert "quota_period_start" not in str(plan), "not inlined: slow over many rows"


def test_an_unknown_period_type_is_refused(db):
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="'yearly' is unknown: use hourly, daily, weekly or monthly"):
        _period(db, "yearly", 1, 0, at("2026-06-01"))


def _specification_period(kind: str, reset_day: int | None, now: datetime) -> datetime:
    """`calculateCurrentPeriod` of section 8 as `createQuota` calls it, in a UTC process: the start of a period."""
    day = reset_day or 1
    if kind == "weekly":
        start = (now - timedelta(days=(now.isoweekday() % 7 - day + 7) % 7)).replace(hour=0, minute=0, second=0, microsecond=0)
        return start - timedelta(days=7) if now < start else start
    start = datetime(now.year, now.month, 1, tzinfo=UTC) + timedelta(days=day - 1)  # `new Date(y, m, 31)` overflows
    if now < start:  # `setMonth(month - 1)` overflows too
        year, month = (start.year, start.month - 1) if start.month > 1 else (start.year - 1, 12)
        start = datetime(year, month, 1, tzinfo=UTC) + timedelta(days=start.day - 1)
    return start


def test_the_specifications_way_turns_sunday_into_monday_and_overflows_day_31(db):
    """Correction 27."""
    wednesday = at("2026-06-03 12:00")
    assert _specification_period("weekly", 0, wednesday) == at("2026-06-01")
    assert _period(db, "weekly", 0, 0, wednesday)[0] == at("2026-05-31")
    in_april = at("2026-04-30 12:00")
    assert _specification_period("monthly", 31, in_april) == at("2026-04-01"), "31 April is 1 May, and a month before is 1 April"
    assert _period(db, "monthly", 31, 0, in_april)[0] == at("2026-04-30")


def test_what_a_quota_may_not_be_is_said_by_the_name_of_the_constraint(database):
    with database.connect() as db:
        org = db.execute("INSERT INTO organizations (name) VALUES ('acme') RETURNING id").fetchone()["id"]
        team = db.execute("INSERT INTO teams (org_id, name) VALUES (%s, 'search') RETURNING id", [org]).fetchone()["id"]
    good = {"org_id": org, "name": "q", "scope_type": "organization", "token_limit": 1}
    for changes, constraint in [
        ({"scope_type": "team"}, "only_the_column_of_the_scope_type_is_set"),
        ({"team_id": team}, "only_the_column_of_the_scope_type_is_set"),
        ({"scope_type": "user", "user_identifier": "u", "feature": "f"}, "only_the_column_of_the_scope_type_is_set"),
        ({"scope_type": "feature", "feature": ""}, "name_and_scope_are_not_empty"),
        ({"token_limit": 0}, "limits_are_positive"),
        ({"input_token_limit": -1}, "limits_are_positive"),
        ({"token_limit": None}, "has_at_least_one_limit"),
        ({"period_type": "weekly", "period_reset_day": 7}, "weekly_reset_day_is_0_sunday_to_6_saturday"),
        ({"period_reset_day": 0}, "monthly_reset_day_is_1_to_31"),
        ({"period_reset_day": 32}, "monthly_reset_day_is_1_to_31"),
        ({"period_reset_hour": 24}, "reset_hour_is_0_to_23_utc"),
        ({"warning_threshold_pct": 0}, "thresholds_are_above_0_in_order_and_at_most_100"),
        ({"warning_threshold_pct": 96}, "thresholds_are_above_0_in_order_and_at_most_100"),
        ({"critical_threshold_pct": 101}, "thresholds_are_above_0_in_order_and_at_most_100"),
        ({"period_type": "yearly"}, "valid_period_type"),
    ]:
        values = good | changes
        with pytest.raises(psycopg.errors.CheckViolation) as refused, database.connect() as db:
            db.execute(
                f"INSERT INTO usage_quotas ({', '.join(values)}) VALUES ({', '.join(['%s'] * len(values))})",
                list(values.values()),
            )
        assert refused.value.diag.constraint_name == constraint, changes
    sunday = good | {"period_type": "weekly", "period_reset_day": 0}
    assert one(
        database,
        f"INSERT INTO usage_quotas ({', '.join(sunday)}) VALUES ({', '.join(['%s'] * len(sunday))}) RETURNING period_reset_day",
        *sunday.values(),
    ) == 0  # fmt: skip
