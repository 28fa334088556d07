"""Which two periods are compared: the four comparison types of section 11, half-open and in UTC (corrections 19, 20)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, get_args

from tokentra_dagster.analytics.periods import Period, floor, last_days, month_of
from tokentra_dagster.errors import UsageError

ComparisonType = Literal["period_over_period", "year_over_year", "custom", "benchmark"]
COMPARISON_TYPES: tuple[ComparisonType, ...] = get_args(ComparisonType)
PERIOD_DAYS = 30
ALIKE = 0.1


@dataclass(frozen=True, slots=True)
class DateRange:
    """Section 11's name for `[start, end)` in UTC."""

    start: datetime
    end: datetime

    @property
    def period(self) -> Period:
        return Period(self.start, self.end)


@dataclass(frozen=True, slots=True)
class ComparisonPeriods:
    """`[start, end)` each: a moment on a boundary that both share is in one of them only (correction 20)."""

    current: DateRange
    previous: DateRange

    @property
    def alike(self) -> bool:
        """Whether the lengths differ by at most a tenth, as months do; sums over unlike lengths do not compare."""
        current, previous = self.current.period.length, self.previous.period.length
        return abs(current - previous) <= ALIKE * max(current, previous)

    @property
    def overlap(self) -> bool:
        return self.current.start < self.previous.end and self.previous.start < self.current.end


def comparison_periods(
    comparison_type: ComparisonType,
    now: datetime,
    current: Period | None = None,
    previous: Period | None = None,
    *,
    same_part: bool = False,
) -> ComparisonPeriods:
    """The periods of a comparison that is made at `now`, which itself is in neither.

    - `period_over_period`: the 30 days up to `now`, and the 30 days before those.
    - `year_over_year`: this month so far, and the whole same month a year ago; with `same_part` only as much of that month, which is
      what makes sums comparable before the month is over.
    - `benchmark`: this month so far, and `previous`, or else January of the same year, whole.
    - `custom`: `current` and `previous`, both given.

    A given `current` replaces the first period; the second then follows from it. "This month" is the month of the last moment before
    `now`: at midnight on 1 July it is the whole of June, and never an empty period. Raises `UsageError` for an unknown type, and where
    a period is missing or given in vain.
    """
    if comparison_type not in COMPARISON_TYPES:
        raise UsageError(f"The comparison type is {comparison_type!r}; it must be one of {', '.join(COMPARISON_TYPES)}.")
    if now.tzinfo is None:
        raise UsageError(f"The comparison is made at {now.isoformat()}, without a time zone; give UTC, e.g. 2026-06-01T00:00Z.")
    if comparison_type == "custom":
        if current is None or previous is None:
            missing = " and ".join(name for name, given in (("current", current), ("previous", previous)) if given is None)
            raise UsageError(f"A custom comparison needs both periods; the {missing} period is missing.")
        return _compared(current, previous)
    if previous is not None and comparison_type != "benchmark":
        raise UsageError(
            f"A {comparison_type} comparison finds its previous period itself; give one with custom or benchmark only."
        )
    if comparison_type == "period_over_period":
        chosen = current or last_days(now, PERIOD_DAYS)
        return _compared(chosen, chosen.before("previous"))
    month = Period(floor(now - timedelta(microseconds=1), "month"), now)
    if comparison_type == "benchmark":
        chosen = current or month
        return _compared(chosen, previous or month_of(chosen.start.replace(month=1, day=1).date()))
    if current is not None:
        return _compared(current, current.before("yoy"))
    if same_part:
        return _compared(month, month.before("yoy"))
    return _compared(month, month_of(month.start.replace(year=month.start.year - 1).date()))


def _compared(current: Period, previous: Period) -> ComparisonPeriods:
    return ComparisonPeriods(*(DateRange(period.start, period.end) for period in (current, previous)))
