"""A program written against the specification works unchanged: the statements its services send, as a plain role.

PostgREST turns `.rpc(f, args)` into a call with named arguments and `.from(t).select(...).eq(...)` into plain SQL; values
arrive as untyped text. What sections 8 (quotas) and 12 (exports; correction 37) read is not here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from tests.dbt.usage_case import UsageCase, ids, known, summed
from tests.warehouse_data import DAY, HOUR
from tokentra_dagster.warehouse.access import grant_reader, revoke_reader
from tokentra_dagster.warehouse.directory import add_organization

PERIOD = {"start": "2026-06-01T00:00:00.000Z", "end": "2026-06-05T00:00:00.000Z"}
START, END = DAY, DAY + 96 * HOUR
Send = Callable[..., list[dict[str, Any]]]


@contextmanager
def reader(case: UsageCase, organization: str) -> Iterator[Send]:
    """Runs statements as a reader of one organisation, with nothing set."""
    role, password = f"dashboard_{organization}", "secret of the test"
    with case.database.connect() as db:
        grant_reader(db, role, organizations=[organization], password=password)
    parts = {**case.database.parts, "user": role, "password": password}
    with psycopg.connect(**parts, row_factory=dict_row, autocommit=True) as plain:  # type: ignore[call-overload]
        assert plain.execute("SHOW search_path").fetchone()["search_path"].startswith('"$user", public')

        def run(statement: str, **arguments: Any) -> list[dict[str, Any]]:
            return plain.execute(statement, {"org": str(case.org_id), **PERIOD, **arguments}).fetchall()

        yield run
    with case.database.connect() as db:
        revoke_reader(db, role)


@pytest.fixture(scope="module")
def send(acme: UsageCase) -> Iterator[Send]:
    """Run one statement as a role that can log in and read."""
    with reader(acme, "acme") as run:
        yield run


def test_a_reader_of_another_organisation_gets_nothing_from_the_functions(acme: UsageCase, send: Send) -> None:
    with acme.database.connect() as db:
        add_organization(db, "other")
    period = "p_org_id => %(org)s, p_start_date => %(start)s, p_end_date => %(end)s"
    statements = [
        f"SELECT total_tokens FROM get_usage_summary({period}) WHERE total_tokens > 0",
        f"SELECT * FROM get_usage_trend({period}, p_granularity => 'minute')",
        f"SELECT * FROM get_usage_breakdown({period}, p_dimension => 'user')",
        "SELECT * FROM get_top_users(p_org_id => %(org)s, p_start_date => '2026-06-01', p_end_date => '2026-06-05')",
        "SELECT * FROM usage_records", "SELECT * FROM user_activity", "SELECT * FROM daily_usage_rollup",
    ]  # fmt: skip
    with reader(acme, "other") as stranger:
        for statement in statements:
            assert send(statement) and not stranger(statement), statement


def test_section_4_summary(acme: UsageCase, send: Send) -> None:
    (row,) = send(
        "SELECT * FROM get_usage_summary(p_org_id => %(org)s, p_start_date => %(start)s, p_end_date => %(end)s, p_provider => NULL, "
        "p_model => NULL, p_team_id => NULL, p_project_id => NULL, p_feature => NULL, p_environment => NULL)"
    )
    expected = summed(acme.within(START, END))
    assert (row["total_tokens"], row["total_requests"], row["estimated_cost"]) == (
        expected["total_tokens"],
        expected["request_count"],
        expected["estimated_cost"],
    )
    specified = [
        "total_tokens",
        "input_tokens",
        "output_tokens",
        "cached_tokens",
        "total_requests",
        "success_requests",
        "error_requests",
        "avg_latency_ms",
        "p50_latency_ms",
        "p95_latency_ms",
        "p99_latency_ms",
        "error_rate",
        "cache_hit_rate",
        "tokens_per_request",
        "unique_models",
        "unique_users",
        "estimated_cost",
    ]
    assert list(row)[: len(specified)] == specified
    (filtered,) = send(
        "SELECT * FROM get_usage_summary(p_org_id => %(org)s, p_start_date => %(start)s, p_end_date => %(end)s, p_provider => 'google', "
        "p_model => 'g-1', p_team_id => %(team)s, p_project_id => NULL, p_feature => 'search', p_environment => 'staging')",
        team=ids(acme.database, "teams")["Search"],
    )
    found = [u for u in acme.within(START, END) if (u.record.model, u.record.team, u.record.feature, u.record.environment) == ("g-1", "Search", "search", "staging")]  # fmt: skip
    assert filtered["total_requests"] == len(found) > 0


@pytest.mark.parametrize("granularity", ["minute", "hour", "day", "week", "month"])
@pytest.mark.parametrize("metric", ["tokens", "requests"])
def test_section_4_trend(send: Send, granularity: str, metric: str) -> None:
    found = send(
        "SELECT * FROM get_usage_trend(p_org_id => %(org)s, p_start_date => %(start)s, p_end_date => %(end)s, p_granularity => %(granularity)s, p_metric => %(metric)s)",
        granularity=granularity, metric=metric,
    )  # fmt: skip
    assert list(found[0])[:6] == ["time_bucket", "value", "input_tokens", "output_tokens", "requests", "error_rate"]
    assert [row["time_bucket"] for row in found] == sorted(row["time_bucket"] for row in found)
    assert [row["value"] for row in found] == [row["total_tokens" if metric == "tokens" else "requests"] for row in found]


COLUMNS = ("provider", "model", "model_family", "team_id", "project_id", "feature", "environment", "user_identifier", "request_type", "api_key_id")  # fmt: skip


@pytest.mark.parametrize("column", COLUMNS)
def test_section_4_breakdown_by_the_columns_that_its_service_maps_dimensions_to(acme: UsageCase, send: Send, column: str) -> None:
    found = send(
        "SELECT * FROM get_usage_breakdown(p_org_id => %(org)s, p_start_date => %(start)s, p_end_date => %(end)s, p_dimension => %(column)s, p_limit => 8)",
        column=column,
    )
    specified = "dimension_value total_tokens input_tokens output_tokens request_count error_count avg_latency_ms estimated_cost percentage"
    assert list(found[0])[:9] == specified.split()
    assert sum(row["total_tokens"] for row in found) == summed(acme.within(START, END))["total_tokens"]
    if column == "team_id":
        assert {row["dimension_value"]: row["dimension_label"] for row in found} == {
            team: name for name, team in ids(acme.database, "teams").items()
        } | {"Unknown": "Unknown"}


def test_section_4_top_users_with_timestamps_for_dates(send: Send) -> None:
    found = send("SELECT * FROM get_top_users(p_org_id => %(org)s, p_start_date => %(start)s, p_end_date => %(end)s, p_limit => 10, p_order_by => 'tokens')")  # fmt: skip
    assert sorted(row["user_identifier"] for row in found) == ["ann", "bob", "cy"]
    assert list(found[0])[:7] == [
        "user_identifier", "user_display_name", "total_tokens", "request_count", "estimated_cost", "model_usage", "last_activity_at",
    ]  # fmt: skip


def test_section_4_recent_activity(send: Send) -> None:
    found = send("SELECT * FROM usage_records WHERE org_id = %(org)s ORDER BY timestamp DESC LIMIT 20")
    mapped = (
        "id org_id provider_connection_id provider timestamp bucket_start bucket_end granularity model model_family request_type service_tier "
        "input_tokens output_tokens total_tokens cached_input_tokens cache_creation_tokens request_count success_count error_count "
        "total_latency_ms min_latency_ms max_latency_ms p50_latency_ms p95_latency_ms p99_latency_ms estimated_cost team_id project_id "
        "cost_center_id feature environment api_key_id user_ids unique_user_count provider_metadata sync_id synced_at created_at"
    )
    assert set(mapped.split()) <= set(found[0]) and len(found) == 20
    assert [row["timestamp"] for row in found] == sorted((row["timestamp"] for row in found), reverse=True)


def test_sections_5_and_7_hours_and_days(acme: UsageCase, send: Send) -> None:
    read = "provider model model_family feature input_tokens output_tokens total_tokens cached_input_tokens request_count error_count estimated_cost"
    hours = send(
        "SELECT * FROM hourly_usage_rollup WHERE org_id = %(org)s AND hour >= %(start)s AND hour < %(end)s ORDER BY hour ASC"
    )
    days = send("SELECT * FROM daily_usage_rollup WHERE org_id = %(org)s AND date >= %(start)s AND date < %(end)s")
    used = acme.within(START, END)
    assert {*read.split(), "hour"} <= set(hours[0]) and {*read.split(), "date"} <= set(days[0])
    assert sum(row["total_tokens"] for row in days) == summed(used)["total_tokens"]
    assert sum(row["total_tokens"] for row in hours) == summed([u for u in used if u.record.granularity != "1d"])["total_tokens"]


def test_section_6_drilldown_over_records(send: Send) -> None:
    found = send(
        "SELECT feature, input_tokens, output_tokens, total_tokens, request_count, error_count, estimated_cost FROM usage_records "
        "WHERE org_id = %(org)s AND model = 'g-1' AND timestamp >= %(start)s AND timestamp < %(end)s"
    )
    ours = send("SELECT * FROM get_usage_drilldown(%(org)s, %(start)s, %(end)s, '{\"model\": \"g-1\"}', 'feature')")
    assert sum(row["total_tokens"] for row in found) == sum(row["total_tokens"] for row in ours) > 0


@pytest.mark.parametrize("scope", ["team_id", "project_id", "api_key_id", "feature"])
def test_section_8_usage_in_a_quotas_scope(send: Send, scope: str) -> None:
    (value,) = (row["v"] for row in send(f"SELECT min({scope}::text) AS v FROM usage_records WHERE org_id = %(org)s"))
    found = send(
        "SELECT input_tokens, output_tokens, total_tokens, request_count FROM usage_records "
        f"WHERE org_id = %(org)s AND timestamp >= %(start)s AND timestamp < %(end)s AND {scope} = %(value)s",
        value=value,
    )
    assert found


def test_section_9_attribution_reads(acme: UsageCase, send: Send) -> None:
    (first,) = send("SELECT id FROM usage_records WHERE org_id = %(org)s ORDER BY timestamp LIMIT 1")
    assert len(send("SELECT * FROM usage_records WHERE id = %(id)s", id=str(first["id"]))) == 1
    (day,) = send(
        "SELECT * FROM user_activity WHERE org_id = %(org)s AND user_identifier = 'ann' AND activity_date = '2026-06-02'"
    )
    ann = [u for u in acme.within(DAY + 24 * HOUR, DAY + 48 * HOUR) if u.record.user_id == "ann"]
    assert (day["total_tokens"], day["request_count"]) == (summed(ann)["total_tokens"], len(ann))
    report = send(
        "SELECT * FROM user_activity WHERE org_id = %(org)s AND activity_date >= %(start)s AND activity_date < %(end)s "
        "AND user_identifier = 'bob' ORDER BY activity_date DESC"
    )
    read = (
        "user_identifier user_display_name total_tokens input_tokens output_tokens cached_tokens request_count error_count "
        "estimated_cost model_usage feature_usage first_activity_at last_activity_at activity_date"
    )
    assert set(read.split()) <= set(report[0])
    assert [row["activity_date"] for row in report] == [DAY.date() + timedelta(days=n) for n in (3, 2, 1, 0)]
    coverage = send(
        "SELECT id, team_id, project_id, cost_center_id, feature, user_ids, total_tokens, request_count FROM usage_records "
        "WHERE org_id = %(org)s AND timestamp >= %(start)s AND timestamp < %(end)s"
    )
    assert coverage


def test_section_11_comparison(acme: UsageCase, send: Send) -> None:
    dates = {"start": "2026-06-01", "end": "2026-06-04"}
    rows = send("SELECT * FROM daily_usage_rollup WHERE org_id = %(org)s AND date >= %(start)s AND date <= %(end)s AND provider IN ('google', 'aws')", **dates)  # fmt: skip
    used = [u for u in acme.within(START, END) if u.provider == "google"]
    assert known(row["request_count"] for row in rows) == len(used)
    for column in ("provider", "model", "feature", "team_id"):
        named = send(
            f"SELECT {column}, total_tokens, request_count FROM daily_usage_rollup WHERE org_id = %(org)s AND date >= %(start)s "
            f"AND date <= %(end)s AND {column} IS NOT NULL", **dates,
        )  # fmt: skip
        assert named


def test_a_number_is_a_number_where_the_program_expects_one(send: Send) -> None:
    """`Number(x) || 0` takes NULL; what must never come is text or a type that JSON has no number for."""
    (row,) = send("SELECT to_jsonb(s) AS s FROM get_usage_summary(%(org)s, %(start)s, %(end)s) AS s")
    kinds = {name: type(value) for name, value in row["s"].items()}
    assert {name for name, kind in kinds.items() if kind is str} == {"currency"}
    (empty,) = send("SELECT * FROM get_usage_summary(%(org)s, '2020-01-01', '2020-02-01')")
    assert (empty["total_tokens"], empty["total_requests"], empty["estimated_cost"]) == (0, 0, 0)


def test_what_is_asked_wrongly_is_one_clear_sentence(send: Send) -> None:
    for statement, message in (
        ("get_usage_trend(%(org)s, %(start)s, %(end)s, 'second')", "p_granularity is 'second'; it must be one of minute, hour, day, week, month."),
        ("get_usage_trend(%(org)s, %(start)s, %(end)s, 'day', 'users')", "p_metric is 'users'; it must be one of tokens, requests, errors, cost, latency."),
        ("get_usage_breakdown(%(org)s, %(start)s, %(end)s, 'colour')", "The dimension is 'colour'; it must be one of provider, model,"),
        ("get_usage_breakdown(%(org)s, %(start)s, %(end)s, 'model', -1)", "p_limit is -1; it must be 0 or more, or NULL for all."),
        ("get_top_users(%(org)s, '2026-06-01', '2026-06-05', 10, 'name')", "p_order_by is 'name'; it must be one of tokens, requests, cost."),
        ("get_usage_summary(NULL, %(start)s, %(end)s)", "The organisation, the start or the end is NULL"),
        ("get_usage_drilldown(%(org)s, %(start)s, %(end)s, '[1]', 'model')", "p_path is [1]; it must be an object of dimensions and values"),
        ("get_usage_frame(%(org)s, %(start)s, %(end)s, '{colour}')", "The dimension is 'colour'; it must be one of provider, model,"),
        ("get_usage_frame(%(org)s, %(start)s, %(end)s, '{}', 'second')", "p_granularity is 'second'; it must be one of minute, hour, day, week, month"),
        ("get_usage_frame(%(org)s, %(start)s, %(end)s, '{}', 'day', NULL)", "p_path is NULL; it must be an object of dimensions and values"),
        ("get_current_usage_rate(%(org)s, 0)", "p_minutes 0,"),
    ):  # fmt: skip
        with pytest.raises(psycopg.Error) as caught:
            send(f"SELECT * FROM {statement}")
        assert message in str(caught.value)


def test_the_current_rate_is_read_from_the_minutes_before_a_moment(acme: UsageCase, send: Send) -> None:
    until = datetime.fromisoformat("2026-06-03T12:00:00+00:00")
    (row,) = send("SELECT * FROM get_current_usage_rate(%(org)s, 90, %(until)s)", until=until)
    used = [u for u in acme.within(until - timedelta(minutes=90), until) if u.record.granularity == "1m"]
    expected = summed(used)
    assert (row["total_tokens"], row["requests"], row["record_count"]) == (
        expected["total_tokens"],
        expected["request_count"],
        len(used),
    )
    assert row["tokens_per_minute"] == pytest.approx(expected["total_tokens"] / 90)
    assert row["last_usage_at"] == max(u.moment for u in used)
    (now,) = send("SELECT * FROM get_current_usage_rate(p_org_id => %(org)s)")
    assert now["period_end"] - now["period_start"] == timedelta(hours=1)
