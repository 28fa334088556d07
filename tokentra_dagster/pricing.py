"""Usage to money: what each row of a batch cost, with where the figure comes from (correction 44).

The source's own figure is `actual`; else the price list of the bucket's UTC day gives an `estimate`; what has no known
price is `unpriced` with a NULL cost, never zero. Zero tokens at a known price cost 0; zero tokens with another quantity
(images, seconds, sessions) are unpriced. Estimates are in USD, so a row in another currency needs a reported cost.

Long prompts: the list's tiers are per request. A row of exactly one request pays the tier of its input tokens; any other
row (a bucket, or an unknown number of requests) pays the base tier unless `context_window` says which one holds.

Cache reads and writes, one-hour writes, audio, image and video tokens (`token_details`) and web searches (`metadata`) are
priced where the list prices them apart, else with the input or output they are part of, as `genai_prices.calc_price`
does. Details that contradict the totals leave a row unpriced, and so does a count that a file did not give
(`tokens_unknown` in `metadata`: the columns hold 0 there because they cannot hold NULL).

Columnar: prices become integer coefficients per distinct (model, terms, price segment), rows are multiplied in numpy.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from tokentra_dagster.batch import MONEY
from tokentra_dagster.price_list import JOINS, PICO, UNITS, Rates, Terms, change_days, rates

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

LARGEST = 10**12
"""Dollars: a row that would cost as much or more cannot be right, and does not fit the column; it is unpriced."""
_SAFE = float(2**62)
_NAMES = tuple(UNITS)
_DETAILS = {
    "cache_write_1h": "cache_write_1h_tokens",
    "input_audio": "input_audio_tokens",
    "cached_audio": "cache_audio_read_tokens",
    "output_audio": "output_audio_tokens",
    "input_image": "input_image_tokens",
    "cached_image": "cache_image_read_tokens",
    "output_image": "output_image_tokens",
    "input_video": "input_video_tokens",
    "output_video": "output_video_tokens",
}
_FURTHER = ("speed", "inference_geo")
_WINDOW = re.compile(r"^(\d+)(k|m)?-(\d+)(k|m)?$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PricedColumns:
    """One value per row: dollars (decimal128(38, 12), NULL if unpriced), `actual`, `estimate` or `unpriced`, and the
    price's provenance (`reported`, or package, version, entry and start date; NULL if unpriced)."""

    cost: pa.Array
    basis: pa.Array
    source: pa.Array


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows that share model, terms, price segment and context window."""

    rates: Rates | None
    level: int


def price_batch(batch: pa.RecordBatch, provider: str) -> PricedColumns:
    """Price a batch of `USAGE_SCHEMA` from one provider; rows keep their order."""
    reported = batch.column("reported_cost")
    if batch.num_rows == 0 or reported.null_count == 0:
        return _columns(reported, pa.nulls(batch.num_rows, MONEY), pa.nulls(batch.num_rows, pa.string()))
    counts, unknown = _counts(batch)
    groups, of_row = _groups(batch, provider)
    level = _levels(batch, groups, of_row, counts)
    known = _known(batch, groups, of_row, counts, unknown)
    coefficients = _coefficients(groups)
    cost = _multiply(coefficients, of_row, level, counts, known)
    steps = range(coefficients.shape[1])
    named = [g.rates.source_at(i) if g.rates and i < len(g.rates.levels) else None for g in groups for i in steps]
    sources = pa.array(named, pa.string())
    source = sources.take(pa.array(of_row * coefficients.shape[1] + level))
    return _columns(reported, cost, source)


def _columns(reported: pa.Array, estimate: pa.Array, source: pa.Array) -> PricedColumns:
    cost = pc.coalesce(reported, estimate)
    actual, priced = pc.is_valid(reported), pc.is_valid(cost)
    basis = pc.if_else(actual, pa.scalar("actual"), pc.if_else(priced, pa.scalar("estimate"), pa.scalar("unpriced")))
    text = pa.scalar(None, pa.string())
    return PricedColumns(cost, basis, pc.if_else(actual, pa.scalar("reported"), pc.if_else(priced, source, text)))


def _ints(column: pa.Array) -> Ints:
    filled: Ints = pc.fill_null(column, 0).to_numpy(zero_copy_only=False)
    return filled


def _mask(column: pa.Array) -> Bools:
    mask: Bools = column.to_numpy(zero_copy_only=False).astype(bool)
    return mask


def _counts(batch: pa.RecordBatch) -> tuple[dict[str, Ints], dict[str, Bools]]:
    """How many of each unit; units that no row has are left out. And, for parts of parts, the rows that do not say."""
    counts = {
        "input_tokens": _ints(batch.column("input_tokens")),
        "output_tokens": _ints(batch.column("output_tokens")),
    }
    for name, unit in (("cached_input_tokens", "cache_read_tokens"), ("cache_creation_tokens", "cache_write_tokens")):
        if batch.column(name).null_count < batch.num_rows:
            counts[unit] = _ints(batch.column(name))
    details = _details(batch.column("token_details"))
    unknown: dict[str, Bools] = {}
    for name, unit in _DETAILS.items():
        column = details[name] if details is not None else None
        if column is not None and column.null_count < batch.num_rows:
            counts[unit] = _ints(column)
            unknown[unit] = _mask(pc.is_null(column))
    searches = _extracted(batch.column("metadata"), "web_search_requests", r"\d{1,15}")
    if searches is not None:
        counts["web_searches"] = _ints(pc.cast(searches, pa.int64()))
    return counts, unknown


def _details(column: pa.Array) -> pa.Table | None:
    """The token details that matter to prices, parsed in one go."""
    if column.null_count == len(column):
        return None
    lines = pc.fill_null(column, "{}")
    text = "\n".join(line.replace("\n", " ") for line in lines.to_pylist()).encode()
    schema = pa.schema([(name, pa.int64()) for name in _DETAILS])
    options = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    reading = pyarrow.json.ReadOptions(block_size=max(len(text) + 1, 1 << 20))
    table = pyarrow.json.read_json(pa.BufferReader(text), reading, options)
    return table.combine_chunks()


def _extracted(column: pa.Array, name: str, pattern: str) -> pa.Array | None:
    """A top-level value of JSON text, for the rows that have it; `None` where no row has."""
    if column.null_count == len(column) or not pc.any(pc.match_substring(column, f'"{name}"')).as_py():
        return None
    return pc.struct_field(pc.extract_regex(column, f'"{name}": ?"?(?P<value>{pattern})"?'), [0])


def _groups(batch: pa.RecordBatch, provider: str) -> tuple[list[_Group], Ints]:
    """The distinct combinations that decide a price, and each row's."""
    days = change_days(provider)
    moments = batch.column("bucket_start").cast(pa.int64())
    row_days = np.floor_divide(_ints(moments), 86_400_000_000)
    first = np.array([(day - date(1970, 1, 1)).days for day in days], dtype=np.int64)
    segment = np.searchsorted(first, row_days, side="right")
    names = [batch.column(name) for name in ("model", "service_type", "service_tier", "context_window")]
    names += [_extracted(batch.column("metadata"), name, '[^"]*') for name in _FURTHER]
    code = segment.astype(np.int64)
    values: list[list[str | None]] = []
    for column in names:
        encoded = None if column is None or column.null_count == len(column) else column.dictionary_encode(null_encoding="encode")
        values.append([None] if encoded is None else encoded.dictionary.to_pylist())
        if encoded is not None:
            code = code * len(values[-1]) + encoded.indices.to_numpy(zero_copy_only=False)
    distinct, of_row = np.unique(code, return_inverse=True)
    groups = []
    for number in distinct.tolist():
        chosen: list[str | None] = []
        for options in reversed(values):
            number, position = divmod(number, len(options))
            chosen.append(options[position])
        geo, speed, window, tier, kind, model = chosen
        day = days[number - 1] if number else (days[0] - timedelta(days=1) if days else date(1970, 1, 1))
        found = rates(provider, model, day, Terms(kind, tier, speed, geo)) if model else None
        groups.append(_Group(found, _level_of(window, found.starts) if found else -1))
    return groups, of_row.astype(np.int64).reshape(-1)


def _level_of(window: str | None, starts: Sequence[int]) -> int:
    """The level that the provider's own words for the prompt's length mean; -1 where they do not tell."""
    match = _WINDOW.match(window or "")
    if not match:
        return -1
    scale = {"k": 1_000, "m": 1_000_000}
    low, high = (int(match[i]) * scale.get((match[i + 1] or "").lower(), 1) for i in (1, 3))
    if any(low < start < high for start in starts):
        return -1
    return sum(1 for start in starts if start <= low and low > 0)


def _levels(batch: pa.RecordBatch, groups: Sequence[_Group], of_row: Ints, counts: dict[str, Ints]) -> Ints:
    said = np.array([group.level for group in groups], dtype=np.int64)[of_row]
    level = np.maximum(said, 0)
    most = max((len(group.rates.starts) for group in groups if group.rates), default=0)
    if most == 0:
        return level
    starts = np.full((len(groups), most), np.iinfo(np.int64).max, dtype=np.int64)
    for number, group in enumerate(groups):
        if group.rates:
            starts[number, : len(group.rates.starts)] = group.rates.starts
    alone = (said < 0) & (_ints(batch.column("request_count")) == 1)
    reached = sum((counts["input_tokens"] > starts[of_row, i]).astype(np.int64) for i in range(most))
    return np.where(alone, reached, level)


def _known(
    batch: pa.RecordBatch, groups: Sequence[_Group], of_row: Ints, counts: dict[str, Ints], unknown: dict[str, Bools]
) -> Bools:
    """The rows whose price can be computed."""
    structures = [frozenset(group.rates.levels[0]) if group.rates and not group.rates.is_free else None for group in groups]
    has_price = np.array([group.rates is not None for group in groups], dtype=bool)[of_row]
    dollars = _mask(pc.fill_null(pc.equal(pc.utf8_upper(batch.column("currency")), "USD"), True))
    tokens = (counts["input_tokens"] > 0) | (counts["output_tokens"] > 0)
    told = _mask(pc.and_(pc.is_valid(batch.column("input_tokens")), pc.is_valid(batch.column("output_tokens"))))
    metadata = pc.fill_null(batch.column("metadata"), "")
    told &= ~_mask(pc.match_substring(metadata, '"tokens_unknown"'))
    known = has_price & dollars & told & (tokens | _mask(pc.is_null(batch.column("quantity"))))
    for part in unknown:
        for whole in (name for name in _NAMES if UNITS[name][2] < UNITS[part][2]):
            known &= counts[part] <= counts.get(whole, 0)
    for structure in set(structures) - {None}:
        assert structure is not None
        mine = np.array([candidate == structure for candidate in structures], dtype=bool)[of_row]
        for direction in ("input_tokens", "output_tokens"):
            if direction not in structure:
                known &= ~mine | (counts[direction] == 0)
        for leaf in _leaves(structure).values():
            parts = [weight * counts[unit] for unit, weight in leaf.items() if unit in counts]
            if len(parts) != 1 or any(weight < 0 for unit, weight in leaf.items() if unit in counts):
                known &= ~mine | (np.sum(parts, axis=0) >= 0)
        for part, whole, other in JOINS:
            if part in structure and whole in counts and other in counts:
                silent = unknown.get(part, np.True_)
                known &= ~(mine & silent & (counts[whole] > 0) & (counts[other] > 0))
    return known


def _leaves(priced: frozenset[str]) -> dict[str, dict[str, int]]:
    """For each priced unit, what is left of it once the priced units inside it are taken out: weights of the counts."""
    leaves: dict[str, dict[str, int]] = {}
    for unit in sorted(priced, key=lambda name: (-len(UNITS[name][2]), name)):
        left = {unit: 1}
        for inner, leaf in leaves.items():
            if UNITS[unit][2] < UNITS[inner][2]:
                for name, weight in leaf.items():
                    left[name] = left.get(name, 0) - weight
        leaves[unit] = {name: weight for name, weight in left.items() if weight}
    return leaves


def _coefficients(groups: Sequence[_Group]) -> Ints:
    """[group, level, unit]: pico-dollars by which one more of a unit changes the cost, the units that contain it unchanged."""
    levels = max((len(group.rates.levels) for group in groups if group.rates), default=1)
    table = np.zeros((len(groups), levels, len(_NAMES)), dtype=np.int64)
    for number, group in enumerate(groups):
        for level, prices in enumerate(group.rates.levels if group.rates else ()):
            for unit, leaf in _leaves(frozenset(prices)).items():
                for name, weight in leaf.items():
                    table[number, level, _NAMES.index(name)] += weight * prices[unit]
    return table


def _multiply(coefficients: Ints, of_row: Ints, level: Ints, counts: dict[str, Ints], known: Bools) -> pa.Array:
    """The cost of each row as decimals; in 64-bit integers where they are certain to hold it, else in Python's."""
    rows = len(of_row)
    cell = of_row * coefficients.shape[1] + level
    total = np.zeros(rows, dtype=np.int64)
    bound = np.zeros(rows, dtype=np.float64)
    for name, count in counts.items():
        price = coefficients[:, :, _NAMES.index(name)].reshape(-1)
        if price.any():
            each = price[cell]
            total += each * count
            bound += np.abs(each.astype(np.float64) * count)
    words = np.empty((rows, 2), dtype=np.int64)
    words[:, 0] = total
    words[:, 1] = total >> 63
    valid = known.copy()
    for row in np.flatnonzero((bound > _SAFE) & known).tolist():
        group, step = divmod(int(cell[row]), coefficients.shape[1])
        exact = sum(int(coefficients[group, step, _NAMES.index(name)]) * int(count[row]) for name, count in counts.items())
        valid[row] = 0 <= exact < LARGEST * PICO
        words[row] = np.frombuffer((exact if valid[row] else 0).to_bytes(16, "little", signed=True), dtype=np.int64)
    validity = pa.py_buffer(np.packbits(valid, bitorder="little"))
    return pa.Array.from_buffers(MONEY, rows, [validity, pa.py_buffer(words)])
