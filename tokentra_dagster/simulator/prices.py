"""What the simulated providers charge for one unit: the prices of `genai-prices`, and their own tariff for the rest.

Whole pico-dollars (10^-12 USD), so that amounts stay exact in integers. Batch and tier prices, which the list dates from
October 2026 on, hold on every day here: providers charged them before the list knew them. Long prompts pay the higher tier
only where the context window says so, because tiers are per request.
"""

from __future__ import annotations

from bisect import bisect_right
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import cache

from genai_prices import Usage, calc_price
from genai_prices.types import PriceContext, StartDateConstraint

PICO = 10**12
VARIANTS_BEGAN = date(2026, 10, 14)
_LONG_PROMPT = 300_000

TARIFF = {
    "images": 40_000_000_000,
    "sessions": 30_000_000_000,
    "file_searches": 2_500_000_000,
    "web_searches": 10_000_000_000,
    "gibibyte_days": 100_000_000_000,
    "seconds": 100_000_000,
    "characters": 15_000_000,
    "execution_spans": 5_000_000_000,
}
"""Pico-dollars of what is not tokens: per image, session, search, GiB and day, second, character, span."""

_UNLISTED = {"input": 4_000_000, "cache_read": 400_000, "output": 16_000_000}
"""Pico-dollars per token of a model that no list knows."""

_ASKED: dict[str, tuple[str, ...]] = {
    "input": ("input_tokens",),
    "output": ("output_tokens",),
    "cache_read": ("input_tokens", "cache_read_tokens"),
    "cache_write": ("input_tokens", "cache_write_tokens"),
    "cache_write_1h": ("input_tokens", "cache_write_tokens", "cache_write_1h_tokens"),
    "input_audio": ("input_tokens", "input_audio_tokens"),
    "output_audio": ("output_tokens", "output_audio_tokens"),
}
"""A kind of token -> the counts that say so to `calc_price`: parts are inside their whole."""


def token_price(provider: str, model: str, kind: str, day: date, *, tier: str = "standard", long_prompt: bool = False) -> int:
    """Pico-dollars per token. `kind` is a key of `_ASKED`; `tier` is `standard`, `batch`, `priority` or `flex`."""
    starts = _starts(provider, model)
    segment = bisect_right(starts, day)
    return _price(provider, model, kind, starts[segment - 1] if segment else date(2024, 1, 1), tier, long_prompt)


@cache
def _price(provider: str, model: str, kind: str, day: date, tier: str, long_prompt: bool) -> int:
    context: PriceContext | None = None
    if tier == "batch":
        context = {"processing": "batch"}
    elif tier in ("priority", "flex"):
        context = {"service_tier": tier}
    asked = max(day, VARIANTS_BEGAN) if context else day
    tokens = _LONG_PROMPT if long_prompt else 1
    usage = dict.fromkeys(_ASKED[kind], tokens)
    if long_prompt:
        usage["input_tokens"] = tokens  # the tier of every kind follows the length of the prompt
    moment = datetime(asked.year, asked.month, asked.day, 12, tzinfo=UTC)
    try:
        found = calc_price(Usage(**usage), model, provider_id=provider, genai_request_timestamp=moment, price_context=context)
    except LookupError:
        return _UNLISTED.get(kind, _UNLISTED["input"])
    price = found.output_price if kind.startswith("output") else found.input_price
    return int(Decimal(price) * PICO / tokens)


@cache
def _starts(provider: str, model: str) -> tuple[date, ...]:
    """The days on which the model's list price changes."""
    try:
        prices = calc_price(Usage(), model, provider_id=provider).model.prices
    except LookupError:
        return ()
    if not isinstance(prices, list):
        return ()
    return tuple(sorted(p.constraint.start_date for p in prices if isinstance(p.constraint, StartDateConstraint)))


def plain(pico: int, places: int = 12) -> str:
    """`pico` x 10^-places as decimal text without an exponent and without trailing zeros; never a float."""
    text = f"{Decimal(pico).scaleb(-places):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
