"""Real traces load with `tokentra import`'s own code, and add up per model and per hour to figures from Python's csv module.

The traces are not part of the project (`../shared/data`); where they are absent, as in a user's checkout, this skips.
"""

from __future__ import annotations

import csv
import gzip
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.warehouse_data import one, rows
from tokentra_dagster.commands.work import import_
from tokentra_dagster.ingest.file_import import ImportRequest, load_file, scan
from tokentra_dagster.ingest.imports import file_connection
from tokentra_dagster.latency import latency_percentile
from tokentra_dagster.warehouse.directory import add_organization

DATA = Path(__file__).parents[3] / "shared" / "data"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the real traces are not beside this checkout (../shared/data)")


@dataclass(frozen=True)
class Trace:
    file: str
    provider: str
    options: dict[str, Any]

    def csv_rows(self) -> Iterator[dict[str, str]]:
        with gzip.open(DATA / self.file, "rt", newline="") as stream:
            yield from csv.DictReader(stream)


AZURE = Trace("azure-llm-conv-2023.csv.gz", "azure", {"maps": ["model=@gpt-4"]})
AGENTS = Trace(
    "coding-agent-requests.csv.gz",
    "anthropic",
    {
        "maps": [
            "cached_input_tokens=cached_input_tokens_estimate",
            "total_latency_ms=api_seconds*1000",
            "metadata.session=session",
        ]
    },
)
CLUSTER = Trace(
    "cluster-windows.csv.gz",
    "openai",
    {
        "bucket_seconds": 600,
        "maps": ["input_tokens=requests*mean_input_tokens", "output_tokens=requests*mean_output_tokens", "user_id=client"],
    },
)

BY_MODEL_AND_HOUR = """
SELECT model, to_char(date_trunc('hour', timestamp), 'YYYY-MM-DD"T"HH24') AS hour, sum(input_tokens)::bigint AS input,
  sum(output_tokens)::bigint AS output, sum(request_count)::bigint AS requests
FROM raw.usage_records GROUP BY 1, 2
"""
Totals = dict[tuple[str, str], tuple[int, int, int]]


def load(database, trace: Trace):
    with database.connect() as db:
        add_organization(db, "acme")
    file, plan = ImportRequest(file=DATA / trace.file, **trace.options).open()
    window = scan(file, plan).window(plan)
    connection = file_connection(database, "acme", trace.provider, "trace")
    return load_file(database, connection, file, plan, window)


def in_the_warehouse(database) -> Totals:
    return {
        (row["model"], row["hour"]): (row["input"], row["output"], row["requests"]) for row in rows(database, BY_MODEL_AND_HOUR)
    }


def add_up(items: Iterator[tuple[str, str, int, int, int]]) -> Totals:
    sums: dict[tuple[str, str], list[int]] = {}
    for model, hour, *numbers in items:
        total = sums.setdefault((model, hour), [0, 0, 0])
        for place, number in enumerate(numbers):
            total[place] += number
    return {key: (a, b, c) for key, (a, b, c) in sums.items()}


def totals(sums: Totals) -> tuple[int, ...]:
    return tuple(sum(column) for column in zip(*sums.values(), strict=True))


def test_an_hour_of_azure_requests(database):
    result = load(database, AZURE)
    assert (result.loaded, result.rejected) == (19_366, 0)
    expected = add_up(
        ("gpt-4", row["TIMESTAMP"][:13].replace(" ", "T"), int(row["ContextTokens"]), int(row["GeneratedTokens"]), 1)
        for row in AZURE.csv_rows()
    )
    assert in_the_warehouse(database) == expected
    assert totals(expected) == (22_361_870, 4_088_665, 19_366)


def test_coding_agents_with_six_models_and_their_latencies(database):
    result = load(database, AGENTS)
    assert (result.loaded, result.rejected) == (25_226, 0)
    expected = add_up(
        (row["model"], row["timestamp"][:13], int(row["input_tokens"]), int(row["output_tokens"]), 1) for row in AGENTS.csv_rows()
    )
    assert in_the_warehouse(database) == expected
    assert totals(expected) == (2_957_358_181, 11_179_688, 25_226)
    assert len({model for model, _ in expected}) == 6
    seconds = [Decimal(row["api_seconds"]) for row in AGENTS.csv_rows() if row["api_seconds"]]
    assert one(database, "SELECT sum(total_latency_ms)::bigint FROM raw.usage_records") == int(sum(seconds) * 1000) == 223_540_340
    assert one(database, "SELECT count(*) FROM raw.usage_records WHERE total_latency_ms IS NOT NULL") == len(seconds)
    cached = sum(int(row["cached_input_tokens_estimate"]) for row in AGENTS.csv_rows())
    assert one(database, "SELECT sum(cached_input_tokens)::bigint FROM raw.usage_records") == cached
    sessions = Counter(row["session"] for row in AGENTS.csv_rows())
    stored = rows(database, "SELECT provider_metadata ->> 'session' AS s, count(*) AS n FROM raw.usage_records GROUP BY 1")
    assert {row["s"]: row["n"] for row in stored} == sessions


def test_percentiles_of_real_latencies_are_within_one_percent(database):
    load(database, AGENTS)
    merged = rows(
        database,
        "SELECT key::int AS bucket, sum(value::bigint)::bigint AS n FROM raw.usage_records, jsonb_each_text(latency_histogram) GROUP BY 1",
    )
    histogram = {row["bucket"]: row["n"] for row in merged}
    exact = sorted(Decimal(row["api_seconds"]) * 1000 for row in AGENTS.csv_rows() if row["api_seconds"])
    for quantile in (Decimal("0.5"), Decimal("0.95"), Decimal("0.99")):
        true = exact[-(-len(exact) * int(quantile * 100) // 100) - 1]
        found = latency_percentile(histogram, float(quantile))
        assert found is not None and abs(found - true) <= true / 100 + 1


def test_two_weeks_of_a_cluster_in_ten_minute_windows(database):
    result = load(database, CLUSTER)
    assert (result.loaded, result.rejected) == (102_950, 0)

    def tokens(row: dict[str, str], mean: str) -> int:
        if not row[mean]:
            return 0
        return int((Decimal(row["requests"]) * Decimal(row[mean])).to_integral_value(ROUND_HALF_EVEN))

    expected = add_up(
        (row["model"], row["window_start"][:13], tokens(row, "mean_input_tokens"), tokens(row, "mean_output_tokens"), int(row["requests"]))
        for row in CLUSTER.csv_rows()
    )  # fmt: skip
    assert in_the_warehouse(database) == expected
    assert totals(expected)[2] == 238_276_495
    unknown = sum(1 for row in CLUSTER.csv_rows() if not row["mean_input_tokens"])
    marked = "SELECT count(*) FROM raw.usage_records WHERE provider_metadata ? 'tokens_unknown' AND cost_basis = 'unpriced'"
    assert one(database, marked) == unknown > 0


def test_the_documented_commands_are_the_ones_tested_here():
    page = (Path(__file__).parents[2] / "docs" / "importing.md").read_text()
    commands = [shlex.split(line)[2:] for line in page.splitlines() if line.startswith("tokentra import ")]
    documented = {words[0]: import_.make_context("import", [str(Path(__file__)), *words[1:]]).params for words in commands}
    for trace in (AZURE, AGENTS, CLUSTER):
        options = documented[trace.file]
        assert options["provider"] == trace.provider
        assert sorted(options["maps"]) == sorted(trace.options["maps"])
        assert options["bucket_seconds"] == trace.options.get("bucket_seconds")


@pytest.mark.parametrize("trace", [AZURE, CLUSTER], ids=lambda trace: trace.file)
def test_a_second_import_changes_nothing(database, trace):
    first = load(database, trace)
    before = in_the_warehouse(database)
    second = load(database, trace)
    assert (second.loaded, second.replaced) == (first.loaded, first.loaded)
    assert in_the_warehouse(database) == before
