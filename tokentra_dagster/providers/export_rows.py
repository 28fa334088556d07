"""Rows of a gateway's exported file, as a stream: JSON Lines, JSON arrays and CSV, each also gzipped, and Parquet.

A row that is none is told with its number and the next one follows; a file that breaks off is an error, because what is missing of it
is not known. At most one row, or one batch of chosen columns, is in memory.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import IO, Any, NoReturn

from tokentra_dagster.errors import PermanentError
from tokentra_dagster.providers.payload import BadItem

LONGEST_ROW = 64 << 20
"""A row can hold a whole prompt and its answer."""
_PIECE = 1 << 16
_BATCH = 256
_BETWEEN = re.compile(r"[\s,]*")
_TEXT_ENDS = (".jsonl", ".json", ".csv")
_DECODER = json.JSONDecoder(parse_float=Decimal, parse_constant=lambda name: _no_constant(name))

Row = Mapping[str, Any] | BadItem
"""What a row says, fractions as Decimal; or why it is none."""


def is_table(name: str) -> bool:
    """Whether the name ends as one of a file that can be read."""
    return name.endswith(".parquet") or name.removesuffix(".gz").endswith(_TEXT_ENDS)


def rows(file: IO[bytes], name: str, columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """The rows of a file by the end of its name, numbered from 1; for Parquet the named columns alone, as far as it has them.

    In CSV every value is text, an empty one None. Raises `PermanentError` for a file that is damaged or of another kind.
    """
    opened = unpacked(file, name)
    kind = name.removesuffix(".gz").rpartition(".")[2]
    if not is_table(name):
        raise PermanentError(f"{name} is no .jsonl, .json, .csv or .parquet file; export one of these")
    found = {"jsonl": json_lines, "json": _array, "csv": _csv}.get(kind)
    try:
        yield from _parquet(file, columns) if found is None else found(opened)
    except (EOFError, OSError, zlib.error, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise PermanentError(
            f"{name} cannot be read ({type(error).__name__}: {error}); nothing was loaded, export or copy it again"
        ) from None


def unpacked(file: IO[bytes], name: str) -> Any:
    """What is in the file, gzipped or not as its name says."""
    return gzip.GzipFile(fileobj=file, mode="rb") if name.endswith(".gz") else file


def json_lines(file: IO[bytes]) -> Iterator[tuple[int, Row]]:
    """The objects of JSON Lines, numbered from 1; empty lines are passed over."""
    number = 0
    while line := file.readline(LONGEST_ROW):
        number += 1
        if len(line) == LONGEST_ROW and not line.endswith(b"\n"):
            yield number, BadItem(f"the line is longer than {LONGEST_ROW} bytes")
            while (rest := file.readline(_PIECE)) and not rest.endswith(b"\n"):
                pass
        elif not line.isspace():
            try:
                yield number, _object(_DECODER.decode(line.decode().strip()))
            except (ValueError, RecursionError):
                yield number, BadItem("the line is no JSON object")


def _array(file: IO[bytes]) -> Iterator[tuple[int, Row]]:
    """The objects of one JSON array, each as soon as it is whole."""
    decode = codecs.getincrementaldecoder("utf-8-sig")().decode
    text, place, piece, number = decode(file.read(_PIECE)).lstrip(), 1, _PIECE, 0
    if not text.startswith("["):
        raise ValueError("it is no JSON array")
    while True:
        place = _BETWEEN.match(text, place).end()  # type: ignore[union-attr]
        if text.startswith("]", place):
            return
        try:
            value, place = _DECODER.raw_decode(text, place)
            number += 1
            yield number, _object(value)
            piece = _PIECE
        except (ValueError, RecursionError) as error:
            more = decode(file.read(piece))
            if not more or len(text) - place > LONGEST_ROW:
                raise ValueError(f"after object {number} it is no JSON: {error}") from None
            # What is long is tried again seldom, or one long object would cost the square of its length.
            text, place, piece = text[place:] + more, 0, min(piece * 2, LONGEST_ROW)


def _csv(file: IO[bytes]) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(LONGEST_ROW)
    lines = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""))
    header = next(lines, [])
    for number, line in enumerate(lines, 1):
        if len(line) == len(header):
            yield number, {name: value or None for name, value in zip(header, line, strict=True)}
        elif line:
            yield number, BadItem(f"the row has {len(line)} cells, not {len(header)}")


def _parquet(file: IO[bytes], columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    source = pq.ParquetFile(file)
    chosen = [name for name in columns if name in source.schema_arrow.names]
    for batch in source.iter_batches(_BATCH, columns=chosen):
        assert isinstance(batch, pa.RecordBatch)
        for row in batch.to_pylist(maps_as_pydicts="lossy"):
            number += 1
            yield number, {name: _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, float):
        return Decimal(repr(value))
    return {_plain(key): _plain(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def _object(value: object) -> Row:
    return value if isinstance(value, Mapping) else BadItem(f"a JSON object was expected, not {type(value).__name__}")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")
