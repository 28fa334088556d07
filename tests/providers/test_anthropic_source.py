"""Anthropic: the analytics API, the legacy reports and the seam between them, through the real SDK."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.providers.base import Window
from tokentra_dagster.records import CostRecord, RejectedItem, UsageRecord, split

USAGE = "/v1/organizations/analytics/usage"
COST = "/v1/organizations/analytics/cost"
LEGACY_USAGE = "/v1/organizations/usage_report/messages"
LEGACY_COST = "/v1/organizations/cost_report"


def day(number, month=11, year=2026):
    return f"{year}-{month:02}-{number:02}T00:00:00Z"


def counts(**fields):
    return {
        "uncached_input_tokens": 3000,
        "cache_read_input_tokens": 1800,
        "cache_creation": {"ephemeral_5m_input_tokens": 150, "ephemeral_1h_input_tokens": 50},
        "output_tokens": 1000,
        "server_tool_use": {"web_search_requests": 4},
        **fields,
    }


def row(number=1, group=None, usage=None, **fields):
    return {
        "starting_at": day(number),
        "ending_at": day(number + 1),
        "group": {"model": "claude-opus-5-5", **(group or {})},
        "usage": counts(requests=12, total_tokens=6000) | (usage or {}),
        **fields,
    }


def cost_row(amount, number=1, **group):
    cost = {"amount": amount, "list_amount": amount, "currency": "USD", "requests": None}
    return {"starting_at": day(number), "ending_at": day(number + 1), "group": group, "cost": cost}


def page(*rows, following=None, **fields):
    return {"data": list(rows), "has_more": following is not None, "next_page": following, **fields}


def legacy_bucket(number, *results, month=12, year=2025):
    return {
        "starting_at": day(number, month, year),
        "ending_at": f"{datetime(year, month, number) + timedelta(days=1):%Y-%m-%dT00:00:00Z}",
        "results": list(results),
    }


@pytest.fixture
def november(days):
    return days((2026, 11, 1), (2026, 11, 4))


@pytest.fixture
def december_2025(days):
    return days((2025, 12, 1), (2025, 12, 4))


# ---- What a row means ----------------------------------------------------------------------------------------------


def test_input_is_uncached_plus_cache_reads_plus_both_kinds_of_cache_writes(provider, anthropic, november):
    provider.on(USAGE, page(row()))
    (record,) = anthropic().usage(november)
    assert isinstance(record, UsageRecord)
    assert record.input_tokens == 5000 == 3000 + 1800 + 150 + 50
    assert (record.cached_input_tokens, record.cache_creation_tokens, record.output_tokens) == (1800, 200, 1000)
    assert record.token_details == {"cache_write_5m": 150, "cache_write_1h": 50}
    assert (record.request_count, record.success_count, record.error_count) == (12, None, None)
    assert record.metadata["web_search_requests"] == 4


def test_every_dimension_reaches_the_record(provider, anthropic, november):
    user = {
        "type": "user_actor",
        "user_id": "user_a",
        "email_address": "ada@example.com",
        "name": "Ada",
        "deleted": True,
    }
    group = {
        "workspace_id": "wrkspc_a", "actor": user, "service_tier": "batch", "context_window": "200k-1M", "speed": None,
    }  # fmt: skip
    provider.on(USAGE, page(row(2, group)))
    (record,) = anthropic().usage(november)
    assert (record.bucket_start, record.bucket_end) == (
        datetime(2026, 11, 2, tzinfo=UTC),
        datetime(2026, 11, 3, tzinfo=UTC),
    )
    assert (record.model, record.request_type, record.granularity) == ("claude-opus-5-5", "chat", "1d")
    assert (record.service_type, record.service_tier, record.context_window) == ("batch", "batch", "200k-1M")
    assert (record.provider_project_id, record.user_id, record.api_key_id) == ("wrkspc_a", "user_a", None)
    assert record.metadata == {"actor_type": "user_actor", "actor_deleted": True, "web_search_requests": 4}


@pytest.mark.parametrize(
    ("actor", "user_id", "api_key_id"),
    [
        ({"type": "api_actor", "api_key_id": "apikey_a"}, None, "apikey_a"),
        ({"type": "service_account_actor", "service_account_id": "svac_a"}, "svac_a", None),
        ({"type": "federated_actor", "provider": {}, "subject": "arn:role"}, "arn:role", None),
        (None, None, None),
    ],
)
def test_an_actor_is_a_user_a_service_account_a_federated_identity_or_the_key(
    provider, anthropic, november, actor, user_id, api_key_id
):
    provider.on(USAGE, page(row(group={"actor": actor})))
    (record,) = anthropic().usage(november)
    assert (record.user_id, record.api_key_id) == (user_id, api_key_id)


def test_rows_of_different_unnamed_actors_are_all_kept(provider, anthropic, november):
    same = row(group={"actor": None, "workspace_id": "wrkspc_a"})
    provider.on(USAGE, page(same, same, same))
    usage, _, _ = split(anthropic().usage(november))
    assert sum(record.input_tokens for record in usage) == 15_000


def test_null_requests_stay_unknown(provider, anthropic, november):
    provider.on(USAGE, page(row(usage={"requests": None})))
    (record,) = anthropic().usage(november)
    assert record.request_count is None


def test_spans_of_code_execution_are_not_requests(provider, anthropic, november):
    nothing = {
        "uncached_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 0, "requests": 9, "total_tokens": 0,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0}, "server_tool_use": None,
    }  # fmt: skip
    provider.on(USAGE, page(row(group={"model": None}, usage=nothing)))
    (record,) = anthropic().usage(november)
    assert (record.request_count, record.model, record.metadata) == (None, "analytics_usage", {"execution_spans": 9})


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"usage": None}, "usage is None"),
        ({"usage": counts(output_tokens=None)}, "output_tokens is missing"),
        ({"usage": counts(uncached_input_tokens="3000")}, "a whole number is required"),
        ({"usage": counts(cache_read_input_tokens=-1)}, "cannot be negative"),
        ({"usage": counts(cache_creation=None)}, "cache_creation is None"),
        ({"usage": counts(server_tool_use=3)}, "server_tool_use is 3"),
        ({"group": {"model": 3}}, "text is required"),
        ({"group": {"model": "m", "actor": "ada"}}, "actor is 'ada'"),
        ({"starting_at": "2026-11-01T00:00:00"}, "with its zone"),
        ({"ending_at": day(5)}, "buckets of 1 day"),
    ],
)
def test_a_row_that_cannot_be_is_rejected_with_its_reason(provider, anthropic, november, wrong, reason):
    bad = row() | wrong
    provider.on(USAGE, page(bad, row()))
    usage, _, (rejected,) = split(anthropic().usage(november))
    assert len(usage) == 1
    assert reason in rejected.reason
    assert rejected.payload == bad


# ---- What is asked -------------------------------------------------------------------------------------------------


def test_usage_is_asked_by_five_dimensions_in_time_order_with_the_pinned_headers(provider, anthropic, november, secret):
    list(anthropic().usage(november))
    (asked,) = provider.requests
    assert asked.path == USAGE
    assert asked.query["group_by[]"] == ["model", "workspace_id", "actor", "service_tier", "context_window"]
    assert (asked.one("order_by"), asked.one("order"), asked.one("limit")) == ("time", "asc", "1000")
    assert (asked.one("starting_at"), asked.one("ending_at")) == (day(1), day(4))
    assert asked.one("time_bucket_width") == "1d"
    assert asked.headers["anthropic-version"] == "2026-10-21"
    assert asked.headers["anthropic-beta"] == "analytics-usage-cost-2026-08-24"
    assert secret in (asked.headers.get("authorization", "") + asked.headers.get("x-api-key", ""))


def test_an_organisation_may_choose_its_own_dimensions(provider, anthropic, november):
    key = {"api_key_id": "apikey_b", "speed": "fast", "inference_geo": "us"}
    provider.on(USAGE, page(row(group=key)))
    (record,) = anthropic(group_by="model,api_key_id,speed,inference_geo").usage(november)
    assert provider.requests[0].query["group_by[]"] == ["model", "api_key_id", "speed", "inference_geo"]
    assert record.api_key_id == "apikey_b"
    assert record.metadata == {"speed": "fast", "inference_geo": "us", "web_search_requests": 4}


@pytest.mark.parametrize("width", ["1d", "1h"])
def test_a_long_window_is_asked_in_spans_of_31_days(provider, anthropic, days, width):
    list(anthropic().usage(days((2026, 3, 1), (2026, 5, 5), width)))
    assert [(asked.one("starting_at"), asked.one("ending_at")) for asked in provider.requests] == [
        (day(1, 3), day(1, 4)),
        (day(1, 4), day(2, 5)),
        (day(2, 5), day(5, 5)),
    ]


def test_minutes_are_asked_in_spans_of_24_hours(provider, anthropic, days):
    list(anthropic().usage(days((2026, 11, 1), (2026, 11, 3), "1m")))
    assert [(asked.one("starting_at"), asked.one("ending_at")) for asked in provider.requests] == [
        (day(1), day(2)),
        (day(2), day(3)),
    ]


# ---- Pages ---------------------------------------------------------------------------------------------------------


def test_pages_are_followed_with_identical_parameters(provider, anthropic, november):
    provider.on(USAGE, page(row(1), following="t1", data_refreshed_at=day(3)), page(row(2)))
    source = anthropic()
    assert len(list(source.usage(november))) == 2
    first, second = provider.requests
    assert (first.one("page"), second.one("page")) == (None, "t1")
    assert {k: v for k, v in second.query.items() if k != "page"} == first.query
    assert source.data_refreshed_at == day(3)


def test_an_empty_window_is_no_usage(provider, anthropic, november):
    assert list(anthropic().usage(november)) == []


def test_rows_that_do_not_start_in_the_window_are_left_out(provider, anthropic, days):
    provider.on(USAGE, page(row(1), row(2), row(3)))
    (record,) = anthropic().usage(days((2026, 11, 2), (2026, 11, 3)))
    assert record.bucket_start == datetime(2026, 11, 2, tzinfo=UTC)


def test_a_repeated_page_token_is_an_error_because_rows_have_no_key(provider, anthropic, november):
    provider.on(USAGE, lambda asked: page(row(1), following="t1"))
    with pytest.raises(TransientError, match="repeats the same page"):
        list(anthropic().usage(november))
    assert len(provider.requests) == 2


# ---- Costs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cents", "dollars"),
    [
        ("123.45", "1.2345"),
        ("0.000000000000000000000000000000000123", "0.00000000000000000000000000000000000123"),
        ("123456789012345678901234567890.123456", "1234567890123456789012345678.90123456"),
        ("-50", "-0.50"),
        ("0", "0.00"),
    ],
)
def test_cents_become_dollars_exactly(provider, anthropic, november, cents, dollars):
    provider.on(COST, page(cost_row(cents, model="claude-opus-5-5")))
    (item,) = anthropic().costs(november)
    assert isinstance(item, CostRecord)
    assert item.amount.as_tuple() == Decimal(dollars).as_tuple()
    assert item.list_amount is not None and item.list_amount.as_tuple() == Decimal(dollars).as_tuple()
    assert item.currency == "USD"


def test_costs_are_asked_per_day_by_the_same_five_and_by_type(provider, anthropic):
    hours = Window(datetime(2026, 11, 1, 22, tzinfo=UTC), datetime(2026, 11, 2, 3, tzinfo=UTC), "1h")
    list(anthropic().costs(hours))
    (asked,) = provider.requests
    assert asked.path == COST
    assert asked.query["group_by[]"] == [
        "model", "workspace_id", "actor", "service_tier", "context_window", "cost_type", "token_type",
    ]  # fmt: skip
    assert (asked.one("starting_at"), asked.one("ending_at"), asked.one("time_bucket_width")) == (day(1), day(3), "1d")
    assert asked.one("order_by") == "time"


def test_a_cost_carries_its_dimensions(provider, anthropic, november):
    provider.on(
        COST,
        page(
            cost_row(
                "250", model="claude-opus-5-5", workspace_id="wrkspc_a", cost_type="tokens", token_type="output_tokens",
                service_tier="standard", actor={"type": "api_actor", "api_key_id": "apikey_a"},
            )
        ),
    )  # fmt: skip
    (item,) = anthropic().costs(november)
    assert (item.amount, item.cost_type, item.token_type) == (Decimal("2.50"), "tokens", "output_tokens")
    assert (item.provider_project_id, item.api_key_id, item.user_id) == ("wrkspc_a", "apikey_a", None)
    assert item.metadata == {"actor_type": "api_actor", "service_tier": "standard"}


@pytest.mark.parametrize("wrong", ["a lot", None, "NaN", "", True])
def test_a_cost_without_a_usable_amount_is_rejected_never_zero(provider, anthropic, november, wrong):
    provider.on(COST, page(cost_row(wrong)))
    (item,) = anthropic().costs(november)
    assert isinstance(item, RejectedItem)


# ---- The legacy reports, and where they end ------------------------------------------------------------------------


def test_a_window_across_2026_is_split_at_the_start_of_the_analytics_history(provider, anthropic, days):
    across = days((2025, 12, 30), (2026, 1, 3))
    provider.on(LEGACY_USAGE, page(legacy_bucket(30, counts(model="old")), legacy_bucket(31, counts(model="old"))))
    provider.on(USAGE, page(row() | {"starting_at": day(1, 1), "ending_at": day(2, 1)}))
    usage, _, _ = split(anthropic(now=datetime(2026, 3, 1, tzinfo=UTC)).usage(across))
    assert [(record.bucket_start.day, record.model) for record in usage] == [
        (30, "old"),
        (31, "old"),
        (1, "claude-opus-5-5"),
    ]
    (legacy,), (analytics,) = provider.asked(LEGACY_USAGE), provider.asked(USAGE)
    assert (legacy.one("starting_at"), legacy.one("ending_at")) == (day(30, 12, 2025), day(1, 1))
    assert (analytics.one("starting_at"), analytics.one("ending_at")) == (day(1, 1), day(3, 1))


def test_what_is_more_than_365_days_back_is_asked_of_the_legacy_reports(provider, anthropic, days):
    now = datetime(2027, 6, 15, 12, tzinfo=UTC)  # 365 days before: noon of 2026-06-15; the first whole day is the 16th
    list(anthropic(now=now).usage(days((2026, 6, 14), (2026, 6, 18))))
    (legacy,), (analytics,) = provider.asked(LEGACY_USAGE), provider.asked(USAGE)
    assert (legacy.one("starting_at"), legacy.one("ending_at")) == (day(14, 6), day(16, 6))
    assert (analytics.one("starting_at"), analytics.one("ending_at")) == (day(16, 6), day(18, 6))


def test_costs_split_at_the_same_boundary(provider, anthropic, days):
    list(anthropic(now=datetime(2026, 3, 1, tzinfo=UTC)).costs(days((2025, 12, 31), (2026, 1, 2))))
    assert [asked.path for asked in provider.requests] == [LEGACY_COST, COST]


def test_api_legacy_asks_only_the_legacy_reports(provider, anthropic, november):
    source = anthropic(api="legacy")
    assert source.check() == "anthropic: key accepted; usage readable"
    assert list(source.usage(november)) == list(source.costs(november)) == []
    assert {asked.path for asked in provider.requests} == {LEGACY_USAGE, LEGACY_COST}


def test_api_analytics_refuses_a_window_that_it_cannot_answer(provider, anthropic, december_2025):
    with pytest.raises(PermanentError, match=r"nothing before 2026-01-01.*api=auto"):
        list(anthropic(api="analytics").usage(december_2025))
    assert provider.requests == []


def test_a_legacy_result_is_the_same_tokens_without_a_request_count(provider, anthropic, december_2025):
    result = counts(
        model="claude-opus-5-5", workspace_id=None, api_key_id="apikey_a", account_id="user_a", service_tier="standard",
        context_window="0-200k", inference_geo="us",
    )  # fmt: skip
    provider.on(LEGACY_USAGE, page(legacy_bucket(1), legacy_bucket(2, result)))
    (record,) = anthropic().usage(december_2025)
    assert (record.input_tokens, record.cached_input_tokens, record.cache_creation_tokens) == (5000, 1800, 200)
    assert record.token_details == {"cache_write_5m": 150, "cache_write_1h": 50}
    assert record.request_count is None
    assert (record.service_type, record.service_tier, record.context_window) == ("sync", "standard", "0-200k")
    assert (record.provider_project_id, record.api_key_id, record.user_id) == (None, "apikey_a", "user_a")
    assert record.metadata == {"inference_geo": "us", "default_workspace": True, "web_search_requests": 4}


@pytest.mark.parametrize(("width", "limit"), [("1m", "1440"), ("1h", "168"), ("1d", "31")])
def test_the_legacy_report_is_asked_with_its_largest_page_and_its_own_version(provider, anthropic, days, width, limit):
    list(anthropic().usage(days((2025, 12, 1), (2025, 12, 2), width)))
    (asked,) = provider.requests
    assert (asked.one("bucket_width"), asked.one("limit")) == (width, limit)
    assert "model" in asked.query["group_by[]"] and "workspace_id" in asked.query["group_by[]"]
    assert not {"speed", "rbac_group_id", "claude_tag_user_id"} & set(asked.query["group_by[]"])
    assert asked.headers["anthropic-version"] == "2023-06-01"


def test_legacy_pages_are_followed_and_a_repeated_token_is_an_error(provider, anthropic, december_2025):
    first, second = legacy_bucket(1, counts(model="m")), legacy_bucket(2, counts(model="m"))
    provider.on(LEGACY_USAGE, page(first, following="t1"), page(second))
    assert len(list(anthropic().usage(december_2025))) == 2
    assert [asked.one("page") for asked in provider.requests] == [None, "t1"]
    provider.on(LEGACY_USAGE, lambda asked: page(first, following="t1"))
    with pytest.raises(TransientError, match="keeps repeating the same pages after 2025-12-02"):
        list(anthropic().usage(december_2025))


def test_a_legacy_cost_is_cents_by_workspace_and_description(provider, anthropic, december_2025):
    result = {
        "amount": "123.45", "currency": "USD", "cost_type": "tokens", "description": "Claude Opus 5.5 Usage - Output",
        "model": "claude-opus-5-5", "token_type": "output_tokens", "workspace_id": "wrkspc_a", "service_tier": "batch",
    }  # fmt: skip
    provider.on(LEGACY_COST, page(legacy_bucket(1, result)))
    (item,) = anthropic().costs(december_2025)
    assert item.amount == Decimal("1.2345")
    assert (item.line_item, item.cost_type, item.token_type) == (result["description"], "tokens", "output_tokens")
    assert (item.model, item.provider_project_id) == ("claude-opus-5-5", "wrkspc_a")
    assert item.metadata == {"service_tier": "batch"}
    (asked,) = provider.requests
    assert asked.query["group_by[]"] == ["workspace_id", "description"]
    assert (asked.one("bucket_width"), asked.one("limit")) == ("1d", "31")


def test_a_legacy_result_that_cannot_be_is_rejected(provider, anthropic, december_2025):
    provider.on(LEGACY_USAGE, page(legacy_bucket(1, "text", {"model": "m"})))
    usage, _, rejected = split(anthropic().usage(december_2025))
    assert (len(usage), len(rejected)) == (0, 2)
    endless = legacy_bucket(2, counts(model="m")) | {"ending_at": day(9, 12, 2025)}
    provider.on(LEGACY_USAGE, page(endless))
    with pytest.raises(PermanentError, match="buckets of 86400 s were asked for"):
        list(anthropic().usage(december_2025))


# ---- Names and check -----------------------------------------------------------------------------------------------


def test_names_cover_archived_and_default_workspaces_keys_users_and_service_accounts(provider, anthropic):
    base = "/v1/organizations"
    provider.on(
        f"{base}/workspaces",
        {"data": [{"id": "wrkspc_a", "name": "Alpha"}], "has_more": True, "last_id": "wrkspc_a"},
        {"data": [{"id": "wrkspc_b", "name": "Old", "archived_at": day(1)}], "has_more": False, "last_id": "wrkspc_b"},
    )
    keys = [
        {
            "id": "apikey_a",
            "name": "prod",
            "status": "active",
            "scope": {"type": "workspace", "workspace_id": "wrkspc_a"},
        },
        {"id": "apikey_b", "name": "before", "status": "archived", "workspace_id": "wrkspc_b"},
    ]
    provider.on(f"{base}/api_keys", {"data": keys, "has_more": False})
    provider.on(f"{base}/users", {"data": [{"id": "user_a", "name": "Ada", "email": "ada@x.org"}], "has_more": False})
    provider.on(
        f"{base}/service_accounts",
        {"data": [{"id": "svac_a", "name": "ci"}], "next_page": "p2"},
        {"data": [{"id": "svac_b", "name": "cd"}], "next_page": None},
    )
    found = {(entity.kind, entity.id): entity for entity in anthropic().names()}
    assert {key: entity.name for key, entity in found.items()} == {
        ("workspace", "wrkspc_a"): "Alpha",
        ("workspace", "wrkspc_b"): "Old",
        ("api_key", "apikey_a"): "prod",
        ("api_key", "apikey_b"): "before",
        ("user", "user_a"): "Ada",
        ("service_account", "svac_a"): "ci",
        ("service_account", "svac_b"): "cd",
    }
    assert found["api_key", "apikey_a"].metadata["workspace_id"] == "wrkspc_a"
    assert found["api_key", "apikey_b"].metadata["workspace_id"] == "wrkspc_b"
    first, second = provider.asked(f"{base}/workspaces")
    assert (first.one("include_archived"), first.one("include_default")) == ("true", "true")
    assert (first.one("after_id"), second.one("after_id")) == (None, "wrkspc_a")
    assert provider.asked(f"{base}/service_accounts")[1].one("page") == "p2"


def test_an_organisation_without_service_accounts_still_has_names(provider, anthropic, answer):
    provider.on("/v1/organizations/users", {"data": [{"id": "user_a", "name": "Ada"}], "has_more": False})
    provider.on("/v1/organizations/service_accounts", answer({"error": {"message": "no"}}, status=404))
    assert [entity.id for entity in anthropic().names()] == ["user_a"]


def test_check_asks_one_row_and_says_what_it_can_see(provider, anthropic):
    assert anthropic().check() == "anthropic: key accepted; usage readable"
    (asked,) = provider.requests
    assert (asked.path, asked.one("limit")) == (USAGE, "1")


def test_an_organisation_that_may_not_use_analytics_is_told_of_the_legacy_reports(provider, anthropic, answer):
    provider.on(USAGE, answer({"error": {"message": "HIPAA readiness is enabled"}}, status=400))
    with pytest.raises(PermanentError, match=r"HIPAA readiness is enabled.*api=legacy"):
        anthropic().check()
