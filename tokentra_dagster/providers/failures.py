"""Asking through a vendor's SDK: one call, one whole JSON page, or one clear error.

The SDK itself retries 408, 409, 429, 5xx and connections that fail, with back-off and honouring Retry-After. This module
adds what it does not do: a page that arrives damaged or breaks off is asked for again, and whatever finally fails becomes a
`PermanentError` or a `TransientError` whose sentence says what to do. Nothing here knows which provider is asked.
"""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NoReturn

from tokentra_dagster.errors import PermanentError, TransientError

_TRANSIENT_STATUS = frozenset((408, 409, 425, 429))
_LONGEST_QUOTE = 300
_PIECE = 1 << 16
_LONGEST_PAUSE = 8.0


class Refused(PermanentError):
    """The provider answered with an HTTP status that retrying cannot change."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class DamagedPage(ValueError):
    """An answer with status 200 that is not the page it should be. Its text says what is wrong with it."""


class PageTooLarge(Exception):
    """A page was given up while it arrived, because it is larger than allowed."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Makes the calls of one connection. `sdk` is the vendor's module, for its exception classes."""

    provider: str
    sdk: Any
    key_needed: str
    """Which kind of key works and where to get it, e.g. `an Admin API key (sk-admin-..., from ...)`."""
    secret: str = field(repr=False)
    damaged_retries: int = 2
    """How often a damaged page is asked for again."""

    def page(
        self,
        asking: str,
        ask: Callable[[], Any],
        check: Callable[[dict[str, Any]], object],
        hint: str = "",
        most_bytes: int | None = None,
    ) -> dict[str, Any]:
        """The JSON object that `ask` fetches, numbers as Decimal, accepted by `check` (which raises `DamagedPage`).

        `ask` returns the SDK's streaming response, a context manager. Raises `PageTooLarge` over `most_bytes`.
        """
        for attempt in range(self.damaged_retries + 1):
            if attempt:
                time.sleep(min(0.25 * 2**attempt, _LONGEST_PAUSE))
            try:
                page = read_json(self._body(asking, ask, hint, most_bytes))
                check(page)
                return page
            except DamagedPage as damage:
                problem = str(damage)
        raise TransientError(
            self._clean(
                f"{self.provider}: {asking} answered {self.damaged_retries + 1} times with a page that cannot be read "
                f"({problem}); nothing of it was used, try again later"
            )
        )

    def _body(self, asking: str, ask: Callable[[], Any], hint: str, most_bytes: int | None) -> bytearray:
        broken = ""
        failure: Exception | None = None
        body = bytearray()
        try:
            with ask() as answer:
                try:
                    for piece in answer.iter_bytes(_PIECE):
                        body += piece
                        if most_bytes is not None and len(body) > most_bytes:
                            raise PageTooLarge
                except PageTooLarge:
                    raise
                except Exception as error:
                    broken = type(error).__name__
        except PageTooLarge:
            raise
        except Exception as error:
            failure = self._translate(error, asking, hint)
        # Raised here, outside the handlers: the SDK's error holds the request with its Authorization header, and must
        # not travel along as __context__ into a log.
        if failure:
            raise failure
        if broken:
            raise DamagedPage(f"it broke off with {broken}")
        return body

    def _translate(self, error: Exception, asking: str, hint: str) -> Exception:
        if isinstance(error, self.sdk.APIStatusError):
            return self._from_status(error, asking, hint)
        if isinstance(error, self.sdk.APITimeoutError):
            return TransientError(f"{self.provider}: {asking} timed out; try again later or raise the option timeout_seconds")
        if isinstance(error, self.sdk.APIConnectionError):
            cause = type(error.__cause__).__name__ if error.__cause__ else "connection error"
            return TransientError(
                f"{self.provider}: {asking} could not reach the provider ({cause}); check the network and base_url"
            )
        kind = type(error).__name__
        if isinstance(error, OSError) or type(error).__module__.startswith(("httpx", "httpcore")):
            return TransientError(f"{self.provider}: {asking} broke off ({kind}); try again later")
        return PermanentError(
            self._clean(f"{self.provider}: {asking} could not be asked ({kind}: {error}); check key, base_url and options")
        )

    def _from_status(self, error: Any, asking: str, hint: str) -> Exception:
        status: int = error.status_code
        said = f"{self.provider}: {asking} answered HTTP {status} ({self._quote(error)})"
        if status in _TRANSIENT_STATUS or status >= 500:
            wait = retry_after(error.response.headers)
            when = f"wait {wait:g} s before trying again" if wait is not None else "try again later"
            return TransientError(f"{said}; {when}", retry_after=wait)
        if status == 401:
            todo = f"the key was not accepted, give the connection {self.key_needed}"
        elif status == 403:
            todo = f"the key may not read this, give the connection {self.key_needed}"
        else:
            todo = hint or "correct the connection's options or base_url"
        return Refused(f"{said}; {todo}", status)

    def _quote(self, error: Any) -> str:
        """What the provider said, on one line, without the secret."""
        body = error.body
        inner = body.get("error", body) if isinstance(body, Mapping) else body
        message = inner.get("message") if isinstance(inner, Mapping) else inner
        text = self._clean(" ".join(str(message or "no message").split()))
        return text if len(text) <= _LONGEST_QUOTE else text[: _LONGEST_QUOTE - 3] + "..."

    def _clean(self, text: str) -> str:
        return text.replace(self.secret, "[secret]") if self.secret else text


def read_json(body: bytes | bytearray) -> dict[str, Any]:
    """One JSON object; fractions as Decimal, so that no digit of an amount is lost."""
    try:
        page = json.loads(body, parse_float=Decimal, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise DamagedPage(f"not JSON: {error}") from None
    if not isinstance(page, dict):
        raise DamagedPage(f"a JSON object was expected, not {type(page).__name__}")
    return page


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds the provider asks to wait: `retry-after-ms`, or `retry-after` as seconds or a date."""
    for name, divisor in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            return max(0.0, float(headers[name]) / divisor)
        except (KeyError, ValueError):
            continue
    try:
        return max(0.0, email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError, TypeError):
        return None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")
