"""Reading a provider's query parameters strictly, dividing streams into groups, and page tokens.

`Refusal` is an answer other than 200; each API gives it the provider's own body.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Pairs = Sequence[tuple[str, str]]


class Refusal(Exception):
    """What the provider would refuse, with its status, the error's type, and the parameter at fault."""

    def __init__(
        self, status: int, message: str, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
    ):
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code


class Query:
    """The parameters of one request. `x` and `x[]` are the same; lists may repeat or be joined with commas."""

    def __init__(self, pairs: Pairs) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in pairs:
            self._values.setdefault(name.removesuffix("[]"), []).append(value)

    def only(self, *known: str) -> None:
        unknown = sorted(set(self._values) - set(known))
        if unknown:
            raise Refusal(400, f"Unknown parameter: '{unknown[0]}'.", param=unknown[0], code="unknown_parameter")

    def one(self, name: str) -> str | None:
        values = self._values.get(name)
        return values[-1] if values else None

    def many(self, name: str, joined: bool = True) -> list[str] | None:
        """Every value, or None when the parameter is not there. An empty value stays: it may match what is null.

        Not `joined`: a comma is part of the value.
        """
        values = self._values.get(name)
        if values is None:
            return None
        return list(dict.fromkeys(part for value in values for part in (value.split(",") if joined else (value,))))

    def some_of(self, name: str, allowed: Iterable[str]) -> list[str]:
        values, valid = self.many(name) or [], tuple(allowed)
        for value in values:
            if value not in valid:
                raise Refusal(400, f"Invalid value: '{value}'. Supported values are: {', '.join(map(repr, valid))}.", param=name)
        return values

    def one_of(self, name: str, allowed: Sequence[str], default: str | None) -> str | None:
        value = self.one(name)
        if value is None:
            return default
        if value not in allowed:
            raise Refusal(400, f"Invalid value: '{value}'. Supported values are: {', '.join(map(repr, allowed))}.", param=name)
        return value

    def whole(self, name: str, default: int | None, low: int, high: int) -> int:
        text = self.one(name)
        if text is None:
            if default is None:
                raise Refusal(400, f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
            return default
        try:
            number = int(text)
        except ValueError:
            raise Refusal(400, f"Invalid '{name}': expected an integer, but got {text!r} instead.", param=name) from None
        if not low <= number <= high:
            raise Refusal(400, f"Invalid '{name}': {number} must be between {low} and {high}.", param=name)
        return number

    # ---- Page tokens: a position, bound to every other parameter -------------------------------------------------------

    def token(self, path: str, position: int) -> str:
        text = json.dumps([position, self._digest(path)], separators=(",", ":"))
        return "page_" + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    def position(self, path: str, refused: str) -> int | None:
        """Where the page begins, None for the first. `refused` is what the provider says about a token it did not give."""
        token = self.one("page")
        if token is None:
            return None
        try:
            text = token.removeprefix("page_")
            position, digest = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        except (ValueError, TypeError, binascii.Error):
            raise Refusal(400, refused, param="page") from None
        if digest != self._digest(path) or not isinstance(position, int):
            raise Refusal(400, refused, param="page")
        return position

    def _digest(self, path: str) -> str:
        others = sorted((name, values) for name, values in self._values.items() if name != "page")
        return hashlib.blake2b(json.dumps([path, others]).encode(), digest_size=6).hexdigest()


@dataclass(frozen=True, slots=True)
class Groups:
    """Streams divided: `rows` are the selected streams, `of_row` the group of each, `dimensions` what each group shares."""

    rows: Ints
    of_row: Ints
    dimensions: list[dict[str, Any]]

    def sums(self, values: Ints) -> Ints:
        """streams x ... -> groups x ...; only the selected streams count."""
        total = np.zeros((len(self.dimensions), *values.shape[1:]), dtype=np.int64)
        np.add.at(total, self.of_row, values[self.rows])
        return total


class Divisible(Protocol):
    @property
    def dimensions(self) -> Mapping[str, Any]: ...


def divide(streams: Sequence[Divisible], group_by: Sequence[str], filters: Mapping[str, Sequence[Any]]) -> Groups:
    """Groups in order of first appearance. A filter's `""` matches null; without `group_by` there is one group."""
    numbers: dict[str, int] = {}
    dimensions: list[dict[str, Any]] = []
    rows, of_row = [], []
    for row, stream in enumerate(streams):
        if any(
            (stream.dimensions.get(name) if stream.dimensions.get(name) is not None else "") not in v
            for name, v in filters.items()
        ):
            continue
        shared = {name: stream.dimensions.get(name) for name in group_by}
        key = json.dumps(shared, sort_keys=True)
        if key not in numbers:
            numbers[key] = len(dimensions)
            dimensions.append(shared)
        rows.append(row)
        of_row.append(numbers[key])
    return Groups(np.array(rows, dtype=np.int64), np.array(of_row, dtype=np.int64), dimensions)


def template(fields: Mapping[str, Any]) -> str:
    """JSON text of an object whose values `Slot` are left open for the `%` operator, in order."""
    parts = []
    for name, value in fields.items():
        if isinstance(value, Slot):
            text = value.text
        elif isinstance(value, dict):
            text = template(value)
        else:
            text = json.dumps(value).replace("%", "%%")
        parts.append(f"{json.dumps(name)}:{text}")
    return "{" + ",".join(parts) + "}"


@dataclass(frozen=True, slots=True)
class Slot:
    """A value of a template that is filled in per row: `%d` a count, `"%s"` text, `%s` a number given as text."""

    text: str = "%d"
