"""Possible futures of a daily series: paths that a sum's interval can be read from. Arrays only.

With four weeks of history: exponential smoothing with a weekly season on the square root of usage (statsmodels' ETS, additive error and
season, no trend: a month is too short for one to pay), and paths simulated from its own past errors. With a week: days of the same
kind (weekdays, weekends) drawn at random. Both kinds of path are then stretched by a heavy-tailed factor, one per path, for what no
history tells: a launch, a new team. How often the intervals hold is measured by `python -m bench quality`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Method = Literal["exponential_smoothing", "mean_of_days", "none"]


@dataclass(frozen=True, slots=True)
class ForecastParameters:
    """How a month is forecast. Days of history unless named otherwise."""

    history_days: int = 90
    smoothing_days: int = 28
    """Complete days before exponential smoothing is used."""
    mean_days: int = 7
    """Complete days before anything is forecast at all."""
    paths: int = 2000
    stretch: float = 0.8
    """Scale of each path's stretch, in standard deviations of the paths' sums."""
    stretch_of_mean: float = 0.2
    """Its least scale where days are only drawn at random, as a share of the forecast."""
    heavy_tail: float = 3.0
    """Degrees of freedom of the stretch's distribution (Student's t)."""
    seed: int = 20260601
    growth_pct: float = 20.0
    """A month that is heading for this much more or less than the last one is worth an insight."""


def daily_paths(history: Floats, days: int, weekday: int, parameters: ForecastParameters) -> tuple[Method, Floats]:
    """Paths x days after the history's end, never negative, always finite. `history`: complete days, oldest first, without NaN;
    `weekday`: of its last day, Monday is 0. Same history, same paths."""
    random = np.random.default_rng(parameters.seed)
    if len(history) < parameters.mean_days:
        return "none", np.zeros((0, days))
    if days == 0 or not history.any():
        return "mean_of_days", np.zeros((parameters.paths, days))
    method: Method = "exponential_smoothing"
    paths = _smoothed(history, days, random, parameters) if len(history) >= parameters.smoothing_days else None
    least = 0.0
    if paths is None:
        method, paths, least = "mean_of_days", _drawn(history, days, weekday, random, parameters), parameters.stretch_of_mean
    sums = paths.sum(axis=1)
    relative = float(sums.std() / sums.mean()) if sums.mean() > 0 else 0.0
    scale = max(parameters.stretch * relative, least)
    factor = np.exp(np.clip(scale * random.standard_t(parameters.heavy_tail, len(paths)), -1.5, 1.5))
    return method, np.minimum(paths * factor[:, None], 50 * history.max())


def _smoothed(history: Floats, days: int, random: np.random.Generator, parameters: ForecastParameters) -> Floats | None:
    """None where the series does not let itself be smoothed."""
    mean = history.mean()
    scaled = np.sqrt(history / mean)
    if np.ptp(scaled) < 1e-9:
        return np.repeat(history[-1:], parameters.paths * days).reshape(parameters.paths, days)
    from statsmodels.tsa.exponential_smoothing.ets import ETSModel

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # A fit that stops early is still a fit; one that failed shows as paths that are not finite.
        warnings.simplefilter("ignore")
        try:
            fitted = ETSModel(scaled, error="add", seasonal="add", seasonal_periods=7).fit(disp=False, maxiter=100)
            found = fitted.simulate(days, anchor="end", repetitions=parameters.paths, random_errors="bootstrap", rng=random)
        except (ValueError, np.linalg.LinAlgError):
            return None
    paths: Floats = np.maximum(np.asarray(found, np.float64).reshape(days, parameters.paths).T, 0) ** 2 * mean
    return paths if np.isfinite(paths).all() else None


def _drawn(history: Floats, days: int, weekday: int, random: np.random.Generator, parameters: ForecastParameters) -> Floats:
    """Each day drawn from days of the same kind, all days where there are fewer than two of it."""
    past = (weekday - np.arange(len(history))[::-1]) % 7 >= 5
    paths = np.zeros((parameters.paths, days))
    for day in range(days):
        kind = history[past == ((weekday + 1 + day) % 7 >= 5)]
        paths[:, day] = random.choice(kind if len(kind) >= 2 else history, parameters.paths)
    return paths
