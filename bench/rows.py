"""Usage rows for benchmarks: request-level records of one organisation, deterministic, in Arrow batches."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

from tokentra_dagster.batch import ROWS_PER_BATCH, TIMESTAMP, USAGE_SCHEMA
from tokentra_dagster.latency import latency_buckets

START = datetime(2026, 4, 1, tzinfo=UTC)
DAYS = 90
MODELS = (
    "gpt-4o-2024-08-06", "gpt-4o-mini-2024-07-18", "gpt-4.1-2025-04-14", "gpt-4.1-mini-2025-04-14", "o3-2025-04-16", "o4-mini-2025-04-16",
)  # fmt: skip
USERS, KEYS, PROJECTS = 200, 24, 8


def batches(
    count: int, start: datetime = START, span: timedelta = timedelta(days=DAYS), seed: int = 1, histograms: bool = False
) -> Iterator[pa.RecordBatch]:
    """`count` requests spread evenly over `[start, start + span)`, in time order, in batches of `ROWS_PER_BATCH`; with
    `histograms` each has the latency histogram that a file import gives a request."""
    made = 0
    while made < count:
        rows = min(ROWS_PER_BATCH, count - made)
        batch = _batch(made, rows, count, start, span, np.random.default_rng([seed, made]))
        yield _with_histograms(batch) if histograms else batch
        made += rows


def _batch(first: int, rows: int, count: int, start: datetime, span: timedelta, random: np.random.Generator) -> pa.RecordBatch:
    step = span / timedelta(microseconds=1) / count
    micros = int(start.timestamp() * 1_000_000) + ((np.arange(first, first + rows) + random.random(rows)) * step).astype(np.int64)
    inputs = random.integers(200, 20_000, rows)
    pick = {
        "model": (MODELS, random.integers(0, len(MODELS), rows)),
        "user_id": ([f"user-{n:04d}" for n in range(USERS)], random.zipf(1.5, rows) % USERS),
        "api_key_id": ([f"key_{n:02d}" for n in range(KEYS)], random.integers(0, KEYS, rows)),
        "provider_project_id": ([f"proj_{n}" for n in range(PROJECTS)], random.integers(0, PROJECTS, rows)),
    }
    columns = {name: pa.array(values, pa.string()).take(pa.array(index)) for name, (values, index) in pick.items()}
    columns |= {
        "bucket_start": pa.array(micros).cast(TIMESTAMP),
        "bucket_end": pa.array(micros // 60_000_000 * 60_000_000 + 60_000_000).cast(TIMESTAMP),
        "input_tokens": pa.array(inputs),
        "cached_input_tokens": pa.array((inputs * random.random(rows) * 0.8).astype(np.int64)),
        "output_tokens": pa.array(random.integers(10, 2_000, rows)),
        "total_latency_ms": pa.array(random.lognormal(7, 0.8, rows).astype(np.int64) + 1),
    }
    fixed = {
        "granularity": "1m",
        "request_type": "chat",
        "service_type": "sync",
        "service_tier": "default",
        "currency": "USD",
        "environment": "production",
    }
    columns |= {name: pa.repeat(pa.scalar(value), rows) for name, value in fixed.items()}
    columns |= {
        name: pa.repeat(pa.scalar(value, pa.int64()), rows)
        for name, value in (("request_count", 1), ("success_count", 1), ("error_count", 0))
    }
    empty = {field.name: pa.nulls(rows, field.type) for field in USAGE_SCHEMA if field.name not in columns}
    return pa.RecordBatch.from_arrays([{**columns, **empty}[name] for name in USAGE_SCHEMA.names], schema=USAGE_SCHEMA)


def _with_histograms(batch: pa.RecordBatch) -> pa.RecordBatch:
    buckets = latency_buckets(batch.column("total_latency_ms").to_numpy())
    histograms = pa.array([f'{{"{bucket}": 1}}' for bucket in buckets], USAGE_SCHEMA.field("latency_histogram").type)
    return batch.set_column(
        USAGE_SCHEMA.get_field_index("latency_histogram"), USAGE_SCHEMA.field("latency_histogram"), histograms
    )
