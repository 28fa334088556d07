"""The running simulator with its clock at 13:37 on a Tuesday, the real connectors opened at it, and plain requests to it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tokentra_dagster.providers import open_source
from tokentra_dagster.providers.anthropic import AnthropicSource
from tokentra_dagster.providers.base import ConnectionConfig, Source
from tokentra_dagster.simulator.server import RunningSimulator

NOW = datetime(2026, 11, 24, 13, 37, tzinfo=UTC)
COMMAND = [sys.executable, "-c", "from tokentra_dagster.cli import main; main()", "simulate"]
ROOT = Path(__file__).parents[2]
FAST = {"max_retries": "0", "timeout_seconds": "5"}


@dataclass(frozen=True)
class Reply:
    status: int
    text: str
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.text)


def ask(
    url: str, headers: dict[str, str] | None = None, body: Any = None, method: str | None = None, raw: bool = False, **params: Any
) -> Reply:
    """One plain HTTP request; lists become `name[]` repeated; a `raw` body is text already."""
    pairs = [(f"{n}[]", one) for n, v in params.items() if isinstance(v, list) for one in v]
    pairs += [(n, v) for n, v in params.items() if not isinstance(v, list)]
    data = None if body is None else (body if raw else json.dumps(body)).encode()
    request = urllib.request.Request(f"{url}?{urlencode(pairs)}" if pairs else url, data, headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return Reply(response.status, response.read().decode(), dict(response.headers))
    except urllib.error.HTTPError as error:
        return Reply(error.code, error.read().decode(), dict(error.headers))


@pytest.fixture
def now() -> datetime:
    return NOW


@pytest.fixture
def simulator() -> Iterator[RunningSimulator]:
    with RunningSimulator(now=NOW) as running:
        yield running


@pytest.fixture
def request_to() -> Callable[..., Reply]:
    return ask


@pytest.fixture
def openai(simulator: RunningSimulator) -> Callable[..., Source]:
    """Opens the real OpenAI source at the simulator; options as keywords."""

    def open_it(org: str = "acme", key: str | None = None, **options: str) -> Source:
        return open_source(ConnectionConfig("openai", key or f"sk-admin-{org}", simulator.openai_url, FAST | options))

    return open_it


@pytest.fixture
def anthropic(simulator: RunningSimulator) -> Callable[..., Source]:
    """Opens the real Anthropic source at the simulator, its clock being the simulator's."""

    def open_it(org: str = "acme", key: str | None = None, **options: str) -> Source:
        config = ConnectionConfig("anthropic", key or f"sk-ant-admin01-{org}", simulator.anthropic_url, FAST | options)
        return AnthropicSource(config, now=lambda: simulator.simulation.clock())

    return open_it


@pytest.fixture
def ask_openai(simulator: RunningSimulator) -> Callable[..., Reply]:
    """`GET /organization/<path>` at the simulated OpenAI; datetimes become Unix seconds."""

    def get(path: str, key: str = "sk-admin-acme", **params: Any) -> Reply:
        params = {n: int(v.timestamp()) if isinstance(v, datetime) else v for n, v in params.items()}
        return ask(f"{simulator.openai_url}/organization/{path}", {"Authorization": f"Bearer {key}"}, **params)

    return get


@pytest.fixture
def ask_anthropic(simulator: RunningSimulator) -> Callable[..., Reply]:
    """`GET /v1/organizations/<path>` at the simulated Anthropic, with the headers of the beta unless others are given."""

    def get(path: str, headers: dict[str, str] | None = None, **params: Any) -> Reply:
        usual = {
            "x-api-key": "sk-ant-admin01-acme",
            "anthropic-version": "2026-10-21",
            "anthropic-beta": "analytics-usage-cost-2026-08-24",
        }
        params = {n: v.isoformat() if isinstance(v, datetime) else v for n, v in params.items()}
        return ask(f"{simulator.anthropic_url}/v1/organizations/{path}", usual if headers is None else headers, **params)

    return get


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


@pytest.fixture
def run_command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`tokentra simulate ARGUMENTS` to its end, which must come soon."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)

    return run


@pytest.fixture
def start_command() -> Callable[..., Any]:
    """A context in which `tokentra simulate ARGUMENTS` runs; its last argument is the port."""

    @contextmanager
    def start(*arguments: str) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [*COMMAND, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        try:
            _until_it_answers(process, f"http://127.0.0.1:{arguments[-1]}/_simulator/state")
            yield process
        finally:
            process.kill()
            process.communicate()

    return start


def _until_it_answers(process: subprocess.Popen[str], url: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            ask(url)
            return
        except OSError:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "the simulator did not answer within 60 s"
            time.sleep(0.1)
