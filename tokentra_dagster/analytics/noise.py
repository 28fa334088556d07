"""How much a figure usually changes from one period to the next, so that a change can be told from noise.

The rule. A change from the previous to the current period is judged by the same comparison made earlier: both periods shifted back by
one, two, ... steps, up to `history_steps`, as far as usage goes back. A step is the current period's length rounded up to whole weeks, so
that every comparison falls on the same weekdays. Each gives ln(current / previous). The usual change is the median of these, the usual
variation their median absolute deviation (MAD) times 1.4826 (a standard deviation where changes are normal), corrected for few
values. A change is beyond noise when it is more than `width` variations away from the usual change. Logarithms make doubling and
halving equally large; medians let past accidents not widen what counts as usual.

With fewer than `min_changes` such comparisons, changes from week to week before the current period stand in, where the periods follow
each other and are longer than a week. They overstate the variation of longer periods if days vary independently. With too few
of those as well nothing is said (`basis` "thresholds"): significance rests on the thresholds of section 11 alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median
from typing import Literal

from tokentra_dagster.analytics.periods import Period

Basis = Literal["same_comparison", "weekly", "thresholds"]
WEEK = timedelta(days=7)
MAD_TO_DEVIATION = 1.4826
MAD_BIAS = 0.8
"""The MAD of n normal values is too small by about (n - 0.8) / n (Croux and Rousseeuw 1992)."""


@dataclass(frozen=True, slots=True)
class NoiseParameters:
    """`history_steps` 0 reads no history. `width`: in variations. `min_variation_pct`: what always counts as usual, so that a history
    without any change does not make every change remarkable."""

    history_steps: int = 12
    min_changes: int = 6
    width: float = 3.0
    min_variation_pct: float = 1.0


@dataclass(frozen=True, slots=True)
class UsualChange:
    """What history says of a figure's changes, all in percent; None where `basis` is "thresholds".

    `change_pct` is the median change, `variation_pct` one variation around it, and a change outside `[low_pct, high_pct]` is beyond
    noise. `comparisons` says how many past changes it rests on.
    """

    basis: Basis = "thresholds"
    comparisons: int = 0
    change_pct: float | None = None
    variation_pct: float | None = None
    low_pct: float | None = None
    high_pct: float | None = None

    def is_beyond(self, current: float | None, previous: float | None) -> bool | None:
        """Whether the change lies outside what is usual; None where that is unknown, as is every change from zero."""
        if self.low_pct is None or self.high_pct is None or current is None or not previous:
            return None
        return not self.low_pct <= (float(current) / float(previous) - 1) * 100 <= self.high_pct


def earlier_comparisons(current: Period, previous: Period, steps: int, since: datetime | None) -> list[tuple[Period, Period]]:
    """The same comparison one to `steps` steps earlier, as far as both of its periods begin at or after `since` (the first usage)."""
    if since is None:
        return []
    step = math.ceil(current.length / WEEK) * WEEK
    shifted = (
        tuple(Period(period.start - number * step, period.end - number * step) for period in (current, previous))
        for number in range(1, steps + 1)
    )
    return [(one, other) for one, other in shifted if min(one.start, other.start) >= since]


def earlier_weeks(current: Period, previous: Period, steps: int, since: datetime | None) -> list[tuple[Period, Period]]:
    """Weeks before the current period and the week before each; none unless the periods follow each other and exceed a week."""
    if since is None or previous.end != current.start or current.length <= WEEK:
        return []
    ends = (current.start - number * WEEK for number in range(steps))
    return [(Period(end - WEEK, end), Period(end - 2 * WEEK, end - WEEK)) for end in ends if end - 2 * WEEK >= since]


def usual_change(
    pairs: Iterable[tuple[float | None, float | None]], basis: Basis, parameters: NoiseParameters = NoiseParameters()
) -> UsualChange:
    """What is usual, from (current, previous) of past comparisons. Pairs with an unknown or zero side have no ratio and are left out;
    with fewer than `min_changes` left the answer is "thresholds"."""
    changes = [math.log(float(one) / float(other)) for one, other in pairs if one and other and one > 0 and other > 0]
    if len(changes) < max(parameters.min_changes, 2):
        return UsualChange(comparisons=len(changes))
    centre, spread = median(changes), robust_deviation(changes)
    spread = max(spread, math.log1p(parameters.min_variation_pct / 100))
    low, high = centre - parameters.width * spread, centre + parameters.width * spread
    return UsualChange(basis, len(changes), *(_percent(value) for value in (centre, spread, low, high)))


def robust_deviation(values: Sequence[float]) -> float:
    """The standard deviation that the MAD implies, corrected for the number of values (at least two)."""
    centre = median(values)
    return MAD_TO_DEVIATION * median(abs(value - centre) for value in values) * len(values) / (len(values) - MAD_BIAS)


def usual_changes(
    read: Callable[[Period], dict[str, float | None]],
    current: Period,
    previous: Period,
    since: datetime | None,
    parameters: NoiseParameters = NoiseParameters(),
) -> dict[str, UsualChange]:
    """What is usual for every figure that `read` gives of a period; empty where there is no history. Reads each period once."""
    found: dict[str, UsualChange] = {}
    known: dict[Period, dict[str, float | None]] = {}

    def figures(period: Period) -> dict[str, float | None]:
        if period not in known:
            known[period] = read(period)
        return known[period]

    kinds: tuple[tuple[Basis, Callable[..., list[tuple[Period, Period]]]], ...] = (
        ("same_comparison", earlier_comparisons),
        ("weekly", earlier_weeks),
    )
    for basis, choose in kinds:
        pairs = choose(current, previous, parameters.history_steps, since)
        if len(pairs) < parameters.min_changes:
            continue
        read_pairs = [(figures(one), figures(other)) for one, other in pairs]
        for name in read_pairs[0][0] if read_pairs else ():
            if found.get(name, UsualChange()).basis == "thresholds":
                found[name] = usual_change(((one[name], other[name]) for one, other in read_pairs), basis, parameters)
        if all(usual.basis != "thresholds" for usual in found.values()):
            break
    return found


def _percent(logarithm: float) -> float:
    """Capped at a factor of e^50, so that no result overflows."""
    return math.expm1(min(logarithm, 50.0)) * 100
