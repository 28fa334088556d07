"""What an anomaly analysis answers: anomalies, what was not judged, and their rows for `analytics.metrics` and `analytics.insights`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal

from tokentra_dagster.analytics.anomaly_explanation import Contribution
from tokentra_dagster.analytics.periods import Granularity, Period
from tokentra_dagster.analytics.results import InsightRow, MetricRow, Severity
from tokentra_dagster.analytics.usage_series import Measure, Watched

AnomalyDirection = Literal["spike", "drop"]
Amount = float | Decimal


@dataclass(frozen=True, slots=True)
class AnomalyBucket:
    """One hour or day of an anomaly (quiet ones between its first and last included), in the anomaly's measure. Usage from `lower` to `upper` would have been nothing unusual."""

    moment: datetime
    actual: Amount
    expected: Amount
    lower: Amount
    upper: Amount


@dataclass(frozen=True, slots=True)
class Anomaly:
    """One deviation over `[start, end)`. Amounts are of its buckets together: tokens, requests, errors, or money as Decimal (computed
    in floats, rounded to 6 places).

    `dimension` None: the whole organisation; `dimension_value` None with a dimension: usage without a value. `score`: how many robust
    spreads the furthest bucket is away. `level_shift`: it lasted and is the new level, which later hours are judged by. `ongoing`: its
    last bucket is the last one known. `impact_share`: the difference as a part of what the organisation was expected to use in that
    time (errors: of its requests), None where that is nothing.
    """

    measure: Measure
    dimension: str | None
    dimension_value: str | None
    granularity: Granularity
    start: datetime
    end: datetime
    direction: AnomalyDirection
    level_shift: bool
    ongoing: bool
    severity: Severity
    score: float
    actual: Amount
    expected: Amount
    difference: Amount
    impact_share: float | None
    buckets: tuple[AnomalyBucket, ...]
    contributions: tuple[Contribution, ...] = ()
    dimension_label: str | None = None
    """The value's name, where it has one."""


@dataclass(frozen=True, slots=True)
class NotJudged:
    """A watched series without enough history in the period, and why."""

    dimension: str | None
    dimension_value: str | None
    granularity: Granularity
    reason: str


@dataclass(frozen=True, slots=True)
class AnomalyReport:
    """What was found in `[period.start, known_until)`; `recurring`: deviations left out because the same was found before."""

    period: Period
    known_until: datetime
    currency: str
    anomalies: tuple[Anomaly, ...]
    watched: tuple[Watched, ...]
    not_judged: tuple[NotJudged, ...]
    recurring: int
    note: str | None = None


def amount(measure: Measure, value: float) -> Amount:
    """Money as Decimal with 6 places, everything else as it is."""
    return Decimal(f"{value:.6f}") if measure == "cost" else float(value)


def metric_rows(report: AnomalyReport) -> list[MetricRow]:
    """How many anomalies there are per severity, and each one's difference by measure, series and beginning (`anomaly_tokens`)."""
    counted: Counter[str] = Counter(anomaly.severity for anomaly in report.anomalies)
    rows = [MetricRow("anomalies", len(report.anomalies))]
    rows += [MetricRow("anomalies", counted[severity], "severity", severity) for severity in ("critical", "warning", "info")]
    rows += [
        MetricRow(f"anomaly_{one.measure}", one.difference, one.dimension, one.dimension_value, one.start)
        for one in report.anomalies
    ]
    return rows


def insight_rows(report: AnomalyReport) -> list[InsightRow]:
    """One line per event, told with the most important of its anomalies."""
    return [_insight(event[0], event[1:], report.currency) for event in group_events(report.anomalies)]


def group_events(anomalies: Sequence[Anomaly]) -> list[list[Anomaly]]:
    """Anomalies of the same time and direction are one event; the most important comes first, as in `anomalies`."""
    events: list[list[Anomaly]] = []
    for anomaly in anomalies:
        event = next((event for event in events if _same_event(event[0], anomaly)), None)
        if event is None:
            events.append([anomaly])
        else:
            event.append(anomaly)
    return events


def _same_event(one: Anomaly, other: Anomaly) -> bool:
    if one.direction != other.direction or (one.measure == "errors") != (other.measure == "errors"):
        return False
    together = min(one.end, other.end) - max(one.start, other.start)
    return together * 2 >= min(one.end - one.start, other.end - other.start)


def _insight(anomaly: Anomaly, others: Sequence[Anomaly], currency: str) -> InsightRow:
    actual, expected = float(anomaly.actual), float(anomaly.expected)
    unit = currency if anomaly.measure == "cost" else anomaly.measure
    digits = 2 if anomaly.measure == "cost" else 0
    if anomaly.direction == "drop":
        how = f"fell to {actual / expected:.0%} of what was expected"
    elif expected > 0 and actual / expected < 1000:
        how = f"rose to {actual / expected:.1f} times what was expected"
    else:
        how = "rose from next to nothing"
    sentences = [
        f"{actual:,.{digits}f} {unit} from {anomaly.start:%Y-%m-%d %H:%M} to {anomaly.end:%Y-%m-%d %H:%M} UTC, where "
        f"{expected:,.{digits}f} were expected from the same hours of past weeks and the recent level."
    ]
    if anomaly.level_shift:
        sentences.append("It lasted, and is taken for the new level from then on.")
    if anomaly.contributions:
        sentences.append(_cause(anomaly.contributions[0]))
    also = list(dict.fromkeys(_name(one) for one in others))
    if own := [name for name in also if name != _name(anomaly)]:
        more = f" and {len(own) - 5} more" if len(own) > 5 else ""
        sentences.append(f"At the same time: {', '.join(own[:5])}{more}.")
    return InsightRow(
        "anomaly", anomaly.severity, f"{anomaly.measure.capitalize()} of {_name(anomaly)} {how}",
        " ".join(sentences), anomaly.measure, anomaly.dimension, anomaly.dimension_value,
        round(actual - expected) if anomaly.measure == "tokens" else None,
        None if anomaly.impact_share is None else anomaly.impact_share * 100,
        anomaly.start, anomaly.end, anomaly.direction,
    )  # fmt: skip


def _cause(first: Contribution) -> str:
    if first.surprise < 0.1:
        return "No single key, feature, project, team or model stands out."
    usual = "was not used in these hours before" if not first.usual_share else f"usually has {first.usual_share:.0%} of the usage"
    name = _series(first.dimension, first.label or first.value)
    return f"{name[0].upper()}{name[1:]} made {first.share:.0%} of the difference and {usual}."


def _name(anomaly: Anomaly) -> str:
    return _series(anomaly.dimension, anomaly.dimension_label or anomaly.dimension_value)


def _series(dimension: str | None, value: str | None) -> str:
    if dimension is None:
        return "the organization"
    name = "API key" if dimension == "api_key" else dimension.replace("_", " ")
    return f"usage without {name}" if value is None else f"{name} {value}"
