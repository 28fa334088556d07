"""Usage of made-up organisations with what went wrong in them known: rhythm, noise, growth, new models, and injected anomalies.

Deterministic by seed. A stream is one feature's use of one model with one key; hours are drawn from a Poisson distribution whose mean
has a daily and weekly rhythm, growth, noise that lasts a day, noise of the hour, and the injected factor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tokentra_dagster.analytics.periods import Granularity, Period
from tokentra_dagster.analytics.sources import COST, COUNTS

START = datetime(2026, 3, 2, tzinfo=UTC)
HOUR = timedelta(hours=1)
ARRAYS = ("total_tokens", "request_count", "error_count", COST)
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """What was injected: a factor on some streams in `[start, end)`. `kind` migration is a planned change, not an anomaly."""

    kind: str
    direction: str
    start: datetime
    end: datetime
    streams: frozenset[int]
    dimension: str | None
    value: str | None


@dataclass
class SimulatedUsage:
    """A `UsageSource` over hourly arrays (streams x hours); what `analyze_anomalies` and `analyze_forecast` ask of one."""

    start: datetime
    dimensions: Mapping[str, npt.NDArray[np.object_]]
    arrays: Mapping[str, Array]
    truths: Sequence[Truth] = ()
    currency: str = "USD"
    _cache: dict[Any, pd.DataFrame] = field(default_factory=dict)

    def first_usage(self) -> datetime | None:
        used = np.flatnonzero(self.arrays["total_tokens"].sum(axis=0))
        return self.start + int(used[0]) * HOUR if len(used) else None

    def frame(
        self,
        period: Period,
        by: Sequence[str] = (),
        granularity: Granularity | None = None,
        where: Mapping[str, str | None] | None = None,
    ) -> pd.DataFrame:
        hours = self.arrays["total_tokens"].shape[1]
        low, high = (min(max((moment - self.start) // HOUR, 0), hours) for moment in (period.start, period.end))
        chosen = np.ones(len(self.arrays["total_tokens"]), dtype=bool)
        for name, value in (where or {}).items():
            chosen &= self.dimensions[name] == value
        width = {"hour": 1, "day": 24, None: max(high - low, 1)}[granularity]
        places = low // width * width if granularity else low
        edges = np.maximum(np.arange(places, high, width), low)
        keys = list(zip(*(self.dimensions[name][chosen] for name in by), strict=True)) if by else [()] * int(chosen.sum())
        groups = sorted(set(keys))
        columns: dict[str, Any] = {}
        if not len(edges) or not groups:
            columns = {"moment": pd.Series([], dtype="datetime64[us, UTC]")} if granularity else {}
            columns |= {name: [] for name in (*by, *COUNTS, COST)}
            return pd.DataFrame(columns)
        member = np.array([groups.index(key) for key in keys])
        sums = {}
        for name in ARRAYS:
            summed = np.zeros((len(groups), len(edges)))
            np.add.at(summed, member, np.add.reduceat(self.arrays[name][chosen][:, :high], edges, axis=1))
            sums[name] = summed.ravel()
        used = (sums["total_tokens"] > 0) | (sums["request_count"] > 0)
        if granularity:
            stamps = pd.to_datetime([self.start + int(edge // width * width) * HOUR for edge in edges]).astype(
                "datetime64[us, UTC]"
            )
            columns["moment"] = stamps[np.tile(np.arange(len(edges)), len(groups))[used]]
        for place, name in enumerate(by):
            columns[name] = np.repeat(np.array([group[place] for group in groups], dtype=object), len(edges))[used]
        for name in COUNTS:
            known = sums[name][used].round().astype(np.int64) if name in sums else None
            columns[name] = pd.array(known if known is not None else [pd.NA] * int(used.sum()), dtype="Int64")
        costs = np.empty(int(used.sum()), dtype=object)
        costs[:] = [Decimal(f"{cost:.6f}") for cost in sums[COST][used]]
        columns[COST] = costs
        return pd.DataFrame(columns)


def rhythm(random: np.random.Generator, kind: str) -> Array:
    """168 shares, 1 on average: a bump a day with a smaller second one, and quieter weekends."""
    hour = np.arange(24)
    peak = {"office": random.uniform(9, 15), "always": random.uniform(8, 20), "night": random.uniform(0, 4)}[kind]
    width = {"office": random.uniform(2.5, 4), "always": random.uniform(5, 8), "night": random.uniform(1.5, 3)}[kind]
    base = {"office": random.uniform(0.02, 0.1), "always": random.uniform(0.3, 0.8), "night": 0.02}[kind]
    apart = np.minimum(np.abs(hour - peak), 24 - np.abs(hour - peak))
    day = base + np.exp(-0.5 * (apart / width) ** 2)
    weekend = {"office": random.uniform(0.05, 0.3), "always": random.uniform(0.7, 1.1), "night": random.uniform(0.5, 1)}[kind]
    week = np.concatenate([random.uniform(0.9, 1.1, 5), weekend * random.uniform(0.9, 1.1, 2)])
    found: Array = np.outer(week, day).ravel()
    return found / found.mean()


def organisation(seed: int, days: int = 90, injected_days: int = 28, inject: bool = True) -> SimulatedUsage:
    """One organisation of 14 to 40 streams; anomalies are injected into the last `injected_days` days."""
    random = np.random.default_rng(seed)
    count, hours = int(random.integers(14, 41)), days * 24
    time = np.arange(hours)
    features = [f"feature-{n}" for n in range(random.integers(3, 8))]
    models = [f"model-{n}" for n in range(random.integers(3, 7))]
    teams = [f"team-{n}" for n in range(random.integers(2, 5))]
    feature = random.integers(0, len(features), count)
    dimensions = {
        "feature": np.array([features[n] for n in feature], dtype=object),
        "model": np.array([models[n] for n in np.minimum(random.geometric(0.4, count) - 1, len(models) - 1)], dtype=object),
        "api_key": np.array([f"key-{n % max(count * 2 // 3, 1):02d}" for n in range(count)], dtype=object),
        "team": np.array([teams[n % len(teams)] for n in feature], dtype=object),
        "project": np.array([f"project-{n // 2}" for n in feature], dtype=object),
    }
    mean = np.zeros((count, hours))
    busy = 10 ** random.uniform(0.3, 3.2)
    volume = busy * random.pareto(1.2, count).clip(0.02, 30)
    for stream in range(count):
        kind = random.choice(["office", "always", "night"], p=[0.5, 0.4, 0.1])
        monthly = random.uniform(-0.1, 0.25)
        daily_noise = np.repeat(random.lognormal(0, random.uniform(0.03, 0.12), days), 24)
        shape = 1 / random.uniform(0.08, 0.45) ** 2
        hourly_noise = random.gamma(shape, 1 / shape, hours)
        growth = (1 + monthly) ** (time / 720)
        mean[stream] = volume[stream] * rhythm(random, kind)[time % 168] * growth * daily_noise * hourly_noise
        if random.random() < 0.15:
            mean[stream, : int(random.integers(0, hours // 2))] = 0
    # Everybody works less on some days and more on others.
    mean *= np.repeat(random.lognormal(0, 0.04, days), 24)
    dimensions, mean, truths = _migrated(random, dimensions, mean, injected_days)
    errors = np.full(mean.shape, random.uniform(0.002, 0.03))
    if inject:
        truths = [*truths, *_injected(random, dimensions, mean, errors, injected_days)]
    requests = random.poisson(mean).astype(np.float64)
    size = 10 ** random.uniform(2.5, 4, len(mean))
    tokens = np.round(requests * size[:, None] * np.exp(random.normal(0, 0.6, mean.shape) / np.sqrt(np.maximum(requests, 1))))
    price = {model: 10 ** random.uniform(-6.5, -4.8) for model in set(dimensions["model"])}
    arrays = {
        "total_tokens": tokens,
        "request_count": requests,
        "error_count": random.binomial(requests.astype(np.int64), errors).astype(np.float64),
        COST: tokens * np.array([price[model] for model in dimensions["model"]])[:, None],
    }
    return SimulatedUsage(START, dimensions, arrays, truths)


def _migrated(
    random: np.random.Generator, dimensions: dict[str, npt.NDArray[np.object_]], mean: Array, injected_days: int
) -> tuple[dict[str, npt.NDArray[np.object_]], Array, list[Truth]]:
    """One feature moves to a new model at some hour: its streams end and their copies begin."""
    count, hours = mean.shape
    feature = random.choice(dimensions["feature"])
    moving = np.flatnonzero(dimensions["feature"] == feature)
    at = int(random.integers(hours // 3, hours - 24))
    after = mean[moving].copy()
    after[:, :at] = 0
    mean[moving, at:] = 0
    copies = {name: values[moving].copy() for name, values in dimensions.items()}
    copies["model"][:] = "model-new"
    joined = {name: np.concatenate([values, copies[name]]) for name, values in dimensions.items()}
    moved = START + at * HOUR
    streams = frozenset({*moving.tolist(), *range(count, count + len(moving))})
    truths = [Truth("migration", "both", moved, moved + timedelta(days=4), streams, "feature", str(feature))]
    return joined, np.concatenate([mean, after]), truths


def _injected(
    random: np.random.Generator, dimensions: Mapping[str, npt.NDArray[np.object_]], mean: Array, errors: Array, injected_days: int
) -> list[Truth]:
    """Five anomalies, days apart: a spike, an outage, a step of the level, a key that goes wild, a storm of errors."""
    hours = mean.shape[1]
    first = hours - injected_days * 24
    kinds = random.permutation(["spike", "outage", "step", "wild key", "errors"])
    slots = first + (np.arange(5) * injected_days / 5 * 24).astype(int)
    truths = []
    for kind, slot in zip(kinds, slots, strict=True):
        at = int(slot + random.integers(0, 72))
        recent = mean[:, at - 168 : at].sum(axis=1)
        dimension = {"spike": "api_key", "outage": "model", "step": "feature", "wild key": "api_key", "errors": "model"}[kind]
        values = sorted(set(dimensions[dimension]))
        weight = np.array([recent[dimensions[dimension] == value].sum() for value in values])
        if kind == "wild key":
            weight = np.where(weight > 0, 1.0, 0.0)
        value = str(random.choice(values, p=weight / weight.sum()))
        streams = dimensions[dimension] == value
        direction, length = "spike", int(random.integers(2, 7))
        if kind == "spike":
            mean[streams, at : at + length] *= random.uniform(3, 8)
        elif kind == "outage":
            length, direction = int(random.integers(3, 13)), "drop"
            mean[streams, at : at + length] *= random.uniform(0, 0.05)
        elif kind == "step":
            length = 72
            factor = random.choice([random.uniform(1.8, 3), random.uniform(0.2, 0.5)])
            direction = "spike" if factor > 1 else "drop"
            mean[streams, at:] *= factor
        elif kind == "wild key":
            length = int(random.integers(6, 30))
            one = int(np.flatnonzero(streams)[recent[streams].argmax()])
            mean[one, at : at + length] += recent.sum() / 168 * random.uniform(0.3, 1.5)
            streams = np.arange(len(mean)) == one
        else:
            errors[streams, at : at + length] = random.uniform(0.3, 0.9)
        begin = START + at * HOUR
        truths.append(
            Truth(
                str(kind), direction, begin, begin + length * HOUR, frozenset(np.flatnonzero(streams).tolist()), dimension, value
            )
        )
    return truths
