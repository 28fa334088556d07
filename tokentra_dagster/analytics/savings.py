"""Potential savings: what the organisation's own usage would have cost at dated prices, cached better, in batches, or at a sibling
model, each as a range with its assumptions (the specification's section 5 has fixed percentages instead)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.analytics.priced_cells import LeftOut, Prices, read_cells
from tokentra_dagster.analytics.results import MetricRow, Priority, RecommendationRow, ratio
from tokentra_dagster.analytics.savings_estimates import (
    KindOfSaving,
    Saving,
    SavingsParameters,
    batch,
    caching,
    cheaper_sibling,
)
from tokentra_dagster.analytics.sources import UsageSource

OVERLAP = "caching, batch and model savings overlap and must not be added"
DATED = "list prices of the day, without tiers for long prompts; what was paid beyond them stays; low gives the alternative no discount below list, high the same as was paid"
_FOREIGN = "list prices are in {list}; their share is applied to the recorded cost in {own}"


@dataclass(frozen=True, slots=True)
class PotentialSavings:
    """Ranges in the organisation's currency over the period. `priced_cost` is of the usage that could be looked at; `left_out` is
    what no estimate looked at, and each kind has its own besides."""

    period: Period
    currency: str
    priced_cost: Decimal
    caching: KindOfSaving
    batch: KindOfSaving
    model_selection: KindOfSaving
    left_out: tuple[LeftOut, ...]
    assumptions: tuple[str, ...]
    parameters: SavingsParameters

    def kinds(self) -> tuple[KindOfSaving, KindOfSaving, KindOfSaving]:
        return self.caching, self.batch, self.model_selection

    def of_model(self, model: str) -> list[Saving]:
        """Savings by a cheaper sibling of a model, over the providers that sell it."""
        return [saving for saving in self.model_selection.savings if saving.model == model]


def analyze_potential_savings(
    usage: UsageSource, period: Period, prices: Prices, parameters: SavingsParameters | None = None
) -> PotentialSavings:
    """Reads one frame per stretch of time without a price change; see `savings_estimates` for what low and high mean."""
    parameters = parameters or SavingsParameters()
    cells, left_out = read_cells(usage, period, prices)
    assumptions = [DATED, OVERLAP]
    if usage.currency != prices.currency:
        assumptions.insert(0, _FOREIGN.format(list=prices.currency, own=usage.currency))
    return PotentialSavings(
        period,
        usage.currency,
        sum((cell.cost for cell in cells), Decimal(0)),
        caching(cells, parameters),
        batch(cells, prices, parameters),
        cheaper_sibling(cells, prices, parameters),
        tuple(left_out),
        tuple(assumptions),
        parameters,
    )


def range_text(currency: str, low: Decimal, high: Decimal) -> str:
    """`USD 1.20 to 45.60`; four places under one cent."""
    places = 4 if 0 < high < Decimal("0.01") else 2
    return f"{currency} {low:,.{places}f} to {high:,.{places}f}"


def metric_rows(result: PotentialSavings) -> list[MetricRow]:
    """Low and high by kind, over everything and by model; unknown where nothing could be looked at."""
    rows = [MetricRow("savings_priced_cost", result.priced_cost)]
    for kind in result.kinds():
        for bound in ("low", "high"):
            metric = f"{kind.kind}_savings_{bound}"
            rows.append(MetricRow(metric, getattr(kind, bound)))
            by_model: dict[str, Decimal] = {}
            for saving in kind.savings:
                by_model[saving.model] = by_model.get(saving.model, Decimal(0)) + getattr(saving, bound)
            rows += [MetricRow(metric, value, "model", model) for model, value in by_model.items()]
    return rows


def recommendation_rows(result: PotentialSavings) -> list[RecommendationRow]:
    """What could save enough to be worth a person's time, largest first; nothing where there is nothing to save."""
    savings = sorted(_worthwhile(result), key=lambda saving: (-saving.high, saving.kind, saving.provider, saving.model))
    return [_recommendation(saving, result) for saving in savings]


def _worthwhile(result: PotentialSavings) -> Iterator[Saving]:
    least = result.priced_cost * Decimal(str(result.parameters.min_share_of_cost))
    return (saving for kind in result.kinds() for saving in kind.savings if saving.high > 0 and saving.high >= least)


def _recommendation(saving: Saving, result: PotentialSavings) -> RecommendationRow:
    name = f"{saving.model} ({saving.provider})"
    where = f" Most of it in: {', '.join(saving.most)}." if any(one != "untagged" for one in saving.most) else ""
    amount = range_text(result.currency, saving.low, saving.high)
    match saving.kind:
        case "caching":
            title, action = (
                f"Cache more of the input of {name}",
                f"See how {saving.instead} builds its prompts: the part that repeats comes first",
            )
        case "batch":
            title, action = (
                f"Send what can wait to batches of {name}",
                "Move requests that nobody waits for to the provider's batch interface",
            )
        case _:
            title, action = (
                f"Try {saving.instead} instead of {name}",
                f"Compare answers of {saving.instead} on small requests first",
            )
    return RecommendationRow(
        saving.kind, _priority(saving, result), title,
        f"The same tokens would have cost {amount} less in the period, of {result.currency} {saving.considered_cost:,.2f} looked at.{where}",
        action, saving.low, saving.high, "; ".join((*saving.assumptions, *result.assumptions)), "model", saving.model,
    )  # fmt: skip


def _priority(saving: Saving, result: PotentialSavings) -> Priority:
    share = ratio(saving.high, result.priced_cost) or 0.0
    if share >= result.parameters.high_priority_share:
        return "high"
    return "medium" if share >= result.parameters.medium_priority_share else "low"
