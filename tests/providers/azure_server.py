"""A scripted Azure: series and totals as a test puts them, over HTTP to the real SDK."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

SUBSCRIPTION = "11111111-2222-3333-4444-555555555555"
ACCOUNT = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/ai/providers/Microsoft.CognitiveServices/accounts/acme-ai"
TOKEN = "TOPSECRET-bearer-token"

Series = dict[str, Any]


class AzureServer:
    """`put` adds a point to a series; the unsplit total is the sum of the series and of what `put` says without dimensions."""

    def __init__(self) -> None:
        self.points: list[tuple[str, dict[str, str], datetime, float]] = []
        self.deployments: list[dict[str, Any]] = []
        self.accounts: list[dict[str, Any]] = [{"id": ACCOUNT, "name": "acme-ai", "location": "East US", "kind": "OpenAI"}]
        self.errors: dict[str, tuple[str, str]] = {}
        self.change: Callable[[str, dict[str, Any]], Any] | None = None
        self.asked: list[tuple[str, dict[str, str], dict[str, str]]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._do()

            def do_POST(self) -> None:
                self._do()

            def _do(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                body = json.loads(self.rfile.read(length)) if length else {}
                url = urlsplit(self.path)
                query = {name: values[-1] for name, values in parse_qs(url.query).items()}
                server.asked.append((url.path, query, {name.lower(): value for name, value in self.headers.items()}))
                status, answer = server.answer(url.path, query, body)
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=lambda: self._http.serve_forever(poll_interval=0.02), daemon=True).start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def put(self, metric: str, at: datetime, value: float, **dimensions: str) -> None:
        self.points.append((metric, {name.lower(): one for name, one in dimensions.items()}, at, value))

    def deploy(self, name: str, model: str, version: str, sku: str) -> None:
        about = {"model": {"format": "OpenAI", "name": model, "version": version}}
        self.deployments.append({"id": f"{ACCOUNT}/deployments/{name}", "name": name, "sku": {"name": sku}, "properties": about})

    def answer(self, path: str, query: dict[str, str], body: dict[str, Any]) -> tuple[int, Any]:
        if path.endswith("/accounts"):
            answer: Any = {"value": self.accounts}
        elif path.endswith("/deployments"):
            answer = {"value": self.deployments}
        else:
            answer = {"values": [self._resource(name, query) for name in body["resourceids"]]}
        changed = self.change(path, answer) if self.change else None
        return changed if changed is not None else (200, answer)

    def _resource(self, name: str, query: dict[str, str]) -> dict[str, Any]:
        names = [term.split(" eq ")[0].lower() for term in query.get("filter", "").split(" and ") if term]
        metrics = [self._metric(metric, names, query) for metric in query["metricnames"].split(",")]
        return {"starttime": query["starttime"], "endtime": query["endtime"], "resourceid": name, "value": metrics}

    def _metric(self, metric: str, names: list[str], query: dict[str, str]) -> dict[str, Any]:
        series: dict[tuple[str, ...], dict[str, float]] = {}
        for of, dimensions, at, value in self.points:
            if of != metric or not datetime.fromisoformat(query["starttime"]) <= at < datetime.fromisoformat(query["endtime"]):
                continue
            if not all(name in dimensions for name in names):
                continue
            data = series.setdefault(tuple(dimensions[name] for name in names), {})
            moment = f"{at:%Y-%m-%dT%H:%M:%SZ}"
            data[moment] = data.get(moment, 0.0) + value
        top = int(query.get("top", "10")) if names else len(series)
        code, message = self.errors.get(metric, ("Success", ""))
        statistics = [one.lower() for one in query["aggregation"].split(",")]
        return {
            "id": metric,
            "type": "Microsoft.Insights/metrics",
            "name": {"value": metric},
            "unit": "Count",
            "errorCode": code,
            "errorMessage": message,
            "timeseries": [
                {
                    "metadatavalues": [{"name": {"value": n}, "value": v} for n, v in zip(names, key, strict=True)],
                    "data": [{"timeStamp": at} | dict.fromkeys(statistics, value) for at, value in data.items()],
                }
                for key, data in list(series.items())[:top]
            ],
        }


@contextmanager
def running() -> Iterator[AzureServer]:
    server = AzureServer()
    try:
        yield server
    finally:
        server.stop()
