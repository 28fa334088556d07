"""The price list: what one unit of usage cost at a provider on a day, from the `genai-prices` package's bundled data.

Only the data inside the installed wheel is read; nothing here goes to the network. Prices are whole pico-dollars
(10^-12 USD) per unit, so that sums stay exact in integers.

What is not known for certain is `None`, never a guess: an unknown model, a service tier or batch processing for which the
list has no price on that day (its batch and tier prices start on 2026-10-12 and later; before that it would silently give
the standard price), a price that depends on the time of day, and Anthropic's surcharged `inference_geo`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import cache

from genai_prices import __version__, data_snapshot
from genai_prices.types import (
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    PriceVariant,
    Provider,
    StartDateConstraint,
    TieredPrices,
    TimeOfDateConstraint,
)

from tokentra_dagster.model_names import name_in_arn

PICO = 10**12
PER_MILLION = Decimal(PICO // 10**6)
PER_THOUSAND = Decimal(PICO // 10**3)

UNITS: dict[str, tuple[str, Decimal, frozenset[str]]] = {
    "input_tokens": ("input_mtok", PER_MILLION, frozenset(("input",))),
    "output_tokens": ("output_mtok", PER_MILLION, frozenset(("output",))),
    "cache_read_tokens": ("cache_read_mtok", PER_MILLION, frozenset(("input", "read"))),
    "cache_write_tokens": ("cache_write_mtok", PER_MILLION, frozenset(("input", "write"))),
    "cache_write_1h_tokens": ("cache_write_1h_mtok", PER_MILLION, frozenset(("input", "write", "1h"))),
    "input_audio_tokens": ("input_audio_mtok", PER_MILLION, frozenset(("input", "audio"))),
    "cache_audio_read_tokens": ("cache_audio_read_mtok", PER_MILLION, frozenset(("input", "audio", "read"))),
    "output_audio_tokens": ("output_audio_mtok", PER_MILLION, frozenset(("output", "audio"))),
    "input_image_tokens": ("input_image_mtok", PER_MILLION, frozenset(("input", "image"))),
    "cache_image_read_tokens": ("cache_image_read_mtok", PER_MILLION, frozenset(("input", "image", "read"))),
    "output_image_tokens": ("output_image_mtok", PER_MILLION, frozenset(("output", "image"))),
    "input_video_tokens": ("input_video_mtok", PER_MILLION, frozenset(("input", "video"))),
    "output_video_tokens": ("output_video_mtok", PER_MILLION, frozenset(("output", "video"))),
    "web_searches": ("web_searches_kcount", PER_THOUSAND, frozenset(("search",))),
}
"""Usage we can count -> its key in the list, pico-dollars per listed dollar, and its traits. A unit is a part of every unit
whose traits it has: `cache_audio_read_tokens` are inside `cache_read_tokens`, `input_audio_tokens` and `input_tokens`."""

JOINS = (
    ("cache_audio_read_tokens", "cache_read_tokens", "input_audio_tokens"),
    ("cache_image_read_tokens", "cache_read_tokens", "input_image_tokens"),
)
"""(part, whole, other whole): where both wholes are used, the price cannot be known without the part."""

_STANDARD_TIERS = frozenset(("", "default", "standard", "on_demand", "on-demand"))
_PRICED_TIERS = frozenset(("flex", "priority", "fast"))


@dataclass(frozen=True, slots=True)
class Terms:
    """The conditions of a sale other than model and day; `None` and "" mean that the source did not say."""

    service_type: str | None = None
    service_tier: str | None = None
    speed: str | None = None
    inference_geo: str | None = None

    def context(self, provider: str) -> dict[str, str] | None:
        """What selects the list's special prices: empty for standard terms, `None` for terms that the list cannot express."""
        chosen: dict[str, str] = {}
        tier = (self.service_tier or "").lower()
        if self.service_type == "batch" or tier == "batch":
            chosen["processing"] = "batch"
        if tier in _PRICED_TIERS:
            chosen["service_tier"] = tier
        elif tier not in _STANDARD_TIERS and tier != "batch":
            return None
        if (self.speed or "standard").lower() != "standard":
            chosen["speed"] = str(self.speed).lower()
        if provider == "anthropic" and (self.inference_geo or "").lower() not in ("", "global", "not_available"):
            return None
        return chosen if len(chosen) <= 1 else None


@dataclass(frozen=True, slots=True)
class Rates:
    """Prices of one model under fixed terms: for each length of prompt, pico-dollars per unit (a missing unit has no price).

    `levels[0]` holds up to `starts[0]` input tokens, `levels[i]` above `starts[i - 1]`: the whole request pays its level.
    """

    source: str
    starts: tuple[int, ...]
    levels: tuple[dict[str, int], ...]

    @property
    def is_free(self) -> bool:
        """The list has the model and charges nothing for it (moderation, for example)."""
        return not any(self.levels)

    def source_at(self, level: int) -> str:
        return self.source if level == 0 else f"{self.source} above {self.starts[level - 1]} input tokens"


@cache
def rates(provider: str, model: str, day: date, terms: Terms) -> Rates | None:
    """What `model` cost at `provider` on the UTC `day`, or `None` where the list does not say."""
    found = find(provider, model)
    context = terms.context(provider)
    if found is None or context is None:
        return None
    owner, info = found
    if any(isinstance(price.constraint, TimeOfDateConstraint) for price in _conditions(info)):
        return None
    moment = datetime(day.year, day.month, day.day, tzinfo=UTC)
    variants = [variant for variant in info.price_variants or () if _applies(variant, context, moment)] if context else []
    prices = info.get_prices(moment, context if variants else None)
    free = not any(value is not None for value in prices.__dict__.values())
    if context and not free and (not variants or owner.id != _provider(provider).id):
        return None
    starts = tuple(
        sorted({tier.start for value in prices.__dict__.values() if isinstance(value, TieredPrices) for tier in value.tiers})
    )
    levels = [_units(prices, start) for start in (0, *starts)]
    if any(level is None for level in levels):
        return None
    dates = [
        c.start_date for c in (_standard(info, moment), *(v.constraint for v in variants)) if isinstance(c, StartDateConstraint)
    ]
    words = [f"genai-prices {__version__} {owner.id}/{info.id}", *context.values(), *([f"from {max(dates)}"] if dates else [])]
    return Rates(" ".join(words), starts, tuple(level for level in levels if level is not None))


@cache
def change_days(provider: str) -> tuple[date, ...]:
    """The UTC days on which any price of this provider (or of one whose models it resells) begins, ascending."""
    own = _provider(provider)
    sellers = [own, *(p for p in data_snapshot.get_snapshot().providers if p.id in (own.fallback_model_providers or ()))]
    constraints = (price.constraint for seller in sellers for info in seller.models for price in _conditions(info))
    return tuple(sorted({c.start_date for c in constraints if isinstance(c, StartDateConstraint)}))


@cache
def find(provider: str, model: str) -> tuple[Provider, ModelInfo] | None:
    """The list's entry for a model as the source spells it, and whose it is; path prefixes (ARNs, `publishers/...`) are dropped.

    An ARN of the customer's own model or profile is in no list, even where it contains the name of one that is.
    """
    named = name_in_arn(model)
    if named is None:
        return None
    seller = _provider(provider)
    everyone = data_snapshot.get_snapshot().providers
    for reference in dict.fromkeys((named, named.rsplit("/", 1)[-1])):
        info = seller.find_model(reference, all_providers=everyone)
        if info is not None:
            owner = next(p for p in (seller, *everyone) if any(info is candidate for candidate in p.models))
            return owner, info
    return None


@cache
def _provider(provider: str) -> Provider:
    return data_snapshot.get_snapshot().find_provider(None, provider, None)


def _conditions(info: ModelInfo) -> list[ConditionalPrice | PriceVariant]:
    standard = info.prices if isinstance(info.prices, list) else []
    return [*standard, *(info.price_variants or ())]


def _applies(variant: PriceVariant, context: dict[str, str], moment: datetime) -> bool:
    started = variant.constraint is None or variant.constraint.active(moment)
    return started and all(context.get(key) == value for key, value in variant.when.items())


def _standard(info: ModelInfo, moment: datetime) -> StartDateConstraint | TimeOfDateConstraint | None:
    """The condition under which the standard price of that moment holds."""
    if isinstance(info.prices, ModelPrice):
        return None
    return next((p.constraint for p in reversed(info.prices) if p.constraint is None or p.constraint.active(moment)), None)


def _units(prices: ModelPrice, start: int) -> dict[str, int] | None:
    """Pico-dollars per unit for prompts just longer than `start` (0: the base); `None` if a price is finer than that."""
    units: dict[str, int] = {}
    for unit, (key, scale, _) in UNITS.items():
        price = prices.__dict__.get(key)
        if price is None:
            continue
        if isinstance(price, TieredPrices):
            reached = [tier.price for tier in price.tiers if tier.start <= start]
            price = reached[-1] if start and reached else price.base
        scaled = price * scale
        if scaled != int(scaled):
            return None
        units[unit] = int(scaled)
    # A unit that only the list knows (hours of audio, characters) says nothing about tokens, but it is not free either.
    return units if units or not any(value is not None for value in prices.__dict__.values()) else {"web_searches": 0}
