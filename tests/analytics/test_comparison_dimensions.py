"""What changed by a dimension's values (section 11; corrections 23, 46)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.analytics.recorded_usage import RecordedUsage, usage_row
from tokentra_dagster.analytics.comparison_dimensions import Decliner, Grower, compare_dimension, read_dimension
from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.analytics.results import as_json
from tokentra_dagster.errors import UsageError

BOUNDARY = datetime(2026, 6, 15, tzinfo=UTC)
CURRENT, PREVIOUS = Period(BOUNDARY, BOUNDARY + timedelta(days=14)), Period(BOUNDARY - timedelta(days=14), BOUNDARY)


def usage(current: dict, previous: dict, **settings) -> RecordedUsage:
    """Tokens per feature in each period; one request for each."""
    return RecordedUsage.of(
        [
            usage_row(moment, feature=feature, total_tokens=tokens)
            for moment, values in ((BOUNDARY, current), (BOUNDARY - timedelta(days=1), previous))
            for feature, tokens in values.items()
        ],
        **settings,
    )


def by_feature(current: dict, previous: dict, **settings):
    return read_dimension(usage(current, previous, **settings), CURRENT, PREVIOUS, "feature")


def test_growers_grew_and_decliners_fell():
    """Correction 46: with few items the specification's growers hold items that fell, and the reverse."""
    current, previous = {"up": 150, "down": 60, "same": 10}, {"up": 100, "down": 100, "same": 10}

    def specification() -> tuple[list[str], list[str]]:
        ordered = sorted(previous, key=lambda name: current[name] / previous[name], reverse=True)
        return ordered[:5], ordered[-5:][::-1]

    found = by_feature(current, previous)
    assert specification() == (["up", "same", "down"], ["down", "same", "up"])
    assert found.top_growers == (Grower("up", 50.0),)
    assert found.top_decliners == (Decliner("down", -40.0),)


def test_all_values_are_compared_before_any_limit():
    """Correction 23: between two top-10 lists the eleventh value looks new, or gone."""
    current = {f"f{number:02}": 100 - number for number in range(12)}
    previous = current | {"f11": 500}

    def specification() -> tuple[set[str], set[str]]:
        now, before = (set(sorted(values, key=values.get, reverse=True)[:10]) for values in (current, previous))
        return now - before, before - now

    found = by_feature(current, previous).limited(10)
    assert specification() == ({"f09"}, {"f11"})
    assert (found.new_items, found.removed_items, len(found.items), found.item_count) == ((), (), 10, 12)
    assert found.top_decliners[0].name == "f11"


def test_new_and_removed_values():
    found = by_feature({"a": 100, "new": 300}, {"a": 50, "gone": 150})
    new, a, gone = found.items
    assert (found.new_items, found.removed_items) == (("new",), ("gone",))
    assert (new.name, new.token_change, new.previous_tokens, new.is_new) == ("new", None, 0, True)
    assert (a.token_change, a.percentage_of_total.current, a.percentage_of_total.previous) == (100.0, 25.0, 25.0)
    assert (gone.token_change, gone.request_change, gone.current_tokens, gone.is_removed) == (-100.0, -100.0, 0, True)


def test_a_value_with_usage_of_zero_tokens_is_not_new():
    found = by_feature({"a": 100}, {"a": 0})
    assert (found.new_items, found.items[0].token_change, found.items[0].percentage_of_total.previous) == ((), None, None)


def test_usage_without_a_value_is_beside_the_items():
    found = by_feature({"a": 30, None: 70}, {"a": 30, None: 7})
    assert [item.name for item in found.items] == ["a"]
    assert found.items[0].percentage_of_total.current == 100
    assert (found.unattributed_tokens, found.previous_unattributed_tokens) == (70, 7)


def test_names_are_labels_where_there_are_any():
    found = by_feature({"f1": 10, "f2": 5}, {"f2": 5}, names={"feature": {"f1": "Search"}})
    assert [(item.name, item.value) for item in found.items] == [("Search", "f1"), ("f2", "f2")]
    assert found.new_items == ("Search",)


def test_unknown_requests_stay_unknown():
    rows = [usage_row(BOUNDARY, feature="a", request_count=None), usage_row(BOUNDARY - timedelta(days=1), feature="a")]
    (item,) = read_dimension(RecordedUsage.of(rows), CURRENT, PREVIOUS, "feature").items
    assert (item.current_requests, item.previous_requests, item.request_change, item.token_change) == (None, 1, None, 0.0)


def test_the_largest_three_and_their_share_before():
    found = by_feature({"a": 50, "b": 29, "c": 11, "d": 10}, {"a": 10, "b": 10, "c": 10, "d": 70})
    assert (found.top_concentration.current, found.top_concentration.previous) == (90.0, 30.0)


def test_an_unknown_dimension_lists_what_there_is():
    with pytest.raises(UsageError, match="'colour'; it must be one of provider, model,"):
        read_dimension(usage({}, {}), CURRENT, PREVIOUS, "colour")


def test_ten_thousand_features_are_compared_in_well_under_a_second():
    current = {f"f{number}": number for number in range(10_000)}
    previous = {f"f{number}": number for number in range(5_000, 15_000)}
    source = usage(current, previous)
    frames = [source.frame(period, by=["feature"]) for period in (CURRENT, PREVIOUS)]
    found = compare_dimension(*frames, "feature")
    assert (found.item_count, found.new_item_count, found.removed_item_count) == (15_000, 5_000, 5_000)
    assert len(as_json(found.limited(100))["items"]) == 100
