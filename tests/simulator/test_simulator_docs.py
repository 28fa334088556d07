"""The examples in docs/simulator.md and in the server's docstring, run as they are written, only at another port."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
from click.testing import CliRunner

from tests.simulator.conftest import Reply, ask
from tests.warehouse_data import one
from tokentra_dagster.cli import cli
from tokentra_dagster.simulator import server
from tokentra_dagster.simulator.faults import KINDS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "simulator.md").read_text()
USUAL = "http://127.0.0.1:8321"


def _commands(text: str) -> Iterator[list[str]]:
    """Shell commands as words; a line that ends in a backslash or an open quote goes on."""
    waiting = ""
    for line in text.splitlines():
        waiting += line.strip().removesuffix("\\") + " "
        try:
            words = shlex.split(waiting, comments=True)
        except ValueError:
            continue
        if line.endswith("\\"):
            continue
        waiting = ""
        if words:
            yield words


def _curl(words: list[str], url: str) -> Reply:
    """What `curl` would do with these arguments."""
    headers, method, body, address = {}, None, None, ""
    rest = iter(words[1:])
    for word in rest:
        if word == "-H":
            name, _, value = next(rest).partition(": ")
            headers[name] = value
        elif word == "-X":
            method = next(rest)
        elif word == "-d":
            body = next(rest)
        else:
            assert word.startswith(USUAL), word
            address = word
    parts = urlsplit(url + address.removeprefix(USUAL))
    query = dict(parse_qsl(parts.query))
    return ask(f"{parts.scheme}://{parts.netloc}{parts.path}", headers, body, method, raw=True, **query)


def test_the_examples_of_the_servers_docstring_work(simulator):
    examples = [words for words in _commands(server.__doc__ or "") if words[0] == "curl"]
    assert len(examples) == 8
    for words in examples:
        reply = _curl(words, simulator.url)
        assert reply.status == 200, (words, reply.text)
    assert simulator.simulation.faults.described() == [] and simulator.simulation.adjustments == ()


def test_the_page_lists_every_kind_of_fault():
    listed = {kind for row in re.findall(r"^\| (`[^|]*) \|", PAGE, re.MULTILINE) for kind in re.findall(r"`(\w+)`", row)}
    assert listed == set(KINDS)


def test_every_command_of_the_page_works_in_its_order(database, tmp_path: Path, start_command, free_port, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (first, *others) = [words for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for words in _commands(block)]
    assert first[:2] == ["tokentra", "simulate"] and len(others) == 19
    url = f"http://127.0.0.1:{free_port}"
    env = {"TOKENTRA_DATABASE_URL": database.url, "TOKENTRA_HOME": str(tmp_path / "home"), "COLUMNS": "200"}
    seen = []
    with start_command(*first[2:], "--port", str(free_port)):
        for words in others:
            if words[0] == "export":
                env |= dict(word.split("=", 1) for word in words[1:])
            elif words[0] == "curl":
                reply = _curl(words, url)
                assert reply.status == 200 and reply.json, (words, reply.text)
                seen.append(reply.json)
            else:
                done = CliRunner().invoke(cli, [word.replace(USUAL, url) for word in words[1:]], env=env, catch_exceptions=False)
                assert done.exit_code == 0, (words, done.output)
    assert one(database, "SELECT sum(input_tokens) FROM raw.usage_records") > 10**6
    completions, analytics, _, _, state, restated, withdrawn, changes, clock, real = seen
    assert completions["data"][0]["results"] and analytics["data"][0]["group"]["model"]
    assert [(fault["kind"], fault["times"], fault["skip"]) for fault in state["faults"]] == [
        ("rate_limit", 2, 0),
        ("dropped", 1, 1),
    ]
    assert [len(answer["adjustments"]) for answer in (restated, withdrawn, changes)] == [1, 2, 0] and changes["faults"] == []
    assert clock["now"] == "2026-07-01T12:00:00+00:00" and real["clock"] == "real"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--now", "yesterday"],
            "tokentra: --now is 'yesterday'; write a date like 2026-06-01 or a time like 2026-06-01T12:00Z.",
        ),
        (
            ["--now", "2026-13-01"],
            "tokentra: --now is '2026-13-01'; write a date like 2026-06-01 or a time like 2026-06-01T12:00Z.",
        ),
    ],
)
def test_a_time_that_is_none_is_said_in_one_sentence(run_command, free_port, arguments: list[str], said: str):
    done = run_command("--port", str(free_port), *arguments)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (2, "", said)
