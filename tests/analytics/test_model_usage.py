"""Model usage beside the specification's own way (section 5; corrections 18, 44, 45, 47)."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from tests.analytics.golden import assert_equal
from tests.analytics.recorded_usage import RecordedUsage, usage_row
from tokentra_dagster.analytics.model_usage import (
    Dates,
    ModelTrend,
    ModelUsageParameters,
    analyze_model_usage,
    metric_rows,
    model_usage,
)
from tokentra_dagster.analytics.periods import DAY, Period
from tokentra_dagster.analytics.results import as_json
from tokentra_dagster.analytics.sources import COST, COUNTS

HOUR = timedelta(hours=1)
START = datetime(2026, 6, 1, tzinfo=UTC)
TEN_DAYS = Period(START, START + 10 * DAY)


def day_rows(model: str, tokens: dict[int, int], **fields: object) -> list[dict[str, object]]:
    """A row for each day of June and its tokens."""
    return [usage_row(START + (day - 1) * DAY, model=model, total_tokens=n, **fields) for day, n in tokens.items()]


def trend_by_rows(rows: list[dict[str, object]], model: str) -> tuple[int, float]:
    """The specification's `dailyUsage` and trend: an entry for each rollup row, and halves of those."""
    daily = [row["total_tokens"] for row in sorted(rows, key=lambda row: row["moment"]) if row["model"] == model]
    middle = len(daily) // 2
    first, second = sum(daily[:middle]) / middle, sum(daily[middle:]) / (len(daily) - middle)
    return len(daily), (second - first) / first * 100 if first > 0 else 0


def test_the_answers_are_the_specifications_where_it_is_right(golden):
    expected = golden.answer("models")
    assert_equal(as_json(analyze_model_usage(golden.usage, golden.period)), expected)


def test_a_model_has_one_entry_per_date_with_gaps_filled():
    # Three features on the first day, one on the last.
    rows = [row for feature in "abc" for row in day_rows("m", {1: 10}, feature=feature)] + day_rows("m", {10: 30})
    found = analyze_model_usage(RecordedUsage.of(rows), TEN_DAYS)
    assert trend_by_rows(rows, "m") == (4, 100)
    (model,) = found.models
    assert [(usage.date.day, usage.tokens) for usage in model.daily_usage] == [
        (1, 30), (2, 0), (3, 0), (4, 0), (5, 0), (6, 0), (7, 0), (8, 0), (9, 0), (10, 30),
    ]  # fmt: skip
    assert found.trends == (ModelTrend("m", "stable", 0.0),)
    assert (model.first_used, model.last_used) == (date(2026, 6, 1), date(2026, 6, 10))


def test_the_trend_halves_dates_and_not_rows():
    rows = day_rows("m", {1: 100, 2: 100, 3: 100, 9: 100})
    found = analyze_model_usage(RecordedUsage.of(rows), TEN_DAYS)
    assert trend_by_rows(rows, "m") == (4, 0)
    (trend,) = found.trends
    assert (trend.trend, trend.change_percentage) == ("decreasing", pytest.approx((20 - 60) / 60 * 100))


def test_dates_begin_with_the_organisations_first_usage_and_not_the_models():
    rows = day_rows("old", {4: 70, 10: 70}) + day_rows("new", {9: 5})
    found = analyze_model_usage(RecordedUsage.of(rows), TEN_DAYS)
    assert [model.model for model in found.models] == ["old", "new"]
    assert [usage.date.day for usage in found.models[1].daily_usage] == [4, 5, 6, 7, 8, 9, 10]
    assert [usage.tokens for usage in found.models[1].daily_usage] == [0, 0, 0, 0, 0, 5, 0]


def test_a_new_model_increases_without_a_percentage():
    rows = day_rows("old", {1: 70, 10: 70}) + day_rows("new", {9: 5})
    assert trend_by_rows([*rows, *day_rows("new", {10: 5})], "new")[1] == 0
    assert analyze_model_usage(RecordedUsage.of(rows), TEN_DAYS).trends[1] == ModelTrend("new", "increasing", None)


def test_one_date_has_no_trend():
    found = analyze_model_usage(RecordedUsage.of(day_rows("m", {1: 10})), Period(START, START + DAY))
    assert found.trends == (ModelTrend("m", "stable", None),)


def test_the_threshold_is_a_parameter():
    usage = RecordedUsage.of(day_rows("m", dict.fromkeys(range(1, 6), 100) | dict.fromkeys(range(6, 11), 109)))
    assert analyze_model_usage(usage, TEN_DAYS).trends[0].trend == "stable"
    assert analyze_model_usage(usage, TEN_DAYS, ModelUsageParameters(stable_below_pct=5)).trends[0].trend == "increasing"


def test_a_model_that_two_providers_serve_is_one_model_and_names_both():
    rows = day_rows("gpt-4o", {1: 10}, provider="azure", model_family="gpt-4o") + day_rows("gpt-4o", {1: 90}, provider="openai")
    (model,) = analyze_model_usage(RecordedUsage.of(rows), TEN_DAYS).models
    assert (model.total_tokens, model.provider, model.providers) == (100, "openai", ("openai", "azure"))
    assert model.model_family == "gpt-4o"
    assert model.daily_usage[0].tokens == 100


def test_shares_and_order_follow_tokens():
    rows = day_rows("b", {1: 30}) + day_rows("a", {1: 30}) + day_rows("c", {1: 40}) + day_rows(None, {1: 100})  # type: ignore[arg-type]
    found = analyze_model_usage(RecordedUsage.of(rows), TEN_DAYS)
    assert [(share.model, share.percentage) for share in found.distribution] == [("unknown", 50), ("c", 20), ("a", 15), ("b", 15)]
    assert [model.model for model in found.models] == [trend.model for trend in found.trends] == ["unknown", "c", "a", "b"]
    assert (found.primary_model, found.total_models_used) == ("unknown", 4)


def test_an_unknown_price_is_no_cost_of_zero():
    rows = (
        day_rows("priced", {1: 10, 2: 10}, estimated_cost=Decimal("0.1"))
        + day_rows("half", {1: 9}, estimated_cost=Decimal("0.2"))
        + day_rows("half", {2: 9}, estimated_cost=None, unpriced_tokens=9)
        + day_rows("free", {1: 1}, estimated_cost=None, unpriced_tokens=1)
    )
    found = {model.model: model for model in analyze_model_usage(RecordedUsage.of(rows), TEN_DAYS).models}
    assert (found["priced"].estimated_cost, found["priced"].unpriced_tokens) == (Decimal("0.2"), 0)
    assert (found["half"].estimated_cost, found["half"].unpriced_tokens) == (Decimal("0.2"), 9)
    assert (found["free"].estimated_cost, found["free"].unpriced_tokens) == (None, 1)


def test_unknown_tokens_are_unknown_on_their_date_and_in_the_trend():
    rows = day_rows("m", {1: None, 9: 10}, request_count=None) + day_rows("n", {1: 1})  # type: ignore[dict-item]
    found = analyze_model_usage(RecordedUsage.of(rows), TEN_DAYS)
    model = found.models[0]
    assert (model.model, model.total_tokens, model.request_count) == ("m", 10, None)
    assert [usage.tokens for usage in model.daily_usage][:2] == [None, 0]
    assert found.trends[0] == ModelTrend("m", "stable", None)


def test_a_date_that_is_unknown_does_not_lower_its_halfs_average():
    usage = RecordedUsage.of(day_rows("m", {1: None, 2: 10, 3: 10, 4: 10}))  # type: ignore[dict-item]
    assert analyze_model_usage(usage, Period(START, START + 4 * DAY)).trends == (ModelTrend("m", "stable", 0.0),)


@pytest.mark.parametrize(
    ("period", "dates"),
    [
        (Period(START, START + DAY), (date(2026, 6, 1), date(2026, 6, 2))),
        (Period(START + 12 * HOUR, START + 36 * HOUR), (date(2026, 6, 1), date(2026, 6, 3))),
    ],
)
def test_the_period_is_given_as_dates(period, dates):
    assert Dates.of(period) == Dates(*dates)


def test_a_leap_day_is_a_date():
    leap = datetime(2028, 2, 28, tzinfo=UTC)
    found = analyze_model_usage(RecordedUsage.of([usage_row(leap)]), Period(leap, leap + 3 * DAY))
    assert [str(usage.date) for usage in found.models[0].daily_usage] == ["2028-02-28", "2028-02-29", "2028-03-01"]


def test_each_metric_row_is_one_figure():
    rows = metric_rows(analyze_model_usage(RecordedUsage.of(day_rows("a", {1: 30}) + day_rows("b", {2: 10})), TEN_DAYS))
    found = {(row.metric, row.dimension_value): row.value for row in rows}
    assert len(found) == len(rows) == 1 + 2 * 9
    assert found["total_models_used", None] == 2
    assert found["total_tokens", "a"] == 30
    assert found["token_share_pct", "b"] == 25
    assert found["estimated_cost", "a"] == Decimal("0.01")


def test_ten_thousand_models_are_quick_and_right():
    """140,000 rows took 0.4 s of one core when this was written; a frame filtered once for each model takes minutes."""
    models, dates = 10_000, 14
    size = models * dates
    frame = pd.DataFrame({
        "moment": pd.DatetimeIndex(np.tile(pd.date_range(START, periods=dates), models)).as_unit("us"),
        "provider": pd.Series(["openai"] * size, dtype=object),
        "model": pd.Series(np.repeat([f"m{number:05}" for number in range(models)], dates), dtype=object),
        "model_family": pd.Series([None] * size, dtype=object),
        **{name: pd.array(np.arange(size) // dates + 1, dtype="Int64") for name in COUNTS},
        COST: pd.Series([Decimal("0.01")] * size, dtype=object),
    })  # fmt: skip
    days = pd.DataFrame({"moment": pd.date_range(START, periods=dates).as_unit("us"), "share": 1.0})
    found = model_usage(frame, days, Period(START, START + dates * DAY), ModelUsageParameters())
    largest = found.models[0]
    assert (largest.model, largest.total_tokens, largest.estimated_cost) == ("m09999", dates * models, Decimal("0.14"))
    assert [usage.tokens for usage in largest.daily_usage] == [models] * dates
    assert found.trends[0] == ModelTrend("m09999", "stable", 0.0)
    assert sum(share.percentage or 0 for share in found.distribution) == pytest.approx(100)
    by_model = defaultdict(int)
    for row in metric_rows(found):
        by_model[row.metric] += 1
    assert by_model["total_tokens"] == models
