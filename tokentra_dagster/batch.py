"""Usage as Arrow batches: the one shape between every source (provider, file) and the loader.

`USAGE_SCHEMA` has one column per field of `UsageRecord`, in its order and with its meaning. Dictionaries travel as
JSON text (`token_details`, `latency_histogram`, `metadata`), money as decimal128(38, 12), times as microseconds UTC.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa

from tokentra_dagster.records import UsageRecord, field_names

TIMESTAMP = pa.timestamp("us", tz="UTC")
MONEY = pa.decimal128(38, 12)
JSON_COLUMNS = ("token_details", "latency_histogram", "metadata")
ROWS_PER_BATCH = 8_192
"""Encoding is as fast as with more, and a batch is records, Arrow columns and text at once (docs/decisions/0004)."""

_NOT_TEXT: dict[str, pa.DataType] = {
    "bucket_start": TIMESTAMP,
    "bucket_end": TIMESTAMP,
    "quantity": MONEY,
    "reported_cost": MONEY,
    **dict.fromkeys(
        (
            "input_tokens", "output_tokens", "cached_input_tokens", "cache_creation_tokens",
            "request_count", "success_count", "error_count",
            "total_latency_ms", "min_latency_ms", "max_latency_ms",
            "p50_latency_ms", "p95_latency_ms", "p99_latency_ms",
        ),
        pa.int64(),
    ),
}  # fmt: skip

USAGE_SCHEMA = pa.schema([(name, _NOT_TEXT.get(name, pa.string())) for name in field_names(UsageRecord)])


def batch_of(records: Sequence[UsageRecord]) -> pa.RecordBatch:
    """The records as one batch of `USAGE_SCHEMA`. An empty dictionary becomes NULL."""
    columns = [
        pa.array([_plain(name, getattr(record, name)) for record in records], type=USAGE_SCHEMA.field(name).type)
        for name in USAGE_SCHEMA.names
    ]
    return pa.RecordBatch.from_arrays(columns, schema=USAGE_SCHEMA)


def batches_of(records: Iterable[UsageRecord], rows: int = ROWS_PER_BATCH) -> Iterator[pa.RecordBatch]:
    """The records in batches of at most `rows`, so that memory does not grow with their number."""
    remaining = iter(records)
    while chunk := list(islice(remaining, rows)):
        yield batch_of(chunk)


def _plain(name: str, value: Any) -> Any:
    if name in JSON_COLUMNS:
        return json.dumps(value, sort_keys=True, default=str) if value else None
    return value
