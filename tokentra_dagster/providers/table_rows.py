"""Rows of a file that a provider exports as a table: CSV or JSON lines, also gzipped, or Parquet. Chosen columns only, in bounded memory.

A `Filter` lets a Parquet file drop what is not wanted before a row becomes a Python object: a bill of a whole company has
millions of lines, of which few are about models.
"""

from __future__ import annotations

import csv
import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import IO, Any

from tokentra_dagster.errors import PermanentError
from tokentra_dagster.providers.export_rows import json_lines, unpacked
from tokentra_dagster.providers.payload import BadItem

_BATCH = 8_192
_LONGEST_CELL = 1 << 24
_JSON = (".json", ".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class Filter:
    """Keep a row that has `word` in one of the columns (of a map: in one of its values), or one of `values` in the first of them."""

    columns: tuple[str, ...]
    word: str
    values: frozenset[str] = frozenset()


def rows(
    file: IO[bytes], name: str, required: Sequence[str], optional: Sequence[str], only: Filter | None
) -> Iterator[Mapping[str, Any]]:
    """The rows of a file by the end of its name: `.csv`, `.csv.gz`, `.parquet`, or without a filter a JSON object on each line
    (`.json`, `.jsonl`, `.ndjson`, with `.gz`). Empty cells are None, maps and records dictionaries, fractions Decimal.

    Raises `PermanentError` where the file is of another kind, is damaged, or a required column is missing.
    """
    if name.endswith(".parquet"):
        found = _parquet(file, name, required, optional, only)
    elif name.endswith((".csv", ".csv.gz")):
        found = _csv(unpacked(file, name), name, required, optional, only)
    elif name.removesuffix(".gz").endswith(_JSON) and only is None:
        found = ({column: row.get(column) for column in (*required, *optional)} for row in _json_lines(unpacked(file, name)))
    else:
        raise PermanentError(f"{name} is no .csv, .csv.gz or .parquet file; export one of these")
    try:
        yield from found
    except (EOFError, OSError, zlib.error, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise PermanentError(f"{name} cannot be read ({type(error).__name__}: {error}); export it again") from None


def header(file: IO[bytes], name: str) -> list[str]:
    """The names of the columns, in order; of JSON lines those that any line has. Reads from the start of the file; raises as `rows` does."""
    try:
        if name.endswith(".parquet"):
            import pyarrow.parquet as pq

            return list(pq.read_schema(file).names)
        opened = unpacked(file, name)
        if name.removesuffix(".gz").endswith(_JSON):
            return list(dict.fromkeys(column for row in _json_lines(opened) for column in row))
        text = io.TextIOWrapper(opened, encoding="utf-8-sig", newline="")
        found = next(csv.reader(text), [])
        text.detach()
        return found
    except (EOFError, OSError, zlib.error, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise PermanentError(f"{name} cannot be read ({type(error).__name__}: {error}); export it again") from None


def _json_lines(file: Any) -> Iterator[Mapping[str, Any]]:
    for number, row in json_lines(file):
        if isinstance(row, BadItem):
            raise ValueError(f"line {number}: {row}")
        yield row


def _csv(
    file: Any, name: str, required: Sequence[str], optional: Sequence[str], only: Filter | None
) -> Iterator[Mapping[str, Any]]:
    csv.field_size_limit(_LONGEST_CELL)
    lines = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""))
    header = next(lines, [])
    _check(name, header, required)
    chosen = [(column, header.index(column)) for column in (*required, *optional) if column in header]
    deciding = [header.index(column) for column in only.columns if column in header] if only else []
    for line in lines:
        if len(line) != len(header):
            raise ValueError(f"line {lines.line_num} has {len(line)} cells, not {len(header)}")
        if only is None or line[deciding[0]] in only.values or any(only.word in line[place] for place in deciding):
            yield {column: _cell(line[place]) for column, place in chosen}


def _cell(text: str) -> Any:
    if text == "":
        return None
    if text[0] == "{":
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _parquet(
    file: Any, name: str, required: Sequence[str], optional: Sequence[str], only: Filter | None
) -> Iterator[Mapping[str, Any]]:
    import pyarrow.parquet as pq

    source = pq.ParquetFile(file)
    header = source.schema_arrow.names
    _check(name, header, required)
    chosen = [column for column in (*required, *optional) if column in header]
    deciding = [column for column in only.columns if column in header] if only else []
    for batch in source.iter_batches(_BATCH, columns=list(dict.fromkeys([*chosen, *deciding]))):
        if only is not None:
            batch = batch.filter(_wanted(batch, deciding, only))
        for row in batch.select(chosen).to_pylist():
            yield {column: _value(value) for column, value in row.items()}


def _wanted(batch: Any, deciding: Sequence[str], only: Filter) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    mask = pc.is_in(batch.column(deciding[0]).cast(pa.string()), pa.array(sorted(only.values), pa.string()))
    for column in deciding:
        values = batch.column(column)
        if pa.types.is_map(values.type):
            holds = [any(only.word in str(value) for _, value in pairs or ()) for pairs in values.to_pylist()]
            mask = pc.or_(mask, pa.array(holds, pa.bool_()))
        else:
            mask = pc.or_(mask, pc.fill_null(pc.match_substring(values.cast(pa.string()), only.word), False))
    return mask


def _value(value: Any) -> Any:
    if isinstance(value, list) and all(isinstance(pair, tuple) for pair in value):
        return dict(value)
    if isinstance(value, list):
        return [_value(inner) for inner in value]
    if isinstance(value, dict):
        return {name: _value(inner) for name, inner in value.items()}
    if isinstance(value, float):
        return Decimal(repr(value))
    if isinstance(value, datetime):
        return value.isoformat()
    return None if value == "" else value


def _check(name: str, header: Sequence[str], required: Sequence[str]) -> None:
    missing = [column for column in required if column not in header]
    if missing:
        raise PermanentError(f"{name} has no column {', '.join(missing)}; select it in the export")
