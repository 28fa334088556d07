"""The stored functions equal plain arithmetic over the records, for any [start, end) and in any session time zone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.dbt.usage_case import UsageCase, Used, cost, divided, grouped, ids, known, percentile, summed
from tests.warehouse_data import DAY, HOUR, connection

ZONES = ("UTC", "Asia/Kolkata", "America/St_Johns")
FROM, TO = DAY - 36 * HOUR, DAY + 180 * HOUR
anything = st.datetimes(FROM.replace(tzinfo=None), TO.replace(tzinfo=None)).map(lambda moment: moment.replace(tzinfo=UTC))
whole_hour = st.integers(0, 216).map(lambda hours: FROM + hours * HOUR)
whole_day = st.integers(0, 8).map(lambda days: DAY + (days - 1) * 24 * HOUR)
moments = st.one_of(anything, whole_hour, whole_day)
periods = st.tuples(moments, moments).map(lambda pair: (min(pair), max(pair)))
check = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

COMPARED = ("input_tokens", "output_tokens", "total_tokens", "cached_tokens", "request_count", "error_count", "estimated_cost", "unpriced_tokens", "avg_latency_ms")  # fmt: skip
RENAMED = {
    "requests": "request_count",
    "errors": "error_count",
    "total_requests": "request_count",
    "error_requests": "error_count",
}


def call(case: UsageCase, zone: str, statement: str, *arguments: Any) -> list[dict[str, Any]]:
    with case.database.connect() as db:
        db.execute(f"SET timezone = '{zone}'")
        return db.execute(f"SELECT * FROM {statement}", arguments).fetchall()


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    named = {RENAMED.get(name, name): value for name, value in found.items()}
    assert {name: named[name] for name in COMPARED if name in named} == {
        name: expected[name] for name in COMPARED if name in named
    }
    if "error_rate" in named:
        assert named["error_rate"] == pytest.approx(expected["error_rate"])


@check
@given(period=periods, zone=st.sampled_from(ZONES))
def test_a_summary_of_any_period_is_the_sum_of_its_records(acme: UsageCase, period, zone) -> None:
    start, end = period
    used = acme.within(start, end)
    (found,) = call(acme, zone, "get_usage_summary(%s, %s, %s)", acme.org_id, start, end)
    if not used:
        assert (found["total_tokens"], found["total_requests"], found["estimated_cost"], found["unique_users"]) == (0, 0, 0, 0)
        assert found["error_rate"] is None and found["p95_latency_ms"] is None
        return
    assert_equal(found, summed(used))
    assert [found[f"p{q}_latency_ms"] for q in (50, 95, 99)] == [percentile(used, q / 100) for q in (50, 95, 99)]
    users, features, keys = ({u.of(name) for u in used} - {None} for name in ("user", "feature", "api_key"))
    assert (found["unique_users"], found["unique_features"], found["unique_api_keys"]) == tuple(
        len(s) or None for s in (users, features, keys)
    )
    assert found["unique_models"] == len({u.record.model for u in used})
    assert found["requests_per_minute"] == pytest.approx(
        divided(known(u.record.request_count for u in used), (end - start) / timedelta(minutes=1))
    )
    assert found["cost_by_currency"].keys() == {u.record.currency for u in used if u.record.reported_cost is not None}
    assert found["record_count"] == len(used)
    (counts,) = call(acme, zone, "get_distinct_counts(%s, %s, %s)", acme.org_id, start, end)
    assert counts == {name: found[name] for name in counts}


@check
@given(
    period=periods,
    zone=st.sampled_from(ZONES),
    wanted=st.fixed_dictionaries(
        {},
        optional={
            "provider": st.sampled_from(["openai", "google", "azure"]),
            "model": st.sampled_from(["g-1", "mystery-1", "claude-x"]),
            "feature": st.sampled_from(["search", "it's"]),
            "environment": st.sampled_from(["production", "staging"]),
            "team": st.sampled_from(["Search", "Research"]),
        },
    ),
)
def test_filters_take_the_records_that_match_all_of_them(acme: UsageCase, period, zone, wanted: dict[str, str]) -> None:
    start, end = period
    used = [u for u in acme.within(start, end) if all(u.of(name) == value for name, value in wanted.items())]
    arguments = dict(wanted)
    if "team" in arguments:
        arguments["team_id"] = ids(acme.database, "teams")[arguments.pop("team")]
    named = "".join(f", p_{name} => %s" for name in arguments)
    (found,) = call(acme, zone, f"get_usage_summary(%s, %s, %s{named})", acme.org_id, start, end, *arguments.values())
    if used:
        assert_equal(found, summed(used))
        assert found["p95_latency_ms"] == percentile(used, 0.95)
        assert found["unique_users"] == (len({u.record.user_id for u in used} - {None}) or None)
    else:
        assert found["record_count"] == 0 == found["total_tokens"]


@check
@given(period=periods, zone=st.sampled_from(ZONES), width=st.sampled_from(["minute", "hour", "day", "week", "month"]))
def test_a_trend_has_the_sum_of_each_bucket_with_usage(acme: UsageCase, period, zone, width: str) -> None:
    """What is known per day only is in no hour, and what is known per hour only in no minute."""
    start, end = period
    widths = {"minute": ("1m",), "hour": ("1m", "1h")}.get(width, ("1m", "1h", "1d"))
    used = [u for u in acme.within(start, end) if u.record.granularity in widths]
    expected = grouped(used, lambda u: bucket(u, width))
    found = call(acme, zone, "get_usage_trend(%s, %s, %s, %s, 'cost')", acme.org_id, start, end, width)
    assert [row["time_bucket"] for row in found] == sorted(expected)
    for row in found:
        assert_equal(row, summed(expected[row["time_bucket"]]))
        assert row["value"] == row["estimated_cost"]


@check
@given(
    period=periods,
    zone=st.sampled_from(ZONES),
    width=st.sampled_from([None, "minute", "hour", "day", "week", "month"]),
    dimensions=st.lists(st.sampled_from(["provider", "model", "feature", "user", "api_key"]), unique=True, max_size=3),
    path=st.sampled_from([{}, {"provider": "google"}, {"feature": None}, {"model": "g-2", "user": "ann"}, {"apiKey": "Unknown"}]),
)
def test_a_frame_has_the_sum_of_each_bucket_and_combination(acme: UsageCase, period, zone, width, dimensions, path) -> None:
    start, end = period
    widths = {"minute": ("1m",), "hour": ("1m", "1h")}.get(width, ("1m", "1h", "1d"))
    wanted = {"api_key" if name == "apiKey" else name: None if value == "Unknown" else value for name, value in path.items()}
    used = [
        u
        for u in acme.within(start, end)
        if u.record.granularity in widths and all(u.of(name) == value for name, value in wanted.items())
    ]
    expected = grouped(used, lambda u: (bucket(u, width) if width else None, *(u.of(name) for name in dimensions)))
    found = call(acme, zone, "get_usage_frame(%s, %s, %s, %s, %s, %s)", acme.org_id, start, end, dimensions, width, json(path))
    assert {(row["time_bucket"], *row["dimension_values"]) for row in found} == expected.keys()
    assert len(found) == len(expected)
    for row in found:
        figures = summed(expected[row["time_bucket"], *row["dimension_values"]])
        assert_equal(row, {name: figures[name] for name in figures if name not in ("error_rate", "avg_latency_ms")})
        assert divided(row["error_count"], row["requests_with_errors_known"], 100) == pytest.approx(figures["error_rate"])


def bucket(used: Used, width: str) -> datetime:
    day = used.moment.replace(hour=0, minute=0, second=0, microsecond=0)
    return {
        "minute": used.moment.replace(second=0, microsecond=0),
        "hour": used.moment.replace(minute=0, second=0, microsecond=0),
        "day": day,
        "week": day - timedelta(days=day.weekday()),
        "month": day.replace(day=1),
    }[width]


NAMES = {"team": "teams", "project": "projects", "cost_center": "cost_centers"}


@check
@given(
    period=periods,
    zone=st.sampled_from(ZONES),
    dimension=st.sampled_from(["provider", "model", "team", "project", "feature", "environment", "user", "api_key", "request_type", "service_type", "cost_center"]),
    limit=st.sampled_from([0, 1, 2, 10, None]),
    path=st.sampled_from([{}, {"provider": "google"}, {"feature": None}, {"model": "g-2", "user": "ann"}, {"apiKey": "Unknown"}]),
)  # fmt: skip
def test_a_breakdown_covers_everything_and_the_rest_is_one_item(acme: UsageCase, period, zone, dimension, limit, path) -> None:
    start, end = period
    name_of = {"apiKey": "api_key"}
    wanted = {name_of.get(name, name): None if value == "Unknown" else value for name, value in path.items()}
    used = [u for u in acme.within(start, end) if all(u.of(name) == value for name, value in wanted.items())]
    known_ids = ids(acme.database, NAMES[dimension]) if dimension in NAMES else {}
    groups = grouped(used, lambda u: known_ids.get(u.of(dimension), u.of(dimension)))
    order = sorted(groups, key=lambda value: (-summed(groups[value])["total_tokens"], value is None, value))
    shown = order[:limit] if limit is not None else order
    found = call(acme, zone, "get_usage_drilldown(%s, %s, %s, %s, %s, %s)", acme.org_id, start, end, json(path), dimension, limit)
    assert [row["dimension_value"] for row in found if not row["is_other"]] == [value or "Unknown" for value in shown]
    for row, value in zip(found, shown, strict=False):
        assert_equal(row, summed(groups[value]))
    rest = [u for value in order[len(shown) :] for u in groups[value]]
    if rest:
        assert (found[-1]["dimension_value"], found[-1]["other_count"]) == ("Other", len(order) - len(shown))
        assert_equal(found[-1], summed(rest))
    everything = sum(u.record.input_tokens + u.record.output_tokens for u in used)
    if everything:
        assert sum(row["percentage"] for row in found) == pytest.approx(100)
    if not path:
        assert found == call(acme, zone, "get_usage_breakdown(%s, %s, %s, %s, %s)", acme.org_id, start, end, dimension, limit)


def json(value: Any) -> Any:
    from psycopg.types.json import Jsonb

    return Jsonb(value)


@check
@given(
    current=periods, previous=periods, dimension=st.sampled_from(["model", "user", "feature", None]), zone=st.sampled_from(ZONES)
)
def test_a_comparison_holds_every_value_of_either_period(acme: UsageCase, current, previous, dimension, zone) -> None:
    now, before = acme.within(*current), acme.within(*previous)
    by = (lambda u: u.of(dimension)) if dimension else (lambda _: None)
    this, that = grouped(now, by), grouped(before, by)
    found = call(acme, zone, "get_usage_comparison(%s, %s, %s, %s, %s, %s)", acme.org_id, *current, *previous, dimension)
    assert len(found) == (len(this.keys() | that.keys()) if dimension else 1)
    for row in found:
        value = None if row["dimension_value"] == "Unknown" else row["dimension_value"]
        mine, theirs = this.get(value, []), that.get(value, [])
        assert row["current_tokens"] == (summed(mine)["total_tokens"] or 0)
        assert row["previous_tokens"] == (summed(theirs)["total_tokens"] or 0)
        assert row["token_change"] == row["current_tokens"] - row["previous_tokens"]
        assert row["current_cost"] == (cost(mine) if mine else 0)
        assert row["previous_requests"] == (summed(theirs)["request_count"] if theirs else 0)
        assert (row["is_new"], row["is_churned"]) == (bool(mine and not theirs), bool(theirs and not mine))
        assert (row["token_change_pct"] is None) == (row["previous_tokens"] == 0)


@check
@given(period=periods, zone=st.sampled_from(ZONES))
def test_coverage_is_the_share_of_all_usage_that_names_a_value(acme: UsageCase, period, zone) -> None:
    used = acme.within(*period)
    for row in call(acme, zone, "get_usage_coverage(%s, %s, %s)", acme.org_id, *period):
        named = [u for u in used if u.of(row["dimension"]) is not None]
        assert row["total_tokens"] == (summed(used)["total_tokens"] or 0)
        assert row["attributed_tokens"] == (summed(named)["total_tokens"] or 0)
        assert (row["attributed_records"], row["total_records"]) == (len(named), len(used))
        assert row["total_cost"] == (cost(used) if used else 0)
        assert row["attributed_cost"] == (0 if not used else None if cost(used) is None else cost(named) or 0)
        assert row["token_coverage_pct"] == pytest.approx(divided(row["attributed_tokens"], row["total_tokens"], 100))


def test_top_users_of_any_days_are_sums_of_their_days(acme: UsageCase) -> None:
    for first, last in ((0, 6), (1, 3), (2, 2)):
        start, end = DAY + first * 24 * HOUR, DAY + last * 24 * HOUR
        users = grouped([u for u in acme.within(start, end) if u.record.user_id], lambda u: u.record.user_id)
        found = call(acme, "Asia/Kolkata", "get_top_users(%s, %s, %s, 2, 'cost')", acme.org_id, start.date(), end.date())
        assert [row["user_identifier"] for row in found] == sorted(users, key=lambda user: -cost(users[user]))[:2]
        for row in found:
            mine = users[row["user_identifier"]]
            assert_equal(row, summed(mine))
            models = grouped(mine, lambda u: u.record.model)
            assert row["model_usage"] == {
                model: {"tokens": summed(of)["total_tokens"], "requests": len(of)} for model, of in models.items()
            }
            assert row["active_days"] == len({u.moment.date() for u in mine})


def test_all_of_history_and_another_organisation(acme: UsageCase) -> None:
    (found,) = call(acme, "UTC", "get_usage_summary(%s, '-infinity', 'infinity')", acme.org_id)
    assert_equal(found, summed(acme.counted))
    other = connection(acme.database, "globex", "openai", "openai").org_id
    (theirs,) = call(acme, "UTC", "get_usage_summary(%s, '-infinity', 'infinity')", other)
    assert theirs["record_count"] == 24


def test_the_sessions_date_style_does_not_matter(acme: UsageCase) -> None:
    start, end = DAY + HOUR / 3, DAY + 100 * HOUR + HOUR / 3
    with acme.database.connect() as db:
        db.execute("SET timezone = 'Asia/Kolkata'")
        db.execute("SET datestyle = 'SQL, DMY'")
        found = db.execute("SELECT total_tokens FROM get_usage_summary(%s, %s, %s)", [acme.org_id, start, end]).fetchone()
        assert found == {"total_tokens": summed(acme.within(start, end))["total_tokens"]}
