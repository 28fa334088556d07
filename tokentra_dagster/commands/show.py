"""A result as tables that a person reads: figures first, then a table for each list. Works on the JSON form of any analysis."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from tokentra_dagster.commands.common import echo_table

MOST_ROWS = 20
MOST_COLUMNS = 9
UNKNOWN = "-"


def echo_result(title: str, value: Mapping[str, Any]) -> None:
    """Figures as two columns, nested objects under their own names, lists as tables of up to 20 rows."""
    figures = list(_figures(value))
    if figures:
        echo_table(title, [("", False), ("", True)], figures)
    else:
        click.echo(title)
    for name, items in _lists(value):
        _echo_list(words(name), items)


def words(name: str) -> str:
    """`modelBreakdown` -> `model breakdown`."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda found: " " + found[1].lower(), name)


def text(value: Any) -> str:
    """A figure as a person writes it; unknown is a dash, never 0."""
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return (
            f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:,.2f}" if abs(value) >= 0.01 or value == 0 else f"{value:.2g}"
        )
    if isinstance(value, str):
        return re.sub(
            r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d(\.\d+)?Z$", lambda m: m[1] if m[2] == "00:00" else f"{m[1]} {m[2]}", value
        )
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {text(item)}" for key, item in value.items())
    return ", ".join(text(item) for item in value) or "none"


def _is_plain(value: Any) -> bool:
    return not isinstance(value, Mapping | list)


def _figures(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, item in value.items():
        label = f"{prefix}{words(name)}"
        if _is_plain(item):
            yield label, text(item)
        elif isinstance(item, Mapping):
            yield from _figures(item, f"{label}: ")
        elif item and all(map(_is_plain, item)):
            for line in item:
                yield label, text(line)


def _lists(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Sequence[Mapping[str, Any]]]]:
    for name, item in value.items():
        label = f"{prefix}{name}"
        if isinstance(item, Mapping):
            yield from _lists(item, f"{label}: ")
        elif isinstance(item, list) and item and isinstance(item[0], Mapping):
            yield label, item


def _echo_list(title: str, items: Sequence[Mapping[str, Any]]) -> None:
    shown = items[:MOST_ROWS]
    names = [name for name in items[0] if any(_has_something(item.get(name)) for item in shown)][:MOST_COLUMNS]
    columns = [(words(name), all(isinstance(item.get(name), int | float | None) for item in shown)) for name in names]
    more = f" ({len(shown)} of {len(items)}; --json has all)" if len(items) > len(shown) else ""
    echo_table(f"{title}{more}", columns, ([text(item.get(name)) for name in names] for item in shown))


def _has_something(value: Any) -> bool:
    """A column of nothing, or of long lists, tells nothing in a table."""
    return value is not None and not (isinstance(value, list) and (not value or isinstance(value[0], Mapping | list)))
