"""The dashboard as one call (specification 3 and 4)."""

from __future__ import annotations

import re
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pytest

from tests.analytics.golden import Golden, assert_equal
from tests.analytics.recorded_usage import RecordedUsage, usage_row
from tokentra_dagster.analytics.dashboard import (
    DashboardParameters,
    QuotaStatus,
    RecentRecord,
    metric_rows,
    recent_record,
    top_users,
    usage_dashboard,
)
from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.analytics.results import as_json, camel

START = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)
FORTNIGHT = Period(START, START + 14 * DAY)
MIGRATIONS = Path(__file__).parents[2] / "tokentra_dagster" / "warehouse" / "migrations"
QUOTA = {
    "quota_id": UUID(int=7), "quota_name": "Search per month", "scope_type": "feature", "current_tokens": 50, "token_limit": 100,
    "token_utilization_pct": 50.0, "current_requests": None, "request_limit": None, "request_utilization_pct": None,
    "status": "ok", "period_remaining_hours": 12,
}  # fmt: skip
RECORD_FIELDS = (
    "id orgId providerConnectionId provider timestamp bucketStart bucketEnd granularity model modelFamily requestType serviceTier "
    "inputTokens outputTokens totalTokens cachedInputTokens cacheCreationTokens requestCount successCount errorCount totalLatencyMs "
    "minLatencyMs maxLatencyMs p50LatencyMs p95LatencyMs p99LatencyMs estimatedCost teamId projectId costCenterId feature "
    "environment apiKeyId userIds uniqueUserCount providerMetadata syncId syncedAt createdAt"
)


def test_the_worked_examples(golden: Golden):
    found = as_json(usage_dashboard(golden.usage, golden.period))
    assert_equal(found["summary"], golden.expected.get("summary.previous", golden.expected["summary"]))
    assert_equal(found["tokenTrend"], golden.answer("trend.day.tokens"))
    assert_equal(found["requestTrend"], golden.answer("trend.day.requests"))
    assert_equal(found["modelBreakdown"], golden.answer("breakdown.model"))
    assert_equal(found["featureBreakdown"], golden.answer("breakdown.feature"))


def test_a_dashboard_has_the_parts_of_the_specification():
    usage = RecordedUsage.of([usage_row(START, user="ada")], quotas=[QUOTA], names={"user": {"ada": "Ada Lovelace"}})
    found = as_json(usage_dashboard(usage, FORTNIGHT))
    assert list(found) == [
        "summary", "tokenTrend", "requestTrend", "modelBreakdown", "featureBreakdown", "topUsers", "quotaStatuses", "recentActivity",
    ]  # fmt: skip
    assert found["topUsers"] == [
        {"userIdentifier": "ada", "userDisplayName": "Ada Lovelace", "totalTokens": 110, "requestCount": 1, "estimatedCost": 0.01,
         "modelUsage": {"gpt-4o-2024-08-06": {"tokens": 110, "requests": 1}}, "lastActivityAt": "2026-06-01T00:00:00Z", "rank": 1}
    ]  # fmt: skip
    assert found["quotaStatuses"] == [{camel(name): str(value) if name == "quota_id" else value for name, value in QUOTA.items()}]
    assert found["summary"]["comparison"]["period"] == "previous"
    assert found["recentActivity"][0]["userIds"] == ["ada"]


def test_each_list_has_its_length():
    rows = [
        usage_row(
            START + timedelta(hours=place), model=f"m{place}", feature=f"f{place}", user=f"u{place}", input_tokens=1000 - place
        )
        for place in range(30)
    ]
    found = usage_dashboard(RecordedUsage.of(rows), FORTNIGHT)
    for breakdown in (found.model_breakdown, found.feature_breakdown):
        assert (len(breakdown.items), breakdown.items[-1].is_other, breakdown.other_count) == (9, True, 22)
        assert breakdown.total.tokens == found.summary.total_tokens
    assert [(user.rank, user.user_identifier) for user in found.top_users] == [(place + 1, f"u{place}") for place in range(10)]
    assert [record.model for record in found.recent_activity] == [f"m{place}" for place in range(29, 9, -1)]
    few = usage_dashboard(RecordedUsage.of(rows), FORTNIGHT, parameters=DashboardParameters(2, 3, 4))
    assert (len(few.model_breakdown.items), len(few.top_users), len(few.recent_activity)) == (3, 3, 4)


def test_the_whole_of_a_narrowed_dashboard_is_narrowed():
    """The specification passes filters on to functions that have none, so its trends and breakdowns are of everything."""
    usage = RecordedUsage.of([usage_row(START, model="a", feature="x"), usage_row(START, model="b", feature="y", input_tokens=5)])
    found = usage_dashboard(usage, FORTNIGHT, {"model": "b"})
    assert found.summary.total_tokens == 15
    assert [point.value for point in found.token_trend.data] == [15]
    assert [point.value for point in found.request_trend.data] == [1]
    assert [item.dimension_value for item in found.model_breakdown.items] == ["b"]
    assert [item.dimension_value for item in found.feature_breakdown.items] == ["y"]


@pytest.mark.parametrize(
    ("start", "end"), [(START + timedelta(hours=9), START + timedelta(hours=17)), (START, START + DAY), (START - DAY, START + timedelta(hours=1))]
)  # fmt: skip
def test_users_of_part_of_a_day_are_found(start, end):
    """`get_top_users` takes days and leaves the last one out: as dates alone, a part of one day is no day at all."""
    usage = RecordedUsage.of([usage_row(START + timedelta(hours=9), user="ada"), usage_row(START + DAY, user="bob")])
    assert [user.user_identifier for user in top_users(usage, Period(start, end))] == ["ada"]


def test_a_recent_record_has_the_specifications_fields_and_the_tables_columns():
    assert " ".join(camel(field.name) for field in fields(RecentRecord)) == RECORD_FIELDS
    table = re.search(r"CREATE TABLE raw\.usage_records \((.*?)\n\)", (MIGRATIONS / "initial.sql").read_text(), re.S)
    assert table
    assert {field.name for field in fields(RecentRecord)} <= set(re.findall(r"^  (\w+) ", table[1], re.M))


def test_a_record_without_users_or_counts_says_so():
    row = dict.fromkeys(field.name for field in fields(RecentRecord)) | {
        "provider": "anthropic",
        "timestamp": START,
        "model": "m",
    }
    found = as_json(recent_record(row))
    assert (found["userIds"], found["uniqueUserCount"], found["providerMetadata"]) == ([], None, {})
    assert (found["requestCount"], found["estimatedCost"]) == (None, None)


def test_a_quota_status_has_the_columns_of_its_function():
    text = (MIGRATIONS / "quota_status.sql").read_text()
    columns = re.search(r"check_quota_status\(p_quota_id UUID\) RETURNS TABLE \((.*?)\n\)", text, re.S)
    assert columns
    assert [field.name for field in fields(QuotaStatus)] == re.findall(r"^  (\w+) ", columns[1], re.M)


@pytest.mark.parametrize("period", [FORTNIGHT, Period(START, START + timedelta(minutes=5)), Period(START, START + 400 * DAY)])
@pytest.mark.parametrize(
    "rows",
    [[], [usage_row(START)], [usage_row(START, input_tokens=0, output_tokens=0, request_count=0, estimated_cost=Decimal(0))],
     [usage_row(START, request_count=None, success_count=None, error_count=None, cached_tokens=None, estimated_cost=None)]],
    ids=["empty", "one row", "zeros", "unknown"],
)  # fmt: skip
def test_the_edges_have_sensible_answers(rows, period):
    found = usage_dashboard(RecordedUsage.of(rows), period)
    as_json(found)
    assert found.summary.total_tokens == found.model_breakdown.total.tokens == sum(row["total_tokens"] for row in rows)
    assert len(found.token_trend.data) == len(rows)
    assert found.token_trend.analysis.direction == "stable"
    assert metric_rows(found)


def test_the_dashboard_as_one_table():
    usage = RecordedUsage.of([usage_row(START, user="ada", feature="search")], quotas=[QUOTA])
    rows = metric_rows(usage_dashboard(usage, FORTNIGHT))
    found = {(row.metric, row.dimension, row.dimension_value, row.moment): row.value for row in rows}
    assert len(found) == len(rows)
    assert found["total_tokens", None, None, None] == 110
    assert found["tokens_by_day", None, None, START] == 110
    assert found["requests_by_day", None, None, START] == 1
    assert found["token_share_pct", "feature", "search", None] == 100.0
    assert found["total_tokens", "user", "ada", None] == 110
    assert found["token_utilization_pct", "quota", str(UUID(int=7)), None] == 50.0
