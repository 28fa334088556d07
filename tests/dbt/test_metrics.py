"""The metrics of specification 1.4, asked of MetricFlow on a real database and reckoned from the records in Python."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from datetime import date, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.dbt.metric_queries import Metrics
from tests.warehouse_data import DAY, HOUR, connection, load, one, record, rows
from tokentra_dagster.latency import latency_percentile
from tokentra_dagster.records import UsageRecord
from tokentra_dagster.warehouse.database import Database

MODELS = "+daily_usage_rollup +daily_usage_by_user +daily_usage_by_api_key +daily_active_entities stg_app__organizations metricflow_time_spine usage_metric_users usage_metric_days"
ADDITIVE = (
    "total_requests",
    "input_tokens",
    "output_tokens",
    "total_tokens",
    "cached_tokens",
    "cache_creation_tokens",
    "error_count",
)
PER_ENTITY = (*ADDITIVE, "average_latency")
ALL = (
    *PER_ENTITY, "p50_latency", "p95_latency", "p99_latency", "error_rate", "success_rate", "tokens_per_request",
    "requests_per_minute", "active_users", "active_features",
)  # fmt: skip
FAMILIES = {"gpt-4o-2024-08-06": "gpt-4o", "claude-sonnet-4-5-20250929": "claude-sonnet", "dall-e-3": "dall-e-3"}
LABELS = "SELECT t.id, o.name || '/' || t.name AS name FROM app.{} AS t JOIN app.organizations AS o ON t.org_id = o.id"
START = DAY - timedelta(days=3)


class Used(NamedTuple):
    """A record, and whose it is."""

    org: str
    provider: str
    item: UsageRecord


DIMENSIONS: dict[str, Callable[[Used], Any]] = {
    "org_id": lambda u: u.org,
    "provider": lambda u: u.provider,
    "model": lambda u: u.item.model,
    "model_family": lambda u: FAMILIES[u.item.model],
    "request_type": lambda u: u.item.request_type,
    "service_type": lambda u: u.item.service_type,
    "team_id": lambda u: u.item.team and f"{u.org}/{u.item.team}",
    "project_id": lambda u: u.item.project and f"{u.org}/{u.item.project}",
    "cost_center_id": lambda u: u.item.cost_center and f"{u.org}/{u.item.cost_center}",
    "feature": lambda u: u.item.feature,
    "environment": lambda u: u.item.environment,
    "user_id": lambda u: u.item.user_id,
    "api_key_id": lambda u: u.item.api_key_id,
    "metric_time__day": lambda u: u.item.bucket_start.date(),
    "metric_time__week": lambda u: u.item.bucket_start.date() - timedelta(days=u.item.bucket_start.weekday()),
    "metric_time__month": lambda u: u.item.bucket_start.date().replace(day=1),
}


def _usage() -> list[Used]:
    """Three weeks over a month's end. Anthropic's source knows no errors, caches or users; images have no count of requests."""
    pick = random.Random(42)
    made = []
    for number in range(300):
        org, provider = pick.choice([("acme", "openai"), ("acme", "anthropic"), ("globex", "openai")])
        image = provider == "openai" and pick.random() < 0.1
        requests = pick.randint(1, 50)
        latencies = Counter(pick.randint(150, 400) for _ in range(requests))
        knows = provider == "openai" and not image
        days = 8 if org == "globex" else 20
        item = record(
            START + timedelta(days=pick.randrange(days)) + number % 24 * HOUR,
            model="dall-e-3" if image else "gpt-4o-2024-08-06" if provider == "openai" else "claude-sonnet-4-5-20250929",
            request_type="image" if image else "chat",
            service_type=pick.choice(["sync", "batch"]),
            input_tokens=(tokens := pick.randint(100, 10_000)),
            output_tokens=pick.randint(0, 500),
            cached_input_tokens=tokens // 2 if knows else None,
            cache_creation_tokens=tokens // 10 if knows else None,
            request_count=None if image else requests,
            error_count=(errors := min(requests, pick.randint(0, 3))) if knows else None,
            success_count=requests - errors if knows else None,
            total_latency_ms=pick.randint(100, 9000) * requests if knows else None,
            latency_histogram=dict(latencies) if knows else None,
            team=pick.choice(["search", "ads", None]),
            project=pick.choice(["alpha", None]),
            cost_center=pick.choice(["cc-1", "cc-2", None]),
            feature=pick.choice(["chat", "summaries", None]),
            environment=pick.choice(["production", "staging", None]),
            user_id=pick.choice(["ann", "bob", "cyd", "dan", None]) if provider == "openai" else None,
            api_key_id=pick.choice(["k1", "k2", None]),
        )  # fmt: skip
        made.append(Used(org, provider, item))
    return made


def _load(database: Database, usage: Iterable[Used]) -> None:
    by_connection: dict[tuple[str, str], list[UsageRecord]] = defaultdict(list)
    for used in usage:
        by_connection[used.org, used.provider].append(used.item)
    for (org, provider), items in by_connection.items():
        load(database, connection(database, org=org, provider=provider, name=provider), items, START, START + timedelta(days=20))


def _total(values: Iterable[int | None]) -> int | None:
    """NULL is unknown: left out of a sum, and the sum of nothing known."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _reckoned(usage: list[Used], days: set[date]) -> dict[str, float | None]:
    """Every metric of some records, by its definition, without SQL."""
    items = [used.item for used in usage]
    with_outcome = _total(i.request_count for i in items if i.error_count is not None)
    with_latency = _total(i.request_count for i in items if i.total_latency_ms is not None)
    requests = _total(i.request_count for i in items)
    errors = _total(i.error_count for i in items)
    latency = _total(i.total_latency_ms for i in items)
    counted = sum(i.input_tokens + i.output_tokens for i in items if i.request_count is not None)
    histogram: Counter[int] = Counter()
    for item in items:
        histogram.update(item.latency_histogram or {})
    error_rate = 100 * errors / with_outcome if with_outcome else None
    return {
        "total_requests": requests,
        "input_tokens": sum(i.input_tokens for i in items),
        "output_tokens": sum(i.output_tokens for i in items),
        "total_tokens": sum(i.input_tokens + i.output_tokens for i in items),
        "cached_tokens": _total(i.cached_input_tokens for i in items),
        "cache_creation_tokens": _total(i.cache_creation_tokens for i in items),
        "error_count": errors,
        "average_latency": latency / with_latency if with_latency else None,
        "error_rate": error_rate,
        "success_rate": None if error_rate is None else 100 - error_rate,
        "tokens_per_request": counted / requests if requests else None,
        "p50_latency": latency_percentile(histogram, 0.50),
        "p95_latency": latency_percentile(histogram, 0.95),
        "p99_latency": latency_percentile(histogram, 0.99),
        "requests_per_minute": None if requests is None else requests / (24 * 60 * len(days)),
        "active_users": len({i.user_id for i in items} - {None}) or None,
        "active_features": len({i.feature for i in items} - {None}) or None,
    }


def _days(usage: list[Used], org: str) -> list[date]:
    """Every day from the organisation's first usage to its last."""
    used = [u.item.bucket_start.date() for u in usage if u.org == org]
    return [min(used) + timedelta(days=n) for n in range((max(used) - min(used)).days + 1)]


def _expected(usage: list[Used], group_by: tuple[str, ...]) -> dict[tuple[Any, ...], dict[str, float | None]]:
    groups: dict[tuple[Any, ...], list[Used]] = defaultdict(list)
    periods: dict[tuple[Any, ...], set[date]] = defaultdict(set)
    days = {org: _days(usage, org) for org in {u.org for u in usage}}
    for used in usage:
        groups[tuple(DIMENSIONS[name](used) for name in group_by)].append(used)
        for day in days[used.org]:
            on_day = Used(used.org, used.provider, record(DAY + (day - DAY.date()), model=used.item.model))
            key = tuple(DIMENSIONS[name](on_day if name.startswith("metric_time") else used) for name in group_by)
            periods[key].add(day)
    return {key: _reckoned(found, periods[key]) for key, found in groups.items()}


def _found(
    database: Database, metrics: Metrics, names: tuple[str, ...], group_by: tuple[str, ...], **options: Any
) -> dict[tuple[Any, ...], dict[str, Any]]:
    """MetricFlow's answer by group, with names for ids. A group without usage in its period has only NULLs and is left out."""
    labels = {row["id"]: row["name"] for row in rows(database, "SELECT id, name FROM app.organizations")}
    for table in ("teams", "projects", "cost_centers"):
        labels |= {row["id"]: row["name"] for row in rows(database, LABELS.format(table))}
    found = {}
    for row in metrics.query(names, group_by, **options):
        key = tuple(row[name].date() if name.startswith("metric_time") else labels.get(row[name], row[name]) for name in group_by)
        assert key not in found, f"{key} twice"
        if any(row[name] is not None for name in names):
            found[key] = {name: None if row[name] is None else float(row[name]) for name in names}
    return found


def _assert_agree(found: dict[Any, dict[str, Any]], expected: dict[Any, dict[str, Any]], names: tuple[str, ...]) -> None:
    assert set(found) == {key for key, value in expected.items() if any(value[name] is not None for name in names)}
    for key, value in found.items():
        for name in names:
            assert value[name] == (wanted := expected[key][name]) or value[name] == pytest.approx(wanted, rel=1e-9), (key, name)


@pytest.fixture
def metrics(database, build, dbt_target: Path) -> Callable[[], Metrics]:
    """Builds the models, then answers."""

    def made() -> Metrics:
        build("run", "--write-json")
        return Metrics(dbt_target, database)

    return made


def test_every_metric_is_what_the_records_say_by_every_dimension_and_sums_to_the_rollup(database, metrics):
    usage = _usage()
    _load(database, usage)
    asked = metrics()
    dimensions = [name for name in DIMENSIONS if name not in ("user_id", "api_key_id")]
    pairs = [("metric_time__month", "team_id"), ("provider", "feature"), ("org_id", "metric_time__week", "environment")]
    for group_by in [(), *((name,) for name in dimensions), *pairs]:
        _assert_agree(_found(database, asked, ALL, group_by), _expected(usage, group_by), ALL)
    for name in ALL:
        _assert_agree(_found(database, asked, (name,), ("team_id",)), _expected(usage, ("team_id",)), (name,))

    (total,) = rows(
        database,
        "SELECT sum(request_count) AS total_requests, sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens, "
        "sum(total_tokens) AS total_tokens, sum(cached_input_tokens) AS cached_tokens, "
        "sum(cache_creation_tokens) AS cache_creation_tokens, sum(error_count) AS error_count FROM daily_usage_rollup",
    )
    for name in dimensions:
        found = _found(database, asked, ADDITIVE, (name,)).values()
        assert {metric: _total(row[metric] for row in found) for metric in ADDITIVE} == total, name

    for prefix, column in (("user_", "user_id"), ("api_key_", "api_key_id")):
        names = tuple(prefix + name for name in PER_ENTITY)
        for group_by in [(), (column,), (column, "provider"), ("org_id", column), ("metric_time__week", column)]:
            expected = {
                key: {prefix + name: value for name, value in row.items()} for key, row in _expected(usage, group_by).items()
            }
            _assert_agree(_found(database, asked, names, group_by), expected, names)
        (found,) = asked.query([prefix + name for name in ADDITIVE])
        assert {name: found[prefix + name] for name in ADDITIVE} == total


def test_the_rates_of_the_parts_add_up_to_the_rate_of_the_whole(database, metrics):
    """Correction 42. Two teams work on different days; a rate over each one's own days would add up to twice the rate."""
    row = connection(database)
    items = [record(DAY, team="search", request_count=1440), record(DAY + 23 * HOUR + HOUR, team="ads", request_count=1440)]
    load(database, row, items, DAY, DAY + 48 * HOUR)
    asked = metrics()
    assert _found(database, asked, ("requests_per_minute",), ("team_id",)) == {
        ("acme/search",): {"requests_per_minute": 0.5},
        ("acme/ads",): {"requests_per_minute": 0.5},
    }
    assert [float(r["requests_per_minute"]) for r in asked.query(["requests_per_minute"])] == [1.0]


def test_an_active_user_counts_once_however_many_days_teams_and_records_name_them(database, metrics):
    """Corrections 7 and 42: a sum of daily counts would say 4, and a feature on two days would count twice."""
    items = [
        record(DAY + n * 24 * HOUR, user_id=user, team=team, feature="chat")
        for n in range(2)
        for user, team in (("ann", "search"), ("bob", "ads"))
    ]
    load(database, connection(database), [*items, record(DAY + HOUR, user_id="ann", team="ads")], DAY, DAY + 48 * HOUR)
    load(database, connection(database, provider="anthropic", name="anthropic"), [record(model="claude-sonnet-4-5-20250929")])
    asked = metrics()
    names = ("active_users", "active_features")
    assert asked.query(names) == [{"active_users": 2, "active_features": 1}]
    assert _found(database, asked, names, ("team_id",)) == {
        ("acme/search",): {"active_users": 1, "active_features": 1},
        ("acme/ads",): {"active_users": 2, "active_features": 1},
    }
    by_provider = {r["provider"]: r["active_users"] for r in asked.query(["active_users"], ["provider"])}
    assert by_provider == {"openai": 2, "anthropic": None}


def test_a_percentile_is_that_of_all_requests_and_falls_back_to_weighted_percentiles_where_no_source_has_histograms(
    database, metrics
):
    """Correction 6: 990 fast requests on one day and 10 slow ones on the next; the mean of the days' medians is no median."""
    fast = record(DAY, team="search", request_count=990, latency_histogram={200: 990})
    slow = record(DAY + 24 * HOUR, team="search", request_count=10, latency_histogram={400: 10})
    only = [
        record(DAY + n * HOUR, team="ads", feature=f"f{n}", request_count=requests, p50_latency_ms=p50)
        for n, (requests, p50) in enumerate([(1, 100), (3, 200)])
    ]
    load(database, connection(database), [fast, slow, *only], DAY, DAY + 48 * HOUR)
    asked = metrics()
    names = ("p50_latency", "p95_latency", "p99_latency")
    low, high = latency_percentile({200: 1}, 0.5), latency_percentile({400: 1}, 0.5)
    assert _found(database, asked, names, ("team_id",)) == {
        ("acme/search",): {"p50_latency": low, "p95_latency": low, "p99_latency": low},
        ("acme/ads",): {"p50_latency": 175, "p95_latency": None, "p99_latency": None},
    }
    by_day = _found(database, asked, names, ("metric_time__day",))
    assert by_day[date(2026, 6, 2),] == dict.fromkeys(names, high)


def test_the_days_of_a_metric_are_utc_whatever_the_clients_time_zone(database, metrics):
    load(database, connection(database), [record(DAY + n * HOUR, input_tokens=1) for n in range(24)])
    asked = metrics()
    for timezone in ("UTC", "Asia/Kolkata", "America/Los_Angeles"):
        found = _found(database, asked, ("input_tokens", "requests_per_minute"), ("metric_time__day",), timezone=timezone)
        assert found == {(date(2026, 6, 1),): {"input_tokens": 24, "requests_per_minute": pytest.approx(24 / 1440)}}


def test_a_metric_can_be_restricted_to_values_of_a_dimension_and_to_a_period(database, metrics):
    items = [record(DAY + n * 24 * HOUR, input_tokens=10**n, team=team) for n in range(3) for team in ("search", None)]
    load(database, connection(database), items, DAY, DAY + 72 * HOUR)
    asked = metrics()
    since = "{{ TimeDimension('metric_time', 'day') }} >= '2026-06-02'"
    assert asked.query(["input_tokens"], where=[since, "{{ Entity('team_id') }} is null"]) == [{"input_tokens": 110}]
    (found,) = asked.query(["requests_per_minute"], where=[since])
    assert float(found["requests_per_minute"]) == pytest.approx(4 / (2 * 1440))


def test_the_metrics_of_a_period_are_those_of_get_usage_summary(database, metrics):
    """Defined twice, so compared: the function reads marts of its own choice, for a program; the metric is for a BI tool."""
    usage = _usage()
    _load(database, usage)
    asked = metrics()
    for org in ("acme", "globex"):
        days, org_id = _days(usage, org), one(database, "SELECT id FROM app.organizations WHERE name = %s", org)
        (wanted,) = rows(
            database,
            "SELECT total_requests, input_tokens, output_tokens, total_tokens, cached_tokens, cache_creation_tokens, "
            "avg_latency_ms AS average_latency, p50_latency_ms AS p50_latency, p95_latency_ms AS p95_latency, "
            "p99_latency_ms AS p99_latency, error_requests AS error_count, error_rate, 100 - error_rate AS success_rate, "
            "tokens_per_request, requests_per_minute, unique_users AS active_users, unique_features AS active_features "
            "FROM get_usage_summary(%s, %s::timestamptz, %s::timestamptz)",
            org_id, days[0], days[-1] + timedelta(days=1),
        )  # fmt: skip
        (found,) = asked.query(ALL, where=[f"{{{{ Entity('org_id') }}}} = '{org_id}'"])
        found["average_latency"] = round(found["average_latency"])
        assert {name: float(value) for name, value in found.items()} == pytest.approx(
            {name: float(value) for name, value in wanted.items()}
        )
