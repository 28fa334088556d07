"""Breakdowns by several dimensions and what shows across them (specification 6)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.analytics.golden import Golden, assert_equal
from tests.analytics.recorded_usage import RecordedUsage, usage_row
from tokentra_dagster.analytics.multidimensional import (
    CrossDimensionalParameters,
    insight_rows,
    metric_rows,
    multi_dimensional_breakdown,
)
from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.analytics.results import as_json
from tokentra_dagster.errors import UsageError

START = datetime(2026, 6, 8, tzinfo=UTC)
WEEK = Period(START, START + timedelta(days=7))
ALL = ["provider", "model", "feature", "environment"]


def used(tokens: int, **fields: str | None) -> dict:
    return usage_row(START, input_tokens=tokens, output_tokens=0, **fields)


def insights(rows: list[dict], dimensions: list[str] = ALL, **settings) -> dict[str, object]:
    return {
        found.type: found for found in multi_dimensional_breakdown(RecordedUsage.of(rows), WEEK, dimensions, **settings).insights
    }


def test_the_worked_example(golden: Golden):
    expected = golden.answer("multiDimensional")
    assert_equal(as_json(multi_dimensional_breakdown(golden.usage, golden.period, expected["dimensions"])), expected)


def test_the_main_feature_of_a_model_is_one_that_uses_it():
    """The specification names the largest feature of all, which here never used the largest model."""
    rows = [
        used(60, model="big", feature="search"),
        used(55, model="small", feature="chat"),
        used(10, model="tiny", feature="chat"),
    ]
    overall: dict[str, int] = {}
    for row in rows:
        overall[row["feature"]] = overall.get(row["feature"], 0) + row["total_tokens"]
    assert max(overall, key=overall.__getitem__) == "chat"
    assert insights(rows)["concentration"].description == "big handles 48.0% of tokens, primarily from search feature"


@pytest.mark.parametrize(("tokens", "severity"), [(70, "info"), (71, "warning")])
def test_concentration_is_a_warning_above_seventy_percent(tokens, severity):
    rows = [used(tokens, model="big"), used(100 - tokens, model="small")]
    found = insights(rows)["concentration"]
    assert (found.severity, found.percentage, found.tokens) == (severity, float(tokens), tokens)
    assert found.description.endswith("primarily from usage without a feature")
    assert insights(rows, parameters=CrossDimensionalParameters(concentration_above_pct=90))["concentration"].severity == "info"


def test_one_provider_is_a_dependency_and_two_are_not():
    assert insights([used(9)])["diversification"].severity == "warning"
    assert "diversification" not in insights([used(9), used(1, provider="google")])
    # Who asks for one provider only knows that it is one.
    assert "diversification" not in insights([used(9)], where={"provider": "openai"})


def test_the_limit_hides_no_provider_and_no_environment():
    rows = [used(100), used(20, provider="google", environment="staging"), used(20, environment="test")]
    found = insights(rows, limit=1)
    assert "diversification" not in found
    # The specification sums the environments that are shown.
    assert (found["efficiency"].tokens, found["efficiency"].percentage) == (40, pytest.approx(4000 / 140))


@pytest.mark.parametrize(("outside", "reported"), [(30, False), (31, True)])
def test_usage_outside_production_is_reported_above_its_share(outside, reported):
    rows = [used(100, environment="production"), used(outside, environment="staging"), used(500, environment=None)]
    assert ("efficiency" in insights(rows)) is reported
    assert "efficiency" not in insights(rows, parameters=CrossDimensionalParameters(non_production_above=0.31))


def test_usage_only_outside_production_is_reported():
    assert insights([used(5, environment="dev")])["efficiency"].percentage == 100.0


@pytest.mark.parametrize("rows", [[], [used(0)], [used(1)]], ids=["empty", "zeros", "one row"])
def test_the_edges_have_sensible_answers(rows):
    found = multi_dimensional_breakdown(RecordedUsage.of(rows), WEEK, ALL)
    as_json(found)
    assert ("concentration" in {one.type for one in found.insights}) == bool(rows and rows[0]["total_tokens"])
    assert [each.total.tokens for each in found.breakdowns.values()] == [sum(row["total_tokens"] for row in rows)] * 4


def test_dimensions_come_back_under_the_specifications_names():
    found = multi_dimensional_breakdown(RecordedUsage.of([used(1, model_family="o3")]), WEEK, ["model_family", "apiKey"])
    assert (found.dimensions, list(found.breakdowns)) == (("modelFamily", "apiKey"), ["modelFamily", "apiKey"])
    with pytest.raises(UsageError, match="'colour'"):
        multi_dimensional_breakdown(RecordedUsage.of([]), WEEK, ["model", "colour"])


def test_the_rows_of_insights_and_metrics():
    found = multi_dimensional_breakdown(RecordedUsage.of([used(9, feature="search")]), WEEK, ALL)
    row = insight_rows(found)[0]
    assert (row.kind, row.severity, row.dimension, row.impact_tokens, row.impact_pct) == (
        "concentration",
        "warning",
        "model",
        9,
        100.0,
    )
    assert {row.dimension for row in metric_rows(found)} == set(ALL)
