"""How good anomalies and forecasts are: `python -m bench quality`.

Made-up organisations with injected anomalies (`simulated_usage`), the project's own simulator with its outages, and real traces where
they are beside the checkout. The seeds here were not used to choose any parameter (those were 1000 and up).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta

import numpy as np

from bench.simulated_usage import HOUR, START, SimulatedUsage, Truth, organisation
from tokentra_dagster.analytics.anomalies import Anomaly, AnomalyParameters, AnomalyReport, analyze_anomalies
from tokentra_dagster.analytics.periods import Period

DEFAULTS = AnomalyParameters()
SEEDS = range(1, 41)
DAYS, INJECTED_DAYS = 90, 28


@dataclass
class Detection:
    """Counts over organisations. `found` and `truths` by kind; `right` of `reported` anomalies belong to something injected."""

    truths: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    explained: Counter[str] = field(default_factory=Counter)
    reported: int = 0
    right: int = 0
    false: list[Anomaly] = field(default_factory=list)
    organisations: int = 0
    seconds: float = 0.0


def streams_of(usage: SimulatedUsage, anomaly: Anomaly) -> frozenset[int]:
    if anomaly.dimension is None:
        return frozenset(range(len(usage.arrays["total_tokens"])))
    return frozenset(np.flatnonzero(usage.dimensions[anomaly.dimension] == anomaly.dimension_value).tolist())


def belongs(usage: SimulatedUsage, anomaly: Anomaly, truth: Truth) -> bool:
    """Same direction, overlapping in time, about streams that were changed."""
    if truth.kind == "errors" and anomaly.measure != "errors":
        return False
    return (
        truth.direction in (anomaly.direction, "both")
        and anomaly.start < truth.end
        and anomaly.end > truth.start
        and bool(streams_of(usage, anomaly) & truth.streams)
    )


def names_the_cause(anomaly: Anomaly, truth: Truth, usage: SimulatedUsage) -> bool:
    """The first contribution, or the series itself, is a value that only changed streams have, or the injected value."""
    named = [(anomaly.dimension, anomaly.dimension_value), *((one.dimension, one.value) for one in anomaly.contributions[:1])]
    for dimension, value in named:
        if dimension is not None:
            streams = frozenset(np.flatnonzero(usage.dimensions[dimension] == value).tolist())
            if (dimension, value) == (truth.dimension, truth.value) or streams <= truth.streams:
                return True
    return False


def count(detection: Detection, usage: SimulatedUsage, report: AnomalyReport, truths: Iterable[Truth]) -> None:
    truths = list(truths)
    detection.organisations += 1
    for truth in truths:
        hits = [anomaly for anomaly in report.anomalies if belongs(usage, anomaly, truth)]
        detection.truths[truth.kind] += 1
        detection.found[truth.kind] += bool(hits)
        detection.explained[truth.kind] += any(names_the_cause(hit, truth, usage) for hit in hits)
    for anomaly in report.anomalies:
        detection.reported += 1
        if any(belongs(usage, anomaly, truth) for truth in truths):
            detection.right += 1
        else:
            detection.false.append(anomaly)


def detect(seeds: Iterable[int], parameters: AnomalyParameters = DEFAULTS) -> Detection:
    detection = Detection()
    for seed in seeds:
        usage = organisation(seed, DAYS, INJECTED_DAYS)
        end = START + DAYS * 24 * HOUR
        period = Period(end - timedelta(days=INJECTED_DAYS), end)
        began = time.perf_counter()
        report = analyze_anomalies(usage, period, end, parameters)
        detection.seconds += time.perf_counter() - began
        count(detection, usage, report, [truth for truth in usage.truths if truth.end > period.start])
    return detection


def show(title: str, detection: Detection) -> None:
    kinds = [kind for kind in sorted(detection.truths) if kind != "migration"]
    truths, found = (sum(counter[kind] for kind in kinds) for counter in (detection.truths, detection.found))
    print(
        f"{title}: {detection.organisations} organisations, {detection.seconds / detection.organisations:.2f} s each\n"
        f"  recall {found}/{truths} = {found / truths:.0%}; precision {detection.right}/{detection.reported} = "
        f"{detection.right / max(detection.reported, 1):.0%}; "
        f"{len(detection.false) / detection.organisations:.1f} false alarms per organisation in {INJECTED_DAYS} days"
    )
    for kind in sorted(detection.truths):
        print(
            f"    {kind:<10} found {detection.found[kind]:>3} of {detection.truths[kind]:>3}, "
            f"cause named {detection.explained[kind]:>3}"
        )
