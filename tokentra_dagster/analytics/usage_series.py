"""Usage as series over time for statistics: arrays of floats, gaps zero since the first usage, NaN where nothing is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from tokentra_dagster.analytics.periods import WIDTHS, Granularity, Period, floor
from tokentra_dagster.analytics.sources import COST, UsageSource
from tokentra_dagster.errors import UsageError

Measure = Literal["tokens", "requests", "cost", "errors"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
COLUMNS: dict[Measure, str] = {
    "tokens": "total_tokens", "requests": "request_count", "cost": COST, "errors": "error_count",
}  # fmt: skip
Floats = npt.NDArray[np.float64]
FEW_VALUES = 400
"""Up to so many values of a dimension are read in one frame; of more, only the watched ones are, one by one."""


@dataclass(frozen=True, slots=True)
class SeriesName:
    """A value of a dimension (None: usage without one), or the organisation, where `dimension` is None."""

    dimension: str | None
    value: str | None


ORGANIZATION = SeriesName(None, None)


@dataclass(frozen=True, slots=True)
class Watched:
    """The values of a dimension that are judged one by one, those with the most tokens. `token_share`: their part of all tokens of
    the dimension, 0 to 1, None without any tokens."""

    dimension: str
    values: tuple[str | None, ...]
    not_watched: int
    token_share: float | None


@dataclass(frozen=True, slots=True)
class SeriesTable:
    """Series x buckets, one array per measure; bucket `n` begins `n` widths after `period.start`, which is on a bucket's edge."""

    period: Period
    granularity: Granularity
    names: tuple[SeriesName, ...]
    values: dict[Measure, Floats]

    def moment(self, bucket: int) -> datetime:
        return self.period.start + bucket * WIDTHS[self.granularity]


def complete_until(known_until: datetime) -> datetime:
    """The end of the last complete hour. Raises `UsageError` for a moment without a zone."""
    if known_until.tzinfo is None:
        raise UsageError(f"known_until is {known_until.isoformat()}, without a time zone; give UTC, e.g. 2026-06-01T12:00Z.")
    return floor(known_until, "hour")


def request_sizes(table: SeriesTable, measure: Measure, memory: int) -> Floats:
    """What one request adds to a bucket of the measure: the larger of the bucket's own mean and that of the last `memory` buckets, there
    weighted by what was used, so that a few large requests among many small ones show. 1 for counts, 0 where requests are unknown."""
    values = table.values[measure]
    if measure in ("requests", "errors"):
        return np.ones_like(values)
    used, requests = np.nan_to_num(values), np.nan_to_num(table.values["requests"])
    own = np.divide(used, requests, out=np.zeros_like(used), where=requests > 0)
    before = np.zeros((len(used), 1))
    weighted, whole = (np.hstack([before, np.cumsum(part, axis=1)]) for part in (used * own, used))
    start = np.maximum(np.arange(used.shape[1]) + 1 - memory, 0)
    weight = whole[:, 1:] - whole[:, start]
    lately = np.divide(weighted[:, 1:] - weighted[:, start], weight, out=np.zeros_like(used), where=weight > 0)
    found: Floats = np.maximum(np.maximum(own, lately), 0.0)
    return found


def watch(usage: UsageSource, period: Period, dimension: str, top: int) -> Watched:
    """The `top` values by tokens in the period."""
    frame = usage.frame(period, by=(dimension,))
    tokens = frame["total_tokens"].astype("Float64").fillna(0).to_numpy(np.float64)
    order = np.argsort(-tokens, kind="stable")
    values = [_text(value) for value in frame[dimension]]
    whole = float(tokens.sum())
    share = float(tokens[order[:top]].sum()) / whole if whole else None
    return Watched(dimension, tuple(values[n] for n in order[:top]), max(len(values) - top, 0), share)


def read_series(usage: UsageSource, period: Period, granularity: Granularity, watched: Sequence[Watched]) -> SeriesTable:
    """The organisation and every watched value. Buckets without usage are 0 from the later of the period's start and the first usage
    on (correction 47): the organisation's own, and each value's own first usage within the period."""
    names = [ORGANIZATION, *(SeriesName(one.dimension, value) for one in watched for value in one.values)]
    buckets = round(period.length / WIDTHS[granularity])
    values: dict[Measure, Floats] = {measure: np.full((len(names), buckets), np.nan) for measure in MEASURES}
    place = {name: row for row, name in enumerate(names)}
    whole = usage.frame(period, granularity=granularity)
    _fill(values, np.zeros(len(whole), np.int64), whole, period, granularity)
    first = usage.first_usage()
    if first is not None:
        _zero_gaps(values, 0, max(0, int((first - period.start) / WIDTHS[granularity])))
    for one in watched:
        for frame in _frames(usage, period, granularity, one):
            rows = frame[one.dimension].map(lambda value, one=one: place.get(SeriesName(one.dimension, _text(value)), -1))
            kept = rows.to_numpy(np.int64) >= 0
            _fill(values, rows.to_numpy(np.int64)[kept], frame[kept], period, granularity)
        for value in one.values:
            row = place[SeriesName(one.dimension, value)]
            known = np.flatnonzero(np.any([~np.isnan(values[measure][row]) for measure in MEASURES], axis=0))
            if len(known):
                _zero_gaps(values, row, int(known[0]))
    for column in values.values():
        np.copyto(column, np.nan, where=np.isneginf(column))
    return SeriesTable(period, granularity, tuple(names), values)


def _frames(usage: UsageSource, period: Period, granularity: Granularity, one: Watched) -> list[pd.DataFrame]:
    if len(one.values) + one.not_watched <= FEW_VALUES:
        return [usage.frame(period, by=(one.dimension,), granularity=granularity)]
    return [
        usage.frame(period, by=(one.dimension,), granularity=granularity, where={one.dimension: value}) for value in one.values
    ]


def _fill(values: dict[Measure, Floats], rows: npt.NDArray[np.int64], frame: pd.DataFrame, period: Period, granularity: Granularity) -> None:  # fmt: skip
    if frame.empty:
        return
    elapsed = (frame["moment"] - pd.Timestamp(period.start)) / pd.Timedelta(WIDTHS[granularity])
    buckets = elapsed.to_numpy(np.float64).astype(np.int64)
    for measure, column in COLUMNS.items():
        # Minus infinity marks what is known to be unknown, so that it is not taken for a gap.
        values[measure][rows, buckets] = floats(frame[column], unknown=-np.inf)


def _zero_gaps(values: dict[Measure, Floats], row: int, first: int) -> None:
    for column in values.values():
        part = column[row, first:]
        part[np.isnan(part)] = 0.0


def floats(column: pd.Series, unknown: float = float("nan")) -> Floats:
    """Counts or money as floats, for statistics only."""
    if column.dtype == object:
        found = np.fromiter(
            (unknown if value is None or value != value else float(value) for value in column), np.float64, len(column)
        )
        return found
    return column.astype("Float64").to_numpy(dtype=np.float64, na_value=unknown)  # type: ignore[no-any-return]


def _text(value: object) -> str | None:
    return None if value is None or value != value else str(value)
