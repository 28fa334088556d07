"""docs/live.md is true: its commands, its request and its SQL run and answer as it says."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.realtime.event_data import event, organization, send
from tests.realtime.test_live_feed import serving
from tests.realtime.test_top import environment
from tests.warehouse_data import one, rows
from tokentra_dagster.realtime import live_routes
from tokentra_dagster.realtime.live import live_usage

PAGE = (Path(__file__).parents[2] / "docs" / "live.md").read_text()
COMMANDS = [line for block in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


@pytest.fixture
def acme(database):
    org, now = organization(database), datetime.now(UTC)
    send(database, org, event("a", now), now=now)
    return org


def test_every_command_of_the_page_runs(database, acme, tmp_path):
    commands = [shlex.split(line) for line in COMMANDS if line.startswith("tokentra")]
    assert len(commands) == 4
    for _, *arguments in commands:
        done = subprocess.run(
            [str(Path(sys.executable).parent / "tokentra"), *arguments],
            env=environment(database, tmp_path),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and "gpt-4o-2024-08-06" in done.stdout, done.stderr


def test_the_request_of_the_page_gets_a_stream(database, acme, monkeypatch):
    # The server notices at the next heartbeat that nobody listens any more.
    monkeypatch.setattr(live_routes, "HEARTBEAT_SECONDS", 0.1)
    (line,) = (line for line in COMMANDS if line.startswith("curl"))
    with serving(database) as port:
        arguments = shlex.split(line.replace("4318", str(port)).replace("$KEY", "acme"))
        with subprocess.Popen([*arguments, "--silent"], stdout=subprocess.PIPE, text=True) as curl:
            said = next(line for line in curl.stdout if line.startswith("data: "))
            curl.terminate()
    assert json.loads(said.removeprefix("data: "))["requestCount"] == 1


def test_the_sql_of_the_page_runs_and_its_table_has_every_column(database, acme):
    (statement,) = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
    assert sum(row["request_count"] for row in rows(database, statement)) == 1
    columns = one(database, "SELECT proargnames[4:] FROM pg_proc WHERE proname = 'get_live_usage'")
    assert set(columns) == set(
        re.findall(r"`([a-z_0-9]+)`", " ".join(re.findall(r"^\| (`[^|]*) \|", PAGE[PAGE.index("## In SQL") :], re.MULTILINE)))
    )


def test_the_fields_that_the_page_names_are_in_a_snapshot(database, acme):
    with database.connect() as db:
        said = json.dumps(live_usage(db, acme).as_json())
    assert [name for name in re.findall(r"`([a-z]+[A-Z][A-Za-z]+)`", PAGE) if f'"{name}"' not in said] == []
