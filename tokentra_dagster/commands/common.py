"""What several commands share: opening the database, parsing periods, JSON and tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tokentra_dagster.settings import Settings
    from tokentra_dagster.warehouse.database import Database

Command = Callable[..., Any]
"""What options are added to."""


def settings() -> Settings:
    from tokentra_dagster.settings import Settings

    return Settings.from_environment()


def open_database() -> Database:
    """The migrated database, started if it is ours and not running. Imports neither Dagster nor (when migrated) Alembic."""
    from tokentra_dagster.warehouse.database import Database
    from tokentra_dagster.warehouse.migrate import migrate

    database = Database.open(settings())
    migrate(database)
    return database


def parse_moment(text: str, name: str) -> datetime:
    from tokentra_dagster.ingest.windows import moment

    return moment(text, name)


def echo_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, default=str))


def echo_table(title: str, columns: Sequence[tuple[str, bool]], rows: Iterable[Sequence[str]]) -> None:
    """A table on standard output; `columns` are (heading, is a number)."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for heading, number in columns:
        table.add_column(heading, justify="right" if number else "left", no_wrap=number)
    for row in rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    console.print(table)


def pairs(texts: Iterable[str], option: str) -> dict[str, str]:
    """`K=V` options as a dictionary; anything else is wrong usage."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint=option)
        found[name] = value
    return found
