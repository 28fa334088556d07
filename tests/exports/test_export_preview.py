"""The first rows of a file, read back from every format and compression there is."""

from __future__ import annotations

from tokentra_dagster.exports.request import COMPRESSIONS

CASES = [(format, compression) for format, known in COMPRESSIONS.items() for compression in known]
