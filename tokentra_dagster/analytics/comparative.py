"""A breakdown of two periods side by side: what grew, fell, came and went (specification 6; corrections 18, 20, 23)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import pandas as pd

from tokentra_dagster.analytics.breakdowns import UsageBreakdownItem, items_of, ranked, require_limit
from tokentra_dagster.analytics.dimensions import conditions, dimension_name
from tokentra_dagster.analytics.frames import known
from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.analytics.results import MetricRow, camel, percentage
from tokentra_dagster.analytics.sources import UsageSource, total


@dataclass(frozen=True, slots=True)
class PeriodBounds:
    """`[start, end)` under the names that this result has."""

    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class ComparisonItem:
    """One value in both periods; None on a side where it has no usage. `token_change_percent` is None for what is new
    (correction 18), `request_change` where requests are not known."""

    dimension_value: str
    current: UsageBreakdownItem | None
    previous: UsageBreakdownItem | None
    token_change: int
    token_change_percent: float | None
    request_change: int | None
    is_new: bool
    is_churned: bool


@dataclass(frozen=True, slots=True)
class ComparativeSummary:
    """Over all values, whatever the limit. `growth_percent` is None from zero."""

    total_growth: int
    growth_percent: float | None
    new_items: int
    churned_items: int


@dataclass(frozen=True, slots=True)
class ComparativeBreakdown:
    """`comparisons`: the largest changes of tokens first. `other_count`: values beyond the limit, None where there are none."""

    dimension: str
    current_period: PeriodBounds
    previous_period: PeriodBounds
    comparisons: tuple[ComparisonItem, ...]
    summary: ComparativeSummary
    other_count: int | None


def comparative_breakdown(
    usage: UsageSource,
    period: Period,
    previous: Period | None = None,
    dimension: str = "model",
    limit: int | None = 10,
    where: Mapping[str, str | None] | None = None,
) -> ComparativeBreakdown:
    """Compares all values of two periods, then shows the `limit` largest changes (correction 23). Without `previous` it is the
    preceding period of the same length. Raises `UsageError` for an unknown dimension or a limit below 1."""
    name, narrowed = dimension_name(dimension), conditions(where)
    before = previous or period.before("previous")
    now, then = (usage.frame(each, (name,), where=narrowed) for each in (period, before))
    return comparative_of(now, then, period, before, name, usage.labels(name), limit)


def comparative_of(
    current: pd.DataFrame,
    previous: pd.DataFrame,
    period: Period,
    before: Period,
    dimension: str,
    labels: Mapping[str, str],
    limit: int | None = None,
) -> ComparativeBreakdown:
    """The comparison of two frames of one row per value."""
    require_limit(limit)
    now, then = ranked(current, dimension), ranked(previous, dimension)
    pairs = compared(now, then, dimension)
    shown = pairs if limit is None else pairs.iloc[:limit]
    tokens_now, tokens_then = total(now, "total_tokens"), total(then, "total_tokens")
    items = [
        {item.dimension_value: item for item in items_of(side[side[dimension].isin(shown[dimension])], dimension, labels, of)}
        for side, of in ((now, tokens_now), (then, tokens_then))
    ]
    rows = zip(*(known(shown, name) for name in (dimension, "change", "before", "request_change", "side")), strict=True)
    comparisons = tuple(
        ComparisonItem(
            value, items[0].get(value), items[1].get(value), moved, percentage(moved, was), requests,
            is_new=side == "left_only", is_churned=side == "right_only",
        )
        for value, moved, was, requests, side in rows
    )  # fmt: skip
    growth = (tokens_now or 0) - (tokens_then or 0)
    summary = ComparativeSummary(
        growth, percentage(growth, tokens_then or 0), int((pairs["side"] == "left_only").sum()), int((pairs["side"] == "right_only").sum())
    )  # fmt: skip
    return ComparativeBreakdown(
        camel(dimension), PeriodBounds(period.start, period.end), PeriodBounds(before.start, before.end), comparisons, summary,
        len(pairs) - len(shown) or None,
    )  # fmt: skip


def compared(now: pd.DataFrame, then: pd.DataFrame, dimension: str) -> pd.DataFrame:
    """Every value of either `ranked` frame with its changes, largest change of tokens first. Absent is zero, unknown stays so."""
    columns = [dimension, "total_tokens", "request_count"]
    pairs = now[columns].merge(then[columns], how="outer", on=dimension, suffixes=("_now", "_then"), indicator="side")
    for here, absent in (("now", "right_only"), ("then", "left_only")):
        pairs[f"request_count_{here}"] = pairs[f"request_count_{here}"].mask(pairs["side"] == absent, 0)
        pairs[f"total_tokens_{here}"] = pairs[f"total_tokens_{here}"].fillna(0)
    pairs["before"] = pairs["total_tokens_then"]
    pairs["change"] = pairs["total_tokens_now"] - pairs["before"]
    pairs["request_change"] = pairs["request_count_now"] - pairs["request_count_then"]
    pairs["size"] = pairs["change"].abs()
    return pairs.sort_values(["size", dimension], ascending=[False, True], kind="stable", ignore_index=True)


def metric_rows(result: ComparativeBreakdown) -> list[MetricRow]:
    """The changes of each value shown, and of everything."""
    dimension = dimension_name(result.dimension)
    rows = [
        MetricRow("token_change", result.summary.total_growth),
        MetricRow("token_change_pct", result.summary.growth_percent),
        MetricRow("new_values", result.summary.new_items, dimension),
        MetricRow("churned_values", result.summary.churned_items, dimension),
    ]
    for item in result.comparisons:
        rows += [
            MetricRow("token_change", item.token_change, dimension, item.dimension_value),
            MetricRow("token_change_pct", item.token_change_percent, dimension, item.dimension_value),
            MetricRow("request_change", item.request_change, dimension, item.dimension_value),
        ]
    return rows
