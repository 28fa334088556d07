"""Coding tools' session logs: every request once, token for token, and nothing of what was said (providers.md 6.5)."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from tests.warehouse_data import connection, one, rows
from tokentra_dagster.errors import PermanentError
from tokentra_dagster.ingest.sync import sync_connection
from tokentra_dagster.providers import open_source
from tokentra_dagster.providers.base import ConnectionConfig, Window
from tokentra_dagster.records import RejectedItem, UsageRecord, split
from tokentra_dagster.simulator.session_logs import LoggedRequest, requests, write_claude_code, write_codex

START = datetime(2026, 11, 1, tzinfo=UTC)
END = START + timedelta(days=4)
TOOLS: dict[str, tuple[str, Callable[..., None], tuple[str, ...]]] = {
    "claude_code": ("anthropic", write_claude_code, ("claude-sonnet-4-6", "claude-haiku-4-5-20251001")),
    "codex": ("openai", write_codex, ("gpt-5.4", "gpt-5.4-mini")),
}


def source(tool: str, place: Path, **options: str):
    return open_source(ConnectionConfig(TOOLS[tool][0], "", None, {"folder": str(place)} | options, tool))


def read(tool: str, folder: Path, start: datetime = START, end: datetime = END, granularity: str = "1h", **options: str):
    return split(source(tool, folder, **options).usage(Window(start, end, granularity)))  # type: ignore[arg-type]


def totals(records: list[UsageRecord]) -> dict[tuple, list[int]]:
    found: dict[tuple, list[int]] = defaultdict(lambda: [0] * 5)
    for record in records:
        values = (
            record.request_count, record.input_tokens, record.output_tokens, record.cached_input_tokens or 0,
            record.cache_creation_tokens or 0,
        )  # fmt: skip
        for place, value in enumerate(values):
            found[record.bucket_start, record.model, record.provider_project_id][place] += value or 0
    return dict(found)


def true_totals(tool: str, made: list[LoggedRequest]) -> dict[tuple, list[int]]:
    found: dict[tuple, list[int]] = defaultdict(lambda: [0] * 5)
    for one_ in made:
        written = one_.written_5m + one_.written_1h if tool == "claude_code" else 0
        key = (one_.at.replace(minute=0, second=0, microsecond=0), one_.model, one_.cwd.rsplit("/", 1)[1])
        for place, value in enumerate((1, one_.input_tokens, one_.output_tokens, one_.cached, written)):
            found[key][place] += value
    return dict(found)


@pytest.fixture(params=TOOLS)
def tool(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("seed", range(3))
def test_every_request_counts_once_token_for_token(tool, tmp_path, seed):
    made = requests(seed, START, END, TOOLS[tool][2], 300)
    TOOLS[tool][1](tmp_path, made, seed)
    usage, costs, rejected = read(tool, tmp_path)
    assert totals(usage) == true_totals(tool, made)
    assert costs == rejected == []
    naive = sum(path.read_text().count('"output_tokens": ') for path in tmp_path.rglob("*.jsonl"))
    assert naive > 1.5 * len(made), "the logs repeat less than they should: the rules are not tested"


def test_windows_that_follow_one_another_add_up_to_one(tool, tmp_path):
    made = requests(5, START, END, TOOLS[tool][2], 200)
    # An answer of which the lines lie on both sides of midnight.
    edge = START + timedelta(days=2)
    made.append(LoggedRequest(edge - timedelta(milliseconds=400), made[0].session, made[0].model, made[0].cwd, 900, 90, 0))
    made.sort(key=lambda request: request.at)
    TOOLS[tool][1](tmp_path, made)
    pieces = [
        record for n in range(4) for record in read(tool, tmp_path, START + timedelta(days=n), START + timedelta(days=n + 1))[0]
    ]
    assert totals(pieces) == totals(read(tool, tmp_path)[0]) == true_totals(tool, made)
    assert read(tool, tmp_path, END, END + timedelta(days=31)) == ([], [], [])


def test_a_subscription_is_billed_by_the_month_and_an_api_key_by_the_token(tool, tmp_path):
    TOOLS[tool][1](tmp_path, requests(1, START, END, TOOLS[tool][2], 40))
    for billing, cost in (("subscription", Decimal(0)), ("api", None)):
        usage = read(tool, tmp_path, billing=billing)[0]
        assert {record.reported_cost for record in usage} == {cost}
        assert {record.metadata["billing"] for record in usage} == {billing}


def test_nothing_that_was_said_is_kept_also_not_of_what_is_refused(tool, tmp_path):
    TOOLS[tool][1](tmp_path, requests(1, START, END, TOOLS[tool][2], 40))
    path = next(path for path in tmp_path.rglob("*.jsonl") if "archived_sessions" not in path.parts)
    path.write_text('{"usage": "token_count" SECRET PROMPT broken}\n' + path.read_text())
    usage, _, rejected = read(tool, tmp_path)
    assert usage and [item.reason for item in rejected] == [f"{tool}: the line is no JSON object"]
    assert "SECRET" not in repr(usage) + repr(rejected)
    assert rejected[0].payload["line"] == 1


def test_folders_of_many_people_name_each_by_the_folder(tool, tmp_path):
    for number, person in enumerate(("ann", "bob")):
        TOOLS[tool][1](tmp_path / person, requests(number, START, END, TOOLS[tool][2], 30))
    usage = read(tool, tmp_path, layout="people")[0]
    counts = defaultdict(int)
    for record in usage:
        counts[record.user_id] += record.request_count
    assert counts == {"ann": 30, "bob": 30}
    assert {record.user_id for record in read(tool, tmp_path / "ann", user="Ann")[0]} == {"Ann"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"folder": ""}, "the option folder is missing"),
        ({"folder": "/nowhere/at/all"}, "there is no folder /nowhere/at/all"),
        ({"layout": "people", "user": "ann"}, "leave user out"),
        ({"billing": "monthly"}, "valid values are subscription, api"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(tool, tmp_path, options, says):
    with pytest.raises(PermanentError, match=says):
        source(tool, tmp_path, **options).check()


def claude(at: datetime, message_id: str, request_id: str | None, output: int = 10, **fields) -> str:
    usage = {"input_tokens": 5, "output_tokens": output, **fields.pop("usage", {})}
    message = {"id": message_id, "model": fields.pop("model", "claude-sonnet-4-6"), "usage": usage}
    return json.dumps({"timestamp": at.isoformat(), "requestId": request_id, "message": message, **fields}) + "\n"


def log(folder: Path, *lines: str, name: str = "projects/p/s.jsonl") -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines))


def test_of_one_messages_lines_the_session_counts_before_the_sub_agent_and_then_the_larger(tmp_path):
    log(
        tmp_path,
        claude(START, "m1", "r1", 3),
        claude(START, "m1", "r1", 40),
        claude(START, "m1", "r1", 20),
        claude(START, "m2", "r2", 7),
        claude(START, "m2", "r2", 900, isSidechain=True),
        claude(START, "m2", "r-other", 900, isSidechain=True),
        claude(START, "m3", "r3", 11, isSidechain=True),
        claude(START, "m3", "r4", 11, isSidechain=True),
        claude(START, "m4", None, 1),
        claude(START, "m5", "r5", 10**6, model="<synthetic>"),
        claude(START, "m6", "r6", 10**6, isApiErrorMessage=True),
    )
    usage = read("claude_code", tmp_path)[0]
    assert sum(record.output_tokens for record in usage) == 40 + 7 + 11 + 1
    assert sum(record.request_count or 0 for record in usage) == 4


def test_cache_writes_are_the_objects_and_only_then_the_flat_fields(tmp_path):
    both = {
        "cache_creation_input_tokens": 999,
        "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 4},
    }
    log(tmp_path, claude(START, "m1", "r1", usage=both))
    (record,) = read("claude_code", tmp_path)[0]
    assert (record.input_tokens, record.cache_creation_tokens, record.cached_input_tokens) == (5 + 7, 7, None)
    assert record.token_details == {"cache_write_5m": 3, "cache_write_1h": 4}
    log(tmp_path, claude(START, "m1", "r1", usage={"cache_creation_input_tokens": 9}))
    assert read("claude_code", tmp_path)[0][0].cache_creation_tokens == 9


def test_prompts_of_another_price_tier_are_apart(tmp_path):
    long, short = ({"cache_read_input_tokens": count} for count in (250_000, 100_000))
    log(
        tmp_path,
        claude(START, "m1", "r1", usage=long),
        claude(START, "m2", "r2", usage=short),
        claude(START, "m3", "r3", usage=short),
    )
    found = {record.context_window: record.request_count for record in read("claude_code", tmp_path)[0]}
    assert found == {"200k-1M": 1, "0-200k": 2}


def test_a_line_without_what_is_needed_is_kept_as_rejected(tmp_path):
    log(
        tmp_path,
        claude(START, "m1", "r1", usage={"output_tokens": None}),
        claude(START, "m2", "r2", usage={"input_tokens": -4}),
        claude(START, "m3", "r3", model=None),
        json.dumps({"message": {"model": "x", "usage": {"input_tokens": 1, "output_tokens": 1}}}) + "\n",
    )
    usage, _, rejected = read("claude_code", tmp_path)
    assert usage == []
    assert [(item.payload["line"], item.reason.partition(": ")[2].split(";")[0]) for item in rejected] == [
        (1, "message.usage has no input_tokens or no output_tokens"),
        (2, "input_tokens is -4"),
        (3, "message.model is missing"),
        (4, "timestamp is missing or is no time with its zone"),
    ]
    assert all(isinstance(item, RejectedItem) and START <= item.bucket_start < END for item in rejected)


def codex(at: datetime, *, last: int | None = None, total: int | None = None) -> str:
    info = {
        name: {"input_tokens": count, "cached_input_tokens": 0, "output_tokens": 1, "reasoning_output_tokens": 0}
        for name, count in (("last_token_usage", last), ("total_token_usage", total))
        if count is not None
    }
    return json.dumps({"timestamp": at.isoformat(), "type": "event_msg", "payload": {"type": "token_count", "info": info}}) + "\n"


def context(**payload: str) -> str:
    kind = "session_meta" if "id" in payload else "turn_context"
    return json.dumps({"timestamp": START.isoformat(), "type": kind, "payload": payload}) + "\n"


def test_the_last_requests_count_goes_before_the_growth_of_the_sum_and_a_repeated_sum_is_nothing_new(tmp_path):
    log(
        tmp_path, context(model="gpt-5.4"), codex(START, last=10, total=10), codex(START, last=10, total=10), codex(START, total=25),
        codex(START, last=7), codex(START, total=5), name="sessions/2026/11/01/rollout-a.jsonl",
    )  # fmt: skip
    (record,) = read("codex", tmp_path)[0]
    assert (record.input_tokens, record.request_count) == (10 + 15 + 7 + 5, 4), "a sum that shrank began anew"


def test_a_fork_counts_only_what_its_parent_did_not_and_says_where_the_parent_is_missing(tmp_path):
    parent = [codex(START, last=10, total=10), codex(START, last=20, total=30)]
    later = START + timedelta(days=1)
    replay = [codex(later, last=10, total=10), codex(later, last=20, total=30), codex(later, last=5, total=35)]
    log(tmp_path, context(id="aaa"), context(model="gpt-5.4"), *parent, name="sessions/2026/11/01/rollout-aaa.jsonl")
    fork = (context(id="bbb", forked_from_id="aaa"), context(model="gpt-5.4"), *replay)
    log(tmp_path, *fork, name="sessions/2026/11/02/rollout-bbb.jsonl")
    assert sum(record.input_tokens for record in read("codex", tmp_path)[0]) == 35
    (tmp_path / "sessions/2026/11/01/rollout-aaa.jsonl").unlink()
    opened = source("codex", tmp_path)
    assert sum(item.input_tokens for item in opened.usage(Window(START, END, "1h"))) == 35
    assert opened.remarks() == [
        "codex: One forked session has its parent outside the folder; what they repeat of them is counted here"
    ]


def test_a_sync_loads_them_and_a_longer_log_replaces_what_was_read_before(database, tool, tmp_path):
    made = requests(2, START, END, TOOLS[tool][2], 60)
    row = connection(database, name=tool, provider=TOOLS[tool][0], integration=tool, options={"folder": str(tmp_path)})
    for known in (made[:40], made):
        TOOLS[tool][1](tmp_path, known)
        sync_connection(database, row, Window(START, END, "1h"), now=END)
        found = rows(
            database,
            "SELECT sum(input_tokens)::bigint AS sent, sum(request_count)::int AS requests, sum(estimated_cost) AS cost FROM raw.usage_records",
        )
        assert found == [{"sent": sum(one_.input_tokens for one_ in known), "requests": len(known), "cost": 0}]
    assert one(database, "SELECT count(*) FROM raw.rejected_records") == 0
