"""Latency buckets in Python are those of the database, and percentiles read from them are within 1 %."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tokentra_dagster.latency import latency_buckets, latency_percentile


def test_buckets_and_percentiles_are_those_of_the_database(database):
    rng = random.Random(7)
    latencies = [0, 1, 2, 3, 50, 51, *(int(1.02**n) for n in range(1, 900, 7)), *(rng.randrange(1, 10**7) for _ in range(500))]
    with database.connect() as db:
        theirs = [
            row["bucket"]
            for row in db.execute(
                "SELECT raw.latency_bucket(ms) AS bucket FROM unnest(%s::numeric[]) WITH ORDINALITY AS u (ms, n) ORDER BY n",
                [latencies],
            )
        ]
        ours = latency_buckets(np.array(latencies)).tolist()
        assert ours == theirs
        histogram: dict[int, int] = {}
        for bucket in ours:
            histogram[bucket] = histogram.get(bucket, 0) + 1
        for quantile in (0, 0.5, 0.95, 0.99, 1):
            row = db.execute(
                "SELECT raw.latency_percentile(jsonb_object_agg(k, v), %s) AS ms FROM unnest(%s::int[], %s::bigint[]) AS u (k, v)",
                [quantile, list(histogram), list(histogram.values())],
            ).fetchone()
            assert row is not None and row["ms"] == latency_percentile(histogram, quantile)


@pytest.mark.parametrize("quantile", [0.01, 0.5, 0.95, 0.99, 1.0])
def test_a_percentile_of_merged_histograms_is_within_one_percent(quantile: float) -> None:
    rng = random.Random(11)
    latencies = sorted(int(rng.lognormvariate(7, 1.2)) + 60 for _ in range(20_000))
    merged: dict[int, int] = {}
    for part in (latencies[::3], latencies[1::3], latencies[2::3]):
        for bucket in latency_buckets(np.array(part)).tolist():
            merged[bucket] = merged.get(bucket, 0) + 1
    exact = latencies[max(int(np.ceil(quantile * len(latencies))) - 1, 0)]
    found = latency_percentile(merged, quantile)
    assert found is not None and abs(found - exact) <= exact * 0.01 + 0.5


def test_no_requests_have_no_percentile() -> None:
    assert latency_percentile({}, 0.5) is None
