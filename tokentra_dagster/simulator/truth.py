"""How much every stream is used, minute by minute: the truth that the simulated providers report.

Pure integer arithmetic on a hash of (stream, hour), so the same question has the same answer in every process and on every
machine. A request count per stream and hour is the base; everything else follows from cumulative requests, so minutes add up
to hours and hours to days exactly, whatever `now` is:

    requests(hour)  = rate x hour of the week x growth x launches x outage x noise
    visible(hour)   = requests(hour), less a late share, or times a provisional factor, until `now` is past its correction
    requests(< m)   = (visible x weight(minutes < m) + offset) // weight(hour)
    units(< m)      = requests(< m) x size of the stream on that day // 1000

All times are whole minutes or hours from `ORIGIN`. Late shares arrive within 51 hours of the hour's end, restated hours are
corrected within 44 hours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

from tokentra_dagster.simulator.organisation import ORIGIN, Organisation, Stream

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

LATE_MINUTES = np.array([150, 430, 1570, 3010], dtype=np.int64)
_OFFICE_DAY = (
    180,
    140,
    120,
    120,
    140,
    220,
    420,
    800,
    1400,
    1900,
    2100,
    2050,
    1800,
    1950,
    2150,
    2100,
    1900,
    1500,
    1050,
    760,
    560,
    420,
    320,
    240,
)
_ALWAYS_DAY = (
    620,
    560,
    520,
    500,
    520,
    600,
    740,
    920,
    1120,
    1260,
    1330,
    1340,
    1300,
    1320,
    1350,
    1340,
    1300,
    1250,
    1190,
    1130,
    1050,
    950,
    830,
    710,
)
_NIGHT_DAY = (3600, 4200, 4400, 3900, 2500, 900, 120, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 120, 260, 500, 1100, 2300)
_WEEKS = {
    "office": (_OFFICE_DAY, (1050, 1120, 1130, 1080, 940, 180, 140)),
    "always": (_ALWAYS_DAY, (1040, 1060, 1060, 1040, 1010, 910, 880)),
    "night": (_NIGHT_DAY, (1000, 1000, 1000, 1000, 1000, 700, 700)),
}
_OUTAGE_PER_MILLE = 15
_NOISE, _ROUND, _GROWTH, _LATE, _RESTATED, _MINUTE, _OFFSET, _SIZE = range(1, 9)


@dataclass(frozen=True, slots=True)
class Adjustment:
    """What a test does to the past: usage of matching streams in `[start, end)` becomes `per_mille` of what it was.

    0 withdraws it. `match` names dimensions with their values; hours are whole.
    """

    organisation: str
    provider: str
    per_mille: int
    match: Mapping[str, Any]
    start: datetime | None = None
    end: datetime | None = None

    def streams(self, streams: Sequence[Stream]) -> list[int]:
        return [i for i, s in enumerate(streams) if all(s.dimensions.get(k) == v for k, v in self.match.items())]


@dataclass(frozen=True, slots=True)
class Table:
    """Streams as arrays, one element each; `sizes` is streams x units."""

    organisation: Organisation
    provider: str
    streams: tuple[Stream, ...]
    units: tuple[str, ...]
    seeds: Hashes
    rates: Ints
    weeks: Ints
    since: Ints
    until: Ints
    sizes: Ints

    @classmethod
    def of(cls, org: Organisation, provider: str, streams: Iterable[Stream]) -> Table:
        found = tuple(streams)
        units = tuple(sorted({unit for stream in found for unit in stream.sizes}))
        weeks = [[d * h // 1000 for d in _WEEKS[s.rhythm][1] for h in _WEEKS[s.rhythm][0]] for s in found]
        return cls(
            organisation=org,
            provider=provider,
            streams=found,
            units=units,
            seeds=np.array([_seed(stream.name) for stream in found], dtype=np.uint64),
            rates=np.array([stream.per_hour for stream in found], dtype=np.int64),
            weeks=np.array(weeks, dtype=np.int64).reshape(len(found), 168),
            since=np.array([stream.since for stream in found], dtype=np.int64),
            until=np.array([stream.until for stream in found], dtype=np.int64),
            sizes=np.array([[s.sizes.get(unit, 0) for unit in units] for s in found], dtype=np.int64).reshape(
                len(found), len(units)
            ),
        )


def of_unit(table: Table, counted: Ints, unit: str) -> Ints:
    """Of counts whose last axis is requests and then the table's units: this unit's, 0 where the table has no such unit."""
    if unit in table.units:
        return counted[..., 1 + table.units.index(unit)]
    nothing: Ints = np.zeros(counted.shape[:-1], dtype=np.int64)
    return nothing


def share(whole: int, count: int, number: int) -> int:
    """The part of request `number` in what `count` requests have together; the first takes what cannot be divided."""
    return whole // count + (whole % count if number == 0 else 0)


def request_id(stream: Stream, minute: int, number: int) -> str:
    """The same in every process: 32 hexadecimal digits."""
    return blake2b(f"{stream.name} {minute} {number}".encode(), digest_size=16).hexdigest()


def minute_of(moment: datetime) -> int:
    """Whole minutes from the origin."""
    return (moment.astimezone(UTC) - ORIGIN) // timedelta(minutes=1)


def iso(moment: datetime) -> str:
    """As JavaScript writes a time: milliseconds and `Z`."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moment_of(minute: int) -> datetime:
    return ORIGIN + timedelta(minutes=minute)


def months(first: datetime, last: datetime) -> Iterator[datetime]:
    """The first midnight of every month from that of `first` to that of `last`."""
    month = first.replace(day=1, hour=0, minute=0)
    while month <= last:
        yield month
        month = next_month(month)


def next_month(month: datetime) -> datetime:
    return (month + timedelta(days=31)).replace(day=1)


def counts(table: Table, edges: Sequence[int] | Ints, now: int, adjustments: Sequence[Adjustment] = ()) -> Ints:
    """streams x (edges - 1) x (1 + units): requests, then each unit, between consecutive edges, as known at `now`.

    Edges are minutes from the origin, increasing. Only minutes that have ended by `now` are counted.
    """
    at = np.minimum(np.asarray(edges, dtype=np.int64), now)
    first = int(at[0]) // 60
    hours = np.arange(first, int(at[-1]) // 60 + 1, dtype=np.int64)
    visible = _visible(table, hours, now, adjustments)
    sizes = _sizes(table, hours)
    whole = _units(visible, sizes)
    before = np.zeros((len(table.streams), len(hours) + 1, whole.shape[2]), dtype=np.int64)
    np.cumsum(whole, axis=1, out=before[:, 1:, :])
    index, minute = at // 60 - first, at % 60
    cumulative = before[:, index, :]
    partial = np.flatnonzero(minute)
    if len(partial):
        where = index[partial]
        part = _within(table, hours[where], minute[partial], visible[:, where])
        cumulative[:, partial, :] += _units(part, sizes[:, where, :])
    difference: Ints = np.diff(cumulative, axis=1)
    return difference


def stored_bytes(table: Table, at: Ints) -> Ints:
    """streams x moments: what vector stores hold, a level that steps up every hour."""
    days = np.maximum(at, 0) // 60
    level: Ints = table.sizes[:, table.units.index("bytes")][:, None] * (24_000 + 2 * days[None, :]) // 24
    alive = (at // 60 >= table.since[:, None]) & (at // 60 < table.until[:, None]) & (at > 0)
    return np.where(alive, level, 0)


# ---- Requests per hour ---------------------------------------------------------------------------------------------


def final_requests(table: Table, hours: Ints) -> Ints:
    """streams x hours, once nothing is restated any more."""
    org = table.organisation
    growth = (
        1000 + (300 + _hash(table.seeds, _GROWTH) % np.uint64(700)).astype(np.int64)[:, None] * np.maximum(hours, 0) // 24_000
    )
    amount = table.rates[:, None] * table.weeks[:, hours % 168] // 1000
    amount = amount * growth // 1000
    amount = amount * _launched(org, table, hours) // 1000
    amount = amount * (700 + _cells(table, hours, _NOISE, 601)) // 1000
    start, every, length = org.outages(table.provider)
    out = (hours >= start) & ((hours - start) % every < length)
    amount = np.where(out[None, :], amount * _OUTAGE_PER_MILLE // 1000, amount)
    requests = (amount + _cells(table, hours, _ROUND, 1000)) // 1000
    alive = (hours[None, :] >= table.since[:, None]) & (hours[None, :] < table.until[:, None]) & (hours >= 0)
    found: Ints = np.where(alive & (table.rates[:, None] > 0), requests, 0)
    return found


def _launched(org: Organisation, table: Table, hours: Ints) -> Ints:
    """Per mille by stream and hour: every launch of its project so far, multiplied."""
    slugs = [project.slug for project in org.projects]
    factors = np.full((len(slugs), len(hours)), 1000, dtype=np.int64)
    for hour, slug, per_mille in org.launches():
        row = factors[slugs.index(slug)]
        row[:] = np.where(hours >= hour, row * per_mille // 1000, row)
    return factors[[slugs.index(stream.project) for stream in table.streams]]


def _visible(table: Table, hours: Ints, now: int, adjustments: Sequence[Adjustment]) -> Ints:
    requests = final_requests(table, hours)
    for adjustment in adjustments:
        if (adjustment.organisation, adjustment.provider) != (table.organisation.name, table.provider):
            continue
        rows = np.zeros(len(table.streams), dtype=bool)
        rows[adjustment.streams(table.streams)] = True
        low = -1 if adjustment.start is None else minute_of(adjustment.start) // 60
        high = 1 << 40 if adjustment.end is None else minute_of(adjustment.end) // 60
        cells = rows[:, None] & ((hours >= low) & (hours < high))[None, :]
        requests = np.where(cells, requests * adjustment.per_mille // 1000, requests)
    age = now - (hours + 1) * 60
    if np.all(age >= max(int(LATE_MINUTES[-1]), 2640)):
        return requests
    draw = _cells(table, hours, _RESTATED, 1 << 30)
    provisional = (draw % 25 == 0) & (age[None, :] < 240 + draw // 25 % 2400)
    requests = np.where(provisional, requests * (850 + draw // 60_000 % 301) // 1000, requests)
    draw = _cells(table, hours, _LATE, 1 << 30)
    missing = (draw % 16 == 0) & (age[None, :] < LATE_MINUTES[draw // 16 % 4])
    visible: Ints = np.where(missing, requests - (requests * (150 + draw // 64 % 300) + 999) // 1000, requests)
    return visible


# ---- Minutes and units ---------------------------------------------------------------------------------------------


def _within(table: Table, hours: Ints, minutes: Ints, visible: Ints) -> Ints:
    """Requests of each hour before its given minute; hours may repeat."""
    distinct, position = np.unique(hours, return_inverse=True)
    all_minutes = distinct[:, None] * 60 + np.arange(60)[None, :]
    weights = 1 + _cells(table, all_minutes.reshape(-1), _MINUTE, 16).reshape(len(table.streams), len(distinct), 60)
    running = np.zeros((len(table.streams), len(distinct), 61), dtype=np.int64)
    np.cumsum(weights, axis=2, out=running[:, :, 1:])
    total = running[:, position, 60]
    # Without the offset a single request would always fall into the last minute.
    offset = _cells(table, hours, _OFFSET, 1 << 30) % total
    part: Ints = (visible * running[:, position, minutes] + offset) // total
    return part


def _sizes(table: Table, hours: Ints) -> Ints:
    """streams x hours x units, in thousandths: each day is up to a tenth larger or smaller."""
    percent = 900 + _cells(table, hours // 24, _SIZE, 201)
    sized: Ints = table.sizes[:, None, :] * percent[:, :, None] // 1000
    return sized


def _units(requests: Ints, sizes: Ints) -> Ints:
    return np.concatenate([requests[:, :, None], requests[:, :, None] * sizes // 1000], axis=2)


# ---- Hashing -------------------------------------------------------------------------------------------------------


def _seed(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def _cells(table: Table, points: Ints, salt: int, modulus: int) -> Ints:
    """streams x points: a number below `modulus` for each."""
    mixed = _hash(table.seeds[:, None] ^ _hash(points.astype(np.uint64), salt)[None, :], salt)
    return ((mixed >> np.uint64(11)) % np.uint64(modulus)).astype(np.int64)


def _hash(value: Hashes, salt: int) -> Hashes:
    """splitmix64; unsigned arithmetic wraps."""
    mixed = value + np.uint64(salt * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result: Hashes = mixed ^ (mixed >> np.uint64(31))
    return result
