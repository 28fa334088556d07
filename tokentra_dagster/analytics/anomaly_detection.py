"""What a bucket should have held, and whether it fell outside: rhythm times recent level, with a robust band. Arrays only.

    expected = level x share of the hour of the week (or of the weekday)
    distance = ln((actual + c) / (expected + c)), in robust spreads of the same hour of the day

The share is the median over past weeks of actual / level at that time, so that growth and steps of the level leave it alone. The
level follows what was used lately; a bucket outside the band moves it no further than the band's edge, until so many of them come
together that the new level is taken for real. The spread is the median absolute distance of past buckets; a series that is often far
off gets a wider band from its own 99th percentile, and a bucket of few requests one from the chance in their number. Every bucket is
judged by what came before it only, so an answer does not change when more days are added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.int8]
MAD_TO_SIGMA = 1.4826


@dataclass(frozen=True, slots=True)
class Rule:
    """How buckets of one width are judged. Counts of buckets unless named otherwise."""

    season: int
    """One week: 168 hours or 7 days."""
    groups: int
    """Buckets share a spread with those of the same place in every run of `groups`: 24 for hours, 1 for days."""
    minimum_seasons: int
    """Whole weeks of history before the first bucket is judged."""
    memory: int
    """Weeks that the rhythm and the spread are taken from."""
    half_life: float
    """Of the level, in average buckets: a quiet night or weekend hardly ages it."""
    threshold: float
    """Robust spreads that a bucket may be away."""
    tail: float
    """How many times its own extreme quantile a bucket must be away."""
    tail_quantile: float
    relative: float
    """A deviation below this share of the expectation never counts."""
    of_level: float
    """Nor one below this share of the series's average bucket."""
    count_spreads: float
    """Nor one below so many spreads of a count: an hour of a few large requests has more or fewer of them by chance alone."""
    shift_after: int
    """So many buckets out of the band in one run are a new level,"""
    shift_span: int
    """if the run has lasted so long, quiet buckets counted."""
    gap: int
    """Two runs of the same direction with no more unremarkable buckets between them are one anomaly."""
    return_within: int
    """A level that goes back to what it was within so many buckets of a shift is nothing new."""
    recurrence: tuple[tuple[int, ...], ...]
    """A bucket is nothing new if all buckets at the distances of one group were found out of the band in the same direction."""


HOURLY = Rule(168, 24, 2, 6, 48.0, 5.5, 1.5, 0.99, 0.35, 0.35, 4.0, 12, 24, 2, 168, ((24, 48), (168,)))
DAILY = Rule(7, 1, 3, 8, 4.0, 5.5, 1.3, 0.97, 0.25, 0.25, 4.0, 3, 3, 0, 14, ((7,),))


@dataclass(frozen=True, slots=True)
class Judgement:
    """Series x buckets. NaN (0 for flags) where a bucket is not judged: before the minimum history, or unknown."""

    expected: Floats
    lower: Floats
    upper: Floats
    score: Floats
    """Signed distance in robust spreads."""
    flags: Flags
    """1 above the band, -1 below."""
    runs: npt.NDArray[np.int64]
    """The number of the run that a flagged bucket belongs to, counted within its series; -1 where nothing is flagged."""
    shifts: npt.NDArray[np.bool_]
    """True at the first bucket of a run that was taken for a new level."""


def first_known(values: Floats) -> npt.NDArray[np.int64]:
    """The first bucket of each series that is not NaN; the number of buckets where there is none."""
    known = ~np.isnan(values)
    found: npt.NDArray[np.int64] = np.where(known.any(axis=1), known.argmax(axis=1), values.shape[1])
    return found


def judge(values: Floats, rule: Rule, minimum: Floats, sizes: Floats | None = None) -> Judgement:
    """Judge every bucket. `values`: series x buckets, NaN before a series's first usage and where it is unknown; `minimum`: one
    value per series, the smallest absolute deviation that counts; `sizes`: of what one request adds to a bucket, as `values`; without
    them nothing is said about chance in small counts."""
    count, buckets = values.shape
    first = first_known(values)
    # Each series begins with its own first usage, so that its weeks are whole.
    places = first[:, None] + np.arange(buckets)[None, :]
    inside = places < buckets
    weeks = -(-buckets // rule.season)

    def aligned(source: Floats) -> Floats:
        padded = np.full((count, weeks * rule.season), np.nan)
        padded[:, :buckets] = np.where(inside, np.take_along_axis(source, np.minimum(places, buckets - 1), axis=1), np.nan)
        return padded

    state = _Judge(aligned(values), rule, minimum, np.nan_to_num(aligned(np.zeros_like(values) if sizes is None else sizes)))
    for week in range(weeks):
        state.week(week)

    def back(found: npt.NDArray[Any], empty: float) -> Floats:
        source = np.arange(buckets)[None, :] - first[:, None]
        result: Floats = np.where(source >= 0, np.take_along_axis(found, np.maximum(source, 0), axis=1), empty)
        return result

    return Judgement(
        back(state.expected, np.nan), back(state.lower, np.nan), back(state.upper, np.nan), back(state.score, np.nan),
        back(state.flags, 0).astype(np.int8), back(state.runs, -1).astype(np.int64), back(state.shifts, 0).astype(bool),
    )  # fmt: skip


class _Judge:
    """Goes through the weeks of all series at once; within a week bucket by bucket, because the level does."""

    def __init__(self, values: Floats, rule: Rule, minimum: Floats, sizes: Floats) -> None:
        self.values, self.rule, self.minimum, self.sizes = values, rule, minimum, sizes
        shape = values.shape
        self.expected, self.lower, self.upper, self.score = (np.full(shape, np.nan) for _ in range(4))
        self.flags, self.runs, self.shifts = np.zeros(shape, np.int8), np.full(shape, -1), np.zeros(shape, bool)
        self.shares = np.full(shape, np.nan)
        self.distances = np.full(shape, np.nan)
        self.levels = np.zeros(shape[0])
        self.used, self.planned = np.zeros(shape[0]), np.zeros(shape[0])
        self.highest = np.zeros(shape[0])
        self.run, self.run_used, self.run_planned = np.zeros(shape[0], np.int64), np.zeros(shape[0]), np.zeros(shape[0])
        self.run_sign = np.zeros(shape[0], np.int8)
        self.run_start = np.zeros(shape[0], np.int64)
        self.before_run, self.former = np.zeros(shape[0]), np.zeros(shape[0])
        self.former_until, self.former_sign = np.full(shape[0], -1), np.zeros(shape[0], np.int8)

    def week(self, week: int) -> None:
        start, stop = week * self.rule.season, (week + 1) * self.rule.season
        values = self.values[:, start:stop]
        if week == 0:
            known = ~np.isnan(values)
            self.levels = np.where(known, values, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
            self.highest = self.levels.copy()
            self.shares[:, start:stop] = _divided(values, self.levels[:, None], 1.0)
            return
        profile = self._profile(week)
        spread, high, low = self._spread(week)
        self._restart(week)
        for offset in range(self.rule.season):
            self._bucket(start + offset, profile[:, offset], spread[:, offset % self.rule.groups], high, low, week)

    def _profile(self, week: int) -> Floats:
        """Series x season: the share of each hour of the week, 1 on average."""
        rule = self.rule
        first = max(0, week - rule.memory)
        past = self.shares[:, first * rule.season : week * rule.season].reshape(len(self.values), week - first, rule.season)
        profile = np.nan_to_num(np.median(np.nan_to_num(past, nan=1.0), axis=1), nan=1.0)
        mean = profile.mean(axis=1, keepdims=True)
        found: Floats = _divided(profile, mean, 1.0)
        return found

    def _spread(self, week: int) -> tuple[Floats, Floats, Floats]:
        """The robust spread per group (series x groups), and how far out the series's own tails reach, in spreads."""
        rule, count = self.rule, len(self.values)
        first = max(1, week - rule.memory)
        if first >= week:
            return np.full((count, rule.groups), 0.5), np.zeros(count), np.zeros(count)
        past = self.distances[:, first * rule.season : week * rule.season].reshape(count, -1, rule.groups)
        known = np.nan_to_num(past, nan=0.0)
        size = np.abs(known)
        pooled = np.median(size.reshape(count, -1), axis=1)[:, None]
        own = np.median(size, axis=1)
        near = (np.roll(own, 1, axis=1) + 2 * own + np.roll(own, -1, axis=1)) / 4 if rule.groups > 1 else own
        spread = MAD_TO_SIGMA * np.maximum(np.maximum(near, 0.7 * pooled), 0.035)
        relative = (known / spread[:, None, :]).reshape(count, -1)
        high, low = np.quantile(relative, [rule.tail_quantile, 1 - rule.tail_quantile], axis=1)
        return spread, np.maximum(high, 0), np.maximum(-low, 0)

    def _restart(self, week: int) -> None:
        """The level's sums under the new rhythm, so that a changed rhythm does not jump the level."""
        steady = self.rule.half_life / np.log(2)
        planned = np.clip(self.planned, 1.0, steady) if week > 1 else np.full(len(self.values), steady)
        self.used, self.planned = self.levels * planned, planned

    def _bucket(self, at: int, share: Floats, spread: Floats, high: Floats, low: Floats, week: int) -> None:
        rule, actual = self.rule, self.values[:, at]
        known = ~np.isnan(actual)
        level = self.levels
        expected = level * share
        pseudo = 0.1 * level + 0.2 * self.minimum
        wide_up = spread * np.maximum(rule.threshold, rule.tail * high)
        wide_down = spread * np.maximum(rule.threshold, rule.tail * low)
        floor = np.maximum(np.maximum(self.minimum, rule.relative * expected), rule.of_level * level)
        # More than E by k spreads of a count of requests of size s: x - E = k sqrt(x s), solved for x; less than E by k sqrt(E s).
        chance = self.sizes[:, at] * rule.count_spreads**2
        more, less = chance / 2 + np.sqrt(chance * expected + chance**2 / 4), np.sqrt(chance * expected)
        upper = np.maximum((expected + pseudo) * np.exp(np.minimum(wide_up, 20.0)) - pseudo, expected + np.maximum(floor, more))
        lower = np.maximum(np.minimum((expected + pseudo) * np.exp(-wide_down) - pseudo, expected - np.maximum(floor, less)), 0.0)
        distance = np.log((np.where(known, actual, expected) + pseudo) / np.maximum(expected + pseudo, 1e-12))
        distance = np.where(expected + pseudo > 0, distance, 0.0)
        sign = np.where(known & (actual > upper), 1, np.where(known & (actual < lower), -1, 0)).astype(np.int8)
        wide = np.where(distance > 0, wide_up, wide_down)
        back = self._returned(at, sign, actual, share, pseudo, np.minimum(wide_up, wide_down))
        if back.any():
            expected, distance = np.where(back, actual, expected), np.where(back, 0.0, distance)
            lower, upper, sign = (
                np.where(back, actual, lower),
                np.where(back, actual, upper),
                np.where(back, 0, sign).astype(np.int8),
            )
        lean = np.where(known & (np.abs(distance) > 0.5 * wide), np.sign(distance), 0).astype(np.int8)
        if week >= rule.minimum_seasons:
            self.expected[:, at], self.lower[:, at], self.upper[:, at] = expected, lower, upper
            self.score[:, at] = np.where(known, distance / spread, np.nan)
            self.flags[:, at] = sign
        clipped = np.where(known, np.clip(actual, lower, upper), expected)
        self.distances[:, at] = np.where(known, np.clip(distance, -wide_down, wide_up), 0.0)
        fade = np.exp2(-share / rule.half_life)
        self.used, self.planned = self.used * fade + clipped, self.planned * fade + share
        self.levels = _divided(self.used, self.planned, 0.0)
        self._follow(at, sign, lean, actual, share, level)
        alive = known & (self.levels > 0.02 * self.highest) & (self.levels > 0)
        self.shares[:, at] = np.where(alive, np.minimum(_divided(actual, self.levels, 1.0), 50.0), share)
        self.highest = np.maximum(self.highest, self.levels)

    def _returned(
        self, at: int, sign: Flags, actual: Floats, share: Floats, pseudo: Floats, wide: Floats
    ) -> npt.NDArray[np.bool_]:
        """Where a bucket is out of the band because the level before the last shift is back; that level is taken at once."""
        back: npt.NDArray[np.bool_] = (sign != 0) & (sign == -self.former_sign) & (at <= self.former_until)
        if back.any():
            usual = self.former * share + pseudo
            back &= np.abs(np.log((np.nan_to_num(actual) + pseudo) / np.maximum(usual, 1e-12))) <= 0.5 * wide
            self.used = np.where(back, self.former * self.planned, self.used)
            self.former_until = np.where(back, -1, self.former_until)
            self.run = np.where(back, 0, self.run)
        return back

    def _follow(self, at: int, sign: Flags, lean: Flags, actual: Floats, share: Floats, before: Floats) -> None:
        """Count the buckets out of the band in one run; long enough, its own level becomes the level."""
        # A quiet bucket says nothing either way; only one that is back inside the inner half of the band ends a run.
        quiet = (share < 0.5) | np.isnan(actual)
        going = (self.run > 0) & ((sign == self.run_sign) | (lean == self.run_sign) | (quiet & (sign != -self.run_sign)))
        begins = ~going & (sign != 0)
        counted = np.where(np.isnan(actual), 0.0, actual)
        self.run = np.where(going, self.run + (sign == self.run_sign), np.where(begins, 1, 0))
        self.run_used = np.where(going, self.run_used + counted, np.where(begins, counted, 0.0))
        self.run_planned = np.where(going, self.run_planned + share, np.where(begins, share, 0.0))
        self.run_start = np.where(going, self.run_start, at)
        self.before_run = np.where(going, self.before_run, before)
        self.run_sign = np.where(going, self.run_sign, sign)
        self.runs[:, at] = np.where(self.flags[:, at] != 0, self.run_start, -1)
        long = (self.run >= self.rule.shift_after) & (at - self.run_start + 1 >= self.rule.shift_span)
        new = long & (self.run_planned > 0)
        for series in np.flatnonzero(new):
            level = self.run_used[series] / self.run_planned[series]
            self.levels[series] = level
            self.planned[series] = min(self.planned[series], self.run_planned[series])
            self.used[series] = level * self.planned[series]
            self.former[series], self.former_sign[series] = self.before_run[series], self.run_sign[series]
            self.former_until[series] = at + self.rule.return_within
            since = slice(self.run_start[series], at)
            self.distances[series, since] = 0.0
            if level > 0:
                self.shares[series, since] = np.minimum(np.nan_to_num(self.values[series, since] / level, nan=1.0), 50.0)
            self.shifts[series, self.run_start[series]] = True
            self.run[series] = 0


def _divided(one: Floats, other: Floats, empty: float) -> Floats:
    """`one / other`, and `empty` where `other` is 0."""
    found: Floats = np.divide(one, other, out=np.full(np.broadcast_shapes(one.shape, other.shape), empty), where=other > 0)
    return found
