"""Arrow columns as text, whole columns at a time: a value that repeats is rendered once."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What makes a spreadsheet take a text for a formula (OWASP, CSV injection; correction 39)."""


def column_text(column: Any, render: Callable[[str], str], null: str, moment: Callable[[str], str] = str) -> Any:
    """A string array without NULL: texts through `render`, moments as ISO 8601 through `moment`, numbers in plain digits."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        text = _each(column, render)
    elif pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        text = _each(column.dictionary_encode(), lambda value: moment(iso(value)))
    elif pa.types.is_decimal(kind):
        text = plain_decimals(column)
    elif pa.types.is_floating(kind):
        text = doubles(column)
    else:
        text = pc.cast(column, pa.string())
    return pc.fill_null(text, null)


def iso(value: date | datetime) -> str:
    """2026-06-01 or 2026-06-01T13:00:00Z."""
    return value.strftime("%Y-%m-%dT%H:%M:%SZ") if isinstance(value, datetime) else value.isoformat()


def plain_decimals(column: Any) -> Any:
    """Exact, without an exponent and without trailing zeros."""
    text = pc.cast(column, pa.string())
    exponents = pc.match_substring(text, "E")
    if pc.any(exponents).as_py():
        # Arrow writes what is under a millionth, and 0, with an exponent.
        few = [_plain(value) for value in pc.filter(column, pc.fill_null(exponents, False)).to_pylist()]
        text = pc.replace_with_mask(text, pc.fill_null(exponents, False), pa.array(few, pa.string()))
    return pc.utf8_rtrim(pc.utf8_rtrim(text, characters="0"), characters=".") if column.type.scale else text


def doubles(column: Any) -> Any:
    """The fewest digits that give the same double again, as PostgreSQL writes them: with an exponent under 0.0001 and from 10^15 on.

    From 2^53 on PostgreSQL gives some doubles a digit more (it takes no number halfway between two); no rate is that large.
    """
    text = pc.cast(column, pa.string())
    size = pc.abs(column)
    extreme = pc.fill_null(pc.or_(pc.and_(pc.less(size, 1e-4), pc.greater(size, 0.0)), pc.greater_equal(size, 1e9)), False)
    if pc.any(extreme).as_py():
        few = [_double(value) for value in pc.filter(column, extreme).to_pylist()]
        text = pc.replace_with_mask(text, extreme, pa.array(few, pa.string()))
    return text


def neutral(value: str) -> str:
    """The text with an apostrophe before it where a spreadsheet would run it (correction 39)."""
    return f"'{value}" if value.startswith(FORMULA_STARTS) else value


def joined(*parts: Any) -> Any:
    """Row by row one string, as the bytes of all rows one after the other."""
    rows = pc.binary_join_element_wise(*parts, "")
    _, ends, data = rows.buffers()
    return b"" if data is None else memoryview(data)[: memoryview(ends).cast("i")[len(rows)]]


def _plain(value: Decimal) -> str:
    return format(value, "f")


def _double(value: float) -> str:
    if 1.0 <= abs(value) < 1e15:
        return repr(value).removesuffix(".0")
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    first, *others = map(str, digits)
    mantissa = f"{first}.{''.join(others)}" if others else first
    return f"{'-' if sign else ''}{mantissa}e{int(exponent) + len(others):+03d}"


def _each(column: Any, render: Callable[[Any], str]) -> Any:
    values = pa.array([None if value is None else render(value) for value in column.dictionary.to_pylist()], pa.string())
    return pc.take(values, column.indices)
