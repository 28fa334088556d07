"""Batches as `exports.rows` gives them, from tuples; and a file written of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa

from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.exports.columns import TYPES, Column, schema_of
from tokentra_dagster.exports.request import ExportRequest
from tokentra_dagster.exports.writers import WriterOptions, open_writer

START = datetime(2026, 6, 1, 13, tzinfo=UTC)
PERIOD = Period(datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 7, 1, tzinfo=UTC))
COLUMNS = ExportRequest(
    "acme", PERIOD, granularity="hour", dimensions=("feature",), metrics=("total_tokens", "estimated_cost", "error_rate")
).columns("USD")
"""hour, feature, total_tokens, estimated_cost, error_rate."""
Row = tuple[datetime, str | None, int | None, Decimal | None, float | None]

NASTY = (
    "plain", '=HYPERLINK("http://x","y")', "+1", "-2+3", "@SUM(A1)", "\tx", "\r=x", "a,b", 'say "hi"', "two\nlines", "two\r\nlines",
    "Größe 統計 🎉", " padded ", "'quoted", "nan", "NULL", "1e5", "007", "\\", "<b>&amp;</b>", "", "_x000D_",
)  # fmt: skip
"""Texts that some format or reader takes for something else."""


def rows_of(texts: Sequence[str | None]) -> list[Row]:
    """A row for each text, an hour apart, with all kinds of numbers."""
    numbers: list[tuple[int | None, Decimal | None, float | None]] = [
        (0, Decimal("0"), 0.0), (None, None, None), (2**53 - 1, Decimal("0.000000000001"), 1 / 3), (-5, Decimal("-1234567.891"), 100.0),
        (10**9, Decimal("0.0000001"), 1e-7),
    ]  # fmt: skip
    return [(START + n * timedelta(hours=1), text, *numbers[n % len(numbers)]) for n, text in enumerate(texts)]


def batch_of(rows: Sequence[Row], columns: Sequence[Column] = COLUMNS) -> Any:
    arrays = [
        pa.array([row[place] for row in rows], pa.string() if column.kind == "text" else TYPES[column.kind])
        for place, column in enumerate(columns)
    ]
    arrays = [array.dictionary_encode() if pa.types.is_string(array.type) else array for array in arrays]
    return pa.record_batch(arrays, schema=schema_of(columns))


def written(
    format: str, path: Path, rows: Sequence[Row], batch_size: int = 4, metadata: Mapping[str, str] | None = None, **options: Any
) -> Path:
    """The rows in batches of `batch_size`, raw column names unless told."""
    writer = open_writer(format, path, COLUMNS, WriterOptions(**{"names": "raw", **options}))
    for first in range(0, len(rows), batch_size):
        writer.write(batch_of(rows[first : first + batch_size]))
    writer.close(metadata)
    return path
