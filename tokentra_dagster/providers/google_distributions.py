"""Google's latency distributions become histograms of ours: linear, exponential and explicit buckets (google/api/distribution.proto).

The buckets are not the same, so a bucket's requests are spread over ours as if they lay evenly between its bounds, which is how Cloud
Monitoring itself reads percentiles from a distribution. The number of requests stays what it is, to the one. What is above the last
bound counts at that bound, unless the largest value is told.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from tokentra_dagster.latency import BASE, latency_buckets, latency_percentile
from tokentra_dagster.providers.payload import BadItem

_MOST_BUCKETS = 10_000
_TOP = 1_500
"""Above 10^12 ms there is no latency."""


@dataclass(slots=True)
class Latencies:
    """What several distributions say together. Milliseconds."""

    count: int = 0
    total: float = 0.0
    histogram: Counter[int] = field(default_factory=Counter)
    """As `UsageRecord.latency_histogram`."""
    without_histogram: int = 0
    """Requests of distributions that have a mean only."""
    above: Counter[float] = field(default_factory=Counter)
    """Last bound -> requests above it, of which no more is known."""
    least: float | None = None
    most: float | None = None
    ranged: bool = True
    """Every distribution told its smallest and largest value."""

    def add(self, distribution: Any) -> None:
        """Raises `BadItem` where the distribution contradicts itself; nothing of it is added then."""
        count = int(distribution.count)
        counts = [int(one) for one in distribution.bucket_counts]
        _check(distribution, count, counts)
        if not count:
            return
        limits = (distribution.range.min, distribution.range.max) if distribution.HasField("range") else None
        found: Counter[int] = Counter()
        above: Counter[float] = Counter()
        for lower, upper, number in _occupied(bounds(distribution.bucket_options), counts) if counts else ():
            if upper is None and limits is None:
                above[lower] += number
            _spread(*_narrowed(lower, upper, limits), number, found)
        self.count += count
        self.total += distribution.mean * count
        self.histogram.update(found)
        self.without_histogram += 0 if counts else count
        self.above += above
        self.ranged = self.ranged and limits is not None
        if limits is not None:
            self.least = min(limits[0], limits[0] if self.least is None else self.least)
            self.most = max(limits[1], limits[1] if self.most is None else self.most)

    @property
    def average(self) -> int | None:
        return round(self.total / self.count) if self.count else None

    def percentile(self, quantile: float) -> int | None:
        """None where a part of the requests has no histogram."""
        return None if self.without_histogram else latency_percentile(self.histogram, quantile)


def bounds(options: Any) -> list[float]:
    """The bounds between the buckets, ascending: one fewer than there are buckets. Raises `BadItem`."""
    kind = options.WhichOneof("options")
    if kind == "linear_buckets":
        of = options.linear_buckets
        found = [of.offset + of.width * n for n in range(_finite(of.num_finite_buckets) + 1)]
    elif kind == "exponential_buckets":
        of = options.exponential_buckets
        if not of.growth_factor > 1 or not of.scale > 0:
            raise BadItem(f"its exponential buckets grow by {of.growth_factor} from {of.scale}")
        steps = _finite(of.num_finite_buckets)
        if math.log(of.scale) + steps * math.log(of.growth_factor) > 700:
            raise BadItem(f"its exponential buckets grow by {of.growth_factor} {steps} times")
        found = [of.scale * of.growth_factor**n for n in range(steps + 1)]
    elif kind == "explicit_buckets":
        found = list(options.explicit_buckets.bounds)
    else:
        raise BadItem("it has counts without the bounds of its buckets")
    if not found or not all(map(math.isfinite, found)) or any(after <= before for before, after in pairwise(found)):
        raise BadItem("the bounds of its buckets do not ascend")
    return found


def _finite(number: int) -> int:
    if not 0 < number <= _MOST_BUCKETS:
        raise BadItem(f"it has {number} finite buckets")
    return number


def _check(distribution: Any, count: int, counts: Sequence[int]) -> None:
    if count < 0 or any(one < 0 for one in counts):
        raise BadItem("it has a negative count")
    if not math.isfinite(distribution.mean) or (count and distribution.mean < 0):
        raise BadItem(f"its mean is {distribution.mean}")
    if counts and sum(counts) != count:
        raise BadItem(f"its buckets hold {sum(counts)} values and it says {count}")


def _occupied(edges: Sequence[float], counts: Sequence[int]) -> Iterator[tuple[float, float | None, int]]:
    """Lower bound, upper bound (None: there is none) and number of each bucket with anything in it. Latencies begin at 0."""
    if len(counts) > len(edges) + 1:
        raise BadItem(f"it has {len(counts)} counts for {len(edges) + 1} buckets")
    for n, number in enumerate(counts):
        if number:
            yield (edges[n - 1] if n else min(0.0, edges[0]), edges[n] if n < len(edges) else None, number)


def _narrowed(lower: float, upper: float | None, limits: tuple[float, float] | None) -> tuple[float, float]:
    """A bucket's bounds, no wider than the smallest and the largest value. Latencies are not negative."""
    low, high = limits if limits is not None else (lower, lower if upper is None else upper)
    start = max(lower, low, 0.0)
    stop = high if upper is None else min(upper, high)
    return start, max(start, stop)


def _spread(start: float, stop: float, number: int, found: Counter[int]) -> None:
    """`number` requests, evenly between `start` and `stop`, into our buckets."""
    first, last = np.minimum(latency_buckets(np.array([start, stop])), _TOP).tolist()
    placed = 0
    for bucket in range(first, last):
        share = (BASE**bucket - start) / (stop - start)
        reached = min(math.floor(number * share + 0.5), number)
        if reached > placed:
            found[bucket] += reached - placed
            placed = reached
    if number > placed:
        found[last] += number - placed
