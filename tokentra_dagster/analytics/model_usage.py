"""Model usage (section 5): each model's totals, days, share and trend.

Differs from the specification by corrections 18, 44, 45 and 47: a model has one entry per date with gaps filled, and its trend halves
those dates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd

from tokentra_dagster.analytics.buckets import Trend, filled, trend_of
from tokentra_dagster.analytics.periods import DAY, Period
from tokentra_dagster.analytics.results import MetricRow, ratio
from tokentra_dagster.analytics.sources import COST, UsageSource

UNKNOWN_MODEL = "unknown"
SUMS = ("total_tokens", "input_tokens", "output_tokens", "request_count", "error_count", "unpriced_tokens")


@dataclass(frozen=True, slots=True)
class ModelUsageParameters:
    """The specification's threshold: a change below it is stable."""

    stable_below_pct: float = 10.0


@dataclass(frozen=True, slots=True)
class Dates:
    """The UTC dates that a period touches, `[start_date, end_date)`."""

    start_date: date
    end_date: date

    @classmethod
    def of(cls, period: Period) -> Dates:
        return cls(period.start.date(), (period.end - datetime.resolution).date() + DAY)


@dataclass(frozen=True, slots=True)
class DailyUsage:
    """A UTC date's tokens; None where the model was used and nothing says how much."""

    date: date
    tokens: int | None


@dataclass(frozen=True, slots=True)
class ModelStats:
    """A model over the period. Counts are None where unknown; `estimated_cost` (`Decimal`, the organisation's currency) where nothing
    is priced, and `unpriced_tokens` says what it leaves out. `provider` and `model_family`: those with most of its tokens;
    `providers`: all that serve it. `daily_usage`: every date from the later of the period's start and the organisation's first usage.
    """

    model: str
    provider: str | None
    model_family: str | None
    total_tokens: int | None
    input_tokens: int | None
    output_tokens: int | None
    request_count: int | None
    error_count: int | None
    estimated_cost: Decimal | None
    first_used: date
    last_used: date
    daily_usage: tuple[DailyUsage, ...]
    unpriced_tokens: int | None
    providers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelShare:
    """Percent of all tokens; None without any."""

    model: str
    percentage: float | None


@dataclass(frozen=True, slots=True)
class ModelTrend:
    """The average date of the second half against the first; a change from zero has no percentage (correction 18)."""

    model: str
    trend: Trend
    change_percentage: float | None


@dataclass(frozen=True, slots=True)
class ModelUsageAnalysis:
    """Section 5. `models`, `distribution` and `trends` are in the same order: most tokens first, unknown last, then by name."""

    period: Dates
    models: tuple[ModelStats, ...]
    distribution: tuple[ModelShare, ...]
    trends: tuple[ModelTrend, ...]
    total_models_used: int
    primary_model: str | None


def analyze_model_usage(
    usage: UsageSource, period: Period, parameters: ModelUsageParameters = ModelUsageParameters()
) -> ModelUsageAnalysis:
    """One read, by model and day."""
    frame = usage.frame(period, by=("provider", "model", "model_family"), granularity="day")
    days = filled(frame.drop_duplicates("moment"), period, usage.first_usage(), "day")[["moment", "share"]]
    return model_usage(frame, days, period, parameters)


def model_usage(frame: pd.DataFrame, days: pd.DataFrame, period: Period, parameters: ModelUsageParameters) -> ModelUsageAnalysis:
    """`frame`: by provider, model, model family and day. `days`: every `moment` without a gap, with its `share` in the period."""
    rows = frame.assign(model=frame["model"].where(frame["model"].notna(), UNKNOWN_MODEL))
    codes, names = pd.factorize(rows["model"], sort=True)
    by_date = _by_date(rows, codes, len(names), days)
    stats = list(_stats(rows, codes, names, by_date))
    order = sorted(
        range(len(stats)), key=lambda place: (stats[place].total_tokens is None, -(stats[place].total_tokens or 0), place)
    )
    models = tuple(stats[place] for place in order)
    everything = sum(model.total_tokens or 0 for model in models)
    first, second = by_date.half_means(days["share"].to_numpy(dtype=float))
    trends = [trend_of(one, other, parameters.stable_below_pct) for one, other in zip(first, second, strict=True)]
    return ModelUsageAnalysis(
        period=Dates.of(period),
        models=models,
        distribution=tuple(ModelShare(model.model, ratio(model.total_tokens, everything, 100)) for model in models),
        trends=tuple(ModelTrend(names[place], *trends[place]) for place in order),
        total_models_used=len(models),
        primary_model=models[0].model if models else None,
    )


@dataclass(frozen=True, slots=True)
class _ByDate:
    """Arrays of models by dates: tokens, whether the model was used, whether anything of that says how much."""

    dates: tuple[date, ...]
    tokens: np.ndarray[Any, np.dtype[np.int64]]
    used: np.ndarray[Any, np.dtype[np.bool_]]
    known: np.ndarray[Any, np.dtype[np.bool_]]

    def daily_usage(self, model: int) -> tuple[DailyUsage, ...]:
        unknown = self.used[model] & ~self.known[model]
        tokens: list[int | None] = self.tokens[model].tolist()
        for place in np.flatnonzero(unknown):
            tokens[place] = None
        return tuple(map(DailyUsage, self.dates, tokens))

    def used_between(self, model: int) -> tuple[date, date]:
        places = np.flatnonzero(self.used[model])
        return self.dates[places[0]], self.dates[places[-1]]

    def half_means(self, share: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[list[float | None], list[float | None]]:
        """Average per date of each half, as `buckets.split_means` for one series."""
        middle = len(self.dates) // 2
        first, second = (self._means(half, share[half]) for half in (slice(None, middle), slice(middle, None)))
        return first, second

    def _means(self, half: slice, share: np.ndarray[Any, np.dtype[np.float64]]) -> list[float | None]:
        tokens, used, known = self.tokens[:, half], self.used[:, half], self.known[:, half]
        if not tokens.shape[1]:
            return [None] * len(tokens)
        weights = np.where(used & ~known, 0.0, share).sum(axis=1).clip(min=1.0)
        unknown = np.logical_and(used.any(axis=1), ~known.any(axis=1))
        return [
            None if hidden else mean
            for mean, hidden in zip((tokens.sum(axis=1) / weights).tolist(), unknown.tolist(), strict=True)
        ]


def _by_date(rows: pd.DataFrame, codes: np.ndarray[Any, Any], models: int, days: pd.DataFrame) -> _ByDate:
    places = pd.DatetimeIndex(days["moment"]).get_indexer(pd.DatetimeIndex(rows["moment"]))
    known_rows = rows["total_tokens"].notna().to_numpy(dtype=bool)
    shape = (models, len(days))
    tokens, used, known = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    used[codes, places] = True
    known[codes[known_rows], places[known_rows]] = True
    np.add.at(tokens, (codes[known_rows], places[known_rows]), rows["total_tokens"][known_rows].to_numpy(dtype=np.int64))
    return _ByDate(tuple(moment.date() for moment in days["moment"]), tokens, used, known)


def _stats(rows: pd.DataFrame, codes: np.ndarray[Any, Any], names: pd.Index, by_date: _ByDate) -> Iterator[ModelStats]:
    """One per model, in the order of `names`."""
    sums = rows.groupby(codes)[list(SUMS)].sum(min_count=1).astype(object)
    counts = sums.where(sums.notna(), None).to_dict("list")
    providers, families, costs = _values(rows, "provider"), _values(rows, "model_family"), _costs(rows)
    for place, model in enumerate(names):
        first_used, last_used = by_date.used_between(place)
        yield ModelStats(
            model=model,
            provider=next(iter(providers.get(model, ())), None),
            model_family=next(iter(families.get(model, ())), None),
            **{name: counts[name][place] for name in SUMS},
            estimated_cost=costs.get(model),
            first_used=first_used,
            last_used=last_used,
            daily_usage=by_date.daily_usage(place),
            providers=tuple(providers.get(model, ())),
        )


def _values(rows: pd.DataFrame, column: str) -> dict[str, list[str]]:
    """A column's known values for each model, most tokens first, then by name."""
    sums = rows.groupby(["model", column], sort=True)["total_tokens"].sum().sort_values(ascending=False, kind="stable")
    found: dict[str, list[str]] = {}
    for model, value in sums.index:
        found.setdefault(model, []).append(value)
    return found


def _costs(rows: pd.DataFrame) -> dict[str, Decimal]:
    """Money for each model of which anything is priced."""
    found: dict[str, Decimal] = {}
    for model, cost in zip(rows["model"], rows[COST], strict=True):
        if cost is not None:
            found[model] = found.get(model, Decimal(0)) + cost
    return found


def metric_rows(result: ModelUsageAnalysis) -> list[MetricRow]:
    """Dimension `model`. The days themselves are in the rollups and not repeated here."""
    return list(_metric_rows(result))


def _metric_rows(result: ModelUsageAnalysis) -> Iterator[MetricRow]:
    yield MetricRow("total_models_used", result.total_models_used)
    for model, share, trend in zip(result.models, result.distribution, result.trends, strict=True):
        for name in SUMS:
            yield MetricRow(name, getattr(model, name), "model", model.model)
        yield MetricRow("estimated_cost", model.estimated_cost, "model", model.model)
        yield MetricRow("token_share_pct", share.percentage, "model", model.model)
        yield MetricRow("token_change_pct", trend.change_percentage, "model", model.model)
