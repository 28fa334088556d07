"""Periods of quotas in plain Python, written without a look at the SQL: what the tests hold against the warehouse."""

from __future__ import annotations

from calendar import monthrange
from datetime import UTC, datetime, timedelta


def _monthly_start(year: int, month: int, day: int, hour: int) -> datetime:
    return datetime(year, month, min(day, monthrange(year, month)[1]), hour, tzinfo=UTC)


def period_of(period_type: str, reset_day: int, reset_hour: int, moment: datetime) -> tuple[datetime, datetime]:
    """[start, end) of the period that holds the moment. 0 is Sunday; a day beyond the month's end is its last day."""
    moment = moment.astimezone(UTC)
    if period_type == "hourly":
        start = moment.replace(minute=0, second=0, microsecond=0)
        return start, start + timedelta(hours=1)
    if period_type == "monthly":
        months = [(moment.year + (moment.month - 1 + n) // 12, (moment.month - 1 + n) % 12 + 1) for n in (-1, 0, 1)]
        starts = [_monthly_start(*month, reset_day, reset_hour) for month in months]
        # The first of the three that lies after the moment ends its period; before it is the start.
        following = next((n for n, start in enumerate(starts) if start > moment), None)
        assert following != 0
        return starts[following - 1], starts[following]
    length = timedelta(days=1 if period_type == "daily" else 7)
    start = moment.replace(hour=reset_hour, minute=0, second=0, microsecond=0)
    while start > moment or (period_type == "weekly" and start.isoweekday() % 7 != reset_day):
        start -= timedelta(days=1)
    return start, start + length


def periods_of(period_type: str, reset_day: int, reset_hour: int, first: datetime, until: datetime) -> list[tuple]:
    """All periods from the one that holds `first` to the last that begins before `until`."""
    periods = [period_of(period_type, reset_day, reset_hour, first)]
    while periods[-1][1] < until:
        periods.append(period_of(period_type, reset_day, reset_hour, periods[-1][1]))
    return periods
