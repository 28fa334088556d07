"""Each correction to the stored functions: the specification's own function on the same rows fails or is wrong, ours is right."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from bench.spec_schema import COLUMNS, SCHEMA, fill_references
from tests.dbt.usage_case import UsageCase, percentile, summed
from tests.warehouse_data import DAY, HOUR
from tokentra_dagster.warehouse.directory import find_connection

SPEC_FUNCTIONS = Path(__file__).parents[2] / "bench" / "spec_functions.sql"
WEEK = (DAY, DAY + 144 * HOUR)


@pytest.fixture(scope="module")
def spec(acme: UsageCase) -> Iterator[UsageCase]:
    """Beside ours, a schema `spec`: its tables of section 2 with the very rows of ours, its functions as written."""
    names = ", ".join(COLUMNS)
    with acme.database.connect() as db:
        db.execute(SCHEMA)
        db.execute("CREATE TABLE spec.usage_records_all PARTITION OF spec.usage_records DEFAULT")
        fill_references(db)
        # Its columns are NOT NULL where the sources know nothing; the zeros are its own defaults.
        values = ", ".join(
            f"coalesce({name}, 0)" if name in ("request_count", "success_count", "error_count") else name for name in COLUMNS
        )
        db.execute(f"INSERT INTO spec.usage_records ({names}) SELECT {values} FROM raw.usage_records")
        db.execute(
            "CREATE TABLE spec.user_activity AS SELECT org_id, user_identifier, user_display_name, activity_date, total_tokens, "
            "request_count, estimated_cost, CASE WHEN user_identifier <> 'cy' THEN model_usage ELSE '{}' END AS model_usage, "
            "last_activity_at FROM marts.user_activity WHERE user_identifier IS NOT NULL"
        )
        db.execute("SET search_path = spec")
        db.execute(SPEC_FUNCTIONS.read_text())
    yield acme
    with acme.database.connect() as db:
        db.execute("DROP SCHEMA spec CASCADE")


def ask(case: UsageCase, schema: str, statement: str, *arguments: Any, zone: str = "UTC") -> list[dict[str, Any]]:
    with case.database.connect() as db:
        db.execute(f"SET search_path = {schema}")
        db.execute(f"SET timezone = '{zone}'")
        return db.execute(f"SELECT * FROM {statement}", arguments).fetchall()


def both(
    case: UsageCase, statement: str, *arguments: Any, zone: str = "UTC"
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return ask(case, "spec", statement, *arguments, zone=zone), ask(case, "marts", statement, *arguments, zone=zone)


def mended(case: UsageCase) -> None:
    """Its trend with the cast that lets it run (correction 12), to see what else is wrong with it."""
    with case.database.connect() as db:
        db.execute("SET search_path = spec")
        db.execute(SPEC_FUNCTIONS.read_text().replace("END AS value", "END::BIGINT AS value"))


def test_5_days_are_utc_in_every_session(spec: UsageCase) -> None:
    mended(spec)
    arguments = (spec.org_id, *WEEK)
    theirs, ours = both(spec, "get_usage_trend(%s, %s, %s)", *arguments, zone="Asia/Kolkata")
    assert len(theirs) == 7
    assert [row["time_bucket"].astimezone(UTC) for row in ours] == [DAY + n * 24 * HOUR for n in range(6)]
    assert {row["time_bucket"].astimezone(UTC).hour for row in theirs} == {18}


def test_6_percentiles_are_of_requests_not_of_records(spec: UsageCase) -> None:
    theirs, ours = both(spec, "get_usage_summary(%s, %s, %s)", spec.org_id, *WEEK)
    used = spec.within(*WEEK)
    assert theirs[0]["p95_latency_ms"] is None
    assert ours[0]["p95_latency_ms"] == percentile(used, 0.95) and ours[0]["latency_is_approximate"] is False


def test_7_a_user_is_counted_once(spec: UsageCase) -> None:
    theirs, ours = both(spec, "get_usage_summary(%s, %s, %s)", spec.org_id, *WEEK)
    assert theirs[0]["unique_users"] > 100
    assert ours[0]["unique_users"] == 3


def test_9_and_11_the_same_usage_is_not_counted_again(spec: UsageCase) -> None:
    theirs, ours = both(spec, "get_usage_summary(%s, %s, %s)", spec.org_id, *WEEK)
    expected = summed(spec.within(*WEEK))["total_tokens"]
    assert ours[0]["total_tokens"] == expected < theirs[0]["total_tokens"]


def test_10_more_than_two_thousand_million_requests(spec: UsageCase) -> None:
    with spec.database.connect() as db:
        other = find_connection(db, "globex/openai").org_id
    for function in ("get_usage_summary(%s, %s, %s)", "get_usage_breakdown(%s, %s, %s, 'model')"):
        with pytest.raises(psycopg.errors.NumericValueOutOfRange):
            ask(spec, "spec", function, other, *WEEK)
        (ours,) = ask(spec, "marts", function, other, *WEEK)
        assert ours["total_requests" if "total_requests" in ours else "request_count"] == 4_800_000_000


def test_12_and_17_a_trend_runs_and_its_cost_is_decimal(spec: UsageCase) -> None:
    with spec.database.connect() as db:
        db.execute("SET search_path = spec")
        db.execute(SPEC_FUNCTIONS.read_text())
    with pytest.raises(psycopg.errors.DatatypeMismatch):
        ask(spec, "spec", "get_usage_trend(%s, %s, %s)", spec.org_id, *WEEK)
    mended(spec)
    theirs, ours = both(spec, "get_usage_trend(%s, %s, %s, 'day', 'cost')", spec.org_id, DAY, DAY + 24 * HOUR)
    assert ours[0]["value"] == summed(spec.within(DAY, DAY + 24 * HOUR))["estimated_cost"]
    assert isinstance(ours[0]["value"], Decimal) and isinstance(theirs[0]["value"], int) and theirs[0]["value"] > 10**6


def test_13_every_metric_and_granularity_is_what_it_says(spec: UsageCase) -> None:
    mended(spec)
    theirs, ours = both(spec, "get_usage_trend(%s, %s, %s, 'day', 'latency')", spec.org_id, *WEEK)
    assert [row["value"] for row in theirs] == [row["input_tokens"] + row["output_tokens"] for row in theirs]
    assert [round(row["value"]) for row in ours] == [row["avg_latency_ms"] for row in ours]
    theirs, ours = both(spec, "get_usage_trend(%s, %s, %s, 'day', 'errors')", spec.org_id, *WEEK)
    assert theirs[0]["value"] > 10_000
    assert [row["value"] for row in ours] == [
        summed(spec.within(DAY + n * 24 * HOUR, DAY + (n + 1) * 24 * HOUR))["error_count"] for n in range(6)
    ]
    ask(spec, "spec", "get_usage_trend(%s, %s, %s, 'day', 'nonsense')", spec.org_id, *WEEK)
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="it must be one of tokens, requests, errors, cost, latency"):
        ask(spec, "marts", "get_usage_trend(%s, %s, %s, 'day', 'nonsense')", spec.org_id, *WEEK)


@pytest.mark.parametrize(
    "dimension", ["user", "apiKey", "serviceType", "team", "project", "modelFamily", "requestType", "service_type", "cost_center"]
)
def test_14_every_dimension_of_table_1_5_works(spec: UsageCase, dimension: str) -> None:
    with pytest.raises(psycopg.errors.UndefinedColumn):
        ask(spec, "spec", "get_usage_breakdown(%s, %s, %s, %s)", spec.org_id, *WEEK, dimension)
    ours = ask(spec, "marts", "get_usage_breakdown(%s, %s, %s, %s)", spec.org_id, *WEEK, dimension)
    assert sum(row["total_tokens"] for row in ours) == summed(spec.within(*WEEK))["total_tokens"]


def test_15_totals_do_not_shrink_with_the_limit(spec: UsageCase) -> None:
    theirs, ours = both(spec, "get_usage_breakdown(%s, %s, %s, 'model', 2)", spec.org_id, *WEEK)
    assert len(theirs) == 2 and sum(row["percentage"] for row in theirs) < 99
    assert [row["dimension_value"] for row in ours][2:] == ["Other"]
    assert ours[2]["other_count"] == len({u.record.model for u in spec.within(*WEEK)}) - 2
    assert sum(row["percentage"] for row in ours) == pytest.approx(100)


def test_16_a_user_with_several_models_is_counted_once_and_one_without_stays(spec: UsageCase) -> None:
    theirs, ours = both(spec, "get_top_users(%s, %s, %s)", spec.org_id, WEEK[0].date(), WEEK[1].date())
    used = spec.within(*WEEK)
    expected = {user: summed([u for u in used if u.record.user_id == user]) for user in ("ann", "bob", "cy")}
    assert {row["user_identifier"]: row["total_tokens"] for row in ours} == {u: s["total_tokens"] for u, s in expected.items()}
    found = {row["user_identifier"]: row for row in theirs}
    assert found.keys() == {"ann", "bob"}
    assert found["ann"]["total_tokens"] > 2 * expected["ann"]["total_tokens"]
    (ann,) = (row for row in ours if row["user_identifier"] == "ann")
    assert sum(model["tokens"] for model in ann["model_usage"].values()) == ann["total_tokens"]
    assert sum(model["tokens"] for model in found["ann"]["model_usage"].values()) < ann["total_tokens"]


def test_20_the_boundary_day_is_in_one_period_only(spec: UsageCase) -> None:
    """Section 11 reads `date <= end`: of two adjoining periods both hold the day between them."""
    middle = DAY + 72 * HOUR
    inclusive = "(SELECT sum(total_tokens)::bigint AS tokens FROM marts.daily_usage_rollup WHERE org_id = %s AND date >= %s AND date <= %s) AS r"
    halves = [(DAY, middle), (middle, WEEK[1])]
    everything = summed(spec.within(*WEEK))["total_tokens"]
    theirs = sum(ask(spec, "spec", inclusive, spec.org_id, start.date(), end.date())[0]["tokens"] for start, end in halves)
    ours = sum(ask(spec, "marts", "get_usage_summary(%s, %s, %s)", spec.org_id, *half)[0]["total_tokens"] for half in halves)
    assert ours == everything < theirs
    (row,) = ask(spec, "marts", "get_usage_comparison(%s, %s, %s, %s, %s)", spec.org_id, middle, WEEK[1], DAY, middle)
    assert row["current_tokens"] + row["previous_tokens"] == everything


def test_23_a_value_outside_the_first_ten_is_neither_new_nor_churned(spec: UsageCase) -> None:
    """Section 6 compares two lists of the top N; with N = 1 the day's second model looks new or gone."""
    days = [(DAY + n * 24 * HOUR, DAY + (n + 1) * 24 * HOUR) for n in (3, 4)]
    tops = [
        {row["dimension_value"] for row in ask(spec, "spec", "get_usage_breakdown(%s, %s, %s, 'model', 2)", spec.org_id, *day)}
        for day in days
    ]
    truly = [{u.record.model for u in spec.within(*day)} for day in days]
    assert truly[0] == truly[1] and tops[0] != tops[1]
    ours = ask(spec, "marts", "get_usage_comparison(%s, %s, %s, %s, %s, 'model')", spec.org_id, *days[1], *days[0])
    assert {row["dimension_value"] for row in ours} == truly[0]
    assert not any(row["is_new"] or row["is_churned"] for row in ours)


def test_33_totals_beside_a_limited_list_cover_everyone(spec: UsageCase) -> None:
    (first,) = ask(spec, "marts", "get_top_users(%s, %s, %s, 1)", spec.org_id, WEEK[0].date(), WEEK[1].date())
    coverage = {row["dimension"]: row for row in ask(spec, "marts", "get_usage_coverage(%s, %s, %s)", spec.org_id, *WEEK)}
    used = spec.within(*WEEK)
    assert (
        coverage["user"]["attributed_tokens"]
        == summed([u for u in used if u.record.user_id])["total_tokens"]
        > first["total_tokens"]
    )
    assert coverage["user"]["total_tokens"] == summed(used)["total_tokens"]


def test_42_active_features_and_requests_per_minute_are_computed(spec: UsageCase) -> None:
    theirs, ours = both(spec, "get_usage_summary(%s, %s, %s)", spec.org_id, *WEEK)
    assert not {"unique_features", "requests_per_minute"} & set(theirs[0])
    assert ours[0]["unique_features"] == 2
    assert ours[0]["requests_per_minute"] == pytest.approx(ours[0]["total_requests"] / (timedelta(days=6) / timedelta(minutes=1)))
