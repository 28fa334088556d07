"""How good anomalies and forecasts are: `python -m bench quality`.

Made-up organisations with injected anomalies (`simulated_usage`), the project's own simulator with its outages, and real traces where
they are beside the checkout. The seeds here were not used to choose any parameter (those were 1000 and up).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import timedelta

import numpy as np

from bench.real_series import DATA, SIMULATED, daily_tokens, real_series, simulator_usage
from bench.simulated_usage import HOUR, START, SimulatedUsage, Truth, organisation
from tokentra_dagster.analytics.anomalies import AnomalyParameters, analyze_anomalies, find_runs
from tokentra_dagster.analytics.anomaly_detection import Floats, judge
from tokentra_dagster.analytics.anomaly_results import Anomaly, AnomalyReport, group_events
from tokentra_dagster.analytics.forecast import LEVELS
from tokentra_dagster.analytics.forecast_model import ForecastParameters, daily_paths
from tokentra_dagster.analytics.periods import DAY, Period

DEFAULTS = AnomalyParameters()
SEEDS = range(1, 41)
DAYS, INJECTED_DAYS = 90, 28
PATHS = ForecastParameters(paths=1000)


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
    insights: int = 0
    insights_right: int = 0


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
    for event in group_events(report.anomalies):
        detection.insights += 1
        detection.insights_right += any(belongs(usage, event[0], truth) for truth in truths)
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
        f"{title}: {detection.organisations} times {INJECTED_DAYS} days of an organisation, {detection.seconds / detection.organisations:.2f} s each\n"
        f"  recall {found}/{truths} = {found / truths:.0%}; precision {detection.right}/{detection.reported} = "
        f"{detection.right / max(detection.reported, 1):.0%}; "
        f"of the events that people are told {detection.insights_right}/{detection.insights} = "
        f"{detection.insights_right / max(detection.insights, 1):.0%}; {len(detection.false) / detection.organisations:.1f} false alarms each"
    )
    for kind in sorted(detection.truths):
        print(
            f"    {kind:<10} found {detection.found[kind]:>3} of {detection.truths[kind]:>3}, "
            f"cause named {detection.explained[kind]:>3}"
        )


def show_simulator() -> None:
    """The project's own simulator: its outages (5 hours, every 37 days) and launches (a project steps up by a quarter, every 8 weeks)."""
    for title, months in (
        ("its last year, looked at when chance in small counts was mended", range(12)),
        ("the year before", range(12, 24)),
    ):
        detection = Detection()
        for name in SIMULATED:
            _simulated_months(name, months, detection)
        show(f"the project's simulator, {title} (a migration is a launch, an archived project or a new model)", detection)


def _simulated_months(name: str, months: Iterable[int], detection: Detection) -> None:
    usage = simulator_usage(name)
    end = usage.start + usage.arrays["total_tokens"].shape[1] * HOUR
    for month in months:
        period = Period(end - 28 * (month + 1) * DAY, end - 28 * month * DAY)
        began = time.perf_counter()
        report = analyze_anomalies(usage, period, period.end, replace(DEFAULTS, explained=10))
        detection.seconds += time.perf_counter() - began
        count(detection, usage, report, [one for one in usage.truths if one.end > period.start and one.start < period.end])


@dataclass
class Coverage:
    """Forecasts against what came: one entry per forecast."""

    inside_80: list[bool] = field(default_factory=list)
    inside_95: list[bool] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    naive_errors: list[float] = field(default_factory=list)
    widths: list[float] = field(default_factory=list)

    def add(self, history: Floats, truth: Floats, weekday: int) -> None:
        """`truth`: the days that followed. Naive: the last week again."""
        actual, days = float(truth.sum()), len(truth)
        _, paths = daily_paths(history, days, weekday, PATHS)
        if not len(paths) or actual <= 0:
            return
        sums = paths.sum(axis=1)
        low_95, low_80, high_80, high_95 = np.quantile(sums, LEVELS)
        naive = float(history[-7:][np.arange(days) % 7].sum())
        self.inside_80.append(bool(low_80 <= actual <= high_80))
        self.inside_95.append(bool(low_95 <= actual <= high_95))
        self.errors.append(abs(float(sums.mean()) / actual - 1))
        self.naive_errors.append(abs(naive / actual - 1))
        self.widths.append(float(high_80 - low_80) / actual)

    def show(self, title: str) -> None:
        print(
            f"  {title:<58} {len(self.errors):>4} forecasts: in the 80 % interval {np.mean(self.inside_80):4.0%}, in the 95 % "
            f"{np.mean(self.inside_95):4.0%}; error mean {np.mean(self.errors):.1%}, median {np.median(self.errors):.1%} "
            f"(last week again {np.mean(self.naive_errors):.1%}, {np.median(self.naive_errors):.1%}); 80 % width {np.median(self.widths):.0%}"
        )


def roll(coverage: Coverage, daily: Floats, origins: Iterable[int], horizon: int, history: int = 90) -> None:
    """Forecasts from each origin with what was known then. Series begin on a Monday."""
    for origin in origins:
        if origin + horizon <= len(daily):
            coverage.add(daily[max(0, origin - history) : origin], daily[origin : origin + horizon], (origin - 1) % 7)


def show_forecasts() -> None:
    print("forecasts of the sum of the next days, from rolling origins")
    made = [organisation(seed, days=150, inject=seed % 2 == 0) for seed in SEEDS]
    simulated = [simulator_usage(name) for name in SIMULATED]
    for horizon in (7, 21):
        for title, usages, origins in (
            ("made-up organisations, 60 to 90 days of history", made, range(60, 150, 13)),
            ("the project's simulator, 90 days of history", simulated, range(100, 1000, 21)),
        ):
            coverage = Coverage()
            for usage in usages:
                roll(coverage, daily_tokens(usage), origins, horizon)
            coverage.show(f"{title}, {horizon} days")
    for history in (7, 14, 21):
        coverage = Coverage()
        for usage in made:
            roll(coverage, daily_tokens(usage), range(history, 140, 11), 14, history)
        coverage.show(f"made-up organisations, {history} days of history, 14 days")


def show_traces() -> None:
    """Real series: how often they alarm as they are, and how many injected anomalies of known size are found in them."""
    if not DATA.is_dir():
        print("real traces: not beside this checkout (../shared/data), left out")
        return
    for title, series, rule in real_series():
        minimum = np.full(len(series), 10_000.0 if "agents" in title else 2_000.0)
        judged = judge(series, rule, minimum)
        first = rule.minimum_seasons * rule.season
        weeks = len(series) * (series.shape[1] - first) / 168
        runs = list(find_runs(judged, rule))
        found, injected = 0, 0
        for seed in range(20):
            random = np.random.default_rng(seed)
            for row in range(min(len(series), 12)):
                at, length = int(random.integers(first, series.shape[1] - 6)), int(random.integers(3, 6))
                factor = 5.0 if seed % 2 else 0.0
                part = series[row, at : at + length]
                # A silent hour multiplied is still silent: only what changes something is an injected anomaly.
                if part.sum() < 0.7 * np.nanmean(series[row]) * length:
                    continue
                changed = series[row : row + 1].copy()
                changed[0, at : at + length] *= factor
                flags = judge(changed, rule, minimum[:1]).flags[0, at : at + length]
                injected += 1
                found += bool((flags == (1 if factor > 1 else -1)).any())
        print(
            f"  {title}: {len(runs)} alarms in {weeks:.0f} series-weeks as they are ({len(runs) / weeks:.2f} a week); "
            f"injected x5 and x0 of 3 to 5 hours found {found} of {injected}"
        )
    coverage = Coverage()
    agents = next(series for title, series, _ in real_series() if "agents" in title)
    roll(coverage, np.nan_to_num(agents[0, : len(agents[0]) // 24 * 24]).reshape(-1, 24).sum(axis=1), range(10, 26), 5)
    coverage.show("coding agents, 10 to 25 days of history, 5 days")


def run() -> None:
    """Print precision and recall of anomalies, and coverage and error of forecasts."""
    print("quality of anomalies and forecasts; seeds 1 to 40, parameters were chosen on others")
    show("made-up organisations", detect(SEEDS))
    show_simulator()
    print("real traces")
    show_traces()
    show_forecasts()
