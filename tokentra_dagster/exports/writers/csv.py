"""csv after RFC 4180 in UTF-8: an unknown value is an empty field, a text that a spreadsheet would run is neutralised.

The same bytes come from batches and, faster, from rows that the server wrote (`field_sql`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from tokentra_dagster.exports.columns import Column
from tokentra_dagster.exports.text import FORMULA_STARTS, column_text, joined, neutral
from tokentra_dagster.exports.writers import WriterOptions, open_stream

LINE_END = "\r\n"
_LINE_END = LINE_END.encode()
_SPECIAL = re.compile(r'[",\r\n]|^$')
"""What COPY quotes too."""


def field(value: str) -> str:
    """One text as a field; an empty text is quoted, for it is not unknown."""
    value = neutral(value)
    return '"' + value.replace('"', '""') + '"' if _SPECIAL.search(value) else value


def field_sql(column: Column) -> str:
    """SQL of a column's values so that COPY in csv writes the field that `CsvWriter.write` would."""
    match column.kind:
        case "time":
            # In the ISO style of dates; half of what to_char takes.
            return f"replace((({column.sql}) AT TIME ZONE 'UTC')::TEXT, ' ', 'T') || 'Z'"
        case "money" | "quantity":
            return f"trim_scale({column.sql})"
        case "text":
            text = f"({column.sql})::TEXT"
            starts = sorted(map(ord, FORMULA_STARTS))
            # The first comparison is enough for nearly every text, and cheap.
            is_formula = f"ascii({text}) <= {starts[-1]} AND ascii({text}) IN ({', '.join(map(str, starts))})"
            return f"CASE WHEN {is_formula} THEN '''' || {text} ELSE {text} END"
    return column.sql


def without_last(rows: Sequence[bytes], number: int) -> bytes:
    """Lines of the file from rows of COPY, which end in a line feed, without the `number` last fields, which are numbers."""
    kept = [row.rsplit(b",", number)[0] for row in rows] if number else [row[:-1] for row in rows]
    return _LINE_END.join([*kept, b""])


class CsvWriter:
    """Metadata has no place in a csv; the export puts it beside the file."""

    def __init__(self, path: Path, columns: Sequence[Column], options: WriterOptions) -> None:
        self._stream = open_stream(path, options.compression)
        self._stream.write((",".join(field(column.title(options.names)) for column in columns) + LINE_END).encode())

    def write(self, batch: Any) -> None:
        fields = pc.binary_join_element_wise(*(column_text(column, field, "") for column in batch.columns), ",")
        self._stream.write(joined(fields, LINE_END))

    def write_lines(self, lines: bytes) -> None:
        """Append rows that are lines of the file already."""
        self._stream.write(lines)

    def close(self, metadata: Mapping[str, str] | None = None) -> None:
        self._stream.close()

    def abandon(self) -> None:
        self._stream.close()
