"""Markdown for Dagster's metadata. Names and errors are other people's text, and the UI renders what it is given."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

LONGEST_CELL = 300
# An underscore inside a word is no mark, and names of columns are full of them.
_MARKS = re.compile(r"[\\|\[\]<>*`]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def escaped(text: str) -> str:
    """On one line, as it is: no link, no tag, no emphasis, no end of a cell."""
    return " ".join(_MARKS.sub(r"\\\g<0>", text).split())


def plain(value: Any) -> str:
    """A value as a person reads it; unknown is empty."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def are_figures(values: Iterable[Any]) -> bool:
    """Whether all that is known is a figure, which is set to the right."""
    known = [value for value in values if value is not None]
    return bool(known) and all(isinstance(value, int | float | Decimal) and not isinstance(value, bool) for value in known)


def table(
    headings: Sequence[str], rows: Iterable[Sequence[Any]], empty: str = "", text: Callable[[Any], str] = plain
) -> str:  # fmt: skip
    """A line per row; `empty` where there is none."""
    found = list(rows)
    if not found:
        return empty
    columns = zip(*found, strict=True)
    lines = [headings, ["--:" if are_figures(column) else "---" for column in columns]]
    lines += [[escaped(text(value)[:LONGEST_CELL]) for value in row] for row in found]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bullets(lines: Iterable[str], empty: str = "") -> str:
    """A list of sentences."""
    return "\n".join(f"- {escaped(line)}" for line in lines) or empty
