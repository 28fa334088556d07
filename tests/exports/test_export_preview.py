"""The first rows of a file, read back from every format and compression there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.exports.export_rows import COLUMNS, rows_of, written
from tokentra_dagster.exports.preview import first_rows
from tokentra_dagster.exports.request import COMPRESSIONS

CASES = [(format, compression) for format, known in COMPRESSIONS.items() for compression in known]
TEXTS = ("plain", "a,b", "two\nlines", "Größe 統計 🎉", 'say "hi"', None)


@pytest.mark.parametrize(("format", "compression"), CASES)
def test_the_first_rows_are_those_that_were_written(tmp_path: Path, format: str, compression: str):
    path = written(format, tmp_path / f"file.{format}", rows_of(TEXTS), metadata={"Total Rows": "6"}, compression=compression)
    titles, rows = first_rows(path, format, compression, 4)
    assert titles == [column.name for column in COLUMNS] and len(rows) == 4
    assert [str(row[1]).replace("\r\n", "\n") for row in rows] == list(TEXTS[:4])
    assert str(rows[0][2]) == "0" and "2026-06-01" in str(rows[0][0])
    assert len(first_rows(path, format, compression, 100)[1]) == len(TEXTS)


@pytest.mark.parametrize(("format", "compression"), CASES)
def test_a_file_without_rows_has_none(tmp_path: Path, format: str, compression: str):
    path = written(format, tmp_path / f"file.{format}", [], compression=compression)
    titles, rows = first_rows(path, format, compression)
    assert rows == [] and (titles == [] if format.startswith("json") else len(titles) == len(COLUMNS))
