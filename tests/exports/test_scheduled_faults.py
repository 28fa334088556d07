"""A process that delivers is really killed at every step in turn; the receiver ends with each due export, whole, and can tell repeats."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.exports.delivery_data import Authority
from tests.exports.https_receiver import SECRET, Receiver, receiving, status
from tests.exports.scheduled_data import DUE, HERE, history, planned, received, runs, scheduled
from tokentra_dagster.exports.scheduled.deliver import STEPS, deliver_due
from tokentra_dagster.exports.scheduled.runs import ExportRun, open_runs
from tokentra_dagster.exports.scheduled.schedules import ScheduledExport
from tokentra_dagster.exports.scheduled.staging import FOLDER
from tokentra_dagster.warehouse.database import Database

DAILY = {"schedule": "0 6 * * *", "relative_period": "last_day"}
FIRST = DUE.replace(month=6)
"""Of June at 06:00; from then on each day is due: one for each step, and one in which nothing goes wrong."""
KILLED_AT = {
    # What the history then says: which attempt was killed, and how often the file was written.
    "claimed": ["1 started", "1 written", "1 delivered"],
    "started": ["1 started", "2 started", "2 written", "2 delivered"],
    "written": ["1 started", "2 started", "2 written", "2 delivered"],
    "recorded": ["1 started", "1 written", "2 started", "2 delivered"],
    "delivered": ["1 started", "1 written", "2 started", "2 delivered"],
    "booked": ["1 started", "1 written", "1 delivered"],
}


def child(database: Database, run: ExportRun, home: Path, step: str = "") -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.exports.killed_delivery", database.url, str(run.id), str(home), step]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], env=dict(os.environ))


def kill_at(database: Database, run: ExportRun, home: Path, step: str) -> None:
    assert child(database, run, home, step).wait(120) == -signal.SIGKILL, f"it did not come to {step}"


def resume(database: Database, home: Path) -> None:
    """What the sensor starts when the pauses are over. The dead process's lock goes when the server has noticed."""

    def finished() -> bool:
        with database.connect() as db:
            found = open_runs(db, datetime.now(UTC) + timedelta(hours=2))
        return not found or {deliver_due(database, run.id, home, HERE).status for run in found} == {"delivered"}

    eventually(finished)


def eventually(holds: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
    return found


def due(database: Database, export: ScheduledExport) -> dict[str, ExportRun]:
    """A due time for each step."""
    found = planned(database, export, FIRST + timedelta(days=len(STEPS)))
    return dict(zip([*STEPS, "none"], found, strict=True))


def test_killed_at_every_step_a_folder_ends_with_each_due_export_whole_and_the_same_bytes(warehouse, tmp_path):
    assert tuple(KILLED_AT) == STEPS
    folder = tmp_path / "out"
    by_step = due(warehouse, scheduled(warehouse, folder, since=FIRST - timedelta(hours=1), **DAILY))
    for step in STEPS:
        kill_at(warehouse, by_step[step], tmp_path, step)
    early = received(folder)
    assert len(early) == 2, "only those that were killed after the delivery"
    resume(warehouse, tmp_path)
    assert {step: history(warehouse, by_step[step]) for step in STEPS} == KILLED_AT
    final = received(folder)
    assert final | early == final, "what the receiver had before the kill is what it has now"
    assert {(m["period"]["start"], m["sha256"]) for m in final.values()} == {
        (f"{run.period.start:%Y-%m-%dT%H:%M:%SZ}", run.manifest["sha256"]) for run in runs(warehouse, _export(warehouse))
    }
    assert len(final) == len(STEPS) + 1
    assert not list((tmp_path / FOLDER).rglob("*.part")), "what a killed attempt left half written is gone"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.made_in(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def receiver(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    with receiving(authority.server_side("localhost")) as receiver:
        yield receiver


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Any]]:
    """Its server's address, and a client."""
    monkeypatch.setenv("EXPORT_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("EXPORT_KEY", "a-very-secret-key")
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        endpoint = "http://127.0.0.1:{1}".format(*server.get_host_and_port())
        client = boto3.client(
            "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="y"
        )
        # moto's state is the process's: what another test put there goes.
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")).close()
        client.create_bucket(Bucket="exports")
        yield endpoint, client
    finally:
        server.stop()


def hooked(database: Database, receiver: Receiver, authority: Authority, endpoint: str) -> ScheduledExport:
    """Files to the bucket, a signed event with a link to the receiver."""
    store = {
        "bucket": "exports", "region": "us-east-1", "endpoint": endpoint, "access_key_id": "env:EXPORT_KEY_ID",
        "secret_access_key": "env:EXPORT_KEY", "attempts": 1,
    }  # fmt: skip
    config = {
        "webhook_url": receiver.url(), "secret": "env:HOOK_SECRET", "ca_file": str(authority.file), "attempts": 1,
        "timeout_seconds": 60, "store": store,
    }  # fmt: skip
    return scheduled(
        database, Path("/"), delivery_method="webhook", delivery_config=config, since=FIRST - timedelta(hours=1), **DAILY
    )


def test_killed_at_every_step_a_receiver_has_each_due_export_and_can_tell_every_repeat(
    warehouse, tmp_path, receiver, authority, bucket
):
    endpoint, client = bucket
    export = hooked(warehouse, receiver, authority, endpoint)
    by_step = due(warehouse, export)
    for step in STEPS:
        kill_at(warehouse, by_step[step], tmp_path, step)
    resume(warehouse, tmp_path)
    by_id: dict[str, list[dict[str, Any]]] = {}
    for request, event in zip(receiver.requests, receiver.accepted, strict=True):
        assert request.headers["webhook-id"] == event["messageId"]
        by_id.setdefault(event["messageId"], []).append(event)
    assert set(by_id) == {str(run.id) for run in by_step.values()}, "each due export has arrived, and nothing else"
    assert {step: len(by_id[str(run.id)]) for step, run in by_step.items() if len(by_id[str(run.id)]) > 1} == {"delivered": 2}
    for run in runs(warehouse, export):
        events = by_id[str(run.id)]
        assert {(event["sha256"], event["timestamp"]) for event in events} == {
            (run.manifest["sha256"], run.manifest["created_at"])
        }, "a repeat has the content of the first"
        _whole(client, f"acme/monthly/{run.due_at:%Y-%m-%dT%H%MZ}/{events[0]['fileName']}", run)


def test_killed_while_the_file_is_written_or_while_the_receiver_thinks(warehouse, tmp_path, receiver, authority, bucket):
    endpoint, client = bucket
    export = hooked(warehouse, receiver, authority, endpoint)
    first, second = list(due(warehouse, export).values())[:2]
    with warehouse.connect() as db:
        db.execute("LOCK TABLE marts.daily_usage_rollup, marts.hourly_usage_rollup IN ACCESS EXCLUSIVE MODE")
        writing = child(warehouse, first, tmp_path)
        eventually(lambda: list((tmp_path / FOLDER / str(first.id)).rglob("*.part")))
        writing.kill()
        writing.wait()
    assert list((tmp_path / FOLDER / str(first.id)).rglob("*.part")), "half a file is left"
    arrived, free = threading.Event(), threading.Event()

    def thinks(handler: Any) -> None:
        arrived.set()
        free.wait(60)
        status(204)(handler)

    receiver.script.append(thinks)
    sending = child(warehouse, second, tmp_path)
    assert arrived.wait(60)
    sending.kill()
    sending.wait()
    free.set()
    assert history(warehouse, second) == ["1 started", "1 written"], "nobody knows that it arrived"
    resume(warehouse, tmp_path)
    ids = [request.headers["webhook-id"] for request in receiver.requests]
    assert ids.count(str(second.id)) == 2 and ids.count(str(first.id)) == 1
    bodies = [json.loads(request.body) for request in receiver.requests if request.headers["webhook-id"] == str(second.id)]
    assert bodies[0]["sha256"] == bodies[1]["sha256"]
    for run in runs(warehouse, export)[:2]:
        _whole(client, f"acme/monthly/{run.due_at:%Y-%m-%dT%H%MZ}/{bodies[0]['fileName'] if run.id == second.id else ''}", run)
    assert not list((tmp_path / FOLDER).rglob("*.part"))


def _whole(client: Any, key: str, run: ExportRun) -> None:
    """The object and its manifest are what was written down."""
    key = key if not key.endswith("/") else key + run.manifest["file_name"]
    content = client.get_object(Bucket="exports", Key=key)["Body"].read()
    manifest = json.loads(client.get_object(Bucket="exports", Key=f"{key}.manifest.json")["Body"].read())
    assert manifest == run.manifest and sha256(content).hexdigest() == manifest["sha256"]


def _export(database: Database) -> ScheduledExport:
    from tokentra_dagster.exports.scheduled.schedules import find_export

    with database.connect() as db:
        return find_export(db, "monthly")
