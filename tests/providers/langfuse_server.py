"""Langfuse's Observations API v2 as it answers: cursors, Basic authentication, free-form usage details; and what can go wrong."""

from __future__ import annotations

import base64
import json
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

PUBLIC, SECRET = "pk-lf-1", "sk-lf-topsecret"
STATUS = {"wrong_key": 401, "forbidden": 403, "rate_limit": 429, "server_error": 503}
LARGEST_PAGE = 100


@dataclass(frozen=True)
class Generated:
    """One generation, in canonical tokens: `sent` holds what was read from and written to the provider's cache."""

    id: str
    at: datetime
    model: str
    sent: int
    received: int
    read: int = 0
    written: int = 0
    is_inclusive: bool = True
    user: str | None = None
    reasoning: int = 0
    """Of `received`; told apart where `is_inclusive` is not, as Langfuse takes OpenAI's usage apart."""
    type: str = "GENERATION"

    def as_json(self) -> dict[str, Any]:
        parts = {
            name: count
            for name, count in (
                ("input_cached_tokens", self.read), ("cache_creation_input_tokens", self.written), ("output_reasoning_tokens", self.reasoning),
            )
            if count
        }  # fmt: skip
        taken = (0, 0) if self.is_inclusive else (self.read + self.written, self.reasoning)
        details = {"input": self.sent - taken[0], "output": self.received - taken[1], "total": self.sent + self.received} | parts
        return {
            "id": self.id, "traceId": "t", "startTime": self.at.isoformat().replace("+00:00", "Z"), "endTime": None, "projectId": "p1",
            "type": self.type, "level": "DEFAULT", "userId": self.user, "environment": "production", "model": self.model,
            "usageDetails": details, "latency": 1.25,
        }  # fmt: skip


def generations(seed: int, start: datetime, end: datetime, count: int) -> list[Generated]:
    generator = random.Random(seed)
    found = []
    for n in range(count):
        at = start + timedelta(seconds=generator.randrange(int((end - start).total_seconds())))
        sent = generator.randrange(10, 300_000)
        cached = generator.random() < 0.5
        found.append(
            Generated(
                f"g{n}", at.replace(minute=0, second=0) if n % 10 == 0 else at, generator.choice(["gpt-4o", "claude-sonnet-4-6"]), sent,
                generator.randrange(1, 4000), sent // 3 if cached else 0, sent // 7 if cached else 0, generator.random() < 0.5,
                generator.choice([None, "ann"]), generator.choice([0, 1]), generator.choice(["GENERATION", "GENERATION", "EMBEDDING"]),
            )
        )  # fmt: skip
    return found


class Langfuse:
    """The server. `made` may be changed; `faults` go wrong one after another."""

    def __init__(self, made: Sequence[Generated]) -> None:
        self.made = list(made)
        self.faults: list[str] = []
        self.answers = 0
        self.patience = 0.0
        """What a rate limit asks for, in seconds."""
        self.raw: dict[str, dict[str, Any]] = {}
        """Id -> what an observation says instead."""
        self._lock = threading.Lock()
        peer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                peer._answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def running(self) -> Iterator[Langfuse]:
        threading.Thread(target=lambda: self._server.serve_forever(poll_interval=0.02), daemon=True).start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        with self._lock:
            self.answers += 1
            fault = self.faults.pop(0) if self.faults else ""
        expected = "Basic " + base64.b64encode(f"{PUBLIC}:{SECRET}".encode()).decode()
        status = STATUS.get(fault, 200 if handler.headers.get("Authorization") == expected else 401)
        body = json.dumps({"message": "as told"} if status != 200 else self._page(handler.path, fault)).encode()
        if fault == "timeout":
            time.sleep(4)
        handler.send_response(status)
        if fault == "rate_limit":
            handler.send_header("Retry-After", f"{self.patience:g}")
        handler.send_header("Content-Type", "application/json")
        sent = body[: len(body) // 2] if fault in ("dropped", "truncated") else body
        handler.send_header("Content-Length", str(len(sent if fault == "truncated" else body)))
        handler.end_headers()
        with suppress(OSError):  # the client may have given up
            handler.wfile.write(sent)
        handler.close_connection = True

    def _page(self, path: str, fault: str) -> dict[str, Any]:
        asked = {name: values[0] for name, values in parse_qs(urlsplit(path).query).items()}
        start, end = (
            datetime.fromisoformat(asked[name].replace("Z", "+00:00")) if name in asked else None
            for name in ("fromStartTime", "toStartTime")
        )
        rows = [one for one in self.made if (start is None or one.at >= start) and (end is None or one.at < end)]
        rows = [one for one in rows if one.type == asked.get("type", one.type)]
        rows.sort(key=lambda one: (one.at, one.id), reverse=True)
        first, limit = int(asked.get("cursor", 0)), min(int(asked.get("limit", 50)), LARGEST_PAGE)
        data = [one.as_json() | self.raw.get(one.id, {}) for one in rows[first : first + limit]]
        if fault == "bad_record" and data:
            data[0]["usageDetails"]["input"] = -5
        more = first + limit < len(rows)
        return {"data": data, "meta": {"cursor": str(first + limit)} if more else {}}


NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
