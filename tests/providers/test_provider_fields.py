"""What the providers add or leave out: new fields are kept, nothing is counted twice, what is not said stays unknown."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from tokentra_dagster.errors import PermanentError
from tokentra_dagster.providers import INTEGRATIONS
from tokentra_dagster.providers.openai_endpoints import ENDPOINTS
from tokentra_dagster.records import split

NOV_1 = int(datetime(2026, 11, 1, tzinfo=UTC).timestamp())
COMPLETIONS, COSTS = "/v1/organization/usage/completions", "/v1/organization/costs"
USAGE, COST = "/v1/organizations/analytics/usage", "/v1/organizations/analytics/cost"
LEGACY_USAGE, LEGACY_COST = "/v1/organizations/usage_report/messages", "/v1/organizations/cost_report"


@pytest.fixture
def november(days):
    return days((2026, 11, 1), (2026, 11, 2))


@pytest.fixture
def december(days):
    return days((2025, 12, 1), (2025, 12, 2))


def page(*data):
    return {"data": list(data), "has_more": False, "next_page": None}


# ---- OpenAI --------------------------------------------------------------------------------------------------------


def openai_page(kind="usage.completions", **fields):
    tokens = {"input_tokens": 100, "output_tokens": 10, "num_model_requests": 1} if kind.startswith("usage") else {}
    result = {"object": f"organization.{kind}.result", **tokens, **fields}
    return page({"start_time": NOV_1, "end_time": NOV_1 + 86400, "results": [result]})


def completion(provider, openai, window, **fields):
    provider.on(COMPLETIONS, openai_page(**fields))
    (record,) = openai(endpoints="completions").usage(window)
    return record


def test_modality_counts_are_never_added_whichever_meaning_they_have(provider, openai, november):
    """Older answers counted cached audio inside `input_audio_tokens`; the newer ones leave it out. `input_tokens` is whole in both."""
    older = {"input_text_tokens": 40, "input_audio_tokens": 60, "input_cached_audio_tokens": 30, "input_cached_tokens": 30}
    record = completion(provider, openai, november, **older)
    assert (record.input_tokens, record.cached_input_tokens) == (100, 30)
    assert record.token_details == {"input_text": 40, "input_audio": 60, "cached_audio": 30}


def test_cache_writes_are_the_sum_or_its_parts_never_both(provider, openai, november):
    parts = {"input_cache_write_30m_tokens": 15, "input_cache_write_12h_tokens": 5}
    whole = completion(provider, openai, november, input_cache_write_tokens=20, **parts)
    without_sum = completion(provider, openai, november, **parts)
    assert whole.cache_creation_tokens == without_sum.cache_creation_tokens == 20
    assert whole.token_details == without_sum.token_details == {"cache_write_30m": 15, "cache_write_12h": 5}


def test_an_uncached_count_that_disagrees_is_kept_for_who_looks(provider, openai, november):
    agrees = completion(provider, openai, november, input_uncached_tokens=70, input_cached_tokens=30)
    disagrees = completion(provider, openai, november, input_uncached_tokens=60, input_cached_tokens=30)
    assert agrees.metadata == {"endpoint": "completions"}
    assert disagrees.metadata == {"endpoint": "completions", "reported_uncached_tokens": 60}


def test_a_new_measure_is_kept_under_its_own_name(provider, openai, november):
    record = completion(provider, openai, november, input_video_tokens=9)
    assert record.input_tokens == 100
    assert record.metadata["input_video_tokens"] == 9


def test_decisions_count_tokens_as_completions_do(provider, openai, november):
    provider.on("/v1/organization/usage/decisions", openai_page("usage.decisions", input_cached_tokens=30, batch=True))
    (record,) = openai(endpoints="decisions").usage(november)
    assert (record.model, record.request_type, record.service_type) == ("decisions", "decision", "batch")
    assert (record.input_tokens, record.output_tokens, record.cached_input_tokens) == (100, 10, 30)


def test_every_endpoint_refuses_the_results_of_another(provider, openai, november):
    for name in ENDPOINTS:
        provider.on(f"/v1/organization/usage/{name}", openai_page("costs", amount={"value": 1, "currency": "usd"}))
    usage, costs, rejected = split(openai().usage(november))
    assert (usage, costs, len(rejected)) == ([], [], 11)


def test_costs_may_be_divided_by_user_too(provider, openai, november):
    provider.on(COSTS, openai_page("costs", amount={"value": "0.10", "currency": "usd"}, user_id="user-a", line_item="x"))
    (item,) = openai(costs_group_by="line_item, user_id, api_source").costs(november)
    assert provider.requests[0].query["group_by[]"] == ["line_item", "user_id", "api_source"]
    assert (item.user_id, item.amount) == ("user-a", Decimal("0.10"))


def test_a_cost_grouping_that_openai_refuses_is_an_error_that_names_the_option(provider, openai, november, answer):
    provider.on(COSTS, answer({"error": {"message": "user_id cannot be combined with project_id"}}, status=400))
    with pytest.raises(PermanentError, match=r"user_id cannot be combined with project_id.*option costs_group_by.*costs=off"):
        list(openai(costs_group_by="line_item,project_id,user_id").costs(november))
    assert len(provider.requests) == 1


def test_costs_without_their_line_item_are_refused_before_anything_is_asked(openai):
    with pytest.raises(PermanentError, match="costs_group_by must contain line_item"):
        openai(costs_group_by="project_id")


# ---- Anthropic -----------------------------------------------------------------------------------------------------


def counts(**fields):
    return {
        "uncached_input_tokens": 10, "cache_read_input_tokens": 2, "output_tokens": 3,
        "cache_creation": {"ephemeral_5m_input_tokens": 1, "ephemeral_1h_input_tokens": 0}, **fields,
    }  # fmt: skip


def row(group=None, **kind):
    return {"starting_at": "2026-11-01T00:00:00Z", "ending_at": "2026-11-02T00:00:00Z", "group": group or {"model": "m"}, **kind}


def bucket(*results):
    return {"starting_at": "2025-12-01T00:00:00Z", "ending_at": "2025-12-02T00:00:00Z", "results": list(results)}


def test_what_is_new_in_anthropics_counts_is_kept_and_not_guessed_at(provider, anthropic, november):
    new = counts(
        requests=1, total_tokens=20, thinking_tokens=1, server_tool_use={"web_search_requests": 0, "web_fetch_requests": 5},
        cache_creation={"ephemeral_5m_input_tokens": 1, "ephemeral_1h_input_tokens": 0, "ephemeral_24h_input_tokens": 4},
    )  # fmt: skip
    provider.on(USAGE, page(row(usage=new)))
    (record,) = anthropic().usage(november)
    assert (record.input_tokens, record.output_tokens, record.cache_creation_tokens) == (13, 3, 1)
    assert record.metadata == {
        "web_fetch_requests": 5, "thinking_tokens": 1, "cache_creation.ephemeral_24h_input_tokens": 4,
        "reported_total_tokens": 20,
    }  # fmt: skip


def test_what_is_new_in_the_legacy_reports_and_in_costs_is_kept(provider, anthropic, november, december):
    provider.on(LEGACY_USAGE, page(bucket(counts(model="m", workspace_id="w", region="eu"))))
    (usage,) = anthropic().usage(december)
    assert usage.metadata == {"region": "eu"}
    provider.on(LEGACY_COST, page(bucket({"amount": "5", "workspace_id": "w", "speed": "fast"})))
    (legacy,) = anthropic().costs(december)
    assert legacy.metadata == {"speed": "fast"}
    provider.on(COST, page(row(cost={"amount": "5", "list_amount": "8", "currency": "USD", "credit_amount": "3"})))
    (cost,) = anthropic().costs(november)
    assert (cost.amount, cost.list_amount, cost.metadata) == (Decimal("0.05"), Decimal("0.08"), {"credit_amount": "3"})


def test_analytics_without_a_workspace_or_tier_say_nothing_of_a_default(provider, anthropic, november):
    """Enterprise rows have neither; the analytics API gives the default workspace its real id."""
    provider.on(USAGE, page(row({"model": "m", "workspace_id": None, "service_tier": None}, usage=counts(requests=1))))
    (record,) = anthropic().usage(november)
    assert (record.provider_project_id, record.service_tier, record.service_type, record.metadata) == (None, None, None, {})


def test_priority_and_other_tiers_are_kept_as_they_are_called(provider, anthropic, december):
    tiers = ("standard", "batch", "flex", "flex_discount", "priority", "priority_on_demand")
    provider.on(LEGACY_USAGE, page(bucket(*(counts(model="m", workspace_id="w", service_tier=tier) for tier in tiers))))
    usage = list(anthropic().usage(december))
    assert [record.service_tier for record in usage] == list(tiers)
    assert [record.service_type for record in usage] == ["sync", "batch", "sync", "sync", "sync", "sync"]


def test_code_execution_and_sessions_are_costs_without_a_model(provider, anthropic, november, december):
    legacy = {"amount": "12.5", "description": "Code Execution Usage", "cost_type": "code_execution", "workspace_id": None}
    provider.on(LEGACY_COST, page(bucket(legacy)))
    (item,) = anthropic().costs(december)
    assert (item.amount, item.model, item.cost_type, item.provider_project_id) == (Decimal("0.125"), None, "code_execution", None)
    assert item.metadata == {"default_workspace": True}
    kinds = ("web_search", "code_execution", "session_usage")
    provider.on(COST, page(*(row({"cost_type": kind}, cost={"amount": "1", "list_amount": "1"}) for kind in kinds)))
    assert [(item.cost_type, item.token_type) for item in anthropic().costs(november)] == [(kind, None) for kind in kinds]


def test_a_page_of_costs_may_hold_more_rows_than_its_limit(provider, anthropic, november):
    provider.on(COST, page(*(row(cost={"amount": "1", "list_amount": "1"}) for _ in range(2_500))))
    assert sum(item.amount for item in anthropic().costs(november)) == 25
    assert provider.requests[0].one("limit") == "1000"


def test_nothing_but_what_is_needed_is_asked_of_the_analytics_api(provider, anthropic, november):
    """No filters: each would leave usage out, `exclude_deleted_users` that of people who left."""
    source = anthropic()
    list(source.usage(november)), list(source.costs(november))
    asked = {"starting_at", "ending_at", "time_bucket_width", "group_by[]", "order_by", "order", "limit"}
    assert [set(request.query) for request in provider.requests] == [asked, asked]


@pytest.mark.parametrize("group_by", ["model,workspace_id,api_key_id,speed,inference_geo", "model,product,agent_id,session_id"])
def test_any_five_dimensions_may_be_chosen_and_costs_follow(provider, anthropic, november, group_by):
    list(anthropic(group_by=group_by).costs(november))
    assert provider.requests[0].query["group_by[]"] == [*group_by.split(","), "cost_type", "token_type"]


def test_how_far_anthropics_figures_reach_is_told(provider, anthropic, november):
    source = anthropic()
    assert source.remarks() == []
    provider.on(USAGE, page() | {"data_refreshed_at": "2026-11-01T22:00:00Z"})
    list(source.usage(november))
    assert source.remarks() == ["Anthropic's figures reach to 2026-11-01T22:00:00Z."]


def test_a_key_that_reads_usage_but_no_names_is_told_so(provider, anthropic, answer):
    for what in ("workspaces", "api_keys", "service_accounts"):
        provider.on(f"/v1/organizations/{what}", answer({"error": {"message": "no"}}, status=403))
    provider.on("/v1/organizations/users", {"data": [{"id": "user_a", "name": "Ada"}], "has_more": False})
    source = anthropic()
    assert [entity.id for entity in source.names()] == ["user_a"]
    assert source.remarks() == [
        f"The key may not list {what}; their ids stay without names." for what in ("workspaces", "API keys", "service accounts")
    ]


def test_a_revoked_key_reads_no_names(provider, anthropic, answer):
    provider.on("/v1/organizations/workspaces", answer({"error": {"message": "revoked"}}, status=401))
    with pytest.raises(PermanentError, match="HTTP 401"):
        list(anthropic().names())


def test_a_key_of_the_whole_organisation_has_no_workspace(provider, anthropic):
    key = {"id": "apikey_o", "name": "all", "scope": {"type": "organization"}}
    provider.on("/v1/organizations/api_keys", {"data": [key], "has_more": False})
    (found,) = anthropic().names()
    assert (found.kind, found.id, found.metadata) == ("api_key", "apikey_o", {})


def test_the_key_goes_out_as_a_bearer_and_the_environment_does_not(provider, anthropic, november, december, secret, monkeypatch):
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL", "ANTHROPIC_PROFILE"):
        monkeypatch.setenv(name, "http://from-the-environment.invalid")
    monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", "anthropic-version: from-the-environment\nauthorization: from-the-environment")
    source = anthropic()
    list(source.usage(november)), list(source.usage(december))
    for asked in provider.requests:
        assert asked.headers["authorization"] == f"Bearer {secret}"
        assert "from-the-environment" not in str(asked.headers)
    assert [asked.headers["anthropic-version"] for asked in provider.requests] == ["2026-10-21", "2023-06-01"]


# ---- How long they restate -----------------------------------------------------------------------------------------


def test_how_long_a_provider_restates_stands_once_for_every_integration():
    for entry in INTEGRATIONS.values():
        assert entry.settles_after.days > 0
        assert entry.costs_settle_after is None or entry.costs_settle_after >= entry.settles_after
        module, _, name = entry.target.partition(":")
        assert not hasattr(getattr(__import__(module, fromlist=[name]), name), "settles_after")
    for name in ("openai", "anthropic"):
        assert (INTEGRATIONS[name].settles_after.days, INTEGRATIONS[name].costs_settle_after.days) == (3, 7)
