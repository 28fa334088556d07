"""Parquet with the columns' own types (correction 39): integers, decimals, timestamps with zone, dictionary strings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from tokentra_dagster.exports.columns import Column, schema_of
from tokentra_dagster.exports.writers import WriterOptions


class ParquetWriter:
    """Metadata are key-values of the file's footer, each name with `tokentra.` before it."""

    def __init__(self, path: Path, columns: Sequence[Column], options: WriterOptions) -> None:
        self._schema = schema_of(columns, options.names)
        self._writer = parquet.ParquetWriter(str(path), self._schema, compression=options.compression)

    def write(self, batch: Any) -> None:
        self._writer.write_batch(pa.record_batch(batch.columns, schema=self._schema))

    def close(self, metadata: Mapping[str, str] | None = None) -> None:
        if metadata is not None:
            self._writer.add_key_value_metadata({f"tokentra.{name}": value for name, value in metadata.items()})
        self._writer.close()

    def abandon(self) -> None:
        self._writer.close()
