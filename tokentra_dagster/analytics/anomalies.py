"""Anomalies of tokens, requests, cost and errors, by hour and by day, of the organisation and of its models, features and API keys.

Not in the specification. How a bucket is judged says `anomaly_detection`; what an anomaly is explained by, `anomaly_explanation`. Here
buckets out of their band become anomalies with a beginning and an end, each reported once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np
import numpy.typing as npt

from tokentra_dagster.analytics.anomaly_detection import DAILY, HOURLY, Judgement, Rule, first_known, judge
from tokentra_dagster.analytics.anomaly_explanation import explain
from tokentra_dagster.analytics.anomaly_results import (
    Anomaly,
    AnomalyBucket,
    AnomalyReport,
    NotJudged,
    amount,
    insight_rows,
    metric_rows,
)  # fmt: skip
from tokentra_dagster.analytics.periods import DAY, WIDTHS, Granularity, Period, floor
from tokentra_dagster.analytics.results import Severity
from tokentra_dagster.analytics.sources import UsageSource
from tokentra_dagster.analytics.usage_series import (
    MEASURES,
    Measure,
    SeriesName,
    SeriesTable,
    complete_until,
    read_series,
    request_sizes,
    watch,
)

__all__ = ["AnomalyParameters", "analyze_anomalies", "insight_rows", "metric_rows"]


@dataclass(frozen=True, slots=True)
class AnomalyParameters:
    """What is watched, and how large a deviation must be. The minimum amounts are per hour; a day must deviate by `daily_minimum`
    times as much."""

    dimensions: tuple[str, ...] = ("model", "feature", "api_key")
    measures: tuple[Measure, ...] = MEASURES
    top: int = 50
    history_days: int = 63
    hourly: Rule = HOURLY
    daily: Rule = DAILY
    minimum_tokens: float = 50_000
    minimum_requests: float = 30
    minimum_cost: float = 1.0
    minimum_errors: float = 15
    daily_minimum: float = 4.0
    settling: timedelta = timedelta(hours=3)
    """Providers report late, which looks like a drop: a drop counts only this long after its bucket's end."""
    warning_share: float = 0.1
    critical_share: float = 0.4
    """Of the organisation's expectation over the same time (for errors: of its requests)."""
    explained: int = 40
    """So many anomalies, those with the largest impact, are explained."""

    def minimum(self, measure: Measure, granularity: Granularity) -> float:
        amount = {
            "tokens": self.minimum_tokens, "requests": self.minimum_requests, "cost": self.minimum_cost, "errors": self.minimum_errors,
        }[measure]  # fmt: skip
        return amount * (self.daily_minimum if granularity == "day" else 1.0)

    def rule(self, granularity: Granularity) -> Rule:
        return self.daily if granularity == "day" else self.hourly


@dataclass(frozen=True, slots=True)
class _Run:
    """Buckets of one series out of their band in one direction."""

    row: int
    first: int
    last: int
    sign: int
    buckets: npt.NDArray[np.int64]
    level_shift: bool


def analyze_anomalies(
    usage: UsageSource, period: Period, known_until: datetime, parameters: AnomalyParameters = AnomalyParameters()
) -> AnomalyReport:
    """Anomalies that overlap the period. `known_until`: usage after this moment is not complete yet (usually now, less what the
    connections lag); the hour and the day that hold it are not judged."""
    until = min(floor(period.end, "hour"), complete_until(known_until))
    first = usage.first_usage()
    if first is None or until <= max(period.start, first):
        return AnomalyReport(
            period, known_until, usage.currency, (), (), (), 0, "There is no complete hour of usage in the period."
        )
    start = floor(max(period.start - parameters.history_days * DAY, first), "day")
    history = Period(start, until)
    watched = tuple(watch(usage, history, dimension, parameters.top) for dimension in parameters.dimensions)
    anomalies: list[Anomaly] = []
    not_judged: list[NotJudged] = []
    recurring = 0
    for granularity in ("hour", "day"):
        end = floor(until, granularity)
        if end <= start:
            continue
        table = read_series(usage, Period(start, end), granularity, watched)
        found, known, again = _found(table, period, known_until, parameters)
        if granularity == "day":
            found = [anomaly for anomaly in found if not _covered(anomaly, anomalies)]
        anomalies += found
        not_judged += known
        recurring += again
    anomalies.sort(key=_importance)
    explained = [
        _explained(usage, anomaly, start) if place < parameters.explained else anomaly for place, anomaly in enumerate(anomalies)
    ]
    named = _named(usage, explained)
    return AnomalyReport(period, known_until, usage.currency, named, watched, tuple(not_judged), recurring)


def _found(
    table: SeriesTable, period: Period, known_until: datetime, parameters: AnomalyParameters
) -> tuple[list[Anomaly], list[NotJudged], int]:
    rule = parameters.rule(table.granularity)
    width = WIDTHS[table.granularity]
    settled = int((known_until - parameters.settling - table.period.start) / width)
    anomalies: list[Anomaly] = []
    recurring = 0
    for measure in parameters.measures:
        values = table.values[measure]
        minimum = np.full(len(values), parameters.minimum(measure, table.granularity))
        judged = judge(values, rule, minimum, request_sizes(table, measure, 4 * rule.season))
        judged.flags[:, max(settled, 0) :][judged.flags[:, max(settled, 0) :] < 0] = 0
        if measure == "errors":
            # Fewer errors are no anomaly that anybody wants to hear of.
            judged.flags[judged.flags < 0] = 0
        for run in find_runs(judged, rule):
            begin, end = table.moment(run.first), table.moment(run.last + 1)
            if begin >= period.end or end <= period.start:
                continue
            if is_recurring(judged.flags[run.row], run.buckets, rule):
                recurring += 1
                continue
            anomalies.append(_anomaly(table, measure, judged, run, parameters))
    return anomalies, _not_judged(table, rule, period), recurring


def find_runs(judged: Judgement, rule: Rule) -> Iterator[_Run]:
    """Runs of flagged buckets; two with a short gap between them are one."""
    for row in np.flatnonzero(judged.flags.any(axis=1)):
        flagged = np.flatnonzero(judged.flags[row])
        signs, numbers = judged.flags[row, flagged], judged.runs[row, flagged]
        shifted = judged.shifts[row, numbers]
        # What is out of the band after a new level was taken is another anomaly.
        same = (numbers[1:] == numbers[:-1]) | ((np.diff(flagged) <= rule.gap + 1) & ~shifted[:-1])
        breaks = np.flatnonzero(~(same & (signs[1:] == signs[:-1]))) + 1
        for buckets in np.split(flagged, breaks):
            yield _Run(
                int(row),
                int(buckets[0]),
                int(buckets[-1]),
                int(judged.flags[row, buckets[0]]),
                buckets,
                bool(judged.shifts[row, judged.runs[row, buckets]].any()),
            )


def is_recurring(flags: npt.NDArray[np.int8], buckets: npt.NDArray[np.int64], rule: Rule) -> bool:
    """Whether most of a run's buckets had the same deviation at the rule's distances before."""
    known = np.zeros(len(buckets), bool)
    for group in rule.recurrence:
        each = np.ones(len(buckets), bool)
        for distance in group:
            before = buckets - distance
            each &= (before >= 0) & (flags[np.maximum(before, 0)] == flags[buckets])
        known |= each
    return bool(known.mean() > 0.5)


def _anomaly(table: SeriesTable, measure: Measure, judged: Judgement, run: _Run, parameters: AnomalyParameters) -> Anomaly:
    values, at = table.values[measure][run.row], np.arange(run.first, run.last + 1)
    at = at[~np.isnan(values[at])]
    actual, expected = float(values[at].sum()), float(judged.expected[run.row, at].sum())
    name, score = table.names[run.row], float(np.abs(judged.score[run.row, run.buckets]).max())
    whole = table.values["requests"][0, at] if measure == "errors" else judged.expected[0, at]
    of = float(np.nansum(whole))
    impact = abs(actual - expected) / of if of > 0 else None
    buckets = tuple(
        AnomalyBucket(
            table.moment(int(place)), amount(measure, values[place]), amount(measure, judged.expected[run.row, place]),
            amount(measure, judged.lower[run.row, place]), amount(measure, judged.upper[run.row, place]),
        )
        for place in at
    )  # fmt: skip
    return Anomaly(
        measure, name.dimension, name.value, table.granularity, table.moment(run.first), table.moment(run.last + 1),
        "spike" if run.sign > 0 else "drop", run.level_shift, run.last == values.shape[0] - 1, _severity(impact, parameters),
        round(score, 2), amount(measure, actual), amount(measure, expected), amount(measure, actual - expected), impact, buckets,
    )  # fmt: skip


def _severity(impact: float | None, parameters: AnomalyParameters) -> Severity:
    if impact is None or impact < parameters.warning_share:
        return "info"
    return "critical" if impact >= parameters.critical_share else "warning"


def _importance(anomaly: Anomaly) -> tuple[bool, float, float, datetime, str, str, str]:
    """The organisation first, then by impact; the rest only makes the order certain."""
    return (
        anomaly.dimension is not None, -(anomaly.impact_share or 0.0), -anomaly.score, anomaly.start,
        anomaly.measure, anomaly.dimension or "", anomaly.dimension_value or "",
    )  # fmt: skip


def _covered(daily: Anomaly, hourly: list[Anomaly]) -> bool:
    """Whether anomalous hours of the same series and direction already tell at least half of what an anomalous day does."""
    told = sum(
        float(bucket.actual) - float(bucket.expected)
        for one in hourly
        if (one.measure, one.dimension, one.dimension_value, one.direction)
        == (daily.measure, daily.dimension, daily.dimension_value, daily.direction)
        for bucket in one.buckets
        if daily.start <= bucket.moment < daily.end
    )
    # A level that shifted within hours is also out of the daily band until that has followed.
    shifted = any(
        one.level_shift and one.start < daily.end and one.end > daily.start - 7 * DAY
        for one in hourly
        if (one.measure, one.dimension, one.dimension_value, one.direction)
        == (daily.measure, daily.dimension, daily.dimension_value, daily.direction)
    )
    return shifted or told / float(daily.difference) >= 0.5


def _not_judged(table: SeriesTable, rule: Rule, period: Period) -> list[NotJudged]:
    """Watched series whose minimum history is not reached before the period's end."""
    any_known = np.where(np.isnan(table.values["tokens"]), table.values["requests"], table.values["tokens"])
    first = first_known(any_known)
    missing = []
    for name, begin in zip(table.names, first, strict=True):
        if begin + rule.minimum_seasons * rule.season >= any_known.shape[1]:
            reason = f"{rule.minimum_seasons} whole weeks of usage are needed before a {table.granularity} can be judged"
            missing.append(NotJudged(name.dimension, name.value, table.granularity, reason))
    return missing


def _explained(usage: UsageSource, anomaly: Anomaly, since: datetime) -> Anomaly:
    window = Period(anomaly.start, anomaly.end)
    series = SeriesName(anomaly.dimension, anomaly.dimension_value)
    found = explain(usage, series, anomaly.measure, window, float(anomaly.expected), since)
    return replace(anomaly, contributions=found)


def _named(usage: UsageSource, anomalies: Sequence[Anomaly]) -> tuple[Anomaly, ...]:
    """With the names of teams, projects and keys that have one."""
    used = {one.dimension for one in anomalies} | {part.dimension for one in anomalies for part in one.contributions}
    labels = {dimension: usage.labels(dimension) for dimension in used if dimension is not None}

    def label(dimension: str | None, value: str | None) -> str | None:
        return labels[dimension].get(value) if dimension is not None and value is not None else None

    return tuple(
        replace(
            one,
            dimension_label=label(one.dimension, one.dimension_value),
            contributions=tuple(replace(part, label=label(part.dimension, part.value)) for part in one.contributions),
        )
        for one in anomalies
    )
