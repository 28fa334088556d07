"""Text from files as numbers and times, a column at a time, with a reason for every value that is neither.

Each kind has a fast way over whole columns and a careful one for a value at a time; a column is halved until the part
that the fast way refuses is small. Both ways agree: the fast one refuses whatever the careful one would read differently.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation, Overflow
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc

from tokentra_dagster.batch import MONEY, TIMESTAMP

Problems = dict[int, tuple[str, str]]
"""Row -> its value as shown to a person, and what is wrong with it ("is not a number")."""

EXACT = Context(prec=80, rounding=ROUND_HALF_EVEN)
LARGEST_COUNT = 10**15
LARGEST_AMOUNT = Decimal(10**12)
EARLIEST = datetime(2015, 1, 1, tzinfo=UTC)
LATEST = datetime(2050, 1, 1, tzinfo=UTC)
ARROW_ZONES_END = datetime(2037, 1, 1)
"""Arrow knows no change of clocks after the last one that zone files list; Python's zoneinfo does."""
_SMALL = 256
_NOTHING = frozenset(("", "null", "none", "nan", "n/a", "na", "\\n"))
_DIGITS = re.compile(r"^\d{9,19}(\.\d+)?$")


class NotThis(ValueError):
    """A value that is not of its kind; the message completes "the value ..."."""


def counts(column: pa.Array, *, rounded: bool = False) -> tuple[pa.Array, Problems]:
    """Whole numbers as int64; a fraction is refused, or rounded half to even where the quantity is not a count."""
    return _convert(column, pa.int64(), _fast_counts, lambda text: _count(number(text), rounded))


def amounts(column: pa.Array) -> tuple[pa.Array, Problems]:
    """Decimals of at most 12 places (more are rounded half to even)."""
    return _convert(column, MONEY, _no_fast_way, lambda text: _amount(number(text)))


def products(columns: list[pa.Array], factor: Decimal, *, money: bool = False) -> tuple[pa.Array, Problems]:
    """The exact product of the columns and the factor, rounded half to even; NULL where a column is."""
    problems: Problems = {}
    values: list[Any] = []
    finish: Callable[[Decimal | None], Any] = _amount if money else _rounded
    known: dict[str, Decimal | None] = {}
    for row, texts in enumerate(zip(*(column.to_pylist() for column in columns), strict=True)):
        value: Decimal | None = factor
        try:
            for text in texts:
                if text is None:
                    value = None
                    break
                part = known.get(text)
                if part is None:
                    part = number(text)
                    if len(known) < 4096 and part is not None:
                        known[text] = part
                if part is None:
                    value = None
                    break
                value = EXACT.multiply(value, part)  # type: ignore[arg-type]
            values.append(None if value is None else finish(value))
        except NotThis as problem:
            values.append(None)
            problems[row] = (_shown(" * ".join(map(str, texts))), str(problem))
    return pa.array(values, MONEY if money else pa.int64()), problems


def times(column: pa.Array, zone: ZoneInfo) -> tuple[pa.Array, Problems]:
    """Microseconds UTC (finer digits are cut); times without a zone are in `zone`; whole or decimal epochs too."""
    return _convert(column, TIMESTAMP, lambda part: _fast_times(part, zone), lambda text: moment(text, zone))


def words(column: pa.Array) -> pa.Array:
    """Text without blanks around it; what is then empty is NULL."""
    trimmed = pc.utf8_trim_whitespace(column)
    return pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)


def mapped(column: pa.Array, function: Callable[[str], Any], kind: pa.DataType) -> pa.Array:
    """`function` of each value, called once for each distinct one; NULL stays NULL."""
    encoded = column.dictionary_encode()
    return pa.array([function(value) for value in encoded.dictionary.to_pylist()], kind).take(encoded.indices)


def number(text: str) -> Decimal | None:
    """A finite decimal; `None` for the usual spellings of nothing. Raises `NotThis`."""
    stripped = text.strip()
    if stripped.lower() in _NOTHING:
        return None
    try:
        value = EXACT.create_decimal(stripped) if "_" not in stripped else Decimal("NaN")
    except InvalidOperation:
        raise NotThis("is not a number") from None
    except Overflow:
        raise NotThis("is too large") from None
    if not value.is_finite():
        raise NotThis("is not a number")
    if value and value.adjusted() > 30:
        raise NotThis("is too large")
    return value


def _count(value: Decimal | None, rounded: bool) -> int | None:
    if value is None:
        return None
    whole = value.to_integral_value(ROUND_HALF_EVEN)
    if whole != value and not rounded:
        raise NotThis("is not a whole number")
    if whole < 0:
        raise NotThis("is negative; a count cannot be")
    if whole > LARGEST_COUNT:
        raise NotThis(f"is too large; at most {LARGEST_COUNT:,} is allowed")
    return int(whole)


def _rounded(value: Decimal | None) -> int | None:
    return _count(value, True)


def _amount(value: Decimal | None) -> Decimal | None:
    if value is None:
        return None
    if abs(value) >= LARGEST_AMOUNT:
        raise NotThis(f"is too large; less than {LARGEST_AMOUNT:,} is allowed")
    return value.quantize(Decimal("1e-12"), context=EXACT)


def moment(text: str, zone: ZoneInfo) -> datetime | None:
    """One time, careful way. Raises `NotThis`."""
    stripped = text.strip()
    if stripped.lower() in _NOTHING:
        return None
    if _DIGITS.match(stripped):
        return _bounded(_from_epoch(stripped))
    try:
        parsed = datetime.fromisoformat(re.sub(r"\s*(?:UTC|GMT)$", "Z", re.sub(r"\s+(?=[+-]\d\d)", "", stripped)))
    except ValueError:
        raise NotThis("is not a time; write 2026-06-01T12:00:00Z, 2026-06-01 12:00:00 or an epoch number") from None
    if parsed.tzinfo is None:
        first, second = (parsed.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
        if first != second:
            there = first.astimezone(zone).replace(tzinfo=None) == parsed.replace(fold=0)
            why = "happened twice" if there else "never happened"
            raise NotThis(f"{why} in {zone.key} (a change of clocks); give times in UTC or with their offset")
        return _bounded(first)
    return _bounded(parsed.astimezone(UTC))


def _from_epoch(digits: str) -> datetime:
    micro = int(Decimal(digits) * _epoch_scale(len(digits.partition(".")[0])))
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micro)


def _epoch_scale(length: int) -> Decimal:
    """Microseconds per unit: seconds have up to 11 digits, milliseconds 14, microseconds 17, nanoseconds more."""
    return Decimal(1_000_000 if length <= 11 else 1_000 if length <= 14 else 1) if length <= 17 else Decimal("0.001")


def _bounded(value: datetime) -> datetime:
    if not EARLIEST <= value < LATEST:
        raise NotThis(f"is not between {EARLIEST:%Y-%m-%d} and {LATEST:%Y-%m-%d}")
    return value


def _convert(
    column: pa.Array, kind: pa.DataType, fast: Callable[[pa.Array], pa.Array], slow: Callable[[str], Any]
) -> tuple[pa.Array, Problems]:
    try:
        return fast(column), {}
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, NotThis):
        pass
    if len(column) > _SMALL and fast is not _no_fast_way:
        half = len(column) // 2
        (left, wrong), (right, wrong_too) = (_convert(part, kind, fast, slow) for part in (column[:half], column[half:]))
        return pa.concat_arrays([left, right]), {**wrong, **{row + half: reason for row, reason in wrong_too.items()}}
    values: list[Any] = []
    problems: Problems = {}
    seen: dict[str, Any] = {}
    for row, text in enumerate(column.to_pylist()):
        try:
            if text is not None and text not in seen:
                seen[text] = slow(text)
            values.append(None if text is None else seen[text])
        except (NotThis, OverflowError) as problem:
            values.append(None)
            problems[row] = (_shown(text), str(problem))
    return pa.array(values, kind), problems


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _no_fast_way(column: pa.Array) -> pa.Array:
    if column.null_count == len(column):
        return column.cast(MONEY)
    raise NotThis


def _fast_counts(column: pa.Array) -> pa.Array:
    whole = column.cast(pa.int64())
    if column.null_count < len(column):
        bounds = pc.min_max(whole).as_py()
        # Arrow reads 0x1F too; the careful way does not.
        if bounds["min"] < 0 or bounds["max"] > LARGEST_COUNT or pc.any(pc.match_substring_regex(column, "[xX]")).as_py():
            raise NotThis
    return whole


def _fast_times(column: pa.Array, zone: ZoneInfo) -> pa.Array:
    if column.null_count == len(column):
        return pa.nulls(len(column), TIMESTAMP)
    sample = column.drop_null()[0].as_py()
    if _DIGITS.match(sample):
        moments = _fast_epochs(column)
    elif re.search(r"(Z|[+-]\d\d(:?\d\d)?)$", sample[10:]):
        moments = column.cast(pa.timestamp("ns", "UTC")).cast(TIMESTAMP, safe=False)
    else:
        local = column.cast(pa.timestamp("ns")).cast(pa.timestamp("us"), safe=False)
        moments = _in_zone(local, zone)
    bounds = pc.min_max(moments).as_py()
    if bounds["min"] < EARLIEST or bounds["max"] >= LATEST:
        raise NotThis
    return moments


def _fast_epochs(column: pa.Array) -> pa.Array:
    whole = column.cast(pa.int64())
    lengths = {len(str(value)) for value in pc.min_max(whole).as_py().values()}
    scales = {_epoch_scale(length) for length in lengths}
    if min(lengths) < 9 or len(scales) > 1:
        raise NotThis
    scale = scales.pop()
    micro = pc.multiply_checked(whole, int(scale)) if scale >= 1 else pc.divide(whole, 1000)
    return micro.cast(TIMESTAMP)


def _in_zone(local: pa.Array, zone: ZoneInfo) -> pa.Array:
    if zone.key == "UTC":
        return local.cast(pa.int64()).cast(TIMESTAMP)
    if pc.max(local).as_py() >= ARROW_ZONES_END:
        raise NotThis
    early, ambiguous, missing = (
        pc.assume_timezone(local, zone.key, ambiguous=a, nonexistent=n).cast(TIMESTAMP)
        for a, n in (("earliest", "earliest"), ("latest", "earliest"), ("earliest", "latest"))
    )
    if not (early.equals(ambiguous) and early.equals(missing)):
        raise NotThis
    return early
