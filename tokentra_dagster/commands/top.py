"""`tokentra top`: usage of the last minutes, live, as people know it from top."""

from __future__ import annotations

import contextlib
import select
import signal
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn
from uuid import UUID

import click

from tokentra_dagster.commands.common import echo_json, open_database

if TYPE_CHECKING:
    from rich.console import Console

    from tokentra_dagster.realtime.live import LiveUsage
    from tokentra_dagster.realtime.live_view import Room, Shown
    from tokentra_dagster.warehouse.database import Database
    from tokentra_dagster.warehouse.directory import Connection

TICK_SECONDS = 0.2
"""How soon a key or a new size of the terminal is answered."""
LONGEST_QUERY_SECONDS = 15


@click.command()
@click.option("--org", "org_name", required=True)
@click.option("--minutes", type=click.IntRange(1, 60), default=15, show_default=True, help="Whole minutes to show.")
@click.option("--interval", type=click.FloatRange(0.5, 60), default=2.0, show_default=True, help="Seconds between looks.")
@click.option("--once", is_flag=True, help="Print it once and end; so it is where there is no terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print it once, as JSON.")
def top(org_name: str, minutes: int, interval: float, once: bool, as_json: bool) -> None:
    """Usage of the last minutes, live, from the events that applications send. q ends it, m and f show models or features alone."""
    from rich.console import Console

    from tokentra_dagster.realtime.live_view import view
    from tokentra_dagster.warehouse.directory import organization_id

    database = open_database()
    with database.connect(autocommit=True, application="tokentra top") as db:
        org_id = organization_id(db, org_name)
        usage = _look(db, org_id, minutes)
    if as_json:
        echo_json(usage.as_json())
        return
    console = Console()
    if once or not console.is_terminal:
        if not console.is_terminal:
            console = Console(width=max(console.width, 120))
        console.print(view(usage, org_name, _room(console, lines=False)))
        return
    _Screen(console, database, org_name, org_id, minutes, interval).run(usage)


def _look(db: Connection, org_id: UUID, minutes: int) -> LiveUsage:
    from tokentra_dagster.realtime.live import live_usage

    return live_usage(db, org_id, minutes)


def _room(console: Console, *, lines: bool = True) -> Room:
    from tokentra_dagster.realtime.live_view import Room

    return Room(console.width, console.height if lines else None, ascii_only=not console.encoding.startswith("utf"))


class _Screen:
    """The view that is drawn again at every look, key and change of size, until somebody ends it."""

    def __init__(self, console: Console, database: Database, org_name: str, org_id: UUID, minutes: int, interval: float) -> None:
        self._console, self._database, self._org_name = console, database, org_name
        self._org_id, self._minutes, self._interval = org_id, minutes, interval
        self._shown: Shown = "both"
        self._db: Connection | None = None
        self._trouble: str | None = None

    def run(self, usage: LiveUsage) -> None:
        from rich.live import Live

        from tokentra_dagster.realtime.live_view import view

        # A script's background jobs start with SIGINT ignored, and would never end.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _end)
        with (
            contextlib.suppress(KeyboardInterrupt),
            keys_one_by_one(),
            Live(console=self._console, screen=True, auto_refresh=False, vertical_overflow="crop") as live,
        ):
            looked = time.monotonic()
            while True:
                size = self._console.size
                live.update(view(usage, self._org_name, _room(self._console), self._shown, self._trouble), refresh=True)
                while self._console.size == size and (left := looked + self._interval - time.monotonic()) > 0:
                    key = _key(min(left, TICK_SECONDS))
                    if key == "q":
                        return
                    if key in ("m", "f"):
                        only: Shown = "models" if key == "m" else "features"
                        self._shown = "both" if self._shown == only else only
                        break
                else:
                    if left <= 0:
                        looked = time.monotonic()
                        usage = self._next() or usage

    def _next(self) -> LiveUsage | None:
        """A new look; None, and why, while the database does not answer."""
        import psycopg

        from tokentra_dagster.errors import TokenTraError, UsageError

        try:
            if self._db is None:
                self._db = self._database.connect(autocommit=True, application="tokentra top")
                self._db.execute(f"SET statement_timeout = '{LONGEST_QUERY_SECONDS}s'")
            usage = _look(self._db, self._org_id, self._minutes)
        except UsageError:
            raise
        except psycopg.errors.QueryCanceled:
            self._trouble = (
                f"The figures took over {LONGEST_QUERY_SECONDS} s to compute; these are older. Fewer --minutes are quicker."
            )
            return None
        except (TokenTraError, psycopg.Error):
            if self._db is not None:
                self._db.close()
            self._db = None
            if self._trouble is None:
                self._trouble = (
                    f"The database does not answer since {time.strftime('%H:%M:%S', time.gmtime())} UTC; trying again."
                )
            return None
        self._trouble = None
        return usage


@contextlib.contextmanager
def keys_one_by_one() -> Iterator[None]:
    """Keys arrive as they are pressed and are not shown; the terminal is as it was afterwards. Ctrl-C stays an interrupt."""
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _key(seconds: float) -> str | None:
    """The key that is pressed within the time, if any."""
    if not sys.stdin.isatty():
        time.sleep(seconds)
        return None
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return sys.stdin.read(1) if ready else None


def _end(*_: object) -> NoReturn:
    raise KeyboardInterrupt
