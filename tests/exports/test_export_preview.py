"""The first rows of a file, read back from every format and compression there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.exports.export_rows import COLUMNS, NASTY, rows_of, write
from tokentra_dagster.exports.preview import first_rows
from tokentra_dagster.exports.request import COMPRESSIONS

CASES = [(format, compression) for format, known in COMPRESSIONS.items() for compression in known]
