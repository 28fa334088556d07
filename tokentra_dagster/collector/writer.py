"""Events of many requests, stored by one commit after another: a request is answered when the commit with its events is done."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

import psycopg

from tokentra_dagster.collector.limits import Limits, Refused
from tokentra_dagster.collector.session import EVENTS_FAULT, Session
from tokentra_dagster.errors import UsageError
from tokentra_dagster.realtime.events import UsageEvent
from tokentra_dagster.realtime.store import append_in, compare_in
from tokentra_dagster.warehouse.directory import Connection

log = logging.getLogger("tokentra.collector")
_STORED, _DUPLICATE = "stored", "duplicate"
# What became of an event: one of the two above, or else the sentence that says why it is not stored.
_Item = tuple[UUID, UsageEvent]


@dataclass(slots=True)
class Written:
    """Of one request: counts, and by its place in the request why an event was not stored."""

    stored: int = 0
    duplicates: int = 0
    refused: dict[int, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Waiting:
    org_id: UUID
    events: Sequence[UsageEvent]
    done: asyncio.Future[Written]


class Writer:
    """The one who writes. Bounded: what comes when `limits.waiting_events` wait is refused with 429."""

    def __init__(self, session: Session, limits: Limits) -> None:
        self._session, self._limits = session, limits
        self._queue: deque[_Waiting] = deque()
        self._waiting = 0
        self._writing: asyncio.Task[None] | None = None

    @property
    def is_full(self) -> bool:
        return self._waiting >= self._limits.waiting_events

    async def store(self, org_id: UUID, events: Sequence[UsageEvent]) -> Written:
        """Returns when they are on disk. Raises `Refused`: 429 when too many wait, 503 when it did not work or took too long; what
        was sent may then be stored nevertheless, and is sent again with the same ids."""
        if not events:
            return Written()
        if self._waiting and self._waiting + len(events) > self._limits.waiting_events:
            raise Refused(429, f"{self._waiting} events wait to be stored; send these again in a second.", retry_after=1)
        waiting = _Waiting(org_id, events, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._waiting += len(events)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        try:
            return await asyncio.wait_for(asyncio.shield(waiting.done), self._limits.store_seconds)
        except TimeoutError:
            raise Refused(
                503, "The database did not store the events in time; send the same events again later.", retry_after=5
            ) from None

    async def close(self) -> None:
        """Returns when nothing waits."""
        if self._writing is not None:
            await self._writing

    async def _write(self) -> None:
        while self._queue:
            group = [self._queue.popleft()]
            count = len(group[0].events)
            while self._queue and count + len(self._queue[0].events) <= self._limits.group_events:
                group.append(self._queue.popleft())
                count += len(group[-1].events)
            items = [(waiting.org_id, event) for waiting in group for event in waiting.events]
            try:
                became = await self._session.run(lambda db, items=items: _store(db, items))  # type: ignore[misc]
            except Exception as error:
                if not isinstance(error, Refused):
                    log.exception("events could not be stored")
                    error = Refused(503, "The events could not be stored; send the same events again later.", retry_after=5)
                for waiting in group:
                    if not waiting.done.done():
                        waiting.done.set_exception(error)
                        waiting.done.exception()  # nobody may be waiting any more
            else:
                answers = iter(became)
                for waiting in group:
                    written = _sum([next(answers) for _ in waiting.events])
                    if not waiting.done.done():
                        waiting.done.set_result(written)
            finally:
                self._waiting -= count


def _sum(became: Sequence[str]) -> Written:
    return Written(
        stored=became.count(_STORED), duplicates=became.count(_DUPLICATE),
        refused={place: said for place, said in enumerate(became) if said not in (_STORED, _DUPLICATE)},
    )  # fmt: skip


def _store(db: Connection, items: Sequence[_Item]) -> list[str]:
    """What became of each item. One that the database does not take is found by halves, and the others are stored."""
    firsts: dict[tuple[UUID, str], UsageEvent] = {}
    for org_id, event in items:
        firsts.setdefault((org_id, event.event_id), event)
    became = _store_different(db, [(org_id, event) for (org_id, _), event in firsts.items()])
    answers: list[str] = []
    for org_id, event in items:
        key = (org_id, event.event_id)
        if firsts[key] is event:
            answers.append(became[key])
        elif firsts[key] == event:
            answers.append(_DUPLICATE if became[key] == _STORED else became[key])
        else:
            answers.append(_conflict(event))
    return answers


def _store_different(db: Connection, items: Sequence[_Item]) -> dict[tuple[UUID, str], str]:
    try:
        return _commit(db, items)
    except UsageError as error:
        problem = str(error)
    except psycopg.Error as error:
        if db.broken or error.sqlstate is None or error.sqlstate[:2] not in EVENTS_FAULT:
            raise
        problem = f"The database does not take the event: {error.diag.message_primary}."
    if len(items) == 1:
        org_id, event = items[0]
        return {(org_id, event.event_id): problem}
    middle = len(items) // 2
    return _store_different(db, items[:middle]) | _store_different(db, items[middle:])


def _commit(db: Connection, items: Sequence[_Item]) -> dict[tuple[UUID, str], str]:
    """All of them in one transaction, or none and an error. In the order of organisations: two writers never wait in a circle."""
    by_org: dict[UUID, list[UsageEvent]] = defaultdict(list)
    for org_id, event in items:
        by_org[org_id].append(event)
    now = datetime.now(UTC)
    became: dict[tuple[UUID, str], str] = {}
    with db.transaction():
        for org_id, events in sorted(by_org.items()):
            if append_in(db, org_id, events, now=now).duplicates:
                found = compare_in(db, org_id, events, received_at=now)
                for event in events:
                    said = found.get(event.event_id, _DUPLICATE)  # gone meanwhile: it had expired
                    became[org_id, event.event_id] = _conflict(event) if said == "conflict" else said
            else:
                became |= dict.fromkeys(((org_id, event.event_id) for event in events), _STORED)
    return became


def _conflict(event: UsageEvent) -> str:
    return f"Event {event.event_id[:100]!r} was sent before with other content; the first counts, so give each request an id of its own."
