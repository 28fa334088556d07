"""One POST of JSON to a checked address: pinned, bounded in time and size, its answer turned into success or one clear error."""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import httpcore2

from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.exports.destinations.base import Allowances
from tokentra_dagster.exports.destinations.certificates import trusting
from tokentra_dagster.exports.destinations.targets import PinnedBackend, Target, addresses_of
from tokentra_dagster.providers.failures import retry_after

_TRANSIENT_STATUS = frozenset((408, 425, 429))
_MOST_OF_ANSWER = 64 * 1024
"""Bytes of the answer's body that we read, to let the receiver finish; none of it is used."""
_TIMED_OUT = (httpcore2.TimeoutException,)
_BROKE_OFF = (httpcore2.NetworkError, httpcore2.ProtocolError, OSError)


def post(
    target: Target,
    headers: Mapping[str, str],
    body: bytes,
    timeout_seconds: float,
    allowances: Allowances,
    ca_file: Path | None = None,
    refused: str = "check the address, and that the receiver has the same secret",
) -> None:
    """Send once. Raises `TransientError` (408, 425, 429, 5xx, time-outs, broken connections) or `PermanentError` (any other answer
    than 2xx); `refused` says what to do about a 4xx. No text holds the path or query of the address."""
    status, wait = _ask(target, {**_usual(target), **headers}, body, timeout_seconds, allowances, ca_file)
    if 200 <= status < 300:
        return
    said = f"The webhook {target.shown} answered HTTP {status}"
    if status in _TRANSIENT_STATUS or status >= 500:
        when = f"wait {wait:g} s before trying again" if wait is not None else "it is tried again"
        raise TransientError(f"{said}; {when}.", retry_after=wait)
    if 300 <= status < 400:
        raise PermanentError(f"{said}, a redirect, and redirects are not followed; give the final address.")
    if status == 410:
        raise PermanentError(f"{said}: the receiver wants no more events; remove or pause what sends them.")
    raise PermanentError(f"{said}; {refused}.")


def _usual(target: Target) -> dict[str, str]:
    return {
        "Host": target.shown.partition("://")[2],
        "Content-Type": "application/json",
        "User-Agent": "tokentra-usage",
        "Connection": "close",
        "Accept-Encoding": "identity",
    }


def _ask(
    target: Target, headers: Mapping[str, str], body: bytes, timeout_seconds: float, allowances: Allowances, ca_file: Path | None
) -> tuple[int, float | None]:
    """Status, and the seconds of Retry-After. The answer's body is drained within bounds and dropped."""
    deadline = time.monotonic() + timeout_seconds
    backend = PinnedBackend(addresses_of(target, allowances), deadline)
    tls = trusting(ca_file)
    failure: Exception | None = None
    try:
        with (
            httpcore2.ConnectionPool(ssl_context=tls, network_backend=backend) as pool,
            pool.stream("POST", _sendable(target), headers=list(headers.items()), content=body) as answer,
        ):
            _drain(answer)
            named = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in answer.headers}
            return answer.status, retry_after(named)
    except _TIMED_OUT:
        failure = TransientError(
            f"The webhook {target.shown} did not answer within {timeout_seconds:g} s; it is tried again, or raise timeout_seconds."
        )
    except _BROKE_OFF as error:
        failure = _broken(target, error)
    # Outside the handlers: the original error may hold the address.
    raise failure


def _sendable(target: Target) -> str:
    """The address without its fragment, which is never sent."""
    return urlsplit(target.url)._replace(fragment="").geturl()


def _drain(answer: httpcore2.Response) -> None:
    # The status already says how it went. A receiver that is cut off while it still writes may count that as a failure.
    read = 0
    try:
        for piece in answer.iter_stream():
            read += len(piece)
            if read > _MOST_OF_ANSWER:
                return
    except (*_TIMED_OUT, *_BROKE_OFF):
        return


def _broken(target: Target, error: BaseException) -> Exception:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return PermanentError(
                f"The certificate of the webhook {target.shown} was not accepted ({cause.verify_message}); check the address or ca_file."
            )
        cause = cause.__cause__ or cause.__context__
    return TransientError(
        f"The webhook {target.shown} could not be reached or broke off ({type(error).__name__}); it is tried again."
    )
