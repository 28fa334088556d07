"""A file's rows as usage records, a chunk at a time: text columns and a plan in, a batch of `USAGE_SCHEMA` and the rejected out.

A row without `--granularity` is one request: it becomes a minute record (`granularity` 1m, `request_count` 1) of the minute
that holds its instant, so that every sum over hours and days is exact; its latency becomes minimum, maximum and a
histogram of one, so that percentiles of any period are right to 1 %. The instant itself is not kept unless
`metadata.NAME` is mapped to its column. A row with `--granularity` is a bucket of several requests. Buckets shorter than
an hour (`--bucket-seconds`) are stored as 1m records with their real end, and may not cross an hour.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tokentra_dagster.batch import TIMESTAMP, USAGE_SCHEMA
from tokentra_dagster.ingest.files import Chunk
from tokentra_dagster.ingest.mapping import (
    ALLOWED_WORDS,
    AMOUNTS,
    LATENCIES,
    REQUESTS,
    STATUS,
    TEXTS,
    TOKENS,
    Expression,
    Plan,
)
from tokentra_dagster.ingest.values import Problems, amounts, counts, mapped, products, times, words
from tokentra_dagster.latency import latency_buckets
from tokentra_dagster.records import GRANULARITY_SECONDS

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
HOUR = 3_600_000_000
_SUCCESS = frozenset(("true", "t", "yes", "ok", "success", "succeeded", "successful", "completed", "complete"))
_ERROR = frozenset(("false", "f", "no", "error", "errored", "fail", "failed", "failure"))


@dataclass(frozen=True, slots=True)
class Rejection:
    """A row that cannot be usage: its line, the kind of problem, the sentence with the value, and the original row."""

    line: int
    kind: str
    reason: str
    payload: Any
    bucket_start: datetime | None = None


@dataclass(frozen=True, slots=True)
class Converted:
    """A batch of `USAGE_SCHEMA` and the line that each of its rows came from, and the rows that are not in it."""

    batch: pa.RecordBatch
    lines: Ints
    rejected: list[Rejection]
    unknown_tokens: int = 0


@dataclass(slots=True)
class _Reading:
    """One chunk under way: what is wrong with which row, the first problem of a row wins."""

    chunk: Chunk
    plan: Plan
    problems: dict[int, tuple[str, str]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return len(self.chunk.lines)

    def refuse(self, rows: Bools | Ints, kind: str, reason: str | None = None) -> None:
        """Refuse the rows that a mask or an array of row numbers says."""
        numbers = np.flatnonzero(rows) if rows.dtype == bool else rows
        for row in numbers.tolist():
            self.problems.setdefault(row, (kind, reason or kind))

    def wrong(self, target: str, found: Problems) -> None:
        source = self.plan.expressions[target]
        where = target if source.said == target else f"{target} ({'column ' if source.columns else ''}{source})"
        for row, (shown, problem) in found.items():
            self.problems.setdefault(row, (f"{where} {problem}", f"{where}: {shown} {problem}"))

    def texts(self, expression: Expression) -> pa.Array:
        if expression.constant is not None:
            return pa.repeat(pa.scalar(expression.constant), self.rows)
        return self.chunk.columns.get(expression.columns[0], pa.nulls(self.rows, pa.string()))

    def count(self, target: str, *, rounded: bool = False) -> pa.Array | None:
        expression = self.plan.expressions.get(target)
        if expression is None:
            return None
        values, found = (
            products([self.chunk.columns[name] for name in expression.columns], expression.factor)
            if expression.is_product
            else counts(self.texts(expression), rounded=rounded)
        )
        self.wrong(target, found)
        return values

    def amount(self, target: str) -> pa.Array | None:
        expression = self.plan.expressions.get(target)
        if expression is None:
            return None
        values, found = (
            products([self.chunk.columns[name] for name in expression.columns], expression.factor, money=True)
            if expression.is_product
            else amounts(self.texts(expression))
        )
        self.wrong(target, found)
        return values

    def text(self, target: str) -> pa.Array | None:
        expression = self.plan.expressions.get(target)
        if expression is None:
            return None
        values = words(self.texts(expression))
        if pc.any(pc.match_substring(values, "\x00")).as_py():
            self.refuse(_mask(pc.match_substring(values, "\x00")), f"{target} holds a NUL character")
        return values


def convert(chunk: Chunk, plan: Plan) -> Converted:
    """The chunk as records. Every row of it is either in the batch or in `rejected`; so is every broken line."""
    reading = _Reading(chunk, plan)
    values: dict[str, pa.Array | None] = {}
    _times(reading, values)
    for target in TEXTS:
        values[target] = reading.text(target)
    _check_words(reading, values)
    unknown = _tokens(reading, values)
    for target in REQUESTS:
        values[target] = reading.count(target)
    for target in AMOUNTS:
        values[target] = reading.amount(target)
    _requests(reading, values)
    _latencies(reading, values)
    values["metadata"] = _metadata(reading, unknown)
    values["token_details"] = _token_details(reading)
    currency = values.get("currency")
    dollars = pa.repeat(pa.scalar("USD"), reading.rows)
    values["currency"] = dollars if currency is None else pc.coalesce(pc.utf8_upper(currency), dollars)
    values["granularity"] = pa.repeat(pa.scalar(plan.stored_granularity), reading.rows)
    arrays = []
    for name in USAGE_SCHEMA.names:
        value = values.get(name)
        arrays.append(pa.nulls(reading.rows, USAGE_SCHEMA.field(name).type) if value is None else value)
    batch = pa.RecordBatch.from_arrays(arrays, schema=USAGE_SCHEMA)
    rejected = [Rejection(b.line, b.reason.partition(":")[0], b.reason, {"line": b.text}) for b in chunk.broken]
    lost = np.zeros(reading.rows, dtype=bool)
    lost[list(reading.problems)] = True
    rejected += _rejections(reading, batch)
    lines = chunk.lines
    if lost.any():
        batch, lines = batch.filter(pa.array(~lost)), lines[~lost]
    return Converted(batch, lines, rejected, int(np.sum(unknown.any(axis=1) & ~lost)))


def _rejections(reading: _Reading, batch: pa.RecordBatch) -> Iterator[Rejection]:
    for row in sorted(reading.problems):
        kind, reason = reading.problems[row]
        original = {name: column[row].as_py() for name, column in reading.chunk.columns.items()}
        start = batch.column("bucket_start")[row].as_py()
        yield Rejection(int(reading.chunk.lines[row]), kind, reason, original, start)


def _mask(column: pa.Array) -> Bools:
    mask: Bools = pc.fill_null(column, False).to_numpy(zero_copy_only=False).astype(bool)
    return mask


def _ints(column: pa.Array | None, rows: int) -> Ints:
    if column is None:
        return np.zeros(rows, dtype=np.int64)
    filled: Ints = pc.fill_null(column, 0).to_numpy(zero_copy_only=False)
    return filled


def _times(reading: _Reading, values: dict[str, pa.Array | None]) -> None:
    plan = reading.plan
    moments, found = times(reading.texts(plan.expressions["timestamp"]), plan.zone)
    reading.wrong("timestamp", found)
    reading.refuse(_mask(pc.is_null(moments)), "timestamp is missing")
    start = _ints(moments.cast(pa.int64()), reading.rows)
    width = GRANULARITY_SECONDS[plan.stored_granularity] * 1_000_000
    if plan.granularity is None:
        start = start // width * width
        end = start + width
    elif "bucket_end" in plan.expressions:
        ends, found = times(reading.texts(plan.expressions["bucket_end"]), plan.zone)
        reading.wrong("bucket_end", found)
        reading.refuse(_mask(pc.is_null(ends)), "bucket_end is missing")
        end = _ints(ends.cast(pa.int64()), reading.rows)
        reading.refuse(end <= start, "the bucket ends before it starts")
    else:
        end = start + (plan.bucket_seconds or width // 1_000_000) * 1_000_000
    if plan.granularity is not None:
        unit = max(width, HOUR)
        reading.refuse(
            start % width != 0,
            f"the bucket does not start on a whole {_NAMES[plan.granularity]} UTC, as --granularity {plan.granularity} needs",
        )
        within = (
            f"the bucket crosses a whole {_NAMES['1d' if plan.granularity == '1d' else '1h']} UTC; its usage cannot be placed"
        )
        reading.refuse(start % unit + (end - start) > unit, within)
    missing = pa.array(_mask(pc.is_null(moments)))
    values["bucket_start"] = pa.array(start, pa.int64(), mask=missing.to_numpy(zero_copy_only=False)).cast(TIMESTAMP)
    values["bucket_end"] = pa.array(end, pa.int64(), mask=missing.to_numpy(zero_copy_only=False)).cast(TIMESTAMP)


_NAMES = {"1m": "minute", "1h": "hour", "1d": "day"}


def _check_words(reading: _Reading, values: dict[str, pa.Array | None]) -> None:
    model = values["model"]
    assert model is not None, "a plan always has a model"
    reading.refuse(_mask(pc.is_null(model)), "model is missing")
    for target, allowed in ALLOWED_WORDS.items():
        column = values[target]
        if column is not None:
            unknown = pc.invert(pc.is_in(column, pa.array(allowed, pa.string())))
            reading.refuse(_mask(pc.and_(unknown, pc.is_valid(column))), f"{target} is not one of {', '.join(allowed)}")


def _tokens(reading: _Reading, values: dict[str, pa.Array | None]) -> Bools:
    """Tokens in our convention; returns which of input and output each row did not give: stored as 0 and marked."""
    for target in TOKENS:
        values[target] = reading.count(target)
    unknown = np.zeros((reading.rows, 2), dtype=bool)
    for place, target in enumerate(("input_tokens", "output_tokens")):
        column = values[target]
        assert column is not None, "a plan always has the tokens"
        refused = np.zeros(reading.rows, dtype=bool)
        refused[list(reading.problems)] = True
        unknown[:, place] = _mask(pc.is_null(column)) & ~refused
        values[target] = pc.fill_null(column, 0)
    parts = _ints(values["cached_input_tokens"], reading.rows) + _ints(values["cache_creation_tokens"], reading.rows)
    whole = _ints(values["input_tokens"], reading.rows)
    if reading.plan.excludes_cache:
        values["input_tokens"] = pa.array(whole + parts, pa.int64())
    else:
        kind = "cached_input_tokens + cache_creation_tokens exceed input_tokens"
        hint = f"{kind}; input must include both (if the file's input leaves them out, use --input excludes-cache)"
        reading.refuse(parts > whole, kind, hint)
    return unknown


def _requests(reading: _Reading, values: dict[str, pa.Array | None]) -> None:
    plan = reading.plan
    if plan.granularity is None:
        values["request_count"] = pa.repeat(pa.scalar(1, pa.int64()), reading.rows)
        if STATUS in plan.expressions:
            success = mapped(words(reading.texts(plan.expressions[STATUS])), _succeeded, pa.int64())
            values["success_count"] = success
            values["error_count"] = pc.subtract(pa.scalar(1, pa.int64()), success)
        return
    requests, errors, successes = (values[name] for name in ("request_count", "error_count", "success_count"))
    for name, part in (("error_count", errors), ("success_count", successes)):
        if requests is not None and part is not None:
            reading.refuse(_mask(pc.greater(part, requests)), f"{name} exceeds request_count")


def _succeeded(text: str) -> int | None:
    word = text.lower()
    if word.isascii() and word.isdigit():
        code = int(word)
        return code if code in (0, 1) else 1 if 100 <= code < 400 else 0 if 400 <= code < 600 else None
    return 1 if word in _SUCCESS else 0 if word in _ERROR else None


def _latencies(reading: _Reading, values: dict[str, pa.Array | None]) -> None:
    for target in LATENCIES:
        values[target] = reading.count(target, rounded=True)
    total = values["total_latency_ms"]
    if reading.plan.granularity is not None or total is None:
        return
    for target in ("min_latency_ms", "max_latency_ms"):
        if values[target] is None:
            values[target] = total
    bucket = pa.array(latency_buckets(_ints(total, reading.rows))).cast(pa.string())
    histogram = pc.binary_join_element_wise('{"', bucket, '": 1}', "")
    values["latency_histogram"] = pc.if_else(pc.is_valid(total), histogram, pa.scalar(None, pa.string()))


def _metadata(reading: _Reading, unknown: Bools) -> pa.Array | None:
    parts = []
    for target, expression in reading.plan.expressions.items():
        prefix, dot, name = target.partition(".")
        if dot and prefix == "metadata":
            value = mapped(words(reading.texts(expression)), lambda text: json.dumps(text.replace("\x00", "\ufffd")), pa.string())
            parts.append(_member(name, value))
    if unknown.any():
        names = np.array(["", '["input_tokens"]', '["output_tokens"]', '["input_tokens", "output_tokens"]'])
        chosen = pa.array(names[unknown[:, 0] + 2 * unknown[:, 1].astype(np.int64)], pa.string())
        parts.append(_member("tokens_unknown", pc.if_else(pc.equal(chosen, ""), pa.scalar(None, pa.string()), chosen)))
    return _object(parts)


def _token_details(reading: _Reading) -> pa.Array | None:
    parts = []
    for target in reading.plan.expressions:
        prefix, dot, name = target.partition(".")
        if dot and prefix == "token_details":
            count = reading.count(target)
            assert count is not None
            parts.append(_member(name, count.cast(pa.string())))
    return _object(parts)


def _member(name: str, value: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(json.dumps(name) + ": ", value, "")


def _object(members: list[pa.Array]) -> pa.Array | None:
    """JSON objects of the members that each row has; NULL for a row with none."""
    if not members:
        return None
    # Arrow's own way to skip NULLs drops the rows in which every array is NULL.
    joined = members[0]
    for member in members[1:]:
        joined = pc.coalesce(pc.binary_join_element_wise(joined, member, ", "), joined, member)
    return pc.binary_join_element_wise("{", joined, "}", "")
