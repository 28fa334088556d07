"""Potential savings are ranges from own usage and dated prices: never more than was paid, never a guess about what has no price."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analytics.recorded_usage import RecordedUsage, usage_row
from tokentra_dagster.analytics.periods import DAY, Period
from tokentra_dagster.analytics.results import as_json
from tokentra_dagster.analytics.savings import (
    PotentialSavings,
    analyze_potential_savings,
    metric_rows,
    range_text,
    recommendation_rows,
)
from tokentra_dagster.analytics.savings_estimates import SavingsParameters
from tokentra_dagster.analytics.sources import COST
from tokentra_dagster.list_prices import ListPrices

NOVEMBER = datetime(2026, 11, 2, tzinfo=UTC)
MILLION = 1_000_000
GPT_4O = {"provider": "openai", "model": "gpt-4o-2024-08-06"}
SONNET = {"provider": "anthropic", "model": "claude-sonnet-4-5-20250929"}


def row(cost: str | None, *, at: datetime = NOVEMBER, **fields: Any) -> dict[str, Any]:
    """Usage of which requests are not known, unless given: prompts are then of any length."""
    values = {"request_count": None, "error_count": None, "success_count": None, "output_tokens": 0} | GPT_4O | fields
    return usage_row(at, estimated_cost=None if cost is None else Decimal(cost), **values)


def savings(*rows: dict[str, Any], period: Period | None = None, currency: str = "USD", **parameters: Any) -> PotentialSavings:
    usage = RecordedUsage.of(rows, currency=currency)
    return analyze_potential_savings(
        usage, period or Period(NOVEMBER, NOVEMBER + 7 * DAY), ListPrices(), SavingsParameters(**parameters)
    )


def reasons(result: PotentialSavings) -> dict[str, int | None]:
    return {one.reason: one.tokens for one in result.left_out}


# Caching


def test_caching_at_the_median_and_at_the_best_rate_of_the_models_features():
    result = savings(
        # gpt-4o: input 2.50, read from the cache 1.25 USD per million. 3 of 4 million read: 2.50 + 3.75.
        row("6.25", feature="search", input_tokens=4 * MILLION, cached_tokens=3 * MILLION),
        # 1 of 4 million read: 7.50 + 1.25.
        row("8.75", feature="mail", input_tokens=4 * MILLION, cached_tokens=MILLION),
    )
    (saving,) = result.caching.savings
    # Rates 75 % and 25 %, median 50 %. Mail at 50 % reads 1 million more, at 75 % 2 million: 1.25 USD for each. Search: nothing.
    assert (saving.low, saving.high) == (Decimal("1.25"), Decimal("2.50"))
    assert (saving.instead, saving.most, saving.considered_cost) == ("search", ("mail",), Decimal("15.00"))
    assert "median (low: 50.0%)" in saving.assumptions[0]
    assert "high: search, 75.0%" in saving.assumptions[0]
    assert len(saving.assumptions) == 1  # no surcharge: OpenAI's gpt-4o has no price for writes


def test_further_reads_need_writes_where_the_provider_charges_them():
    result = savings(
        # Sonnet 4.5: input 3.00, read 0.30, write 3.75 USD per million. 1 million uncached, 2 read, 1 written: 3.00 + 0.60 + 3.75.
        row(
            "7.35", **SONNET, feature="agents", input_tokens=4 * MILLION, cached_tokens=2 * MILLION, cache_creation_tokens=MILLION
        ),
        row("12.00", **SONNET, feature="mail", input_tokens=4 * MILLION, cached_tokens=0, cache_creation_tokens=0),
    )
    (saving,) = result.caching.savings
    # 1 million written for 2 million read: half a token each. A token moved saves 3.00 - 0.30 - 0.5 * (3.75 - 3.00) = 2.325 per
    # million. Low, at the median of 50 % and 0 %: 1 million. High, at 50 %: 2 million.
    assert (saving.low, saving.high) == (Decimal("2.325"), Decimal("4.650"))
    assert "needs 0.500 tokens written" in saving.assumptions[1]


def test_what_must_be_written_comes_out_of_the_uncached_input_too():
    result = savings(
        row(
            "7.35", **SONNET, feature="agents", input_tokens=4 * MILLION, cached_tokens=2 * MILLION, cache_creation_tokens=MILLION
        ),
        # 1 million uncached, 3 million written and never read: 3.00 + 11.25.
        row("14.25", **SONNET, feature="mail", input_tokens=4 * MILLION, cached_tokens=0, cache_creation_tokens=3 * MILLION),
    )
    # Two written per token read, so of 1 million uncached 333,333 can be read, each saving 3.00 - 0.30 - 2 * 0.75 = 1.20 per million.
    assert (result.caching.low, result.caching.high) == (Decimal("0.3999996"), Decimal("0.3999996"))


def test_unknown_cache_writes_cost_one_write_per_read_in_the_low_and_none_in_the_high():
    unknown = SONNET | {"cache_creation_tokens": None, "input_tokens": 4 * MILLION}
    result = savings(
        row("6.60", **unknown, feature="agents", cached_tokens=2 * MILLION),
        row("12.00", **unknown, feature="mail", cached_tokens=0),
    )
    (saving,) = result.caching.savings
    # Low: 1 million at 3.00 - 0.30 - 0.75 = 1.95. High: 2 million at 2.70.
    assert (saving.low, saving.high) == (Decimal("1.95"), Decimal("5.40"))
    assert "cache writes are not known" in saving.assumptions[1]


def test_a_cache_rate_never_moves_more_than_what_was_not_cached():
    result = savings(
        row("5.00", feature="search", input_tokens=4 * MILLION, cached_tokens=4 * MILLION),
        row("10.00", feature="mail", input_tokens=4 * MILLION, cached_tokens=0),
    )
    # All of it could be read: 10.00 becomes 5.00.
    assert result.caching.high == Decimal("5.00")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"cached_tokens": None}, "the cached part of the input is not known"),
        ({"feature": None}, "usage without a feature"),
        ({"request_count": 4_000}, "prompts of less than 1024 tokens on average"),
        ({"model": "gpt-4o-2024-05-13"}, "the model has no price for cached input"),
    ],
)
def test_what_says_nothing_about_caching_is_left_out_with_its_reason(fields, reason):
    result = savings(
        row("6.25", feature="search", input_tokens=4 * MILLION, cached_tokens=3 * MILLION),
        row("8.75", feature="mail", input_tokens=4 * MILLION, cached_tokens=MILLION),
        row("20.00", **({"feature": "other", "input_tokens": 4 * MILLION, "cached_tokens": 0} | fields)),
    )
    assert result.caching.high == Decimal("2.50")
    assert {one.reason: one.tokens for one in result.caching.left_out} == {reason: 4 * MILLION}


def test_a_feature_with_little_usage_is_no_mark_but_may_follow_one():
    rows = (
        row("6.25", feature="search", input_tokens=4 * MILLION, cached_tokens=3 * MILLION),
        row("8.75", feature="mail", input_tokens=4 * MILLION, cached_tokens=MILLION),
        # 900,000 of 900,000 read: 100 % of little.
        row("1.125", feature="trial", input_tokens=900_000, cached_tokens=900_000),
        row("1.25", feature="notes", input_tokens=500_000, cached_tokens=0),
    )
    (saving,) = savings(*rows).caching.savings
    # Notes at 75 %: 375,000 tokens at 1.25 per million. Mail as above.
    assert (saving.instead, saving.high) == ("search", Decimal("2.50") + Decimal("0.46875"))
    assert savings(*rows, min_comparable_input_tokens=900_000).caching.savings[0].instead == "trial"


def test_without_features_models_of_a_provider_are_compared():
    result = savings(
        # 4.1: input 2.00, read 0.50. 3 of 4 million read: 2.00 + 1.50.
        row("3.50", model="gpt-4.1", input_tokens=4 * MILLION, cached_tokens=3 * MILLION),
        row("10.00", input_tokens=4 * MILLION, cached_tokens=0),
    )
    gpt_4o, gpt_41 = result.caching.savings
    # gpt-4o at the median of 75 % and 0 %, 37.5 %: 1.5 million; at 75 %: 3 million, at 1.25 per million.
    assert (gpt_4o.model, gpt_4o.low, gpt_4o.high) == ("gpt-4o-2024-08-06", Decimal("1.875"), Decimal("3.75"))
    assert (gpt_4o.instead, gpt_41.high) == ("gpt-4.1", 0)


def test_one_model_with_one_feature_has_nothing_to_compare_with_which_is_unknown_and_not_zero():
    result = savings(row("10.00", feature="mail", input_tokens=4 * MILLION, cached_tokens=0))
    assert (result.caching.low, result.caching.high) == (None, None)
    assert [one.reason for one in result.caching.left_out] == ["fewer than two features to compare"]


# Batch

TOKENS = {"input_tokens": MILLION, "cached_tokens": 400_000, "output_tokens": 100_000, "service_type": "sync"}
# gpt-4o: 600,000 * 2.50 + 400,000 * 1.25 + 100,000 * 10 per million = 1.50 + 0.50 + 1.00.
PAID = "3.00"


def test_batch_in_november_costs_what_the_price_list_says():
    result = savings(
        row(PAID, **TOKENS, environment="development", feature="search"),
        row(PAID, **TOKENS, environment="production", feature="nightly-tagging"),
        row(PAID, **TOKENS, environment="production", feature="search"),
        row(PAID, **TOKENS, environment="development", feature="support chat"),
        row(PAID, **TOKENS | {"service_type": "real-time"}, feature="search"),
        row("1.75", **TOKENS | {"service_type": "batch"}, feature="search"),
        row(PAID, **TOKENS, request_type="audio"),
    )
    (saving,) = result.batch.savings
    # As a batch 600,000 * 1.25 + 400,000 * 1.25 + 100,000 * 5 = 0.75 + 0.50 + 0.50 = 1.75: 1.25 less. Low: the first two; high: three.
    assert (saving.low, saving.high, saving.considered_cost) == (Decimal("2.50"), Decimal("3.75"), Decimal("9.00"))
    assert not any("documents" in one for one in saving.assumptions)
    assert {one.reason for one in result.batch.left_out} == {
        "features that are interactive by name",
        "real-time usage",
        "requests that cannot be batched",
    }


def test_before_the_list_has_batch_prices_the_documented_half_price_is_named_as_an_assumption():
    june = datetime(2026, 6, 2, tzinfo=UTC)
    result = savings(row(PAID, **TOKENS, at=june, environment="test"), period=Period(june, june + DAY))
    (saving,) = result.batch.savings
    # Half of 1.50 and of 1.00; what is read from the cache keeps its price.
    assert (saving.low, saving.high) == (Decimal("1.25"), Decimal("1.25"))
    assert any("the 50% that openai documents" in one for one in saving.assumptions)
    none = savings(row(PAID, **TOKENS, at=june), period=Period(june, june + DAY), batch_discount_providers=())
    assert none.batch.high is None
    assert [one.reason for one in none.batch.left_out] == ["no batch price on the day"]


def test_usage_whose_source_does_not_say_how_it_was_served_is_in_the_high_only():
    (saving,) = savings(row(PAID, **TOKENS | {"service_type": None}, environment="test")).batch.savings
    assert (saving.low, saving.high) == (0, Decimal("1.25"))
    assert any("does not say how it was served" in one for one in saving.assumptions)


# A sibling


def test_the_next_cheaper_sibling_low_where_requests_are_small_high_for_all():
    gpt_5 = {"model": "gpt-5", "cached_tokens": 0}
    result = savings(
        # gpt-5: input 1.25, output 10 per million. 1,100 requests of 1,000 tokens are not small; 2,200 of 500 are.
        row("2.25", **gpt_5, input_tokens=MILLION, output_tokens=100_000, request_count=1_100, feature="long"),
        row("2.25", **gpt_5, input_tokens=MILLION, output_tokens=100_000, request_count=2_200, feature="short"),
    )
    (saving,) = result.model_selection.savings
    # gpt-5-mini: input 0.25, output 2: 0.25 + 0.20 = 0.45, so 1.80 less for each. gpt-5-nano would be a larger step.
    assert (saving.instead, saving.low, saving.high) == ("gpt-5-mini", Decimal("1.80"), Decimal("3.60"))


def test_a_batch_is_compared_with_a_batch_at_the_sibling():
    result = savings(row("1.125", model="gpt-5", input_tokens=MILLION, output_tokens=100_000, service_type="batch"))
    # Half of gpt-5's 2.25, and half of gpt-5-mini's 0.45.
    assert result.model_selection.high == Decimal("1.125") - Decimal("0.225")
    assert result.batch.high is None


def test_requests_that_are_only_partly_known_are_not_small():
    common = {"model": "gpt-5", "input_tokens": MILLION, "output_tokens": 100_000}
    result = savings(row("2.25", **common, request_count=10_000), row("2.25", **common, request_count=None))
    (saving,) = result.model_selection.savings
    assert (saving.low, saving.high) == (0, Decimal("3.60"))


def test_each_day_has_its_own_price():
    june = datetime(2025, 6, 9, tzinfo=UTC)
    day = {"model": "o3", "input_tokens": MILLION, "output_tokens": 100_000}
    rows = (row("14.00", **day, at=june), row("2.80", **day, at=june + DAY + timedelta(hours=5)))
    (saving,) = savings(*rows, period=Period(june, june + 2 * DAY)).model_selection.savings
    # o3-mini: 1.10 + 0.44 = 1.54 on both days. o3: 10.00 + 4.00 = 14.00 on the 9th, 2.00 + 0.80 = 2.80 from the 10th on.
    assert saving.high == (Decimal("14.00") - Decimal("1.54")) + (Decimal("2.80") - Decimal("1.54")) == Decimal("13.72")

    def with_todays_price() -> Decimal:
        o3, mini = (ListPrices().rates("openai", model, june.date() + DAY) for model in ("o3", "o3-mini"))
        assert o3
        assert mini
        return sum((one.input * 2 * MILLION + (one.output or 0) * 200_000) * sign for one, sign in ((o3, 1), (mini, -1)))

    assert with_todays_price() == Decimal("2.52")  # not what was overpaid


def test_a_price_change_does_not_depend_on_how_the_period_is_cut():
    june = datetime(2025, 6, 9, tzinfo=UTC)
    day = {"model": "o3", "input_tokens": MILLION, "output_tokens": 100_000}
    rows = [row(cost, **day, at=june + number * DAY) for number, cost in enumerate(["14.00", "2.80", "2.80"])]
    whole = savings(*rows, period=Period(june, june + 3 * DAY)).model_selection.high
    days = [savings(*rows, period=Period(june + n * DAY, june + (n + 1) * DAY)).model_selection.high for n in range(3)]
    assert whole == sum(one for one in days if one is not None)


def test_a_model_without_a_cheaper_sibling_is_named():
    result = savings(row("0.09", model="gpt-5-nano", input_tokens=MILLION, output_tokens=100_000))
    assert result.model_selection.high is None
    assert [(one.reason, one.models) for one in result.model_selection.left_out] == [
        ("no cheaper sibling in the price list", ("gpt-5-nano",))
    ]


# What has no price, was discounted, or is in another currency


@pytest.mark.parametrize(
    ("unusual", "reason"),
    [
        (row(None, model="m-large", input_tokens=500, unpriced_tokens=500), "not wholly priced"),
        (row("1.00", model="m-large", input_tokens=500), "no list price on the day"),
        (row("1.00", model=None, input_tokens=500), "the model is not known"),
        (row("1.00", input_tokens=500, cached_tokens=400, cache_creation_tokens=200), "more cached than input tokens"),
    ],
)
def test_usage_without_a_price_is_named_as_left_out_and_changes_no_figure(unusual, reason):
    usual = row(PAID, **TOKENS, environment="test", feature="search")
    alone, both = savings(usual), savings(usual, unusual | {"feature": "other"})
    assert reasons(alone) == {}
    assert reasons(both) == {reason: 500}
    assert both.kinds() == alone.kinds()
    assert both.priced_cost == alone.priced_cost


def test_usage_of_which_a_part_has_no_price_is_left_out_whole():
    result = savings(row("3.00", **TOKENS, unpriced_tokens=0), row(None, **TOKENS, unpriced_tokens=1_100_000))
    assert reasons(result) == {"not wholly priced": 2_200_000}
    assert {(kind.low, kind.high) for kind in result.kinds()} == {(None, None)}
    assert recommendation_rows(result) == []


def test_a_discount_is_kept_in_the_high_and_not_promised_in_the_low():
    # gpt-5 at 10 % below its list price of 2.25; gpt-5-mini costs 0.45 by the list.
    result = savings(row("2.025", model="gpt-5", input_tokens=MILLION, output_tokens=100_000, request_count=10_000))
    (saving,) = result.model_selection.savings
    assert (saving.low, saving.high) == (Decimal("2.025") - Decimal("0.45"), Decimal("1.80") * Decimal("0.9"))


def test_what_was_paid_beyond_the_list_price_stays():
    # 5 USD of searches besides the tokens' 2.25.
    result = savings(row("7.25", model="gpt-5", input_tokens=MILLION, output_tokens=100_000))
    assert result.model_selection.high == Decimal("1.80")


def test_in_another_currency_the_lists_share_of_the_recorded_cost_could_be_saved():
    result = savings(
        row("2.00", model="gpt-5", input_tokens=MILLION, output_tokens=100_000, request_count=10_000), currency="EUR"
    )
    (saving,) = result.model_selection.savings
    # 1.80 of 2.25 USD are 80 %.
    assert (result.currency, saving.low, saving.high) == ("EUR", Decimal("1.60"), Decimal("1.60"))
    assert "list prices are in USD" in result.assumptions[0]


# Rows


def test_a_recommendation_says_how_much_and_on_what_it_rests():
    result = savings(row(PAID, **TOKENS, environment="development", feature="search"))
    rows = recommendation_rows(result)
    # The sibling: gpt-4o-mini at 0.15, 0.075 and 0.60 per million: 0.09 + 0.03 + 0.06 = 0.18, so 2.82 less.
    assert [(one.category, one.priority, one.savings_low, one.savings_high, one.dimension_value) for one in rows] == [
        ("model_selection", "high", Decimal(0), Decimal("2.82"), "gpt-4o-2024-08-06"),
        ("batch", "high", Decimal("1.25"), Decimal("1.25"), "gpt-4o-2024-08-06"),
    ]
    assert rows[1].description == (
        "The same tokens would have cost USD 1.25 to 1.25 less in the period, of USD 3.00 looked at. Most of it in: search."
    )
    assert "must not be added" in str(rows[0].assumptions)


def test_nothing_to_save_is_no_recommendation():
    # The cheapest model, in a batch, all of its features alike: savings of 0 or unknown.
    tokens = {"model": "gpt-5-nano", "service_type": "batch", "input_tokens": 2 * MILLION, "cached_tokens": MILLION}
    result = savings(*(row("0.0275", **tokens, feature=feature) for feature in ("search", "mail")), min_share_of_cost=0)
    assert (result.caching.low, result.caching.high) == (0, 0)
    assert recommendation_rows(result) == []


def test_little_to_save_is_no_recommendation():
    rows = (
        row("0.30", model="gpt-5", input_tokens=240_000),
        row("90.00", model="gpt-5-nano", input_tokens=1_800 * MILLION, service_type="batch"),
    )
    assert {one.category for one in recommendation_rows(savings(*rows, min_share_of_cost=0))} == {"batch", "model_selection"}
    assert recommendation_rows(savings(*rows)) == []


def test_metric_rows_are_unknown_where_nothing_could_be_looked_at():
    rows = metric_rows(savings(row(PAID, **TOKENS, environment="test", feature="search")))
    found = {(one.metric, one.dimension_value): one.value for one in rows}
    assert found["caching_savings_low", None] is None
    assert found["batch_savings_low", None] == found["batch_savings_high", "gpt-4o-2024-08-06"] == Decimal("1.25")
    assert found["savings_priced_cost", None] == Decimal("3.00")


def test_an_empty_period_knows_nothing():
    result = savings()
    assert {(kind.low, kind.high) for kind in result.kinds()} == {(None, None)}
    assert (result.priced_cost, result.left_out, recommendation_rows(result)) == (0, (), [])
    as_json(result)


def test_small_amounts_have_four_places():
    assert range_text("USD", Decimal(0), Decimal("0.0012")) == "USD 0.0000 to 0.0012"
    assert range_text("EUR", Decimal("1.005"), Decimal("12345.6")) == "EUR 1.00 to 12,345.60"


def test_the_worked_examples_save_no_more_than_they_cost(golden):
    result = analyze_potential_savings(golden.usage, golden.period, ListPrices())
    as_json(result)
    for kind in result.kinds():
        if golden.name == "cluster":
            assert kind.high is None  # nobody sells m-large
        elif kind.high is not None:
            assert 0 <= kind.low <= kind.high <= kind.considered_cost <= result.priced_cost


MODELS = st.sampled_from([
    ("openai", "gpt-4o"), ("openai", "gpt-5"), ("openai", "gpt-5.6-sol"), ("anthropic", "claude-opus-4-1"),
    ("anthropic", "claude-sonnet-4-5"), ("google", "gemini-2.5-pro"), ("openai", "text-embedding-3-small"), ("openai", "m-large"),
])  # fmt: skip
COUNT = st.integers(0, 10_000_000)


@st.composite
def any_row(draw: st.DrawFn) -> dict[str, Any]:
    (provider, model), cached, written, uncached = draw(MODELS), draw(COUNT), draw(COUNT), draw(COUNT)
    cost = draw(st.one_of(st.none(), st.decimals(0, 1000, places=6)))
    tokens = {"input_tokens": cached + written + uncached, "output_tokens": 0 if "embedding" in model else draw(COUNT)}
    return row(
        None if cost is None else str(cost), provider=provider, model=model, cached_tokens=draw(st.sampled_from([cached, None])),
        cache_creation_tokens=draw(st.sampled_from([written, None])), **tokens,
        at=datetime(2026, 10, 13, tzinfo=UTC) + draw(st.integers(0, 3)) * DAY,
        feature=draw(st.sampled_from([None, "search", "mail", "chat", "nightly"])),
        environment=draw(st.sampled_from([None, "production", "test"])),
        service_type=draw(st.sampled_from([None, "sync", "batch"])), request_count=draw(st.sampled_from([None, 0, 1, 5_000])),
        unpriced_tokens=sum(tokens.values()) if cost is None else 0,
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(any_row(), max_size=8), st.sampled_from(["USD", "EUR"]))
def test_savings_are_a_range_from_zero_to_what_was_paid(rows, currency):
    start = datetime(2026, 10, 13, tzinfo=UTC)
    result = savings(*rows, period=Period(start, start + 4 * DAY), currency=currency, min_comparable_input_tokens=1)
    as_json(result)
    paid = sum((one[COST] for one in rows if one[COST] is not None), Decimal(0))
    assert result.priced_cost <= paid
    for kind in result.kinds():
        for saving in kind.savings:
            assert 0 <= saving.low <= saving.high <= saving.considered_cost
            assert saving.assumptions
        if kind.high is not None:
            assert 0 <= kind.low <= kind.high <= kind.considered_cost <= result.priced_cost
    for one in recommendation_rows(result):
        assert one.savings_high > 0


def test_ten_thousand_features_take_under_a_second():
    class Kept(RecordedUsage):
        """Frames answered from memory the second time: what is timed is the analysis alone."""

        frames: dict[str, Any] = {}  # noqa: RUF012

        def frame(self, *args: Any, **named: Any) -> Any:
            key = repr((args, named))
            if key not in self.frames:
                self.frames[key] = super().frame(*args, **named)
            return self.frames[key]

    usage = Kept.of(
        row(
            "12.00",
            **SONNET,
            feature=f"feature-{number}",
            input_tokens=4 * MILLION,
            cached_tokens=number * 100,
            service_type="sync",
        )
        for number in range(10_000)
    )
    period = Period(NOVEMBER, NOVEMBER + DAY)
    result = analyze_potential_savings(usage, period, ListPrices())
    assert result.caching.savings[0].instead == "feature-9999"
