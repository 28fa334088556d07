"""Asking an HTTP API that has no SDK of its own: one GET, one whole JSON object, or one clear error.

Bounded in time, size and retries; `Retry-After` is honoured up to a minute. No error holds the key or the address's query.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpcore2

from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.providers.failures import DamagedPage, read_json, retry_after

MOST_BYTES = 64 << 20
LONGEST_PAUSE = 60.0
_TRANSIENT_STATUS = frozenset((408, 409, 425, 429))
_LONGEST_QUOTE = 300


@dataclass(frozen=True, slots=True)
class JsonApi:
    """One service at `base_url`, whose requests carry `headers`."""

    name: str
    base_url: str
    key_needed: str
    headers: Mapping[str, str] = field(repr=False)
    secrets: Sequence[str] = field(repr=False)
    """What is taken out of everything that is quoted."""
    timeout_seconds: float
    max_retries: int

    def get(self, path: str, parameters: Mapping[str, str]) -> dict[str, Any]:
        """The JSON object at a path. Raises `PermanentError` (a wrong key, a refused question) or, after the retries, `TransientError`."""
        for attempt in range(self.max_retries + 1):
            try:
                return self._once(path, parameters)
            except TransientError as error:
                failure = error
            if attempt < self.max_retries:
                time.sleep(min(failure.retry_after if failure.retry_after is not None else 0.5 * 2**attempt, LONGEST_PAUSE))
        raise failure

    def _once(self, path: str, parameters: Mapping[str, str]) -> dict[str, Any]:
        asking = f"{self.name}: {urlsplit(self.base_url).netloc}{path}"
        url = f"{self.base_url.rstrip('/')}{path}?{urlencode(parameters)}"
        seconds = dict.fromkeys(("connect", "read", "write", "pool"), self.timeout_seconds)
        failure: Exception
        try:
            with (
                httpcore2.ConnectionPool() as pool,
                pool.stream("GET", url, headers=list(self.headers.items()), extensions={"timeout": seconds}) as answer,
            ):
                body = bytearray()
                for piece in answer.iter_stream():
                    body += piece
                    if len(body) > MOST_BYTES:
                        raise PermanentError(f"{asking} answered with more than {MOST_BYTES >> 20} MB; ask for a shorter window")
                named = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in answer.headers}
                return self._page(asking, answer.status, named, bytes(body))
        except httpcore2.TimeoutException:
            failure = TransientError(f"{asking} timed out; try again later or raise the option timeout_seconds")
        except (httpcore2.NetworkError, httpcore2.ProtocolError, OSError) as error:
            failure = TransientError(f"{asking} could not be reached or broke off ({type(error).__name__}); check base_url")
        except httpcore2.UnsupportedProtocol:
            failure = PermanentError(f"{self.name}: base_url must start with https:// or http://")
        # Raised out here: the original error may hold the request.
        raise failure

    def _page(self, asking: str, status: int, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        if status == 200:
            try:
                return read_json(body)
            except DamagedPage as damage:
                raise TransientError(f"{asking} answered with what is no whole page ({self._clean(str(damage))})") from None
        said = f"{asking} answered HTTP {status} ({self._clean(' '.join(body[:2000].decode(errors='replace').split()))[:_LONGEST_QUOTE]})"
        if status in _TRANSIENT_STATUS or status >= 500:
            wait = retry_after(headers)
            raise TransientError(f"{said}; try again later", retry_after=wait)
        if status in (401, 403):
            raise PermanentError(f"{said}; give the connection {self.key_needed}")
        raise PermanentError(f"{said}; correct the connection's options or base_url")

    def _clean(self, text: str) -> str:
        for secret in self.secrets:
            if secret:
                text = text.replace(secret, "[secret]")
        return text
