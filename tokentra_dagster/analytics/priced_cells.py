"""Usage beside its list price: the cells from which savings are computed, and what is left out with the reason (correction 44).

A cell is one combination of provider, model, feature, environment, request type and service type between two price changes.
Prices are asked for as of the cell's first day; the period is cut where a provider's prices change, so one day speaks for all.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Protocol

import pandas as pd

from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.analytics.sources import COST, UsageSource

GROUPING = ("provider", "model", "feature", "environment", "request_type", "service_type")
_COUNTED = (
    "input_tokens", "output_tokens", "total_tokens", "cached_tokens", "cache_creation_tokens", "request_count", "unpriced_tokens",
    "input_with_cache_known", "tokens_with_requests_known",
)  # fmt: skip
ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class TokenRates:
    """List prices of one token at a model on a day, for the shortest prompts where the list has tiers (`pricing`).

    A missing cache price: such tokens cost what other input costs. A missing output price: the model has no output.
    """

    input: Decimal
    output: Decimal | None
    cache_read: Decimal | None = None
    cache_write: Decimal | None = None

    def cost(self, uncached: int, cached: int, cache_creation: int, output: int) -> Decimal | None:
        """Money for tokens; None where there is output without a price."""
        if output and self.output is None:
            return None
        read = self.input if self.cache_read is None else self.cache_read
        write = self.input if self.cache_write is None else self.cache_write
        return self.input * uncached + read * cached + write * cache_creation + (self.output or ZERO) * output


class Prices(Protocol):
    """Dated list prices. `list_prices.ListPrices` asks the price list."""

    @property
    def currency(self) -> str:
        """What the prices are in (ISO 4217)."""

    def rates(self, provider: str, model: str, day: date, *, batch: bool = False) -> TokenRates | None:
        """Standard (or batch) prices of a model on the UTC day; None where the list does not say."""

    def siblings(self, provider: str, model: str) -> Sequence[str]:
        """Other models of the same provider, product line and generation, as `rates` takes them; empty where none is known."""

    def change_days(self, provider: str) -> Sequence[date]:
        """The UTC days on which any price of the provider begins."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Usage that an estimate says nothing about, and why. Tokens are None where no count is known."""

    reason: str
    tokens: int | None
    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """Wholly priced usage with its list prices. `cost` is what was recorded, in the organisation's currency; `list_cost` what
    its tokens cost by the list, in the list's. `cached` and `cache_creation` are 0 where unknown, as `pricing` prices them, and
    then `cache_known` and `creation_known` are false. `requests` is None unless all of the cell's are known."""

    day: date
    provider: str
    model: str
    feature: str | None
    environment: str | None
    request_type: str | None
    service_type: str | None
    input: int
    output: int
    cached: int
    cache_creation: int
    cache_known: bool
    creation_known: bool
    requests: int | None
    cost: Decimal
    rates: TokenRates
    list_cost: Decimal
    same_currency: bool

    @property
    def uncached(self) -> int:
        return self.input - self.cached - self.cache_creation

    @property
    def tokens(self) -> int:
        return self.input + self.output

    @property
    def is_batch(self) -> bool:
        return self.service_type == "batch"

    def cost_at(self, rates: TokenRates) -> Decimal | None:
        """What the cell's tokens cost at other prices, in the list's currency."""
        return rates.cost(self.uncached, self.cached, self.cache_creation, self.output)

    def saved(self, alternative: Decimal) -> tuple[Decimal, Decimal]:
        """Low and high saving if the tokens had cost `alternative` by the list; from 0 to the recorded cost.

        What was paid beyond the list price (searches, audio, long prompts) stays. What was paid below it is a discount or a
        cheaper tier: low, the alternative has none; high, the same share. In another currency than the list's the recorded cost
        moves by the list's share, both low and high.
        """
        if self.cost <= 0 or alternative >= self.list_cost:
            return ZERO, ZERO
        if self.same_currency and self.cost >= self.list_cost:
            return self.list_cost - alternative, self.list_cost - alternative
        high = min(self.cost, (self.list_cost - alternative) * self.cost / self.list_cost)
        return (min(high, max(ZERO, self.cost - alternative)) if self.same_currency else high), high


def left_out(reason: str, rows: Iterable[Any]) -> list[LeftOut]:
    """One entry for rows or cells with `tokens` and `model`; none without rows."""
    rows = list(rows)
    if not rows:
        return []
    known = [row.tokens for row in rows if row.tokens is not None]
    models = tuple(sorted({row.model or "unknown" for row in rows}))
    return [LeftOut(reason, sum(known) if known else None, models)]


def price_segments(period: Period, change_days: Iterable[date]) -> list[Period]:
    """The period cut at the UTC midnights on which a price begins."""
    cuts = {datetime(day.year, day.month, day.day, tzinfo=UTC) for day in change_days}
    moments = [period.start, *sorted(cut for cut in cuts if period.start < cut < period.end), period.end]
    return [Period(start, end) for start, end in itertools.pairwise(moments)]


def read_cells(usage: UsageSource, period: Period, prices: Prices) -> tuple[list[Cell], list[LeftOut]]:
    """The period's priced usage as cells, and what has no price or no counts."""
    providers = usage.frame(period, by=("provider",))["provider"]
    days = {day for provider in providers if provider for day in prices.change_days(provider)}
    cells: list[Cell] = []
    refused: dict[str, list[_Row]] = {}
    for segment in price_segments(period, days):
        for row in _rows(usage.frame(segment, by=GROUPING), segment.start.date()):
            found = _cell(row, prices, usage.currency == prices.currency)
            if isinstance(found, Cell):
                cells.append(found)
            elif found:
                refused.setdefault(found, []).append(row)
    return cells, [entry for reason, rows in sorted(refused.items()) for entry in left_out(reason, rows)]


@dataclass(frozen=True, slots=True)
class _Row:
    day: date
    keys: dict[str, str | None]
    counts: dict[str, int | None]
    cost: Decimal | None

    @property
    def tokens(self) -> int | None:
        return self.counts["total_tokens"]

    @property
    def model(self) -> str | None:
        return self.keys["model"]


def _rows(frame: pd.DataFrame, day: date) -> list[_Row]:
    keys = zip(*(frame[name] for name in GROUPING), strict=True)
    counts = zip(*(frame[name].astype(object).where(frame[name].notna(), None) for name in _COUNTED), strict=True)
    return [
        _Row(day, dict(zip(GROUPING, key, strict=True)), dict(zip(_COUNTED, count, strict=True)), cost)
        for key, count, cost in zip(keys, counts, frame[COST], strict=True)
    ]


def _cell(row: _Row, prices: Prices, same_currency: bool) -> Cell | str:
    """The cell, or why there is none ("" for what has neither tokens nor an unknown: nothing to say)."""
    counts, provider, model = row.counts, row.keys["provider"], row.model
    given, output = counts["input_tokens"], counts["output_tokens"]
    if row.cost is None or counts["unpriced_tokens"] != 0:
        return "not wholly priced"
    if not provider or not model:
        return "the model is not known"
    if given is None or output is None:
        return "the tokens are not known"
    if given == output == 0:
        return ""
    rates = prices.rates(provider, model, row.day, batch=row.keys["service_type"] == "batch")
    if rates is None:
        return "no list price on the day"
    cached, creation = counts["cached_tokens"], counts["cache_creation_tokens"]
    uncached = given - (cached or 0) - (creation or 0)
    if uncached < 0:
        return "more cached than input tokens"
    cost = rates.cost(uncached, cached or 0, creation or 0, output)
    if cost is None:
        return "no list price on the day"
    requests = counts["request_count"] if counts["tokens_with_requests_known"] == row.tokens else None
    known = cached is not None and counts["input_with_cache_known"] == given
    return Cell(
        day=row.day, provider=provider, model=model, feature=row.keys["feature"], environment=row.keys["environment"],
        request_type=row.keys["request_type"], service_type=row.keys["service_type"], input=given, output=output,
        cached=cached or 0, cache_creation=creation or 0, cache_known=known, creation_known=creation is not None,
        requests=requests, cost=row.cost, rates=rates, list_cost=cost, same_currency=same_currency,
    )  # fmt: skip
