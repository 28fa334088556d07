"""A connection's options: text to typed values. An unknown name or value raises, listing what is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from tokentra_dagster.errors import PermanentError
from tokentra_dagster.providers.base import ConnectionConfig

COMMON = ("timeout_seconds", "max_retries")
"""Every provider that is asked through an SDK has these."""
ATTRIBUTED = ("team", "project", "cost_center", "feature", "environment", "user")
"""What a request's own metadata can say, each by the key of the same name unless the option `attribution` names another."""


class Options:
    """The options of one connection, each read once with its default."""

    def __init__(self, config: ConnectionConfig, names: Iterable[str]) -> None:
        self._config = config
        known = (*names, *COMMON)
        for name in config.options:
            if name not in known:
                raise PermanentError(f"{config.asked}: unknown option {name!r}; valid options are {', '.join(known)}")
        self.timeout_seconds = self._number("timeout_seconds", 60.0, above=0.0)
        self.max_retries = int(self._number("max_retries", 4, above=-1.0, whole=True))

    def one_of(self, name: str, allowed: Sequence[str], default: str) -> str:
        value = self._config.options.get(name, default).strip()
        if value not in allowed:
            raise self.wrong(name, value, f"valid values are {', '.join(allowed)}")
        return value

    def some_of(self, name: str, allowed: Sequence[str], default: Sequence[str], most: int | None = None) -> tuple[str, ...]:
        """A comma list, each value once, in the order given."""
        text = self._config.options.get(name)
        if text is None:
            return tuple(default)
        values = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
        wrong = [value for value in values if value not in allowed]
        if wrong or not values:
            raise self.wrong(name, ", ".join(wrong), f"valid values, separated by commas, are {', '.join(allowed)}")
        if most is not None and len(values) > most:
            raise self.wrong(name, text, f"at most {most} values are allowed")
        return values

    def text(self, name: str) -> str | None:
        """As given, without white space around it; None where it is not given or empty."""
        return self._config.options.get(name, "").strip() or None

    def texts(self, name: str) -> tuple[str, ...]:
        """A comma list of anything, each value once, in the order given."""
        return tuple(dict.fromkeys(part.strip() for part in self._config.options.get(name, "").split(",") if part.strip()))

    def attribution(self) -> dict[str, str]:
        """Each of `ATTRIBUTED` -> the key that says it: `team=squad` of the option means that the team is what is called squad."""
        keys = dict(zip(ATTRIBUTED, ATTRIBUTED, strict=True))
        for text in self.texts("attribution"):
            name, found, key = (part.strip() for part in text.partition("="))
            if name not in ATTRIBUTED or not found or not key:
                raise self.wrong(
                    "attribution", text, f"write KIND=KEY, where KIND is one of {', '.join(ATTRIBUTED)}, e.g. team=squad"
                )
            keys[name] = key
        return keys

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        text = self._config.options.get(name, str(default)).strip()
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise self.wrong(name, text, f"it must be a whole number from {low} to {high}")
        return int(text)

    def _number(self, name: str, default: float, above: float, whole: bool = False) -> float:
        text = self._config.options.get(name)
        if text is None:
            return default
        try:
            number = float(int(text)) if whole else float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or number <= above:
            kind = "a whole number, 0 or more" if whole else f"a number above {above:g}"
            raise self.wrong(name, text, f"it must be {kind}")
        return number

    def wrong(self, name: str, value: str, allowed: str) -> PermanentError:
        """The error that says what is allowed, a clause like `it must be ...`."""
        return PermanentError(f"{self._config.asked}: option {name} has the value {value!r}; {allowed}")
