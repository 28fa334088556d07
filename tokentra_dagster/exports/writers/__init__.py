"""A writer per format: `open_writer(format, ...)`, then `write(batch)` as often as there are batches, then `close(metadata)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tokentra_dagster.exports.columns import Column, Names


@dataclass(frozen=True, slots=True)
class WriterOptions:
    """How the file looks. `compression` is one of `request.COMPRESSIONS`; `sheet_rows` is what a worksheet holds, its header included."""

    compression: str = "none"
    names: Names = "friendly"
    sheet_rows: int = 1_048_576


class Writer(Protocol):
    """Batches have the columns that the writer was opened with, by their raw names and types (`columns.schema_of`)."""

    def write(self, batch: Any) -> None:
        """Append the rows of one batch."""

    def close(self, metadata: Mapping[str, str] | None = None) -> None:
        """Finish the file, with the metadata inside where the format has a place for it."""

    def abandon(self) -> None:
        """Let go of the file; what it holds is of no use."""


def open_writer(format: str, path: Path, columns: Sequence[Column], options: WriterOptions) -> Writer:
    """Start the file. Formats are imported when they are used: a workbook's library takes longer to load than a csv to write."""
    opener: Callable[[Path, Sequence[Column], WriterOptions], Writer]
    if format == "csv":
        from tokentra_dagster.exports.writers.csv import CsvWriter as opener
    elif format == "xlsx":
        from tokentra_dagster.exports.writers.xlsx import XlsxWriter as opener
    elif format == "parquet":
        from tokentra_dagster.exports.writers.parquet import ParquetWriter as opener
    elif format == "json":
        from tokentra_dagster.exports.writers.json import JsonWriter as opener
    else:
        from tokentra_dagster.exports.writers.json import JsonLinesWriter as opener
    return opener(path, columns, options)


def open_stream(path: Path, compression: str) -> Any:
    """A binary output stream that compresses on the way."""
    import pyarrow as pa

    return pa.output_stream(str(path), compression=None if compression == "none" else compression)
