"""Periods `[start, end)` in UTC, the periods they are compared with, and their buckets."""

from __future__ import annotations

import calendar
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Literal, get_args

from tokentra_dagster.errors import UsageError

Granularity = Literal["minute", "hour", "day", "week", "month"]
GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)
Comparison = Literal["previous", "mom", "qoq", "yoy"]
COMPARISONS: tuple[Comparison, ...] = get_args(Comparison)
DAY = timedelta(days=1)
WIDTHS = {"minute": timedelta(minutes=1), "hour": timedelta(hours=1), "day": DAY, "week": timedelta(days=7)}


@dataclass(frozen=True, slots=True)
class Period:
    """`[start, end)`, both in UTC. Raises `UsageError` when it is empty or a moment has no zone."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        for name, moment in (("start", self.start), ("end", self.end)):
            if moment.tzinfo is None:
                raise UsageError(
                    f"The period's {name} is {moment.isoformat()}, without a time zone; give UTC, e.g. 2026-06-01T00:00Z."
                )
        if self.end <= self.start:
            raise UsageError(
                f"The period is empty: its end ({self.end.isoformat()}) must be later than its start ({self.start.isoformat()})."
            )
        object.__setattr__(self, "start", self.start.astimezone(UTC))
        object.__setattr__(self, "end", self.end.astimezone(UTC))

    @property
    def length(self) -> timedelta:
        return self.end - self.start

    @property
    def hours(self) -> float:
        return self.length / timedelta(hours=1)

    @property
    def days(self) -> float:
        return self.length / DAY

    def halves(self) -> tuple[Period, Period]:
        """The first and second half in time (correction 22)."""
        middle = self.start + self.length / 2
        return Period(self.start, middle), Period(middle, self.end)

    def since(self, moment: datetime | None) -> Period | None:
        """The part from the later of the start and `moment` on; None when nothing of it is left (corrections 21, 47)."""
        start = self.start if moment is None else max(self.start, moment)
        return Period(start, self.end) if start < self.end else None

    def before(self, comparison: Comparison) -> Period:
        """The period to compare with: the same length just before, or the same days one month, quarter or year earlier, clamped to
        the month's end (correction 19). A month whole stays a month whole."""
        if comparison == "previous":
            return Period(self.start - self.length, self.start)
        months = {"mom": 1, "qoq": 3, "yoy": 12}.get(comparison)
        if months is None:
            raise UsageError(f"The comparison is {comparison!r}; it must be one of {', '.join(COMPARISONS)}.")
        start, end = months_earlier(self.start, months), months_earlier(self.end, months)
        return Period(start, end if end > start else start + self.length)

    def buckets(self, granularity: Granularity) -> Iterator[datetime]:
        """Starts of the buckets that the period touches, in order. Weeks begin on Monday (ISO 8601)."""
        bucket = floor(self.start, granularity)
        while bucket < self.end:
            yield bucket
            bucket = next_bucket(bucket, granularity)


def floor(moment: datetime, granularity: Granularity) -> datetime:
    """The start of the UTC bucket that holds the moment, as PostgreSQL's `date_trunc` gives it."""
    day = moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    match granularity:
        case "minute":
            return moment.astimezone(UTC).replace(second=0, microsecond=0)
        case "hour":
            return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        case "day":
            return day
        case "week":
            return day - timedelta(days=day.weekday())
        case "month":
            return day.replace(day=1)
    raise UsageError(f"The granularity is {granularity!r}; it must be one of {', '.join(GRANULARITIES)}.")


def next_bucket(bucket: datetime, granularity: Granularity) -> datetime:
    return months_earlier(bucket, -1) if granularity == "month" else bucket + WIDTHS[granularity]


def months_earlier(moment: datetime, months: int) -> datetime:
    """Calendar arithmetic, clamped to the month's end: 31 March less one month is 28 or 29 February (correction 19)."""
    number = moment.year * 12 + moment.month - 1 - months
    year, month = divmod(number, 12)
    day = min(moment.day, calendar.monthrange(year, month + 1)[1])
    return moment.replace(year=year, month=month + 1, day=day)


def month_of(day: date) -> Period:
    """The calendar month that holds the day."""
    start = datetime(day.year, day.month, 1, tzinfo=UTC)
    return Period(start, months_earlier(start, -1))


def last_days(end: datetime, days: int) -> Period:
    """The rolling window of whole days up to `end`."""
    return Period(end - days * DAY, end)


def infer_granularity(period: Period) -> Granularity:
    """As the specification's dashboard chooses (section 4): minutes up to a day, hours to 7 days, days to 90, weeks to 365."""
    for days, granularity in ((1, "minute"), (7, "hour"), (90, "day"), (365, "week")):
        if period.days <= days:
            return granularity  # type: ignore[return-value]
    return "month"
