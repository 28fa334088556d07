"""Usage of quotas per period on a real database: corrections 27, 28 and 30, limits of the time, day records, late data."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.dbt.conftest import MODELS_ONLY
from tests.quota_calendar import period_of, periods_of
from tests.quota_data import change, delete, history, quota, specification_usage
from tests.warehouse_data import DAY, HOUR, connection, load, one, record, rows

D = timedelta(days=1)
MODELS = "+quota_usage_history +quota_status +daily_usage_rollup"
NAMES = {"team": "teams", "project": "projects"}


def _now(database) -> datetime:
    return one(database, "SELECT now()")


def test_each_scope_counts_what_an_independent_sum_says(database, build):
    """Correction 28, over two providers and every kind of period; the specification counts a user as the whole organisation."""
    generator = random.Random(28)
    openai, anthropic = connection(database), connection(database, name="anthropic", provider="anthropic")
    other = connection(database, org="globex")
    items = {}
    for row in (openai, anthropic, other):
        items[row.id] = [
            record(
                DAY + generator.randrange(40 * 24) * HOUR,
                model=generator.choice(["gpt-4o", "gpt-4o-mini"]),
                user_id=generator.choice(["ann", "bob", None]),
                api_key_id=generator.choice(["k1", "k2", None]),
                team=generator.choice(["search", "ads", None]),
                project=generator.choice(["p1", "p2", None]),
                feature=generator.choice(["chat", "mail", None]),
                input_tokens=generator.randrange(1000),
                output_tokens=generator.randrange(100),
                request_count=generator.randrange(9),
            )
            for _ in range(300)
        ]
        load(database, row, items[row.id], DAY, DAY + 40 * D)
    ids = {
        kind: {r["name"]: r["id"] for r in rows(database, f"SELECT name, id FROM {table} WHERE org_id = %s", openai.org_id)}
        for kind, table in NAMES.items()
    }
    scopes = [
        ("organization", {}, lambda r: True),
        ("team", {"team_id": ids["team"]["search"]}, lambda r: r.team == "search"),
        ("project", {"project_id": ids["project"]["p1"]}, lambda r: r.project == "p1"),
        ("user", {"user_identifier": "ann"}, lambda r: r.user_id == "ann"),
        ("api_key", {"api_key_id": "k2"}, lambda r: r.api_key_id == "k2"),
        ("feature", {"feature": "chat"}, lambda r: r.feature == "chat"),
    ]
    schedules = [("hourly", 1, 0), ("daily", 1, 7), ("weekly", 0, 0), ("weekly", 3, 5), ("monthly", 1, 0), ("monthly", 31, 23)]
    quotas = {}
    for scope, columns, _ in scopes:
        for kind, day, hour in schedules:
            name = f"{scope} {kind} {day} {hour}"
            settings_ = {"period_type": kind, "period_reset_day": day, "period_reset_hour": hour}
            created = _now(database) - 2 * D if kind == "hourly" else DAY
            quotas[name] = quota(
                database, openai.org_id, name, scope_type=scope, request_limit=1, created_at=created, **columns, **settings_
            )
    build()
    records = items[openai.id] + items[anthropic.id]
    now = _now(database)
    for scope, _, keeps in scopes:
        for schedule in schedules:
            expected = {
                start: [0, 0, 0, 0] for start, _ in periods_of(*schedule, now - 2 * D if schedule[0] == "hourly" else DAY, now)
            }
            for r in filter(keeps, records):
                start = period_of(*schedule, r.bucket_start)[0]
                if start in expected:
                    for n, value in enumerate(
                        (r.input_tokens + r.output_tokens, r.input_tokens, r.output_tokens, r.request_count)
                    ):
                        expected[start][n] += value
            found = history(
                database,
                quotas[f"{scope} {schedule[0]} {schedule[1]} {schedule[2]}"],
                "period_start, total_tokens, input_tokens, output_tokens, total_requests",
            )
            assert {start: list(sums) for start, *sums in found} == expected, (scope, schedule)
    (user,) = rows(database, "SELECT * FROM usage_quotas WHERE name = 'user monthly 1 0'")
    everything = sum(r.input_tokens + r.output_tokens for r in records if r.bucket_start.month == 6)
    of_ann = sum(r.input_tokens + r.output_tokens for r in records if r.bucket_start.month == 6 and r.user_id == "ann")
    assert specification_usage(database, user, DAY, DAY + 30 * D)["tokens"] == everything != of_ann
    assert history(database, user["id"], where="period_start = '2026-06-01 00:00+00'") == [(DAY, of_ann)]
    build("test", "--exclude-resource-type", "unit_test", "--vars", "{compare: everything}")


def test_every_period_is_derived_from_usage_late_and_restated_data_included(database, build):
    """Correction 30: the specification archives what it last polled, and only periods that somebody polled."""
    row = connection(database)
    made = quota(database, row.org_id, token_limit=250)
    (settings_,) = rows(database, "SELECT * FROM usage_quotas")
    load(database, row, [record(DAY + 3 * HOUR)], DAY, DAY + D, settles_after=40 * D)
    archived = specification_usage(database, settings_, DAY, DAY + D)["tokens"]  # polled in the evening; nobody polls 2 June
    build(*MODELS_ONLY)
    columns = "total_tokens, exceeded_limit, is_provisional"
    assert history(database, made, columns, "period_start < '2026-06-03'") == [(110, False, True), (0, False, True)]
    load(database, row, [record(DAY + 3 * HOUR), record(DAY + 23 * HOUR), record(DAY + 25 * HOUR)], DAY, DAY + 2 * D)
    build(*MODELS_ONLY)
    assert history(database, made, columns, "period_start < '2026-06-03'") == [(220, False, False), (110, False, False)]
    load(database, row, [record(DAY + 3 * HOUR, input_tokens=241), record(DAY + 25 * HOUR)], DAY, DAY + 2 * D)
    build(*MODELS_ONLY)
    assert history(database, made, columns, "period_start < '2026-06-03'") == [(251, True, False), (110, False, False)]
    assert archived == 110, "what the specification's history would say of 1 June forever, and nothing of 2 June"
    ids = one(database, "SELECT array_agg(id ORDER BY id) FROM quota_usage_history")
    build(*MODELS_ONLY, "--full-refresh")
    assert one(database, "SELECT array_agg(id ORDER BY id) FROM quota_usage_history") == ids
    assert len(ids) == len(set(ids)) == (_now(database) - DAY).days + 1


def test_unused_is_zero_unknown_is_null_and_events_and_cost_are_told(database, build):
    row = connection(database)
    made = quota(database, row.org_id, request_limit=3)
    load(
        database,
        row,
        [
            record(request_count=3, reported_cost=Decimal("0.25")),
            record(DAY + D, request_count=None, model="unheard-of"),
            record(DAY + 2 * D, request_count=None, model="a"), record(DAY + 2 * D, request_count=3, model="b"),
            record(DAY + 3 * D, request_count=None, model="a"), record(DAY + 3 * D, request_count=4, model="b"),
            record(DAY + 5 * D, request_count=None, input_tokens=0, output_tokens=0, quantity=Decimal(9), quantity_unit="bytes"),
        ],
        DAY,
        DAY + 6 * D,
    )  # fmt: skip
    with database.connect() as db:
        db.execute(
            "INSERT INTO quota_events (quota_id, period_start, kind) SELECT %s, %s, unnest('{alert,alert,throttle,block}'::text[])",
            [made, DAY],
        )
    build(*MODELS_ONLY)
    assert history(
        database,
        made,
        "total_requests, request_utilization_pct, exceeded_limit, requests_are_partial",
        "period_start < '2026-06-07'",
    ) == [
        (3, 100.0, False, False),
        (None, None, None, True),
        (3, 100.0, None, True),
        (4, 400 / 3, True, True),
        (0, 0.0, False, False),
        (0, 0.0, False, False),
    ]
    assert history(database, made, "alerts_sent, throttle_events, block_events, estimated_cost, currency", "period_start < '2026-06-03'") == [
        (2, 1, 1, Decimal("0.25"), "USD"),
        (0, 0, 0, None, None),
    ]  # fmt: skip


def test_a_period_is_judged_by_the_limits_of_its_time_and_paused_and_deleted_quotas_keep_theirs(database, build):
    row = connection(database)
    load(database, row, [record(DAY + n * D + 12 * HOUR) for n in range(6)], DAY, DAY + 6 * D)
    changed, paused, deleted = (quota(database, row.org_id, name, token_limit=100) for name in ("changed", "paused", "deleted"))
    change(database, changed, DAY + D + 13 * HOUR, token_limit=110)
    change(database, changed, DAY + 3 * D, token_limit=500)
    change(database, paused, DAY + 2 * D + HOUR, is_active=False)
    delete(database, deleted, DAY + 2 * D + HOUR)
    build(*MODELS_ONLY)
    columns, june = "extract(day FROM period_start)::int, token_limit, exceeded_limit, is_active", "period_start < '2026-06-05'"
    assert history(database, changed, columns, june) == [
        (1, 100, True, True), (2, 110, False, True), (3, 110, False, True), (4, 500, False, True)
    ]  # fmt: skip
    assert history(database, paused, columns, june) == [
        (1, 100, True, True),
        (2, 100, True, True),
        (3, 100, True, False),
        (4, 100, True, False),
    ]
    assert history(database, deleted, columns) == [(1, 100, True, True), (2, 100, True, True), (3, 100, True, False)]
    assert history(database, deleted, "quota_name, total_tokens, is_current")[2] == ("deleted", 110, False)
    assert set(history(database, paused, "is_active", "is_current")) == {(False,)}


def test_periods_tile_time_when_their_kind_changes(database, build):
    """A new kind counts from the start of its own period that holds the change; an older one ends there, or gives way."""
    row = connection(database)
    load(database, row, [record(DAY + n * D) for n in range(20)], DAY, DAY + 20 * D)
    shorter = quota(database, row.org_id, "shorter", period_type="monthly")
    change(database, shorter, DAY + 9 * D + 7 * HOUR, period_type="daily")
    longer = quota(database, row.org_id, "longer", period_type="daily", created_at=DAY - 2 * D)
    change(database, longer, DAY + 9 * D + 7 * HOUR, period_type="monthly")
    moved = quota(database, row.org_id, "moved", period_type="monthly")
    change(database, moved, DAY + 9 * D, scope_type="user", user_identifier="nobody")
    build(*MODELS_ONLY)
    columns, june = (
        "to_char(period_start, 'MMDD') AS s, to_char(period_end, 'MMDD') AS e, total_tokens",
        "period_start < '2026-06-12'",
    )
    assert history(database, shorter, columns, june) == [("0601", "0610", 9 * 110), ("0610", "0611", 110), ("0611", "0612", 110)]
    assert history(database, longer, columns, june) == [("0530", "0531", 0), ("0531", "0601", 0), ("0601", "0701", 20 * 110)]
    assert history(database, moved, columns, june) == [("0601", "0701", 0)]
    assert history(database, moved, "scope_type, scope_value", june) == [("user", "nobody")]


def test_day_records_count_at_the_start_of_their_day_and_are_marked(database, build):
    """Correction 9: a day record is in no hour. A period that cuts its day cannot know the parts."""
    row, hours = connection(database), connection(database, name="hours")
    load(
        database, row, [record(DAY + n * D, "1d", input_tokens=240, user_id="ann", api_key_id="k", feature="f") for n in range(4)],
        DAY, DAY + 4 * D, "1d",
    )  # fmt: skip
    load(database, hours, [record(DAY + n * HOUR, input_tokens=1, output_tokens=0) for n in range(96)], DAY, DAY + 4 * D)
    whole = quota(database, row.org_id, "whole", period_type="monthly")
    cut = quota(database, row.org_id, "cut", period_type="monthly", period_reset_day=4, period_reset_hour=5)
    of_user, of_key, of_feature = (
        quota(database, row.org_id, scope, scope_type=scope, **{column: value})
        for scope, column, value in [
            ("user", "user_identifier", "ann"),
            ("api_key", "api_key_id", "k"),
            ("feature", "feature", "f"),
        ]
    )
    build(*MODELS_ONLY)
    columns = "total_tokens, total_requests, includes_day_records, is_approximate"
    assert history(database, whole, columns, "period_start < '2026-07-01'") == [(4 * 250 + 96, 100, True, False)]
    assert one(database, "SELECT sum(total_tokens)::bigint FROM daily_usage_rollup") == 4 * 250 + 96
    assert history(database, cut, columns, "period_start < '2026-07-01'") == [
        (4 * 250 + 77, 81, True, True),
        (19, 19, False, False),
    ]
    for made in (of_user, of_key, of_feature):
        assert history(database, made, columns, "period_start < '2026-06-03'") == [(250, 1, True, False), (250, 1, True, False)]
    assert one(database, "SELECT sum(total_tokens)::bigint FROM hourly_usage_rollup") == 96


SCHEDULES = st.sampled_from(["hourly", "daily", "weekly", "monthly"]).flatmap(
    lambda kind: st.tuples(st.just(kind), st.integers(0, 6) if kind == "weekly" else st.integers(1, 31), st.integers(0, 23))
)
LIVES = st.lists(st.tuples(SCHEDULES, st.integers(1, 60 * 24 * 60)), min_size=1, max_size=5)


@pytest.fixture
def lives_built() -> list:
    """The organisation, once the models are built: once for all examples."""
    return []


def _expected_chain(life: list[tuple], now: datetime) -> list[tuple]:
    """The rule in plain Python: each change throws away what begins later and cuts what reaches in, then goes on."""
    chain: list[tuple] = []
    for n, (schedule, minute) in enumerate(life):
        began = now - timedelta(minutes=minute)
        until = now - timedelta(minutes=life[n + 1][1]) if n + 1 < len(life) else now + timedelta(microseconds=1)
        first = period_of(*schedule, began)[0]
        chain = [(start, min(end, first)) for start, end in chain if start < first]
        chain += periods_of(*schedule, began, until)
    return chain


@settings(max_examples=25, deadline=None, phases=(Phase.explicit, Phase.generate), suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(LIVES)
def test_any_life_of_a_quota_gives_a_chain_of_periods(database, build, lives_built, life):
    life = sorted(life, key=lambda step: -step[1])
    life = [step for n, step in enumerate(life) if n == 0 or step[1] < life[n - 1][1]]
    if not lives_built:
        build(*MODELS_ONLY)
        lives_built.append(connection(database).org_id)
    with database.connect() as db:
        now = db.execute("SELECT now()").fetchone()["now"]
        made = db.execute(
            "INSERT INTO usage_quotas (org_id, name, scope_type, token_limit, created_at) "
            "VALUES (%s, gen_random_uuid()::text, 'organization', 1, %s) RETURNING id",
            [lives_built[0], now - timedelta(minutes=life[0][1])],
        ).fetchone()["id"]
        db.execute(
            "CREATE TEMPORARY TABLE pattern ON COMMIT DROP AS SELECT * FROM usage_quota_versions WHERE quota_id = %s", [made]
        )
        db.execute("DELETE FROM usage_quota_versions WHERE quota_id = %s", [made])
        for n, ((kind, day, hour), minute) in enumerate(life):
            ends = now - timedelta(minutes=life[n + 1][1]) if n + 1 < len(life) else None
            db.execute(
                "UPDATE pattern SET version = %s, valid_from = %s, valid_to = %s, period_type = %s, period_reset_day = %s, "
                "period_reset_hour = %s",
                [n + 1, now - timedelta(minutes=minute), ends, kind, day, hour],
            )
            db.execute("INSERT INTO usage_quota_versions SELECT * FROM pattern")
        found = db.execute(
            "SELECT period_start, period_end FROM quota_usage_history WHERE quota_id = %s ORDER BY period_start", [made]
        ).fetchall()
        current = db.execute("SELECT period_start, period_end FROM quota_status WHERE quota_id = %s", [made]).fetchone()
        db.rollback()
    chain = [(r["period_start"], r["period_end"]) for r in found]
    assert chain == _expected_chain(life, now.astimezone(UTC))
    assert (current["period_start"], current["period_end"]) == chain[-1]
