"""How much of all usage is attributed (section 9)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.analytics.golden import assert_equal
from tests.analytics.recorded_usage import RecordedUsage, usage_row
from tokentra_dagster.analytics.coverage import (
    CoverageParameters,
    analyze_coverage,
    coverage_of,
    metric_rows,
    recommendation_rows,
)
from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.analytics.results import as_json

DAY = datetime(2026, 6, 1, tzinfo=UTC)
JUNE = Period(DAY, DAY + timedelta(days=30))
DIMENSIONS = ("team", "project", "cost_center", "feature", "user", "environment", "api_key")


def covered(**tokens: int):
    """Of 1,000 tokens, how many have a value of each dimension."""
    rows = {
        name: {
            "attributed_records": 1, "total_records": 2, "record_coverage_pct": 50.0, "attributed_tokens": tokens.get(name, 0),
            "total_tokens": 1_000, "token_coverage_pct": tokens.get(name, 0) / 10,
        }
        for name in DIMENSIONS
    }  # fmt: skip
    return rows


def test_the_worked_examples(golden):
    found = as_json(analyze_coverage(golden.usage, golden.period))
    expected = dict(golden.answer("coverage"))
    period = expected.pop("period")
    assert_equal(found, expected)
    assert_equal(found["period"], period)


def test_environment_and_api_key_are_covered_too():
    rows = [usage_row(DAY, api_key="key-1", environment=None), usage_row(DAY, api_key=None), usage_row(DAY, api_key=None)]
    found = analyze_coverage(RecordedUsage.of(rows), JUNE)
    assert found.dimensions.api_key.token_coverage_pct == pytest.approx(100 / 3)
    assert found.dimensions.environment.record_coverage_pct == pytest.approx(200 / 3)
    assert set(as_json(found)["dimensions"]) == {"team", "project", "costCenter", "feature", "user", "environment", "apiKey"}


def test_the_boundary_is_not_in_the_period():
    rows = [usage_row(JUNE.start, team="red"), usage_row(JUNE.end, team=None)]
    assert analyze_coverage(RecordedUsage.of(rows), JUNE).dimensions.team.token_coverage_pct == 100


def test_the_score_is_weighted():
    found = coverage_of(covered(team=1_000, project=500, feature=100, user=0), JUNE)
    assert found.overall_score == pytest.approx(30 + 10 + 3)
    equal = CoverageParameters(weights={"team": 1.0, "project": 1.0})
    assert coverage_of(covered(team=1_000, project=500), JUNE, equal).overall_score == 75


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ({"team": 500, "feature": 700, "user": 300}, []),
        (
            {"team": 499, "feature": 699, "user": 299},
            [
                "Only 50% of tokens are attributed to teams. Add team tags to your SDK calls.",
                "30% of tokens have no feature attribution. Tag requests with feature names for better analysis.",
                "User attribution is low (30%). Add userId to SDK calls for per-user analytics.",
            ],
        ),
        # Halves round up, as JavaScript's toFixed rounds them; Python's format would say 24.
        ({"team": 245, "feature": 700, "user": 300}, ["Only 25% of tokens are attributed to teams. Add team tags to your SDK calls."]),
    ],
)  # fmt: skip
def test_recommendations_follow_the_thresholds(tokens, expected):
    assert list(coverage_of(covered(**tokens), JUNE).recommendations) == expected


def test_any_dimension_can_have_a_threshold():
    asked = CoverageParameters(thresholds={"cost_center": 90.0})
    (gap,) = coverage_of(covered(cost_center=100), JUNE, asked).gaps
    assert (gap.dimension, gap.unattributed_tokens, gap.threshold_pct) == ("cost_center", 900, 90.0)
    assert gap.recommendation == "Only 10% of tokens have a cost center. Add an attribution rule or tag requests with it."


def test_without_usage_coverage_is_unknown_and_nothing_is_recommended():
    """The specification says that only 0 % of no tokens are attributed, and asks for tags."""

    def specification(attributed: int, total: int) -> float:
        return attributed / total * 100 if total else 0

    assert specification(0, 0) < 50
    found = analyze_coverage(RecordedUsage.of([]), JUNE)
    assert (found.overall_score, found.recommendations, found.total_tokens) == (None, (), 0)
    assert found.dimensions.team.token_coverage_pct is None


def test_usage_of_zero_tokens_has_records_and_no_token_coverage():
    found = analyze_coverage(RecordedUsage.of([usage_row(DAY, input_tokens=0, output_tokens=0, team="red")]), JUNE)
    assert (found.dimensions.team.record_coverage_pct, found.dimensions.team.token_coverage_pct) == (100, None)
    assert found.overall_score is None


def test_requests_and_cost_are_told_where_the_source_knows_them():
    rows = covered(team=100)
    rows["team"] |= {"attributed_cost": Decimal("1.5"), "total_cost": Decimal("3"), "cost_coverage_pct": Decimal("50")}
    found = coverage_of(rows, JUNE)
    assert (found.dimensions.team.attributed_cost, found.dimensions.team.cost_coverage_pct) == (Decimal("1.5"), 50.0)
    assert found.dimensions.user.cost_coverage_pct is None


def test_rows():
    found = coverage_of(covered(team=100, feature=600, user=300), JUNE)
    rows = {(row.metric, row.dimension_value): row.value for row in metric_rows(found)}
    assert rows["attribution_score", None] == pytest.approx(3 + 18 + 6)
    assert (rows["token_coverage_pct", "team"], rows["attributed_tokens", "feature"]) == (10.0, 600)
    assert len(rows) == 1 + 7 * 12
    assert [(row.dimension, row.priority) for row in recommendation_rows(found)] == [("team", "high"), ("feature", "medium")]
    assert recommendation_rows(found)[0].description == "Only 10% of tokens are attributed to teams. 900 tokens are without one."
    assert recommendation_rows(found)[0].action == "Add team tags to your SDK calls."


@given(st.lists(st.tuples(st.sampled_from([None, "red"]), st.integers(0, 10**12)), max_size=8))
def test_any_usage_gives_a_percentage_or_nothing(rows):
    usage = RecordedUsage.of([usage_row(DAY, team=team, total_tokens=tokens) for team, tokens in rows])
    found = analyze_coverage(usage, JUNE)
    as_json(found)
    share = found.dimensions.team.token_coverage_pct
    assert (share is None) == (found.total_tokens == 0)
    assert share is None or 0 <= share <= 100
