"""Anomalies: what is found in series with a daily and weekly rhythm, what is not, and what it is explained by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analytics.recorded_usage import RecordedUsage, usage_row
from tokentra_dagster.analytics.anomalies import AnomalyParameters, analyze_anomalies, insight_rows, metric_rows
from tokentra_dagster.analytics.anomaly_detection import DAILY, HOURLY, judge
from tokentra_dagster.analytics.anomaly_explanation import largest_contribution
from tokentra_dagster.analytics.periods import DAY, Period
from tokentra_dagster.analytics.results import as_json
from tokentra_dagster.analytics.sources import total
from tokentra_dagster.analytics.usage_series import read_series
from tokentra_dagster.errors import UsageError

START = datetime(2026, 3, 2, tzinfo=UTC)
"""A Monday."""
HOUR = timedelta(hours=1)
Factor = Callable[[str, datetime], float]
STREAMS = {
    "key-chat": ("chat", "gpt-4o-2024-08-06", 400),
    "key-search": ("search", "gpt-4o-2024-08-06", 300),
    "key-batch": ("reports", "o3-2025-04-16", 200),
}
WEEKEND_SHARE = 0.1


def office(moment: datetime) -> float:
    """Busy by day, next to nothing at night, a tenth on weekends."""
    day = 0.03 + np.exp(-0.5 * ((moment.hour - 13) / 3) ** 2)
    return float(day * (WEEKEND_SHARE if moment.weekday() >= 5 else 1))


def usage_with(factor: Factor, weeks: float = 6, start: datetime = START, noise: float = 0.15, seed: int = 7) -> RecordedUsage:
    random = np.random.default_rng(seed)
    rows = []
    for number in range(round(weeks * 168)):
        moment = start + number * HOUR
        for key, (feature, model, size) in STREAMS.items():
            requests = round(size * office(moment) * random.lognormal(0, noise) * factor(key, moment))
            if requests:
                rows.append(
                    usage_row(
                        moment, api_key=key, feature=feature, model=model, team=f"team-{feature}", project="p",
                        input_tokens=requests * 1000, output_tokens=requests * 200, request_count=requests, success_count=requests,
                        error_count=round(requests * 0.01), estimated_cost=Decimal(requests) / 100,
                    )
                )  # fmt: skip
    return RecordedUsage.of(rows)


def weeks_of(usage: RecordedUsage, first: float, last: float, **settings):
    period = Period(START + first * 7 * DAY, START + last * 7 * DAY)
    return analyze_anomalies(usage, period, settings.pop("known_until", period.end), replace(AnomalyParameters(), **settings))


def tokens_of_everything(report):
    return [one for one in report.anomalies if one.measure == "tokens" and one.dimension is None]


TUESDAY = START + timedelta(days=36)  # of the sixth week


def within(moment: datetime, start: datetime, hours: float) -> bool:
    return start <= moment < start + hours * HOUR


def test_nights_and_weekends_alone_raise_no_alarm():
    report = weeks_of(usage_with(lambda key, moment: 1), 3, 6)
    assert report.anomalies == ()
    assert report.not_judged == ()
    assert report.watched[2].values == ("key-chat", "key-search", "key-batch")


def test_a_limit_on_plain_usage_would_alarm_on_every_morning():
    """What the rhythm is for: five spreads around the series's own median find hundreds of anomalies in the same data."""
    usage = usage_with(lambda key, moment: 1)
    tokens = usage.frame(Period(START, START + 42 * DAY), granularity="hour")["total_tokens"].to_numpy(np.float64)
    middle = np.median(tokens)
    spread = 1.4826 * np.median(np.abs(tokens - middle))
    assert (np.abs(tokens - middle) > 5 * spread).sum() > 100


def test_a_spike_is_found_with_its_hours_and_explained_by_its_key():
    start = TUESDAY + 10 * HOUR
    report = weeks_of(usage_with(lambda key, moment: 6 if key == "key-search" and within(moment, start, 3) else 1), 5, 6)
    found = [one for one in report.anomalies if one.measure == "tokens"]
    assert {one.dimension_value for one in found} == {None, "search", "key-search", "gpt-4o-2024-08-06"}
    whole, *_ = tokens_of_everything(report)
    assert (whole.start, whole.end, whole.direction, whole.level_shift) == (start, start + 3 * HOUR, "spike", False)
    assert whole.severity == "critical"
    assert all(bucket.lower <= bucket.expected <= bucket.upper < bucket.actual for bucket in whole.buckets)
    cause = whole.contributions[0]
    assert (cause.dimension, cause.value) == ("api_key", "key-search")
    assert 0.9 < cause.share < 1.1
    assert cause.usual_share == pytest.approx(1 / 3, abs=0.05)
    assert whole.difference == pytest.approx(float(whole.actual) - float(whole.expected))


def test_a_key_with_a_name_is_called_by_it():
    start = TUESDAY + 10 * HOUR
    usage = usage_with(lambda key, moment: 6 if key == "key-search" and within(moment, start, 3) else 1)
    usage = replace(usage, names={"api_key": {"key-search": "Search service"}})
    report = weeks_of(usage, 5, 6)
    whole, *_ = tokens_of_everything(report)
    assert (whole.contributions[0].value, whole.contributions[0].label) == ("key-search", "Search service")
    (own,) = [one for one in report.anomalies if one.measure == "tokens" and one.dimension == "api_key"]
    assert (own.dimension_value, own.dimension_label) == ("key-search", "Search service")
    assert "API key Search service" in insight_rows(report)[0].description


def test_all_that_one_event_moved_is_one_insight():
    start = TUESDAY + 10 * HOUR
    report = weeks_of(usage_with(lambda key, moment: 6 if key == "key-search" and within(moment, start, 3) else 1), 5, 6)
    assert len(report.anomalies) > 8
    (insight,) = [row for row in insight_rows(report) if row.metric != "errors"]
    assert insight.title.startswith(("Tokens of the organization rose", "Requests of the organization rose", "Cost of the organ"))
    assert "API key key-search made" in insight.description
    assert "At the same time: " in insight.description
    assert (insight.severity, insight.kind) == ("critical", "anomaly")


def test_an_outage_is_one_drop():
    start = TUESDAY + 9 * HOUR
    report = weeks_of(usage_with(lambda key, moment: 0 if within(moment, start, 7) else 1), 5, 6)
    (drop,) = tokens_of_everything(report)
    assert (drop.start, drop.end, drop.direction, drop.actual) == (start, start + 7 * HOUR, "drop", 0)
    assert not [one for one in report.anomalies if one.measure == "errors"], "fewer errors are no news"


def test_a_storm_of_errors_is_a_spike_of_errors_only():
    usage = usage_with(lambda key, moment: 1)
    storm = (usage.rows["moment"] >= TUESDAY + 10 * HOUR) & (usage.rows["moment"] < TUESDAY + 12 * HOUR)
    usage.rows.loc[storm, "error_count"] = usage.rows.loc[storm, "request_count"] // 2
    report = weeks_of(usage, 5, 6)
    assert {one.measure for one in report.anomalies} == {"errors"}
    (whole,) = [one for one in report.anomalies if one.dimension is None]
    assert whole.impact_share == pytest.approx(0.49, abs=0.02)
    assert whole.severity == "critical"


def test_hours_that_are_not_complete_are_no_drop():
    now = TUESDAY + 13 * HOUR + timedelta(minutes=20)
    usage = usage_with(lambda key, moment: 0.2 if moment >= TUESDAY + 13 * HOUR else 1)
    period = Period(START + 35 * DAY, START + 42 * DAY)
    assert analyze_anomalies(usage, period, now).anomalies == ()
    # Taken for complete and settled, the same data is a drop of the hour and of the day.
    late = analyze_anomalies(usage, period, now + 2 * DAY)
    assert [one.direction for one in tokens_of_everything(late)] == ["drop"]


def test_a_late_provider_is_no_drop_but_a_spike_counts_at_once():
    start = TUESDAY + 12 * HOUR
    known_until = start + HOUR
    for factor, expected in ((0.0, []), (6.0, ["spike"])):
        usage = usage_with(lambda key, moment, factor=factor: factor if moment >= start else 1)
        report = weeks_of(usage, 5, 6, known_until=known_until)
        assert [one.direction for one in tokens_of_everything(report)] == expected


@pytest.mark.parametrize(("factor", "direction"), [(2.5, "spike"), (0.3, "drop")])
def test_a_new_level_is_told_once_and_not_every_day(factor, direction):
    start = START + 22 * DAY
    report = weeks_of(usage_with(lambda key, moment: factor if moment >= start else 1, weeks=7), 3, 7)
    (shift,) = tokens_of_everything(report)
    assert (shift.direction, shift.level_shift) == (direction, True)
    assert start <= shift.start < start + DAY
    assert shift.end < start + 5 * DAY


def test_two_days_of_wild_usage_are_one_spike_and_what_follows_is_no_drop():
    start = START + 29 * DAY
    report = weeks_of(usage_with(lambda key, moment: 4 if within(moment, start, 48) else 1, weeks=7), 4, 7)
    (wild,) = tokens_of_everything(report)
    assert (wild.direction, wild.level_shift) == ("spike", True)


def test_growth_raises_no_alarm():
    usage = usage_with(lambda key, moment: 1.25 ** ((moment - START) / (30 * DAY)), weeks=8)
    assert weeks_of(usage, 3, 8).anomalies == ()


def test_a_job_that_is_new_every_night_is_told_no_more_than_twice():
    start = START + 28 * DAY
    usage = usage_with(lambda key, moment: 20 if key == "key-batch" and moment >= start and moment.hour == 2 else 1, weeks=7)
    report = weeks_of(usage, 4, 7)
    own = [one for one in report.anomalies if (one.measure, one.dimension_value) == ("tokens", "key-batch")]
    assert 1 <= len(own) <= 3
    assert report.recurring > 5


def test_two_weeks_of_history_are_needed_and_their_absence_is_said():
    def late_key(key: str, moment: datetime) -> float:
        return 0 if key == "key-batch" and moment < START + 35 * DAY else 1

    report = weeks_of(usage_with(late_key), 5, 6)
    assert {(one.dimension_value, one.granularity) for one in report.not_judged} == {
        (value, granularity) for value in ("key-batch", "reports", "o3-2025-04-16") for granularity in ("hour", "day")
    }
    assert "2 whole weeks of usage are needed" in next(one.reason for one in report.not_judged if one.granularity == "hour")
    assert "key-batch" not in {one.dimension_value for one in report.anomalies}


def test_only_the_largest_values_are_watched_and_the_rest_is_counted():
    report = weeks_of(usage_with(lambda key, moment: 1), 5, 6, top=1)
    keys = next(one for one in report.watched if one.dimension == "api_key")
    assert (keys.values, keys.not_watched) == (("key-chat",), 2)
    assert keys.token_share == pytest.approx(400 / 900, abs=0.02)


def test_a_tiny_series_does_not_alarm_whatever_it_does():
    usage = usage_with(lambda key, moment: 0.0005 * (50 if within(moment, TUESDAY + 10 * HOUR, 3) else 1))
    assert weeks_of(usage, 5, 6).anomalies == ()


def test_single_large_requests_among_small_ones_are_chance():
    """A key starts to send one request of 300,000 tokens in every fifth working hour: more than its usual 2,000 an hour, but no news."""
    random = np.random.default_rng(5)
    rows = []
    for number in range(6 * 168):
        moment = START + number * HOUR
        rows.append(usage_row(moment, api_key="key", input_tokens=2000, output_tokens=0, request_count=1))
        if moment >= START + 21 * DAY and 8 <= moment.hour < 18 and random.random() < 0.2:
            rows.append(usage_row(moment, api_key="key", input_tokens=300_000, output_tokens=0, request_count=1))
    usage = RecordedUsage.of(rows)
    report = weeks_of(usage, 3, 6)
    assert [one for one in report.anomalies if one.measure == "tokens" and one.granularity == "hour"] == []
    # Without a look at the size of requests dozens of hours would alarm.
    values = read_series(usage, Period(START, START + 42 * DAY), "hour", ()).values["tokens"]
    assert (judge(values, HOURLY, np.array([50_000.0])).flags > 0).sum() > 20


def test_unknown_errors_are_not_taken_for_none():
    usage = usage_with(lambda key, moment: 1)
    unknown = usage.rows["moment"] >= TUESDAY
    usage.rows.loc[unknown, "error_count"] = None
    assert weeks_of(usage, 5, 6).anomalies == ()


def test_a_value_expected_to_keep_its_part_explains_nothing():
    usual = {"a": 75.0, "b": 25.0}
    even = largest_contribution("model", {"a": 150.0, "b": 50.0}, usual, 100.0)
    assert even is not None
    assert even.surprise == pytest.approx(0)
    wild = largest_contribution("model", {"a": 75.0, "b": 25.0, "c": 100.0}, usual, 100.0)
    assert wild is not None
    assert (wild.value, wild.share, wild.usual_share) == ("c", 1.0, 0.0)
    assert largest_contribution("model", usual, usual, 100.0) is None


def test_an_answer_does_not_change_when_days_are_added():
    random = np.random.default_rng(3)
    values = random.gamma(20, 5000, (4, 1200))
    minimum = np.full(4, 1000.0)
    short, long = judge(values[:, :900], HOURLY, minimum), judge(values, HOURLY, minimum)
    np.testing.assert_array_equal(short.upper, long.upper[:, :900])
    np.testing.assert_array_equal(short.flags, long.flags[:, :900])


def test_rows_and_days_around_a_leap_day_are_judged_like_any_other():
    start = datetime(2024, 1, 22, tzinfo=UTC)
    usage = usage_with(lambda key, moment: 0 if within(moment, datetime(2024, 2, 29, 9, tzinfo=UTC), 8) else 1, start=start)
    report = analyze_anomalies(
        usage, Period(datetime(2024, 2, 26, tzinfo=UTC), datetime(2024, 3, 4, tzinfo=UTC)), start + 42 * DAY
    )
    assert [(one.start.date().isoformat(), one.direction) for one in tokens_of_everything(report)] == [("2024-02-29", "drop")]


def test_a_moment_without_a_zone_is_refused():
    with pytest.raises(UsageError, match="without a time zone"):
        weeks_of(RecordedUsage.of([ROW]), 0, 5, known_until=datetime(2026, 3, 9))


def test_real_traffic_gives_amounts_that_add_up(golden):
    report = analyze_anomalies(golden.usage, golden.period, golden.period.end)
    as_json([report, metric_rows(report), insight_rows(report)])
    for one in report.anomalies:
        window = Period(one.start, one.end)
        where = None if one.dimension is None else {one.dimension: one.dimension_value}
        if one.measure == "tokens":
            assert one.actual == total(golden.usage.frame(window, where=where), "total_tokens")
        assert sum(float(bucket.actual) for bucket in one.buckets) == pytest.approx(float(one.actual), rel=1e-5)
    assert len(report.watched) == 3


ROW = usage_row(START + 5 * HOUR, api_key="k")
SHAPES = {
    "nothing": [],
    "one row": [ROW],
    "one day": [usage_row(START + n * HOUR) for n in range(24)],
    "all zeros": [
        usage_row(START + n * HOUR, input_tokens=0, output_tokens=0, request_count=0, success_count=0, estimated_cost=Decimal(0))
        for n in range(24 * 30)
    ],
    "nothing known but tokens": [
        usage_row(START + n * HOUR, request_count=None, success_count=None, error_count=None, estimated_cost=None)
        for n in range(0, 24 * 30, 7)
    ],
    "one huge row": [ROW, usage_row(START + 25 * DAY, input_tokens=10**15, request_count=1000, success_count=1000)],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_usage_gives_a_sensible_answer(shape):
    report = weeks_of(RecordedUsage.of(SHAPES[shape]), 0, 5)
    as_json([report, metric_rows(report), insight_rows(report)])
    if shape == "one huge row":
        # A few hours in five weeks have no rhythm, but this is out of any band.
        assert {one.direction for one in report.anomalies} == {"spike"}
    else:
        assert report.anomalies == ()
    if shape == "nothing":
        assert report.note == "There is no complete hour of usage in the period."


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 1.0, 1e-3, 1e12]),
    st.floats(0, 0.9),
    st.sampled_from([HOURLY, DAILY]),
    st.integers(1, 900),
)
def test_whatever_the_series_no_band_is_without_a_number(seed, scale, gaps, rule, buckets):
    random = np.random.default_rng(seed)
    values = random.lognormal(0, 2, (3, buckets)) * scale * (random.random((3, buckets)) >= gaps)
    values[0, : buckets // 2] = np.nan
    values[1, random.random(buckets) < 0.1] = np.nan
    found = judge(values, rule, np.full(3, 10.0))
    judged = ~np.isnan(found.expected)
    for part in (found.lower, found.upper):
        assert np.isfinite(part[judged]).all()
    assert (found.lower[judged] >= 0).all()
    assert (found.lower[judged] <= found.expected[judged]).all()
    assert (found.expected[judged] <= found.upper[judged]).all()
    flagged = found.flags != 0
    assert np.isfinite(found.score[flagged]).all()
    assert not flagged[:, : rule.minimum_seasons * rule.season].any()
