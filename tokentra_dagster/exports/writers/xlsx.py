"""A workbook as the specification draws it: bold shaded header, filter, frozen first row, number formats; sheets follow each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import xlsxwriter
from xlsxwriter.exceptions import FileCreateError

from tokentra_dagster.exports.columns import Column, Kind
from tokentra_dagster.exports.text import FORMULA_STARTS
from tokentra_dagster.exports.writers import WriterOptions

NUMBER_FORMATS: dict[Kind, str] = {
    "count": "#,##0",
    "money": "#,##0.0000",
    "ratio": "0.00",
    "date": "yyyy-mm-dd",
    "time": "yyyy-mm-dd hh:mm",
}
LONGEST_TEXT = 32_767
DAYS_TO_1970 = 25_569
MICROSECONDS_A_DAY = 86_400_000_000
SHEET = "Usage Data"
METADATA_SHEET = "Export Metadata"


class XlsxWriter:
    """Keeps one row in memory. A spreadsheet knows no time zones: moments are UTC, as the headers say."""

    def __init__(self, path: Path, columns: Sequence[Column], options: WriterOptions) -> None:
        self._book = xlsxwriter.Workbook(
            str(path), {"constant_memory": True, "tmpdir": str(path.parent), "strings_to_formulas": False, "use_zip64": True}
        )
        self._columns, self._options = columns, options
        self._header = self._book.add_format({"bold": True, "bg_color": "#E0E0E0"})
        self._bold = self._book.add_format({"bold": True})
        # Excel marks such a text itself when somebody types an apostrophe before it, and never runs it.
        self._text_only = self._book.add_format({"quote_prefix": True})
        self._formats = {kind: self._book.add_format({"num_format": form}) for kind, form in NUMBER_FORMATS.items()}
        self._sheets = 0
        self._begin_sheet()

    def write(self, batch: Any) -> None:
        columns = [cells(column) for column in batch.columns]
        done = 0
        while done < batch.num_rows:
            if self._row == self._options.sheet_rows:
                self._end_sheet()
                self._begin_sheet()
            count = min(batch.num_rows - done, self._options.sheet_rows - self._row)
            self._rows([column[done : done + count] for column in columns])
            done += count

    def close(self, metadata: Mapping[str, str] | None = None) -> None:
        self._end_sheet()
        if metadata is not None:
            sheet = self._book.add_worksheet(METADATA_SHEET)
            sheet.set_column(0, 0, 25)
            sheet.set_column(1, 1, 50)
            for row, (name, value) in enumerate([("Property", "Value"), *metadata.items()]):
                form = self._bold if row == 0 else self._text_only if value.startswith(FORMULA_STARTS) else None
                sheet.write_string(row, 0, name, self._bold if row == 0 else None)
                sheet.write_string(row, 1, value[:LONGEST_TEXT], form)
        try:
            self._book.close()
        except FileCreateError as error:
            # The library's own error around the system's, which says what is wrong and which callers know.
            raise (error.args[0] if isinstance(error.args[0], OSError) else error) from None

    def abandon(self) -> None:
        """The library has no way to give up; its temporary files end with the workbook."""
        self._book.close()

    def _begin_sheet(self) -> None:
        self._sheets += 1
        self._sheet = self._book.add_worksheet(SHEET if self._sheets == 1 else f"{SHEET} {self._sheets}")
        self._sheet.freeze_panes(1, 0)
        for place, column in enumerate(self._columns):
            title = column.title(self._options.names)
            self._sheet.set_column(place, place, max(len(title) + 3, 15))
            self._sheet.write_string(0, place, title, self._header)
        self._row = 1

    def _end_sheet(self) -> None:
        self._sheet.autofilter(0, 0, self._row - 1, len(self._columns) - 1)

    def _rows(self, columns: Sequence[Sequence[Any]]) -> None:
        writers: list[tuple[int, Callable[..., Any], Any]] = [
            (place, self._write_text if column.kind == "text" else self._sheet.write_number, self._formats.get(column.kind))
            for place, column in enumerate(self._columns)
        ]
        row = self._row
        for values in zip(*columns, strict=True):
            for (place, write, form), value in zip(writers, values, strict=True):
                if value is not None:
                    write(row, place, value, form)
            row += 1
        self._row = row

    def _write_text(self, row: int, place: int, value: str, form: Any) -> None:
        self._sheet.write_string(row, place, value, self._text_only if value.startswith(FORMULA_STARTS) else form)


def cells(column: Any) -> list[Any]:
    """A column's values as a spreadsheet holds them: numbers are doubles there, moments days since 1900, a text has an end."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        texts = [value and shortened(value) for value in column.dictionary.to_pylist()]
        return [None if index is None else texts[index] for index in column.indices.to_pylist()]
    if pa.types.is_date(kind):
        return list(pc.add(pc.cast(column, pa.int32()), DAYS_TO_1970).to_pylist())
    if pa.types.is_timestamp(kind):
        days = pc.divide(pc.cast(pc.cast(column, pa.int64()), pa.float64()), float(MICROSECONDS_A_DAY))
        return list(pc.add(days, float(DAYS_TO_1970)).to_pylist())
    return list(pc.cast(column, pa.float64()).to_pylist() if pa.types.is_decimal(kind) else column.to_pylist())


def shortened(value: str) -> str:
    """A cell holds 32,767 characters; the library would leave a longer text out without a word."""
    return value if len(value) <= LONGEST_TEXT else value[: LONGEST_TEXT - 1] + "…"
