"""A scripted provider: a real HTTP server on loopback that the vendors' SDKs talk to, and the log of what they asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tokentra_dagster.providers import open_source
from tokentra_dagster.providers.base import ConnectionConfig, Granularity, Source, Window

SECRET = "sk-admin-TOPSECRET-0123456789"


@dataclass(frozen=True)
class Asked:
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]

    def one(self, name: str) -> str | None:
        values = self.query.get(name)
        return values[0] if values else None


@dataclass(frozen=True)
class Answer:
    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: bool = False
    """Announce the whole body but send half of it."""
    stall: float = 0.0
    """Wait so many seconds in the middle of the body."""

    def content(self) -> bytes:
        return self.body.encode() if isinstance(self.body, str) else json.dumps(self.body).encode()


Script = dict[str, Any] | str | Answer | Callable[[Asked], Any]


class ScriptedProvider:
    """`on(path, ...)` gives a path's answers in order; one that has no script answers with an empty page."""

    def __init__(self) -> None:
        self.requests: list[Asked] = []
        self._scripts: dict[str, list[Script]] = {}
        self._stopping = threading.Event()
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider._serve(self)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=lambda: self._server.serve_forever(poll_interval=0.02), daemon=True).start()

    def on(self, path: str, *answers: Script) -> None:
        self._scripts[path] = list(answers)

    def asked(self, path: str) -> list[Asked]:
        return [request for request in self.requests if request.path == path]

    def stop(self) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        url = urlsplit(handler.path)
        headers = {name.lower(): value for name, value in handler.headers.items()}
        asked = Asked(url.path, parse_qs(url.query, keep_blank_values=True), headers)
        self.requests.append(asked)
        script: Any = {"data": [], "has_more": False, "next_page": None}
        if url.path in self._scripts:
            left = self._scripts[url.path]
            script = left.pop(0) if left else Answer({"error": {"message": "the script has no more answers"}}, status=418)
            if callable(script):
                left.insert(0, script)
                script = script(asked)
        answer = script if isinstance(script, Answer) else Answer(script)
        self._stopping.wait(answer.delay)
        content = answer.content()
        handler.send_response(answer.status)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", str(len(content)))
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        half = len(content) // 2
        try:
            handler.wfile.write(content[:half])
            self._stopping.wait(answer.stall)
            handler.wfile.write(b"" if answer.cut else content[half:])
        except OSError:
            pass  # the client gave this page up


@pytest.fixture
def provider() -> Iterator[ScriptedProvider]:
    scripted = ScriptedProvider()
    yield scripted
    scripted.stop()


@pytest.fixture
def openai(provider: ScriptedProvider) -> Callable[..., Source]:
    """Opens the OpenAI source at the scripted provider; options as keywords."""

    def open_it(**options: str) -> Source:
        given = {"max_retries": "1", "timeout_seconds": "5"} | options
        return open_source(ConnectionConfig("openai", SECRET, provider.url + "/v1", given))

    return open_it


@pytest.fixture
def anthropic(provider: ScriptedProvider) -> Callable[..., Source]:
    """Opens the Anthropic source at the scripted provider, at noon on 2026-11-24 unless `now` says otherwise."""
    from tokentra_dagster.providers.anthropic import AnthropicSource

    def open_it(now: datetime = datetime(2026, 11, 24, 12, tzinfo=UTC), **options: str) -> Source:
        given = {"max_retries": "1", "timeout_seconds": "5"} | options
        return AnthropicSource(ConnectionConfig("anthropic", SECRET, provider.url, given), now=lambda: now)

    return open_it


@pytest.fixture
def secret() -> str:
    return SECRET


@pytest.fixture
def answer() -> type[Answer]:
    return Answer


@pytest.fixture
def days() -> Callable[..., Window]:
    """A window of whole UTC days from (year, month, day) to (year, month, day)."""

    def window(start: tuple[int, int, int], end: tuple[int, int, int], granularity: Granularity = "1d") -> Window:
        return Window(datetime(*start, tzinfo=UTC), datetime(*end, tzinfo=UTC), granularity)

    return window
