"""docs/alerts.md is true: every command that it shows runs, in its order, and does what the page says."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.alerts.alert_data import SlackLike, webhook
from tests.alerts.test_alert_evaluation import fails
from tests.quota_data import quota
from tests.warehouse_data import connection, one, rows
from tokentra_dagster.alerts.alert import KINDS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "alerts.md").read_text()
COMMANDS = [line for block in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


@pytest.fixture
def tokentra(database, tmp_path):
    """Runs `tokentra` on the test's database and returns what it said; fails the test unless it exits with `status`."""

    def run(*arguments: str, status: int = 0) -> str:
        env = {
            **os.environ, "TOKENTRA_DATABASE_URL": database.url, "TOKENTRA_HOME": str(tmp_path / "home"),
            "TOKENTRA_DELIVERY_PRIVATE_TARGETS": "yes",
        }  # fmt: skip
        command = [str(Path(sys.executable).parent / "tokentra"), *arguments]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == status and "Traceback" not in done.stderr, f"{arguments}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    return run


def test_every_command_of_the_page_runs(database, tokentra, receiver, authority):
    """The hook leads to a receiver here, and its certificate is this test's own; `ALERT` is the id of the alert that was raised."""
    org = connection(database).org_id
    quota(database, org, "budget")
    chat = None
    said = {}
    for line in COMMANDS:
        program, *arguments = shlex.split(line.replace("https://example.com/hook", receiver.url()))
        assert program == "tokentra"
        if "--kind webhook" in line or "--kind slack" in line:
            arguments += ["--set", f"ca_file={authority.file}"]
        if line == "tokentra alerts evaluate --dry-run":
            assert receiver.accepted[-1]["type"] == "alert.test"
            chat = SlackLike(receiver)
            fails(database, connection(database))
        if "ALERT" in arguments:
            arguments[arguments.index("ALERT")] = str(one(database, "SELECT id FROM app.alerts"))[:8]
        said[line] = tokentra(*arguments)
    assert chat is not None and [post["text"] for post in chat.posts] == [
        "[critical] acme: Usage of acme/openai is not being synced"
    ], "the operators' post; the hook answers Slack's way, finance's mail server is not there"
    assert "sent to https://localhost" in said["tokentra alerts channels test acme/pager"]
    assert "Would be raised" in said["tokentra alerts evaluate --dry-run"] and "operators/operations: 1 alert sent" in said["tokentra alerts evaluate"]  # fmt: skip
    assert "failed_sync" not in said["tokentra alerts list"] and "acme" in said["tokentra alerts list"]
    assert "operations: sent" in said["tokentra alerts history --org acme"]
    assert "Acknowledged: Usage of acme/openai" in said['tokentra alerts ack ALERT --note "raised the budget"']
    assert "No longer quiet: anomaly of acme" in said["tokentra alerts unsnooze --kind anomaly --org acme"]
    assert rows(database, "SELECT kind, subject IS NULL AS all FROM app.alert_snoozes ORDER BY kind NULLS LAST") == [
        {"kind": "failed_sync", "all": False}, {"kind": None, "all": False},
    ]  # fmt: skip


def test_the_page_names_every_kind_and_command():
    assert [kind for kind in KINDS if f"`{kind}`" not in PAGE] == []
    from tokentra_dagster.cli import cli

    alerts = cli.commands["alerts"]
    names = {f"alerts {name}" for name in alerts.commands if name != "channels"}
    names |= {f"alerts channels {name}" for name in alerts.commands["channels"].commands}
    assert [name for name in sorted(names) if not any(line.startswith(f"tokentra {name}") for line in COMMANDS)] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("alerts", "show", "12"), "first four characters"),
        (("alerts", "ack", "abcdef"), "No alert has the id abcdef"),
        (("alerts", "snooze", "--kind", "anomaly", "--org", "acme"), "Say how long"),
        (("alerts", "snooze", "--kind", "anomaly", "--org", "acme", "--for", "soon"), "30m, 4h, 2d or 1w"),
        (("alerts", "snooze", "--kind", "anomaly", "--org", "acme", "--until", "2020-01-01"), "is over"),
        (("alerts", "snooze", "--kind", "mood", "--org", "acme", "--for", "1h"), "quota_warning"),
        (("alerts", "snooze", "--quota", "none", "--org", "acme", "--for", "1h"), "acme has no quota named 'none'. There are: budget."),
        (("alerts", "snooze", "--for", "1h"), "Say what"),
        (("alerts", "channels", "add", "x", "--kind", "slack"), "--org NAME or --operators"),
        (("alerts", "channels", "add", "x", "--org", "acme", "--kind", "slack", "--set", "webhook_url=https://hooks.slack.com/s3cret"), "env:NAME or file:PATH"),
        (("alerts", "channels", "test", "nothing"), "There is none: run `tokentra alerts channels add`"),
    ],
)  # fmt: skip
def test_a_mistake_gets_one_sentence(database, tokentra, arguments, words):
    quota(database, connection(database).org_id, "budget")
    said = tokentra(*arguments, status=2)
    assert words in said and "s3cret" not in said


def test_everything_is_there_as_json(database, tokentra, acme, receiver, authority):
    webhook(database, receiver, authority)
    fails(database, connection(database))
    found = json.loads(tokentra("alerts", "evaluate", "--json"))
    assert found["raised"][0]["kind"] == "failed_sync" and found["sent"][0]["status"] == "sent"
    assert json.loads(tokentra("alerts", "list", "--json"))["alerts"][0]["id"] == found["raised"][0]["id"]
    assert json.loads(tokentra("alerts", "history", "--json"))[0]["deliveries"][0]["status"] == "sent"
    assert json.loads(tokentra("alerts", "show", found["raised"][0]["id"][:8], "--json"))["deliveries"][0]["channel"] == "hook"
    assert json.loads(tokentra("alerts", "channels", "list", "--json"))[0]["sent"] == 1
