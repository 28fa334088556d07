"""What can go wrong with a provider, switched on for the next few requests.

A fault waits until a request matches its provider and path; each match uses it up once. The faults about page tokens wait
for a request that carries a token. Damage to a page's content is done to the honest answer, so everything else in it is true.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from tokentra_dagster.errors import UsageError

KINDS = {
    "rate_limit": "429; `retry_after` seconds in the header when given",
    "server_error": "500",
    "unavailable": "503",
    "overloaded": "529",
    "timeout": "answers after `seconds` (default 30)",
    "truncated_json": "half of the page, as if it were whole",
    "dropped": "the connection closes in the middle of the answer",
    "revoked_key": "401",
    "forbidden": "403",
    "repeated_page_token": "a later page that gives its own token as the next one",
    "invalid_page_token": "400 for a token that was just given",
    "empty_buckets": "buckets without results",
    "unknown_result": "the first result is of a kind that nobody knows",
    "string_amounts": "OpenAI's amounts as text instead of numbers",
    "bad_record": "the first result's parts exceed their whole (OpenAI), or a count is negative (elsewhere)",
}
STATUS = {"rate_limit": 429, "server_error": 500, "unavailable": 503, "overloaded": 529, "revoked_key": 401, "forbidden": 403}
TOLD = "The simulator was told to say so."
_WITH_TOKEN = frozenset(("repeated_page_token", "invalid_page_token"))
PROVIDERS = ("openai", "anthropic", "aws", "azure", "google", "langfuse")


@dataclass(slots=True)
class Fault:
    """`path` is a part of the request's path, e.g. `usage/completions`; empty for every path. `times` is what is left.

    `skip` requests that match are answered honestly first: with 1 the second page goes wrong.
    """

    kind: str
    provider: str | None = None
    path: str = ""
    times: int = 1
    retry_after: float | None = None
    seconds: float = 30.0
    skip: int = 0

    @property
    def status(self) -> int | None:
        """What is answered instead of 200; None where the answer itself is damaged or late."""
        return 400 if self.kind == "invalid_page_token" else STATUS.get(self.kind)

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"retry-after": f"{self.retry_after:g}"}

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"kind is {self.kind!r}; it must be one of {', '.join(KINDS)}.")
        if self.provider is not None and self.provider not in PROVIDERS:
            raise UsageError(f"provider is {self.provider!r}; it must be one of {', '.join(PROVIDERS)}.")
        if not isinstance(self.times, int) or self.times < 1:
            raise UsageError(f"times is {self.times!r}; it must be a whole number, 1 or more.")
        if not isinstance(self.skip, int) or self.skip < 0:
            raise UsageError(f"skip is {self.skip!r}; it must be a whole number, 0 or more.")
        for name, value in (("retry_after", self.retry_after), ("seconds", self.seconds)):
            if value is not None and (not isinstance(value, int | float) or value < 0):
                raise UsageError(f"{name} is {value!r}; it must be a number of seconds, 0 or more.")


@dataclass(slots=True)
class Faults:
    """The faults that wait, oldest first; safe to use from any thread."""

    waiting: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, fault: Fault) -> None:
        with self._lock:
            self.waiting.append(fault)

    def clear(self) -> None:
        with self._lock:
            self.waiting.clear()

    def take(self, provider: str, path: str, has_token: bool) -> Fault | None:
        """The fault of this request, used up once."""
        with self._lock:
            for fault in self.waiting:
                if (
                    fault.provider not in (None, provider)
                    or fault.path not in path
                    or (fault.kind in _WITH_TOKEN and not has_token)
                ):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                if fault.times == 0:
                    self.waiting.remove(fault)
                return fault
        return None

    def described(self) -> list[dict[str, Any]]:
        with self._lock:
            return [asdict(fault) for fault in self.waiting]


def damage(kind: str, body: bytes, token: str | None) -> bytes:
    """The honest page with one thing wrong."""
    if kind == "truncated_json":
        return body[: len(body) // 2]
    change = _CHANGES.get(kind)
    if change is None:
        return body
    # Numbers stay as they were written: a float would change amounts that nobody asked to change.
    page = json.loads(body, parse_float=_Verbatim)
    change(page, token)
    return _Encoder().dumps(page)


def _repeat_token(page: dict[str, Any], token: str | None) -> None:
    page["has_more"], page["next_page"] = True, token


def _empty(page: dict[str, Any], token: str | None) -> None:
    if any("results" in bucket for bucket in page["data"]):
        for bucket in page["data"]:
            bucket["results"] = []
    else:
        page["data"] = []


def _results(page: dict[str, Any]) -> list[dict[str, Any]]:
    """Every result of a page: in its buckets, or its rows themselves."""
    return [result for item in page["data"] for result in item.get("results", [item])]


def _unknown(page: dict[str, Any], token: str | None) -> None:
    for result in _results(page)[:1]:
        for name in ("usage", "cost", "uncached_input_tokens", "amount"):
            result.pop(name, None)
        result["object"] = "organization.usage.telepathy.result"


def _text_amounts(page: dict[str, Any], token: str | None) -> None:
    for result in _results(page):
        amount = result.get("amount")
        if isinstance(amount, dict):
            amount["value"] = str(amount["value"])


def _exceed(page: dict[str, Any], token: str | None) -> None:
    for result in _results(page):
        usage = result.get("usage", result)
        if "input_cached_tokens" in usage:
            usage["input_cached_tokens"] = usage["input_tokens"] + 1
            return
        if "cache_read_input_tokens" in usage:
            usage["cache_read_input_tokens"] = -1
            return


_CHANGES: dict[str, Callable[[dict[str, Any], str | None], None]] = {
    "repeated_page_token": _repeat_token,
    "empty_buckets": _empty,
    "unknown_result": _unknown,
    "string_amounts": _text_amounts,
    "bad_record": _exceed,
}


class _Verbatim(str):
    """A number as it was written."""


class _Encoder:
    def dumps(self, value: Any) -> bytes:
        return self._text(value).encode()

    def _text(self, value: Any) -> str:
        if isinstance(value, _Verbatim):
            return str(value)
        if isinstance(value, dict):
            return "{" + ",".join(f"{json.dumps(name)}:{self._text(inner)}" for name, inner in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ",".join(map(self._text, value)) + "]"
        return json.dumps(value)
