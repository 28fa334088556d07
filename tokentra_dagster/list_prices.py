"""The price list as the analytics ask it (`analytics.priced_cells.Prices`): Decimal prices of one token, and sibling models.

Siblings are read from the list's own model names: one product line, one generation, a size among those known. The list does not
say from when a model could be bought, so a sibling may be newer than the day.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import cache

from tokentra_dagster import price_list
from tokentra_dagster.analytics.priced_cells import TokenRates

BATCH = price_list.Terms(service_type="batch")
STANDARD = price_list.Terms()
_SELLER = re.compile(r"^(?:[a-z]+\.)+")
_EDITION = re.compile(r"(?:-v\d+(?::\d+)?|-20\d{6}|-20\d{2}-\d{2}-\d{2}|-latest|-preview)+$")
_NUMBER = re.compile(r"^\d+(?:\.\d+)?o?$")
SIZES = {
    "claude": {"fable", "opus", "sonnet", "haiku"},
    "gpt": {"", "pro", "mini", "nano", "astra", "sol", "terra", "luna"},
    "o": {"", "pro", "mini"},
    "gemini": {"pro", "flash", "flash-lite"},
    "nova": {"premier", "pro", "lite", "micro"},
}
"""Product line -> the words for its general models' sizes. Others (search, audio, image, code, security) do another job."""


class ListPrices:
    """Prices of `genai-prices` by day, in USD (`price_list`)."""

    currency = "USD"

    def rates(self, provider: str, model: str, day: date, *, batch: bool = False) -> TokenRates | None:
        return _rates(provider, model, day, batch)

    def siblings(self, provider: str, model: str) -> Sequence[str]:
        return _siblings(provider, model)

    def change_days(self, provider: str) -> Sequence[date]:
        return price_list.change_days(provider) if _lists(provider) else ()


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a model stands: who sells it (Bedrock's prefixes), product line, generation, size."""

    seller: str
    line: str
    generation: str
    size: str


def place(name: str) -> _Place | None:
    """`claude-opus-4-1` -> line claude, generation 4, size opus; None for a name that says no generation or another job."""
    seller = _SELLER.match(name)
    words = _EDITION.sub("", name[seller.end() :] if seller else name).split("-")
    line, rest = words[0], words[1:]
    if re.fullmatch(r"o\d", line):
        line, rest = "o", [line[1:], *rest]
    numbers = [word for word in rest if _NUMBER.match(word)]
    size = "-".join(word for word in rest if not _NUMBER.match(word))
    if line == "nova" and not numbers:
        numbers = ["1"]
    if not numbers or size not in SIZES.get(line, ()):
        return None
    return _Place(seller[0] if seller else "", line, numbers[0], size)


@cache
def _lists(provider: str) -> bool:
    """Whether the list has the provider at all."""
    try:
        price_list.change_days(provider)
    except LookupError:
        return False
    return True


@cache
def _rates(provider: str, model: str, day: date, batch: bool) -> TokenRates | None:
    found = price_list.rates(provider, model, day, BATCH if batch else STANDARD) if _lists(provider) else None
    if found is None:
        return None
    if found.is_free:
        return TokenRates(Decimal(0), Decimal(0))
    units = {unit: Decimal(price) / price_list.PICO for unit, price in found.levels[0].items()}
    if "input_tokens" not in units:
        return None
    return TokenRates(
        units["input_tokens"], units.get("output_tokens"), units.get("cache_read_tokens"), units.get("cache_write_tokens")
    )


@cache
def _siblings(provider: str, model: str) -> tuple[str, ...]:
    found = price_list.find(provider, model) if _lists(provider) else None
    own = found and place(found[1].id)
    if found is None or own is None:
        return ()
    owner, info = found
    others = {other.id: place(other.id) for other in owner.models if other is not info and not other.deprecated}
    same = (own.seller, own.line, own.generation)
    names = (name for name, at in others.items() if at and (at.seller, at.line, at.generation) == same)
    # The list's `regional.` stands for `us.`, `eu.` and the like; a caller's model says which.
    spelled = _SELLER.match(model)
    return tuple(sorted((spelled[0] if spelled else own.seller) + name[len(own.seller) :] for name in names))
