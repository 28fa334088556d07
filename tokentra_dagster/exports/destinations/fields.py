"""A destination's settings: a JSON-like mapping, as a row holds it, to typed values. References only, never a secret."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokentra_dagster.errors import UsageError
from tokentra_dagster.exports.destinations.base import Retries
from tokentra_dagster.secret_references import is_reference

_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


class Fields:
    """The settings of one destination, each read once with its default.

    Names may be the specification's (`webhookUrl`) or ours (`webhook_url`); numbers may be text, as the specification's
    `deliveryConfig` is text only. Raises `UsageError` in one sentence; a value that may be a secret is not repeated.
    """

    def __init__(self, kind: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
        self.kind = kind
        self._values: dict[str, Any] = {}
        for name, value in given.items():
            ours = _CAPITAL.sub("_", str(name)).lower()
            if ours not in known:
                raise UsageError(f"{kind}: unknown setting {name!r}; known settings are {', '.join(known)}.")
            if ours in self._values:
                raise UsageError(f"{kind}: the setting {ours} is given twice; give it once.")
            if value is not None and value != "":
                self._values[ours] = value

    def has(self, name: str) -> bool:
        return name in self._values

    def text(self, name: str, default: str | None = None, example: str = "") -> str:
        value = self._values.get(name, default)
        if value is None:
            raise UsageError(f"{self.kind}: the setting {name} is missing{f'; give e.g. {example}' if example else ''}.")
        if not isinstance(value, str):
            raise self.wrong(name, f"must be text, not {type(value).__name__}")
        if not value.isprintable():
            raise self.wrong(name, "must not hold line breaks or control characters")
        return value.strip()

    def texts(self, name: str, example: str) -> tuple[str, ...]:
        """A list, or text separated by commas; each value once, in the order given, at least one."""
        value = self._values.get(name)
        parts = value.split(",") if isinstance(value, str) else value
        if parts is None or not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
            raise self.wrong(name, f"must be a list or text separated by commas, e.g. {example}")
        found = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
        if not found:
            raise self.wrong(name, f"must name at least one, e.g. {example}")
        return found

    def reference(self, name: str) -> str | None:
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, str) or not is_reference(value) or not value.isprintable():
            raise self.wrong(name, "must say where the secret is, env:NAME or file:PATH; the secret itself is never stored")
        return value

    def required_reference(self, name: str) -> str:
        found = self.reference(name)
        if found is None:
            raise UsageError(f"{self.kind}: the setting {name} is missing; say where the secret is, env:NAME or file:PATH.")
        return found

    def number(self, name: str, default: float, least: float, most: float) -> float:
        value = self._values.get(name, default)
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not least <= number <= most:
            raise self.wrong(name, f"is {value!r}; it must be a number from {least:.15g} to {most:.15g}")
        return number

    def whole(self, name: str, default: int, least: int, most: int) -> int:
        number = self.number(name, default, least, most)
        if number != int(number):
            raise self.wrong(name, f"is {number!r}; it must be a whole number")
        return int(number)

    def one_of(self, name: str, default: str, allowed: Sequence[str]) -> str:
        value = self.text(name, default)
        if value not in allowed:
            raise self.wrong(name, f"is {value!r}; it must be one of {', '.join(allowed)}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self._values.get(name, default)
        if isinstance(value, str) and value.lower() in ("true", "false"):
            value = value.lower() == "true"
        if not isinstance(value, bool):
            raise self.wrong(name, f"is {value!r}; it must be true or false")
        return value

    def file(self, name: str) -> Path | None:
        """A file of this machine that must be there, e.g. the certificates of an own authority."""
        if not self.has(name):
            return None
        path = Path(self.text(name)).expanduser()
        if not path.is_file():
            raise self.wrong(name, f"is {str(path)!r}; there is no such file")
        return path

    def retries(self) -> Retries:
        """The settings `attempts`, `first_pause_seconds` and `longest_pause_seconds`, which every sender takes."""
        return Retries(
            attempts=self.whole("attempts", 4, 1, 10),
            first_pause=self.number("first_pause_seconds", 1.0, 0, 60),
            longest_pause=self.number("longest_pause_seconds", 60.0, 0, 600),
        )

    def wrong(self, name: str, problem: str) -> UsageError:
        return UsageError(f"{self.kind}: the setting {name} {problem}.")
