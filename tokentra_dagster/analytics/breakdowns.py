"""Usage by the values of a dimension, at any depth (specification 3, 4 and 6; corrections 14, 15, 24)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

import pandas as pd

from tokentra_dagster.analytics.dimensions import OTHER, UNKNOWN, conditions, dimension_name
from tokentra_dagster.analytics.frames import average_latency, known
from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.analytics.results import FLAT_BELOW_PCT, MetricRow, camel, percentage, ratio
from tokentra_dagster.analytics.sources import COST, COUNTS, UsageSource, total, total_cost
from tokentra_dagster.errors import UsageError

ItemTrend = Literal["up", "down", "stable"]
MEASURES = ("total_tokens", "input_tokens", "output_tokens", "request_count", "error_count", COST, "unpriced_tokens")


@dataclass(frozen=True, slots=True)
class BreakdownParameters:
    """`stable_below_pct`: a value whose tokens moved by less, up or down, is stable."""

    stable_below_pct: float = FLAT_BELOW_PCT


DEFAULTS = BreakdownParameters()


@dataclass(frozen=True, slots=True)
class UsageBreakdownItem:
    """One value. `dimension_value` is an identifier, `dimension_label` its name where it has one, else the value.

    `percentage`: of all tokens, None without any. `trend`: against the preceding period of the same length, None where that was
    not asked for or lies before the first usage. Unknown is None; `unpriced_tokens` are not in `estimated_cost`.
    """

    dimension_value: str
    dimension_label: str
    total_tokens: int | None
    input_tokens: int | None
    output_tokens: int | None
    request_count: int | None
    error_count: int | None
    avg_latency_ms: int | None
    estimated_cost: Decimal | None
    percentage: float | None
    trend: ItemTrend | None
    unpriced_tokens: int | None
    is_other: bool
    is_unknown: bool


@dataclass(frozen=True, slots=True)
class BreakdownTotal:
    """Over all values, whatever the limit (correction 15)."""

    tokens: int | None
    requests: int | None
    cost: Decimal | None
    unpriced_tokens: int | None


@dataclass(frozen=True, slots=True)
class UsageBreakdown:
    """`items`: the values with most tokens, then one `Other` for the rest; they add up to `total`. Usage without a value is
    `Unknown`. `other_count`: values in `Other`, None where there is none. `dimension`: the specification's spelling."""

    dimension: str
    items: tuple[UsageBreakdownItem, ...]
    total: BreakdownTotal
    other_count: int | None


@dataclass(frozen=True, slots=True)
class DrilldownStep:
    dimension: str
    value: str


@dataclass(frozen=True, slots=True)
class DrilldownBreakdown:
    """A breakdown by `secondary_dimension` of what is on `path`; `primary_dimension` and `primary_value` are its first step."""

    path: tuple[DrilldownStep, ...]
    primary_dimension: str
    primary_value: str
    secondary_dimension: str
    items: tuple[UsageBreakdownItem, ...]
    total: BreakdownTotal
    other_count: int | None


def usage_breakdown(
    usage: UsageSource,
    period: Period,
    dimension: str,
    limit: int | None = 10,
    where: Mapping[str, str | None] | None = None,
    trend: bool = False,
    parameters: BreakdownParameters = DEFAULTS,
) -> UsageBreakdown:
    """Usage by a dimension in either spelling. `limit` None shows all values; `trend` compares each with the preceding period.

    Raises `UsageError` for an unknown dimension or a limit below 1.
    """
    name, narrowed = dimension_name(dimension), conditions(where)
    frame = usage.frame(period, (name,), where=narrowed)
    preceding = None
    if trend and (first := usage.first_usage()) is not None and first < period.start:
        preceding = usage.frame(period.before("previous"), (name,), where=narrowed)
    return breakdown_of(frame, name, usage.labels(name), limit, preceding, parameters)


def drilldown(
    usage: UsageSource, period: Period, path: Mapping[str, str | None], dimension: str, limit: int | None = None
) -> DrilldownBreakdown:
    """What is below a path of values, e.g. `{"model": "gpt-4o", "team": "..."}` by `feature`; aggregated where it is stored
    (correction 24). A value of None, or Unknown, is usage without one. Raises `UsageError` as `usage_breakdown`, and without a path.
    """
    narrowed, name = conditions(path), dimension_name(dimension)
    if not narrowed:
        raise UsageError("The path of the drilldown is empty; give at least one dimension and value, or ask for a breakdown.")
    found = breakdown_of(usage.frame(period, (name,), where=narrowed), name, usage.labels(name), limit)
    steps = tuple(DrilldownStep(camel(step), value or UNKNOWN) for step, value in narrowed.items())
    return DrilldownBreakdown(
        steps, steps[0].dimension, steps[0].value, found.dimension, found.items, found.total, found.other_count
    )


def breakdown_of(
    frame: pd.DataFrame,
    dimension: str,
    labels: Mapping[str, str],
    limit: int | None = None,
    preceding: pd.DataFrame | None = None,
    parameters: BreakdownParameters = DEFAULTS,
) -> UsageBreakdown:
    """The breakdown in a frame of one row per value; `preceding` is the same of the period before."""
    require_limit(limit)
    ordered = ranked(frame, dimension)
    shown, rest = (ordered, ordered.iloc[:0]) if limit is None else (ordered.iloc[:limit], ordered.iloc[limit:])
    if not rest.empty:
        shown = pd.concat([shown, summed(rest.assign(**{dimension: OTHER}), dimension)], ignore_index=True)
    found = total_of(ordered)
    trends = (
        _trends(shown, dimension, ranked(preceding, dimension), bool(len(rest)), parameters) if preceding is not None else None
    )
    items = items_of(shown, dimension, labels, found.tokens, trends, has_other=not rest.empty)
    return UsageBreakdown(camel(dimension), items, found, len(rest) or None)


def require_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise UsageError(f"The limit is {limit}; give 1 or more, or none for all values.")


def ranked(frame: pd.DataFrame, dimension: str) -> pd.DataFrame:
    """One row per value, most tokens first. Usage without a value is `Unknown`, and one with a value that says so, as in a path."""
    named = frame.assign(**{dimension: frame[dimension].where(frame[dimension].notna(), UNKNOWN)})
    if named[dimension].duplicated().any():
        named = summed(named, dimension)
    return named.sort_values(["total_tokens", dimension], ascending=[False, True], kind="stable", ignore_index=True)


def summed(frame: pd.DataFrame, dimension: str) -> pd.DataFrame:
    """One row per value with its sums; unknown only where no row knows."""
    costs: dict[str, Decimal] = {}
    for value, cost in zip(frame[dimension], frame[COST], strict=True):
        if cost is not None:
            costs[value] = costs.get(value, Decimal(0)) + cost
    found = frame.groupby(dimension, sort=False)[list(COUNTS)].sum(min_count=1)
    found[COST] = pd.Series([costs.get(value) for value in found.index], index=found.index, dtype=object)
    return found.reset_index()


def total_of(frame: pd.DataFrame) -> BreakdownTotal:
    return BreakdownTotal(
        total(frame, "total_tokens"), total(frame, "request_count"), total_cost(frame), total(frame, "unpriced_tokens")
    )


def items_of(
    frame: pd.DataFrame,
    dimension: str,
    labels: Mapping[str, str],
    of_tokens: int | None,
    trends: Sequence[ItemTrend | None] | None = None,
    has_other: bool = False,
) -> tuple[UsageBreakdownItem, ...]:
    """An item per row of a `ranked` frame; the last is the `Other` one if there is one. Shares are of `of_tokens`."""
    values: list[str] = frame[dimension].tolist()
    names, is_other = [labels.get(value, value) for value in values], [False] * len(values)
    if has_other:
        names[-1], is_other[-1] = OTHER, True
    counts = [known(frame, name) for name in ("total_tokens", "input_tokens", "output_tokens", "request_count", "error_count")]
    latencies = map(average_latency, known(frame, "total_latency_ms"), known(frame, "latency_request_count"))
    shares = [ratio(tokens, of_tokens, 100) for tokens in counts[0]]
    unknown = [value == UNKNOWN for value in values]
    columns = zip(
        values, names, *counts, latencies, known(frame, COST), shares, trends or [None] * len(values),
        known(frame, "unpriced_tokens"), is_other, unknown, strict=True,
    )  # fmt: skip
    return tuple(itertools.starmap(UsageBreakdownItem, columns))


def _trends(
    shown: pd.DataFrame, dimension: str, preceding: pd.DataFrame, has_other: bool, parameters: BreakdownParameters
) -> list[ItemTrend]:
    before = dict(zip(preceding[dimension].tolist(), preceding["total_tokens"].fillna(0).tolist(), strict=True))
    values, now = shown[dimension].tolist(), shown["total_tokens"].fillna(0).tolist()
    named = values[:-1] if has_other else values
    then = [before.get(value, 0) for value in named]
    if has_other:
        then.append(sum(before.values()) - sum(then))
    return [direction(current, previous, parameters.stable_below_pct) for current, previous in zip(now, then, strict=True)]


def direction(current: int, previous: int, stable_below_pct: float) -> ItemTrend:
    """A rise from zero has no percentage and is up."""
    moved = percentage(current - previous, previous)
    if current == previous or (moved is not None and abs(moved) < stable_below_pct):
        return "stable"
    return "up" if current > previous else "down"


def metric_rows(result: UsageBreakdown) -> list[MetricRow]:
    """The figures of each item, by dimension and value; `token_share_pct` is the share of all tokens. The rest is `Other values`
    where a value is itself called `Other`, so that no two rows have the same key."""
    dimension = dimension_name(result.dimension)
    named = {item.dimension_value for item in result.items if not item.is_other}
    rows = []
    for item in result.items:
        value = f"{OTHER} values" if item.is_other and OTHER in named else item.dimension_value
        figures = {name: getattr(item, name) for name in (*MEASURES, "avg_latency_ms")} | {"token_share_pct": item.percentage}
        rows += [MetricRow(metric, figure, dimension, value) for metric, figure in figures.items()]
    return rows
