"""Latency distributions as Google tells them: a count, a mean, and how many requests fell between growing bounds."""

from __future__ import annotations

from typing import Any

import numpy as np

_SHAPE = (
    np.array([0.0, 0.25, 0.5, 0.8, 1.1, 1.8, 3.0, 6.0]),
    np.array([0.0, 0.02, 0.25, 0.55, 0.75, 0.92, 0.985, 1.0]),
)
"""Times of the mean, and the share of requests that took no longer."""
_GROWTH, _FINITE = 1.4, 40
_FIRST_TOKEN = (25.0, 50.0, 100.0, 150.0, 200.0, 300.0, 400.0, 600.0, 800.0, 1200.0, 1600.0, 2400.0, 4000.0, 8000.0, 16000.0)


def distribution(told: Any, requests: int, milliseconds: int, metric: str) -> None:
    """Fill a `google.api.Distribution` with `requests` that took `milliseconds` together: exponential buckets, explicit ones for the
    first token."""
    mean = milliseconds / max(requests, 1)
    told.count, told.mean = requests, mean
    if metric == "first_token_latencies":
        edges = np.array(_FIRST_TOKEN)
        told.bucket_options.explicit_buckets.bounds.extend(_FIRST_TOKEN)
    else:
        edges = _GROWTH ** np.arange(_FINITE + 1)
        told.bucket_options.exponential_buckets.num_finite_buckets = _FINITE
        told.bucket_options.exponential_buckets.growth_factor = _GROWTH
        told.bucket_options.exponential_buckets.scale = 1.0
    below = np.floor(requests * np.interp(edges / max(mean, 1e-9), *_SHAPE) + 0.5).astype(np.int64)
    told.bucket_counts.extend(np.diff(below, prepend=0, append=requests).tolist())
