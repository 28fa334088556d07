"""The feed of live usage over real HTTP: at once, only one's own, through restarts, ended when it should."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import uvicorn

from tests.realtime.event_data import NOON, event, organization, send
from tests.realtime.live_server import application
from tests.warehouse_data import rows
from tokentra_dagster.realtime import live_feed, live_routes
from tokentra_dagster.realtime.live_feed import FeedFull, LiveFeed, Message, Watcher
from tokentra_dagster.realtime.store import append_in
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.embedded import EmbeddedServer, _free_port
from tokentra_dagster.warehouse.migrate import migrate

ROOT = Path(__file__).parents[2]
PATIENCE = 60


def send_now(database: Database, org, name: str, **fields) -> None:
    now = datetime.now(UTC)
    send(database, org, event(name, now, **fields), now=now)


@contextlib.contextmanager
def serving(database: Database) -> Iterator[int]:
    """The port of a server in a thread."""
    port = _free_port()
    server = uvicorn.Server(uvicorn.Config(application(database), host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + PATIENCE
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline
            time.sleep(0.02)
        yield port
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


class Client:
    """One stream, read as a browser's EventSource reads it."""

    def __init__(self, port: int, key: str = "acme", query: str = "", headers: dict[str, str] | None = None) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self.connection.request("GET", f"/v1/live/feed{query}", headers={"Authorization": f"Bearer {key}", **(headers or {})})
        self.answer = self.connection.getresponse()
        self.comments: list[str] = []
        self.retry: str | None = None

    def next(self) -> dict[str, str]:
        """The next event: its fields."""
        fields: dict[str, str] = {}
        while line := self.answer.readline().decode():
            name, _, value = line.rstrip("\n").partition(": ")
            if name == "":
                if "data" in fields:
                    return fields
                self.comments += [value] if value else []
            elif name == "retry":
                self.retry = value
            else:
                fields[name] = value
        raise AssertionError("the stream ended")

    def until(self, kind: str, requests: int | None = None) -> dict:
        """The data of the first event of the kind, of a snapshot with so many requests where that is said."""
        while True:
            found = self.next()
            said = json.loads(found["data"])
            if found["event"] == kind and requests in (None, said.get("requestCount")):
                return said

    def close(self) -> None:
        self.answer.close()
        self.connection.close()


@pytest.fixture
def acme(database):
    organization(database, "globex")
    return organization(database)


def get(port: int, path: str, key: str = "acme") -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request("GET", path, headers={"Authorization": f"Bearer {key}"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_a_snapshot_is_of_the_keys_own_organisation(database, acme):
    send_now(database, acme, "a", feature="search")
    with serving(database) as port:
        status, said = get(port, "/v1/live?minutes=5")
        assert (status, said["requestCount"], said["features"][0]["feature"], len(said["minuteData"])) == (200, 1, "search", 6)
        assert get(port, "/v1/live", "globex")[1]["requestCount"] == 0
        assert get(port, "/v1/live", "nobody")[0] == get(port, "/v1/live/feed", "nobody")[0] == 401
        assert get(port, "/v1/live?minutes=61")[0] == get(port, "/v1/live/feed?minutes=0")[0] == 422


def test_an_event_is_on_the_feed_by_its_notification_alone(database, acme, monkeypatch):
    monkeypatch.setattr(live_feed, "LOOK_SECONDS", 3600)
    with serving(database) as port:
        client, other = Client(port, query="?minutes=5"), Client(port, "globex")
        assert client.answer.headers["content-type"].startswith("text/event-stream")
        assert client.until("usage")["requestCount"] == other.until("usage")["requestCount"] == 0
        assert client.retry == "2000" and client.comments
        listening = "SELECT pid FROM pg_stat_activity WHERE application_name = 'tokentra live feed' AND datname = current_database() AND query LIKE 'LISTEN%%'"
        wait_for(lambda: rows(database, listening))
        for number in range(1, 4):
            began = time.monotonic()
            send_now(database, acme, f"e{number}")
            client.until("usage", requests=number)
            took = time.monotonic() - began
            assert took < 60, took
        again = Client(port, query="?minutes=5", headers={"Last-Event-ID": "1"})
        assert again.until("usage")["requestCount"] == 3, "what was missed is in the first snapshot"
        for one in (client, other, again):
            one.close()


def wait_for(found, seconds: float = PATIENCE):
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


def test_an_event_without_a_notification_is_seen_by_the_next_look(database, acme):
    with database.connect() as db:
        db.execute("CREATE OR REPLACE FUNCTION raw.announce_events(p_org_id UUID) RETURNS BOOLEAN LANGUAGE sql AS 'SELECT false'")
    with serving(database) as port:
        client = Client(port)
        client.until("usage")
        send_now(database, acme, "silent")
        client.until("usage", requests=1)
        client.close()


def test_a_notification_is_empty_one_for_each_statement_and_on_the_organisations_own_channel(database, acme):
    globex = organization(database, "globex")
    with database.connect(autocommit=True) as db:
        db.execute(f'LISTEN "tokentra_events_{acme}"')
        now = datetime.now(UTC)
        send(database, acme, *(event(f"e{n}", now) for n in range(500)), now=now)
        send(database, globex, event("theirs", now), now=now)
        send(database, acme, event("e0", now), now=now)
        heard = list(db.notifies(timeout=0.5))
    assert [(one.channel, one.payload) for one in heard] == [(f"tokentra_events_{acme}", "")], "a duplicate alone is no news"


def test_storing_never_waits_for_another_who_is_telling(database, acme):
    """A transaction that notifies holds a lock of the whole server until it is on disk; of many at once one does."""
    with database.connect() as first, first.transaction():
        append_in(first, acme, [event("first", NOON)], now=NOON)
        with database.connect(autocommit=True) as second:
            second.execute("SET lock_timeout = '10s'")
            assert append_in(second, acme, [event("second", NOON)], now=NOON).stored == 1
            assert rows(database, "SELECT event_id FROM raw.usage_events") == [{"event_id": "second"}], (
                "the first is not committed yet"
            )
            assert second.execute("SELECT raw.announce_events(%s) AS told", [acme]).fetchone() == {"told": False}


def test_the_feed_says_that_the_database_is_away_and_goes_on_after_its_restart():
    folder = Path(tempfile.mkdtemp(prefix="tokentra-live-"))
    folder.chmod(0o755)
    server = EmbeddedServer(folder / "var")
    try:
        database = Database(server.start())
        migrate(database)
        acme = organization(database)
        with serving(database) as port:
            client = Client(port)
            client.until("usage")
            server.stop()
            assert "does not answer" in client.until("trouble")["message"]
            assert get(port, "/v1/live")[0] == 503
            server.start()
            send_now(database, acme, "after")
            client.until("usage", requests=1)
            wait_for(
                lambda: rows(
                    database,
                    "SELECT 1 FROM pg_stat_activity WHERE application_name = 'tokentra live feed' AND query LIKE 'LISTEN%%'",
                )
            )
            client.close()
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_server_that_is_told_to_stop_ends_its_streams(database, acme):
    port = _free_port()
    command = [sys.executable, str(ROOT / "tests/realtime/live_server.py"), database.url, str(port)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True)
    try:
        client = wait_for(lambda: _connected(port))
        client.until("usage")
        process.send_signal(signal.SIGTERM)
        client.until("resume")
        assert client.answer.read() == b""
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode in (0, -signal.SIGTERM) and "Traceback" not in said, said
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def _connected(port: int) -> Client | None:
    try:
        return Client(port)
    except ConnectionError:
        return None


def test_a_stream_ends_after_its_time_with_a_word_to_come_again(database, acme, monkeypatch):
    monkeypatch.setattr(live_routes, "LONGEST_STREAM_SECONDS", 0.5)
    monkeypatch.setattr(live_routes, "HEARTBEAT_SECONDS", 0.1)
    with serving(database) as port:
        client = Client(port)
        client.until("resume")
        assert "still here" in client.comments


def test_watchers_who_have_gone_make_room_and_one_too_many_is_told_so(database, acme, monkeypatch):
    monkeypatch.setattr(live_feed, "MOST_OF_ONE_ORGANIZATION", 2)
    with serving(database) as port:
        clients = [Client(port), Client(port)]
        for client in clients:
            client.until("usage")
        status, said = get(port, "/v1/live/feed")
        assert status == 429 and "2 watchers already" in said["detail"]
        Client(port, "globex").close()
        clients[0].close()
        wait_for(lambda: (newest := Client(port)).answer.status == 200 and newest)


def test_a_slow_watcher_holds_one_message_and_is_told_to_come_again(database, acme, monkeypatch):
    async def slow() -> None:
        watcher = Watcher((acme, 5))
        for number in range(10_000):
            assert watcher.offer(Message(trouble=str(number)))
        assert await watcher.next() == Message(trouble="9999"), "the newest, and only that"
        watcher.offer(Message(trouble="unread"))
        monkeypatch.setattr(live_feed, "SLOW_SECONDS", 0)
        await asyncio.sleep(0.01)
        assert not watcher.offer(Message(trouble="next"))
        assert (await watcher.next()).end and (await watcher.next()).end

    asyncio.run(slow())


def test_any_number_of_watchers_costs_one_connection_and_one_look_at_a_time(database, acme, monkeypatch):
    monkeypatch.setattr(live_feed, "MOST_OF_ONE_ORGANIZATION", 100)

    async def watch() -> None:
        feed = LiveFeed(database)
        watchers = [feed.watch(acme, 15) for _ in range(100)]
        looks = 0
        at = feed._looks.at

        async def counted(*arguments):
            nonlocal looks
            looks += 1
            return await at(*arguments)

        monkeypatch.setattr(feed._looks, "at", counted)
        await asyncio.gather(*(watcher.next() for watcher in watchers))
        assert looks == 1
        with pytest.raises(FeedFull):
            feed.watch(acme, 15)
        for watcher in watchers:
            feed.leave(watcher)
        assert not feed._topics, "nobody watches, so nobody looks"
        await feed.close()

    asyncio.run(watch())
    gone = "SELECT count(*) AS n FROM pg_stat_activity WHERE application_name LIKE 'tokentra live%%' AND datname = current_database()"
    wait_for(lambda: rows(database, gone) == [{"n": 0}])
