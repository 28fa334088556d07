"""Usage by hour and by day without gaps, and what is usual for an hour or a weekday (corrections 21 and 47).

A bucket without usage is zero from the later of the period's start and the organisation's first usage to the period's end. Before
that nothing is known, and there is no bucket.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Literal
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from tokentra_dagster.analytics.periods import DAY, WIDTHS, Granularity, Period
from tokentra_dagster.analytics.sources import UsageSource, total
from tokentra_dagster.errors import UsageError

DAY_NAMES = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
"""By the specification's number of the day: 0 is Sunday."""
MEASURES = ("total_tokens", "request_count")
HOUR = timedelta(hours=1)
WHOLE = 1 - 1e-9
"""Shares of a bucket are floats; from here on a bucket lies whole in the period."""


@dataclass(frozen=True, slots=True)
class BucketedUsage:
    """One organisation's tokens and requests by hour and day. Frames have `MEASURES` (nullable `Int64`), `used` (whether there was
    usage) and `share` (how much of the bucket lies in the period, 0 to 1)."""

    hours: pd.DataFrame
    """By UTC hour, with `moment`. Without rows if usage is known by day only."""
    days: pd.DataFrame
    """By date in the time zone, with `date`. In UTC with usage that is known by day only."""
    utc_days: pd.DataFrame
    """By UTC date, with `date` and `moment`."""
    total_tokens: int | None
    tokens_without_hour: int | None
    """Tokens that are known by day only: no figure of an hour has them."""


def time_zone_named(name: str) -> ZoneInfo:
    """Raises `UsageError` for what is no IANA time zone."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise UsageError(f"The time zone is {name!r}; it must be an IANA name, e.g. UTC or Europe/Berlin.") from None


def read_usage(usage: UsageSource, period: Period, zone: ZoneInfo) -> BucketedUsage:
    """Two reads: the period's hours and its UTC days. An hour belongs to the local hour and date in which it begins."""
    first_usage = usage.first_usage()
    by_hour, by_day = usage.frame(period, granularity="hour"), usage.frame(period, granularity="day")
    tokens, tokens_by_hour = total(by_day, "total_tokens"), total(by_hour, "total_tokens")
    hours = filled(by_hour, period, first_usage, "hour")
    if by_hour.empty and not by_day.empty:
        hours = hours.iloc[:0]
    utc_days = filled(by_day, period, first_usage, "day")
    utc_days["date"] = utc_days["moment"].dt.date
    return BucketedUsage(
        hours=hours,
        days=utc_days if zone.key == "UTC" else local_days(hours, period, zone),
        utc_days=utc_days,
        total_tokens=tokens,
        tokens_without_hour=None if tokens is None or tokens_by_hour is None else max(tokens - tokens_by_hour, 0),
    )


def filled(
    frame: pd.DataFrame,
    period: Period,
    first_usage: datetime | None,
    granularity: Granularity,
    columns: Sequence[str] = MEASURES,
) -> pd.DataFrame:
    """One row for every hour or day that the period touches from the first usage on; 0 where the frame has none, and <NA> stays <NA>.

    `frame`: one row per `moment` at most. The day and the hour of the first usage count as a whole.
    """
    rows = frame.set_index("moment")[list(columns)]
    known = period.since(first_usage)
    buckets = pd.DatetimeIndex(list(known.buckets(granularity)) if known else [], dtype="datetime64[us, UTC]")
    index = buckets.union(pd.DatetimeIndex(rows.index), sort=None).rename("moment")
    found = rows.reindex(index)
    used = np.asarray(index.isin(rows.index))
    found.loc[~used, :] = 0
    found["used"] = used
    width = WIDTHS[granularity]
    inside = (index + width).where(index + width < period.end, period.end) - index.where(index > period.start, period.start)
    found["share"] = np.clip(np.asarray(inside / width, dtype=float), 0, 1)
    return found.reset_index()


def local_days(hours: pd.DataFrame, period: Period, zone: ZoneInfo) -> pd.DataFrame:
    """Hours summed by the date in a time zone. A day has 23 or 25 hours where the clocks change."""
    dates = hours["moment"].dt.tz_convert(zone).dt.date.rename("date")
    grouped = hours.groupby(dates, sort=True)
    found = grouped[list(MEASURES)].sum(min_count=1)
    for column in MEASURES:
        found[column] = found[column].mask(_unknown(hours, dates, column).reindex(found.index))
    found["used"] = grouped["used"].any()
    found["share"] = [_share_of_day(day, period, zone) for day in found.index]
    return found.reset_index()


def _share_of_day(day: date, period: Period, zone: ZoneInfo) -> float:
    start, end = (datetime.combine(one, time(), zone).astimezone(UTC) for one in (day, day + DAY))
    return max(min(end, period.end) - max(start, period.start), timedelta()) / (end - start)


def _unknown(frame: pd.DataFrame, key: Any, column: str) -> pd.Series:
    """Whether a group has usage, and none of it says how much. Zeros of gaps beside it are no answer."""
    return frame["used"].groupby(key).any() & ~(frame["used"] & frame[column].notna()).groupby(key).any()


def averages(frame: pd.DataFrame, key: Any, column: str) -> pd.DataFrame:
    """What is usual for a bucket of each group: a row per value of `key`, in order.

    `mean`: the sum over the number of buckets that lie in the period, where two halves are one; a part of one bucket alone is not
    blown up to a whole. `variance`: of the population of whole buckets. `occurrences`: buckets that the period touches. Buckets
    whose figure is unknown count in none of them; NaN where nothing is known.
    """
    values = pd.Series(frame[column].to_numpy(dtype=float, na_value=np.nan), index=frame.index)
    known = values.notna()
    weights = frame["share"].where(known, 0.0).groupby(key).sum().clip(lower=1.0)
    found = pd.DataFrame({
        "mean": values.groupby(key).sum(min_count=1) / weights,
        "variance": values.where(known & (frame["share"] >= WHOLE)).groupby(key).var(ddof=0),
        "occurrences": known.groupby(key).sum().astype(int),
    })  # fmt: skip
    found.loc[_unknown(frame, key, column), ["mean", "variance"]] = np.nan
    return found


def group_values(found: pd.DataFrame, groups: Sequence[Any], column: str) -> Iterator[float | None]:
    """A column of `averages` for each group; None for a group without figures."""
    for value in found[column].reindex(pd.Index(groups)):
        yield None if pd.isna(value) else float(value)


def mean_of(values: Sequence[float | None]) -> float | None:
    """The mean of what is known; None without any."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def hour_keys(hours: pd.DataFrame, zone: ZoneInfo) -> pd.Series:
    """The hour of the day, 0 to 23, as the clock in the time zone shows it."""
    return hours["moment"].dt.tz_convert(zone).dt.hour


def weekday_keys(dates: pd.Series) -> pd.Series:
    """The day of the week of dates or moments, 0 for Sunday."""
    return (pd.to_datetime(dates).dt.dayofweek + 1) % 7


def split_means(frame: pd.DataFrame, column: str) -> tuple[float | None, float | None]:
    """Average per bucket in the first and second half of a frame without gaps, so halves of the time (corrections 22, 45). Of an odd
    number the second half has the one more. None where a half is unknown or has no bucket."""
    middle = len(frame) // 2
    first, second = (
        next(group_values(averages_of_all(part, column), [0], "mean"), None) for part in (frame[:middle], frame[middle:])
    )
    return first, second


def averages_of_all(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """`averages` with everything in the one group 0."""
    return averages(frame, pd.Series(0, index=frame.index), column)


Trend = Literal["increasing", "decreasing", "stable"]


def trend_of(first: float | None, second: float | None, stable_below_pct: float) -> tuple[Trend, float | None]:
    """Where it goes, and the change in percent. From zero it is `increasing` without a percentage (correction 18); `stable` where a
    half is unknown."""
    if first is None or second is None:
        return "stable", None
    if not first:
        return ("increasing" if second > 0 else "stable"), None
    change = (second - first) / first * 100
    if abs(change) < stable_below_pct:
        return "stable", change
    return ("increasing" if change > 0 else "decreasing"), change
