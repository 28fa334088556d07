"""Patterns, seasons and model usage give sensible answers for awkward usage: never NaN, infinity or a stack trace."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analytics.recorded_usage import RecordedUsage, usage_row
from tokentra_dagster.analytics import model_usage, patterns, seasonality
from tokentra_dagster.analytics.periods import DAY, Period
from tokentra_dagster.analytics.results import as_json

HOUR = timedelta(hours=1)
START = datetime(2026, 6, 1, tzinfo=UTC)
WEEKS = Period(START, START + 14 * DAY)
ZONES = ("UTC", "Europe/Berlin", "Asia/Kolkata", "America/New_York", "Australia/Lord_Howe", "Africa/Cairo")

CASES: dict[str, tuple[list[dict[str, Any]], Period]] = {
    "no usage ever": ([], WEEKS),
    "a quiet period after usage": ([usage_row(START - 40 * DAY)], WEEKS),
    "a period before the first usage": ([usage_row(START + 40 * DAY)], WEEKS),
    "one row": ([usage_row(START + 30 * HOUR)], WEEKS),
    "one hour": ([usage_row(START)], Period(START, START + HOUR)),
    "one minute": ([usage_row(START)], Period(START, START + timedelta(minutes=1))),
    "the last minute": ([usage_row(WEEKS.end - timedelta(minutes=1))], WEEKS),
    "one day": ([usage_row(START + n * HOUR) for n in range(24)], Period(START, START + DAY)),
    "all zeros": ([usage_row(START + n * DAY, input_tokens=0, output_tokens=0, request_count=0) for n in range(14)], WEEKS),
    "nothing known": (
        [usage_row(START + n * DAY, total_tokens=None, request_count=None, estimated_cost=None) for n in range(14)], WEEKS,
    ),
    "usage on one weekday only": ([usage_row(START + n * 7 * DAY) for n in range(2)], WEEKS),
    "a single model": ([usage_row(START + n * HOUR) for n in range(0, 336, 5)], WEEKS),
    "clocks go forward": (
        [usage_row(datetime(2026, 3, 28, 23, tzinfo=UTC) + n * HOUR) for n in range(23)],
        Period(datetime(2026, 3, 28, 23, tzinfo=UTC), datetime(2026, 3, 29, 22, tzinfo=UTC)),
    ),
    "clocks go back": (
        [usage_row(datetime(2026, 10, 24, 22, tzinfo=UTC) + n * HOUR) for n in range(25)],
        Period(datetime(2026, 10, 24, 22, tzinfo=UTC), datetime(2026, 10, 25, 23, tzinfo=UTC)),
    ),
    "a leap day": ([usage_row(datetime(2028, 2, 29, 5, tzinfo=UTC))], Period(datetime(2028, 2, 28, tzinfo=UTC), datetime(2028, 3, 2, tzinfo=UTC))),
    "the turn of the year": (
        [usage_row(datetime(2026, 12, 28, tzinfo=UTC) + n * DAY) for n in range(13)],
        Period(datetime(2026, 12, 28, tzinfo=UTC), datetime(2027, 1, 10, tzinfo=UTC)),
    ),
    "no model": ([usage_row(START, model=None, provider=None)], WEEKS),
}  # fmt: skip

ANALYSES: dict[str, Callable[[RecordedUsage, Period], tuple[Any, list[Any]]]] = {
    "patterns": lambda usage, period: _with_rows(patterns, patterns.analyze_usage_patterns(usage, period)),
    "patterns in Berlin": lambda usage, period: _with_rows(patterns, patterns.analyze_usage_patterns(usage, period, "Europe/Berlin")),
    "seasons": lambda usage, period: _with_rows(seasonality, seasonality.analyze_seasonality(usage, period)),
    "models": lambda usage, period: _with_rows(model_usage, model_usage.analyze_model_usage(usage, period)),
}  # fmt: skip


def _with_rows(module: Any, result: Any) -> tuple[Any, list[Any]]:
    return result, module.metric_rows(result)


@pytest.mark.parametrize("analysis", ANALYSES)
@pytest.mark.parametrize("case", CASES)
def test_awkward_usage_has_an_answer_that_is_json(case, analysis):
    rows, period = CASES[case]
    result, metrics = ANALYSES[analysis](RecordedUsage.of(rows), period)
    json.dumps([as_json(result), as_json(metrics)], allow_nan=False)


@pytest.mark.parametrize(
    ("case", "average", "projected", "peak", "trend"),
    [
        ("no usage ever", 0, 0, 0, "stable"),
        ("a quiet period after usage", 0, 0, 0, "stable"),
        ("all zeros", 0, 0, 0, "stable"),
        # Nobody looked yet: unknown and not zero.
        ("a period before the first usage", None, None, None, "stable"),
        ("nothing known", None, None, None, "stable"),
        ("one hour", 110, 110 * 720, 110, "stable"),
        ("one day", 110, 110 * 720, 110, "stable"),
        ("the last minute", 110, 110 * 720, 110, "stable"),
    ],
)
def test_what_awkward_usage_amounts_to(case, average, projected, peak, trend):
    rows, period = CASES[case]
    found = patterns.analyze_usage_patterns(RecordedUsage.of(rows), period)
    assert found.peak_analysis.average_tokens == average
    assert found.peak_analysis.peak_tokens == peak
    assert found.growth_analysis.projected_monthly_tokens == projected
    assert found.growth_analysis.trend == trend
    if not peak:
        assert (found.peak_analysis.peak_hour, found.peak_analysis.peak_to_average_ratio) == (None, None)
        assert {hour.relative_activity for hour in found.hourly_pattern} == {None}


@pytest.mark.parametrize("case", ["no usage ever", "a quiet period after usage", "a period before the first usage"])
def test_without_usage_there_are_no_models_peaks_or_recommendations(case):
    rows, period = CASES[case]
    models = model_usage.analyze_model_usage(RecordedUsage.of(rows), period)
    assert (models.models, models.total_models_used, models.primary_model) == ((), 0, None)
    seasons = seasonality.analyze_seasonality(RecordedUsage.of(rows), period)
    assert (seasons.peak_periods, seasons.recommendations) == ((), ())


UNKNOWN_OR_COUNT = st.none() | st.integers(0, 10**15)


@given(
    st.lists(st.tuples(st.integers(0, 60 * 24 * 40), st.sampled_from("abc"), UNKNOWN_OR_COUNT, UNKNOWN_OR_COUNT), max_size=12),
    st.integers(0, 24 * 30),
    st.integers(1, 24 * 30),
    st.sampled_from(ZONES),
)
@settings(max_examples=25, deadline=None)
def test_any_usage_has_finite_answers_within_their_bounds(rows, start, length, zone):
    origin = datetime(2026, 3, 10, tzinfo=UTC)
    usage = RecordedUsage.of(
        usage_row(origin + timedelta(minutes=minute), model=model, total_tokens=tokens, request_count=requests)
        for minute, model, tokens, requests in rows
    )
    period = Period(origin + start * HOUR, origin + (start + length) * HOUR)
    found = patterns.analyze_usage_patterns(usage, period, zone)
    seasons = seasonality.analyze_seasonality(usage, period)
    models = model_usage.analyze_model_usage(usage, period)
    json.dumps([as_json(found), as_json(seasons), as_json(models)], allow_nan=False)

    activity = [hour.relative_activity for hour in found.hourly_pattern if hour.relative_activity is not None]
    assert all(0 <= value <= 100 for value in activity)
    assert not activity or max(activity) == pytest.approx(100)
    peak = found.peak_analysis
    if peak.peak_to_average_ratio is not None:
        assert peak.peak_to_average_ratio >= 1 - 1e-9
    for patterns_found in (seasons.hourly_seasonality, seasons.daily_seasonality, seasons.weekly_seasonality):
        indexes = [pattern.index_vs_average for pattern in patterns_found if pattern.index_vs_average is not None]
        assert not indexes or sum(indexes) / len(indexes) == pytest.approx(100)
    known = models.models and models.distribution[0].percentage is not None
    assert sum(share.percentage or 0 for share in models.distribution) == pytest.approx(100 if known else 0)
    for model in models.models:
        dates = [usage.date for usage in model.daily_usage]
        assert dates == [dates[0] + n * DAY for n in range(len(dates))]
        assert sum(usage.tokens or 0 for usage in model.daily_usage) == (model.total_tokens or 0)
