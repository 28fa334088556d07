"""Rows of usage split by kind of token, each with its share of the cost, exactly or not at all (docs/decisions/0016).

The marts hold one cost for all tokens of a row. Where list prices times tokens give that very cost, to the last digit, the
shares are known and a row becomes one charge per kind of token. Where they do not, the row stays one charge. Costs and prices
are whole pico-dollars (10^-12 of the currency), as in `price_list`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cache

import numpy as np
import numpy.typing as npt

from tokentra_dagster import price_list

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Objects = npt.NDArray[np.object_]


@dataclass(frozen=True, slots=True)
class Meter:
    """What a charge measures. `kind` is how FOCUS's examples of prompt caching call the kind of token; None is not one kind."""

    name: str
    kind: str | None
    unit: str
    slug: str


METERS = (
    Meter("Input Tokens", "Input", "Tokens", "input-tokens"),
    Meter("Cache Read Input Tokens", "CacheRead", "Tokens", "cache-read-input-tokens"),
    Meter("Cache Write Input Tokens", "CacheWrite", "Tokens", "cache-write-input-tokens"),
    Meter("Output Tokens", "Output", "Tokens", "output-tokens"),
    Meter("Tokens", None, "Tokens", "tokens"),
    Meter("Requests", None, "Requests", "requests"),
)
KINDS, ALL_TOKENS, REQUESTS = 4, 4, 5
"""How many meters are one kind of token; the meters of what is not split."""

SERVICE_TIERS = (None, "flex", "priority")
"""Terms that the marts do not keep; a cost that fits one of them to the last digit tells which it was."""
BASES = ("ListPrice", "Estimate", "PartlyUnpriced", "Unpriced", "OtherCurrency")
LIST_PRICE, ESTIMATE, PARTLY_UNPRICED, UNPRICED, OTHER_CURRENCY = range(len(BASES))


@dataclass(frozen=True, slots=True)
class Level:
    """Pico-dollars a token for each of the four kinds, and their terms: from how many input tokens of a prompt on (0: the base), at
    which service tier (None: the standard one), and whether cache writes last an hour. `output` None is output without a price."""

    uncached: int
    cache_read: int
    cache_write: int
    output: int | None
    above: int = 0
    service_tier: str | None = None
    one_hour: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """Columns of some rows of usage; `tokens` is [row, kind], `cost` holds ints or None where no cost is known, `group` says
    which of the `levels` may be a row's prices."""

    tokens: Ints
    total: Ints
    requests: Ints
    cost: Objects
    unpriced: Ints
    group: Ints
    levels: Sequence[Sequence[Level]]


@dataclass(frozen=True, slots=True)
class Charges:
    """One charge an element, in order of `row` and meter. `cost` holds ints or None; `price` is pico-dollars a token, -1 unknown;
    `level` is the place among the levels of the row's group, -1 where none fits."""

    row: Ints
    meter: Ints
    quantity: Ints
    cost: Objects
    price: Ints
    basis: Ints
    level: Ints


@cache
def levels_of(provider: str, model: str, service_type: str | None, day: date) -> tuple[Level, ...]:
    """The list's prices (USD) of a model on a UTC day: standard ones first, then those of terms that the marts do not keep. None where
    the list does not say."""
    found: list[Level] = []
    for tier in SERVICE_TIERS:
        try:
            rates = price_list.rates(provider, model, day, price_list.Terms(service_type=service_type, service_tier=tier))
        except LookupError:
            return ()
        if rates is not None:
            found += _levels(rates, tier)
    distinct = {(level.uncached, level.cache_read, level.cache_write, level.output): level for level in reversed(found)}
    return tuple(reversed(distinct.values()))


def _levels(rates: price_list.Rates, tier: str | None) -> list[Level]:
    if rates.is_free:
        return [Level(0, 0, 0, 0)]
    levels = []
    for above, prices in zip((0, *rates.starts), rates.levels, strict=True):
        if (uncached := prices.get("input_tokens")) is None:
            continue
        read, write = (prices.get(unit, uncached) for unit in ("cache_read_tokens", "cache_write_tokens"))
        levels.append(Level(uncached, read, write, prices.get("output_tokens"), above, tier))
        if "cache_write_1h_tokens" in prices:
            levels.append(replace(levels[-1], cache_write=prices["cache_write_1h_tokens"], one_hour=True))
    return levels


def charges_of(usage: Usage) -> Charges:
    """The charges of some rows. Their quantities and costs add up to the rows', exactly."""
    level, prices = _explained(usage)
    is_known = np.array([cost is not None for cost in usage.cost], dtype=bool)
    # A cost that is not known needs no shares; one that is known of some tokens only has none.
    splits = (level >= 0) | (~is_known & ((usage.unpriced == 0) | (usage.unpriced == usage.total)))
    splits &= (usage.total > 0) & (usage.tokens >= 0).all(axis=1)
    is_requests = (usage.total == 0) & (usage.requests > 0)
    exists = np.column_stack([splits[:, None] & (usage.tokens > 0), ~splits & ~is_requests, ~splits & is_requests])
    row, meter = np.nonzero(exists)
    quantity = np.column_stack([usage.tokens, usage.total, usage.requests])[row, meter]
    is_share = splits[row] & (level[row] >= 0)
    price = np.where(is_share, prices[row, np.minimum(meter, KINDS - 1)], -1)
    cost = usage.cost[row]
    cost[is_share] = quantity[is_share].astype(object) * price[is_share].astype(object)
    return Charges(row, meter, quantity, cost, price, _basis(usage, level, is_known)[row], level[row])


def _explained(usage: Usage) -> tuple[Ints, Ints]:
    """For each row the level whose prices give its cost exactly, or -1, and the prices [row, kind] of that level."""
    rows = len(usage.total)
    level, prices = np.full(rows, -1, dtype=np.int64), np.zeros((rows, KINDS), dtype=np.int64)
    may = np.array([cost is not None for cost in usage.cost], dtype=bool) & (usage.unpriced == 0)
    for place in range(max(map(len, usage.levels), default=0)):
        table = np.zeros((len(usage.levels), KINDS), dtype=np.int64)
        there, no_output = np.zeros(len(usage.levels), dtype=bool), np.zeros(len(usage.levels), dtype=bool)
        for number, levels in enumerate(usage.levels):
            if place < len(levels):
                found = levels[place]
                table[number] = (found.uncached, found.cache_read, found.cache_write, found.output or 0)
                there[number], no_output[number] = True, found.output is None
        each = table[usage.group]
        fits = may & (level < 0) & there[usage.group] & (~no_output[usage.group] | (usage.tokens[:, KINDS - 1] == 0))
        fits &= _products(usage.tokens, each) == usage.cost
        level[fits], prices[fits] = place, each[fits]
    return level, prices


def _products(tokens: Ints, prices: Ints) -> Objects:
    """Row by row the sum of tokens times price; in 64 bits where they are certain to hold it, else in Python's integers."""
    largest = float(np.abs(tokens).max(initial=0)) * float(prices.max(initial=0)) * KINDS
    if largest < 2.0**62:
        small: Objects = (tokens * prices).sum(axis=1).astype(object)
        return small
    found: Objects = (tokens.astype(object) * prices.astype(object)).sum(axis=1)
    return found


def _basis(usage: Usage, level: Ints, is_known: Bools) -> Ints:
    known = np.where(level >= 0, LIST_PRICE, np.where(usage.unpriced > 0, PARTLY_UNPRICED, ESTIMATE))
    unknown = np.where((usage.unpriced > 0) | (usage.total == 0), UNPRICED, OTHER_CURRENCY)
    return np.where(is_known, known, unknown).astype(np.int64)
