"""The ASGI application: `create_app(database)`. Other parts mount their routers in it, with `auth.Organization` for who asks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from tokentra_dagster.collector import events_route, traces_route
from tokentra_dagster.collector.auth import Keys
from tokentra_dagster.collector.body import Bodies, drain
from tokentra_dagster.collector.limits import Limits, Refused
from tokentra_dagster.collector.session import Session
from tokentra_dagster.collector.writer import Writer
from tokentra_dagster.warehouse.database import Database

_READY_SECONDS = 1.0


def create_app(database: Database, limits: Limits | None = None, routers: Sequence[APIRouter] = ()) -> FastAPI:
    """The collector over a migrated database, with further `routers`.

    `app.state` has `database`, `limits`, `keys`, and `stopping`, an `asyncio.Event` that is set when the server is asked to stop:
    a response that streams ends then.
    """
    limits = limits or Limits()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        writing, asking = Session(database, "tokentra collect"), Session(database, "tokentra collect keys")
        app.state.writer, app.state.keys, app.state.bodies = Writer(writing, limits), Keys(asking, limits), Bodies(limits)
        app.state.readiness = _Readiness(asking, app.state.writer)
        app.state.stopping = asyncio.Event()
        yield
        app.state.stopping.set()
        await app.state.writer.close()
        app.state.bodies.close()
        for session in (writing, asking):
            await session.close()

    app = FastAPI(
        title="TokenTra Usage collector", lifespan=lifespan, docs_url=None, redoc_url=None,
        description="Takes usage events of applications. What is answered with 200 is on disk, and sending it again changes nothing.",
    )  # fmt: skip
    app.state.database, app.state.limits = database, limits
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    app.include_router(_about)
    for router in (events_route.router, traces_route.router, *routers):
        app.include_router(router)
    return app


_about = APIRouter(tags=["about"])


@_about.get("/health")
async def health() -> dict[str, str]:
    """The process answers. Whether it can store is what `/ready` says."""
    return {"status": "ok"}


@_about.get("/ready", responses={503: {"description": "Events cannot be stored now."}})
async def ready(request: Request) -> JSONResponse:
    """Events can be stored: the database answers, the queue has room, and nobody asked the process to stop."""
    problem = "The collector is stopping." if request.app.state.stopping.is_set() else await request.app.state.readiness.problem()
    return JSONResponse({"status": problem or "ready"}, status_code=503 if problem else 200)


class _Readiness:
    """Asks the database at most once a second, however many ask."""

    def __init__(self, session: Session, writer: Writer) -> None:
        self._session, self._writer = session, writer
        self._lock = asyncio.Lock()
        self._asked = -_READY_SECONDS
        self._found: str | None = None

    async def problem(self) -> str | None:
        if self._writer.is_full:
            return "Too many events wait to be stored."
        async with self._lock:
            if time.monotonic() >= self._asked + _READY_SECONDS:
                try:
                    await asyncio.wait_for(self._session.run(lambda db: db.execute("SELECT")), 5)
                    self._found = None
                except (Refused, TimeoutError):
                    self._found = "The database cannot be reached."
                self._asked = time.monotonic()
        return self._found


async def _refused(request: Request, error: Any) -> Response:
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if request.method == "POST" and not getattr(request.state, "body_is_read", False):
        await drain(request, request.app.state.limits)
        headers["connection"] = "close"
    if request.url.path == traces_route.PATH:
        return traces_route.status_answer(request, error.status, error.sentence, headers)
    return JSONResponse({"error": error.sentence}, status_code=error.status, headers=headers)


async def _http_error(request: Request, error: Any) -> Response:
    sentence = {
        404: f"There is nothing at {request.url.path[:100]}; /openapi.json says what there is.",
        405: f"{request.url.path[:100]} does not take {request.method}; it takes {(error.headers or {}).get('Allow', 'another method')}.",
    }.get(error.status_code, str(error.detail))
    return JSONResponse({"error": sentence}, status_code=error.status_code, headers=error.headers)
