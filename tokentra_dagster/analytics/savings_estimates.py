"""Three estimates of what an organisation could have paid less, from its own usage and dated prices (beyond specification 5).

Each is a range: `low` rests on what the usage itself shows, `high` on everything that could move. Both are from 0 to the recorded
cost. They are what the same tokens would have cost, not a forecast, and they overlap: never add caching, batch and model.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Literal

from tokentra_dagster.analytics.priced_cells import ZERO, Cell, LeftOut, Prices, TokenRates, left_out

Kind = Literal["caching", "batch", "model_selection"]
Terms = tuple[date, bool]
"""The day that prices are of, and whether they are a batch's."""
ONE = Decimal(1)


@dataclass(frozen=True, slots=True)
class SavingsParameters:
    """What the estimates take for granted. Shares are of the priced cost of the period."""

    min_comparable_input_tokens: int = 1_000_000
    """Input tokens from which a feature's cache hit rate says something."""
    min_cacheable_prompt_tokens: int = 1_024
    """Shorter prompts are not cached (OpenAI and most Claude models; some need more)."""
    small_request_tokens: float = 1_000
    """Below this average of tokens per request a smaller model is likely enough (specification 5)."""
    batch_discount: Decimal = Decimal("0.5")
    batch_discount_providers: tuple[str, ...] = ("openai", "anthropic", "google", "azure", "aws")
    """Their pages promise the discount for batches; used where the price list has no batch price for the model and day."""
    batchable_request_types: tuple[str, ...] = ("chat", "completion", "embedding")
    production_environments: tuple[str, ...] = ("production", "prod", "prd", "live")
    non_interactive_words: tuple[str, ...] = ("batch", "offline", "nightly", "eval", "evals", "evaluation", "backfill", "etl",
                                              "indexing", "digest", "report", "reports")  # fmt: skip
    interactive_words: tuple[str, ...] = ("interactive", "chat", "chatbot", "assistant", "copilot", "agent", "autocomplete",
                                          "live", "voice")  # fmt: skip
    """Whole words in a feature's name."""
    min_share_of_cost: float = 0.01
    """What could save less than this share is no recommendation."""
    high_priority_share: float = 0.10
    medium_priority_share: float = 0.03


@dataclass(frozen=True, slots=True)
class Saving:
    """The range of one model, in the organisation's currency; `considered_cost` is what the usage looked at had cost.

    `instead`: the sibling model, or the feature (or model) whose cache hit rate is the mark. `most`: where most of it comes from.
    """

    kind: Kind
    provider: str
    model: str
    low: Decimal
    high: Decimal
    considered_cost: Decimal
    instead: str | None
    most: tuple[str, ...]
    assumptions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KindOfSaving:
    """All models' ranges of one kind, largest first. `low` and `high` are None where no usage could be looked at: unknown, not 0."""

    kind: Kind
    low: Decimal | None
    high: Decimal | None
    considered_cost: Decimal
    savings: tuple[Saving, ...]
    left_out: tuple[LeftOut, ...]


def _kind(kind: Kind, savings: Iterable[Saving], refused: Mapping[str, Sequence[Cell]]) -> KindOfSaving:
    found = tuple(sorted(savings, key=lambda saving: (-saving.high, saving.provider, saving.model)))
    return KindOfSaving(
        kind,
        sum((saving.low for saving in found), ZERO) if found else None,
        sum((saving.high for saving in found), ZERO) if found else None,
        sum((saving.considered_cost for saving in found), ZERO),
        found,
        tuple(entry for reason, cells in sorted(refused.items()) for entry in left_out(reason, cells)),
    )


def _grouped(cells: Iterable[Cell]) -> dict[tuple[str, str], list[Cell]]:
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.provider, cell.model), []).append(cell)
    return groups


def _paid(cells: Iterable[Cell]) -> Decimal:
    return sum((cell.cost for cell in cells), ZERO)


def _most(by_feature: Mapping[str | None, Decimal], count: int = 3) -> tuple[str, ...]:
    ordered = sorted(
        ((high, name or "untagged") for name, high in by_feature.items() if high > 0), key=lambda one: (-one[0], one[1])
    )
    return tuple(name for _, name in ordered[:count])


# Caching


def caching(cells: Sequence[Cell], parameters: SavingsParameters) -> KindOfSaving:
    """Input that could have been read from the cache: low, at the median rate of comparable features of the model; high, at the best.

    Without any feature, models of a provider are compared. Cache writes that the further reads need are charged as the comparable
    features wrote per token read; where their writes are unknown, low charges one write per read and high none.
    """
    refused: dict[str, list[Cell]] = {}
    usable: list[Cell] = []
    tagged = any(cell.feature is not None for cell in cells)
    for cell in cells:
        if reason := _uncacheable(cell, tagged, parameters):
            refused.setdefault(reason, []).append(cell)
        else:
            usable.append(cell)
    savings = []
    member = "feature" if tagged else "model"
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in usable:
        groups.setdefault((cell.provider, cell.model) if tagged else (cell.provider,), []).append(cell)
    for group in groups.values():
        mark = _mark(group, member, parameters)
        if mark is None:
            refused.setdefault(f"fewer than two {member}s to compare", []).extend(group)
            continue
        savings += [_caching_of(provider, model, own, mark) for (provider, model), own in _grouped(group).items()]
    return _kind("caching", savings, refused)


def _uncacheable(cell: Cell, tagged: bool, parameters: SavingsParameters) -> str | None:
    if cell.rates.cache_read is None:
        return "the model has no price for cached input"
    if not cell.cache_known:
        return "the cached part of the input is not known"
    if tagged and cell.feature is None:
        return "usage without a feature"
    if cell.requests and cell.input < cell.requests * parameters.min_cacheable_prompt_tokens:
        return f"prompts of less than {parameters.min_cacheable_prompt_tokens} tokens on average"
    return None


@dataclass(frozen=True, slots=True)
class _Mark:
    """What comparable features (or models) reach. `writes_per_read` is None where their cache writes are not known."""

    member: str
    best: str
    best_rate: Fraction
    median_rate: Fraction
    writes_per_read: Decimal | None
    compared: int


def _mark(cells: Sequence[Cell], member: str, parameters: SavingsParameters) -> _Mark | None:
    sums: dict[str, tuple[int, int, int | None]] = {}
    for cell in cells:
        name = str(cell.feature if member == "feature" else cell.model)
        given, cached, written = sums.get(name, (0, 0, 0))
        more = None if written is None or not cell.creation_known else written + cell.cache_creation
        sums[name] = (given + cell.input, cached + cell.cached, more)
    enough = {name: one for name, one in sums.items() if one[0] >= max(1, parameters.min_comparable_input_tokens)}
    if len(enough) < 2:
        return None
    rates = {name: Fraction(cached, given) for name, (given, cached, _) in enough.items()}
    top = max(rates.values())
    best = min(name for name, rate in rates.items() if rate == top)
    counted = [one[2] for one in enough.values()]
    known = [count for count in counted if count is not None]
    read = sum(one[1] for one in enough.values())
    per_read = Decimal(sum(known)) / read if read and len(known) == len(counted) else None
    return _Mark(member, best, top, statistics.median(rates.values()), per_read, len(enough))


def _caching_of(provider: str, model: str, cells: Sequence[Cell], mark: _Mark) -> Saving:
    low = high = ZERO
    by_feature: dict[str | None, Decimal] = {}
    surcharged = False
    for cell in cells:
        pays = cell.rates.cache_write is not None and cell.rates.cache_write > cell.rates.input
        surcharged |= pays
        fewest, most = (mark.writes_per_read,) * 2 if mark.writes_per_read is not None else (ZERO, ONE)
        cautious = cell.saved(_cached_at(cell, mark.median_rate, most if pays else ZERO))[0]
        bold = cell.saved(_cached_at(cell, mark.best_rate, fewest if pays else ZERO))[1]
        low, high = low + cautious, high + bold
        by_feature[cell.feature] = by_feature.get(cell.feature, ZERO) + bold
    every = "every feature" if mark.member == "feature" else "every model"
    assumptions = [
        f"{every} reads from the cache what the median (low: {float(mark.median_rate):.1%}) or the best (high: {mark.best}, "
        f"{float(mark.best_rate):.1%}) of {mark.compared} comparable {mark.member}s reads, so its prompts repeat as much"
    ]
    if surcharged and mark.writes_per_read is not None:
        assumptions.append(
            f"each further token read needs {float(mark.writes_per_read):.3f} tokens written, at the cache write price"
        )
    elif surcharged:
        assumptions.append("cache writes are not known: low charges one token written per token read, high none")
    return Saving("caching", provider, model, low, high, _paid(cells), mark.best, _most(by_feature), tuple(assumptions))


def _cached_at(cell: Cell, rate: Fraction, writes_per_read: Decimal) -> Decimal:
    """List cost of the cell if `rate` of its input had been read from the cache: whole tokens, out of what was not cached."""
    read, write = cell.rates.cache_read, cell.rates.cache_write
    assert read is not None
    wanted = cell.input * rate.numerator // rate.denominator - cell.cached
    moved = max(ZERO, min(Decimal(wanted), cell.uncached // (1 + writes_per_read)))
    surcharge = writes_per_read * (write - cell.rates.input) if write is not None else ZERO
    return cell.list_cost - moved * max(ZERO, cell.rates.input - read - surcharge)


# Batch instead of waiting for the answer


def batch(cells: Sequence[Cell], prices: Prices, parameters: SavingsParameters) -> KindOfSaving:
    """Usage at standard prices that could have been a batch: low, what its environment or name says nobody waits for; high, all of
    it but features that are interactive by name, real-time usage, and requests that cannot be batched."""
    refused: dict[str, list[Cell]] = {}
    considered: dict[tuple[str, str], list[tuple[Cell, TokenRates, bool]]] = {}
    for cell in cells:
        if cell.is_batch:
            continue
        reason = _unbatchable(cell, parameters)
        found = _batch_rates(cell, prices, parameters) if reason is None else None
        if reason is None and found is None:
            reason = "no batch price on the day"
        if found is None:
            refused.setdefault(str(reason), []).append(cell)
        else:
            considered.setdefault((cell.provider, cell.model), []).append((cell, *found))
    savings = [_batch_of(provider, model, own, parameters) for (provider, model), own in considered.items()]
    return _kind("batch", savings, refused)


@lru_cache(maxsize=16_384)
def _words(feature: str | None) -> frozenset[str]:
    return frozenset(re.split(r"[^a-z0-9]+", (feature or "").lower()))


def _unbatchable(cell: Cell, parameters: SavingsParameters) -> str | None:
    words = _words(cell.feature)
    if cell.service_type == "real-time":
        return "real-time usage"
    if cell.request_type not in parameters.batchable_request_types:
        return "the request type is not known" if cell.request_type is None else "requests that cannot be batched"
    if words & set(parameters.interactive_words) and not words & set(parameters.non_interactive_words):
        return "features that are interactive by name"
    return None


def _waits_for_nobody(cell: Cell, parameters: SavingsParameters) -> bool:
    """Surely not yet a batch, and outside production or named like a job."""
    words = _words(cell.feature)
    if cell.service_type != "sync" or words & set(parameters.interactive_words):
        return False
    outside = cell.environment is not None and cell.environment.lower() not in parameters.production_environments
    return outside or bool(words & set(parameters.non_interactive_words))


def _batch_rates(cell: Cell, prices: Prices, parameters: SavingsParameters) -> tuple[TokenRates, bool] | None:
    """Batch prices, and whether they are the documented discount instead of the list's. Reads keep their price then: Google and
    OpenAI's older models give no discount on both."""
    listed = prices.rates(cell.provider, cell.model, cell.day, batch=True)
    if listed is not None:
        return listed, False
    if cell.provider not in parameters.batch_discount_providers:
        return None
    share, own = ONE - parameters.batch_discount, cell.rates
    return TokenRates(
        own.input * share,
        None if own.output is None else own.output * share,
        own.input if own.cache_read is None else own.cache_read,
        None if own.cache_write is None else own.cache_write * share,
    ), True


def _batch_of(provider: str, model: str, cells: Sequence[tuple[Cell, TokenRates, bool]], parameters: SavingsParameters) -> Saving:
    low = high = ZERO
    by_feature: dict[str | None, Decimal] = {}
    for cell, rates, _ in cells:
        alternative = cell.cost_at(rates)
        cautious, bold = cell.saved(cell.list_cost if alternative is None else alternative)
        high += bold
        low += cautious if _waits_for_nobody(cell, parameters) else ZERO
        by_feature[cell.feature] = by_feature.get(cell.feature, ZERO) + bold
    assumptions = [
        "low: synchronous usage outside " + ", ".join(parameters.production_environments) + " or of features named like jobs ("
        + ", ".join(parameters.non_interactive_words) + "); high: all that is not interactive by name",
        "answers may take up to 24 hours, and as much is read from the cache as before",
    ]  # fmt: skip
    if any(assumed for *_, assumed in cells):
        assumptions.append(
            f"where the price list has no batch price, the {float(parameters.batch_discount):.0%} that {provider} documents, "
            "cached input excepted"
        )
    if any(cell.service_type is None for cell, *_ in cells):
        assumptions.append("high takes usage whose source does not say how it was served as synchronous")
    paid = _paid(cell for cell, *_ in cells)
    return Saving("batch", provider, model, low, high, paid, None, _most(by_feature), tuple(assumptions))


# A cheaper sibling


def cheaper_sibling(cells: Sequence[Cell], prices: Prices, parameters: SavingsParameters) -> KindOfSaving:
    """The same tokens at the next cheaper model of the same line and generation: low, where requests are small on average; high, all."""
    refused: dict[str, list[Cell]] = {}
    savings = []
    for (provider, model), own in _grouped(cells).items():
        found = _next_cheaper(provider, model, own, prices)
        if found is None:
            refused.setdefault("no cheaper sibling in the price list", []).extend(own)
        else:
            savings.append(_sibling_of(provider, model, own, *found, parameters))
    return _kind("model_selection", savings, refused)


def _next_cheaper(
    provider: str, model: str, cells: Sequence[Cell], prices: Prices
) -> tuple[str, Mapping[Terms, TokenRates]] | None:
    """The dearest of the siblings that would have been cheaper (the smallest step; of equals the last by name), with its prices."""
    tokens: dict[Terms, tuple[int, int, int, int]] = {}
    for cell in cells:
        uncached, cached, written, output = tokens.get((cell.day, cell.is_batch), (0, 0, 0, 0))
        more = uncached + cell.uncached, cached + cell.cached, written + cell.cache_creation, output + cell.output
        tokens[cell.day, cell.is_batch] = more
    paid = sum((cell.list_cost for cell in cells), ZERO)
    best: tuple[Decimal, str, Mapping[Terms, TokenRates]] | None = None
    for sibling in prices.siblings(provider, model):
        rates = {terms: prices.rates(provider, sibling, terms[0], batch=terms[1]) for terms in tokens}
        known = {terms: one for terms, one in rates.items() if one is not None}
        costs = [known[terms].cost(*counts) for terms, counts in tokens.items() if terms in known]
        total = sum((cost for cost in costs if cost is not None), ZERO)
        if len(costs) < len(tokens) or None in costs or total >= paid:
            continue
        if best is None or (total, sibling) > best[:2]:
            best = total, sibling, known
    return None if best is None else best[1:]


def _sibling_of(
    provider: str,
    model: str,
    cells: Sequence[Cell],
    sibling: str,
    rates: Mapping[Terms, TokenRates],
    parameters: SavingsParameters,
) -> Saving:
    low = high = ZERO
    by_feature: dict[str | None, Decimal] = {}
    for cell in cells:
        alternative = cell.cost_at(rates[cell.day, cell.is_batch])
        cautious, bold = cell.saved(cell.list_cost if alternative is None else alternative)
        high += bold
        small = cell.requests is not None and 0 < cell.tokens < cell.requests * parameters.small_request_tokens
        low += cautious if small else ZERO
        by_feature[cell.feature] = by_feature.get(cell.feature, ZERO) + bold
    assumptions = (
        f"{sibling} answers well enough: low, usage of less than {parameters.small_request_tokens:g} tokens per request on average "
        "(none where requests are not known); high, all of it",
        "as many tokens, and as many of them from the cache",
    )
    return Saving("model_selection", provider, model, low, high, _paid(cells), sibling, _most(by_feature), assumptions)
