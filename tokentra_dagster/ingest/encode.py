"""A batch of usage as the bytes that COPY reads into `raw.usage_records`: validated, priced, attributed.

Columnar throughout: a Python loop over rows costs more than the database does.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from tokentra_dagster.ingest.attribution import FILLED, KEY_COLUMNS, Attribution
from tokentra_dagster.model_names import model_family
from tokentra_dagster.pricing import price_batch

COPIED = (
    "id", "org_id", "provider_connection_id", "provider", "source", "timestamp", "bucket_start", "bucket_end", "granularity",
    "model", "model_family", "request_type", "service_type", "service_tier",
    "input_tokens", "output_tokens", "cached_input_tokens", "cache_creation_tokens", "quantity", "quantity_unit",
    "request_count", "success_count", "error_count",
    "total_latency_ms", "min_latency_ms", "max_latency_ms", "p50_latency_ms", "p95_latency_ms", "p99_latency_ms",
    "latency_histogram", "estimated_cost", "cost_basis", "price_source", "currency",
    "team_id", "project_id", "cost_center_id", "feature", "environment", "said",
    "provider_project_id", "api_key_id", "context_window", "token_details", "user_ids", "unique_user_count",
    "provider_metadata", "sync_id",
)  # fmt: skip
_AS_IS = frozenset(
    (
        "bucket_start", "bucket_end", "granularity", "model", "request_type", "service_type", "service_tier",
        "input_tokens", "output_tokens", "cached_input_tokens", "cache_creation_tokens", "quantity", "quantity_unit",
        "request_count", "success_count", "error_count",
        "total_latency_ms", "min_latency_ms", "max_latency_ms", "p50_latency_ms", "p95_latency_ms", "p99_latency_ms",
        "latency_histogram", "currency", "provider_project_id", "api_key_id", "context_window", "token_details",
    )
)  # fmt: skip
_OPTIONS = pyarrow.csv.WriteOptions(include_header=False)


@dataclass(frozen=True, slots=True)
class Target:
    """Whose usage a batch is. `entity_ids` turns the names that a source gave into ids: (kind, name) -> id."""

    org_id: UUID
    connection_id: UUID
    provider: str
    source: str
    sync_id: UUID
    attribution: Attribution = field(default_factory=Attribution)
    entity_ids: Mapping[tuple[str, str], UUID] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refused:
    """A row that cannot be usage, with the reason; `index` is its place in the batch."""

    index: int
    reason: str
    bucket_start: datetime | None


def validate(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[Refused]]:
    """The rows that can be usage, and the others with their reason (design, "Tokens")."""
    zero = pa.scalar(0, pa.int64())
    cached = pc.fill_null(batch.column("cached_input_tokens"), zero)
    creation = pc.fill_null(batch.column("cache_creation_tokens"), zero)
    problems = {
        "bucket_end is not after bucket_start": pc.less_equal(batch.column("bucket_end"), batch.column("bucket_start")),
        "the model is missing": pc.or_kleene(pc.is_null(batch.column("model")), pc.equal(batch.column("model"), "")),
        "cached_input_tokens + cache_creation_tokens exceed input_tokens; input must include both": pc.greater(
            pc.add(cached, creation), batch.column("input_tokens")
        ),
    }
    for name in ("input_tokens", "output_tokens"):
        problems[f"{name} is missing"] = pc.is_null(batch.column(name))
    for name in ("input_tokens", "output_tokens", "cached_input_tokens", "cache_creation_tokens", "request_count", "error_count"):
        problems[f"{name} is negative; a count cannot be"] = pc.less(batch.column(name), zero)
    refused: dict[int, Refused] = {}
    for reason, mask in problems.items():
        mask = pc.fill_null(mask, False)
        if pc.any(mask).as_py():
            for index in np.flatnonzero(mask.to_numpy(zero_copy_only=False)):
                refused.setdefault(int(index), Refused(int(index), reason, batch.column("bucket_start")[int(index)].as_py()))
    if not refused:
        return batch, []
    keep = np.ones(batch.num_rows, dtype=bool)
    keep[list(refused)] = False
    return batch.filter(pa.array(keep)), [refused[index] for index in sorted(refused)]


def encode(batch: pa.RecordBatch, target: Target) -> bytes:
    """A validated batch as CSV in the order of `COPIED`: unquoted empty is NULL, text is always quoted."""
    rows = batch.num_rows
    priced = price_batch(batch, target.provider)
    filled = target.attribution.columns({name: batch.column(name) for name in KEY_COLUMNS})
    users = batch.column("user_id")
    columns: dict[str, pa.Array] = {
        "id": sequential_uuids(rows),
        "org_id": _constant(str(target.org_id), rows),
        "provider_connection_id": _constant(str(target.connection_id), rows),
        "provider": _constant(target.provider, rows),
        "source": _constant(target.source, rows),
        "timestamp": batch.column("bucket_start"),
        "model_family": _by_distinct(batch.column("model"), lambda model: model_family(target.provider, model)),
        "estimated_cost": priced.cost,
        "cost_basis": priced.basis,
        "price_source": priced.source,
        "user_ids": _text_array(users),
        "unique_user_count": pc.if_else(pc.is_valid(users), pa.scalar(1, pa.int32()), pa.scalar(None, pa.int32())),
        "provider_metadata": pc.fill_null(batch.column("metadata"), "{}"),
        "sync_id": _constant(str(target.sync_id), rows),
    }
    said = {"team_id": "team", "project_id": "project", "cost_center_id": "cost_center"}
    given: dict[str, pa.Array] = {}
    for name in FILLED:
        if name in said:
            kind = said[name]
            own = _by_distinct(batch.column(kind), lambda value, kind=kind: str(target.entity_ids[kind, value]))
        else:
            own = batch.column(name)
        columns[name] = pc.coalesce(own, filled[name])
        given[name] = own
    columns["said"] = _names_given(given, rows)
    for name in _AS_IS:
        columns[name] = batch.column(name)
    sink = io.BytesIO()
    pyarrow.csv.write_csv(pa.RecordBatch.from_arrays([columns[name] for name in COPIED], list(COPIED)), sink, _OPTIONS)
    return sink.getvalue()


def sequential_uuids(count: int) -> pa.Array:
    """Version 7 UUIDs as text, ascending: new rows go to the right edge of the index instead of all over it."""
    raw = np.frombuffer(bytearray(os.urandom(16 * count)), dtype=np.uint8).reshape(count, 16)
    raw[:, :6] = np.frombuffer((time.time_ns() // 1_000_000).to_bytes(6, "big"), dtype=np.uint8)
    counter = np.arange(count, dtype=">u4").view(np.uint8).reshape(count, 4)
    raw[:, 6] = 0x70 | (counter[:, 1] >> 4)
    raw[:, 7] = (counter[:, 1] << 4) | (counter[:, 2] >> 4)
    raw[:, 8] = 0x80 | (counter[:, 2] & 0x0F)
    raw[:, 9] = counter[:, 3]
    digits = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
    text = np.empty((count, 32), dtype=np.uint8)
    text[:, 0::2] = digits[raw >> 4]
    text[:, 1::2] = digits[raw & 0x0F]
    offsets = np.arange(0, 32 * (count + 1), 32, dtype=np.int32)
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(text))


def _names_given(given: Mapping[str, pa.Array], rows: int) -> pa.Array:
    """The names of the columns that have a value, as a JSON array; NULL where none has (almost always)."""
    present = [name for name, column in given.items() if column.null_count < rows]
    combination = np.zeros(rows, dtype=np.int64)
    for place, name in enumerate(present):
        combination |= pc.is_valid(given[name]).to_numpy(zero_copy_only=False).astype(np.int64) << place
    chosen = ([name for place, name in enumerate(present) if number >> place & 1] for number in range(1 << len(present)))
    return pa.array([json.dumps(names) if names else None for names in chosen], pa.string()).take(pa.array(combination))


def _constant(value: str, rows: int) -> pa.Array:
    return pa.repeat(pa.scalar(value), rows)


def _by_distinct(column: pa.Array, function) -> pa.Array:  # type: ignore[no-untyped-def]
    """`function` over a text column, called once for each distinct value; NULL stays NULL."""
    encoded = column.dictionary_encode()
    return pa.array([function(value) for value in encoded.dictionary.to_pylist()], pa.string()).take(encoded.indices)


def _text_array(column: pa.Array) -> pa.Array:
    """Each value as a PostgreSQL array literal of that one value."""
    escaped = pc.replace_substring(pc.replace_substring(column, "\\", "\\\\"), '"', '\\"')
    return pc.binary_join_element_wise('{"', escaped, '"}', "")
