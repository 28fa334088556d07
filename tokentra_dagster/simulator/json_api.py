"""A simulated API that answers JSON: what is to go wrong goes wrong first, otherwise the honest answer, damaged if it has to be."""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from typing import Any, ClassVar
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tokentra_dagster.simulator.faults import TOLD, damage
from tokentra_dagster.simulator.query import Refusal
from tokentra_dagster.simulator.simulation import Simulation
from tokentra_dagster.simulator.wire import drop


class JsonApi(ABC):
    """An ASGI application at `prefix`."""

    provider: ClassVar[str]
    """Whose faults happen here."""
    token: ClassVar[str]
    """The parameter that names a later page."""

    def __init__(self, simulation: Simulation, prefix: str) -> None:
        self._simulation, self._prefix = simulation, prefix

    @abstractmethod
    def _answer(self, request: Request, path: str, body: bytes) -> dict[str, Any]:
        """The honest answer. Raises `Refusal`."""

    @abstractmethod
    def _error(self, refusal: Refusal) -> dict[str, Any]:
        """The body of an answer other than 200."""

    @abstractmethod
    def _spoil(self, answer: dict[str, Any], kind: str, token: str | None) -> None:
        """Do to an honest answer what a fault of this kind does."""

    def _asked(self, path: str) -> str:
        """What a fault's `path` is looked for in."""
        return path

    def _counted(self, path: str) -> str:
        """Under which name the request is counted."""
        return self._asked(path)

    def _fault_code(self, status: int) -> str | None:
        """The provider's word for a status that a fault asks for."""
        return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        path = unquote(request.url.path.removeprefix(self._prefix))
        body = await request.body()
        token = request.query_params.get(self.token)
        self._simulation.requests[f"{self.provider} {self._counted(path)}"] += 1
        fault = self._simulation.faults.take(self.provider, self._asked(path), token is not None)
        if fault and fault.kind == "timeout":
            await asyncio.sleep(fault.seconds)
        headers: dict[str, str] = {}
        try:
            if fault and fault.status:
                headers = fault.headers
                raise Refusal(fault.status, TOLD, code=self._fault_code(fault.status))
            answer = self._answer(request, path, body)
            if fault:
                self._spoil(answer, fault.kind, token)
            status, content = 200, json.dumps(answer).encode()
        except Refusal as refusal:
            status, content = refusal.status, json.dumps(self._error(refusal)).encode()
        if fault and fault.kind == "truncated_json":
            content = damage("truncated_json", content, token)
        if fault and fault.kind == "dropped":
            await drop(status, content, send)
            return
        await Response(content, status, headers, media_type="application/json")(scope, receive, send)
