"""The marts about users and API keys against a real database: corrections 7, 16, 32 and 42, specification 2.6.

Their totals are the rollups' totals; dbt's own tests of that run in every build here.
"""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal

from psycopg.types.json import Jsonb

from tests.dbt.conftest import MODELS_ONLY, run_dbt
from tests.warehouse_data import DAY, HOUR, connection, load, one, record, rows
from tokentra_dagster.ingest.authority import set_authority
from tokentra_dagster.ingest.load import log_change
from tokentra_dagster.ingest.reattribute import apply_rules
from tokentra_dagster.warehouse.directory import add_rule

ONE_DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)
MARTS = (
    "hourly_usage_by_user", "daily_usage_by_user", "hourly_usage_by_api_key", "daily_usage_by_api_key", "user_activity",
    "daily_active_entities", "active_users", "hourly_usage_totals",
)  # fmt: skip
MODELS = "+user_activity +active_users +daily_usage_rollup +daily_usage_by_user +daily_usage_by_api_key +daily_active_entities hourly_usage_totals"
TEST_EVERYTHING = ("test", "--exclude-resource-type", "unit_test", "--vars", "{compare: everything}")


def _state(database) -> dict[str, list[str]]:
    """Everything these marts say, without an order of rows and without when they were built."""
    statement = "SELECT to_jsonb(r) - 'created_at' - 'updated_at' AS r FROM {} AS r"
    return {mart: sorted(str(row["r"]) for row in rows(database, statement.format(mart))) for mart in MARTS}


def _activity(database, columns: str, where: str = "true"):
    return rows(database, f"SELECT {columns} FROM user_activity WHERE {where} ORDER BY activity_date, user_identifier")


def _users_of_day(database) -> dict[str | None, int]:
    found = rows(database, "SELECT user_identifier AS u, sum(total_tokens)::bigint AS t FROM user_activity GROUP BY 1")
    return {row["u"]: row["t"] for row in found}


def _say_users(database, row, users: list[str]) -> None:
    """What an application that attributes usage later does: name the users of every record of the day."""
    with database.connect() as db, db.transaction():
        db.execute("UPDATE raw.usage_records SET user_ids = %s WHERE provider_connection_id = %s", [users, row.id])
        log_change(
            db, org_id=row.org_id, provider=row.provider, connection_id=row.id, windows=[(DAY, DAY + ONE_DAY)],
            reason="attribution",
        )  # fmt: skip


def test_the_marts_follow_restatements_withdrawals_late_data_and_authority_and_equal_a_full_build(database, build):
    first, second = connection(database), connection(database, name="second")
    other = connection(database, provider="anthropic", name="anthropic")
    hours = [record(DAY + n * HOUR, input_tokens=n, user_id=f"u{n % 3}", api_key_id=f"k{n % 2}") for n in range(24)]
    load(database, first, hours)
    load(database, second, [record(DAY, "1d", input_tokens=1000, user_id="u1", api_key_id="k9")], granularity="1d")
    load(database, other, [record(input_tokens=5000, model="claude-sonnet-4-5", user_id="u1")])
    build()
    of_u1 = sum(n + 10 for n in range(24) if n % 3 == 1) + 1010 + 5010
    assert _users_of_day(database)["u1"] == of_u1
    keys = rows(database, "SELECT api_key_id AS k, total_tokens AS t FROM daily_usage_by_api_key ORDER BY 1")
    assert {row["k"]: row["t"] for row in keys} == {
        "k0": sum(n + 10 for n in range(0, 24, 2)), "k1": sum(n + 10 for n in range(1, 24, 2)), "k9": 1010, None: 5010,
    }  # fmt: skip
    assert one(database, "SELECT count(*) FROM hourly_usage_by_api_key WHERE api_key_id = 'k9'") == 0, "a day is no hour"
    before = one(database, "SELECT created_at FROM user_activity WHERE user_identifier = 'u1'")

    load(database, first, [record(DAY + n * HOUR, input_tokens=n, user_id="u0") for n in range(12)])  # u1, u2 withdrawn
    load(database, other, [record(DAY - HOUR, input_tokens=7, user_id="late")], DAY - 2 * HOUR, DAY)
    build()
    assert _users_of_day(database) == {"u0": sum(n + 10 for n in range(12)), "u1": 1010 + 5010, "late": 17}
    again = rows(database, "SELECT created_at, updated_at FROM user_activity WHERE user_identifier = 'u1'")
    assert again[0]["created_at"] == before < again[0]["updated_at"]
    build()
    incremental = _state(database)
    build("run", "--full-refresh")
    assert _state(database) == incremental

    connection(database, name="gateway", source="gateway")
    with database.connect() as db:
        assert set_authority(db, first.org_id, "openai", "gateway")
    load(database, other, [])
    build()
    assert _users_of_day(database) == {"late": 17}
    build(*TEST_EVERYTHING)


def test_attributing_the_same_record_twice_adds_nothing_and_two_users_cannot_be_told_apart(database, build):
    """Correction 32: the specification adds the record to the user's day each time, and leaves it with the first user too."""
    row = connection(database)
    load(database, row, [record(input_tokens=90), record(DAY + HOUR, input_tokens=190)])
    build()
    assert _users_of_day(database) == {None: 300}
    for _ in range(2):
        _say_users(database, row, ["ann"])
        build(*MODELS_ONLY)
        assert _users_of_day(database) == {"ann": 300}
    _say_users(database, row, ["ann", "bob"])
    build()
    assert _activity(database, "user_identifier, is_attributed, session_count, total_tokens") == [
        {"user_identifier": None, "is_attributed": False, "session_count": None, "total_tokens": 300}
    ]
    active = rows(database, "SELECT DISTINCT entity_id FROM daily_active_entities WHERE entity_kind = 'user' ORDER BY 1")
    assert [found["entity_id"] for found in active] == ["ann", "bob"], "both were active, whoever used what"
    assert one(database, "SELECT daily_active_users FROM active_users") == 2
    assert one(database, "SELECT count(DISTINCT user_identifier) FROM user_activity") == 0


def test_rules_applied_later_move_usage_between_features_and_change_no_total(database, build):
    row = connection(database)
    load(database, row, [record(user_id="ann", api_key_id="k1"), record(DAY + HOUR, user_id="ann", model="gpt-4o-mini")])
    build()
    (before,) = _activity(database, "feature_usage, model_usage, total_tokens, request_count")
    assert before["feature_usage"] == {"untagged": {"tokens": 220, "requests": 2}}
    with database.connect() as db:
        add_rule(db, org="acme", match_field="api_key", match_value="k1", feature="search")
    for _ in range(2):
        apply_rules(database, row.org_id)
        build(*MODELS_ONLY)
    (after,) = _activity(database, "feature_usage, model_usage, total_tokens, request_count")
    assert after["feature_usage"] == {"untagged": {"tokens": 110, "requests": 1}, "search": {"tokens": 110, "requests": 1}}
    assert {**after, "feature_usage": before["feature_usage"]} == before
    assert rows(database, "SELECT entity_id FROM daily_active_entities WHERE entity_kind = 'feature'") == [
        {"entity_id": "search"}
    ]


def test_more_than_thirty_minutes_of_silence_begin_a_session_and_midnight_ends_a_day(database, build):
    row, other = connection(database), connection(database, provider="anthropic", name="anthropic")
    minutes = [0, 30, 61, 121, 23 * 60 + 50, 24 * 60 + 5]  # 30 is the same session, 61 is not; the last two run past midnight
    load(
        database, row, [record(DAY + n * MINUTE, "1m", user_id="ann", model=f"m{n % 2}") for n in minutes],
        DAY, DAY + 2 * ONE_DAY, "1m",
    )  # fmt: skip
    # The minute at another provider makes 61 and 121 one session.
    load(database, other, [record(DAY + 91 * MINUTE, "1m", user_id="ann"), record(DAY, "1m", user_id="bob")], granularity="1m")
    build()
    columns = "activity_date, user_identifier, session_count, first_activity_at, last_activity_at, activity_granularity"
    assert _activity(database, columns) == [
        {
            "activity_date": DAY.date(), "user_identifier": "ann", "session_count": 3, "activity_granularity": "1m",
            "first_activity_at": DAY, "last_activity_at": DAY + (23 * 60 + 50) * MINUTE,
        },
        {
            "activity_date": DAY.date(), "user_identifier": "bob", "session_count": 1, "activity_granularity": "1m",
            "first_activity_at": DAY, "last_activity_at": DAY,
        },
        {
            "activity_date": date(2026, 6, 2), "user_identifier": "ann", "session_count": 1, "activity_granularity": "1m",
            "first_activity_at": DAY + (24 * 60 + 5) * MINUTE, "last_activity_at": DAY + (24 * 60 + 5) * MINUTE,
        },
    ]  # fmt: skip


def test_a_day_record_gives_a_user_no_time_and_latency_is_weighted_by_requests(database, build):
    """Correction 35, and NULL rather than a made-up time."""
    row, other = connection(database), connection(database, name="hours")
    load(database, row, [record(DAY, "1d", user_id="ann")], granularity="1d")
    load(
        database, other,
        [
            record(DAY + 5 * HOUR, user_id="bob", request_count=1, total_latency_ms=1000),
            record(DAY + 7 * HOUR, user_id="bob", request_count=9, total_latency_ms=900),
            record(DAY + 8 * HOUR, user_id="bob", request_count=90),
        ],
    )  # fmt: skip
    build()
    columns = "user_identifier, first_activity_at, last_activity_at, activity_granularity, session_count, avg_latency_ms"
    assert _activity(database, columns) == [
        {
            "user_identifier": "ann", "first_activity_at": None, "last_activity_at": None, "activity_granularity": None,
            "session_count": 1, "avg_latency_ms": None,
        },
        {
            "user_identifier": "bob", "first_activity_at": DAY + 5 * HOUR, "last_activity_at": DAY + 8 * HOUR,
            "activity_granularity": "1h", "session_count": 1, "avg_latency_ms": 190,
        },
    ]  # fmt: skip
    assert one(database, "SELECT avg_latency_ms FROM daily_usage_by_user WHERE user_id = 'bob'") == 190


def test_the_specifications_columns_answer_under_its_name_and_top_users_are_summed_once(database, build):
    """Correction 16: the specification's join multiplies each day by its number of models."""
    row = connection(database)
    items = [record(DAY + n * HOUR, user_id="u1", model=model) for n, model in enumerate(["gpt-4o", "gpt-4o-mini", "gpt-4o"])]
    load(database, row, [*items, record(user_id="u2", input_tokens=590, reported_cost=Decimal("2"), currency="EUR")])
    load(database, row, [record(DAY + ONE_DAY, user_id="u1", model="gpt-4o")], DAY + ONE_DAY, DAY + 2 * ONE_DAY)
    build()
    spec_columns = (
        "id, org_id, user_identifier, user_display_name, user_metadata, activity_date, total_tokens, input_tokens, output_tokens, "
        "cached_tokens, request_count, error_count, estimated_cost, model_usage, feature_usage, session_count, "
        "first_activity_at, last_activity_at, avg_latency_ms, created_at, updated_at"
    )
    assert len(_activity(database, spec_columns)) == 3
    spec = rows(
        database,
        "SELECT user_identifier, sum(total_tokens)::bigint AS t FROM user_activity AS ua, "
        "LATERAL jsonb_each(ua.model_usage) AS mu (key, value) GROUP BY 1 ORDER BY 2 DESC",
    )
    assert [tuple(found.values()) for found in spec] == [("u1", 2 * 330 + 110), ("u2", 600)]
    ours = rows(database, "SELECT user_identifier, sum(total_tokens)::bigint AS t FROM user_activity GROUP BY 1 ORDER BY 2 DESC")
    assert [tuple(found.values()) for found in ours] == [("u2", 600), ("u1", 440)]
    per_model = rows(
        database,
        "SELECT key AS model, sum((value ->> 'tokens')::bigint)::bigint AS tokens FROM user_activity, jsonb_each(model_usage) "
        "WHERE user_identifier = 'u1' GROUP BY 1 ORDER BY 1",
    )
    assert [tuple(found.values()) for found in per_model] == [("gpt-4o", 330), ("gpt-4o-mini", 110)]
    ids = [found["id"] for found in _activity(database, "id")]
    build("run", "--full-refresh")
    assert [found["id"] for found in _activity(database, "id")] == ids

    # Cost is in the organisation's currency, and the name is the newest: both without another build.
    cost = "estimated_cost, currency, cost_by_currency, user_display_name"
    (u2,) = _activity(database, cost, "user_identifier = 'u2'")
    assert u2 == {"estimated_cost": None, "currency": "USD", "cost_by_currency": {"EUR": 2}, "user_display_name": None}
    with database.connect() as db:
        db.execute("UPDATE app.organizations SET currency = 'EUR'")
        db.execute(
            "INSERT INTO raw.provider_entities (provider_connection_id, org_id, provider, kind, entity_id, name, provider_metadata) "
            "VALUES (%s, %s, 'openai', 'user', 'u2', 'Ann', %s)",
            [row.id, row.org_id, Jsonb({"email": "ann@acme.example"})],
        )
    (u2,) = _activity(database, cost, "user_identifier = 'u2'")
    assert u2 == {"estimated_cost": 2, "currency": "EUR", "cost_by_currency": {"EUR": 2}, "user_display_name": "Ann"}
    assert _activity(database, "user_metadata ->> 'email' AS email", "user_identifier = 'u2'") == [{"email": "ann@acme.example"}]


def test_users_models_features_and_keys_of_any_period_are_counted_once(database, build):
    """Corrections 7 and 42: the same user every day is one user, not one per day."""
    row, other = connection(database), connection(database, provider="anthropic", name="anthropic")
    for n in range(3):
        start = DAY + n * ONE_DAY
        items = [
            record(start, user_id="ann", api_key_id="k1", feature="chat"),
            record(start, user_id=f"u{n}", model="gpt-4o-mini"),
        ]
        load(database, row, items, start, start + ONE_DAY)
    load(database, other, [record(user_id="ann", model="claude-sonnet-4-5")])
    build()
    counted = rows(
        database, "SELECT entity_kind, count(DISTINCT entity_id) AS n FROM daily_active_entities GROUP BY 1 ORDER BY 1"
    )
    assert {found["entity_kind"]: found["n"] for found in counted} == {"user": 4, "model": 3, "feature": 1, "api_key": 1}
    assert one(database, "SELECT count(DISTINCT user_identifier) FROM user_activity") == 4
    assert one(database, "SELECT sum(total_user_count)::int FROM daily_usage_rollup") == 7, "the specification's way"


def _active(database) -> dict[int, tuple]:
    """Days after DAY -> users of the day, the 7 days and the 30 days up to it."""
    found = rows(
        database,
        "SELECT date - %s::date AS day, daily_active_users AS d, weekly_active_users AS w, monthly_active_users AS m "
        "FROM active_users ORDER BY date",
        DAY,
    )
    return {row["day"]: (row["d"], row["w"], row["m"]) for row in found}


def test_active_users_fill_gaps_and_follow_usage_that_comes_late_or_goes(database, build):
    row = connection(database)

    def on(day: int, *users: str | None) -> None:
        start = DAY + day * ONE_DAY
        load(database, row, [record(start, user_id=user) for user in users], start, start + ONE_DAY)

    on(0, "ann", "bob")
    on(8, "ann")
    build()
    assert _active(database) == {0: (2, 2, 2)} | dict.fromkeys(range(1, 7), (0, 2, 2)) | {7: (0, 0, 2), 8: (1, 1, 2)}
    on(31, "eve")
    build()
    found = _active(database)
    assert sorted(found) == list(range(32))
    assert found[29] == (0, 0, 2) and found[30] == (0, 0, 1) and found[31] == (1, 1, 2)
    on(31)
    on(-40, None)
    build()
    found = _active(database)
    assert sorted(found) == list(range(-40, 9))
    assert found[-40] == (None, None, None) and found[-33] == (0, 0, None) and found[-10] == (0, 0, 0)
    assert found[8] == (1, 1, 2)
    on(-40)
    build()
    assert sorted(_active(database)) == list(range(9))
    build(*TEST_EVERYTHING)


def test_a_mart_that_disagrees_fails_the_build(database, build, dbt_target):
    row = connection(database)
    load(database, row, [record(user_id="ann", api_key_id="k1"), record(DAY + HOUR)])
    build()
    damages = {
        "UPDATE marts.daily_usage_by_user SET error_count = 1": "totals_equal_rollup_daily_usage_by_user",
        "DELETE FROM marts.hourly_usage_by_api_key WHERE api_key_id IS NULL": "totals_equal_rollup_hourly_usage_by_api_key",
        "UPDATE intermediate.int_user_days SET model_usage = '{}'": "user_activity_agrees_with_rollup",
        "UPDATE marts.active_users SET monthly_active_users = 3": "active_users_agree_with_entities",
    }
    with database.connect() as db:
        for damage in damages:
            db.execute(damage)
    success, says = run_dbt(database, dbt_target, "test", "--exclude-resource-type", "unit_test", "--select", *MODELS.split())
    assert not success
    assert [test for test in damages.values() if test not in says] == []
