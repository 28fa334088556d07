"""The simulated Anthropic: what it measures, charges, names and refuses. Totals are compared in tests/ingest/test_sync_simulated.py."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from genai_prices import Usage, calc_price

from tokentra_dagster.errors import PermanentError
from tokentra_dagster.providers import open_source
from tokentra_dagster.providers.base import ConnectionConfig, Source, Window
from tokentra_dagster.records import CostRecord, UsageRecord, split
from tokentra_dagster.simulator.prices import TARIFF
from tokentra_dagster.simulator.server import RunningSimulator

DAY = timedelta(days=1)
TODAY = datetime(2026, 11, 24, tzinfo=UTC)
YESTERDAY = TODAY - DAY
OLD = datetime(2025, 12, 9, tzinfo=UTC)  # a Tuesday that only the legacy reports reach


def _usage(source: Source, start: datetime, end: datetime, granularity: str = "1d") -> list[UsageRecord]:
    usage, _, rejected = split(source.usage(Window(start, end, granularity)))  # type: ignore[arg-type]
    assert rejected == []
    return usage


def _costs(source: Source, start: datetime, end: datetime) -> list[CostRecord]:
    _, costs, rejected = split(source.costs(Window(start, end, "1d")))
    assert rejected == []
    return costs


def _read(usage: list[UsageRecord]) -> dict[str, int]:
    """Tokens of every kind, under the truth's names."""
    return {
        "output": sum(r.output_tokens for r in usage),
        "cache_read": sum(r.cached_input_tokens or 0 for r in usage),
        "cache_5m": sum(r.token_details.get("cache_write_5m", 0) for r in usage),
        "cache_1h": sum(r.token_details.get("cache_write_1h", 0) for r in usage),
        "uncached": sum(r.input_tokens - (r.cached_input_tokens or 0) - (r.cache_creation_tokens or 0) for r in usage),
        "web_search": sum(r.metadata.get("web_search_requests", 0) for r in usage),
    }


@pytest.mark.parametrize("granularity", ["1m", "1h", "1d"])
def test_the_connector_reads_the_truth_from_the_legacy_report(simulator: RunningSimulator, anthropic, granularity: str):
    usage = _usage(anthropic(api="legacy"), OLD, OLD + DAY, granularity)
    truth = simulator.simulation.totals("acme", "anthropic", "messages", OLD, OLD + DAY)
    del truth["requests"]
    assert {name: value for name, value in _read(usage).items() if value} == truth
    assert all(record.request_count is None for record in usage)
    assert {True, None} == {record.metadata.get("default_workspace") for record in usage}
    assert set(simulator.simulation.requests) == {"anthropic /v1/organizations/usage_report/messages"}


def test_the_source_as_a_connection_opens_it_reads_today(request_to):
    """With both clocks real."""
    with RunningSimulator() as simulator:
        config = ConnectionConfig("anthropic", "sk-ant-admin01-globex", simulator.anthropic_url, {"max_retries": "0"})
        source = open_source(config)
        assert "usage readable" in source.check()
        yesterday = simulator.simulation.clock().replace(hour=0, minute=0) - 4 * DAY
        usage = _usage(source, yesterday, yesterday + DAY, "1h")
        truth = simulator.simulation.totals("globex", "anthropic", "messages", yesterday, yesterday + DAY)
        assert _read(usage)["output"] == truth["output"] > 0


def test_a_long_window_comes_in_pages_of_rows_and_no_row_is_missed(simulator: RunningSimulator, anthropic):
    start = TODAY - 40 * DAY
    usage = _usage(anthropic(), start, TODAY, "1h")
    truth = simulator.simulation.totals("acme", "anthropic", "messages", start, TODAY)
    assert _read(usage)["uncached"] == truth["uncached"]
    first = sum(record.bucket_start < start + 31 * DAY for record in usage)
    pages = -(-first // 1000) - (-(len(usage) - first) // 1000)  # 31 days at once at most, 1000 rows a page
    assert simulator.simulation.requests["anthropic /v1/organizations/analytics/usage"] == pages > 4


def test_costs_are_tokens_times_list_price_in_cents(anthropic):
    source = anthropic("globex")
    expected: dict[str | None, Decimal] = defaultdict(Decimal)
    for record in _usage(source, YESTERDAY, TODAY):
        expected[record.model if record.input_tokens else None] += _list_price(record)
    billed: dict[str | None, Decimal] = defaultdict(Decimal)
    for cost in _costs(source, YESTERDAY, TODAY):
        billed[cost.model] += cost.amount
        assert cost.list_amount == cost.amount
    assert dict(billed) == dict(expected) and sum(billed.values()) > 5


def _list_price(record: UsageRecord) -> Decimal:
    if not record.input_tokens:
        return Decimal(record.metadata["execution_spans"]) * TARIFF["execution_spans"] / 10**12
    written_1h = record.token_details["cache_write_1h"]
    written_5m = record.token_details["cache_write_5m"]
    cached = record.cached_input_tokens or 0
    context = {"processing": "batch"} if record.service_type == "batch" else None
    total = Decimal(record.metadata.get("web_search_requests", 0)) / 100
    for tokens, one in (
        (record.input_tokens - cached - written_5m - written_1h, Usage(input_tokens=1)),
        (cached, Usage(input_tokens=1, cache_read_tokens=1)),
        (written_5m, Usage(input_tokens=1, cache_write_tokens=1)),
        (written_1h, Usage(input_tokens=1, cache_write_tokens=1, cache_write_1h_tokens=1)),
        (record.output_tokens, Usage(output_tokens=1)),
    ):
        found = calc_price(
            one, record.model, provider_id="anthropic", genai_request_timestamp=record.bucket_start, price_context=context
        )  # type: ignore[arg-type]
        total += found.total_price * tokens
    return total


def test_long_prompts_were_billed_at_the_higher_tier_while_there_was_one(anthropic):
    monday = datetime(2026, 1, 19, tzinfo=UTC)
    costs = [
        c
        for c in _costs(anthropic(), monday, monday + 5 * DAY)
        if c.token_type == "output_tokens" and c.model == "claude-sonnet-4-5-20250929"
    ]
    usage = [r for r in _usage(anthropic(), monday, monday + 5 * DAY) if r.model == "claude-sonnet-4-5-20250929"]
    for window, price in (("0-200k", Decimal("0.000015")), ("200k-1M", Decimal("0.0000225"))):
        billed = sum(c.amount for c in costs if c.metadata["context_window"] == window)
        tokens = sum(r.output_tokens for r in usage if r.context_window == window)
        assert billed == tokens * price and tokens > 0


def test_the_legacy_cost_report_leaves_out_the_priority_tier_and_names_code_execution(anthropic):
    day = TODAY - 7 * DAY
    legacy, new = (_costs(anthropic("globex", api=api), day, day + DAY) for api in ("legacy", "analytics"))
    priority = sum(cost.amount for cost in new if cost.metadata.get("service_tier") == "priority")
    assert priority > 0
    assert sum(cost.amount for cost in legacy) == sum(cost.amount for cost in new) - priority
    assert {"Code Execution Usage", "Web Search Usage"} <= {cost.line_item for cost in legacy}
    assert all(cost.api_key_id is None for cost in legacy)


def test_names_cover_every_id_in_usage_but_the_deleted_key(anthropic):
    source = anthropic()
    names = {(name.kind, name.id) for name in source.names()}
    usage = _usage(source, YESTERDAY, TODAY)
    assert {("workspace", r.provider_project_id) for r in usage} <= names
    assert {("api_key", r.api_key_id) for r in usage if r.api_key_id} - names == {("api_key", "apikey_acme_chloe_studio")}
    users = {r.user_id for r in usage if r.user_id}
    assert users <= {i for kind, i in names if kind in ("user", "service_account")} and len(users) >= 3


def test_archived_and_default_workspaces_are_listed_only_when_asked_for(ask_anthropic):
    def listed(**params: str) -> set[str]:
        return {workspace["id"] for workspace in ask_anthropic("workspaces", limit=100, **params).json["data"]}

    everything = listed(include_archived="true", include_default="true")
    assert everything - listed() == {"wrkspc_acme_chatbot", "wrkspc_acme_sandbox"}
    assert everything - listed(include_archived="true") == {"wrkspc_acme_sandbox"}


def test_lists_go_on_after_and_before_an_id(ask_anthropic):
    everyone = [key["id"] for key in ask_anthropic("api_keys", limit=1000).json["data"]]
    first = ask_anthropic("api_keys", limit=3).json
    assert first["has_more"] and first["last_id"] == everyone[2]
    second = ask_anthropic("api_keys", limit=3, after_id=first["last_id"]).json
    assert [key["id"] for key in second["data"]] == everyone[3:6]
    back = ask_anthropic("api_keys", limit=3, before_id=second["first_id"]).json
    assert [key["id"] for key in back["data"]] == everyone[:3]
    assert ask_anthropic("me").json["name"] == "acme"


def test_a_key_says_its_workspace_as_the_version_of_the_api_does(ask_anthropic):
    headers = {"x-api-key": "sk-ant-admin01-acme", "anthropic-version": "2023-06-01"}
    old, new = ask_anthropic("api_keys", headers).json["data"][0], ask_anthropic("api_keys").json["data"][0]
    assert old["workspace_id"] == new["scope"]["workspace_id"] and "scope" not in old and "workspace_id" not in new


def test_both_ways_of_sending_the_key_are_accepted_and_others_refused(ask_anthropic, anthropic):
    for header in ({"x-api-key": "sk-ant-admin01-acme"}, {"Authorization": "Bearer sk-ant-admin01-acme"}):
        assert ask_anthropic("me", header | {"anthropic-version": "2026-10-21"}).status == 200
    refused = ask_anthropic("me", {"x-api-key": "sk-ant-api03-acme", "anthropic-version": "2026-10-21"})
    assert refused.status == 401 and refused.json["error"]["type"] == "authentication_error" and refused.json["type"] == "error"
    with pytest.raises(PermanentError, match="HTTP 401"):
        anthropic(key="sk-ant-admin01-initech").check()


def test_the_version_and_the_beta_header_are_required(ask_anthropic):
    key = {"x-api-key": "sk-ant-admin01-acme"}
    params = {"starting_at": YESTERDAY, "ending_at": TODAY}
    assert "anthropic-version" in ask_anthropic("me", key).json["error"]["message"]
    refused = ask_anthropic("analytics/usage", key | {"anthropic-version": "2026-10-21"}, **params)
    assert refused.status == 400 and "analytics-usage-cost-2026-08-24" in refused.json["error"]["message"]


def test_a_dimension_is_null_unless_grouped_by_and_groups_add_up(ask_anthropic):
    params = {"starting_at": YESTERDAY, "ending_at": TODAY, "limit": 1000}
    (whole,) = ask_anthropic("analytics/usage", **params).json["data"]
    assert set(whole["group"].values()) == {None} and len(whole["group"]) == 20
    rows = ask_anthropic("analytics/usage", **params, group_by=["model", "actor"]).json["data"]
    assert sum(row["usage"]["total_tokens"] for row in rows) == whole["usage"]["total_tokens"]
    assert {row["group"]["actor"]["type"] for row in rows} == {"user_actor", "api_actor", "service_account_actor"}
    usage = whole["usage"]
    parts = [
        usage["uncached_input_tokens"],
        usage["cache_read_input_tokens"],
        usage["output_tokens"],
        *usage["cache_creation"].values(),
    ]
    assert usage["total_tokens"] == sum(parts)


def test_rows_come_by_their_metric_unless_asked_by_time(ask_anthropic):
    params = {"starting_at": YESTERDAY, "ending_at": TODAY, "time_bucket_width": "1h", "group_by": ["model"], "limit": 1000}
    by_metric = ask_anthropic("analytics/usage", **params).json["data"]
    totals = [row["usage"]["total_tokens"] for row in by_metric]
    assert totals == sorted(totals, reverse=True)
    by_time = ask_anthropic("analytics/usage", **params, order_by="time", order="asc").json["data"]
    assert [row["starting_at"] for row in by_time] == sorted(row["starting_at"] for row in by_time)
    assert len(by_time) == len(by_metric) > 40
    assert len(ask_anthropic("analytics/usage", **{k: v for k, v in params.items() if k != "limit"}).json["data"]) == 20


def test_costs_fan_out_by_type_beyond_the_limit_and_lose_their_requests(ask_anthropic):
    params = {"starting_at": YESTERDAY, "ending_at": TODAY, "group_by": ["model"], "limit": 2}
    whole = ask_anthropic("analytics/cost", **params).json
    assert len(whole["data"]) == 2 and whole["has_more"] and whole["data"][0]["cost"]["requests"] > 0
    params["group_by"] = ["model", "cost_type", "token_type"]
    fanned = ask_anthropic("analytics/cost", **params).json["data"]
    assert len(fanned) > 6 and {row["cost"]["requests"] for row in fanned} == {None}
    for row in whole["data"]:
        parts = [Decimal(f["cost"]["amount"]) for f in fanned if f["group"]["model"] == row["group"]["model"]]
        assert sum(parts) == Decimal(row["cost"]["amount"])
    assert all(isinstance(row["cost"]["amount"], str) and row["cost"]["currency"] == "USD" for row in fanned)


def test_an_empty_entry_matches_usage_without_a_key(ask_anthropic):
    params = {"starting_at": YESTERDAY, "ending_at": TODAY, "group_by": ["product", "api_key_id"], "limit": 1000}
    rows = ask_anthropic("analytics/usage", **params, api_key_ids=[""]).json["data"]
    assert {row["group"]["product"] for row in rows} == {"claude_console"} and {row["group"]["api_key_id"] for row in rows} == {
        None
    }


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"ending_at": TODAY}, "starting_at"),
        ({"starting_at": "2026-11-20T00:00:00"}, "timezone"),
        ({"starting_at": datetime(2025, 12, 31, tzinfo=UTC), "ending_at": TODAY}, "365 days"),
        ({"starting_at": YESTERDAY, "time_bucket_width": "1h"}, "ending_at"),
        ({"starting_at": TODAY - 32 * DAY, "ending_at": TODAY}, "31 days"),
        ({"starting_at": TODAY - 2 * DAY, "ending_at": TODAY, "time_bucket_width": "1m"}, "1 day"),
        (
            {"starting_at": YESTERDAY, "group_by": ["model", "actor", "speed", "product", "workspace_id", "service_tier"]},
            "at most 5",
        ),
        ({"starting_at": YESTERDAY, "group_by": ["account_id"]}, "account_id"),
        ({"starting_at": YESTERDAY, "group_by": ["cost_type"]}, "cost_type"),
        ({"starting_at": YESTERDAY, "limit": 1001}, "1001"),
        ({"starting_at": YESTERDAY, "exclude_deleted_users": "true"}, "group_by"),
        ({"starting_at": YESTERDAY, "order_by": "amount"}, "amount"),
        ({"starting_at": YESTERDAY, "bucket_width": "1h"}, "bucket_width"),
    ],
)
def test_what_anthropic_refuses_is_refused(ask_anthropic, params: dict, said: str):
    reply = ask_anthropic("analytics/usage", **params)
    assert (
        reply.status == 400
        and reply.json["error"]["type"] == "invalid_request_error"
        and reply.json["request_id"].startswith("req_")
    )
    assert said in reply.json["error"]["message"]


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("usage_report/messages", {"group_by": ["speed"]}),
        ("usage_report/messages", {"group_by": ["actor"]}),
        ("cost_report", {"bucket_width": "1h"}),
        ("cost_report", {"group_by": ["api_key_id"]}),
    ],
)
def test_what_the_legacy_reports_refuse_is_refused(ask_anthropic, path: str, params: dict):
    assert ask_anthropic(path, starting_at=YESTERDAY, **params).status == 400


def test_legacy_buckets_are_snapped_paged_and_may_be_empty(ask_anthropic):
    start = datetime(2023, 12, 27, 15, 20, tzinfo=UTC)
    page = ask_anthropic("usage_report/messages", starting_at=start).json
    assert len(page["data"]) == 7 and page["has_more"] and page["data"][0]["starting_at"] == "2023-12-27T00:00:00Z"
    assert page["data"][0]["results"] == [] and page["data"][6]["results"]
    following = ask_anthropic("usage_report/messages", starting_at=start, page=page["next_page"]).json
    assert following["data"][0]["starting_at"] == page["data"][-1]["ending_at"]
    assert ask_anthropic("usage_report/messages", starting_at=start, limit=8, page=page["next_page"]).status == 400
    assert "cache_creation_input_tokens" not in page["data"][6]["results"][0]


def test_rows_say_how_fresh_the_data_is(ask_anthropic, anthropic):
    reply = ask_anthropic("analytics/usage", starting_at=YESTERDAY, ending_at=TODAY)
    assert reply.json["data_refreshed_at"] == "2026-11-24T13:37:00Z"
    source = anthropic()
    _usage(source, YESTERDAY, TODAY)
    assert source.data_refreshed_at == "2026-11-24T13:37:00Z"


def test_without_a_width_one_row_covers_whole_hours(ask_anthropic):
    (row,) = ask_anthropic("analytics/usage", starting_at=YESTERDAY + timedelta(minutes=20)).json["data"]
    assert (row["starting_at"], row["ending_at"]) == ("2026-11-23T00:00:00Z", "2026-11-24T13:00:00Z")
