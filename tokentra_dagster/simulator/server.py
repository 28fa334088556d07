"""The simulated providers over HTTP, and the endpoints by which a contributor changes what they do.

Addresses: OpenAI at `/openai/v1`, Anthropic at `/anthropic`, AWS at `/aws` (see `aws_api`), Azure at `/azure` (see `azure_api`), Google at
`/google` (its bill, see `google_billing`) and by gRPC on a port of its own (see `google_monitoring`), the gateway as Langfuse tells it at
`/langfuse` (see `langfuse_api`). Keys: `sk-admin-acme` and `sk-admin-globex`, `sk-ant-admin01-acme` and `sk-ant-admin01-globex`; the others
are in docs/simulator.md, and any other key is refused. With `tokentra simulate` running:

    curl -H 'Authorization: Bearer sk-admin-acme' \\
      'http://127.0.0.1:8321/openai/v1/organization/usage/completions?start_time=1767225600&group_by=model'
    curl http://127.0.0.1:8321/_simulator/state
    curl -X POST http://127.0.0.1:8321/_simulator/clock -d '{"now": "2026-06-30T12:00Z"}'      # or {"now": null}: the real time
    curl -X POST http://127.0.0.1:8321/_simulator/clock -d '{"advance_seconds": 86400}'
    curl -X POST http://127.0.0.1:8321/_simulator/faults \\
      -d '{"kind": "rate_limit", "provider": "openai", "path": "usage/completions", "times": 2, "retry_after": 1}'
    curl -X POST http://127.0.0.1:8321/_simulator/restate \\
      -d '{"org": "acme", "provider": "openai", "factor": 1.1, "match": {"project_id": "proj_acme_studio"},
           "start": "2026-06-01T00:00Z", "end": "2026-06-02T00:00Z"}'
    curl -X POST http://127.0.0.1:8321/_simulator/withdraw \\
      -d '{"org": "acme", "provider": "openai", "match": {"project_id": "proj_acme_studio"}}'
    curl -X DELETE http://127.0.0.1:8321/_simulator/changes                                    # faults and past as they were

The kinds of faults are in `faults.KINDS`. There is no authentication here: serve it on loopback only.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from tokentra_dagster.errors import TokenTraError, UsageError
from tokentra_dagster.simulator.answers import answer, fault_answer
from tokentra_dagster.simulator.aws_api import AwsApi
from tokentra_dagster.simulator.azure_api import AzureApi
from tokentra_dagster.simulator.companies import NAMES
from tokentra_dagster.simulator.faults import damage
from tokentra_dagster.simulator.google_billing import GoogleBilling
from tokentra_dagster.simulator.google_monitoring import GoogleMonitoring
from tokentra_dagster.simulator.langfuse_api import LangfuseApi
from tokentra_dagster.simulator.simulation import KEY_PREFIX, Simulation
from tokentra_dagster.simulator.wire import drop

OPENAI_PATH = "/openai/v1"
ANTHROPIC_PATH = "/anthropic"
AWS_PATH = "/aws"
AZURE_PATH = "/azure"
LANGFUSE_PATH = "/langfuse"
GOOGLE_PATH = "/google"
_STARTING_SECONDS = 10.0
_STOPPING_SECONDS = 10.0


class RunningSimulator:
    """The simulator on a thread of its own for as long as the context lasts. `port` 0 takes a free one."""

    def __init__(self, now: datetime | None = None, host: str = "127.0.0.1", port: int = 0, scale: int = 1) -> None:
        self.simulation = Simulation(now, scale)
        self._socket = _listen(host, port)
        self.url = f"http://{host}:{self._socket.getsockname()[1]}"
        self._server = _server(self.simulation)
        self._google: GoogleMonitoring | None = None
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="simulator", daemon=True
        )

    @property
    def openai_url(self) -> str:
        return self.url + OPENAI_PATH

    @property
    def anthropic_url(self) -> str:
        return self.url + ANTHROPIC_PATH

    @property
    def aws_url(self) -> str:
        return self.url + AWS_PATH

    @property
    def azure_url(self) -> str:
        return self.url + AZURE_PATH

    @property
    def langfuse_url(self) -> str:
        return self.url + LANGFUSE_PATH

    @property
    def google_url(self) -> str:
        """Cloud Monitoring, by gRPC. It is started when it is first asked for: most have no use for it. Raises `TokenTraError`."""
        if self._google is None:
            self._google = GoogleMonitoring(self.simulation)
        return self._google.url

    @property
    def bigquery_url(self) -> str:
        return self.url + GOOGLE_PATH

    def __enter__(self) -> Self:
        self._thread.start()
        deadline = time.monotonic() + _STARTING_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                self._socket.close()
                raise TokenTraError(f"The simulator did not start at {self.url}.")
            time.sleep(0.005)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._google is not None:
            self._google.stop()
        self._server.should_exit = True
        self._thread.join(_STOPPING_SECONDS)
        self._socket.close()


def serve(
    host: str,
    port: int,
    now: datetime | None = None,
    scale: int = 1,
    ready: Callable[[str, str | None], None] = lambda url, google: None,
) -> None:
    """Serve until Ctrl-C; `ready` is told the addresses once requests are taken: HTTP's, and gRPC's, which is None without the extra
    `google`. gRPC takes the next port, or any where that one is taken. Raises `UsageError` when the port is taken."""
    listening = _listen(host, port)
    simulation = Simulation(now, scale)
    google = _google(simulation, host, listening.getsockname()[1] + 1)
    try:
        ready(f"http://{host}:{listening.getsockname()[1]}", google.url if google else None)
        # uvicorn raises the signal again once it has shut down in order.
        with suppress(KeyboardInterrupt):
            _server(simulation).run(sockets=[listening])
    finally:
        listening.close()
        if google:
            google.stop()


def _google(simulation: Simulation, host: str, port: int) -> GoogleMonitoring | None:
    for chosen in (port, 0):
        with suppress(TokenTraError):
            return GoogleMonitoring(simulation, host, chosen)
    return None


def application(simulation: Simulation) -> Starlette:
    """The ASGI application of one simulation."""

    def control(change: Callable[[Simulation, dict[str, Any]], None]) -> Callable[[Request], Any]:
        async def handle(request: Request) -> Response:
            try:
                body = await request.body()
                change(simulation, json.loads(body) if body else {})
            except (TokenTraError, TypeError, ValueError, KeyError) as error:
                return JSONResponse({"error": str(error)}, status_code=400)
            return JSONResponse(_state(simulation))

        return handle

    async def state(request: Request) -> Response:
        return JSONResponse(_state(simulation))

    return Starlette(
        routes=[
            Route("/_simulator/state", state),
            Route("/_simulator/clock", control(_set_clock), methods=["POST"]),
            Route("/_simulator/faults", control(lambda s, body: s.fault(**body)), methods=["POST"]),
            Route("/_simulator/restate", control(lambda s, body: s.restate(**_times(body))), methods=["POST"]),
            Route("/_simulator/withdraw", control(lambda s, body: s.withdraw(**_times(body))), methods=["POST"]),
            Route("/_simulator/changes", control(lambda s, body: s.reset()), methods=["DELETE"]),
            Mount(OPENAI_PATH, app=_Provider(simulation, "openai", OPENAI_PATH)),
            Mount(ANTHROPIC_PATH, app=_Provider(simulation, "anthropic", ANTHROPIC_PATH)),
            Route(AWS_PATH, AwsApi(simulation, AWS_PATH)),  # without a slash a mount would redirect, which boto3 does not follow
            Mount(AWS_PATH, app=AwsApi(simulation, AWS_PATH)),
            Mount(AZURE_PATH, app=AzureApi(simulation, AZURE_PATH)),
            Mount(LANGFUSE_PATH, app=LangfuseApi(simulation, LANGFUSE_PATH)),
            Mount(GOOGLE_PATH, app=GoogleBilling(simulation, GOOGLE_PATH)),
        ]
    )


class _Provider:
    """One provider: faults first, then its own answer."""

    def __init__(self, simulation: Simulation, name: str, prefix: str) -> None:
        self._simulation, self._name, self._prefix = simulation, name, prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        path = request.url.path.removeprefix(self._prefix)
        pairs = request.query_params.multi_items()
        token = request.query_params.get("page")
        self._simulation.requests[f"{self._name} {path}"] += 1
        if request.method != "GET":
            await JSONResponse({"error": {"message": "Only GET is simulated."}}, status_code=405)(scope, receive, send)
            return
        fault = self._simulation.faults.take(self._name, path, token is not None)
        found = fault_answer(self._name, path, fault) if fault else None
        if fault and fault.kind == "timeout":
            await asyncio.sleep(fault.seconds)
        if found is None:
            headers = {name.lower(): value for name, value in request.headers.items()}
            found = answer(self._simulation, self._name, path, pairs, headers)
        body = damage(fault.kind, found.body, token) if fault and found.status == 200 else found.body
        if fault and fault.kind == "dropped":
            await drop(found.status, body, send)
            return
        await Response(body, found.status, dict(found.headers), media_type="application/json")(scope, receive, send)


def _state(simulation: Simulation) -> dict[str, Any]:
    return {
        "now": simulation.clock().isoformat(),
        "clock": "real" if simulation.now is None else "simulated",
        "organisations": [org["name"] for org in _organisations(simulation)],
        "keys": {org["name"]: org["keys"] for org in _organisations(simulation)},
        "scale": simulation.scale,
        "faults": simulation.faults.described(),
        "adjustments": [
            {"org": a.organisation, "provider": a.provider, "factor": a.per_mille / 1000, "match": dict(a.match)}
            | {name: None if moment is None else moment.isoformat() for name, moment in (("start", a.start), ("end", a.end))}
            for a in simulation.adjustments
        ],
        "requests": dict(sorted(simulation.requests.items())),
    }


def _organisations(simulation: Simulation) -> list[dict[str, Any]]:
    return [{"name": name, "keys": [prefix + name for prefix in KEY_PREFIX.values()]} for name in NAMES]


def _set_clock(simulation: Simulation, body: dict[str, Any]) -> None:
    if set(body) == {"advance_seconds"}:
        simulation.now = simulation.clock() + timedelta(seconds=float(body["advance_seconds"]))
    elif set(body) == {"now"}:
        simulation.now = None if body["now"] is None else datetime.fromisoformat(body["now"])
    else:
        raise UsageError('Give {"now": "2026-06-30T12:00Z"}, {"now": null} for the real time, or {"advance_seconds": 3600}.')


def _times(body: dict[str, Any]) -> dict[str, Any]:
    return {name: datetime.fromisoformat(value) if name in ("start", "end") and value else value for name, value in body.items()}


def _server(simulation: Simulation) -> uvicorn.Server:
    # Dropped connections are on purpose: uvicorn's complaints about them would only alarm.
    config = uvicorn.Config(
        application(simulation), log_level="critical", access_log=False, lifespan="off", timeout_graceful_shutdown=1, ws="none"
    )
    return uvicorn.Server(config)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), backlog=256)
    except OSError as error:
        # socket's own text would repeat the address.
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UsageError(f"The simulator cannot listen on {host}:{port} ({reason}); choose another port.") from None
