"""Series that nobody made up for the analyses: the project's simulator, and real traces where they are beside the checkout."""

from __future__ import annotations

import csv
import gzip
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np

from bench.simulated_usage import HOUR, SimulatedUsage, Truth
from tokentra_dagster.analytics.anomaly_detection import HOURLY, Floats, Rule
from tokentra_dagster.analytics.periods import DAY
from tokentra_dagster.analytics.sources import COST
from tokentra_dagster.simulator.companies import organisation
from tokentra_dagster.simulator.organisation import ORIGIN
from tokentra_dagster.simulator.truth import Table, counts, minute_of

DATA = Path(__file__).parents[2] / "shared" / "data"
SIMULATED = ("acme", "globex")
BY_DAY_ONLY = replace(HOURLY, season=24, minimum_seasons=6, memory=14)
"""For traces of a fortnight: the rhythm of the day alone, since a weekly one has not been seen twice."""


@cache
def simulator_usage(name: str, until: datetime = datetime(2026, 11, 2, tzinfo=UTC)) -> SimulatedUsage:
    """A simulated organisation hour by hour: tokens and requests of its completions and messages, once nothing is restated."""
    tokens, requests, dimensions, truths = [], [], defaultdict(list), []
    edges = np.arange(0, minute_of(until) + 1, 60)
    org = organisation(name)
    for provider, endpoint in (("openai", "completions"), ("anthropic", "messages")):
        streams = [stream for stream in org.streams(provider) if stream.endpoint == endpoint]
        found = counts(Table.of(org, provider, streams), edges, minute_of(until) + 10_000)
        own = range(len(requests), len(requests) + len(streams))
        requests += list(found[:, :, 0].astype(np.float64))
        tokens += list(found[:, :, 1:].sum(axis=2).astype(np.float64))
        for stream in streams:
            dimensions["model"].append(str(stream.dimensions["model"]))
            dimensions["api_key"].append(str(stream.dimensions.get("api_key_id")))
            dimensions["feature"].append(stream.project)
            dimensions["team"].append(stream.project)
            dimensions["project"].append(stream.project)
        first, every, length = org.outages(provider)
        for start in range(first, len(edges) - 1, every):
            begin = ORIGIN + start * HOUR
            truths.append(Truth("outage", "drop", begin, begin + length * HOUR, frozenset(own), "provider", provider))
        for place, stream in zip(own, streams, strict=True):
            changes = [stream.since, stream.until, *(hour for hour, slug, _ in org.launches() if slug == stream.project)]
            for hour in changes:
                if 0 < hour < len(edges) - 1:
                    begin = ORIGIN + hour * HOUR
                    truths.append(
                        Truth("migration", "both", begin, begin + 4 * DAY, frozenset({place}), "feature", stream.project)
                    )
    arrays = {"total_tokens": np.array(tokens), "request_count": np.array(requests)}
    arrays |= {"error_count": np.zeros_like(arrays["total_tokens"]), COST: arrays["total_tokens"] * 2e-6}
    return SimulatedUsage(ORIGIN, {key: np.array(values, dtype=object) for key, values in dimensions.items()}, arrays, truths)


def daily_tokens(usage: SimulatedUsage) -> Floats:
    summed: Floats = usage.arrays["total_tokens"].sum(axis=0).reshape(-1, 24).sum(axis=1)
    return summed


@cache
def real_series() -> list[tuple[str, Floats, Rule]]:
    """Title, series x hours, and the rule: tokens of coding agents (all, then by model), requests of a cluster (all, then by client)."""
    return [
        ("tokens of coding agents, 31 days, in all and by model", _trace("coding-agent-requests.csv.gz", "timestamp", "model"), HOURLY),
        ("requests of a serving cluster, 14 days, in all and of its 20 largest clients",
         _trace("cluster-windows.csv.gz", "window_start", "client"), BY_DAY_ONLY),
    ]  # fmt: skip


def _trace(file: str, moment: str, by: str) -> Floats:
    sums: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    with gzip.open(DATA / file, "rt", newline="") as stream:
        for row in csv.DictReader(stream):
            if row.get("model") == "deepseek-r1":
                continue
            hour = int(datetime.fromisoformat(row[moment]).timestamp()) // 3600
            amount = float(row["requests"]) if "requests" in row else float(row["input_tokens"]) + float(row["output_tokens"])
            sums[row[by]][hour] += amount
            sums[""][hour] += amount
    first, last = min(sums[""]) // 24 * 24, max(sums[""])
    largest = sorted(sums, key=lambda name: -sum(sums[name].values()))[:21]
    series = np.zeros((len(largest), last - first + 1))
    for place, name in enumerate(largest):
        for hour, amount in sums[name].items():
            series[place, hour - first] = amount
    for place in range(len(series)):
        series[place, : int(np.flatnonzero(series[place])[0])] = np.nan
    return series
