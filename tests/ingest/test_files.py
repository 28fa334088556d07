"""Files become records row by row, and whatever cannot is refused with its line, its reason and the original."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokentra_dagster.errors import UsageError
from tokentra_dagster.ingest.file_columns import Rejection, convert
from tokentra_dagster.ingest.file_import import ImportRequest, scan
from tokentra_dagster.ingest.files import open_file
from tokentra_dagster.ingest.values import counts, moment, number, times

HEADER = "timestamp,model,input_tokens,output_tokens"
GOOD = "2026-06-01T10:15:30Z,gpt-4o,100,10"


@dataclass
class Read:
    """What an import would make of a file."""

    rows: list[dict[str, Any]]
    lines: list[int]
    rejected: list[Rejection]

    @property
    def reasons(self) -> list[tuple[int, str]]:
        return [(rejection.line, rejection.reason) for rejection in self.rejected]


def read(path: Path, *maps: str, **options: Any) -> Read:
    file, plan = ImportRequest(file=path, maps=maps, **options).open()
    found = Read([], [], [])
    for chunk in file.chunks():
        converted = convert(chunk, plan)
        found.rows += [{k: v for k, v in row.items() if v is not None} for row in converted.batch.to_pylist()]
        found.lines += converted.lines.tolist()
        found.rejected += converted.rejected
    return found


@pytest.fixture
def write(tmp_path):
    def write(text: str | bytes | Sequence[str], name: str = "usage.csv") -> Path:
        path = tmp_path / name
        if not isinstance(text, (str, bytes)):
            text = "\n".join(text) + "\n"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc]


# Formats ------------------------------------------------------------------------------------------------------------


def test_a_request_becomes_a_minute_record_of_one_request(write):
    found = read(write([HEADER, GOOD]))
    assert found.rejected == []
    assert found.rows == [
        {
            "bucket_start": utc(2026, 6, 1, 10, 15),
            "bucket_end": utc(2026, 6, 1, 10, 16),
            "granularity": "1m",
            "model": "gpt-4o",
            "input_tokens": 100,
            "output_tokens": 10,
            "request_count": 1,
            "currency": "USD",
        }
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(write, delimiter):
    text = f"{HEADER}\n{GOOD}\n".replace(",", delimiter)
    assert read(write(text)).rows[0]["input_tokens"] == 100


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_the_data(write):
    found = read(write(f"\ufeff{HEADER}\r\n{GOOD}\r\n"))
    assert [row["output_tokens"] for row in found.rows] == [10]


def test_gzip_is_recognised_by_its_content_even_in_several_members(write):
    first, second = gzip.compress(f"{HEADER}\n{GOOD}\n".encode()), gzip.compress(f"{GOOD}\n".encode())
    found = read(write(first + second, "usage.csv"))
    assert found.lines == [2, 3]


def test_the_same_rows_as_csv_json_lines_and_parquet_are_the_same_records(write, tmp_path):
    table = {
        "timestamp": ["2026-06-01T10:15:30Z", "2026-06-01T11:00:00Z"],
        "model": ["gpt-4o", "o3"],
        "input_tokens": [100, None],
        "output_tokens": [10, 5],
        "cost": [0.25, None],
    }
    keys = list(table)
    rows = [dict(zip(keys, values, strict=True)) for values in zip(*table.values(), strict=True)]
    lines = [",".join(keys), *(",".join("" if v is None else str(v) for v in row.values()) for row in rows)]
    pyarrow.parquet.write_table(pa.table(table), tmp_path / "usage.parquet")
    as_csv = read(write(lines)).rows
    assert as_csv == read(write([json.dumps(row) for row in rows], "usage.jsonl")).rows
    assert as_csv == read(tmp_path / "usage.parquet").rows
    assert as_csv[0]["reported_cost"] == Decimal("0.25")


def test_parquet_types_keep_their_meaning(tmp_path):
    moment_of = datetime(2026, 6, 1, 12, 30, 15, 250_000)
    table = pa.table(
        {
            "timestamp": pa.array([moment_of], pa.timestamp("ns", "Europe/Berlin")),
            "model": pa.array(["gpt-4o"]).dictionary_encode(),
            "usage": pa.array([{"input_tokens": 7, "output_tokens": 3}]),
            "cost": pa.array([Decimal("0.000001234567")], pa.decimal128(20, 12)),
            "latency_ms": pa.array([1234.5]),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "typed.parquet")
    (row,) = read(tmp_path / "typed.parquet", "input_tokens=usage.input_tokens", "output_tokens=usage.output_tokens").rows
    assert row["bucket_start"] == utc(2026, 6, 1, 12, 30)
    assert (row["input_tokens"], row["reported_cost"], row["total_latency_ms"]) == (7, Decimal("0.000001234567"), 1234)


def test_nested_json_is_reached_by_dots_and_numbers_keep_their_digits(write):
    line = '{"created": 1780308930, "model": "gpt-4o", "usage": {"prompt_tokens": 100, "completion_tokens": 10}, "cost": 0.100000000001}'
    found = read(write([line], "log.jsonl"), "input_tokens=usage.prompt_tokens", "output_tokens=usage.completion_tokens")
    assert found.rows[0]["bucket_start"] == utc(2026, 6, 1, 10, 15)
    assert found.rows[0]["reported_cost"] == Decimal("0.100000000001")


def test_json_values_that_are_no_text_are_kept_as_json(write):
    line = {
        "timestamp": 1780308930,
        "model": "gpt-4o",
        "input_tokens": 1,
        "output_tokens": 2,
        "stream": True,
        "tags": ["a", {"b": 1}],
        "note": "\ud800",
    }
    (row,) = read(
        write([json.dumps(line)], "log.jsonl"), "metadata.stream=stream", "metadata.tags=tags", "metadata.note=note"
    ).rows
    assert json.loads(row["metadata"]) == {"stream": "true", "tags": '["a", {"b": "1"}]', "note": "?"}


def test_a_value_with_a_line_break_is_one_value(write):
    found = read(write(f'{HEADER},feature\n{GOOD},"two\nlines"\n{GOOD},plain\n'))
    assert [row["feature"] for row in found.rows] == ["two\nlines", "plain"]


# Files that cannot be read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"\n \n", "is empty"),
        ("a.csv", f"{HEADER},model\n{GOOD},x\n".encode(), "'model' more than once"),
        ("a.csv", f"{HEADER}\n{GOOD}\n".encode("utf-16"), "UTF-8"),
        ("a.csv.gz", gzip.compress((f"{HEADER}\n" + f"{GOOD}\n" * 5000).encode())[:-40], "complete"),
        ("a.json", b'[{"model": "gpt-4o"}]', "one JSON object per line"),
        ("a.jsonl", b"not json\n", "no JSON object"),
        ("a.parquet", b"PAR1nonsense", "not a readable Parquet file"),
        ("a.csv", f'{HEADER}\n{GOOD}\n2026-06-01,"gpt-4o,1,1\n'.encode() + f"{GOOD}\n".encode() * 200_000, "quote"),
    ],
)  # fmt: skip
def test_an_unreadable_file_is_one_clear_sentence(write, name, content, says):
    with pytest.raises(UsageError, match=says) as raised:
        read(write(content, name))
    assert name in str(raised.value)


def test_a_file_with_a_header_only_loads_nothing_and_says_so(write):
    file, plan = ImportRequest(file=write([HEADER])).open()
    with pytest.raises(UsageError, match="no row that can be loaded"):
        scan(file, plan).window(plan)


def test_a_file_without_one_good_row_names_the_commonest_reason(write):
    file, plan = ImportRequest(file=write([HEADER, "yesterday,gpt-4o,1,1", "today,gpt-4o,1,1"])).open()
    with pytest.raises(UsageError, match=r"all 2 are rejected.*Line 2: timestamp: 'yesterday' is not a time"):
        scan(file, plan).window(plan)


# Mapping ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("maps", "options", "says"),
    [
        (["input_tokens=nope"], {}, "no column 'nope'.*Its columns are timestamp, model"),
        (["tokens=input_tokens"], {}, "'tokens' is not a target.*input_tokens"),
        (["model=model", "model=@x"], {}, "model twice"),
        (["model"], {}, "not TARGET=COLUMN"),
        (["model=@"], {}, "constant is empty"),
        (["input_tokens=5*6"], {}, "names no column"),
        (["model=model*2"], {}, "not a number"),
        (["metadata.=model"], {}, "not a target"),
        ([], {"timezone": "Mars/Phobos"}, "Mars/Phobos.*IANA"),
        ([], {"granularity": "1h", "bucket_seconds": 7200}, "does not fit"),
        ([], {"bucket_seconds": 0}, "from 1 to 86400"),
        (["request_count=input_tokens"], {}, "--granularity"),
        (["status=model"], {"granularity": "1h"}, "single requests"),
    ],
)
def test_a_map_that_cannot_work_says_what_is_wrong(write, maps, options, says):
    with pytest.raises(UsageError, match=says):
        ImportRequest(file=write([HEADER, GOOD]), maps=maps, **options).open()


def test_what_is_missing_is_asked_for_with_the_file_s_columns(write):
    with pytest.raises(
        UsageError, match=r"Which column is model and which is output_tokens\?.*columns are when, timestamp, prompt_tokens"
    ):
        ImportRequest(file=write(["when,timestamp,prompt_tokens", "1,2,3"])).open()


def test_well_known_names_are_used_only_where_one_column_fits(write):
    found = read(write(["Created At,Model,PromptTokens,completionTokens", GOOD]))
    assert (found.rows[0]["input_tokens"], found.rows[0]["output_tokens"]) == (100, 10)
    with pytest.raises(UsageError, match="Which column is input_tokens"):
        read(write(["timestamp,model,prompt_tokens,tokens_in,output_tokens", f"{GOOD},5"]))
    own = read(write(["timestamp,model,input_tokens,output_tokens,prompt_tokens", f"{GOOD},999"]))
    assert own.rows[0]["input_tokens"] == 100


def test_constants_and_products_fill_fields(write):
    found = read(
        write(["timestamp,seconds,requests,mean,n", "2026-06-01T10:15:30Z,1.2345,3,2.5,4", "2026-06-01T10:15:30Z,,1,2.5,4"]),
        "model=@gpt-4o", "input_tokens=requests*mean", "output_tokens=n*10", "total_latency_ms=seconds*1000",
        "metadata.source=@gateway", "token_details.input_audio=n", "request_count=requests", granularity="1m",
    )  # fmt: skip
    assert found.reasons == [(2, "the bucket does not start on a whole minute UTC, as --granularity 1m needs"),
                             (3, "the bucket does not start on a whole minute UTC, as --granularity 1m needs")]  # fmt: skip
    found = read(
        write(["timestamp,seconds,mean,n", "2026-06-01T10:15:30Z,1.2345,2.5,4", "2026-06-01T10:15:30Z,,3.5,4"]),
        "model=@gpt-4o", "input_tokens=mean*1", "output_tokens=n*10", "total_latency_ms=seconds*1000",
        "metadata.source=@gateway", "token_details.input_audio=n",
    )  # fmt: skip
    first, second = found.rows
    assert (first["input_tokens"], second["input_tokens"]) == (2, 4), "half to even"
    assert (first["output_tokens"], first["total_latency_ms"]) == (40, 1234)
    assert "total_latency_ms" not in second and "latency_histogram" not in second
    assert json.loads(first["metadata"]) == {"source": "gateway"}
    assert json.loads(first["token_details"]) == {"input_audio": 4}


def test_a_product_is_exact_where_floats_are_not(write):
    rows = [HEADER + ",mean", f"{GOOD},1234567890123.5", f"{GOOD},0.145"]
    found = read(write(rows), "input_tokens=mean*100")
    assert [row["input_tokens"] for row in found.rows] == [123456789012350, 14]


# Rows that cannot be usage ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("2026-06-01T10:15:30Z,gpt-4o,-5,10", "input_tokens: '-5' is negative; a count cannot be"),
        ("2026-06-01T10:15:30Z,gpt-4o,12.5,10", "input_tokens: '12.5' is not a whole number"),
        ("2026-06-01T10:15:30Z,gpt-4o,many,10", "input_tokens: 'many' is not a number"),
        ("2026-06-01T10:15:30Z,gpt-4o,0x1F,10", "input_tokens: '0x1F' is not a number"),
        ("2026-06-01T10:15:30Z,gpt-4o,1_000,10", "input_tokens: '1_000' is not a number"),
        ("2026-06-01T10:15:30Z,gpt-4o,inf,10", "input_tokens: 'inf' is not a number"),
        ("2026-06-01T10:15:30Z,gpt-4o,1e999999999,10", "input_tokens: '1e999999999' is too large"),
        ("2026-06-01T10:15:30Z,gpt-4o,99999999999999999999999,10", "input_tokens: '99999999999999999999999' is too large; at most 1,000,000,000,000,000 is allowed"),
        ("2026-06-01T10:15:30Z,,100,10", "model is missing"),
        ("2026-06-01T10:15:30Z,  ,100,10", "model is missing"),
        (",gpt-4o,100,10", "timestamp is missing"),
        ("2026-02-30T00:00:00Z,gpt-4o,100,10", "timestamp: '2026-02-30T00:00:00Z' is not a time; write 2026-06-01T12:00:00Z, 2026-06-01 12:00:00 or an epoch number"),
        ("1970-01-01,gpt-4o,100,10", "timestamp: '1970-01-01' is not between 2015-01-01 and 2050-01-01"),
        ("2026-06-01T10:15:30Z,gpt-4o,100", "the row has 3 fields, the header has 4"),
        ("2026-06-01T10:15:30Z,gpt-4o,100,10,extra", "the row has 5 fields, the header has 4"),
        ("2026-06-01T10:15:30Z,gpt\x00,100,10", "model holds a NUL character"),
    ],
)  # fmt: skip
def test_a_bad_row_is_rejected_with_its_line_and_reason_and_the_others_load(write, row, says):
    found = read(write([HEADER, GOOD, row, GOOD]))
    assert found.reasons == [(3, says)]
    assert found.lines == [2, 4]
    payload = found.rejected[0].payload
    assert ",".join(value or "" for value in payload.values()) == row


def test_a_line_that_is_not_utf_8_is_rejected_alone(write):
    content = f"{HEADER}\n{GOOD}\n".encode() + b"2026-06-01T10:15:30Z,caf\xe9,1,1\n" + f"{GOOD}\n".encode()
    found = read(write(content))
    assert found.lines == [2, 4]
    assert found.reasons == [(3, "the line is not UTF-8 text")]
    assert "caf\ufffd" in found.rejected[0].payload["line"]


def test_bad_json_lines_keep_their_number_and_text(write):
    good = json.dumps(dict(zip(HEADER.split(","), GOOD.split(","), strict=True)))
    found = read(write([good, "", "{broken", "[1, 2]", good, "7"], "log.jsonl"))
    assert found.lines == [1, 5]
    assert [(line, reason.partition(":")[0]) for line, reason in found.reasons] == [
        (3, "the line is not JSON"), (4, "the line is not a JSON object"), (6, "the line is not a JSON object"),
    ]  # fmt: skip
    assert [rejection.payload for rejection in found.rejected] == [{"line": "{broken"}, {"line": "[1, 2]"}, {"line": "7"}]


def test_blank_lines_are_no_rows_but_count_as_lines(write):
    found = read(write([HEADER, GOOD, "", GOOD, "", ""]))
    assert (found.lines, found.rejected) == ([2, 4], [])


def test_many_ragged_rows_keep_everybody_s_line(write):
    lines = [HEADER]
    for number_ in range(2, 120_000):
        lines.append("short" if number_ % 7 == 0 else f"2026-06-01T10:15:30Z,gpt-4o,{number_},1")
    found = read(write(lines))
    assert [row["input_tokens"] for row in found.rows] == found.lines
    assert [line for line, _ in found.reasons] == [n for n in range(2, 120_000) if n % 7 == 0]


CELL = st.text(st.characters(codec="utf-8", exclude_characters='\r\n"\x85\u2028'), max_size=12) | st.sampled_from(GOOD.split(","))


@given(cells=st.lists(st.lists(CELL, min_size=1, max_size=6), max_size=30))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_line_is_either_loaded_or_rejected(write, cells):
    lines = [HEADER, GOOD, *(",".join(row) for row in cells)]
    found = read(write(lines))
    blank = [number for number, line in enumerate(lines, 1) if not line.strip(",")]
    kept = sorted(found.lines + [line for line, _ in found.reasons])
    assert kept == sorted(set(kept)), "no line counts twice"
    # A line of nothing but delimiters may be blank or ragged; every other one must turn up.
    assert set(kept) >= set(range(2, len(lines) + 1)) - set(blank)


def test_cached_tokens_must_be_inside_input_unless_the_file_leaves_them_out(write):
    path = write([HEADER + ",cached_tokens,cache_write_tokens", f"{GOOD},90,11", f"{GOOD},90,10"])
    found = read(path)
    assert found.lines == [3]
    assert "exceed input_tokens" in found.rejected[0].reason and "--input excludes-cache" in found.rejected[0].reason
    outside = read(path, input_convention="excludes-cache")
    assert [row["input_tokens"] for row in outside.rows] == [201, 200]


def test_request_and_service_types_are_checked(write):
    found = read(write([HEADER + ",request_type,service_type", f"{GOOD},chat,batch", f"{GOOD},gossip,", f"{GOOD},,later"]))
    assert [row.get("request_type") for row in found.rows] == ["chat"]
    assert [reason.split(" is ")[0] for _, reason in found.reasons] == ["request_type", "service_type"]


def test_unknown_tokens_keep_their_requests_and_are_marked(write):
    found = read(write([HEADER, "2026-06-01T10:15:30Z,gpt-4o,,10", "2026-06-01T10:15:30Z,gpt-4o,NaN,", GOOD]))
    assert [(row["input_tokens"], row["output_tokens"]) for row in found.rows] == [(0, 10), (0, 0), (100, 10)]
    assert [json.loads(row.get("metadata", "{}")).get("tokens_unknown") for row in found.rows] == [
        ["input_tokens"], ["input_tokens", "output_tokens"], None,
    ]  # fmt: skip


def test_whole_numbers_written_as_floats_are_whole(write):
    found = read(write([HEADER, "2026-06-01T10:15:30Z,gpt-4o,100.0,1e1"]))
    assert (found.rows[0]["input_tokens"], found.rows[0]["output_tokens"]) == (100, 10)


def test_a_status_becomes_success_or_error(write):
    words = ["200", "429", "true", "failed", "", "odd", "OK"]
    found = read(write([HEADER + ",status", *(f"{GOOD},{word}" for word in words)]))
    answers = [(row.get("success_count"), row.get("error_count")) for row in found.rows]
    assert answers == [(1, 0), (0, 1), (1, 0), (0, 1), (None, None), (None, None), (1, 0)]


def test_a_request_s_latency_becomes_a_histogram_of_one(write):
    (row,) = read(write([HEADER + ",latency_ms", f"{GOOD},1500"])).rows
    assert (row["total_latency_ms"], row["min_latency_ms"], row["max_latency_ms"]) == (1500, 1500, 1500)
    ((bucket, count),) = json.loads(row["latency_histogram"]).items()
    assert count == 1 and 1.02 ** (int(bucket) - 1) < 1500 <= 1.02 ** int(bucket)


# Buckets ------------------------------------------------------------------------------------------------------------


def test_buckets_keep_their_width_and_their_counts(write):
    header = "bucket_start,model,input_tokens,output_tokens,requests,errors"
    (row,) = read(write([header, "2026-06-01T10:00:00Z,gpt-4o,100,10,7,2"]), granularity="1h").rows
    assert (row["bucket_end"], row["granularity"]) == (utc(2026, 6, 1, 11), "1h")
    assert (row["request_count"], row["error_count"]) == (7, 2)
    assert "latency_histogram" not in row


def test_ten_minute_buckets_are_minute_records_with_their_real_end(write):
    found = read(write([HEADER, "2026-06-01T10:50:00Z,m,1,1", "2026-06-01T10:55:00Z,m,1,1"]), bucket_seconds=600)
    assert [(row["bucket_start"], row["bucket_end"], row["granularity"]) for row in found.rows] == [
        (utc(2026, 6, 1, 10, 50), utc(2026, 6, 1, 11), "1m")
    ]
    assert found.reasons == [(3, "the bucket crosses a whole hour UTC; its usage cannot be placed")]


def test_a_bucket_s_end_may_come_from_the_file(write):
    header = HEADER + ",bucket_end"
    found = read(write([header, "2026-06-01T10:00:00Z,m,1,1,2026-06-01T10:05:00Z", "2026-06-01T10:00:00Z,m,1,1,2026-06-01T10:00:00Z"]), granularity="1m")  # fmt: skip
    assert found.rows[0]["bucket_end"] == utc(2026, 6, 1, 10, 5)
    assert found.reasons == [(3, "the bucket ends before it starts")]


def test_a_day_of_another_time_zone_is_no_day_in_utc(write):
    path = write([HEADER, "2026-06-01,m,1,1"])
    assert read(path, granularity="1d").rows[0]["bucket_end"] == utc(2026, 6, 2)
    assert "whole day UTC" in read(path, granularity="1d", timezone="Europe/Berlin").reasons[0][1]


def test_more_errors_than_requests_are_rejected(write):
    header = HEADER + ",requests,errors"
    assert read(write([header, "2026-06-01T10:00:00Z,m,1,1,2,3"]), granularity="1h").reasons == [
        (2, "error_count exceeds request_count")
    ]


# Times --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-06-01T10:15:30Z", utc(2026, 6, 1, 10, 15, 30)),
        ("2026-06-01 10:15:30.1234567", utc(2026, 6, 1, 10, 15, 30, 123456)),
        ("2026-06-01T12:15:30+02:00", utc(2026, 6, 1, 10, 15, 30)),
        ("2026-06-01 12:15:30 +0200", utc(2026, 6, 1, 10, 15, 30)),
        ("2026-06-01 10:15:30 UTC", utc(2026, 6, 1, 10, 15, 30)),
        ("2026-06-01", utc(2026, 6, 1)),
        ("1780308930", utc(2026, 6, 1, 10, 15, 30)),
        ("1780308930.5", utc(2026, 6, 1, 10, 15, 30, 500_000)),
        ("1780308930123", utc(2026, 6, 1, 10, 15, 30, 123_000)),
        ("1780308930123456", utc(2026, 6, 1, 10, 15, 30, 123_456)),
        ("1780308930123456789", utc(2026, 6, 1, 10, 15, 30, 123_456)),
    ],
)
def test_times_are_read_in_the_usual_spellings(text, expected):
    values, problems = times(pa.array([text, None]), ZoneInfo("UTC"))
    assert (values.to_pylist(), problems) == ([expected, None], {})


def test_times_without_a_zone_are_in_the_zone_that_was_named(write):
    found = read(write([HEADER, "2026-06-01 10:15:30,m,1,1", "2026-01-01 10:15:30,m,1,1"]), timezone="Europe/Berlin")
    assert [row["bucket_start"] for row in found.rows] == [utc(2026, 6, 1, 8, 15), utc(2026, 1, 1, 9, 15)]


def test_local_times_that_happened_twice_or_never_are_rejected(write):
    rows = [
        "2026-10-25 02:30:00,m,1,1",
        "2026-03-29 02:30:00,m,1,1",
        "2026-10-25 03:30:00,m,1,1",
        "2026-10-25 02:30:00+02:00,m,1,1",
    ]
    found = read(write([HEADER, *rows]), timezone="Europe/Berlin")
    assert [reason.split(" (")[0] for _, reason in found.reasons] == [
        "timestamp: '2026-10-25 02:30:00' happened twice in Europe/Berlin",
        "timestamp: '2026-03-29 02:30:00' never happened in Europe/Berlin",
    ]
    assert found.lines == [4, 5]


@given(texts=st.lists(
    st.integers(-10, 10**16).map(str) | st.sampled_from(["", " 7 ", "7.0", "7.5", "1e3", "x", "nan", "+4", "0x10", "٣", "1,5"]),
    max_size=600,
))  # fmt: skip
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_counts_read_in_columns_are_those_read_one_by_one(texts):
    values, problems = counts(pa.array(texts, pa.string()))
    for row, (text, value) in enumerate(zip(texts, values.to_pylist(), strict=True)):
        alone, wrong = counts(pa.array([text], pa.string()))
        assert alone.to_pylist() == [value]
        assert (row in problems) == bool(wrong)
        if value is not None:
            parsed = number(text)
            assert parsed is not None and value == parsed.to_integral_value(ROUND_HALF_EVEN)


@given(
    moments=st.lists(st.datetimes(datetime(2016, 1, 1), datetime(2040, 1, 1)), min_size=1, max_size=40),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"]),
)
@settings(max_examples=60, deadline=None)
def test_times_read_in_columns_are_those_read_one_by_one(moments, zone):
    texts = [value.isoformat(sep=" ") for value in moments]
    values, problems = times(pa.array(texts), ZoneInfo(zone))
    for row, (text, value) in enumerate(zip(texts, values.to_pylist(), strict=True)):
        if row in problems:
            with pytest.raises(ValueError, match=r"twice|never"):
                moment(text, ZoneInfo(zone))
        else:
            assert value == moment(text, ZoneInfo(zone))


def test_the_scan_adds_up_what_the_file_holds(write):
    rows = [
        f"2026-06-0{day}T{hour:02}:30:00Z,{model},{day * hour},{hour}"
        for day in (1, 2)
        for hour in range(24)
        for model in ("a", "b")
    ]
    file, plan = ImportRequest(file=write([HEADER, *rows, "x,a,1,1", "y,a,1,1"])).open()
    found = scan(file, plan)
    assert (found.loadable, found.rejected, found.requests) == (96, 2, 96)
    assert (found.input_tokens, found.output_tokens) == (2 * 276 * 3, 4 * 276)
    assert found.models == {"a": 48, "b": 48}
    window = found.window(plan)
    assert (window.start, window.end, window.granularity) == (utc(2026, 6, 1), utc(2026, 6, 3), "1m")
    ((kind, reason),) = found.reasons.items()
    assert kind.startswith("timestamp is not a time") and (reason.rows, reason.first.line) == (2, 98)


def test_the_window_is_the_file_s_own_hours(write):
    file, plan = ImportRequest(file=write([HEADER, "2026-06-01T10:15:30Z,m,1,1", "2026-06-01T11:59:59.999Z,m,1,1"])).open()
    window = scan(file, plan).window(plan)
    assert (window.start, window.end) == (utc(2026, 6, 1, 10), utc(2026, 6, 1, 12))
    assert window.end - window.start == timedelta(hours=2)


def test_dates_and_columns_are_known_before_the_rows_are_read(write, tmp_path):
    pyarrow.parquet.write_table(pa.table({"d": pa.array([date(2026, 6, 1)])}), tmp_path / "d.parquet")
    assert open_file(tmp_path / "d.parquet").columns == ("d",)
    assert open_file(write([HEADER])).columns == tuple(HEADER.split(","))
