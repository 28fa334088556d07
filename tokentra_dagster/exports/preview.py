"""The first rows of a finished export, whatever its format: what a person looks at before opening the file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from openpyxl import load_workbook

Rows = tuple[list[str], list[list[Any]]]
_DOCUMENT_START = '{"data": ['


def first_rows(path: Path, format: str, compression: str, count: int = 10) -> Rows:
    """The columns' titles and up to `count` rows; reads no more of the file than it has to."""
    if format == "parquet":
        return _parquet(path, count)
    if format == "xlsx":
        return _workbook(path, count)
    with pa.input_stream(str(path), compression=None if compression == "none" else compression) as stream:
        lines = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        return _csv(lines, count) if format == "csv" else _objects(lines, count)


def _csv(lines: io.TextIOWrapper, count: int) -> Rows:
    reader = csv.reader(lines)
    return next(reader, []), list(islice(reader, count))


def _objects(lines: io.TextIOWrapper, count: int) -> Rows:
    """JSON Lines, and the document that we write with one row a line."""
    found = list(islice(_each(lines), count))
    titles = list(found[0]) if found else []
    return titles, [list(row.values()) for row in found]


def _each(lines: io.TextIOWrapper) -> Iterator[dict[str, Any]]:
    for line in lines:
        text = line.strip().removeprefix(_DOCUMENT_START).rstrip(",")
        if text.startswith("]"):
            return
        if text.startswith("{"):
            yield json.loads(text, parse_float=str)


def _parquet(path: Path, count: int) -> Rows:
    rows: list[list[Any]] = []
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=count):
            rows += [list(row.values()) for row in batch.to_pylist()]
            if len(rows) >= count:
                break
        return file.schema_arrow.names, rows[:count]


def _workbook(path: Path, count: int) -> Rows:
    book = load_workbook(path, read_only=True)
    try:
        rows = [list(row) for row in book.worksheets[0].iter_rows(max_row=count + 1, values_only=True)]
    finally:
        book.close()
    return [str(title) for title in rows[0]] if rows else [], rows[1:]
