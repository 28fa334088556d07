"""Which value of which dimension moved an anomaly: the window against the same hours of the weeks before.

A value is expected to keep the part of the whole that it had in those hours, so expectations add up to the anomaly's own, and
contributions to its difference. A value explains an anomaly by how much more of the difference it has than of usual usage: that the
only model made all of a spike explains nothing, that a key with 2 % of the usage made 97 % of it does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import pandas as pd

from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.analytics.sources import UsageSource
from tokentra_dagster.analytics.usage_series import COLUMNS, Measure, SeriesName, floats

EXPLAINING = ("api_key", "feature", "project", "team", "model")
"""The most particular first; the order decides between values that explain equally much."""
WEEK = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Contribution:
    """What a value did in an anomaly's window, in the anomaly's measure (money as a float). `value` None: usage without one.

    `share`: its part of the difference (1 is all of it; more than 1 where others moved the other way); `usual_share`: its part of the
    usage in the same hours before, None where there was none.
    """

    dimension: str
    value: str | None
    actual: float
    expected: float
    difference: float
    share: float
    usual_share: float | None
    label: str | None = None
    """The value's name, where it has one."""

    @property
    def surprise(self) -> float:
        """How much more of the difference than of the usage."""
        return self.share - (self.usual_share or 0.0)


def explain(
    usage: UsageSource, name: SeriesName, measure: Measure, window: Period, expected: float, since: datetime, weeks: int = 4
) -> tuple[Contribution, ...]:
    """For each dimension the value that moved most, the most surprising first. `since`: usage before is not looked at."""
    dimensions = tuple(dimension for dimension in EXPLAINING if dimension != name.dimension)
    where = None if name.dimension is None else {name.dimension: name.value}
    step = WEEK * -(-window.length // WEEK)
    earlier = [Period(window.start - n * step, window.end - n * step) for n in range(1, weeks + 1)]
    now = usage.frame(window, by=dimensions, where=where)
    before = [usage.frame(period, by=dimensions, where=where) for period in earlier if period.start >= since]
    column = COLUMNS[measure]
    found = []
    for dimension in dimensions:
        used = _by_value([now], dimension, column)
        usual = _by_value(before, dimension, column)
        best = largest_contribution(dimension, used, usual, expected)
        if best is not None:
            found.append(best)
    return tuple(sorted(found, key=lambda one: (-round(one.surprise, 2), dimensions.index(one.dimension))))


def largest_contribution(
    dimension: str, used: Mapping[str | None, float], usual: Mapping[str | None, float], expected: float
) -> Contribution | None:
    """The value with the largest part of the difference between what was used and what was expected; None without a difference."""
    whole, difference = sum(usual.values()), sum(used.values()) - expected
    values = sorted({*used, *usual}, key=lambda value: (value is None, value or ""))
    if not values or abs(difference) <= 1e-9 * max(abs(expected), 1.0):
        return None
    candidates = []
    for value in values:
        usual_share = usual.get(value, 0.0) / whole if whole > 0 else None
        planned = expected * (usual_share if usual_share is not None else 1 / len(values))
        actual = used.get(value, 0.0)
        candidates.append(
            Contribution(dimension, value, actual, planned, actual - planned, (actual - planned) / difference, usual_share)
        )
    return max(candidates, key=lambda one: one.share)


def _by_value(frames: Sequence[pd.DataFrame], dimension: str, column: str) -> dict[str | None, float]:
    sums: dict[str | None, float] = {}
    for frame in frames:
        amounts = np.nan_to_num(floats(frame[column]), nan=0.0)
        for value, amount in zip(frame[dimension], amounts, strict=True):
            key = None if value is None or value != value else str(value)
            sums[key] = sums.get(key, 0.0) + float(amount)
    return sums
