"""Latency histograms: bucket i holds latencies in (1.02^(i-1), 1.02^i] ms, bucket 0 everything up to 1 ms.

Histograms of any periods merge by adding their counts, and a percentile read from the merged one is within 1 % of the
true one (correction 6). The same functions are in the database: `raw.latency_bucket`, `raw.latency_percentile`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

BASE = 1.02


def latency_buckets(milliseconds: npt.NDArray[np.int64] | npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The bucket of each latency."""
    steps = np.log(np.maximum(milliseconds, 1).astype(np.float64)) / math.log(BASE)
    return np.ceil(np.round(steps, 9)).astype(np.int64)


def latency_percentile(histogram: Mapping[int, int], quantile: float) -> int | None:
    """Milliseconds below which `quantile` (0 to 1) of the requests stayed, within 1 %; `None` without requests."""
    wanted = max(math.ceil(quantile * sum(histogram.values())), 1)
    reached = 0
    for bucket in sorted(histogram):
        reached += histogram[bucket]
        if reached >= wanted:
            return round(2 * BASE**bucket / (1 + BASE))
    return None
