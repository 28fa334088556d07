"""A receiver of webhooks over real HTTPS: checks signatures with the standard's library, and misbehaves when told to."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYqrTw=="


@dataclass
class Request:
    headers: dict[str, str]
    body: bytes
    server_name: str | None


@dataclass
class Receiver:
    port: int
    secret: str = SECRET
    requests: list[Request] = field(default_factory=list)
    accepted: list[dict[str, Any]] = field(default_factory=list)
    script: list[Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=list)
    """What to do with the next requests; when it is empty, a request with a good signature is accepted."""

    def url(self, host: str = "localhost") -> str:
        return f"https://{host}:{self.port}/hooks/7f3a-private?token=in-the-address"

    def answer(self, handler: BaseHTTPRequestHandler, request: Request) -> None:
        self.requests.append(request)
        if self.script:
            self.script.pop(0)(handler)
            return
        try:
            event = Webhook(self.secret).verify(request.body, request.headers)
        except WebhookVerificationError as problem:
            handler.send_error(401, str(problem))
            return
        self.accepted.append(event)
        status(204)(handler)


def status(code: int, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def act(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return act


@contextmanager
def receiving(context: ssl.SSLContext, address: str = "127.0.0.1", port: int = 0) -> Iterator[Receiver]:
    names: dict[int, str | None] = {}
    context.sni_callback = lambda sock, name, _: names.__setitem__(threading.get_ident(), name)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            receiver.answer(self, Request(dict(self.headers.items()), body, names.get(threading.get_ident())))

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def finish_request(self, request: Any, client_address: Any) -> None:
            # In the request's own thread, so that a client that never shakes hands blocks nobody else.
            try:
                wrapped = context.wrap_socket(request, server_side=True)
            except OSError:
                return
            with wrapped:
                Handler(wrapped, client_address, self)

        def handle_error(self, *_: object) -> None:
            pass

    server = Server((address, port), Handler)
    server.daemon_threads = True
    receiver = Receiver(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
