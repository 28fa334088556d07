"""Time windows: UTC, half-open, aligned to buckets. Pure."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from tokentra_dagster.errors import UsageError
from tokentra_dagster.providers.base import Window
from tokentra_dagster.records import GRANULARITIES, GRANULARITY_SECONDS, Granularity, floor

DAY = timedelta(days=1)


def ceiling(moment: datetime, granularity: str) -> datetime:
    """`moment` if it starts a bucket, else the start of the next."""
    start = floor(moment, granularity)
    return start if start == moment else start + timedelta(seconds=GRANULARITY_SECONDS[granularity])


def aligned(start: datetime, end: datetime, granularity: str) -> Window:
    """The smallest window of whole buckets around `[start, end)`. Raises `UsageError` when it is empty or the width is unknown."""
    if granularity not in GRANULARITIES:
        raise UsageError(f"granularity is {granularity!r}; it must be one of {', '.join(GRANULARITIES)}.")
    if end <= start:
        raise UsageError(f"The window is empty: it would start at {start:%Y-%m-%d %H:%M} and end at {end:%Y-%m-%d %H:%M} UTC.")
    width: Granularity = granularity  # type: ignore[assignment]
    return Window(floor(start, granularity), ceiling(end, granularity), width)


def trailing(now: datetime, settles_after: timedelta) -> tuple[datetime, datetime]:
    """What a scheduled sync reads again: whole days back to one day before the oldest that may still change, so that a day
    is read once more after it became final."""
    return floor(now - settles_after - DAY, "1d"), now


def moment(text: str, name: str) -> datetime:
    """A date (midnight UTC) or an ISO time, UTC unless it says otherwise. Raises `UsageError`."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{name} is {text!r}; write a date like 2026-06-01 or a time like 2026-06-01T12:00Z.") from None
    return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)


def day_start(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
