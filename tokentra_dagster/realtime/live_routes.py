"""Live usage over HTTP: a snapshot, and a feed of snapshots as server-sent events (docs/live.md).

The routes belong to whichever application includes them; who asks, it says: `organization_of_key` gives the organisation of the
request's key or raises. https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

# No `from __future__ import annotations` here: FastAPI reads the annotations of routes as they are.

import asyncio
import json
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any
from uuid import UUID

import anyio
from fastapi import APIRouter, Depends, HTTPException, Query
from fastapi.sse import format_sse_event
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from tokentra_dagster.errors import TokenTraError, UsageError
from tokentra_dagster.realtime.live import DEFAULT_MINUTES, MOST_MINUTES
from tokentra_dagster.realtime.live_feed import SLOW_SECONDS, FeedFull, LiveFeed, Message, Watcher
from tokentra_dagster.warehouse.database import Database

HEARTBEAT_SECONDS = 15
RETRY_MILLISECONDS = 2000
LONGEST_STREAM_SECONDS = 600
"""Then the client is told to come again, with its key: one that was revoked is not served for longer."""
Minutes = Annotated[int, Query(ge=1, le=MOST_MINUTES, description="Whole minutes before the running one.")]


def live_router(database: Database, organization_of_key: Callable[..., Any]) -> APIRouter:
    """`GET /v1/live` and `GET /v1/live/feed` of the organisation that the dependency `organization_of_key` names."""
    feeds: list[LiveFeed] = []

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        feed = LiveFeed(database)
        feeds.append(feed)
        with _streams_end_when_the_server_is_told_to(feed):
            yield
        feeds.remove(feed)
        await feed.close()

    router = APIRouter(prefix="/v1/live", tags=["live"], lifespan=lifespan)
    Organization = Annotated[UUID, Depends(organization_of_key)]

    @router.get("", summary="Usage of the last minutes")
    async def snapshot(organization: Organization, minutes: Minutes = DEFAULT_MINUTES) -> JSONResponse:
        try:
            usage = await feeds[-1].look(organization, minutes)
        except UsageError as error:
            raise HTTPException(404, str(error)) from None
        except TokenTraError as error:
            raise HTTPException(503, str(error), {"Retry-After": "2"}) from None
        return JSONResponse(usage.as_json(), headers={"Cache-Control": "no-store"})

    @router.get(
        "/feed", summary="Usage of the last minutes whenever it changes, as server-sent events", response_class=StreamingResponse
    )
    async def feed(organization: Organization, minutes: Minutes = DEFAULT_MINUTES) -> StreamingResponse:
        # A Last-Event-ID needs no look: the first message is the newest snapshot, which has all that was missed.
        try:
            return EventStream(feeds[-1], feeds[-1].watch(organization, minutes))
        except FeedFull as error:
            raise HTTPException(429, str(error), {"Retry-After": "60"}) from None

    return router


class EventStream(StreamingResponse):
    """One watcher's messages until it goes, is too slow, or the time of a stream is over."""

    media_type = "text/event-stream"

    def __init__(self, feed: LiveFeed, watcher: Watcher) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(_events(watcher), headers=headers)
        self._feed, self._watcher = feed, watcher

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def in_time(message: Any) -> None:
            with anyio.fail_after(SLOW_SECONDS):
                await send(message)

        try:
            await super().__call__(scope, receive, in_time)
        except* (TimeoutError, ClientDisconnect):
            # The client takes nothing any more; the server closes the connection of an unfinished answer.
            pass
        finally:
            self._feed.leave(self._watcher)


async def _events(watcher: Watcher) -> AsyncIterator[bytes]:
    over = time.monotonic() + LONGEST_STREAM_SECONDS
    yield format_sse_event(retry=RETRY_MILLISECONDS, comment="usage of the last minutes whenever it changes")
    while (left := over - time.monotonic()) > 0:
        try:
            message = await asyncio.wait_for(watcher.next(), min(HEARTBEAT_SECONDS, left))
        except TimeoutError:
            yield format_sse_event(comment="still here")
            continue
        if message.end:
            break
        yield _event(message)
    yield format_sse_event(event="resume", data_str=json.dumps({"message": "This stream is over; connect again."}))


def _event(message: Message) -> bytes:
    if message.usage is None:
        return format_sse_event(event="trouble", data_str=json.dumps({"message": message.trouble}))
    return format_sse_event(
        event="usage", id=str(round(message.usage.window_end.timestamp() * 1000)), data_str=json.dumps(message.usage.as_json())
    )


@contextmanager
def _streams_end_when_the_server_is_told_to(feed: LiveFeed):  # type: ignore[no-untyped-def]
    """A server that is told to stop waits for open answers, and a stream has no end of its own: the signal reaches the feed first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before: dict[int, Any] = {}

    def told(number: int, frame: Any) -> None:
        loop.call_soon_threadsafe(feed.end_streams)
        before[number](number, frame)

    for number in (signal.SIGTERM, signal.SIGINT):
        handler = signal.getsignal(number)
        if callable(handler):
            before[number] = handler
            signal.signal(number, told)
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is told:
                signal.signal(number, handler)
