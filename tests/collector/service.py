"""A collector that listens on a real socket, and plain ways to talk to it."""

from __future__ import annotations

import gzip
import http.client
import json
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from tokentra_dagster.collector.application import create_app
from tokentra_dagster.collector.keys import add_key
from tokentra_dagster.collector.limits import Limits
from tokentra_dagster.collector.server import Server, listen
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import add_organization

MOMENT = datetime.now(UTC)


class Answer(NamedTuple):
    status: int
    body: Any
    headers: dict[str, str]


class Collector:
    """The collector on a thread for as long as the context lasts."""

    def __init__(self, database: Database, limits: Limits | None = None, routers: Sequence[Any] = ()) -> None:
        self.database = database
        self.app = create_app(database, limits, routers)
        self._socket = listen("127.0.0.1", 0)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = Server(self.app)
        self._thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self._socket]}, daemon=True)

    def __enter__(self) -> Collector:
        self._thread.start()
        deadline = time.monotonic() + 30
        while not self.server.started:
            assert self._thread.is_alive() and time.monotonic() < deadline
            time.sleep(0.005)
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()
        self._socket.close()

    def post(self, body: Any, key: str | None, path: str = "/v1/events", zipped: bool = False, **headers: str) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            sent["Authorization"] = f"Bearer {key}"
        if zipped:
            data, sent["Content-Encoding"] = gzip.compress(data), "gzip"
        return self.ask("POST", path, data, sent)

    def ask(self, method: str, path: str, data: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            link.request(method, path, data, headers or {})
            response = link.getresponse()
            said = response.read()
            found = {name.lower(): value for name, value in response.getheaders()}
            is_json = "json" in found.get("content-type", "")
            return Answer(response.status, json.loads(said) if is_json and said else said, found)
        finally:
            link.close()


def key_of(database: Database, org: str = "acme", name: str = "tests") -> str:
    """A key of the organisation, which is made where it is new."""
    with database.connect() as db:
        add_organization(db, org)
        return add_key(db, org, name)


def payload(event_id: str = "e1", **fields: Any) -> dict[str, Any]:
    return {
        "event_id": event_id, "occurred_at": MOMENT.isoformat(), "provider": "openai", "model": "gpt-4o-2024-08-06",
        "input_tokens": 100, "output_tokens": 10,
    } | fields  # fmt: skip
