"""Histograms as one number: sum() merges them, and percentiles are those of the merged histogram (correction 6)."""

from __future__ import annotations

from collections import Counter

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from tests.warehouse_data import one, rows
from tokentra_dagster.latency import latency_percentile
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.migrate import migrate

BEFORE = "0002"
QUANTILES = [0.0, 0.5, 0.95, 0.99, 1.0]
histograms = st.lists(
    st.dictionaries(st.integers(0, 1_000), st.integers(1, 10**10), max_size=8).map(lambda found: {str(k): v for k, v in found.items()}),
    min_size=1,
    max_size=5,
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=histograms)
def test_percentiles_of_summed_numbers_are_those_of_the_merged_histogram(database: Database, parts: list[dict[str, int]]) -> None:
    merged: Counter[int] = Counter()
    for part in parts:
        merged.update({int(bucket): count for bucket, count in part.items()})
    found = one(
        database,
        "SELECT raw.latency_percentiles(sum(raw.latency_counts(h.value)), %s) FROM jsonb_array_elements(%s) AS h",
        QUANTILES,
        Jsonb(parts),
    )
    assert found == ([latency_percentile(merged, quantile) for quantile in QUANTILES] if merged else None)


def test_an_unknown_or_empty_histogram_has_no_number(database: Database) -> None:
    assert rows(database, "SELECT raw.latency_counts(NULL) AS a, raw.latency_counts('{}') AS b") == [{"a": None, "b": None}]


@pytest.mark.parametrize("bucket", [0, 1, 7, 923])
def test_one_request_is_every_percentile(database: Database, bucket: int) -> None:
    number = one(database, "SELECT raw.latency_counts(%s)", Jsonb({str(bucket): 1}))
    assert number == 10 ** (12 * bucket)
    assert (
        one(database, "SELECT raw.latency_percentiles(%s, %s)", number, [0.01, 0.99])
        == [latency_percentile({bucket: 1}, 0.5)] * 2
    )


def test_rollups_built_before_the_column_existed_get_it(server_url: str) -> None:
    """A warehouse of the revision before, with what dbt had built in it."""
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute("CREATE DATABASE before_functions")
    old = Database(server_url.rsplit("/", 1)[0] + "/before_functions")
    migrate(old, BEFORE)
    with old.connect() as db:
        db.execute(
            "CREATE TABLE marts.daily_usage_rollup AS SELECT '{\"3\": 5}'::jsonb AS latency_histogram UNION ALL SELECT NULL"
        )
    assert migrate(old)
    found = rows(old, "SELECT latency_counts FROM marts.daily_usage_rollup ORDER BY 1 NULLS LAST")
    assert [row["latency_counts"] for row in found] == [5 * 10**36, None]
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute("DROP DATABASE before_functions WITH (FORCE)")
