"""The worked examples: what the specification's own services answer for real rows, ours must too."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from psycopg.types.json import Jsonb

from tests.analytics.golden import GOLDEN, assert_equal, golden_case
from tests.dbt.golden_example import Example, built_example
from tokentra_dagster.analytics.breakdowns import drilldown
from tokentra_dagster.analytics.comparative import comparative_breakdown
from tokentra_dagster.analytics.dashboard import usage_dashboard
from tokentra_dagster.analytics.multidimensional import multi_dimensional_breakdown
from tokentra_dagster.analytics.periods import Granularity, Period
from tokentra_dagster.analytics.results import as_json
from tokentra_dagster.analytics.trends import multi_metric_trend
from tokentra_dagster.errors import UsageError
from tokentra_dagster.usage_source import WarehouseUsage

pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the worked examples are not beside this checkout (../shared/golden)")


@pytest.fixture(scope="module", params=["agents", "cluster"])
def example(request, server_url: str, template_database: str, dbt_target: Path) -> Iterator[Example]:
    with built_example(request.param, server_url, template_database, dbt_target) as built:
        yield built


def same(found: Any, expected: Any) -> bool:
    """Counts and names exactly, other numbers to 1e-9."""
    if isinstance(expected, float):
        return float(found) == pytest.approx(expected, rel=1e-9)
    if isinstance(expected, int) and not isinstance(found, int):
        return float(found) == pytest.approx(expected, rel=1e-9)
    return found == expected


def assert_same(row: dict[str, Any], expected: dict[str, Any], columns: dict[str, str]) -> None:
    wrong = {name: (row[column], expected[name]) for name, column in columns.items() if not same(row[column], expected[name])}
    assert wrong == {}


SUMMARY = {
    "totalTokens": "total_tokens", "inputTokens": "input_tokens", "outputTokens": "output_tokens", "cachedTokens": "cached_tokens",
    "totalRequests": "total_requests", "successRequests": "success_requests", "errorRequests": "error_requests",
    "errorRate": "error_rate", "cacheHitRate": "cache_hit_rate", "tokensPerRequest": "tokens_per_request",
    "avgLatencyMs": "avg_latency_ms", "estimatedCost": "estimated_cost", "requestsPerMinute": "requests_per_minute",
    "uniqueModels": "unique_models",
}  # fmt: skip
ITEM = {
    "dimensionValue": "dimension_value", "totalTokens": "total_tokens", "inputTokens": "input_tokens", "outputTokens": "output_tokens",
    "requestCount": "request_count", "errorCount": "error_count", "estimatedCost": "estimated_cost", "percentage": "percentage",
}  # fmt: skip


def test_the_summary(example: Example) -> None:
    (found,) = example.call("get_usage_summary(%s, %s, %s)", *example.period)
    assert_same(found, example.expected["summary"], SUMMARY)


@pytest.mark.parametrize("width", ["hour", "day", "week", "month"])
@pytest.mark.parametrize("metric", ["tokens", "requests"])
def test_the_trends(example: Example, width: str, metric: str) -> None:
    expected = example.expected[f"trend.{width}.{metric}"]["data"]
    found = example.call("get_usage_trend(%s, %s, %s, %s, %s)", *example.period, width, metric)
    assert [row["time_bucket"] for row in found] == [datetime.fromisoformat(point["timestamp"]) for point in expected]
    names = {
        "value": "value",
        "inputTokens": "input_tokens",
        "outputTokens": "output_tokens",
        "requests": "requests",
        "errorRate": "error_rate",
    }
    for row, point in zip(found, expected, strict=True):
        assert_same(row, point, names)


@pytest.mark.parametrize("dimension", ["provider", "model", "modelFamily", "feature", "environment", "apiKey", "requestType"])
def test_the_breakdowns(example: Example, dimension: str) -> None:
    """The examples stop at ten items; ours has the rest as one more (correction 15)."""
    expected = example.expected[f"breakdown.{dimension}"]["items"]
    found = example.call("get_usage_breakdown(%s, %s, %s, %s)", *example.period, dimension)
    for row, item in zip(found[: len(expected)], expected, strict=True):
        assert_same(row, item, ITEM | {"avgLatencyMs": "avg_latency_ms"})
    assert all(row["is_other"] for row in found[len(expected) :])
    assert sum(row["total_tokens"] for row in found) == example.expected["summary"]["totalTokens"]


def test_the_drilldown(example: Example) -> None:
    expected = example.expected["drilldown"]
    path = Jsonb({expected["primaryDimension"]: expected["primaryValue"]})
    found = example.call("get_usage_drilldown(%s, %s, %s, %s, %s)", *example.period, path, expected["secondaryDimension"])
    for row, item in zip(found, expected["items"], strict=True):
        assert_same(row, item, ITEM)


def test_the_coverage(example: Example) -> None:
    found = {row["dimension"]: row for row in example.call("get_usage_coverage(%s, %s, %s)", *example.period)}
    names = {
        "attributedRecords": "attributed_records", "attributedTokens": "attributed_tokens", "recordCoveragePct": "record_coverage_pct",
        "tokenCoveragePct": "token_coverage_pct", "totalRecords": "total_records", "totalTokens": "total_tokens",
    }  # fmt: skip
    for dimension, expected in example.expected["coverage"]["dimensions"].items():
        assert_same(found["cost_center" if dimension == "costCenter" else dimension], expected, names)


@pytest.mark.parametrize("order", ["tokens", "requests", "cost"])
def test_the_users_as_the_user_report_has_them(example: Example, order: str) -> None:
    expected = {user["userIdentifier"]: user for user in example.expected[f"userReport.{order}"]["users"]}
    found = example.call("get_top_users(%s, %s, %s, %s, %s)", *example.period, len(expected), order)
    names = {
        "totalTokens": "total_tokens", "inputTokens": "input_tokens", "outputTokens": "output_tokens", "requestCount": "request_count",
        "errorCount": "error_count", "estimatedCost": "estimated_cost", "modelUsage": "model_usage", "activeDays": "active_days",
    }  # fmt: skip
    ordered = {"tokens": "totalTokens", "requests": "requestCount", "cost": "estimatedCost"}[order]
    ranks = [float(user[ordered]) for user in expected.values()]
    assert [float(row[names[ordered]]) for row in found] == pytest.approx(ranks, rel=1e-9)
    for row in found:
        # Users with the very same figure may swap at the end of the list.
        if row["user_identifier"] in expected:
            user = expected[row["user_identifier"]]
            assert_same(row, user, names)
            assert row["feature_usage"] == user["featureUsage"]
            assert row["last_activity_at"] == datetime.fromisoformat(user["lastActivity"])


def test_the_comparison(example: Example) -> None:
    """All values, and a change from zero has no percentage (corrections 18, 23)."""
    if "comparativeBreakdown" not in example.expected:
        pytest.skip("this example has nothing before")
    expected = example.expected["comparativeBreakdown"]
    found = example.call(
        "get_usage_comparison(%s, %s, %s, %s, %s, 'model')", *example.period, example.case["prevStart"], example.case["prevEnd"]
    )
    by_model = {row["dimension_value"]: row for row in found}
    for item in expected["comparisons"]:
        row = by_model[item["dimensionValue"]]
        assert (row["token_change"], row["request_change"], row["is_new"]) == (
            item["tokenChange"], item["requestChange"], item["isNew"],
        )  # fmt: skip
        assert same(row["token_change_pct"], item.get("tokenChangePercent"))
    assert sum(row["is_new"] for row in found) == expected["summary"]["newItems"]
    assert sum(row["is_churned"] for row in found) == expected["summary"]["churnedItems"]
    (total,) = example.call(
        "get_usage_comparison(%s, %s, %s, %s, %s)", *example.period, example.case["prevStart"], example.case["prevEnd"]
    )
    assert total["token_change"] == expected["summary"]["totalGrowth"]
    assert same(total["token_change_pct"], expected["summary"]["growthPercent"])


@pytest.mark.parametrize("granularity", [None, "hour", "day", "week", "month"])
@pytest.mark.parametrize("by", [(), ("model",), ("feature", "environment"), ("user",), ("model", "api_key")], ids=str)
def test_the_frames_that_analytics_read(example: Example, by: tuple[str, ...], granularity: Granularity | None) -> None:
    """The warehouse's frame is what plain pandas makes of the rows: columns, types, order and every figure."""
    period = Period(datetime.fromisoformat(example.case["start"]), datetime.fromisoformat(example.case["end"]))
    expected = golden_case(example.name).usage.frame(period, by, granularity)
    with example.database.connect() as db:
        found = WarehouseUsage(db, example.org_id).frame(period, by, granularity)
    unknown = ["cache_creation_tokens", "unpriced_tokens"]
    pd.testing.assert_frame_equal(found.drop(columns=unknown), expected.drop(columns=unknown), check_freq=False)


def test_the_rest_of_what_analytics_read(example: Example) -> None:
    period = Period(datetime.fromisoformat(example.case["start"]), datetime.fromisoformat(example.case["end"]))
    recorded = golden_case(example.name).usage
    with example.database.connect() as db:
        usage = WarehouseUsage(db, example.org_id)
        assert usage.currency == "USD"
        assert usage.first_usage() == recorded.first_usage()
        where = {"model": example.case["drill"]}
        for found, expected in (
            (usage.summary(period), recorded.summary(period)),
            (usage.summary(period, where), recorded.summary(period, where)),
        ):
            names = (
                "total_tokens",
                "total_requests",
                "error_rate",
                "cache_hit_rate",
                "tokens_per_request",
                "unique_users",
                "estimated_cost",
            )
            assert {name: found[name] for name in names} == {name: pytest.approx(expected[name], rel=1e-12) for name in names}
        found_users, expected_users = usage.users(period), recorded.users(period)
        for name in (
            "user_identifier",
            "total_tokens",
            "estimated_cost",
            "active_days",
            "model_usage",
            "feature_usage",
            "last_activity_at",
        ):
            assert [row[name] for row in found_users] == [row[name] for row in expected_users]
        coverage = recorded.coverage(period)
        for name, found in usage.coverage(period).items():
            assert {key: found[key] for key in coverage[name]} == coverage[name]
        assert usage.quota_statuses() == []
        newest = usage.recent_activity(5)
        assert [row["timestamp"] for row in newest] == [row["timestamp"] for row in recorded.recent_activity(5)]


def test_the_analyses_of_sections_4_6_and_7_from_the_warehouse(example: Example) -> None:
    """The same answers as from the rows in memory (tests/analytics): the dashboard as one call, and what is beside it."""
    expected, case = example.expected, example.case
    period = Period(datetime.fromisoformat(case["start"]), datetime.fromisoformat(case["end"]))
    with example.database.connect() as db:
        usage = WarehouseUsage(db, example.org_id)
        dashboard = as_json(usage_dashboard(usage, period))
        assert_equal(dashboard["summary"], expected.get("summary.previous", expected["summary"]))
        assert_equal(dashboard["tokenTrend"], expected["trend.day.tokens"])
        assert_equal(dashboard["requestTrend"], expected["trend.day.requests"])
        assert_equal(dashboard["modelBreakdown"], expected["breakdown.model"])
        assert_equal(dashboard["featureBreakdown"], expected["breakdown.feature"])
        assert [user["rank"] for user in dashboard["topUsers"]] == list(range(1, len(dashboard["topUsers"]) + 1))
        newest = dashboard["recentActivity"]
        assert (len(newest), {record["orgId"] for record in newest}) == (20, {str(example.org_id)})
        assert newest[0]["timestamp"] == max(record["timestamp"] for record in newest)
        assert_equal(as_json(multi_metric_trend(usage, period, ["tokens", "requests"])), expected["multiMetric"])
        assert_equal(as_json(drilldown(usage, period, {"model": case["drill"]}, "feature")), expected["drilldown"])
        several = expected["multiDimensional"]
        assert_equal(as_json(multi_dimensional_breakdown(usage, period, several["dimensions"])), several)
        if "comparativeBreakdown" in expected:
            assert_equal(as_json(comparative_breakdown(usage, period, dimension="model")), expected["comparativeBreakdown"])


def test_a_team_that_is_given_by_its_name_is_refused_in_one_sentence(example: Example) -> None:
    period = Period(datetime.fromisoformat(example.case["start"]), datetime.fromisoformat(example.case["end"]))
    with example.database.connect() as db, pytest.raises(UsageError, match="given by its id"):
        WarehouseUsage(db, example.org_id).frame(period, where={"team": "Search"})
