"""Who used how much (section 9; correction 33)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analytics.golden import assert_equal
from tests.analytics.recorded_usage import RecordedUsage, usage_row
from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.analytics.results import as_json
from tokentra_dagster.analytics.user_report import analyze_user_activity, metric_rows, report_of
from tokentra_dagster.errors import UsageError

DAY = datetime(2026, 6, 1, tzinfo=UTC)
JUNE = Period(DAY, DAY + timedelta(days=30))
ROWS = [
    usage_row(DAY, user="ann", total_tokens=300, request_count=1, estimated_cost=Decimal("0.10")),
    usage_row(DAY + timedelta(days=2), user="ann", total_tokens=300, request_count=1, estimated_cost=Decimal("0.20")),
    usage_row(DAY, user="bob", total_tokens=500, request_count=9, estimated_cost=Decimal("0.05")),
    usage_row(DAY, user="cid", total_tokens=10, request_count=5, estimated_cost=Decimal("0.70")),
    usage_row(DAY, user=None, total_tokens=90, request_count=50, estimated_cost=Decimal("9")),
]
USAGE = RecordedUsage.of(ROWS)


@pytest.mark.parametrize("order", ["tokens", "requests", "cost"])
def test_the_worked_examples(golden, order):
    expected = golden.answer(f"userReport.{order}")
    found = as_json(analyze_user_activity(golden.usage, golden.period, order, limit=len(expected["users"])))
    assert found["period"] == expected["period"]
    figure = {"tokens": "totalTokens", "requests": "requestCount", "cost": "estimatedCost"}[order]
    assert_equal([user[figure] for user in found["users"]], [user[figure] for user in expected["users"]])
    # Users with equal figures may swap, also across the limit: each expected one must be as expected.
    everyone = {
        user["userIdentifier"]: user for user in as_json(analyze_user_activity(golden.usage, golden.period, order))["users"]
    }
    for user in expected["users"]:
        assert_equal(everyone[user["userIdentifier"]], user)


@pytest.mark.parametrize(
    ("order", "expected"),
    [("tokens", ["ann", "bob", "cid"]), ("requests", ["bob", "cid", "ann"]), ("cost", ["cid", "ann", "bob"])],
)
def test_users_come_in_the_order_asked_for(order, expected):
    found = analyze_user_activity(USAGE, JUNE, order)
    assert [user.user_identifier for user in found.users] == expected


def test_totals_cover_everyone_whatever_the_limit():
    """Correction 33: the specification adds up what is left after the limit."""

    def specification(limit: int) -> tuple[int, int]:
        users = sorted(({"ann": 600, "bob": 500, "cid": 10}).values(), reverse=True)[:limit]
        return len(users), sum(users)

    assert specification(1) == (1, 600)
    limited, all_of_them = (analyze_user_activity(USAGE, JUNE, limit=limit) for limit in (1, None))
    assert limited.totals == all_of_them.totals
    assert [len(report.users) for report in (limited, all_of_them)] == [1, 3]
    totals = limited.totals
    assert (totals.total_users, totals.total_tokens, totals.total_requests, totals.total_cost) == (3, 1_110, 16, Decimal("1.05"))
    assert (totals.avg_tokens_per_user, totals.avg_cost_per_user, totals.unattributed_tokens) == (370, Decimal("0.35"), 90)


def test_one_user_is_one_row_however_many_days_and_models():
    found = analyze_user_activity(USAGE, JUNE, user="ann")
    (ann,) = found.users
    assert (ann.total_tokens, ann.active_days, ann.estimated_cost, ann.token_share_pct) == (600, 2, Decimal("0.30"), 100)
    assert (ann.first_activity, ann.last_activity) == (DAY, DAY + timedelta(days=2))
    assert ann.model_usage == {"gpt-4o-2024-08-06": {"tokens": 600, "requests": 2}}
    assert (found.totals.total_users, found.totals.total_tokens, found.totals.unattributed_tokens) == (1, 600, None)


@pytest.mark.parametrize("usage", [RecordedUsage.of([]), RecordedUsage.of([usage_row(DAY, user=None)])])
def test_without_users_totals_are_zero_and_averages_unknown(usage):
    found = analyze_user_activity(usage, JUNE)
    assert (found.users, found.totals.total_users, found.totals.total_tokens, found.totals.total_cost) == ((), 0, 0, 0)
    assert (found.totals.avg_tokens_per_user, found.totals.avg_cost_per_user) == (None, None)
    as_json(found)
    assert analyze_user_activity(USAGE, JUNE, user="nobody").users == ()


def test_a_period_inside_days_covers_those_days():
    found = analyze_user_activity(USAGE, Period(DAY + timedelta(hours=5), DAY + timedelta(days=2, hours=5)))
    assert (str(found.period.start_date), str(found.period.end_date)) == ("2026-06-01", "2026-06-04")
    assert found.totals.total_tokens == 1_110
    assert as_json(analyze_user_activity(USAGE, JUNE))["period"] == {"startDate": "2026-06-01", "endDate": "2026-07-01"}


def test_unknown_figures_stay_unknown():
    row = dict(USAGE.users(JUNE)[0]) | {
        "estimated_cost": None,
        "request_count": None,
        "first_activity_at": None,
        "model_usage": None,
    }
    found = report_of([row], JUNE, "USD")
    assert (found.totals.total_cost, found.totals.total_requests, found.totals.avg_cost_per_user) == (None, None, None)
    assert (found.users[0].estimated_cost, found.users[0].first_activity, found.users[0].model_usage) == (None, None, {})
    as_json(found)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [({"order_by": "latency"}, "'latency'; it must be one of tokens, requests, cost"), ({"limit": 0}, "at least 1")],
)
def test_an_impossible_report_says_why(arguments, says):
    with pytest.raises(UsageError, match=says):
        analyze_user_activity(USAGE, JUNE, **arguments)


def test_rows_are_totals_and_the_reports_users():
    found = analyze_user_activity(USAGE, JUNE, limit=2)
    rows = {(row.metric, row.dimension_value): row.value for row in metric_rows(found)}
    assert (rows["total_tokens", None], rows["total_tokens", "ann"], rows["total_cost", "bob"]) == (1_110, 600, Decimal("0.05"))
    assert rows["token_share_pct", "ann"] == pytest.approx(600 / 1_110 * 100)
    assert len(rows) == 7 + 2 * 6


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([None, "ann", "bob", "cid"]), st.integers(0, 10**12), st.integers(0, 40)), max_size=10),
    st.integers(1, 4),
)
def test_users_and_the_rest_are_all_usage(rows, limit):
    usage = RecordedUsage.of([usage_row(DAY + timedelta(days=day), user=user, total_tokens=tokens) for user, tokens, day in rows])
    found = analyze_user_activity(usage, JUNE, limit=limit)
    as_json(found)
    everything = sum(tokens for _, tokens, day in rows if day < 30)
    assert found.totals.total_tokens + found.totals.unattributed_tokens == everything
    assert len(found.users) == min(limit, found.totals.total_users)
