"""Events per second that `tokentra collect` takes over HTTP, each answered when it is on disk; what it loses and doubles when it is
killed under that load; and its memory. The senders are on the same machine; the server of the database waits for the disk, as in use.
"""

from __future__ import annotations

import gzip
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

import psutil

from bench.server import fresh_database
from tokentra_dagster.collector.keys import add_key
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import add_organization
from tokentra_dagster.warehouse.embedded import _free_port

KILLS = 20
HEADERS = {"Content-Type": "application/json", "Content-Encoding": "gzip"}


def bodies(count: int, size: int, prefix: str) -> list[bytes]:
    """Requests of `size` events with the dimensions that applications know, ready to be sent."""
    moment = datetime.now(UTC).isoformat()
    events = [
        {
            "event_id": f"{prefix}-{n}", "occurred_at": moment, "provider": "openai",
            "model": ("gpt-4o-2024-08-06", "gpt-4.1-mini", "o3-2025-04-16")[n % 3], "request_type": "chat", "input_tokens": 500 + n % 1000,
            "output_tokens": 50 + n % 100, "cached_input_tokens": n % 400, "latency_ms": 200 + n % 3000, "is_error": n % 50 == 0,
            "api_key_id": f"key_{n % 20}", "user_id": f"user_{n % 500}", "team": f"team-{n % 4}", "feature": f"feature-{n % 10}",
            "environment": "production",
        }
        for n in range(count)
    ]  # fmt: skip
    return [gzip.compress(json.dumps(events[start : start + size]).encode(), 1) for start in range(0, count, size)]


def start(database: Database, port: int) -> subprocess.Popen[bytes]:
    """The collector as a process of its own, ready."""
    env = {**os.environ, "TOKENTRA_DATABASE_URL": database.url, "TOKENTRA_HOME": tempfile.gettempdir()}
    process = subprocess.Popen(
        [sys.executable, "-m", "tokentra_dagster.cli", "collect", "--port", str(port)], env=env, stdout=subprocess.DEVNULL
    )
    while True:
        try:
            link = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            link.request("GET", "/ready")
            if link.getresponse().status == 200:
                return process
        except OSError:
            assert process.poll() is None, "the collector ended"
            time.sleep(0.05)


def send(port: int, key: str, requests: list[bytes], senders: int, until: Callable[[], bool] = lambda: False) -> tuple[int, int]:
    """Each sender sends its part, one request after another, each until it is acknowledged; returns events stored and attempts."""
    stored, attempts = [0] * senders, [0] * senders

    def one(number: int) -> None:
        link: http.client.HTTPConnection | None = None
        for body in requests[number::senders]:
            if until():
                break
            while True:
                attempts[number] += 1
                try:
                    link = link or http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                    link.request("POST", "/v1/events", body, {**HEADERS, "Authorization": f"Bearer {key}"})
                    answer = link.getresponse()
                    said = json.load(answer)
                except (OSError, http.client.HTTPException):
                    link = None
                    time.sleep(0.02)
                    continue
                if answer.status == 200:
                    assert not said["refused"], said
                    stored[number] += said["stored"] + said["duplicates"]
                    break
                assert answer.status in (429, 503), (answer.status, said)
                time.sleep(0.05)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(senders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(stored), sum(attempts)


def run(count: int = 60_000, kills: int = KILLS) -> None:
    """Print the rates, what was lost and doubled, and the memory."""
    print(f"collector, {datetime.now(UTC):%Y-%m-%d}, load {os.getloadavg()[0]:.1f} before")
    with fresh_database() as database:
        with database.connect() as db:
            add_organization(db, "bench")
            key = add_key(db, "bench", "bench")
        port = _free_port()
        process = start(database, port)
        idle = psutil.Process(process.pid).memory_info().rss
        try:
            print("  stored durably over HTTP       one sender   eight senders   (events/s)")
            for size, events in ((1, 1000), (100, count // 2), (1000, count)):
                rates = []
                for senders in (1, 8):
                    requests = bodies(events, size, f"{size}-{senders}")
                    began = time.perf_counter()
                    stored, _ = send(port, key, requests, senders)
                    rates.append(stored / (time.perf_counter() - began))
                    assert stored == events, stored
                print(f"    {size:>4} in a request          {rates[0]:>10,.0f}      {rates[1]:>10,.0f}")
            peak = int(next(line for line in open(f"/proc/{process.pid}/status") if line.startswith("VmHWM")).split()[1])  # noqa: SIM115, PTH123
            _killed(database, port, key, process, kills)
        finally:
            for child in psutil.Process().children():
                if "collect" in child.cmdline():
                    child.kill()
        print(f"  memory                         {idle / 2**20:>10,.0f} MiB idle, {peak / 2**10:,.0f} MiB at most")


def _killed(database: Database, port: int, key: str, process: subprocess.Popen[bytes], kills: int) -> None:
    """Kill it again and again while four senders send; then compare what they sent with what is stored."""
    generator = random.Random(34)
    over = threading.Event()
    requests = bodies(400_000, 50, "killed")
    counts: list[tuple[int, int]] = []
    sending = threading.Thread(target=lambda: counts.append(send(port, key, requests, 4, over.is_set)))
    sending.start()
    for _ in range(kills):
        time.sleep(generator.uniform(0.2, 0.8))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process = start(database, port)
    over.set()
    sending.join()
    process.send_signal(signal.SIGINT)
    process.wait()
    ((acknowledged, attempts),) = counts
    with database.connect() as db:
        row = db.execute(
            "SELECT count(*)::int AS rows, count(DISTINCT event_id)::int AS ids FROM raw.usage_events WHERE event_id LIKE 'killed-%'"
        ).fetchone()
        waiting = db.execute(
            "SELECT count(*)::int AS n FROM raw.pending_usage_events AS p JOIN raw.usage_events AS e USING (event_number) WHERE e.event_id LIKE 'killed-%'"
        ).fetchone()
    assert row is not None and waiting is not None
    assert row["rows"] == row["ids"] == waiting["n"] == acknowledged, (row, waiting, acknowledged)
    print(
        f"  killed {kills} times (kill -9)       {acknowledged:>10,} events acknowledged, 0 lost, 0 doubled; "
        f"{attempts - acknowledged // 50:,} requests repeated"
    )
