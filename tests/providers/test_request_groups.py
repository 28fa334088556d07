"""Requests summed into buckets: lengths of prompts and latencies."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tokentra_dagster.latency import latency_buckets
from tokentra_dagster.providers.request_groups import Latencies, prompt_length


@pytest.mark.parametrize(
    ("tokens", "bounds", "top", "label"),
    [
        (0, (128_000, 272_000), 10_000_000, "0-128k"), (128_000, (128_000, 272_000), 10_000_000, "0-128k"),
        (128_001, (128_000, 272_000), 10_000_000, "128k-272k"), (272_001, (128_000, 272_000), 10_000_000, "272k-10M"),
        (9, (200_000,), 1_000_000, "0-200k"), (200_001, (200_000,), 1_000_000, "200k-1M"), (None, (200_000,), 1_000_000, None),
    ],
)  # fmt: skip
def test_a_prompt_lies_in_the_tier_whose_upper_bound_it_does_not_exceed(tokens, bounds, top, label):
    assert prompt_length(tokens, bounds, top) == label


def test_latencies_that_are_added_one_by_one_are_the_histogram_of_all():
    generator = random.Random(3)
    times = [generator.randrange(90_000) for _ in range(1000)]
    kept = Latencies()
    for one in times:
        kept.add(one)
    fields = kept.fields()
    buckets, counts = np.unique(latency_buckets(np.array(times)), return_counts=True)
    assert fields["latency_histogram"] == dict(zip(buckets.tolist(), counts.tolist(), strict=True))
    assert list(fields["latency_histogram"]) == sorted(fields["latency_histogram"])
    assert (fields["total_latency_ms"], fields["min_latency_ms"], fields["max_latency_ms"]) == (
        sum(times),
        min(times),
        max(times),
    )
    assert abs(fields["p50_latency_ms"] - sorted(times)[499]) <= 0.02 * sorted(times)[499]
    assert fields == kept.fields() and Latencies().fields() == {}
