"""docs/quotas.md is true: what it shows runs, in its order, and does what it says."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner

from tests.warehouse_data import connection, one, rows
from tokentra_dagster.cli import cli
from tokentra_dagster.errors import UsageError
from tokentra_dagster.quotas import Request, reserve
from tokentra_dagster.quotas.management import add_quota
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import ensure_entities

PAGE = (Path(__file__).parents[2] / "docs" / "quotas.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line for block in re.findall(r"```\n(tokentra .*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
SQL = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)


def test_the_statements_run_in_order_and_settle_what_was_reserved(database):
    connection(database, org="acme")
    answers = []
    reservation = "NULL"
    with database.connect(autocommit=True) as db:
        for statement in SQL:
            done = db.execute(statement.replace(":'reservation_id'", reservation))
            found = done.fetchall() if done.description else []
            answers.append(found)
            if found and "reservation_id" in found[0]:
                reservation = f"'{found[0]['reservation_id']}'"
    _, checked, reserved, settled, released, rebuilt = answers
    assert checked[0]["allowed"] and len(checked[0]["applicable_quotas"]) == 1
    assert reserved[0]["allowed"] and reserved[0]["expires_at"]
    assert settled == [{"state": "settled", "changed": True, "was_expired": False}]
    assert released == [{"state": "settled", "changed": False}]
    assert {row["measure"]: (row["counted"], row["difference"]) for row in rebuilt} == {
        "tokens": (2627, 0), "requests": (1, 0), "input_tokens": (1987, 0), "output_tokens": (640, 0),
    }  # fmt: skip


def test_the_python_example_settles_what_was_used_and_answers_a_refusal(database):
    org = connection(database, org="acme").org_id
    with database.connect(autocommit=True) as db:
        db.execute(SQL[0])
        names: dict = {}
        exec(PYTHON[0], names)
        reply = SimpleNamespace(input_tokens=10, output_tokens=5)
        assert names["answer"](db, org, 20, lambda: reply) is reply
        assert rows(database, "SELECT used_tokens, reserved_tokens FROM quota_counters") == [
            {"used_tokens": 15, "reserved_tokens": 0}
        ]
        refused = names["answer"](db, org, 100_000, lambda: 1 / 0)
    assert refused.startswith("The request is blocked: quota ann a day allows 100000 tokens until ")
    assert one(database, "SELECT count(*) FROM quota_events") == 1


def test_the_signatures_are_those_of_the_database(database):
    found = rows(
        database,
        "SELECT proname::text AS name, pg_get_function_identity_arguments(oid) AS arguments FROM pg_proc "
        "WHERE pronamespace = 'app'::regnamespace AND (prosecdef OR proname = 'rebuild_quota_counters') AND proname <> 'reader_org_ids'",
    )
    documented = dict(re.findall(r"^`(\w+)\((p_.*)\)`$", PAGE, re.MULTILINE))
    assert documented == {row["name"]: row["arguments"].split(", quota_id uuid")[0] for row in found}


@pytest.fixture
def tokentra(database, tmp_path):
    """Runs `tokentra` on the test's database and returns what it said; fails the test unless it exits with `status`."""

    def run(*arguments: str, status: int = 0) -> str:
        env = {**os.environ, "TOKENTRA_DATABASE_URL": database.url, "TOKENTRA_HOME": str(tmp_path / "home")}
        command = [str(Path(sys.executable).parent / "tokentra"), *arguments]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == status and "Traceback" not in done.stderr, f"{arguments}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    return run


def test_every_command_of_the_page_runs(database, tokentra):
    org = connection(database, org="acme").org_id
    with database.connect() as db:
        ensure_entities(db, org, "team", ["search"])
    said = {}
    for line in COMMANDS:
        program, *arguments = shlex.split(line)
        assert program == "tokentra"
        if "grant-reader" in line:
            # Logins belong to the whole server, which other tests share.
            arguments[arguments.index("gateway")] = login = f"gateway_{database.parts['dbname']}"
        said[line] = tokentra(*arguments)
        if line.startswith("tokentra quota resume"):
            with database.connect(autocommit=True) as db:
                reserve(db, Request(org, tokens=70_000, user_identifier="ann"))
    texts = list(said.values())
    assert (
        "Added acme/budget: 250,000,000 tokens, 1,000,000 requests monthly from day 1 00:00 UTC, block; whole organisation"
        in texts[0]
    )
    assert "1,500,000 output tokens weekly from Monday 06:00 UTC" in texts[2]
    assert "acme/ann a day" in texts[3] and "100,000 tokens daily" in texts[3]
    assert "token_limit none -> 20,000,000, output_token_limit 1,500,000 -> none, enforcement_mode alert -> throttle" in texts[5]
    assert "acme/search is paused" in texts[6] and "acme/search is active" in texts[7]
    allowed, warning, applicable = texts[8].splitlines()
    assert (allowed, warning) == ("Allowed.", "Warning: quota ann a day would be at 73.0 % of its tokens.")
    assert set(applicable.removeprefix("Quotas that apply: ").split(", ")) == {"budget", "ann a day"}
    assert "resumed" in texts[9] and "acme/search is deleted" in texts[10]
    try:
        password = texts[11].rsplit(" ", 1)[1].strip()
        parts = urlsplit(database.url)
        gateway = Database(f"postgresql://{login}:{password}@{parts.hostname}:{parts.port}{parts.path}")
        with gateway.connect(autocommit=True) as db:
            assert reserve(db, Request(org, tokens=1)).id
        tokentra("db", "grant-reader", login, "--org", "acme")
        with gateway.connect(autocommit=True) as db, pytest.raises(UsageError, match="may not reserve"):
            reserve(db, Request(org, tokens=1))
    finally:
        tokentra("db", "revoke-reader", login)
    assert [
        name for name in cli.commands["quota"].commands if not any(f"tokentra quota {name} " in line for line in COMMANDS)
    ] == []


def test_a_script_learns_from_the_exit_status_and_everything_is_there_as_json(database, tokentra):
    connection(database, org="acme")
    made = json.loads(tokentra("quota", "add", "slow", "--org", "acme", "--requests", "2", "--mode", "throttle", "--json"))
    tokentra("quota", "add", "hard", "--org", "acme", "--tokens", "100", "--mode", "block", "--period", "hourly")
    check = ("quota", "check", "--org", "acme", "--json")
    assert json.loads(tokentra(*check, "--tokens", "100"))["allowed"]
    throttled = json.loads(tokentra(*check, "--tokens", "100", "--requests", "3", status=3))
    assert (throttled["decision"], throttled["violations"][0]["quota_id"]) == ("throttled", made["id"])
    assert (
        "quota hard allows 100 tokens" in json.loads(tokentra(*check, "--tokens", "101", "--requests", "3", status=4))["reason"]
    )
    assert "It never fits." in tokentra("quota", "check", "--org", "acme", "--tokens", "1", "--requests", "3", status=3)
    (hard, slow) = json.loads(tokentra("quota", "list", "--json"))
    assert (hard["token_limit"], slow["standing"]["measures"]["requests"]["limit"]) == (100, 2)
    assert json.loads(tokentra("quota", "show", "acme/hard", "--json"))["standing"]["measures"]["tokens"]["counted"] == 0
    changed = json.loads(tokentra("quota", "set", "hard", "--tokens", "1k", "--json"))
    assert (changed["before"]["token_limit"], changed["after"]["token_limit"]) == (100, 1000)
    assert "is so already" in tokentra("quota", "set", "hard", "--tokens", "1000")
    assert [version["changes"] for version in json.loads(tokentra("quota", "history", "hard", "--json"))["versions"]] == [
        [], ["token_limit 100 -> 1,000"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("add", "x", "--org", "acme"), "The quota has no limit"),
        (("add", "x", "--org", "acme", "--tokens", "0"), "The limit of tokens is 0"),
        (("add", "x", "--org", "acme", "--tokens", "many"), "'many' is not a whole number up to 10^15 such as 250000, 250k, 1.5M or 2B"),
        (("add", "x", "--org", "acme", "--tokens", "1.5"), "'1.5' is not a whole number"),
        (("add", "x", "--org", "acme", "--tokens", "none"), "'none' is not a whole number"),
        (("add", "x", "--org", "acme", "--tokens=-1.5M"), "The limit of tokens is -1500000"),
        (("check", "--org", "acme", "--tokens", "1000001B"), "'1000001B' is not a whole number up to 10^15"),
        (("add", "x", "--org", "acme", "--tokens", "1", "--team", "a", "--user", "b"), "leave out all but one of --team, --user."),
        (("add", "x", "--org", "acme", "--tokens", "1", "--team", "a"), "acme has no team named 'a'. There are: none."),
        (("add", "x", "--org", "acme", "--tokens", "1", "--period", "weekly", "--reset-day", "someday"), "a name such as monday"),
        (("set", "nothing", "--tokens", "1"), "No quota is named 'nothing'. There are: acme/budget."),
        (("set", "budget"), "say what, e.g. a limit"),
        (("set", "budget", "--tokens", "none"), "The quota has no limit"),
        (("check", "--org", "acme"), "give the total, or input and output tokens"),
        (("check", "--org", "acme", "--tokens", "1", "--project", "p"), "acme has no project named 'p'"),
        (("history", "gone"), "There are: acme/budget"),
    ],
)  # fmt: skip
def test_a_mistake_gets_one_sentence(database, arguments, words):
    """In this process: what `tokentra` would print."""
    connection(database, org="acme")
    with database.connect() as db:
        add_quota(db, org="acme", name="budget", token_limit=5)
    done = CliRunner().invoke(cli, ["quota", *arguments], env={"TOKENTRA_DATABASE_URL": database.url})
    said = done.output + str(done.exception)
    assert words in said and (isinstance(done.exception, UsageError) or done.exit_code == 2), said
