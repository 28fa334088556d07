"""`tokentra up`: the database, the collector of events, Dagster's webserver and daemon; Ctrl-C stops what it started, and only that."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import click

from tokentra_dagster.dbt_manifest import ensure_manifest
from tokentra_dagster.errors import TokenTraError
from tokentra_dagster.runtime import environment
from tokentra_dagster.settings import Settings
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.embedded import EmbeddedServer
from tokentra_dagster.warehouse.migrate import migrate

HOST = "127.0.0.1"
MODULE = "tokentra_dagster.definitions"


def run_platform(settings: Settings, port: int, host: str = HOST) -> int:
    """Run until Ctrl-C or until a part ends; returns the exit status."""
    _must_be_free(host, port, "`tokentra up --port N` or TOKENTRA_UI_PORT")
    if settings.collector_port:
        _must_be_free(HOST, settings.collector_port, "TOKENTRA_COLLECTOR_PORT (0: no collector of events)")
    ours = settings.database_url is None and EmbeddedServer(settings.home, settings.database_port).url() is None
    database = Database.open(settings)
    parts: dict[str, subprocess.Popen[bytes]] = {}
    # Ctrl-C reaches the whole group; the parts get theirs from us, in order, so they are in sessions of their own.
    # A script's `tokentra up &` starts with SIGINT ignored, and so would the parts: both signals stop us, whoever started us.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        migrate(database)
        click.echo(f"Database: {database.public_address}")
        click.echo("Reading the dbt project ...")
        ensure_manifest(settings)
        env = {**os.environ, **environment(settings, database)}
        if settings.collector_port:
            collector = ["collect", "--host", HOST, "--port", str(settings.collector_port)]
            parts["collector"] = _start(
                "tokentra", collector, {**env, "TOKENTRA_DATABASE_URL": database.url}, settings.home, log="collector"
            )
        parts["Dagster UI"] = _start("dagster-webserver", ["-h", host, "-p", str(port), "-m", MODULE], env, settings.home)
        parts["Dagster daemon"] = _start("dagster-daemon", ["run", "-m", MODULE], env, settings.home)
        _wait_for_ui(parts, port, settings.home)
        if settings.collector_port:
            _wait_for("collector", f"http://{HOST}:{settings.collector_port}/ready", parts, settings.home)
            click.echo(f"Collector: http://{HOST}:{settings.collector_port}/v1/events")
        click.echo(f"Dagster UI: http://{host}:{port}   (Ctrl-C stops it; logs in {settings.home})")
        while True:
            time.sleep(0.5)
            _complain_about_ended(parts, settings.home)
    except KeyboardInterrupt:
        click.echo("\nStopping ...")
        return 0
    finally:
        _stop(parts)
        if ours:
            EmbeddedServer(settings.home, settings.database_port).stop()


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _must_be_free(host: str, port: int, setting: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            raise TokenTraError(f"Port {port} is taken; choose another with {setting}.") from None


def _start(
    program: str, arguments: list[str], env: dict[str, str], home: Path, log: str | None = None
) -> subprocess.Popen[bytes]:
    with (home / f"{log or program}.log").open("ab") as output:
        return subprocess.Popen(
            [str(Path(sys.executable).parent / program), *arguments], env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip


def _wait_for(part: str, url: str, parts: dict[str, subprocess.Popen[bytes]], home: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        _complain_about_ended(parts, home)
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.3)
    raise TokenTraError(f"The {part} did not answer within {seconds:.0f} s; see the logs in {home}.")


def _wait_for_ui(parts: dict[str, subprocess.Popen[bytes]], port: int, home: Path) -> None:
    _wait_for("Dagster UI", f"http://{HOST}:{port}/server_info", parts, home)
    if error := _load_error(port):
        raise TokenTraError(f"The Dagster UI could not load our definitions: {error}")


_LOADED = (
    "{ workspaceOrError { ... on Workspace { locationEntries { locationOrLoadError { ... on PythonError { message } } } } } }"
)


def _load_error(port: int) -> str | None:
    """What the UI would show instead of our assets, if anything."""
    body = json.dumps({"query": _LOADED}).encode()
    request = urllib.request.Request(f"http://{HOST}:{port}/graphql", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        entries = json.load(response)["data"]["workspaceOrError"]["locationEntries"]
    messages = [entry["locationOrLoadError"].get("message") for entry in entries if entry["locationOrLoadError"]]
    return next((message.strip() for message in messages if message), None)


def _complain_about_ended(parts: dict[str, subprocess.Popen[bytes]], home: Path) -> None:
    for name, process in parts.items():
        if process.poll() is not None:
            raise TokenTraError(f"The {name} ended by itself (status {process.returncode}); see the logs in {home}.")


def _stop(parts: dict[str, subprocess.Popen[bytes]]) -> None:
    for process in parts.values():
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    for process in parts.values():
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
    for process in parts.values():
        _end_group(process.pid)
        process.wait()


def _end_group(group: int) -> None:
    """End what a part started and left behind: a code server that never hears of its end, a run that goes on without us."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + 10
        try:
            os.killpg(group, number)
            while time.monotonic() < deadline:
                os.killpg(group, 0)
                time.sleep(0.1)
        except ProcessLookupError:
            return
