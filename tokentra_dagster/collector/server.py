"""Serves the application with uvicorn, whose connections here have limits for headers too: `serve(...)`, or `Server` on a thread."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from tokentra_dagster.collector.limits import Limits
from tokentra_dagster.errors import UsageError

STOPPING_SECONDS = 10


def serve(app: FastAPI, listening: socket.socket, ready: Callable[[str], None] = lambda url: None) -> None:
    """Serve until SIGINT or SIGTERM; what was taken is stored and answered first."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    host, port = listening.getsockname()[:2]
    ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    # uvicorn raises the signal again once it has shut down in order.
    with suppress(KeyboardInterrupt):
        Server(app).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; `port` 0 takes a free one. Raises `UsageError` where the port is taken or the address not ours."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise UsageError(
            f"Cannot listen at {host}:{port} ({error.strerror}); choose another with --port or TOKENTRA_COLLECTOR_PORT."
        ) from None
    listening.listen(1024)
    return listening


class Server(uvicorn.Server):
    """uvicorn, which tells streams that it stops before it waits for them."""

    def __init__(self, app: FastAPI) -> None:
        limits: Limits = app.state.limits
        self._app = app
        config = uvicorn.Config(
            app, http=_protocol(limits), ws="none", access_log=False, log_config=None, log_level="warning", server_header=False,
            limit_concurrency=limits.connections, timeout_keep_alive=60, timeout_graceful_shutdown=STOPPING_SECONDS,
        )  # fmt: skip
        super().__init__(config)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        stopping: asyncio.Event | None = getattr(self._app.state, "stopping", None)
        if stopping is not None:
            stopping.set()
        await super().shutdown(sockets)


def _protocol(limits: Limits) -> type[asyncio.Protocol]:
    """uvicorn has no limit for the time and the size of headers, nor for bytes that nobody reads."""

    class LimitedProtocol(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None
        _in_headers = True
        _received = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._start_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._in_headers, self._received = True, 0
            self._start_timer()

        def on_headers_complete(self) -> None:
            self._in_headers = False
            self._stop_timer()
            super().on_headers_complete()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.transport.is_closing():
                return
            self._received += len(data)
            if self._in_headers and self._received > limits.header_bytes:
                self._refuse(431, f"The headers are larger than {limits.header_bytes:,} bytes.")
            elif self._received > _FRAMING * limits.body_bytes + limits.header_bytes:
                self.transport.close()

        def _start_timer(self) -> None:
            self._stop_timer()
            self._timer = self.loop.call_later(limits.header_seconds, self._too_slow)

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _too_slow(self) -> None:
            self._refuse(408, f"The headers did not come within {limits.header_seconds:g} seconds.")

        def _refuse(self, status: int, sentence: str) -> None:
            if self.transport.is_closing():
                return
            # Behind a request that is still being answered, an answer of this one would be taken for that one's.
            if self.cycle is None or self.cycle.response_complete:
                body = f'{{"error": "{sentence}"}}'.encode()
                head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
                self.transport.write(STATUS_LINE[status] + head.encode() + body)
            self.transport.close()

    return LimitedProtocol


_FRAMING = 8
"""A body in chunks of one byte has six bytes around each; what is more than this is no request."""
