"""When an export is due, and which period it is then of. Pure (specification section 12; corrections 19, 20, 40).

Everything is derived from the due time, never from the clock: a run that is late, or that is repeated, has the same period and id.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from itertools import islice, pairwise
from uuid import UUID, uuid5
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from tokentra_dagster.analytics.periods import Period, months_earlier
from tokentra_dagster.errors import UsageError

RELATIVE_PERIODS = ("last_day", "last_week", "last_month", "last_quarter")
CATCH_UP = ("all", "latest")
"""What becomes of due times that were missed while nothing ran: each is run, at most `MOST_CAUGHT_UP`, or the latest only."""
MOST_CAUGHT_UP = 100
LEAST_GAP = timedelta(hours=1)
_LOOKED_AT = 200
"""Due times of a schedule that are looked at to judge how close they are."""


def check_schedule(schedule: str) -> None:
    """Raise `UsageError` unless this is a cron expression of five fields that comes at most once an hour, and comes at all."""
    if len(schedule.split()) != 5:
        raise UsageError(
            f"The schedule is {schedule!r}; it must be cron's five fields (minute hour day month weekday), e.g. '0 6 1 * *'."
        )
    start = datetime(2026, 1, 1, tzinfo=UTC)
    found = list(islice(_forward(schedule, ZoneInfo("UTC"), start), _LOOKED_AT))
    if not found:
        raise UsageError(f"The schedule {schedule!r} never comes; give days that the months have.")
    if any(later - earlier < LEAST_GAP for earlier, later in pairwise(found)):
        raise UsageError(
            f"The schedule {schedule!r} comes more than once an hour; the shortest period is a day, so give one minute of the hour."
        )


def zone_named(name: str) -> ZoneInfo:
    """Raises `UsageError` for a name that the time zone database has not."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise UsageError(f"The time zone is {name!r}; give a name such as Europe/Berlin or UTC.") from None


def due_times(schedule: str, zone: ZoneInfo, after: datetime, until: datetime) -> list[datetime]:
    """Every due time in `(after, until]`, in UTC and in order.

    As cron does on a clock that changes: with a fixed hour, a time that the clock jumps over is due when it has jumped, and one that comes
    twice is due the first time; with `*` in minute or hour, every real hour counts. What falls together is due once.
    """
    found: list[datetime] = []
    for moment in _forward(schedule, zone, after):
        if moment > until:
            break
        found.append(moment)
    return found


def next_due(schedule: str, zone: ZoneInfo, after: datetime, count: int = 1) -> list[datetime]:
    """The next due times after a moment, in UTC."""
    return list(islice(_forward(schedule, zone, after), count))


def last_due(schedule: str, zone: ZoneInfo, until: datetime) -> datetime:
    """The latest due time at or before a moment, in UTC; by the schedule alone, whenever the export was made."""
    for days in (2, 40, 400, 366 * 9):
        if found := due_times(schedule, zone, until - timedelta(days=days), until):
            return found[-1]
    raise UsageError(f"The schedule {schedule!r} has not come for years; give --due.")


def is_due_time(schedule: str, zone: ZoneInfo, moment: datetime) -> bool:
    return moment in due_times(schedule, zone, moment - timedelta(seconds=1), moment)


def _forward(schedule: str, zone: ZoneInfo, after: datetime) -> Iterator[datetime]:
    last = after
    try:
        # From a little before: cronsim looks at the wall clock, and the same wall time comes twice where the clock is set back.
        for local in CronSim(schedule, (after - timedelta(hours=3)).astimezone(zone)):
            moment = local.astimezone(UTC)
            if moment > last:
                last = moment
                yield moment
    except CronSimError as error:
        raise UsageError(f"The schedule is {schedule!r}, which cron does not know ({error}); give e.g. '0 6 1 * *'.") from None


def caught_up(missed: Sequence[datetime], policy: str, most: int = MOST_CAUGHT_UP) -> tuple[list[datetime], list[datetime]]:
    """Of due times that have come, in order: those to run, and those that the policy leaves out."""
    kept = 1 if policy == "latest" else most
    return list(missed[-kept:]), list(missed[:-kept])


def period_of(relative_period: str, due_at: datetime, zone: ZoneInfo) -> Period:
    """The whole days, months or quarters before the due time, from midnight to midnight in the zone; `last_week` is the seven days
    before. A day is 23 or 25 hours long where the clock changes."""
    today = due_at.astimezone(zone).date()
    match relative_period:
        case "last_day":
            first, end = today - timedelta(days=1), today
        case "last_week":
            first, end = today - timedelta(days=7), today
        case "last_month":
            end = today.replace(day=1)
            first = _months_earlier(end, 1)
        case "last_quarter":
            end = today.replace(month=(today.month - 1) // 3 * 3 + 1, day=1)
            first = _months_earlier(end, 3)
        case _:
            raise UsageError(f"The period is {relative_period!r}; it must be one of {', '.join(RELATIVE_PERIODS)}.")
    return Period(_midnight(first, zone), _midnight(end, zone))


def _months_earlier(day: date, months: int) -> date:
    return months_earlier(datetime.combine(day, time()), months).date()


def _midnight(day: date, zone: ZoneInfo) -> datetime:
    # Where midnight is jumped over, this is the moment of the jump: the day's first.
    return datetime.combine(day, time(), zone).astimezone(UTC)


def run_id(export_id: UUID, due_at: datetime) -> UUID:
    """The id of an export's due time, and of every message about it."""
    return uuid5(export_id, due_at.astimezone(UTC).isoformat())
