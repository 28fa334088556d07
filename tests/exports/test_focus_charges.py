"""Usage split by kind of token: exactly, or not at all (docs/decisions/0016). Prices of the list on 1 June 2026, per million tokens:
gpt-4o 2.50 in, 1.25 from the cache, 10 out; claude-sonnet-4-6 3.00, 0.30, 3.75 into the cache (6.00 for an hour), 15.00."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokentra_dagster.exports.focus.charges import BASES, METERS, Charges, Level, Usage, charges_of, levels_of
from tokentra_dagster.exports.focus.rows import sku, terms_of

JUNE = date(2026, 6, 1)
GPT = levels_of("openai", "gpt-4o-2024-08-06", None, JUNE)
SONNET = levels_of("anthropic", "claude-sonnet-4-6", None, JUNE)
PICO = 10**12


def usage_of(
    tokens: tuple[int, int, int, int], cost: str | None, levels: Any = GPT, unpriced: int = 0, requests: int = 1
) -> Usage:
    """One row; tokens are uncached input, cache reads, cache writes, output."""
    return Usage(
        tokens=np.array([tokens]), total=np.array([sum(tokens)]), requests=np.array([requests]),
        cost=np.array([None if cost is None else int(Decimal(cost) * PICO)], dtype=object), unpriced=np.array([unpriced]),
        group=np.array([0]), levels=[levels],
    )  # fmt: skip


def shown(charges: Charges) -> list[tuple[str, int, Decimal | None, Decimal | None, str]]:
    """Meter, quantity, cost, price per million tokens, basis."""
    return [
        (METERS[meter].name, quantity, None if cost is None else Decimal(cost) / PICO, None if price < 0 else Decimal(price) / 10**6, BASES[basis])
        for meter, quantity, cost, price, basis in zip(
            charges.meter.tolist(), charges.quantity.tolist(), charges.cost.tolist(), charges.price.tolist(), charges.basis.tolist(),
            strict=True,
        )
    ]  # fmt: skip


def test_a_cost_that_list_prices_give_exactly_is_split_by_kind_of_token():
    found = shown(charges_of(usage_of((1000, 400, 0, 30), "0.0033")))
    assert found == [
        ("Input Tokens", 1000, Decimal("0.0025"), Decimal("2.5"), "ListPrice"),
        ("Cache Read Input Tokens", 400, Decimal("0.0005"), Decimal("1.25"), "ListPrice"),
        ("Output Tokens", 30, Decimal("0.0003"), Decimal("10"), "ListPrice"),
    ]


def test_a_cost_that_is_off_by_the_last_digit_stays_whole():
    found = shown(charges_of(usage_of((1000, 400, 0, 30), "0.003300000001")))
    assert found == [("Tokens", 1430, Decimal("0.003300000001"), None, "Estimate")]


def test_shares_in_proportion_would_give_wrong_costs_where_the_terms_are_not_known():
    """Half of the cache writes last an hour: 3.75 and 6.00 a million. A split in proportion to list prices would move a part of
    that surcharge to input and output, which cost what they always cost."""
    tokens, paid = (1_000_000, 0, 1_000_000, 100_000), Decimal("3") + Decimal("4.875") + Decimal("1.5")
    listed = [Decimal("3"), Decimal("3.75"), Decimal("1.5")]
    in_proportion = [paid * share / sum(listed) for share in listed]
    assert sum(in_proportion) == paid and in_proportion[0] > listed[0] and in_proportion[2] > listed[2]
    assert shown(charges_of(usage_of(tokens, str(paid), SONNET))) == [("Tokens", 2_100_000, paid, None, "Estimate")]


def test_cache_writes_that_all_last_an_hour_are_told_by_their_cost():
    charges = charges_of(usage_of((1_000_000, 0, 1_000_000, 0), "9", SONNET))
    assert [row[:4] for row in shown(charges)] == [
        ("Input Tokens", 1_000_000, Decimal(3), Decimal(3)), ("Cache Write Input Tokens", 1_000_000, Decimal(6), Decimal(6)),
    ]  # fmt: skip
    level = SONNET[charges.level[0]]
    assert level.one_hour and terms_of(level, 2) == {"x_CacheDuration": "1 hour"} and terms_of(level, 0) == {}


def test_an_unknown_cost_is_split_by_tokens_and_stays_unknown():
    found = shown(charges_of(usage_of((10, 0, 0, 5), None, (), unpriced=15)))
    assert found == [("Input Tokens", 10, None, None, "Unpriced"), ("Output Tokens", 5, None, None, "Unpriced")]
    assert shown(charges_of(usage_of((10, 0, 0, 0), None, ())))[0][4] == "OtherCurrency"


def test_an_unknown_cost_of_tokens_of_which_some_have_no_price_stays_whole():
    """The others cost something in another currency: which kinds have no price cannot be told."""
    assert shown(charges_of(usage_of((10, 0, 0, 5), None, (), unpriced=3))) == [("Tokens", 15, None, None, "Unpriced")]


def test_a_cost_of_some_tokens_only_is_never_split_even_where_it_fits():
    assert shown(charges_of(usage_of((1000, 0, 0, 0), "0.0025", unpriced=500))) == [
        ("Tokens", 1000, Decimal("0.0025"), None, "PartlyUnpriced")
    ]


@pytest.mark.parametrize(("requests", "meter", "quantity"), [(7, "Requests", 7), (0, "Tokens", 0)])
def test_usage_without_tokens_is_one_charge(requests: int, meter: str, quantity: int):
    (charge,) = shown(charges_of(usage_of((0, 0, 0, 0), "1.5", (), requests=requests)))
    assert charge == (meter, quantity, Decimal("1.5"), None, "Estimate")


def test_a_model_that_the_list_has_for_nothing_is_free_and_one_that_it_lacks_is_unpriced():
    free = levels_of("openai", "omni-moderation-latest", None, JUNE)
    assert shown(charges_of(usage_of((9, 0, 0, 0), "0", free))) == [("Input Tokens", 9, Decimal(0), Decimal(0), "ListPrice")]
    assert levels_of("openai", "orion-preview-1", None, JUNE) == () == levels_of("nobody", "x", None, JUNE)


def test_output_of_a_model_without_a_price_of_output_is_not_free():
    embedding = levels_of("openai", "text-embedding-3-small", None, JUNE)
    assert shown(charges_of(usage_of((10**6, 0, 0, 0), "0.02", embedding)))[0][4] == "ListPrice"
    assert shown(charges_of(usage_of((10**6, 0, 0, 1), "0.02", embedding))) == [
        ("Tokens", 10**6 + 1, Decimal("0.02"), None, "Estimate")
    ]


def test_a_long_prompts_price_has_its_own_sku_price_under_the_same_sku():
    levels = levels_of("google", "gemini-2.5-pro", None, JUNE)
    charges = charges_of(usage_of((10**6, 0, 0, 0), "2.5", levels))
    terms = terms_of(levels[charges.level[0]], 0)
    long, short = (sku("google", "gemini-2.5-pro", None, None, 0, each, "ListPrice") for each in (terms, {}))
    assert terms == {"x_PromptLength": "above 200000 input tokens"}
    assert long["SkuId"] == short["SkuId"] and long["SkuPriceId"] != short["SkuPriceId"]


def test_amounts_beyond_64_bits_are_still_exact():
    tokens = 5 * 10**15
    cost = tokens * 2_500_000
    assert cost > 2**63
    (charge,) = shown(charges_of(usage_of((tokens, 0, 0, 0), str(Decimal(cost) / PICO))))
    assert charge[:3] == ("Input Tokens", tokens, Decimal(cost) / PICO)


LEVELS = st.lists(st.builds(Level, *[st.integers(0, 10**8)] * 3, st.none() | st.integers(0, 10**8)), max_size=3)
ROWS = st.lists(
    st.tuples(
        st.tuples(*[st.integers(0, 10**7)] * 4), st.none() | st.integers(0, 10**16), st.integers(0, 2), st.integers(0, 3), st.booleans()
    ),
    min_size=1, max_size=20,
)  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(rows=ROWS, levels=st.lists(LEVELS, min_size=4, max_size=4))
def test_charges_add_up_to_their_row_whatever_it_holds(rows: list[Any], levels: list[list[Level]]):
    """Tokens, requests of token-less rows and cost, digit by digit; every row has a charge; the price times tokens is the cost."""
    tokens = np.array([row[0] for row in rows])
    cost = np.empty(len(rows), dtype=object)
    for place, (counts, paid, _, group, fits) in enumerate(rows):
        first = levels[group][0] if levels[group] else None
        cost[place] = paid
        if fits and first:
            cost[place] = sum(
                n * (p or 0)
                for n, p in zip(counts, (first.uncached, first.cache_read, first.cache_write, first.output), strict=True)
            )
    total = tokens.sum(axis=1)
    usage = Usage(
        tokens,
        total,
        np.array([row[2] for row in rows]),
        cost,
        total * np.array([paid is None for paid in cost]),
        np.array([row[3] for row in rows]),
        levels,
    )
    charges = charges_of(usage)
    for place in range(len(rows)):
        mine = charges.row == place
        is_tokens = mine & (charges.meter != 5)
        assert mine.any() and charges.quantity[is_tokens].sum() == total[place]
        assert (cost[place] is None) == (None in charges.cost[mine].tolist())
        assert cost[place] is None or sum(charges.cost[mine].tolist()) == cost[place]
    priced = charges.price >= 0
    assert (charges.quantity[priced].astype(object) * charges.price[priced].astype(object) == charges.cost[priced]).all()
