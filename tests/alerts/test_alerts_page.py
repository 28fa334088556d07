"""docs/alerts.md is true: its commands run in their order, and its kinds are those of the code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from click.testing import CliRunner

from tests.warehouse_data import rows
from tokentra_dagster.alerts.alert import KINDS
from tokentra_dagster.cli import cli

PAGE = (Path(__file__).parents[2] / "docs" / "alerts.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.splitlines()]


def test_every_command_of_the_page_runs_in_its_order(database, acme, tmp_path):
    env = {
        "TOKENTRA_DATABASE_URL": database.url, "TOKENTRA_HOME": str(tmp_path), "COLUMNS": "200",
        "SLACK_URL": "https://chat.example/x", "HOOK_URL": "https://hook.example/x", "HOOK_SECRET": "whsec_" + "A" * 32,
    }  # fmt: skip
    said = {}
    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        assert program == "tokentra"
        done = CliRunner().invoke(cli, arguments, env=env, catch_exceptions=False)
        assert done.exit_code == 0, (command, done.output)
        said[command] = done.output
    assert "operators/on-call" in said["tokentra alerts channels list"]
    assert [tuple(row.values()) for row in rows(database, "SELECT name, kind, least_severity FROM app.alert_channels ORDER BY name")] == [
        ("chat", "slack", "warning"), ("on-call", "slack", "warning"), ("pager", "webhook", "critical"),
    ]  # fmt: skip
    assert rows(database, "SELECT 1 FROM app.alert_snoozes WHERE snoozed_until > now()") == []


def test_the_page_names_every_kind_and_only_those():
    table = PAGE.split("| kind |")[1].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in table.splitlines()[2:]))) == set(KINDS)
