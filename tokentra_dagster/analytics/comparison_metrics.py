"""The 14 metrics of a comparison (section 11): each period's figures and how they changed (corrections 7, 18, 35)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import pandas as pd

from tokentra_dagster.analytics.noise import Basis, NoiseParameters, UsualChange
from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.analytics.results import FLAT_BELOW_PCT, camel, percentage, ratio
from tokentra_dagster.analytics.sources import UsageSource, total

ChangeDirection = Literal["increase", "decrease", "stable"]
SignificanceLevel = Literal["low", "medium", "high"]
Where = Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class ComparisonParameters:
    """Section 11's thresholds, in percent, unless said otherwise.

    `low_pct`: a change of this size is significant. `stable_below_pct`: a smaller one has no direction. `error_rate_*`,
    `cache_hit_rate_low_pct` and `model_share_high_pct` are levels of those figures; `latency_increase_pct` is a change;
    `new_item_share_pct` a share of usage, `concentration_points` and `token_over_request_points` differences of percentages.
    `health_factor` and `health_min`: see `comparison.summarize`. `max_items`: how many values a dimension's lists keep.
    """

    low_pct: float = 5.0
    medium_pct: float = 15.0
    high_pct: float = 30.0
    stable_below_pct: float = FLAT_BELOW_PCT
    error_rate_warning_pct: float = 1.0
    error_rate_high_pct: float = 2.0
    error_rate_critical_pct: float = 5.0
    latency_increase_pct: float = 20.0
    cache_hit_rate_low_pct: float = 30.0
    token_over_request_points: float = 20.0
    new_item_share_pct: float = 10.0
    concentration_points: float = 15.0
    model_share_high_pct: float = 80.0
    health_factor: float = 2.0
    health_min: int = 2
    movers: int = 5
    max_items: int = 100
    noise: NoiseParameters = field(default_factory=NoiseParameters)


DEFAULTS = ComparisonParameters()


@dataclass(frozen=True, slots=True)
class Figures:
    """What a period's usage comes to. None is unknown, or a rate of nothing.

    Tokens and requests as counts, `error_rate` and `cache_hit_rate` in percent (of requests, of input tokens), `avg_latency_ms` over
    requests. Days are UTC days with usage, and so is what `tokens_per_day` divides by.
    """

    total_tokens: int | None
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    total_requests: int | None
    error_rate: float | None
    avg_latency_ms: float | None
    tokens_per_request: float | None
    tokens_per_day: float | None
    requests_per_day: float | None
    cache_hit_rate: float | None
    unique_models: int | None
    unique_users: int | None
    active_days: int


METRICS = {camel(figure.name): figure.name for figure in fields(Figures)}
"""The specification's name of each metric, in its order, and ours."""


@dataclass(frozen=True, slots=True)
class MetricComparison:
    """How one metric moved.

    `percentage_change` is None from zero (correction 18) and where a side is unknown; `direction` is None for an unknown side. A
    change from zero counts as high, since it exceeds every percentage. `is_significant` and `significance_level` are the
    specification's, by threshold. Beside them: `is_beyond_noise` says whether the change is larger than this metric's changes usually
    are (None: too little history, as `noise_basis` "thresholds" says), `usual_variation_pct` how large a usual one is, and
    `[usual_low_pct, usual_high_pct]` is what it had to leave. `noise_comparisons`: how many past changes that rests on.
    """

    metric: str
    current_value: float | int | None
    previous_value: float | int | None
    absolute_change: float | int | None
    percentage_change: float | None
    direction: ChangeDirection | None
    is_significant: bool
    significance_level: SignificanceLevel
    is_beyond_noise: bool | None
    usual_change_pct: float | None
    usual_variation_pct: float | None
    usual_low_pct: float | None
    usual_high_pct: float | None
    noise_basis: Basis
    noise_comparisons: int

    @property
    def matters(self) -> bool:
        """Significant by threshold, and not known to be a usual change."""
        return self.is_significant and self.is_beyond_noise is not False


def read_figures(usage: UsageSource, period: Period, where: Where | None = None) -> Figures:
    """A period's figures from sums by day and, for distinct users and models, its summary (correction 7).

    With filters the distinct values come from frames, which can be narrowed by every dimension; a record of several users, whose usage
    cannot be split among them, is then left out of `unique_users`.
    """
    days = usage.frame(period, granularity="day", where=where)
    if where:
        unique: Mapping[str, Any] = {
            f"unique_{name}s": int(usage.frame(period, by=[name], where=where)[name].nunique()) for name in ("model", "user")
        }
    else:
        unique = usage.summary(period)
    return figures_of(days, unique["unique_models"], unique["unique_users"])


def figures_of(days: pd.DataFrame, unique_models: int | None, unique_users: int | None) -> Figures:
    """Figures from a frame with one row per UTC day. Pure.

    Latency is weighted by requests, the cache hit rate is of input tokens (correction 35), and every rate divides by the requests or
    tokens for which its numerator is known. A day counts as active if it has tokens or requests.
    """
    sums = {name: total(days, name) for name in days.columns if name not in ("moment", "estimated_cost")}
    active = int(((days["total_tokens"].fillna(0) > 0) | (days["request_count"].fillna(0) > 0)).sum())
    return Figures(
        total_tokens=sums["total_tokens"],
        input_tokens=sums["input_tokens"],
        output_tokens=sums["output_tokens"],
        cached_tokens=sums["cached_tokens"],
        total_requests=sums["request_count"],
        error_rate=ratio(sums["error_count"], sums["requests_with_errors_known"], 100),
        avg_latency_ms=ratio(sums["total_latency_ms"], sums["latency_request_count"]),
        tokens_per_request=ratio(sums["tokens_with_requests_known"], sums["request_count"]),
        tokens_per_day=ratio(sums["total_tokens"], active),
        requests_per_day=ratio(sums["request_count"], active),
        cache_hit_rate=ratio(sums["cached_tokens"], sums["input_with_cache_known"], 100),
        unique_models=unique_models,
        unique_users=unique_users,
        active_days=active,
    )


def compare_metrics(
    current: Figures,
    previous: Figures,
    usual: Mapping[str, UsualChange] | None = None,
    parameters: ComparisonParameters = DEFAULTS,
) -> tuple[MetricComparison, ...]:
    """All 14 metrics, in the specification's order. `usual`: what is usual by `Figures`' names, where history says. Pure."""
    return tuple(
        _compare(metric, getattr(current, name), getattr(previous, name), (usual or {}).get(name, UsualChange()), parameters)
        for metric, name in METRICS.items()
    )


def _compare(
    metric: str, current: float | None, previous: float | None, usual: UsualChange, parameters: ComparisonParameters
) -> MetricComparison:
    absolute = None if current is None or previous is None else current - previous
    relative = None if absolute is None or previous is None else percentage(absolute, previous)
    size = abs(relative) if relative is not None else float("inf") if absolute else 0.0
    direction: ChangeDirection | None = None
    if absolute is not None:
        direction = "stable" if size < parameters.stable_below_pct else "increase" if absolute > 0 else "decrease"
    level: SignificanceLevel = "high" if size >= parameters.high_pct else "medium" if size >= parameters.medium_pct else "low"
    return MetricComparison(
        metric=metric,
        current_value=current,
        previous_value=previous,
        absolute_change=absolute,
        percentage_change=relative,
        direction=direction,
        is_significant=size >= parameters.low_pct,
        significance_level=level,
        is_beyond_noise=usual.is_beyond(current, previous),
        usual_change_pct=usual.change_pct,
        usual_variation_pct=usual.variation_pct,
        usual_low_pct=usual.low_pct,
        usual_high_pct=usual.high_pct,
        noise_basis=usual.basis,
        noise_comparisons=usual.comparisons,
    )
