"""Live usage fanned out: one listening connection a process, one look for everybody who watches the same, any number of watchers.

A notification says only that an organisation has new events; what watchers get is a whole snapshot, so nothing needs to be
replayed, and who is slow gets the newest and never a backlog (docs/decisions/0019). Where no notification comes (two senders at
once, a restart of the database) the next look is due anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

from tokentra_dagster.errors import TokenTraError, UsageError
from tokentra_dagster.realtime.live import LiveUsage, live_usage
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import Connection

_log = logging.getLogger(__name__)
CHANNEL = "tokentra_events_"
LOOK_SECONDS = 1.5
"""Between looks without a notification: an event is seen within two seconds whatever happens to its notification."""
SOONEST_SECONDS = 0.5
"""Between looks with notifications: a thousand events a second are two looks a second."""
LOOKS_AT_ONCE = 4
AWAY = "The database does not answer; live usage comes as soon as it does."
LONGEST_QUERY_SECONDS = 15
SLOW_SECONDS = 30
"""A watcher that has not taken a snapshot for so long is told to come again."""
MOST_WATCHERS = 500
MOST_OF_ONE_ORGANIZATION = 20


class FeedFull(TokenTraError):
    """No further watcher is taken now."""


@dataclass(frozen=True, slots=True)
class Message:
    """What a watcher gets: a snapshot, or why there is none now (`trouble`); `end`: the feed is over for it, come again."""

    usage: LiveUsage | None = None
    trouble: str | None = None
    end: bool = False


class Watcher:
    """One place for the newest message: what was not taken in time is replaced, so memory does not grow."""

    def __init__(self, topic: tuple[UUID, int]) -> None:
        self.topic = topic
        self._message: Message | None = None
        self._there = asyncio.Event()
        self._waiting_since = 0.0

    async def next(self) -> Message:
        """The newest message that was not taken yet."""
        await self._there.wait()
        assert self._message is not None
        message = self._message
        if not message.end:
            self._message = None
            self._there.clear()
        return message

    def offer(self, message: Message) -> bool:
        """False where the watcher does not take what it is offered; it is then told to come again."""
        now = time.monotonic()
        if self._message is None:
            self._waiting_since = now
        slow = now - self._waiting_since > SLOW_SECONDS
        self._message = Message(end=True) if slow or (self._message and self._message.end) else message
        self._there.set()
        return not slow


class LiveFeed:
    """Use `look`, `watch` and `leave` from one event loop; `close` ends what runs."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._looks = _Looks(database)
        self._topics: dict[tuple[UUID, int], _Topic] = {}
        self._changed = asyncio.Event()
        self._listener: asyncio.Task[None] | None = None
        self._closing = False

    async def look(self, org_id: UUID, minutes: int) -> LiveUsage:
        """One snapshot. Raises `UsageError` for what cannot be asked, `TokenTraError` while the database does not answer."""
        return await self._looks.at(org_id, minutes)

    def watch(self, org_id: UUID, minutes: int) -> Watcher:
        """A watcher whose first message comes at once. Raises `FeedFull` when there are too many."""
        watchers = [watcher for topic in self._topics.values() for watcher in topic.watchers]
        mine = sum(1 for watcher in watchers if watcher.topic[0] == org_id)
        if self._closing or len(watchers) >= MOST_WATCHERS:
            raise FeedFull("The live feed has no room for another watcher now; try again in a minute.")
        if mine >= MOST_OF_ONE_ORGANIZATION:
            raise FeedFull(f"The organisation has {mine} watchers already, which is the most; close one first.")
        key = (org_id, minutes)
        if key not in self._topics:
            self._topics[key] = _Topic(*key, self._looks)
            self._changed.set()
        if self._listener is None:
            self._listener = asyncio.create_task(self._listen())
        return self._topics[key].join(Watcher(key))

    def leave(self, watcher: Watcher) -> None:
        """The watcher is gone; nobody looks any more for the last of its kind."""
        topic = self._topics.get(watcher.topic)
        if topic and topic.leave(watcher):
            del self._topics[watcher.topic]
            self._changed.set()

    def end_streams(self) -> None:
        """Tell every watcher to come again; no further one is taken."""
        self._closing = True
        for topic in self._topics.values():
            topic.end()

    async def close(self) -> None:
        self.end_streams()
        tasks = [topic.task for topic in self._topics.values()] + ([self._listener] if self._listener else [])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._topics.clear()
        await asyncio.to_thread(self._looks.close)

    async def _listen(self) -> None:
        """Wake the topics whose organisation is told of, over one connection that is made anew as often as it breaks."""
        wait = 0.5
        while True:
            try:
                connection = await psycopg.AsyncConnection.connect(
                    self._database.url,
                    autocommit=True,
                    connect_timeout=10,
                    application_name="tokentra live feed",
                    keepalives_idle=30,
                )
                async with connection:
                    wait = 0.5
                    await self._hear(connection)
            except (psycopg.Error, OSError) as error:
                _log.warning(
                    "The live feed does not hear the database (%s); watchers are served every %s s",
                    type(error).__name__,
                    LOOK_SECONDS,
                )
                await asyncio.sleep(wait)
                wait = min(wait * 2, 10)

    async def _hear(self, connection: psycopg.AsyncConnection[Any]) -> None:
        heard: set[UUID] = set()
        while True:
            self._changed.clear()
            wanted = {org_id for org_id, _ in self._topics}
            for org_id, verb in [*((one, "LISTEN") for one in wanted - heard), *((one, "UNLISTEN") for one in heard - wanted)]:
                await connection.execute(sql.SQL(verb + " {}").format(sql.Identifier(f"{CHANNEL}{org_id}")))
            # What came between the last look and now was not heard.
            self._wake(wanted - heard)
            heard = wanted
            while not self._changed.is_set():
                async for told in connection.notifies(timeout=0.5, stop_after=1):
                    self._wake({UUID(told.channel.removeprefix(CHANNEL))})

    def _wake(self, organizations: set[UUID]) -> None:
        for (org_id, _), topic in self._topics.items():
            if org_id in organizations:
                topic.told.set()


class _Topic:
    """Everybody who watches the same minutes of one organisation, and the looks for them."""

    def __init__(self, org_id: UUID, minutes: int, looks: _Looks) -> None:
        self._org_id, self._minutes, self._looks = org_id, minutes, looks
        self.watchers: set[Watcher] = set()
        self.told = asyncio.Event()
        self._last: Message | None = None
        self.task = asyncio.create_task(self._keep_looking())

    def join(self, watcher: Watcher) -> Watcher:
        self.watchers.add(watcher)
        if self._last is not None:
            watcher.offer(self._last)
            self.told.set()
        return watcher

    def leave(self, watcher: Watcher) -> bool:
        """Whether that was the last one; nobody looks any more then."""
        self.watchers.discard(watcher)
        if not self.watchers:
            self.task.cancel()
        return not self.watchers

    def end(self) -> None:
        self._tell(Message(end=True))

    def _tell(self, message: Message) -> None:
        for watcher in list(self.watchers):
            if not watcher.offer(message):
                self.watchers.discard(watcher)

    async def _keep_looking(self) -> None:
        while True:
            began = time.monotonic()
            self.told.clear()
            message = await self._look()
            if not _same(message, self._last):
                self._last = message
                self._tell(message)
            if message.end:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.told.wait(), LOOK_SECONDS)
            await asyncio.sleep(max(began + SOONEST_SECONDS - time.monotonic(), 0))

    async def _look(self) -> Message:
        try:
            return Message(await self._looks.at(self._org_id, self._minutes))
        except UsageError:
            return Message(end=True)
        except TokenTraError as error:
            return Message(trouble=str(error))
        except Exception:
            _log.exception("Live usage of %s cannot be computed", self._org_id)
            return Message(trouble="The figures cannot be computed now; the server's log says why.")


def _same(new: Message, old: Message | None) -> bool:
    """Whether there is nothing to tell: the same figures, of whatever moment of the same minute."""
    if old is None or new.usage is None or old.usage is None:
        return new == old
    return all(
        getattr(new.usage, name) == getattr(old.usage, name)
        for name in ("minute_data", "models", "features", "late_requests", "ahead_requests")
    ) and (new.usage.hour.requests_so_far, new.usage.day.requests_so_far) == (
        old.usage.hour.requests_so_far,
        old.usage.day.requests_so_far,
    )


class _Looks:
    """Looks in a few threads, each with a connection that it keeps while it works."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._threads = ThreadPoolExecutor(LOOKS_AT_ONCE, thread_name_prefix="live")
        self._mine = threading.local()
        self._all: set[Connection] = set()

    async def at(self, org_id: UUID, minutes: int) -> LiveUsage:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._at, org_id, minutes)

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        for db in self._all:
            db.close()

    def _at(self, org_id: UUID, minutes: int) -> LiveUsage:
        kept: Connection | None = getattr(self._mine, "db", None)
        try:
            if kept is not None:
                # A connection that broke while it was idle says nothing about the database now.
                with contextlib.suppress(psycopg.OperationalError, psycopg.InterfaceError):
                    return self._ask(kept, org_id, minutes)
            return self._ask(self._connect(), org_id, minutes)
        except (psycopg.OperationalError, psycopg.InterfaceError):
            raise TokenTraError(AWAY) from None

    def _connect(self) -> Connection:
        try:
            db = self._database.connect(autocommit=True, application="tokentra live")
        except TokenTraError:
            # Its own words name the database's address, which is for operators and not for whoever has a key.
            raise TokenTraError(AWAY) from None
        self._mine.db = db
        self._all.add(db)
        db.execute(f"SET statement_timeout = '{LONGEST_QUERY_SECONDS}s'")
        return db

    def _ask(self, db: Connection, org_id: UUID, minutes: int) -> LiveUsage:
        try:
            return live_usage(db, org_id, minutes)
        except psycopg.errors.QueryCanceled:
            raise TokenTraError(f"The figures took over {LONGEST_QUERY_SECONDS} s to compute; ask for fewer minutes.") from None
        except psycopg.Error:
            self._all.discard(db)
            self._mine.db = None
            db.close()
            raise
