"""Files of usage as chunks of text columns with line numbers: CSV, JSON Lines and Parquet, gzip too, in bounded memory.

A reader yields every row of the file once, either in `Chunk.columns` or, where a line cannot be read, in `Chunk.broken`.
Values stay text, exactly as the file has them; what they mean is for `file_columns`. Knows no database.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from tokentra_dagster.errors import UsageError

BLOCK = 1 << 19
ROWS = 8_192
LONGEST_LINE = 16 << 20
_HEAD = 1 << 20
_PEEK_RECORDS = 1_000
_DELIMITERS = ",;\t|"
_ENCODING_HINT = "save it as UTF-8"


@dataclass(frozen=True, slots=True)
class Broken:
    """A line that is no row at all: its number (the first line is 1), why, and its text."""

    line: int
    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows: text columns by name, the line each row is on, and the lines between them that are broken.

    In a CSV file whose values hold line breaks, and in Parquet, `lines` counts records (with the header as 1; without one,
    the first row is 1).
    """

    columns: dict[str, pa.Array]
    lines: npt.NDArray[np.int64]
    broken: list[Broken]


@dataclass(frozen=True, slots=True)
class UsageFile:
    """A readable file: its format, its columns, and a way through its rows that can be taken again."""

    path: Path
    format: str
    compressed: bool
    columns: tuple[str, ...]
    delimiter: str = ","

    def chunks(self) -> Iterator[Chunk]:
        """Raises `UsageError` where the file as a whole cannot be read further."""
        readers = {"csv": _csv_chunks, "jsonl": _jsonl_chunks, "parquet": _parquet_chunks}
        try:
            yield from readers[self.format](self)
        except (pa.ArrowInvalid, pa.ArrowIOError, EOFError, gzip.BadGzipFile, OSError) as error:
            raise UsageError(_unreadable(self, error)) from None


def open_file(path: Path) -> UsageFile:
    """What is in the file, by its first bytes and its name. Raises `UsageError` when it cannot be usage."""
    if not path.is_file():
        raise UsageError(f"There is no file {path}.")
    with path.open("rb") as raw:
        magic = raw.read(4)
    compressed = magic[:2] == b"\x1f\x8b"
    name = path.name.lower().removesuffix(".gz")
    if magic == b"PAR1":
        return UsageFile(path, "parquet", False, _parquet_columns(path))
    try:
        with _bytes(path, compressed) as stream:
            head = stream.read(_HEAD)
    except (EOFError, OSError) as error:
        raise UsageError(f"{path.name} cannot be decompressed: {error}. Is the file complete?") from None
    if not head.strip():
        raise UsageError(f"{path.name} is empty.")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\x00" in head[:4]:
        raise UsageError(f"{path.name} is not UTF-8 text; {_ENCODING_HINT}.")
    if head[:4] == b"PAR1":
        raise UsageError(f"{path.name} is a compressed Parquet file; decompress it first (Parquet compresses by itself).")
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start == b"[" and not name.endswith((".csv", ".tsv")):
        raise UsageError(f"{path.name} is a JSON array; write one JSON object per line (for example with jq -c '.[]').")
    if start == b"{" or name.endswith((".jsonl", ".ndjson", ".json")):
        return UsageFile(path, "jsonl", compressed, _jsonl_columns(path, compressed))
    return _csv_file(path, compressed, head)


def _bytes(path: Path, compressed: bool) -> IO[bytes]:
    if compressed:
        return cast(IO[bytes], gzip.open(path, "rb"))
    return path.open("rb")


def _unreadable(file: UsageFile, error: BaseException) -> str:
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "straddling" in text:
        text = f"a row is longer than {BLOCK >> 10} KB; probably a quote is opened and never closed"
    elif isinstance(error, EOFError) or "truncated" in text.lower():
        text = "the compressed data ends too early; the file is not complete"
    return f"{file.path.name} cannot be read to its end: {text}."


# CSV ----------------------------------------------------------------------------------------------------------------


def _csv_file(path: Path, compressed: bool, head: bytes) -> UsageFile:
    try:
        text = head.decode("utf-8-sig", errors="strict" if len(head) < _HEAD else "ignore")
    except UnicodeDecodeError:
        text = head.decode("utf-8-sig", errors="replace")
    first = text.lstrip("\r\n").splitlines()[0]
    if "\ufffd" in first:
        raise UsageError(f"{path.name} is not UTF-8 text; {_ENCODING_HINT}.")
    delimiter = max(_DELIMITERS, key=lambda candidate: len(next(csv.reader([first], delimiter=candidate))))
    names = [name.strip() for name in next(csv.reader([first], delimiter=delimiter))]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            f"{path.name} has the column {', '.join(map(repr, twice))} more than once; rename one in its first line."
        )
    if "" in names:
        names = [name or f"column_{number}" for number, name in enumerate(names, 1)]
    return UsageFile(path, "csv", compressed, tuple(names), delimiter)


def _csv_chunks(file: UsageFile) -> Iterator[Chunk]:
    ragged: list[Broken] = []

    def keep(row: Any) -> str:
        reason = f"the row has {row.actual_columns} fields, the header has {row.expected_columns}"
        ragged.append(Broken(row.number, reason, row.text))
        return "skip"

    with _bytes(file.path, file.compressed) as stream:
        skip = _lines_before_rows(stream)
        reader = pyarrow.csv.open_csv(
            pa.PythonFile(stream, mode="r"),
            pyarrow.csv.ReadOptions(use_threads=False, block_size=BLOCK, column_names=file.columns, skip_rows=skip),
            pyarrow.csv.ParseOptions(
                delimiter=file.delimiter, newlines_in_values=True, ignore_empty_lines=False, invalid_row_handler=keep
            ),
            pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(file.columns, pa.binary()), null_values=[""], strings_can_be_null=True
            ),
        )
        following = skip + 1
        for batch in reader:
            last = following + batch.num_rows + len(ragged)
            numbers = np.arange(following, last, dtype=np.int64)
            if ragged:
                numbers = numbers[~np.isin(numbers, [row.line for row in ragged])]
            numbers = numbers[: batch.num_rows]
            following = int(numbers[-1]) + 1 if batch.num_rows else following
            _refuse_open_quote(file, ragged)
            now = [row for row in ragged if row.line < following]
            ragged[:] = [row for row in ragged if row.line >= following]
            yield from _text_chunks(file.columns, batch, numbers, now)
        _refuse_open_quote(file, ragged)
        if ragged:
            yield Chunk({name: pa.array([], pa.string()) for name in file.columns}, np.zeros(0, np.int64), list(ragged))


def _refuse_open_quote(file: UsageFile, ragged: Sequence[Broken]) -> None:
    """A broken row of a thousand lines is a quote that nobody closed: the rows inside it are not one bad row."""
    for row in ragged:
        if row.text.count("\n") >= 1_000:
            raise UsageError(f"{file.path.name}, line {row.line}: a quote is opened and not closed in the next 1,000 lines.")


def _lines_before_rows(stream: IO[bytes]) -> int:
    """How many lines the header takes, blank lines before it included; leaves the stream where it was."""
    count = 1
    while not stream.readline(LONGEST_LINE).removeprefix(b"\xef\xbb\xbf").strip():
        count += 1
    stream.seek(0)
    return count


def _text_chunks(
    names: Sequence[str], batch: pa.RecordBatch, lines: npt.NDArray[np.int64], broken: list[Broken]
) -> Iterator[Chunk]:
    """Bytes as text; rows that are not UTF-8 become broken ones, blank lines vanish."""
    blank = np.ones(batch.num_rows, dtype=bool)
    for column in batch.columns:
        if column.null_count == 0:
            blank[:] = False
            break
        blank &= column.is_null().to_numpy(zero_copy_only=False)
    if blank.any():
        batch, lines = batch.filter(pa.array(~blank)), lines[~blank]
    try:
        columns = [column.cast(pa.string()) for column in batch.columns]
    except pa.ArrowInvalid:
        good = np.array(
            [all(_is_text(column[row].as_py()) for column in batch.columns) for row in range(batch.num_rows)], dtype=bool
        )
        for row in np.flatnonzero(~good).tolist():
            shown = ",".join((column[row].as_py() or b"").decode("utf-8", "replace") for column in batch.columns)
            broken.append(Broken(int(lines[row]), "the line is not UTF-8 text", shown))
        batch, lines = batch.filter(pa.array(good)), lines[good]
        columns = [column.cast(pa.string()) for column in batch.columns]
    for start in range(0, max(batch.num_rows, 1), ROWS):
        part = {name: column.slice(start, ROWS) for name, column in zip(names, columns, strict=True)}
        yield Chunk(part, lines[start : start + ROWS], broken if start == 0 else [])


def _is_text(value: bytes | None) -> bool:
    try:
        (value or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


# JSON Lines ---------------------------------------------------------------------------------------------------------


_DECODER = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str)
"""Numbers keep the digits they have in the file."""


def _jsonl_columns(path: Path, compressed: bool) -> tuple[str, ...]:
    """The names in the first records; nested objects are joined by dots."""
    names: dict[str, None] = {}
    for number, (_, row, _) in enumerate(_json_rows(path, compressed)):
        names.update(dict.fromkeys(row or ()))
        if number >= _PEEK_RECORDS:
            break
    if not names:
        raise UsageError(f"{path.name} has no JSON object in its first {_PEEK_RECORDS:,} lines; write one per line.")
    return tuple(names)


def _json_rows(path: Path, compressed: bool) -> Iterator[tuple[int, dict[str, Any] | None, Broken | None]]:
    with _bytes(path, compressed) as stream:
        line = 0
        while text := stream.readline(LONGEST_LINE):
            line += 1
            if line == 1:
                text = text.removeprefix(b"\xef\xbb\xbf")
            if not text.strip():
                continue
            if len(text) == LONGEST_LINE and not text.endswith(b"\n"):
                raise UsageError(f"{path.name}, line {line}: the line is longer than {LONGEST_LINE >> 20} MB.")
            try:
                item = _DECODER.decode(text.decode())
            except UnicodeDecodeError:
                yield line, None, Broken(line, "the line is not UTF-8 text", text.decode("utf-8", "replace").rstrip("\n"))
            except (ValueError, RecursionError) as error:
                yield line, None, Broken(line, f"the line is not JSON: {error}", text.decode("utf-8", "replace").rstrip("\n"))
            else:
                if isinstance(item, dict):
                    yield line, _flat(item), None
                else:
                    yield line, None, Broken(line, "the line is not a JSON object", text.decode("utf-8", "replace").rstrip("\n"))


def _flat(item: dict[str, Any]) -> dict[str, Any]:
    """Nested objects as `outer.inner`."""
    if dict not in map(type, item.values()):
        return item
    flat: dict[str, Any] = {}
    for key, value in item.items():
        if isinstance(value, dict):
            flat.update({f"{key}.{inner}": kept for inner, kept in _flat(value).items()})
        else:
            flat[key] = value
    return flat


def _json_text(value: Any) -> str | None:
    """What is not text yet (true, lists) as JSON; half of a surrogate pair, which UTF-8 cannot spell, as `?`."""
    text = value if isinstance(value, str) or value is None else json.dumps(value)
    return None if text is None else text.encode("utf-8", "replace").decode()


def _jsonl_chunks(file: UsageFile) -> Iterator[Chunk]:
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    broken: list[Broken] = []
    for line, row, bad in _json_rows(file.path, file.compressed):
        if row is not None:
            rows.append(row)
            lines.append(line)
        elif bad is not None:
            broken.append(bad)
        if len(rows) + len(broken) >= ROWS:
            yield _json_chunk(file, rows, lines, broken)
            rows, lines, broken = [], [], []
    yield _json_chunk(file, rows, lines, broken)


def _json_chunk(file: UsageFile, rows: list[dict[str, Any]], lines: list[int], broken: list[Broken]) -> Chunk:
    columns = {}
    for name in file.columns:
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values, pa.string())
        except (pa.ArrowTypeError, UnicodeEncodeError):
            columns[name] = pa.array(map(_json_text, values), pa.string())
    return Chunk(columns, np.array(lines, dtype=np.int64), broken)


# Parquet ------------------------------------------------------------------------------------------------------------


def _parquet_file(source: Path | IO[bytes]) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20)


def _parquet_columns(path: Path) -> tuple[str, ...]:
    try:
        with _parquet_file(path) as file:
            names = [
                name for name, _ in _flat_arrays(file.schema_arrow.empty_table().to_batches() or [_empty(file.schema_arrow)])
            ]
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"{path.name} is not a readable Parquet file: {str(error).splitlines()[0]}") from None
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"{path.name} has the column {', '.join(map(repr, twice))} more than once.")
    return tuple(names)


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)


def _parquet_chunks(file: UsageFile) -> Iterator[Chunk]:
    following = 1
    with _parquet_file(file.path) as parquet:
        for batch in parquet.iter_batches(batch_size=ROWS, use_threads=False):
            columns = {name: _as_text(column) for name, column in _flat_arrays([batch])}
            lines = np.arange(following, following + batch.num_rows, dtype=np.int64)
            following += batch.num_rows
            yield Chunk(columns, lines, [])


def _flat_arrays(batches: Sequence[pa.RecordBatch]) -> list[tuple[str, pa.Array]]:
    """Columns by name; the fields of structures as `name.field`."""
    table = pa.Table.from_batches(batches)
    while any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    return [(name, column.combine_chunks()) for name, column in zip(table.column_names, table.columns, strict=True)]


def _as_text(column: pa.Array) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        zoned = getattr(column.type, "tz", None) is not None
        precise = column.cast(pa.timestamp("us", "UTC" if zoned else None), safe=False)
        return pc.strftime(precise, "%Y-%m-%dT%H:%M:%S" + ("Z" if zoned else ""))
    if pa.types.is_floating(column.type):
        # Python's shortest form of a float is exact; Arrow's is not.
        return pa.array([None if value is None else repr(value) for value in column.to_pylist()], pa.string())
    try:
        return pc.if_else(pc.equal(column.cast(pa.string()), ""), pa.scalar(None, pa.string()), column.cast(pa.string()))
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        values = column.to_pylist()
        return pa.array([None if value is None else json.dumps(value, default=str) for value in values], pa.string())
