"""Usage events from a Python application: `UsageClient` sends them in batches in the background, and never blocks or breaks its caller.

Standard library only. What `record` took is sent until the collector has it: a repeat has the same ids, so nothing counts twice.
"""

from __future__ import annotations

import atexit
import gzip
import json
import logging
import os
import random
import threading
import time
import urllib.error
import urllib.request
import uuid
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

log = logging.getLogger("tokentra.client")
_LARGEST_EVENT = 100_000
_LARGEST_BODY = 1_000_000
_LONGEST_WAIT = 30.0
_LOG_EVERY = 60.0


@dataclass(frozen=True, slots=True)
class ClientCounts:
    """Events since the client was made. `recorded` is the sum of the others."""

    recorded: int
    waiting: int
    stored: int
    """The collector has them (also those that it had from an earlier attempt)."""
    refused: int
    """The collector cannot take them; the log says why."""
    dropped: int
    """Never sent: too many waited, they were no JSON, or the client was closed."""


class UsageClient:
    """Sends usage events to a collector.

        client = UsageClient("http://127.0.0.1:4318", key)
        client.record(provider="openai", model="gpt-4o", input_tokens=1200, output_tokens=80, feature="search")

    `url` is the collector's, without a path; `key` one of `tokentra keys add`. At most `most_waiting` events wait; further ones are
    dropped and counted. A request has up to `batch` events and is sent after `interval` seconds at the latest, with `timeout`
    seconds for each step. Raises `ValueError` for a URL that is none. Threads may share a client, and it may be used after a fork.
    """

    def __init__(
        self, url: str, key: str, *, most_waiting: int = 10_000, batch: int = 500, interval: float = 1.0, timeout: float = 10.0
    ) -> None:  # fmt: skip
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url is {url!r}; it must be the collector's, like http://127.0.0.1:4318.")
        self._url = url.rstrip("/") + "/v1/events"
        self._key, self._most, self._batch, self._interval, self._timeout = key, most_waiting, batch, interval, timeout
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._reset()
        _clients.add(self)

    def _reset(self) -> None:
        """As new: also what a fork's child starts with, since its parent sends what waited."""
        # Reentrant: a signal handler or a finaliser may record while its thread is recording.
        self._changed = threading.Condition(threading.RLock())
        self._queue: deque[bytes] = deque()
        self._thread: threading.Thread | None = None
        self._in_flight = self._recorded = self._stored = self._refused = self._dropped = 0
        self._hurry = self._closed = False
        self._closing = threading.Event()
        self._logged: dict[str, float] = {}

    @property
    def counts(self) -> ClientCounts:
        with self._changed:
            waiting = len(self._queue) + self._in_flight
            return ClientCounts(self._recorded, waiting, self._stored, self._refused, self._dropped)

    def record(self, **fields: Any) -> str:
        """Take one request to a provider; returns its `event_id` at once, whatever is wrong.

        Fields are those of an event (docs/collector.md): `provider`, `model`, `input_tokens` and `output_tokens` at least.
        `event_id` is made up and `occurred_at` is now where they are left out.
        """
        event_id = ""
        try:
            fields.setdefault("event_id", str(uuid.uuid4()))
            fields.setdefault("occurred_at", datetime.now(UTC))
            event_id = str(fields["event_id"])
            self._take(fields)
        except Exception as error:
            self._say("record", "An event could not be recorded: %s", error)
        return event_id

    def flush(self, timeout: float = 10.0) -> bool:
        """Send now what waits; False when the collector does not have all of it after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            while self._queue or self._in_flight:
                if self._closed or (
                    not self._changed.wait(max(0.0, deadline - time.monotonic())) and time.monotonic() >= deadline
                ):
                    return False
            return True

    def close(self, timeout: float = 5.0) -> None:
        """Send what waits, for at most `timeout` seconds, and end; what is recorded later is dropped. Happens at exit by itself."""
        if self._closed:
            return
        self._closing.set()
        self.flush(timeout)
        with self._changed:
            self._closed = True
            left = len(self._queue) + self._in_flight
            self._queue.clear()
            self._dropped, self._in_flight = self._dropped + left, 0
            self._changed.notify_all()
        if left:
            log.warning("%d usage events were not sent before the client was closed.", left)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _take(self, fields: dict[str, Any]) -> None:
        problem = None
        event = b""
        try:
            event = json.dumps(fields, default=_plain, allow_nan=False).encode()
            if len(event) > _LARGEST_EVENT:
                problem = f"it has {len(event):,} bytes; it may have {_LARGEST_EVENT:,}"
        except (TypeError, ValueError, RecursionError) as error:
            problem = f"it is no JSON ({error})"
        with self._changed:
            self._recorded += 1
            if problem is None and self._closed:
                problem = "the client is closed"
            elif problem is None and len(self._queue) + self._in_flight >= self._most:
                problem = f"{self._most:,} wait already"
            if problem is not None:
                self._dropped += 1
            else:
                self._queue.append(event)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="tokentra usage", daemon=True)
                    self._thread.start()
                if len(self._queue) in (1, self._batch):
                    self._changed.notify_all()
        if problem is not None:
            self._say("dropped", "A usage event is dropped: %s.", problem)

    def _run(self) -> None:
        while batch := self._next():
            try:
                self._send(batch)
            except Exception as error:  # the thread goes on, whatever one batch does
                self._say("send", "Usage events could not be sent: %s", error)
                self._done(refused=len(batch))

    def _next(self) -> list[bytes]:
        """The events of the next request, when it is time for it; none when the client is closed."""
        with self._changed:
            while not self._queue and not self._closed:
                self._hurry = False
                self._changed.wait()
            until = time.monotonic() + self._interval
            while (
                not self._hurry and not self._closed and len(self._queue) < self._batch and (left := until - time.monotonic()) > 0
            ):
                self._changed.wait(left)
            batch: list[bytes] = []
            size = 0
            while self._queue and len(batch) < self._batch and size + len(self._queue[0]) <= _LARGEST_BODY:
                batch.append(self._queue.popleft())
                size += len(batch[-1])
            self._in_flight = len(batch)
            return batch

    def _send(self, batch: Sequence[bytes]) -> None:
        """Until the collector has them or says that it cannot take them."""
        wait = 0.25
        while not self._closed:
            status, said, retry_after = self._post(batch)
            if status in (200, 422) and isinstance(said, dict) and isinstance(refused := said.get("refused"), list):
                if refused:
                    self._say("refused", "The collector refused %d usage events, the first because: %s", len(refused), refused[0].get("error"))  # fmt: skip
                self._done(stored=len(batch) - len(refused), refused=len(refused))
                return
            if status in (400, 413, 422):
                if len(batch) == 1:
                    self._say("refused", "The collector refused a usage event: %s", _sentence(said))
                    self._done(refused=1)
                else:
                    middle = len(batch) // 2
                    self._send(batch[:middle])
                    self._send(batch[middle:])
                return
            self._say("retry", "Usage events wait, because the collector answers: %s", _sentence(said))
            self._closing.wait(min(_LONGEST_WAIT, max(retry_after, wait * random.uniform(0.5, 1.0))))
            if self._closing.is_set():
                time.sleep(0.05)
            wait = min(_LONGEST_WAIT, wait * 2)

    def _post(self, batch: Sequence[bytes]) -> tuple[int, Any, float]:
        """Status (0: no answer), what the collector said, and in how many seconds it wants to be asked again."""
        body = gzip.compress(b"[" + b",".join(batch) + b"]", 1)
        request = urllib.request.Request(
            self._url, body,
            {"Content-Type": "application/json", "Content-Encoding": "gzip", "Authorization": f"Bearer {self._key}", "User-Agent": "tokentra-usage"},
        )  # fmt: skip
        try:
            with self._opener.open(request, timeout=self._timeout) as answer:
                return answer.status, json.load(answer), 0.0
        except urllib.error.HTTPError as error:
            with error:
                after = error.headers.get("Retry-After", "")
                try:
                    said = json.loads(error.read(1_000_000))
                except ValueError:
                    said = f"HTTP status {error.code}"
                return error.code, said, float(after) if after.isascii() and after.isdigit() else 0.0
        except Exception as error:  # no network, no name, no TLS, half an answer: the same events go again
            return 0, str(error) or type(error).__name__, 0.0

    def _done(self, stored: int = 0, refused: int = 0) -> None:
        with self._changed:
            if self._closed:  # they were counted as dropped
                return
            self._stored += stored
            self._refused += refused
            self._in_flight -= stored + refused
            self._changed.notify_all()

    def _say(self, kind: str, words: str, *values: object) -> None:
        """A warning in the log, at most one a minute of each kind."""
        now = time.monotonic()
        if now - self._logged.get(kind, -_LOG_EVERY) >= _LOG_EVERY:
            self._logged[kind] = now
            log.warning(words, *values)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The key is for the collector alone."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _sentence(said: Any) -> str:
    return str(said.get("error", said) if isinstance(said, dict) else said)[:500]


_clients: weakref.WeakSet[UsageClient] = weakref.WeakSet()


def _after_fork() -> None:
    for client in list(_clients):
        client._reset()


def _at_exit() -> None:
    deadline = time.monotonic() + 5.0
    for client in list(_clients):
        client.close(max(0.1, deadline - time.monotonic()))


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
