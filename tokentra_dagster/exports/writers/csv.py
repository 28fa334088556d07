"""csv after RFC 4180 in UTF-8: an unknown value is an empty field, a text that a spreadsheet would run is neutralised."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from tokentra_dagster.exports.columns import Column
from tokentra_dagster.exports.text import column_text, joined, neutral
from tokentra_dagster.exports.writers import WriterOptions, open_stream

LINE_END = "\r\n"
_SPECIAL = re.compile(r'[",\r\n]|^\s|\s$|^$')


def field(value: str) -> str:
    """One text as a field; an empty text is quoted, for it is not unknown."""
    value = neutral(value)
    return '"' + value.replace('"', '""') + '"' if _SPECIAL.search(value) else value


class CsvWriter:
    """Metadata has no place in a csv; the export puts it beside the file."""

    def __init__(self, path: Path, columns: Sequence[Column], options: WriterOptions) -> None:
        self._stream = open_stream(path, options.compression)
        self._stream.write((",".join(field(column.title(options.names)) for column in columns) + LINE_END).encode())

    def write(self, batch: Any) -> None:
        fields = pc.binary_join_element_wise(*(column_text(column, field, "") for column in batch.columns), ",")
        self._stream.write(joined(fields, LINE_END))

    def close(self, metadata: Mapping[str, str] | None = None) -> None:
        self._stream.close()

    def abandon(self) -> None:
        self._stream.close()
