"""Parquet with the columns' own types (correction 39): integers, decimals, timestamps with zone, dictionary strings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from tokentra_dagster.exports.columns import Column, schema_of
from tokentra_dagster.exports.writers import WriterOptions

GROUP_ROWS = 65_536
"""Rows of a row group, at least: a reader skips whole groups, and the footer, which the writer holds in memory, lists each."""


class ParquetWriter:
    """Metadata are key-values of the file's footer, each name with `tokentra.` before it."""

    def __init__(self, path: Path, columns: Sequence[Column], options: WriterOptions) -> None:
        self._schema = schema_of(columns, options.names)
        self._waiting: list[Any] = []
        self._writer = parquet.ParquetWriter(str(path), self._schema, compression=options.compression)

    def write(self, batch: Any) -> None:
        self._waiting.append(pa.record_batch(batch.columns, schema=self._schema))
        if sum(each.num_rows for each in self._waiting) >= GROUP_ROWS:
            self._write_group()

    def _write_group(self) -> None:
        table = pa.Table.from_batches(self._waiting, self._schema).unify_dictionaries()
        self._waiting.clear()
        self._writer.write_table(table, row_group_size=max(table.num_rows, 1))

    def close(self, metadata: Mapping[str, str] | None = None) -> None:
        if self._waiting:
            self._write_group()
        if metadata is not None:
            self._writer.add_key_value_metadata({f"tokentra.{name}": value for name, value in metadata.items()})
        self._writer.close()

    def abandon(self) -> None:
        self._writer.close()
