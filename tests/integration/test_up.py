"""`tokentra up`: the UI's own API launches a week's backfill for one connection, the daemon runs it, and dbt follows by itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.collector.service import key_of
from tests.warehouse_data import connection, one, rows
from tokentra_dagster.analyses import ANALYSES
from tokentra_dagster.client import UsageClient
from tokentra_dagster.simulator.server import RunningSimulator
from tokentra_dagster.warehouse.embedded import _free_port

NOW = datetime(2026, 6, 20, tzinfo=UTC)
WEEK = [datetime(2026, 6, 1, tzinfo=UTC) + timedelta(days=day) for day in range(7)]
Graphql = Callable[..., dict[str, Any]]

BACKFILL = """
mutation ($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
  __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }
"""
LOADED = """
{ repositoriesOrError { ... on RepositoryConnection { nodes {
  sensors { name sensorState { status } } schedules { name scheduleState { status } } } } } }
"""


@pytest.fixture
def simulator() -> Iterator[RunningSimulator]:
    with RunningSimulator(now=NOW) as running:
        yield running


@pytest.fixture
def platform(database, simulator, tmp_path: Path) -> Iterator[Graphql]:
    """A running platform with two connections; gives the way to ask its UI server, and ends with Ctrl-C."""
    for name in ("one", "other"):
        connection(database, name=name, secret_ref="env:TOKENTRA_SECRET_SIMULATED", base_url=simulator.openai_url)
    port, collector_port, home = _free_port(), _free_port(), tmp_path / "home"
    env = {
        **os.environ, "TOKENTRA_DATABASE_URL": database.url, "TOKENTRA_HOME": str(home), "TOKENTRA_SECRET_SIMULATED": "sk-admin-acme",
        "PYTHONUNBUFFERED": "1", "TOKENTRA_COLLECTOR_PORT": str(collector_port),
    }  # fmt: skip
    command = [str(Path(sys.executable).parent / "tokentra"), "up", "--port", str(port)]
    process = subprocess.Popen(
        command, env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        # As a script's `tokentra up &` starts it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    try:
        said = ""
        for line in process.stdout:
            said += line
            if "Dagster UI: http://127.0.0.1" in line:
                break
        assert (
            f"Dagster UI: http://127.0.0.1:{port}" in said and f"Collector: http://127.0.0.1:{collector_port}/v1/events" in said
        ), said

        def ask(query: str, **variables: Any) -> dict[str, Any]:
            body = json.dumps({"query": query, "variables": variables}).encode()
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/graphql", body, headers={"content-type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=60) as response:
                answer = json.load(response)
            assert "errors" not in answer, answer
            return answer["data"]

        ask.collector = f"http://127.0.0.1:{collector_port}"
        yield ask
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=120)
        assert process.returncode == 0 and "Traceback" not in rest, rest
        assert processes_of(home) == [], "what it started goes on"
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def processes_of(home: Path) -> list[str]:
    """Commands that name the platform's home."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it may have ended meanwhile
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [command for command in found if str(home) in command]


def wait_for(what: str, found: Callable[[], Any], seconds: float = 180) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(0.5)
    raise AssertionError(f"{what} did not happen within {seconds:.0f} s")


def test_a_weeks_backfill_for_one_connection_from_the_ui_loads_it_and_the_rollups_follow(platform, database, simulator):
    (repository,) = platform(LOADED)["repositoriesOrError"]["nodes"]
    assert {s["name"]: s["sensorState"]["status"] for s in repository["sensors"]}["follow_changes"] == "RUNNING"
    schedules = {s["name"]: s["scheduleState"]["status"] for s in repository["schedules"]}
    assert schedules["sync_openai_hourly"] == schedules["sync_anthropic_hourly"] == "RUNNING"

    params = {
        "assetSelection": [{"path": ["raw", "openai_usage"]}, {"path": ["raw", "openai_costs"]}],
        "partitionNames": [f"{day:%Y-%m-%d}" for day in WEEK],
        "runConfigData": {"ops": {"sync_openai": {"config": {"connections": ["acme/one"]}}}},
        "title": "a week of acme/one",
    }
    launched = platform(BACKFILL, params=params)["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched

    # Meanwhile an application sends an event.
    now = datetime.now(UTC)
    with UsageClient(platform.collector, key_of(database)) as client:
        client.record(occurred_at=now, provider="google", model="gemini-2.5-pro", input_tokens=100, output_tokens=10)
        assert client.flush(30)

    wait_for("the backfill", lambda: one(database, "SELECT count(*) FROM raw.sync_history WHERE status <> 'running'"))
    history = rows(
        database,
        "SELECT c.name, h.status, h.window_start, h.window_end, h.error FROM raw.sync_history AS h "
        "JOIN app.provider_connections AS c ON c.id = h.provider_connection_id WHERE h.run_id IS NOT NULL AND h.window_start < '2026-06-10'",
    )
    assert history == [
        {"name": "one", "status": "completed", "window_start": WEEK[0], "window_end": WEEK[-1] + timedelta(days=1), "error": None}
    ]
    truth = simulator.simulation.totals("acme", "openai", "completions", WEEK[0], WEEK[-1] + timedelta(days=1))
    loaded = rows(
        database,
        "SELECT sum(total_tokens)::bigint AS tokens, sum(request_count)::bigint AS requests FROM usage_records "
        "WHERE provider_metadata ->> 'endpoint' = 'completions'",
    )
    # The simulator counts every kind of token apart; together they are input and output.
    requests = truth.pop("requests")
    assert loaded == [{"tokens": sum(truth.values()), "requests": requests}]

    # Nobody asks for it: the automation sensor sees that raw data changed.
    wait_for("the rollup", lambda: one(database, "SELECT to_regclass('marts.daily_usage_rollup') IS NOT NULL"))
    total = "SELECT coalesce(sum(total_tokens), 0)::bigint FROM {}"
    wait_for(
        "rollup and records agreeing",
        lambda: one(database, total.format("marts.daily_usage_rollup")) == one(database, total.format("raw.usage_records")),
    )

    # The event is in the hourly rollup soon after, and nobody asks for that either.
    wait_for(
        "the event in the hourly rollup",
        lambda: one(database, "SELECT count(*) FROM hourly_usage_rollup WHERE provider = 'google' AND model = 'gemini-2.5-pro'"),
    )
    # The analyses of the newest whole day follow the build.
    analysed = "SELECT count(DISTINCT analysis) FROM analytics.documents"
    wait_for("the analyses", lambda: one(database, analysed) == len(ANALYSES), seconds=300)
