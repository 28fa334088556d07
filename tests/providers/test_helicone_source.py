"""Helicone's exported requests: what a row counts for, and the tool's three formats (providers.md 6.4)."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from tests.providers.helicone_files import PROMPT, Asked, array, lines, table
from tokentra_dagster.errors import PermanentError
from tokentra_dagster.providers import open_source
from tokentra_dagster.providers.base import ConnectionConfig, Source, Window
from tokentra_dagster.records import split

DAY = datetime(2026, 11, 20, tzinfo=UTC)
WINDOW = Window(DAY, DAY + timedelta(days=1), "1h")
ONE = Asked("r1", DAY)


def source(folder, provider: str = "openai", **options: str) -> Source:
    return open_source(ConnectionConfig(provider, "", None, {"location": str(folder)} | options, "helicone"))


@pytest.fixture
def read(tmp_path):
    """Reads what is given: requests as one file of lines, or files by name."""

    def read_it(given, provider="openai", **options):
        files = given if isinstance(given, dict) else {"export.jsonl": lines(given)}
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        usage, _, rejected = split(source(tmp_path, provider, **options).usage(WINDOW))
        return usage, rejected

    return read_it


def test_input_is_what_was_not_cached_plus_reads_and_writes_and_output_holds_the_reasoning(read):
    one = replace(ONE, sent=250_000, read=1000, written=500, received=90, reasoning=60)
    ((record,), rejected) = read([one])
    assert rejected == []
    assert (record.input_tokens, record.cached_input_tokens, record.cache_creation_tokens) == (250_000, 1000, 500)
    assert (record.output_tokens, record.context_window, record.request_type) == (90, "200k-272k", "chat")
    assert (record.total_latency_ms, record.metadata) == (800, {"time_to_first_token_ms": {"requests": 1, "total": 120}})
    assert read([one], input_includes_cache="yes")[0][0].input_tokens == 248_500


def test_what_helicone_answered_itself_asked_no_provider_and_what_failed_has_its_status(read):
    made = [
        replace(ONE, is_cached=True),
        replace(ONE, id="r2", status=429, sent=0, received=0),
        replace(ONE, id="r3", status=-3),
        replace(ONE, id="r4"),
    ]
    usage, _ = read(made)
    found = {
        (record.metadata.get("cache_hit"), next(iter(record.metadata.get("error_codes", {})), None)): record for record in usage
    }
    hit, good = found[True, None], found[None, None]
    assert (hit.request_count, hit.input_tokens, hit.output_tokens, hit.total_latency_ms) == (1, 0, 0, None)
    assert (good.request_count, good.error_count, good.total_latency_ms) == (1, 0, 800)
    (failed,) = [record for record in usage if record.error_count]
    assert (failed.request_count, failed.metadata["error_codes"], failed.total_latency_ms) == (2, {"-3": 1, "429": 1}, None)


def test_a_success_without_any_tokens_is_one_whose_tokens_are_unknown(read):
    ((record,), _) = read([replace(ONE, sent=0, received=0, milliseconds=0)])
    assert record.metadata["tokens_unknown"] == ["input_tokens", "output_tokens"]
    assert (record.request_count, record.context_window, record.total_latency_ms) == (1, None, None)


def test_users_and_properties_say_whose_it_was(read):
    one = replace(ONE, user="ann", properties=(("Team", "core"), ("feature", "search"), ("Customer", "acme"), ("Squad", "s1")))
    ((record,), _) = read([one])
    assert (record.user_id, record.team, record.feature, record.project) == ("ann", "core", "search", None)
    ((record,), _) = read([one], attribution="team=squad,user=customer")
    assert (record.user_id, record.team) == ("acme", "s1")
    with pytest.raises(PermanentError, match="option attribution has the value 'squad'; write KIND=KEY"):
        read([one], attribution="squad")


def test_requests_to_other_providers_are_left_out_and_named(read, tmp_path):
    made = [ONE, replace(ONE, id="r2", provider="ANTHROPIC"), replace(ONE, id="r3", provider="azure", sent=7)]
    (tmp_path / "export.jsonl").write_text(lines(made))
    opened = source(tmp_path)
    assert sum(record.request_count for record in opened.usage(WINDOW)) == 1
    assert opened.remarks() == [
        "helicone: requests of 2 others were left out (ANTHROPIC, azure); the options helicone_providers and models say which are read"
    ]
    assert read(made, "azure")[0][0].input_tokens == 7
    assert read(made, "google", helicone_providers="Anthropic,AZURE")[0][0].request_count == 2


def test_a_request_in_several_files_counts_once_as_the_newest_has_it(read, tmp_path):
    files = {"a.jsonl": lines([ONE, ONE]), "b.json": array([replace(ONE, received=77), replace(ONE, id="r2", received=1)])}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    os.utime(tmp_path / "a.jsonl", (2e9, 2e9))
    ((record,), _) = read({})
    assert (record.request_count, record.output_tokens) == (2, 11)
    os.utime(tmp_path / "b.json", (2.1e9, 2.1e9))
    assert read({})[0][0].output_tokens == 78
    # What was written before the window cannot speak of it.
    for name in files:
        os.utime(tmp_path / name, (1e9, 1e9))
    assert read({}) == ([], [])


def test_its_cost_is_read_where_a_person_says_in_which_unit_it_is(read):
    assert read([ONE])[0][0].reported_cost is None
    made = [ONE, replace(ONE, id="r2")]
    assert read(made, cost="dollars")[0][0].reported_cost == Decimal("0.0250")
    row = ONE.row() | {"cost": 12_500_000}
    assert read({"export.jsonl": json.dumps(row)}, cost="billionths")[0][0].reported_cost == Decimal("0.0125")
    with pytest.raises(PermanentError, match="valid values are price_list, dollars, billionths"):
        read(made, cost="cents")


def test_the_tools_table_is_read_as_far_as_it_tells_and_columns_of_hql_too(read):
    one = replace(ONE, user="ann", properties=(("team", "core"),), sent=60)
    usage, (bad,) = read({"a.csv": table([one])}, models="gpt-*")
    assert usage == [] and bad.reason == "helicone: the request names no model; export as jsonl"
    ((record,), rejected) = read({"a.csv": table([one], model="gpt-4o")})
    assert rejected == [] and (record.user_id, record.team, record.input_tokens, record.output_tokens) == ("ann", "core", 60, 10)
    hql = {"request_created_at": "2026-11-20T00:00:00Z", "request_model": "gpt-4o", "status": 200, "user_id": "bob", "prompt_tokens": 5,
           "completion_tokens": 6, "provider_total_cost": 7, "properties": {"team": "core"}}  # fmt: skip
    usage, rejected = read({"a.csv": "request_id\n", "b.jsonl": json.dumps(hql) + "\n" + json.dumps(hql)})
    assert rejected == [] and [(one.user_id, one.input_tokens, one.request_count) for one in usage] == [("bob", 10, 2)]
    usage, (first, _) = read({}, "azure")
    assert usage == [] and "the row names no provider; export as jsonl, or say with the option models" in first.reason


def test_a_row_that_cannot_be_is_rejected_and_nothing_of_a_prompt_is_kept(read):
    bad = [
        {"request_created_at": None}, {"prompt_tokens": -1}, {"prompt_tokens": 1.5}, {"request_properties": "[", "properties": None},
        {"provider": 7}, {"response_status": "ok"},
    ]  # fmt: skip
    rows = [ONE.row() | change | {"request_id": f"b{n}"} for n, change in enumerate(bad)]
    text = "\n".join(['{"cut', *map(json.dumps, rows), lines([ONE])])
    usage, rejected = read({"export.jsonl": text})
    assert sum(record.request_count for record in usage) == 1
    assert [item.payload["row"] for item in rejected] == [1, 2, 3, 4, 5, 6, 7]
    assert all(item.bucket_start == DAY for item in rejected) and PROMPT not in repr(rejected)


def test_an_array_is_read_object_by_object_however_long_they_are(read):
    made = [replace(ONE, id=f"r{n}") for n in range(300)]
    rows = [one.row() | {"request_body": "x" * (n % 7 * 40_000)} for n, one in enumerate(made)]
    usage, rejected = read({"a.json": json.dumps(rows, indent=1)})
    assert rejected == [] and usage[0].request_count == 300
    usage, (bad,) = read({"a.json": json.dumps([7, ONE.row()])})
    assert usage[0].request_count == 1 and bad.payload["row"] == 1
    for text in ("[{}, {", '{"data": []}', ""):
        with pytest.raises(PermanentError, match=r"a\.json cannot be read"):
            read({"a.json": text})


def test_a_place_without_files_is_no_place_without_usage(tmp_path):
    (tmp_path / ".helicone-export-state.json").write_text("{}")
    with pytest.raises(PermanentError, match=r"holds no \.jsonl, \.json, \.csv or \.parquet file; correct the option location"):
        source(tmp_path).check()
    (tmp_path / "a.jsonl").write_text("")
    assert source(tmp_path).check() == f"helicone: 1 exported files in {tmp_path}"
