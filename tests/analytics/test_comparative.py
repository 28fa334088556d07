"""Breakdowns of two periods side by side (specification 6; corrections 18, 20, 23)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analytics.golden import Golden, assert_equal
from tests.analytics.recorded_usage import RecordedUsage, usage_row
from tokentra_dagster.analytics.breakdowns import usage_breakdown
from tokentra_dagster.analytics.comparative import comparative_breakdown, comparative_of, metric_rows
from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.analytics.results import as_json
from tokentra_dagster.analytics.sources import COST
from tokentra_dagster.errors import UsageError

START = datetime(2026, 6, 8, tzinfo=UTC)
WEEK = Period(START, START + timedelta(days=7))
BEFORE = START - timedelta(days=1)


def features(moment: datetime, tokens: dict[str, int]) -> list[dict]:
    return [usage_row(moment, feature=name, input_tokens=count, output_tokens=0) for name, count in tokens.items()]


def both(previous: dict[str, int], current: dict[str, int]) -> RecordedUsage:
    return RecordedUsage.of(features(BEFORE, previous) + features(START, current))


def test_the_worked_example(golden: Golden):
    expected = golden.answer("comparativeBreakdown")
    assert_equal(as_json(comparative_breakdown(golden.usage, golden.period, golden.previous, "model")), expected)


def test_number_eleven_is_neither_new_nor_churned():
    """Twelve features in both periods; the two smallest of one period are the two largest of the other."""
    previous = {f"f{place:02}": 100 + place for place in range(12)}
    current = {name: 100 - place for place, name in enumerate(previous)}
    usage = both(previous, current)
    found = comparative_breakdown(usage, WEEK, dimension="feature", limit=10)

    def top_ten(period: Period) -> set[str]:
        return {item.dimension_value for item in usage_breakdown(usage, period, "feature", 10).items if not item.is_other}

    assert top_ten(WEEK) - top_ten(WEEK.before("previous")) == {"f00", "f01"}  # what the specification calls new
    assert (found.summary.new_items, found.summary.churned_items) == (0, 0)
    assert [(item.dimension_value, item.token_change) for item in found.comparisons[:2]] == [("f11", -22), ("f10", -20)]
    assert (len(found.comparisons), found.other_count) == (10, 2)
    assert found.summary.total_growth == sum(current.values()) - sum(previous.values())


def test_what_came_and_what_went():
    found = comparative_breakdown(both({"kept": 40, "gone": 30}, {"kept": 50, "came": 20}), WEEK, dimension="feature")
    gone, came, kept = found.comparisons
    assert (gone.dimension_value, gone.is_churned, gone.current, gone.token_change, gone.token_change_percent) == (
        "gone",
        True,
        None,
        -30,
        -100.0,
    )
    assert (came.dimension_value, came.is_new, came.previous, came.token_change, came.request_change) == (
        "came",
        True,
        None,
        20,
        1,
    )
    assert came.token_change_percent is None  # the specification says 100 (correction 18)
    assert (kept.is_new, kept.is_churned, kept.token_change_percent, kept.request_change) == (False, False, 25.0, 0)
    assert (kept.current.percentage, kept.previous.percentage) == (pytest.approx(500 / 7), pytest.approx(400 / 7))
    assert (found.summary.total_growth, found.summary.growth_percent) == (0, 0.0)
    assert (found.summary.new_items, found.summary.churned_items, found.other_count) == (1, 1, None)


def test_a_value_that_used_nothing_before_but_was_there_is_not_new():
    found = comparative_breakdown(both({"a": 0}, {"a": 9}), WEEK, dimension="feature")
    assert (found.comparisons[0].is_new, found.comparisons[0].token_change_percent, found.summary.growth_percent) == (
        False,
        None,
        None,
    )


def test_the_boundary_belongs_to_one_period():
    found = comparative_breakdown(RecordedUsage.of(features(START, {"a": 5})), WEEK, dimension="feature")
    assert (found.comparisons[0].previous, found.comparisons[0].token_change) == (None, 5)
    assert as_json(found)["previousPeriod"] == {"start": "2026-06-01T00:00:00Z", "end": "2026-06-08T00:00:00Z"}


def test_unknown_requests_have_no_change():
    usage = RecordedUsage.of([
        usage_row(BEFORE, feature="a", request_count=None), usage_row(START, feature="a"), usage_row(START, feature="b", request_count=None),
    ])  # fmt: skip
    found = comparative_breakdown(usage, WEEK, dimension="feature")
    assert {item.dimension_value: item.request_change for item in found.comparisons} == {"a": None, "b": None}


def test_a_comparison_can_be_narrowed_and_limited():
    usage = RecordedUsage.of([
        usage_row(START, feature="a", team="t"), usage_row(START, feature="b", input_tokens=900), usage_row(BEFORE, feature="a", input_tokens=900),
    ])  # fmt: skip
    assert [
        item.dimension_value for item in comparative_breakdown(usage, WEEK, None, "feature", 1, {"team": "t"}).comparisons
    ] == ["a"]
    with pytest.raises(UsageError, match="The limit is -1"):
        comparative_breakdown(usage, WEEK, dimension="feature", limit=-1)
    with pytest.raises(UsageError, match="'colour'"):
        comparative_breakdown(usage, WEEK, dimension="colour")


def test_ten_thousand_features_are_all_compared():
    count = 10_000

    def frame(first: int) -> pd.DataFrame:
        found = pd.DataFrame({"feature": [f"{place:05}" for place in range(first, first + count)], COST: [Decimal(1)] * count})
        for name in RecordedUsage.of([]).frame(WEEK).columns.drop(COST):
            found[name] = pd.array(range(count), dtype="Int64")
        return found

    # Both have 9,000 in common, each 1,000 tokens less; the first 1,000 went (0 to 999), the last came (9,000 to 9,999).
    found = comparative_of(frame(1000), frame(0), WEEK, WEEK.before("previous"), "feature", {}, limit=20)
    assert (found.summary.new_items, found.summary.churned_items, found.summary.total_growth) == (1000, 1000, 0)
    assert (len(found.comparisons), found.other_count) == (20, count + 1000 - 20)
    assert [item.dimension_value for item in found.comparisons[:2]] == ["10999", "10998"]
    assert (found.comparisons[0].token_change, found.comparisons[0].current.estimated_cost) == (9999, Decimal(1))


@pytest.mark.parametrize("limit", [1, None])
@pytest.mark.parametrize(
    "usage",
    [RecordedUsage.of([]), both({}, {"a": 5}), both({"a": 5}, {}), both({"a": 0}, {"a": 0}), both({"a": 5}, {"a": 5})],
    ids=["empty", "only now", "only before", "zeros", "no change"],
)
def test_the_edges_have_sensible_answers(usage, limit):
    found = comparative_breakdown(usage, WEEK, dimension="feature", limit=limit)
    as_json(found)
    assert len(found.comparisons) == min(1, len(usage.rows))
    before = any(item.previous and item.previous.total_tokens for item in found.comparisons)
    assert (found.summary.growth_percent is not None) == before


SIDE = st.dictionaries(st.sampled_from(["a", "b", "c", "d", "Unknown", None]), st.integers(0, 10**12))


@settings(deadline=None, max_examples=50)
@given(SIDE, SIDE, st.none() | st.integers(1, 5))
def test_changes_add_up_and_each_value_is_in_one_place(previous, current, limit):
    found = comparative_breakdown(both(previous, current), WEEK, dimension="feature", limit=limit)
    as_json(found)
    names = {name or "Unknown" for name in previous}, {name or "Unknown" for name in current}
    assert len(found.comparisons) + (found.other_count or 0) == len(names[0] | names[1])
    assert (found.summary.new_items, found.summary.churned_items) == (len(names[1] - names[0]), len(names[0] - names[1]))
    sizes = [abs(item.token_change) for item in found.comparisons]
    assert sizes == sorted(sizes, reverse=True)
    if limit is None:
        assert sum(item.token_change for item in found.comparisons) == found.summary.total_growth
    for item in found.comparisons:
        assert (item.is_new, item.is_churned) == (item.previous is None, item.current is None)


def test_the_rows_of_a_comparison():
    rows = metric_rows(comparative_breakdown(both({"a": 10}, {"a": 15, "b": 1}), WEEK, dimension="feature"))
    found = {(row.metric, row.dimension, row.dimension_value): row.value for row in rows}
    assert found["token_change", None, None] == 6
    assert (found["token_change_pct", "feature", "a"], found["token_change_pct", "feature", "b"]) == (50.0, None)
    assert (found["new_values", "feature", None], found["churned_values", "feature", None]) == (1, 0)
