"""JSON: one document `{"data": [...], "metadata": {...}}`, or JSON Lines. Numbers are exact; an unknown value is null."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokentra_dagster.exports.columns import Column
from tokentra_dagster.exports.text import column_text, joined
from tokentra_dagster.exports.writers import WriterOptions, open_stream


def quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


class JsonLinesWriter:
    """One object a line. Metadata has no place in it; the export puts it beside the file."""

    before_row, after_row = "{", "}\n"

    def __init__(self, path: Path, columns: Sequence[Column], options: WriterOptions) -> None:
        self._stream = open_stream(path, options.compression)
        self._keys = [f"{quoted(column.title(options.names))}: " for column in columns]

    def write(self, batch: Any) -> None:
        if batch.num_rows:
            self._stream.write(self._rows(batch))

    def _rows(self, batch: Any) -> Any:
        parts: list[Any] = [self.before_row]
        for place, (key, column) in enumerate(zip(self._keys, batch.columns, strict=True)):
            parts += [f", {key}" if place else key, column_text(column, quoted, "null", quoted)]
        return joined(*parts, self.after_row)

    def close(self, metadata: Mapping[str, str] | None = None) -> None:
        self._stream.close()

    def abandon(self) -> None:
        self._stream.close()


class JsonWriter(JsonLinesWriter):
    """The specification's document; the metadata come last, when the rows are counted."""

    before_row, after_row = ",\n{", "}"

    def __init__(self, path: Path, columns: Sequence[Column], options: WriterOptions) -> None:
        super().__init__(path, columns, options)
        self._stream.write(b'{"data": [')
        self._is_first = True

    def write(self, batch: Any) -> None:
        if batch.num_rows:
            rows = memoryview(self._rows(batch))
            self._stream.write(rows[1:] if self._is_first else rows)
            self._is_first = False

    def close(self, metadata: Mapping[str, str] | None = None) -> None:
        end = "\n]"
        if metadata is not None:
            end += f',\n"metadata": {json.dumps(dict(metadata), ensure_ascii=False)}'
        self._stream.write(f"{end}}}\n".encode())
        self._stream.close()
