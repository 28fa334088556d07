"""What the analytics ask of the price list: prices of one token by day, and models that could take another's place."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

import pytest

from tokentra_dagster.analytics.priced_cells import TokenRates
from tokentra_dagster.list_prices import ListPrices, place

NOVEMBER = date(2026, 11, 1)
PRICES = ListPrices()


def per_million(given: str, output: str | None, read: str | None = None, write: str | None = None) -> TokenRates:
    return TokenRates(*(None if price is None else Decimal(price) / 1_000_000 for price in (given, output, read, write)))


@pytest.mark.parametrize(
    ("provider", "model", "day", "batch", "expected"),
    [
        ("anthropic", "claude-sonnet-4-5-20250929", NOVEMBER, False, per_million("3", "15", "0.3", "3.75")),
        ("anthropic", "claude-sonnet-4-5-20250929", NOVEMBER, True, per_million("1.5", "7.5", "0.15", "1.875")),
        ("openai", "gpt-4o-2024-08-06", NOVEMBER, False, per_million("2.5", "10", "1.25")),
        # Batch prices of the list begin on 14 October 2026; before, it does not say.
        ("openai", "gpt-4o-2024-08-06", date(2026, 10, 14), True, per_million("1.25", "5", "1.25")),
        ("openai", "gpt-4o-2024-08-06", date(2026, 10, 13), True, None),
        # o3 became cheaper on 10 June 2025.
        ("openai", "o3", date(2025, 6, 9), False, per_million("10", "40", "0.5")),
        ("openai", "o3", date(2025, 6, 10), False, per_million("2", "8", "0.5")),
        ("openai", "text-embedding-3-small", NOVEMBER, False, per_million("0.02", None)),
        # Free by the list is not unknown, and unknown is not free.
        ("openai", "omni-moderation-latest", NOVEMBER, False, per_million("0", "0")),
        ("openai", "m-large", NOVEMBER, False, None),
    ],
)
def test_prices_of_one_token_on_a_day(provider, model, day, batch, expected):
    assert PRICES.rates(provider, model, day, batch=batch) == expected


def test_prices_change_on_the_days_that_the_list_says():
    assert date(2025, 6, 10) in PRICES.change_days("openai")


def test_a_provider_that_the_list_does_not_know_has_no_prices():
    assert PRICES.rates("our-own-cluster", "gpt-4o", NOVEMBER) is None
    assert (PRICES.siblings("our-own-cluster", "gpt-4o"), PRICES.change_days("our-own-cluster")) == ((), ())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("claude-opus-4-1", ("", "claude", "4", "opus")),
        ("claude-3-5-haiku-latest", ("", "claude", "3", "haiku")),
        ("gpt-4o", ("", "gpt", "4o", "")),
        ("gpt-4o-2024-05-13", ("", "gpt", "4o", "")),
        ("gpt-4.1-mini", ("", "gpt", "4.1", "mini")),
        ("o3-mini", ("", "o", "3", "mini")),
        ("gemini-2.5-flash-lite", ("", "gemini", "2.5", "flash-lite")),
        ("regional.anthropic.claude-haiku-4-5-20251001-v1:0", ("regional.anthropic.", "claude", "4", "haiku")),
        ("amazon.nova-pro-v1:0", ("amazon.", "nova", "1", "pro")),
    ],
)
def test_a_models_name_says_its_line_generation_and_size(name, expected):
    found = place(name)
    assert found is not None
    assert (found.seller, found.line, found.generation, found.size) == expected


@pytest.mark.parametrize(
    "name",
    ["gpt-4o-realtime-preview", "gpt-5-image", "gpt-5.3-codex", "gpt-oss-120b", "o4-mini-deep-research", "gemini-2.5-flash-tts",
     "text-embedding-3-small", "m-large", "ft:gpt-4o", "claude-v1", ""],
)  # fmt: skip
def test_a_model_for_another_job_takes_no_ones_place(name):
    assert place(name) is None


@pytest.mark.parametrize(
    ("provider", "model", "expected"),
    [
        ("openai", "gpt-4.1-2025-04-14", ("gpt-4.1-mini", "gpt-4.1-nano")),
        ("openai", "gpt-5", ("gpt-5-mini", "gpt-5-nano", "gpt-5-pro")),
        ("google", "gemini-2.5-pro", ("gemini-2.5-flash", "gemini-2.5-flash-lite")),
        ("azure", "gpt-4.1", ("gpt-4.1-mini", "gpt-4.1-nano")),
        ("aws", "amazon.nova-lite-v1:0", ("amazon.nova-micro-v1:0", "amazon.nova-premier-v1:0", "amazon.nova-pro-v1:0")),
        ("openai", "ft:gpt-4o-mini:acme::1", ()),
        ("openai", "m-large", ()),
    ],
)
def test_siblings_are_general_models_of_the_same_line_and_generation(provider, model, expected):
    assert PRICES.siblings(provider, model) == expected


def test_a_claude_has_other_versions_of_its_generation_and_smaller_models():
    found = PRICES.siblings("anthropic", "claude-opus-4-1-20250805")
    assert {"claude-opus-4-5", "claude-sonnet-4-5", "claude-haiku-4-5"} <= set(found)
    assert not {"claude-opus-4-1", "claude-opus-5", "claude-3-haiku"} & set(found)


@pytest.mark.parametrize(
    "model", ["us.anthropic.claude-opus-4-5-20251101-v1:0", "global.anthropic.claude-opus-4-5-20251101-v1:0"]
)
def test_siblings_on_bedrock_keep_the_region_and_have_prices(model):
    found = PRICES.siblings("aws", model)
    assert any("claude-haiku-4-5" in name for name in found)
    assert {name.split(".")[0] for name in found} == {model.split(".")[0]}
    assert None not in [PRICES.rates("aws", name, NOVEMBER) for name in found]
