"""The README is true: every command that it shows is run here, in its order, on an empty database."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tokentra_dagster.simulator.server import RunningSimulator

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = [line.strip() for line in re.findall(r"^    (\S.*)$", README, re.MULTILINE)]
USAGE = "timestamp,model,prompt_tokens,completion_tokens\n2026-06-01T10:00:00Z,gpt-4o-2024-08-06,100,10\n"


@pytest.fixture
def simulator() -> Iterator[RunningSimulator]:
    with RunningSimulator(now=datetime(2026, 7, 1, tzinfo=UTC)) as running:
        yield running


def test_the_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = {line.split()[1] for line in COMMANDS if line.startswith("make ")}
    assert {"demo", "test", "up"} <= shown <= targets


def test_every_command_runs(database, simulator, tmp_path: Path):
    """The key is the simulator's and its address is added to `connection add`: nothing else differs from the page."""
    (tmp_path / "usage.csv").write_text(USAGE)
    env = {**os.environ, "TOKENTRA_DATABASE_URL": database.url, "TOKENTRA_HOME": str(tmp_path / "home")}
    said = {}
    for line in COMMANDS:
        program, *arguments = shlex.split(line, comments=True)
        if program == "export":
            env[arguments[0].partition("=")[0]] = "sk-admin-acme"
        elif program != "make":
            assert program == ".venv/bin/tokentra", f"{line!r} is not a command of ours; teach this test to run it"
            if arguments[:2] == ["connection", "add"]:
                arguments += ["--base-url", simulator.openai_url]
            command = [str(Path(sys.executable).parent / "tokentra"), *arguments]
            done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, f"{line}\n{done.stdout[-1000:]}{done.stderr[-2000:]}"
            said[arguments[0]] = done.stdout
    assert "gpt-4o-2024-08-06" in said["summary"]
    assert "records" in said["sync"]
    assert "acme/budget" in said["quota"] and "acme/monthly" in said["exports"]


def test_pictures_and_pages_that_it_links_are_there():
    linked = re.findall(r"\]\(((?!http)[^)#]+)", README)
    assert linked and [name for name in linked if not (ROOT / name).exists()] == []
