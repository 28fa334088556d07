"""`tokentra top`: what it shows at any size, once without a terminal, and live in one, also while the database is away."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from fcntl import ioctl
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tests.realtime.event_data import NOON, event, organization, send
from tests.warehouse_data import rows
from tokentra_dagster.realtime.live import live_usage
from tokentra_dagster.realtime.live_view import BARS, Room, short, sparkline, view

COMMAND = [str(Path(sys.executable).parent / "tokentra"), "top", "--org", "acme"]
HOSTILE = "\x1b]0;owned\x07[red]\x9b31m"


def tokentra(database, tmp_path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], env=environment(database, tmp_path), capture_output=True, text=True)


def environment(database, tmp_path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    return {
        **kept,
        "TOKENTRA_DATABASE_URL": database.url,
        "TOKENTRA_HOME": str(tmp_path),
        "TERM": "xterm-256color",
        "LANG": "C.UTF-8",
    }


def test_it_fits_any_terminal_and_shows_names_as_text(database):
    org = organization(database)
    send(database, org, *(event(f"e{n}", NOON, model=f"model-{n}" * 9, feature=f"{HOSTILE}{n}", latency_ms=n) for n in range(30)))
    with database.connect() as db:
        usage = live_usage(db, org, 60, NOON)
    for width in (20, 38, 59, 80, 140, 250):
        for height in (5, 24, 50, None):
            console = Console(width=width, file=StringIO(), force_terminal=False)
            console.print(view(usage, f"acme{HOSTILE}", Room(width, height)))
            lines = console.file.getvalue().splitlines()
            assert max(map(len, lines)) <= width
            assert height is None or len(lines) <= max(height, 15), "one line of each table at least"
            assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", "".join(lines))
            if height is None and width >= 80:
                assert "]0;owned" in "".join(lines) and "[red]" in "".join(lines)


@pytest.mark.parametrize(
    ("values", "drawn"), [([], ""), ([0, 0], "  "), ([0, 1, 1000], f" {BARS[0]}{BARS[-1]}"), ([5] * 90, BARS[-1] * 60)]
)
def test_bars_start_at_nothing_and_only_nothing_is_blank(values, drawn):
    assert sparkline(values, 60) == drawn


@pytest.mark.parametrize(
    ("number", "said"),
    [(None, "-"), (0, "0"), (9999, "9,999"), (10_000, "10.0k"), (999_499, "999k"), (2_000_000, "2.00M"), (1.5, "1.5"), (3 * 10**15, "3,000T")],
)  # fmt: skip
def test_numbers_are_short_and_unknown_is_no_number(number, said):
    assert short(number) == said


def test_without_a_terminal_it_prints_once_and_as_json(database, tmp_path):
    org = organization(database)
    now = datetime.now(UTC)
    send(database, org, event("a", now - timedelta(minutes=1), feature="search"), now=now)
    printed = tokentra(database, tmp_path)
    assert printed.returncode == 0 and "gpt-4o-2024-08-06 (openai)" in printed.stdout and "search" in printed.stdout, (
        printed.stderr
    )
    assert "\x1b" not in printed.stdout
    said = json.loads(tokentra(database, tmp_path, "--json", "--minutes", "5").stdout)
    assert said["totalTokens"] == 110 and len(said["minuteData"]) == 6
    unknown = tokentra(database, tmp_path, "--org", "nobody")
    assert unknown.returncode == 2 and "There are: acme." in unknown.stderr


class Terminal:
    """`tokentra top` in a terminal of this test's own."""

    def __init__(self, database, tmp_path) -> None:
        self.ours, theirs = pty.openpty()
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(theirs)
        self.theirs = theirs
        self.process = subprocess.Popen(
            [*COMMAND, "--interval", "0.5"], env=environment(database, tmp_path), stdin=theirs, stdout=theirs, stderr=theirs
        )
        self.seen = ""

    def until(self, what: str | Callable[[str], bool], seconds: float = 60) -> None:
        """Read on until it is shown, from what was not yet looked at."""
        deadline, new = time.monotonic() + seconds, ""
        found = (lambda text: what in text) if isinstance(what, str) else what
        while not found(new):
            assert time.monotonic() < deadline and self.process.poll() is None, f"{what!r} not shown:\n{self.seen}"
            if select.select([self.ours], [], [], 0.5)[0]:
                part = os.read(self.ours, 65536).decode(errors="replace")
                new, self.seen = new + part, self.seen + part

    def press(self, key: str) -> None:
        os.write(self.ours, key.encode())

    def ended(self) -> int:
        deadline = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < deadline:
            if select.select([self.ours], [], [], 0.1)[0]:
                self.seen += os.read(self.ours, 65536).decode(errors="replace")
        while select.select([self.ours], [], [], 0.1)[0]:
            self.seen += os.read(self.ours, 65536).decode(errors="replace")
        return self.process.wait(1)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def terminal(database, tmp_path):
    org = organization(database)
    now = datetime.now(UTC)
    send(database, org, event("a", now, feature="search"), now=now)
    terminal = Terminal(database, tmp_path)
    yield terminal
    terminal.close()


def test_it_answers_keys_outlives_its_connection_and_leaves_the_terminal_as_it_was(database, terminal):
    terminal.until("features")
    terminal.press("f")
    terminal.until(lambda text: "search" in (screen := text.rpartition("tokens/min")[2]) and "(openai)" not in screen)
    cut = "SELECT pg_terminate_backend(pid) AS cut FROM pg_stat_activity WHERE application_name = 'tokentra top' AND datname = current_database()"
    terminal.until(lambda _: rows(database, cut))
    terminal.until("The database does not answer since")
    org = rows(database, "SELECT id FROM app.organizations")[0]["id"]
    now = datetime.now(UTC)
    send(database, org, event("b", now, feature="came later"), now=now)
    terminal.until("came later")
    terminal.press("q")
    assert terminal.ended() == 0 and "Traceback" not in terminal.seen
    assert "\x1b[?1049l" in terminal.seen.rpartition("came later")[2], "the alternate screen is left"
    assert termios.tcgetattr(terminal.theirs) == terminal.before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_it_cleanly(terminal, number):
    terminal.until("features")
    terminal.process.send_signal(number)
    assert terminal.ended() == 0 and "Traceback" not in terminal.seen
    assert terminal.seen.rstrip().endswith(("\x1b[?25h", "\x1b[?1049l")), "cursor and screen are back"
    assert termios.tcgetattr(terminal.theirs) == terminal.before
