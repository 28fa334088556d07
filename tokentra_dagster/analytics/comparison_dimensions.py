"""What changed by a dimension's values: items, new and removed ones, growers and decliners (section 11; corrections 23, 46)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from tokentra_dagster.analytics.comparison_metrics import DEFAULTS, ComparisonParameters, Where
from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.analytics.sources import DIMENSIONS, UsageSource
from tokentra_dagster.errors import UsageError

TOP_CONCENTRATION = 3


@dataclass(frozen=True, slots=True)
class Shares:
    """Percent of the tokens of all values in each period; None where a period has none."""

    current: float | None
    previous: float | None


@dataclass(frozen=True, slots=True)
class DimensionItemComparison:
    """A value in both periods. `name` is its label, or itself (`value`) without one. Tokens and requests are 0 where the value has no
    usage and None where they are unknown; changes in percent, None from zero. `is_new`, `is_removed`: in one period only."""

    name: str
    value: str
    current_tokens: int | None
    previous_tokens: int | None
    current_requests: int | None
    previous_requests: int | None
    token_change: float | None
    request_change: float | None
    percentage_of_total: Shares
    is_new: bool
    is_removed: bool


@dataclass(frozen=True, slots=True)
class Grower:
    name: str
    growth: float


@dataclass(frozen=True, slots=True)
class Decliner:
    """`decline` is negative, in percent."""

    name: str
    decline: float


@dataclass(frozen=True, slots=True)
class DimensionComparison:
    """`items`: most tokens first. `new_items` and `removed_items`: names, most requests first. The lists keep `max_items`; counts,
    totals, growers, decliners and `top_concentration` (the share of the three values that are largest now) are of all values. Usage
    without a value is in no item and no share, but in `unattributed_tokens`."""

    dimension: str
    items: tuple[DimensionItemComparison, ...]
    new_items: tuple[str, ...]
    removed_items: tuple[str, ...]
    top_growers: tuple[Grower, ...]
    top_decliners: tuple[Decliner, ...]
    item_count: int
    new_item_count: int
    removed_item_count: int
    current_tokens: int
    previous_tokens: int
    unattributed_tokens: int
    previous_unattributed_tokens: int
    top_concentration: Shares

    def limited(self, max_items: int) -> DimensionComparison:
        return replace(
            self,
            items=self.items[:max_items],
            new_items=self.new_items[:max_items],
            removed_items=self.removed_items[:max_items],
        )


def read_dimension(
    usage: UsageSource,
    current: Period,
    previous: Period,
    dimension: str,
    where: Where | None = None,
    parameters: ComparisonParameters = DEFAULTS,
) -> DimensionComparison:
    """All values of one dimension in both periods, not yet limited. Raises `UsageError` for an unknown dimension."""
    if dimension not in DIMENSIONS:
        raise UsageError(f"The dimension is {dimension!r}; it must be one of {', '.join(DIMENSIONS)}.")
    now, before = (usage.frame(period, by=[dimension], where=where) for period in (current, previous))
    return compare_dimension(now, before, dimension, usage.labels(dimension), parameters)


def compare_dimension(
    current: pd.DataFrame,
    previous: pd.DataFrame,
    dimension: str,
    labels: Mapping[str, str] | None = None,
    parameters: ComparisonParameters = DEFAULTS,
) -> DimensionComparison:
    """Compares two frames with one row per value of the dimension: all of them, before any limit (correction 23). Pure.

    A value is new or removed if it has no row in the other period. Growers grew and decliners fell, by the percentage of their
    tokens, and both had tokens before (correction 46).
    """
    both = _joined(current, previous, dimension)
    named = both[both["value"].notna()]
    totals = {side: int(named[f"{side}_tokens"].sum()) for side in ("current", "previous")}
    unattributed = both[both["value"].isna()]
    names = labels or {}
    items = tuple(_item(row, names, totals) for row in named.to_dict("records"))
    moved = [item for item in items if item.token_change is not None]
    growers = sorted((item for item in moved if _change(item) > 0), key=lambda item: (-_change(item), item.name))
    decliners = sorted((item for item in moved if _change(item) < 0), key=lambda item: (_change(item), item.name))
    new = sorted((item for item in items if item.is_new), key=lambda item: (-(item.current_requests or 0), item.name))
    removed = sorted((item for item in items if item.is_removed), key=lambda item: (-(item.previous_requests or 0), item.name))
    top = items[:TOP_CONCENTRATION]
    return DimensionComparison(
        dimension=dimension,
        items=items,
        new_items=tuple(item.name for item in new),
        removed_items=tuple(item.name for item in removed),
        top_growers=tuple(Grower(item.name, _change(item)) for item in growers[: parameters.movers]),
        top_decliners=tuple(Decliner(item.name, _change(item)) for item in decliners[: parameters.movers]),
        item_count=len(items),
        new_item_count=len(new),
        removed_item_count=len(removed),
        current_tokens=totals["current"],
        previous_tokens=totals["previous"],
        unattributed_tokens=int(unattributed["current_tokens"].sum()),
        previous_unattributed_tokens=int(unattributed["previous_tokens"].sum()),
        top_concentration=Shares(
            _share(sum(item.current_tokens or 0 for item in top), totals["current"]),
            _share(sum(item.previous_tokens or 0 for item in top), totals["previous"]),
        ),
    )


def _joined(current: pd.DataFrame, previous: pd.DataFrame, dimension: str) -> pd.DataFrame:
    """One row per value (NULL included) with both periods' tokens and requests; most tokens first. Absent is 0, unknown stays <NA>."""
    sides = []
    for side, frame in (("current", current), ("previous", previous)):
        part = frame[[dimension, "total_tokens", "request_count"]]
        part.columns = pd.Index(["value", f"{side}_tokens", f"{side}_requests"])
        sides.append(part.assign(**{f"in_{side}": True}))
    both = sides[0].merge(sides[1], on="value", how="outer")
    for side in ("current", "previous"):
        absent = both[f"in_{side}"].isna()
        both[f"in_{side}"] = ~absent
        for column in (f"{side}_tokens", f"{side}_requests"):
            both[column] = both[column].astype("Int64").mask(absent, 0)
    order = both.assign(**{f"{side}_order": both[f"{side}_tokens"].fillna(-1) for side in ("current", "previous")})
    order = order.sort_values(["current_order", "previous_order", "value"], ascending=[False, False, True])
    return both.loc[order.index]


def _item(row: Mapping[Any, Any], labels: Mapping[str, str], totals: Mapping[str, int]) -> DimensionItemComparison:
    tokens, before, requests, requests_before = (
        None if pd.isna(row[name]) else int(row[name])
        for name in ("current_tokens", "previous_tokens", "current_requests", "previous_requests")
    )
    value = str(row["value"])
    return DimensionItemComparison(
        name=labels.get(value, value),
        value=value,
        current_tokens=tokens,
        previous_tokens=before,
        current_requests=requests,
        previous_requests=requests_before,
        token_change=_relative(tokens, before),
        request_change=_relative(requests, requests_before),
        percentage_of_total=Shares(_share(tokens, totals["current"]), _share(before, totals["previous"])),
        is_new=not row["in_previous"],
        is_removed=not row["in_current"],
    )


def _relative(current: int | None, previous: int | None) -> float | None:
    return None if current is None or not previous else (current - previous) / previous * 100


def _share(part: int | None, whole: int) -> float | None:
    return None if part is None or not whole else part / whole * 100


def _change(item: DimensionItemComparison) -> float:
    return item.token_change or 0.0
