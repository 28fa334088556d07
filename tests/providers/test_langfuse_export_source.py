"""Langfuse's scheduled exports: which files are complete, what is in two of them, and every format (providers.md 6.3)."""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import replace
from datetime import timedelta

import pytest

from tests.providers.aws_bucket import SECRET, running_bucket
from tests.providers.langfuse_files import KINDS, PROJECT, PROMPT, content, row, run, stem, write
from tests.providers.langfuse_server import NOON, Generated
from tokentra_dagster.errors import PermanentError
from tokentra_dagster.providers import export_rows, open_source
from tokentra_dagster.providers.base import ConnectionConfig, Source, Window
from tokentra_dagster.records import split

HOUR = timedelta(hours=1)
WINDOW = Window(NOON - 12 * HOUR, NOON + 12 * HOUR, "1h")
MADE = [
    Generated("g1", NOON, "gpt-4o", 100, 10, read=40, is_inclusive=False, user="ann"),
    Generated("g2", NOON + HOUR, "gpt-4o", 7, 3),
]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "langfuse"


def source(folder, provider: str = "openai", **options: str) -> Source:
    return open_source(ConnectionConfig(provider, "", None, {"location": str(folder)} | options, "langfuse_export"))


def read(folder, window: Window = WINDOW, **options: str):
    usage, _, rejected = split(source(folder, **options).usage(window))
    return {(record.bucket_start - NOON) // HOUR: record for record in usage}, rejected


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_says_the_same(folder, kind):
    write(folder, run(MADE, NOON - HOUR, NOON + 2 * HOUR, kind))
    found, rejected = read(folder)
    assert rejected == [] and set(found) == {0, 1}
    one = found[0]
    assert (one.input_tokens, one.cached_input_tokens, one.output_tokens, one.user_id) == (100, 40, 10, "ann")
    assert (one.environment, one.provider_project_id, one.request_type, one.context_window) == (
        "production",
        PROJECT,
        "chat",
        "0-128k",
    )
    assert (one.total_latency_ms, one.metadata["time_to_first_token_ms"]) == (1250, {"requests": 1, "total": 300})
    assert (found[1].input_tokens, found[1].user_id) == (7, None)


def test_an_observation_in_two_runs_counts_once_as_the_newer_run_has_it(folder):
    at = NOON + HOUR
    older, newer = (replace(MADE[1], received=count) for count in (3, 5))
    write(folder, run([older], NOON, at))
    write(folder, run([newer], at, at + HOUR))
    assert read(folder)[0][1].output_tokens == 5
    # An old window that was exported again later is the newer one.
    write(folder, run([older], NOON, at, written=at + timedelta(days=9)))
    found, _ = read(folder)
    assert (found[1].output_tokens, found[1].request_count) == (3, 1)


def test_a_run_without_its_manifest_is_left_out_unless_there_were_none_yet(folder):
    for n in range(3):
        write(folder, run(MADE, NOON + n * HOUR - HOUR, NOON + n * HOUR))
    manifests = folder / PROJECT / "manifests"
    (manifests / f"{stem(NOON + HOUR)}.json").unlink()
    opened = source(folder)
    # g1 began at the end of the first run and is in the second, too; g2 is in the third.
    assert sum(record.request_count for record in opened.usage(WINDOW)) == 2
    (remark,) = opened.remarks()
    assert (
        f"1 files were left out, because their runs have no manifest and are not complete ({PROJECT}/observations_v2/" in remark
    )
    (manifests / f"{stem(NOON + 2 * HOUR)}.json").unlink()
    assert set(read(folder)[0]) == {0}


def test_exports_from_before_there_were_manifests_are_read(folder):
    write(folder, run(MADE, NOON - HOUR, NOON + 2 * HOUR))
    (folder / PROJECT / "manifests" / f"{stem(NOON + 2 * HOUR)}.json").unlink()
    assert set(read(folder)[0]) == {0, 1}
    write(folder, run([], NOON + 2 * HOUR, NOON + 3 * HOUR))
    opened = source(folder)
    assert len(list(opened.usage(WINDOW))) == 2 and opened.remarks() == []


def test_a_weekly_run_ends_long_after_the_window_and_is_said_to_come_late(folder):
    write(folder, run(MADE, NOON - 25 * HOUR, NOON + 143 * HOUR))
    write(folder, run(MADE, NOON - 193 * HOUR, NOON - 25 * HOUR))
    opened = source(folder)
    window = Window(WINDOW.start - 24 * HOUR, WINDOW.end, "1h")
    assert sum(record.request_count for record in opened.usage(window)) == 2
    assert "up to 7 days apart, later than what a scheduled sync reads again" in opened.remarks()[0]


def test_a_manifest_is_held_to_its_word(folder):
    write(folder, run(MADE, NOON - HOUR, NOON + 2 * HOUR))
    path = folder / PROJECT / "observations_v2" / f"{stem(NOON + 2 * HOUR)}.jsonl"
    path.rename(path.with_name("elsewhere.jsonl"))
    with pytest.raises(
        PermanentError, match=r"a manifest names clk1project/observations_v2/.* which is not there; nothing was loaded"
    ):
        read(folder)
    path.with_name("elsewhere.jsonl").rename(path)
    (folder / PROJECT / "manifests" / f"{stem(NOON + 2 * HOUR)}.json").write_text('{"files": 7}')
    with pytest.raises(PermanentError, match="is no manifest of an export"):
        read(folder)


def test_a_line_that_is_none_is_rejected_and_the_next_is_read(folder, monkeypatch):
    monkeypatch.setattr(export_rows, "LONGEST_ROW", 2000)
    good = [json.dumps(row(one)) for one in MADE]
    bad = [
        row(MADE[0]) | change
        for change in ({"id": "b1", "start_time": "yesterday"}, {"id": "b2", "usage_details": "{"}, {"id": "b3", "type": None})
    ]
    lines = [good[0], good[0][:90], "[1]", '{"input": "' + "x" * 70_000 + '"}', *map(json.dumps, bad), "", good[1]]
    files = run(MADE, NOON - HOUR, NOON + 2 * HOUR) | {
        f"observations_v2/{stem(NOON + 2 * HOUR)}.jsonl": "\n".join(lines).encode()
    }
    write(folder, files)
    found, rejected = read(folder)
    assert set(found) == {0, 1}
    assert [item.payload["row"] for item in rejected] == [2, 3, 4, 5, 6, 7]
    assert all(item.bucket_start == WINDOW.start and item.payload["file"].startswith(PROJECT) for item in rejected)
    assert PROMPT not in repr(rejected)


@pytest.mark.parametrize("kind", ["jsonl.gz", "json", "parquet", "csv.gz"])
def test_a_file_that_broke_off_stops_the_sync(folder, kind):
    files = run([replace(MADE[0], id=f"g{n}") for n in range(50)], NOON - HOUR, NOON + 2 * HOUR, kind)
    name = f"observations_v2/{stem(NOON + 2 * HOUR)}.{kind}"
    write(folder, files | {name: files[name][:-20]})
    with pytest.raises(PermanentError, match=r"cannot be read .*; nothing was loaded, export or copy it again") as raised:
        read(folder)
    assert PROMPT not in str(raised.value)


def test_counts_that_were_not_exported_are_unknown_and_ones_that_are_no_object_are_rejected(folder):
    write(folder, {f"observations_v2/{stem(NOON + HOUR)}.jsonl": content([{**row(MADE[0]), "usage_details": None}], "jsonl")})
    found, _ = read(folder)
    assert found[0].metadata["tokens_unknown"] == ["input_tokens", "output_tokens"]
    write(folder, {f"observations_v2/{stem(NOON + HOUR)}.jsonl": content([{**row(MADE[0]), "usage_details": [1]}], "jsonl")})
    assert "usage_details is [1]; an object is required" in read(folder)[1][0].reason


def test_projects_and_their_further_integrations_are_all_read(folder):
    for n, project in enumerate((PROJECT, "clk2project/second")):
        write(folder, run([replace(MADE[0], id=f"p{n}")], NOON - HOUR, NOON + HOUR), project)
    assert read(folder)[0][0].request_count == 2
    assert read(folder / "clk2project" / "second")[0][0].request_count == 1
    assert source(folder).check() == f"langfuse_export: 2 exports below {folder}; newest run up to 2026-11-20 13:00 UTC"
    write(folder, {"observations_v2/mine.jsonl": b""})
    opened = source(folder)
    list(opened.usage(WINDOW))
    assert opened.remarks() == [f"langfuse_export: {PROJECT}/observations_v2/mine.jsonl is named by no time and was left out"]


def test_a_bucket_says_the_same_as_a_folder(folder):
    with running_bucket() as bucket:
        for n, kind in enumerate(("parquet", "jsonl.gz")):
            files = run(MADE, NOON + n * HOUR, NOON + n * HOUR + HOUR, kind)
            write(folder, files)
            for name, data in files.items():
                bucket.put(f"exports/{PROJECT}/{name}", data)
        given = {"location": "s3://acme-logs/exports", "max_retries": "0"}
        opened = open_source(ConnectionConfig("openai", SECRET, bucket.url, given, "langfuse_export"))
        usage, _, rejected = split(opened.usage(WINDOW))
        assert rejected == [] and {(record.bucket_start - NOON) // HOUR: record for record in usage} == read(folder)[0]
        assert "below s3://acme-logs/exports/; newest run up to 2026-11-20 14:00" in opened.check()
        with pytest.raises(PermanentError, match="NoSuchBucket") as raised:
            open_source(
                ConnectionConfig("openai", SECRET, bucket.url, given | {"location": "s3://nobodys"}, "langfuse_export")
            ).check()
        assert SECRET.partition(":")[2] not in str(raised.value)


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("", "the option location is missing; give it the folder"),
        ("gs://acme/exports", "it must be a folder, or a place in S3"),
        ("s3://A", "it must be a place in S3"),
        ("/nowhere/at/all", "there is no folder /nowhere/at/all; correct the option location"),
        ("empty", r"holds no PROJECT/observations_v2/; correct the option location"),
    ],
)
def test_a_wrong_place_is_said_in_one_sentence(tmp_path, location, says):
    (tmp_path / "empty").mkdir()
    with pytest.raises(PermanentError, match=says):
        source(tmp_path / "empty" if location == "empty" else location).check()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_or_folder_that_may_not_be_read_is_named(folder):
    write(folder, run(MADE, NOON - HOUR, NOON + 2 * HOUR))
    path = folder / PROJECT / "observations_v2" / f"{stem(NOON + 2 * HOUR)}.jsonl"
    for closed in (path, path.parent):
        closed.chmod(0)
        with pytest.raises(PermanentError, match=r"cannot be read .*; allow it to the user that syncs"):
            read(folder)
        closed.chmod(0o700)


def test_gzip_of_several_parts_is_one_file(folder):
    data = b"".join(gzip.compress(json.dumps(row(one)).encode() + b"\n") for one in MADE)
    write(folder, {f"observations_v2/{stem(NOON + 2 * HOUR)}.jsonl.gz": data})
    assert set(read(folder)[0]) == {0, 1}
