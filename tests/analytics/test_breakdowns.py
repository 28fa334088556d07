"""Breakdowns and drilldowns (specification 4 and 6; corrections 14, 15, 24, 35)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analytics.golden import Golden, assert_equal
from tests.analytics.recorded_usage import RecordedUsage, usage_row
from tokentra_dagster.analytics.breakdowns import (
    BreakdownParameters,
    breakdown_of,
    drilldown,
    metric_rows,
    usage_breakdown,
)
from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.analytics.results import as_json
from tokentra_dagster.analytics.sources import COST, DIMENSIONS, total
from tokentra_dagster.errors import UsageError

START = datetime(2026, 6, 8, tzinfo=UTC)
WEEK = Period(START, START + timedelta(days=7))
BEFORE = START - timedelta(days=1)


def features(moment: datetime = START, /, **tokens: int) -> list[dict]:
    """A record of input tokens per feature; `none` is usage without one."""
    return [
        usage_row(moment, feature=None if name == "none" else name, input_tokens=count, output_tokens=0)
        for name, count in tokens.items()
    ]


def shown(found) -> dict[str, int]:
    return {item.dimension_value: item.total_tokens for item in found.items}


@pytest.mark.parametrize(
    "dimension", ["provider", "model", "modelFamily", "feature", "environment", "requestType", "apiKey", "team", "project"]
)
def test_the_worked_examples(golden: Golden, dimension):
    expected = golden.answer(f"breakdown.{dimension}")
    assert_equal(as_json(usage_breakdown(golden.usage, golden.period, dimension)), expected)


def test_the_worked_example_of_a_drilldown(golden: Golden):
    found = drilldown(golden.usage, golden.period, {"model": golden.case["drill"]}, "feature")
    assert_equal(as_json(found), golden.answer("drilldown"))


def test_an_item_has_every_field_of_the_specification():
    found = as_json(usage_breakdown(RecordedUsage.of(features(a=1)), WEEK, "requestType"))
    assert set(found) >= {"dimension", "items", "total", "otherCount"}
    assert set(found["items"][0]) >= {
        "dimensionValue", "dimensionLabel", "totalTokens", "inputTokens", "outputTokens", "requestCount", "errorCount",
        "avgLatencyMs", "estimatedCost", "percentage", "trend",
    }  # fmt: skip
    assert (set(found["total"]) >= {"tokens", "requests", "cost"}, found["dimension"]) == (True, "requestType")


def test_totals_do_not_shrink_with_the_limit():
    usage = RecordedUsage.of(features(a=60, b=25, c=10, d=4, e=1))
    found = usage_breakdown(usage, WEEK, "feature", limit=2)

    def specified_total(items) -> int:
        return sum(item.total_tokens for item in items if not item.is_other)

    assert specified_total(found.items) == 85
    assert shown(found) == {"a": 60, "b": 25, "Other": 15}
    assert (found.total.tokens, found.total.requests, found.total.cost, found.other_count) == (100, 5, Decimal("0.05"), 3)
    other = found.items[-1]
    assert (other.is_other, other.percentage, other.request_count, other.estimated_cost) == (True, 15.0, 3, Decimal("0.03"))
    whole = usage_breakdown(usage, WEEK, "feature", limit=5)
    assert (len(whole.items), whole.other_count, whole.total) == (5, None, found.total)


def test_usage_without_a_value_is_unknown():
    found = usage_breakdown(RecordedUsage.of(features(none=70, a=30)), WEEK, "feature")
    assert shown(found) == {"Unknown": 70, "a": 30}
    assert [(item.is_unknown, item.dimension_label) for item in found.items] == [(True, "Unknown"), (False, "a")]


def test_a_value_called_unknown_is_one_with_usage_that_has_none():
    """A drilldown into Unknown takes both, so the breakdown above it does."""
    found = usage_breakdown(RecordedUsage.of(features(none=70, a=75) + features(Unknown=10)), WEEK, "feature")
    assert shown(found) == {"Unknown": 80, "a": 75}
    assert found.items[0].estimated_cost == Decimal("0.02")


def test_ties_are_ordered_by_value():
    assert list(shown(usage_breakdown(RecordedUsage.of(features(b=5, a=5, c=5)), WEEK, "feature", limit=2))) == [
        "a",
        "b",
        "Other",
    ]


@pytest.mark.parametrize("name", ["modelFamily", "model_family"])
def test_either_spelling_of_a_dimension_is_understood(name):
    found = usage_breakdown(RecordedUsage.of([usage_row(START, model_family="o3")]), WEEK, name)
    assert (found.dimension, shown(found)) == ("modelFamily", {"o3": 110})


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_every_dimension_of_the_table_works(dimension):
    usage = RecordedUsage.of([usage_row(START, **{dimension: "x"}), usage_row(START, **{dimension: "y"}, input_tokens=0)])
    assert shown(usage_breakdown(usage, WEEK, dimension)) == {"x": 110, "y": 10}
    assert shown(drilldown(usage, WEEK, {dimension: "y"}, dimension)) == {"y": 10}


def test_an_unknown_dimension_or_limit_says_what_is_allowed():
    usage = RecordedUsage.of(features(a=1))
    with pytest.raises(UsageError, match=r"'colour'; it must be one of provider, model, model_family, team"):
        usage_breakdown(usage, WEEK, "colour")
    with pytest.raises(UsageError, match=r"'colour'; it must be one of"):
        drilldown(usage, WEEK, {"colour": "red"}, "feature")
    with pytest.raises(UsageError, match="The limit is 0; give 1 or more"):
        usage_breakdown(usage, WEEK, "feature", limit=0)
    with pytest.raises(UsageError, match="The path of the drilldown is empty"):
        drilldown(usage, WEEK, {}, "feature")


def test_people_read_names_and_programs_identifiers():
    usage = RecordedUsage.of(
        [usage_row(START, team="t-1"), usage_row(START, team="t-2", input_tokens=1)], names={"team": {"t-1": "Search"}}
    )
    found = usage_breakdown(usage, WEEK, "team")
    assert [(item.dimension_value, item.dimension_label) for item in found.items] == [("t-1", "Search"), ("t-2", "t-2")]


def test_the_latency_of_an_item_is_weighted_by_requests_that_know_it():
    usage = RecordedUsage.of([
        usage_row(START, request_count=3, total_latency_ms=300), usage_row(START, request_count=1, total_latency_ms=901),
        usage_row(START, request_count=50, total_latency_ms=None),
    ])  # fmt: skip
    found = usage_breakdown(usage, WEEK, "model").items[0]
    per_record = (300 / 3 + 901) / 2
    over_all_requests = 1201 // 54
    assert (per_record, over_all_requests, found.avg_latency_ms) == (500.5, 22, 300)


def test_the_trend_of_an_item_is_against_the_preceding_period():
    usage = RecordedUsage.of(
        features(up=60, flat=1005, down=10, new=7, small=3) + features(BEFORE, up=50, flat=1000, down=20, small=5, gone=4)
    )
    found = usage_breakdown(usage, WEEK, "feature", limit=None, trend=True)
    assert {item.dimension_value: item.trend for item in found.items} == {
        "flat": "stable", "up": "up", "down": "down", "new": "up", "small": "down",
    }  # fmt: skip
    # Other is small and new (10) against small and gone (9).
    limited = usage_breakdown(usage, WEEK, "feature", limit=3, trend=True)
    assert [(item.dimension_value, item.trend) for item in limited.items][-1] == ("Other", "up")
    calm = usage_breakdown(usage, WEEK, "feature", limit=3, trend=True, parameters=BreakdownParameters(stable_below_pct=60))
    assert {item.trend for item in calm.items} == {"stable"}
    assert usage_breakdown(usage, WEEK, "feature").items[0].trend is None


def test_a_narrowed_breakdown_has_narrowed_totals_and_trends():
    usage = RecordedUsage.of([
        *(usage_row(START, feature="a", team=team, input_tokens=tokens, output_tokens=0) for team, tokens in (("t", 6), ("u", 90))),
        *(usage_row(BEFORE, feature="a", team=team, input_tokens=tokens, output_tokens=0) for team, tokens in (("t", 9), ("u", 1))),
    ])  # fmt: skip
    found = usage_breakdown(usage, WEEK, "feature", where={"team": "t"}, trend=True)
    assert (shown(found), found.total.tokens, found.items[0].trend) == ({"a": 6}, 6, "down")


def test_there_is_no_trend_from_before_the_first_usage():
    found = usage_breakdown(RecordedUsage.of(features(a=5)), WEEK, "feature", trend=True)
    assert found.items[0].trend is None


def test_a_drilldown_goes_to_any_depth():
    rows = [
        usage_row(START, model="m", team="t", feature="f", environment=environment, input_tokens=tokens, output_tokens=0)
        for environment, tokens in (("production", 5), ("staging", 15))
    ]
    rows += [
        usage_row(START, model="m", team="t"),
        usage_row(START, model="m", feature="f"),
        usage_row(START, model="n", team="t", feature="f"),
    ]
    found = drilldown(RecordedUsage.of(rows), WEEK, {"model": "m", "team": "t", "feature": "f"}, "environment", limit=1)
    assert (shown(found), found.total.tokens, found.other_count) == ({"staging": 15, "Other": 5}, 20, 1)
    assert [item.percentage for item in found.items] == [75.0, 25.0]
    assert as_json(found)["path"] == [
        {"dimension": "model", "value": "m"}, {"dimension": "team", "value": "t"}, {"dimension": "feature", "value": "f"},
    ]  # fmt: skip
    assert (found.primary_dimension, found.primary_value, found.secondary_dimension) == ("model", "m", "environment")


@pytest.mark.parametrize("value", [None, "Unknown"])
def test_a_drilldown_into_usage_without_a_value(value):
    found = drilldown(RecordedUsage.of(features(none=5, a=3)), WEEK, {"feature": value}, "model")
    assert (found.total.tokens, found.primary_value) == (5, "Unknown")


class CountedUsage(RecordedUsage):
    """Counts the rows that it hands out."""

    handed_out = 0

    def frame(self, *parameters, **settings):
        found = super().frame(*parameters, **settings)
        self.handed_out += len(found)
        return found


def test_a_drilldown_reads_a_row_per_value_and_no_records():
    rows = [usage_row(START + timedelta(minutes=place), feature=f"f{place % 3}") for place in range(300)]
    usage = CountedUsage(RecordedUsage.of(rows).rows)
    specified = len(usage.within(WEEK, {"model": rows[0]["model"]}))
    drilldown(usage, WEEK, {"model": rows[0]["model"]}, "feature")
    assert (specified, usage.handed_out) == (300, 3)


def test_ten_thousand_features_add_up():
    count = 10_000
    frame = pd.DataFrame({"feature": [f"feature {place}" for place in range(count)], COST: [Decimal("0.001")] * count})
    for name in RecordedUsage.of([]).frame(WEEK).columns.drop(COST):
        frame[name] = pd.array(range(count), dtype="Int64")
    found = breakdown_of(frame, "feature", {}, limit=10, preceding=frame)
    assert list(shown(found))[:2] == ["feature 9999", "feature 9998"]
    assert (found.other_count, found.total.tokens, found.total.cost) == (count - 10, sum(range(count)), Decimal("10.000"))
    assert sum(item.total_tokens for item in found.items) == sum(range(count))
    assert {item.trend for item in found.items} == {"stable"}
    assert len(breakdown_of(frame, "feature", {}).items) == count


@pytest.mark.parametrize("limit", [1, 10, None])
@pytest.mark.parametrize(
    ("rows", "tokens"),
    [([], 0), (features(a=5), 5), (features(a=0, b=0), 0),
     ([usage_row(START, request_count=None, error_count=None, estimated_cost=None)], 110)],
    ids=["empty", "one row", "zeros", "unknown"],
)  # fmt: skip
def test_the_edges_have_sensible_answers(rows, tokens, limit):
    usage = RecordedUsage.of(rows)
    for found in (
        usage_breakdown(usage, WEEK, "feature", limit, trend=True),
        drilldown(usage, WEEK, {"provider": "openai"}, "feature", limit),
    ):
        as_json(found)
        assert found.total.tokens == tokens
        assert all((item.percentage is None) == (tokens == 0) for item in found.items)
    if rows and rows[0]["request_count"] is None:
        assert (found.total.requests, found.total.cost, found.items[0].error_count) == (None, None, None)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "c", "Unknown", "Other", None]), st.integers(0, 10**12)), max_size=15),
    st.none() | st.integers(1, 7),
)
def test_items_always_add_up_to_the_total(drawn, limit):
    usage = RecordedUsage.of(usage_row(START, feature=feature, input_tokens=tokens) for feature, tokens in drawn)
    found = usage_breakdown(usage, WEEK, "feature", limit, trend=True)
    as_json(found)
    assert sum(item.total_tokens for item in found.items) == found.total.tokens == total(usage.frame(WEEK), "total_tokens")
    assert sum(item.estimated_cost for item in found.items) == found.total.cost
    assert sum(item.is_other for item in found.items) == (found.other_count is not None)
    if found.items:
        assert sum(item.percentage for item in found.items) == pytest.approx(100)


def test_the_rows_of_a_breakdown():
    usage = RecordedUsage.of([usage_row(START, api_key="k-1"), usage_row(START, api_key="k-2", input_tokens=0)])
    rows = {
        (row.metric, row.dimension, row.dimension_value): row.value for row in metric_rows(usage_breakdown(usage, WEEK, "apiKey"))
    }
    assert rows["total_tokens", "api_key", "k-1"] == 110
    assert rows["token_share_pct", "api_key", "k-2"] == pytest.approx(100 / 12)
    assert rows["avg_latency_ms", "api_key", "k-2"] is None


def test_a_value_called_other_and_the_rest_are_two_rows():
    found = usage_breakdown(RecordedUsage.of(features(Other=9, a=8, b=7)), WEEK, "feature", limit=1)
    assert [(item.dimension_value, item.is_other, item.total_tokens) for item in found.items] == [
        ("Other", False, 9),
        ("Other", True, 15),
    ]
    rows = {(row.metric, row.dimension_value): row.value for row in metric_rows(found)}
    assert (rows["total_tokens", "Other"], rows["total_tokens", "Other values"]) == (9, 15)
