"""The client sends in the background what it was given, once, and its caller never waits and never fails for it."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.collector.processes import ROOT
from tests.collector.service import Collector, key_of
from tests.warehouse_data import one, rows
from tokentra_dagster.client import ClientCounts, UsageClient
from tokentra_dagster.warehouse.embedded import _free_port

CALL = {"provider": "openai", "model": "gpt-4o", "input_tokens": 100, "output_tokens": 10}


@pytest.fixture
def collector(database):
    with Collector(database) as running:
        yield running


def stored(database) -> int:
    return one(database, "SELECT count(*)::int FROM raw.usage_events")


class Hanging:
    """Takes connections and what is sent, and never answers."""

    def __enter__(self) -> str:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._links: list[socket.socket] = []
        threading.Thread(target=self._take, daemon=True).start()
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def _take(self) -> None:
        while True:
            try:
                self._links.append(self._socket.accept()[0])
            except OSError:
                return

    def __exit__(self, *error: object) -> None:
        self._socket.close()
        for link in self._links:
            link.close()


def test_what_is_recorded_is_stored_in_few_requests(collector, database):
    with UsageClient(collector.url, key_of(database), batch=100, interval=60) as client:
        ids = [client.record(**CALL, feature=f"f{n % 3}", reported_cost=Decimal("0.5")) for n in range(1000)]
        own = client.record(**CALL, event_id="mine", occurred_at=datetime(2026, 6, 1, tzinfo=UTC))
        assert client.flush(30) and client.counts == ClientCounts(recorded=1001, waiting=0, stored=1001, refused=0, dropped=0)
        requests = collector.server.server_state.total_requests
    assert (own, stored(database)) == ("mine", 1001) and requests <= 12
    assert {row["event_id"] for row in rows(database, "SELECT event_id FROM raw.usage_events")} == {*ids, "mine"}


def test_it_sends_by_itself_after_the_interval(collector, database):
    with UsageClient(collector.url, key_of(database), interval=0.05) as client:
        client.record(**CALL)
        deadline = time.monotonic() + 30
        while stored(database) == 0:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_while_the_collector_hangs_nobody_waits_what_is_too_much_is_dropped_and_counted_and_close_is_bounded(caplog):
    with Hanging() as url, caplog.at_level(logging.WARNING):
        client = UsageClient(url, "k", most_waiting=500, batch=100, interval=0.01)
        slowest = 0.0
        for _ in range(3000):
            began = time.perf_counter()
            client.record(**CALL)
            slowest = max(slowest, time.perf_counter() - began)
            if _ == 200:
                time.sleep(0.2)
        assert slowest < 2, "the machine may be busy, but nobody waited for the time-out of 10 seconds"
        counts = client.counts
        assert (counts.recorded, counts.waiting, counts.dropped) == (3000, 500, 2500)
        assert not client.flush(0.2)
        began = time.monotonic()
        client.close(0.3)
        assert time.monotonic() - began < 5
        client.record(**CALL)
        assert client.counts == ClientCounts(recorded=3001, waiting=0, stored=0, refused=0, dropped=3001)
    said = [record.getMessage() for record in caplog.records]
    assert said.count("A usage event is dropped: 500 wait already.") == 1, "not 2,500 times"
    assert "500 usage events were not sent before the client was closed." in said


def test_what_is_recorded_while_the_collector_is_down_arrives_when_it_is_up(database, tmp_path):
    from tests.collector.processes import Process

    port = _free_port()
    with UsageClient(f"http://127.0.0.1:{port}", key_of(database), batch=50, interval=0.01) as client:
        for _ in range(120):
            client.record(**CALL)
        assert not client.flush(0.5)
        process = Process(database.url, tmp_path, port)
        try:
            assert client.flush(60)
            process.kill()
            for _ in range(80):
                client.record(**CALL)
            process = Process(database.url, tmp_path, port)
            assert client.flush(60)
        finally:
            process.kill()
        assert client.counts == ClientCounts(recorded=200, waiting=0, stored=200, refused=0, dropped=0)
    assert stored(database) == 200


def test_an_answer_that_was_lost_costs_no_event_and_doubles_none(collector, database):
    """A proxy that passes requests on and loses every first answer."""

    class Proxy(BaseHTTPRequestHandler):
        seen = 0

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = collector.ask("POST", self.path, body, dict(self.headers.items()))
            Proxy.seen += 1
            if Proxy.seen % 2:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            import json

            data = json.dumps(answer.body).encode()
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with UsageClient(f"http://127.0.0.1:{server.server_port}", key_of(database), batch=10) as client:
            for _ in range(30):
                client.record(**CALL)
            assert client.flush(60) and client.counts.stored == 30
    finally:
        server.shutdown()
        server.server_close()
    assert Proxy.seen == 6 and stored(database) == 30


def test_what_cannot_be_is_counted_and_logged_and_the_others_are_stored(collector, database, caplog):
    deep: list = []
    for _ in range(30):
        deep = [deep]
    itself: list = []
    itself.append(itself)
    with UsageClient(collector.url, key_of(database), interval=60) as client, caplog.at_level(logging.WARNING):
        for n in range(20):
            client.record(**CALL, metadata={"n": n})
        client.record(**{**CALL, "input_tokens": -1})  # told by its place
        client.record(**CALL, metadata={"x": deep})  # the whole request is refused
        client.record(model="gpt-4o")
        for wrong in ({"metadata": itself}, {"metadata": {"x": float("nan")}}, {"user_id": "x" * 200_000}):
            client.record(**CALL, **wrong)
        assert client.record(**CALL, user_id=object()) and client.record(**CALL, feature="\ud800")
        assert client.flush(30)
        assert client.counts == ClientCounts(recorded=28, waiting=0, stored=21, refused=4, dropped=3)
    assert stored(database) == 21
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "it is no JSON" in said and "The collector refused" in said


def test_a_wrong_key_is_logged_without_it_and_events_wait_for_a_right_one(collector, database, caplog):
    key = key_of(database)
    with database.connect() as db:
        db.execute("UPDATE app.organization_keys SET revoked_at = now()")
    with UsageClient(collector.url, key, interval=0.01) as client, caplog.at_level(logging.WARNING):
        client.record(**CALL)
        assert not client.flush(1)
        with database.connect() as db:
            db.execute("UPDATE app.organization_keys SET revoked_at = NULL")
        assert client.flush(30) and client.counts.stored == 1
    assert "The key is not known or has been revoked" in caplog.text and key not in caplog.text


def test_the_key_goes_to_no_other_server(database):
    seen: list[str] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization", ""))
            self.send_response(200)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    class Redirecting(Elsewhere):
        def do_POST(self) -> None:
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.1:{other.server_port}/")
            self.end_headers()
            redirected.set()

    redirected = threading.Event()
    with closing(_serving(Elsewhere)) as other, closing(_serving(Redirecting)) as first:
        client = UsageClient(f"http://127.0.0.1:{first.server_port}", "secret", interval=0.01)
        client.record(**CALL)
        assert redirected.wait(30) and not client.flush(0.3)
        client.close(0.1)
    assert seen == []


class _serving(ThreadingHTTPServer):
    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()


def _script(body: str, *arguments: str) -> tuple[float, str]:
    """Runs it in a process of its own: seconds, and what it said."""
    began = time.monotonic()
    script = f"import os, sys, threading\nfrom tokentra_dagster.client import UsageClient\nCALL = {CALL!r}\n{body}"
    done = subprocess.run([sys.executable, "-c", script, *arguments], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return time.monotonic() - began, done.stdout + done.stderr


def test_a_script_that_ends_has_sent_everything_and_imports_nothing_heavy(collector, database):
    body = """
client = UsageClient(sys.argv[1], sys.argv[2], interval=60)
for n in range(30):
    client.record(**CALL)
print(sorted({"numpy", "dagster", "psycopg", "fastapi"} & set(sys.modules)))
"""
    _, said = _script(body, collector.url, key_of(database))
    assert said == "[]\n" and stored(database) == 30


def test_a_script_ends_though_the_collector_hangs():
    with Hanging() as url:
        seconds, said = _script("UsageClient(sys.argv[1], 'k').record(**CALL)", url)
    assert seconds < 30 and "1 usage events were not sent" in said


def test_parent_and_child_of_a_fork_send_their_own(collector, database):
    body = """
client = UsageClient(sys.argv[1], sys.argv[2], interval=0.5)
for n in range(10):
    client.record(**CALL, feature="parent")
child = os.fork()
for n in range(5):
    client.record(**CALL, feature="child" if child == 0 else "parent")
assert client.flush(30)
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
"""
    _script(body, collector.url, key_of(database))
    found = rows(database, "SELECT feature, count(*)::int AS n FROM raw.usage_events GROUP BY 1 ORDER BY 1")
    assert [tuple(row.values()) for row in found] == [("child", 5), ("parent", 15)]


def test_a_url_that_is_none_is_said_at_once():
    with pytest.raises(ValueError, match="must be the collector"):
        UsageClient("127.0.0.1:4318", "k")
