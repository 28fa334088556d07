"""Token efficiency: the specification's figures, with rates that divide by what is known (corrections 18, 35, 44)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analytics.golden import assert_equal
from tests.analytics.recorded_usage import RecordedUsage, usage_row
from tokentra_dagster.analytics.efficiency import (
    EfficiencyThresholds,
    TokenEfficiencyAnalysis,
    analyze_token_efficiency,
    metric_rows,
    recommendation_rows,
)
from tokentra_dagster.analytics.periods import DAY, Period
from tokentra_dagster.analytics.results import as_json
from tokentra_dagster.analytics.savings import analyze_potential_savings
from tokentra_dagster.list_prices import ListPrices

START = datetime(2026, 11, 2, tzinfo=UTC)
PERIOD = Period(START, START + 7 * DAY)
MILLION = 1_000_000


def row(*, at: datetime = START, **fields: Any) -> dict[str, Any]:
    return usage_row(at, **fields)


def analysis(*rows: Mapping[str, Any], period: Period = PERIOD, **options: Any) -> TokenEfficiencyAnalysis:
    return analyze_token_efficiency(RecordedUsage.of(rows), period, **options)


def advice(result: TokenEfficiencyAnalysis) -> list[str]:
    return [one.type for one in result.recommendations]


def test_the_answers_are_the_worked_examples(golden):
    found = as_json(analyze_token_efficiency(golden.usage, golden.period))
    assert_equal(found, golden.answer("efficiency"))


def test_savings_change_no_answer_of_the_worked_examples(golden):
    savings = analyze_potential_savings(golden.usage, golden.period, ListPrices())
    found = as_json(analyze_token_efficiency(golden.usage, golden.period, savings))
    assert_equal(found, golden.answer("efficiency"))


def specification_hit_rate(rows: Sequence[Mapping[str, Any]]) -> float:
    """Section 11's way: cached over all tokens."""
    return sum(one["cached_tokens"] or 0 for one in rows) / sum(one["total_tokens"] for one in rows) * 100


def test_the_cache_hit_rate_is_over_input_tokens():
    # Correction 35: 50 of 100 input tokens were read from the cache; output cannot be.
    rows = [row(input_tokens=100, cached_tokens=50, output_tokens=300)]
    result = analysis(*rows)
    assert result.metrics.cache_hit_rate == 50
    assert result.model_efficiency[0].cache_hit_rate == 50
    assert specification_hit_rate(rows) == 12.5
    assert "caching" not in advice(result)  # which the specification's 12.5 % would be


def test_input_whose_cached_part_is_not_known_lowers_no_hit_rate():
    result = analysis(row(input_tokens=100, cached_tokens=50), row(input_tokens=900, cached_tokens=None))
    assert result.metrics.cache_hit_rate == 50
    assert (result.metrics.total_cached_tokens, result.metrics.total_input_tokens) == (50, 1000)


UNPRICED = {"estimated_cost": None, "input_tokens": 900, "output_tokens": 0, "unpriced_tokens": 900, "request_count": 9}


def specification_cost_per_1k(rows: Sequence[Mapping[str, Any]]) -> float:
    return float(sum(one["estimated_cost"] or 0 for one in rows)) / sum(one["total_tokens"] for one in rows) * 1000


def test_unpriced_tokens_make_no_price_per_token_lower():
    # Correction 44: 100 tokens for 0.01 are 0.10 per thousand, whatever else has no price.
    rows = [row(input_tokens=100, output_tokens=0), row(**UNPRICED, environment="test")]
    (model,) = analysis(*rows).model_efficiency
    assert model.cost_per_1k_tokens == pytest.approx(0.10)
    assert model.unpriced_tokens == 900
    assert specification_cost_per_1k(rows) == pytest.approx(0.01)


def test_requests_without_a_price_make_no_request_cheaper():
    (model,) = analysis(row(request_count=1), row(**UNPRICED, environment="test")).model_efficiency
    assert model.cost_per_request == pytest.approx(0.01)  # not 0.001


def test_a_part_whose_requests_or_prices_are_partly_unknown_is_in_no_cost_per_request():
    usual = row(estimated_cost=Decimal("0.03"), request_count=3)
    (model,) = analysis(usual, row(**UNPRICED)).model_efficiency
    assert model.cost_per_request is None  # one part: how many of its requests are priced cannot be told
    mixed = row(estimated_cost=Decimal("5"), request_count=None, error_count=None, success_count=None, request_type="embedding")
    (model,) = analysis(usual, mixed).model_efficiency
    assert model.cost_per_request == pytest.approx(0.01)


def test_a_model_without_any_price_has_no_cost_rather_than_none_to_pay():
    result = analysis(row(**UNPRICED, feature="search"))
    assert (result.model_efficiency[0].cost_per_request, result.model_efficiency[0].cost_per_1k_tokens) == (None, None)
    assert (result.feature_efficiency[0].estimated_cost, result.feature_efficiency[0].unpriced_tokens) == (None, 900)


def test_a_free_model_costs_zero():
    (model,) = analysis(row(estimated_cost=Decimal(0))).model_efficiency
    assert (model.cost_per_request, model.cost_per_1k_tokens) == (0, 0)


def test_unknown_names_are_the_specifications():
    result = analysis(row(model=None, feature=None), row(feature="search", input_tokens=5))
    assert [one.model for one in result.model_efficiency] == ["unknown", "gpt-4o-2024-08-06"]
    assert [one.feature for one in result.feature_efficiency] == ["untagged", "search"]


def test_a_model_that_two_providers_sell_is_one_model():
    (model,) = analysis(row(model="gpt-4o"), row(model="gpt-4o", provider="azure")).model_efficiency
    assert (model.input_tokens, model.cost_per_request) == (200, pytest.approx(0.01))


def test_money_of_a_feature_is_a_sum_of_decimals():
    result = analysis(*(row(estimated_cost=Decimal("0.1"), feature="search", environment=str(n)) for n in range(3)))
    assert result.feature_efficiency[0].estimated_cost == Decimal("0.3")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"input_tokens": 500, "output_tokens": 100, "cached_tokens": 100}, []),
        ({"input_tokens": 501, "output_tokens": 100, "cached_tokens": 400}, ["prompt_optimization"]),
        ({"input_tokens": 500, "output_tokens": 100, "cached_tokens": 99}, ["caching"]),
        ({"input_tokens": 8_000, "output_tokens": 2_000, "cached_tokens": 8_000}, []),
        ({"input_tokens": 8_000, "output_tokens": 2_001, "cached_tokens": 8_000}, ["request_optimization"]),
        # 600 tokens at 0.05 per thousand are 0.03.
        ({"input_tokens": 500, "output_tokens": 100, "cached_tokens": 500, "estimated_cost": Decimal("0.03")}, []),
        (
            {"input_tokens": 500, "output_tokens": 100, "cached_tokens": 500, "estimated_cost": Decimal("0.031")},
            ["model_selection"],
        ),
        ({"input_tokens": 900, "output_tokens": 200, "cached_tokens": 900, "estimated_cost": Decimal("0.1")}, []),
        (
            {"input_tokens": 11_000, "output_tokens": 100, "cached_tokens": 0},
            ["prompt_optimization", "caching", "request_optimization"],
        ),
    ],
)
def test_recommendations_follow_at_the_specifications_thresholds(fields, expected):
    assert advice(analysis(row(**fields))) == expected


def test_thresholds_can_be_set():
    usual = row(input_tokens=500, output_tokens=100, cached_tokens=500)
    assert advice(analysis(usual, thresholds=EfficiencyThresholds(high_input_output_ratio=4))) == ["prompt_optimization"]


def test_high_priority_comes_first():
    result = analysis(row(input_tokens=500, output_tokens=100, cached_tokens=0, estimated_cost=Decimal("0.1")))
    assert [one.priority for one in result.recommendations] == ["high", "medium"]
    assert advice(result) == ["model_selection", "caching"]


def specification_recommends_caching(cached: int, given: int) -> bool:
    return (cached / given * 100 if given > 0 else 0) < 20


def test_an_empty_period_has_zeros_no_rates_and_no_advice():
    # In the spirit of correction 18: no usage has no cache hit rate, and nobody is told to improve it.
    result = analysis()
    assert (result.metrics.total_input_tokens, result.metrics.total_requests) == (0, 0)
    assert (result.metrics.cache_hit_rate, result.metrics.input_output_ratio, result.metrics.avg_tokens_per_request) == (
        None,
    ) * 3
    assert (result.model_efficiency, result.feature_efficiency, result.recommendations) == ((), (), ())
    assert specification_recommends_caching(0, 0)


def test_unknown_cached_tokens_are_no_advice_to_cache():
    result = analysis(row(cached_tokens=None))
    assert (result.metrics.total_cached_tokens, result.metrics.cache_hit_rate) == (None, None)
    assert "caching" not in advice(result)


def test_caching_advice_says_how_much_and_on_what_it_rests():
    # gpt-4o: input 2.50, read 1.25 USD per million. Search reads 25 %: 7.50 + 1.25; mail nothing: 10.00. Output 4 million: 40.00.
    tokens = {"input_tokens": 4 * MILLION, "output_tokens": 4 * MILLION, "request_count": 1_000}
    usage = RecordedUsage.of([
        row(feature="search", cached_tokens=MILLION, estimated_cost=Decimal("48.75"), **tokens),
        row(feature="mail", cached_tokens=0, estimated_cost=Decimal("50.00"), **tokens),
    ])  # fmt: skip
    savings = analyze_potential_savings(usage, PERIOD, ListPrices())
    result = analyze_token_efficiency(usage, PERIOD, savings)
    (found,) = [one for one in result.recommendations if one.type == "caching"]
    # Mail at the median of 25 % and 0 %: 500,000 tokens at 1.25 per million; at 25 %: 1 million.
    assert (found.savings_low, found.savings_high) == (Decimal("0.625"), Decimal("1.25"))
    assert str(found.potential_savings).startswith("USD 0.62 to 1.25 in the period, if gpt-4o-2024-08-06: every feature reads")
    rows = recommendation_rows(result, savings)
    assert [one.category for one in rows].count("caching") == 1  # told once, though the savings have it too
    assert "batch" in {one.category for one in rows}


def test_a_saving_that_cannot_be_computed_is_none_and_not_zero():
    tokens = {"input_tokens": 4 * MILLION, "output_tokens": MILLION, "model": "m-large", "feature": "mail"}
    usage = RecordedUsage.of([row(estimated_cost=None, unpriced_tokens=5 * MILLION, **tokens)])
    result = analyze_token_efficiency(usage, PERIOD, analyze_potential_savings(usage, PERIOD, ListPrices()))
    assert "caching" in advice(result)
    assert {(one.potential_savings, one.savings_low, one.savings_high) for one in result.recommendations} == {(None, None, None)}


def test_advice_for_a_smaller_model_names_the_model_and_its_range():
    # gpt-4: 30 and 60 USD per million; 1,000 requests of 500 + 100 tokens cost 15 + 6. Nobody in its generation is cheaper.
    # claude-opus-4-1: 15 and 75; 500,000 and 400,000 tokens cost 7.50 + 30.00, 0.0417 per thousand.
    usage = RecordedUsage.of([
        row(model="gpt-4", input_tokens=500_000, output_tokens=100_000, request_count=1_000, estimated_cost=Decimal("21.00")),
        row(provider="anthropic", model="claude-opus-4-1", input_tokens=500_000, output_tokens=400_000, request_count=1_000,
            estimated_cost=Decimal("37.50")),
    ])  # fmt: skip
    savings = analyze_potential_savings(usage, PERIOD, ListPrices())
    result = analyze_token_efficiency(usage, PERIOD, savings, EfficiencyThresholds(expensive_cost_per_1k_tokens=0.03))
    opus, gpt_4 = (one for one in result.recommendations if one.type == "model_selection")
    # A third at Opus 4.5 and later: 5 and 25, so 12.50, which is 25.00 less.
    assert (opus.model, opus.savings_low, opus.savings_high) == ("claude-opus-4-1", Decimal("25.00"), Decimal("25.00"))
    assert (gpt_4.model, gpt_4.potential_savings) == ("gpt-4", None)
    rows = [one for one in recommendation_rows(result, savings) if one.category == "model_selection"]
    assert [one.dimension_value for one in rows] == ["claude-opus-4-1", "gpt-4"]


def test_metric_rows_hold_every_figure_once():
    result = analysis(row(feature="search"), row(**UNPRICED, feature=None))
    rows = metric_rows(result)
    keys = [(one.metric, one.dimension, one.dimension_value) for one in rows]
    assert len(keys) == len(set(keys)) == 7 + 7 + 2 * 6
    found = dict(zip(keys, (one.value for one in rows), strict=True))
    assert found["total_input_tokens", None, None] == 1_000
    assert found["estimated_cost", "feature", "search"] == Decimal("0.01")
    assert found["estimated_cost", "feature", "untagged"] is None


NOTHING = {"input_tokens": 0, "output_tokens": 0, "cached_tokens": 0, "request_count": 0, "success_count": 0,
           "estimated_cost": Decimal(0)}  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "period"),
    [
        pytest.param([], PERIOD, id="no usage"),
        pytest.param([row()], PERIOD, id="one row"),
        pytest.param([row()], Period(START, START + DAY), id="one day"),
        pytest.param([row(**NOTHING), row(**NOTHING, feature="search")], PERIOD, id="all zeros"),
        pytest.param([row(environment=str(n)) for n in range(5)], PERIOD, id="a single model"),
        pytest.param(
            [row(**dict.fromkeys(("cached_tokens", "request_count", "error_count", "success_count")))], PERIOD, id="unknown"
        ),
        pytest.param(
            [row(at=datetime(2026, 3, 29, hour, tzinfo=UTC)) for hour in range(24)],
            Period(datetime(2026, 3, 29, tzinfo=UTC), datetime(2026, 3, 30, tzinfo=UTC)),
            id="a daylight-saving day",
        ),
        pytest.param(
            [row(at=datetime(2024, 2, 29, tzinfo=UTC))],
            Period(datetime(2024, 2, 29, tzinfo=UTC), datetime(2024, 3, 1, tzinfo=UTC)),
            id="a leap day",
        ),
    ],
)
def test_odd_periods_give_sensible_answers(rows, period):
    usage = RecordedUsage.of(rows)
    savings = analyze_potential_savings(usage, period, ListPrices())
    result = analyze_token_efficiency(usage, period, savings)
    as_json(result)
    as_json(savings)
    as_json(metric_rows(result))
    as_json(recommendation_rows(result, savings))
    assert result.metrics.total_input_tokens == sum(one["input_tokens"] for one in rows)


MAYBE = st.one_of(st.none(), st.integers(0, 10**12))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.builds(
            lambda given, output, hit, requests, wrong, cost, model, feature, hour: row(
                input_tokens=given, output_tokens=output, cached_tokens=None if hit is None else int(given * hit),
                request_count=requests, error_count=None if requests is None or wrong is None else int(requests * wrong),
                success_count=None, estimated_cost=cost, unpriced_tokens=given + output if cost is None else 0, model=model,
                feature=feature, at=START + timedelta(hours=hour),
            ),
            st.integers(0, 10**9), st.integers(0, 10**9), st.one_of(st.none(), st.floats(0, 1)), MAYBE,
            st.one_of(st.none(), st.floats(0, 1)), st.one_of(st.none(), st.decimals(0, 10**6, places=12)),
            st.sampled_from([None, "gpt-4o", "claude-opus-4-1"]), st.sampled_from([None, "search", "mail"]), st.integers(0, 24 * 7 - 1),
        ),
        max_size=8,
    )
)  # fmt: skip
def test_any_usage_gives_percentages_between_0_and_100_and_nothing_but_numbers(rows):
    result = analysis(*rows)
    as_json(result)
    for rate in (result.metrics.cache_hit_rate, *(one.error_rate for one in result.feature_efficiency)):
        assert rate is None or 0 <= rate <= 100 + 1e-9
    spent = sum((one["estimated_cost"] for one in rows if one["estimated_cost"] is not None), Decimal(0))
    assert sum((one.estimated_cost for one in result.feature_efficiency if one.estimated_cost is not None), Decimal(0)) == spent
    assert sum(one.input_tokens or 0 for one in result.model_efficiency) == result.metrics.total_input_tokens
    tokens = [one.total_tokens or 0 for one in result.feature_efficiency]
    assert tokens == sorted(tokens, reverse=True)


def test_ten_thousand_features_take_under_a_second():
    usage = RecordedUsage.of(row(feature=f"feature-{number}", input_tokens=number) for number in range(10_000))
    frames = {by: usage.frame(PERIOD, by=by) for by in ((), ("feature",))}
    models = usage.frame(PERIOD, by=("provider", "model", "request_type", "service_type", "environment"))

    class Kept(RecordedUsage):
        def frame(self, period: Period, by: Sequence[str] = (), *_: Any, **__: Any) -> Any:
            return frames.get(tuple(by), models)

    result = analyze_token_efficiency(Kept(usage.rows), PERIOD)
    assert len(result.feature_efficiency) == 10_000
    assert result.feature_efficiency[0].feature == "feature-9999"
