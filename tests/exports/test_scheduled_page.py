"""docs/exports-scheduled.md is true: every command that it shows runs, in its order; and mistakes get one sentence."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.exports.scheduled_data import received
from tests.warehouse_data import one
from tokentra_dagster.cli import cli
from tokentra_dagster.exports.scheduled.due import CATCH_UP, RELATIVE_PERIODS

PAGE = (Path(__file__).parents[2] / "docs" / "exports-scheduled.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
Run = Callable[..., str]


@pytest.fixture
def run(warehouse, tmp_path: Path) -> Run:
    """Runs a line of shell on the test's database and returns what it said; fails the test unless it exits with `status`."""
    env = {
        **os.environ, "TOKENTRA_DATABASE_URL": warehouse.url, "TOKENTRA_HOME": str(tmp_path / "home"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip

    def shell(line: str, status: int = 0) -> str:
        done = subprocess.run(["bash", "-euc", line], env=env, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == status and "Traceback" not in done.stderr, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    return shell


def test_every_command_of_the_page_runs(warehouse, run: Run, tmp_path: Path):
    said = {line: run(line) for line in COMMANDS}
    listed = said["tokentra exports list"]
    assert (
        all(f"acme/{name}" in listed for name in ("monthly", "daily", "letter", "hook")) and "0 6 1 * * Europe/Berlin" in listed
    )
    shown = said["tokentra exports show acme/monthly"]
    assert shown.count("Due ") == 5 and "Delivered when the period is final; missed due times: all" in shown
    first, second = (said[line] for line in COMMANDS if line.startswith("tokentra exports run"))
    assert (
        "Delivered acme/monthly" in first
        and re.search(r"Message id (\S+),", first)[1] == re.search(r"Message id (\S+),", second)[1]
    )
    assert len(received(tmp_path / "home" / "exports")) == 1, "the default folder; a repeat replaces it"
    assert (
        "Written anew by hand." in said["tokentra exports history acme/monthly"]
        and "acme/monthly" in said["tokentra exports history"]
    )
    assert "acme/daily is active, due next" in said["tokentra exports resume acme/daily"]
    assert one(warehouse, "SELECT count(*) FROM app.scheduled_exports") == 3


def test_the_page_names_every_command_period_and_policy():
    names = [f"tokentra exports {name}" for name in cli.commands["exports"].commands]
    assert [name for name in names if not any(line.startswith(name) for line in COMMANDS)] == []
    assert [word for word in (*RELATIVE_PERIODS, *CATCH_UP) if word not in PAGE] == []


ADD = "tokentra exports add x --org acme --period last_day --schedule '0 6 * * *' "


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f"{ADD} --schedule '* * * * *'", "more than once an hour"),
        (f"{ADD} --time-zone Mars", "Europe/Berlin"),
        (f"{ADD} --metrics nonsense", "total_tokens"),
        (f"{ADD} --deliver s3 --set bucket=b --set secret_access_key=s3cret", "env:NAME or file:PATH"),
        (f"{ADD} --deliver webhook --set webhook_url=https://example.com/h --set secret=env:S", "give the bucket for the files"),
        ("tokentra exports show nothing", "There is none: run `tokentra exports add`"),
        ("tokentra exports run nothing", "No scheduled export is named 'nothing'"),
    ],
)
def test_a_mistake_gets_one_sentence(warehouse, run: Run, line: str, words: str):
    said = run(line, status=2)
    assert words in said and "s3cret" not in said and said.count("\n") == 1


def test_by_hand_it_says_why_it_is_not_delivered_and_where_a_secret_is_not_shown(warehouse, run: Run, tmp_path: Path):
    run(f"{ADD} --wait-until-final")
    assert "Waits until" in run("tokentra exports run x", status=1)
    due = run("tokentra exports run x --due 2026-06-02T07:00Z", status=2)
    assert "is not due at 2026-06-02T07:00Z; the next one after it is 2026-06-03T06:00Z" in due
    assert "which has not come yet" in run("tokentra exports run x --due 2099-06-02T06:00Z", status=2)
    run(
        "tokentra exports add hook --org acme --schedule '0 9 * * *' --period last_day --deliver webhook --set secret=env:S "
        "--set webhook_url=https://example.com/hooks/s3cret --set store.bucket=usage --set store.region=eu-central-1"
    )
    shown = run("tokentra exports show hook") + run("tokentra exports show hook --json") + run("tokentra exports list --json")
    assert "webhook_url=https://example.com/..." in shown and "store.bucket=usage" in shown and "s3cret" not in shown


def test_everything_is_there_as_json(warehouse, run: Run):
    run(ADD)
    done = json.loads(run("tokentra exports run x --due 2026-06-02T06:00Z --json"))
    assert (done["outcome"], done["status"], done["period_start"][:10]) == ("delivered", "delivered", "2026-06-01")
    (told,) = [one for one in json.loads(run("tokentra exports history x --json")) if one["message_id"] == done["message_id"]]
    assert [event["event"] for event in told["events"]] == ["started", "written", "delivered"]
    shown = json.loads(run("tokentra exports show x --json"))
    assert (
        shown["next_due"][0]["due_at"] == shown["next_run_at"]
        and json.loads(run("tokentra exports list --json"))[0]["name"] == "x"
    )


def test_listing_imports_neither_dagster_nor_pandas(run: Run):
    code = "import sys, tokentra_dagster.cli as c\ntry: c.cli(['exports', 'list'])\nexcept SystemExit: print(sorted({'dagster', 'pandas'} & set(sys.modules)))"
    assert run(f'{sys.executable} -c "{code}"').splitlines()[-1] == "[]"
