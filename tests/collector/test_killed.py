"""The collector is killed at random moments under load: what was acknowledged is stored, and nothing counts twice."""

from __future__ import annotations

import http.client
import json
import random
import signal
import threading
import time

from tests.collector.processes import Process
from tests.collector.service import key_of, payload
from tests.realtime.event_data import counted
from tests.warehouse_data import rows
from tokentra_dagster.realtime.flush import flush
from tokentra_dagster.warehouse.embedded import _free_port

KILLS = 5
BATCH = 20


class Sender(threading.Thread):
    """Sends one batch after another and repeats each, with the same ids, until it is acknowledged."""

    def __init__(self, number: int, port: int, key: str) -> None:
        super().__init__(daemon=True)
        self.number, self.port, self.key = number, port, key
        self.sent: list[str] = []
        self.acknowledged: set[str] = set()
        self.repeats = 0
        self.stopping = threading.Event()

    def run(self) -> None:
        while not self.stopping.is_set():
            ids = [f"{self.number}-{len(self.sent) + n}" for n in range(BATCH)]
            self.sent += ids
            body = json.dumps([payload(one) for one in ids])
            while not self._accepted(body):
                self.repeats += 1
                time.sleep(0.02)
            self.acknowledged |= set(ids)

    def _accepted(self, body: str) -> bool:
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            link.request("POST", "/v1/events", body, {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"})
            answer = link.getresponse()
            said = json.load(answer)
            assert answer.status in (200, 429, 503), said
            assert answer.status != 200 or said["stored"] + said["duplicates"] == BATCH, said
            return answer.status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            link.close()


def test_killed_at_any_moment_it_loses_nothing_that_was_acknowledged_and_doubles_nothing(database, tmp_path):
    port, key, generator = _free_port(), key_of(database), random.Random(9)
    process = Process(database.url, tmp_path, port)
    senders = [Sender(n, port, key) for n in range(3)]
    try:
        for sender in senders:
            sender.start()
        for _ in range(KILLS):
            before = sum(len(sender.acknowledged) for sender in senders)
            while sum(len(sender.acknowledged) for sender in senders) < before + 100:
                assert all(sender.is_alive() for sender in senders)
                time.sleep(0.005)
            time.sleep(generator.uniform(0, 0.1))
            process.kill()
            # What was acknowledged by now is in the database, though the process is gone.
            acknowledged = set().union(*(sender.acknowledged.copy() for sender in senders))
            stored = {row["event_id"] for row in rows(database, "SELECT event_id FROM raw.usage_events")}
            assert acknowledged <= stored
            process = Process(database.url, tmp_path, port)
        for sender in senders:
            sender.stopping.set()
        for sender in senders:
            sender.join(60)
            assert not sender.is_alive()
    finally:
        process.kill()
    sent = [one for sender in senders for one in sender.sent]
    assert sum(sender.repeats for sender in senders) >= KILLS, "the kills came in the middle"
    flush(database)
    assert counted(database) == dict.fromkeys(sent, 1)


def test_ctrl_c_and_terminate_end_it_in_order(database, tmp_path):
    key_of(database)
    for number in (signal.SIGINT, signal.SIGTERM):
        process = Process(database.url, tmp_path, _free_port())
        assert process.end(number) == "" and process.process.returncode in (0, -number)
