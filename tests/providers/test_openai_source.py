"""OpenAI: every quirk of its usage and cost API, through the real SDK against a scripted server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.providers.base import Window
from tokentra_dagster.providers.openai_endpoints import ENDPOINTS
from tokentra_dagster.records import REQUEST_TYPES, CostRecord, RejectedItem, UsageRecord, split

COMPLETIONS = "/v1/organization/usage/completions"
COSTS = "/v1/organization/costs"
DAY = 86400
NOV_1 = int(datetime(2026, 11, 1, tzinfo=UTC).timestamp())
THREE_DAYS = Window(datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 11, 4, tzinfo=UTC), "1d")

SPEC_EXAMPLE = {
    "object": "organization.usage.completions.result",
    "input_tokens": 5000, "input_uncached_tokens": 3000, "input_cached_tokens": 1800, "input_cache_write_tokens": 200,
    "input_cache_write_30m_tokens": 150, "input_cache_write_12h_tokens": 50,
    "input_text_tokens": 2500, "input_audio_tokens": 300, "input_image_tokens": 200,
    "input_cached_text_tokens": 1500, "input_cached_audio_tokens": 100, "input_cached_image_tokens": 200,
    "output_tokens": 1000, "output_text_tokens": 800, "output_audio_tokens": 100, "output_image_tokens": 100,
    "num_model_requests": 5,
    "project_id": "proj_a", "user_id": "user-a", "api_key_id": "key_a", "model": "gpt-6-astra", "batch": False,
    "service_tier": "priority", "api_source": "agents_api",
}  # fmt: skip


def result(tokens=10, **fields):
    return {
        "object": "organization.usage.completions.result",
        "input_tokens": tokens,
        "output_tokens": 1,
        "num_model_requests": 1,
        "model": "gpt-6-astra",
        **fields,
    }


def bucket(day, *results, name="results"):
    start = NOV_1 + (day - 1) * DAY
    return {"object": "bucket", "start_time": start, "end_time": start + DAY, name: list(results)}


def page(*buckets, following=None, **fields):
    return {
        "object": "page",
        "data": list(buckets),
        "has_more": following is not None,
        "next_page": following,
        **fields,
    }


def cost(value="1", **fields):
    return {"object": "organization.costs.result", "amount": {"value": value, "currency": "usd"}, **fields}


def invalid_token(answer):
    message = "The page token is invalid, have you modified the query parameters?"
    return answer({"error": {"message": message, "type": "invalid_request_error", "param": None}}, status=400)


def completions(source, window=THREE_DAYS):
    return split(source.usage(window))


# ---- What a result means -------------------------------------------------------------------------------------------


def test_input_includes_cache_reads_and_writes_as_in_openais_own_example(provider, openai):
    provider.on(COMPLETIONS, page(bucket(1, SPEC_EXAMPLE)))
    (record,), _, _ = completions(openai(endpoints="completions"))
    assert (record.input_tokens, record.cached_input_tokens, record.cache_creation_tokens) == (5000, 1800, 200)
    assert record.input_tokens - record.cached_input_tokens - record.cache_creation_tokens == 3000
    assert record.output_tokens == 1000
    d = record.token_details
    assert d["input_text"] + d["input_audio"] + d["input_image"] == 3000
    assert d["cached_text"] + d["cached_audio"] + d["cached_image"] == 1800
    assert d["output_text"] + d["output_audio"] + d["output_image"] == 1000
    assert d["cache_write_30m"] + d["cache_write_12h"] == 200


def test_every_dimension_reaches_the_record(provider, openai):
    provider.on(COMPLETIONS, page(bucket(2, SPEC_EXAMPLE | {"new_dimension": "x"})))
    (record,), _, _ = completions(openai(endpoints="completions"))
    assert (record.bucket_start, record.bucket_end) == (
        datetime(2026, 11, 2, tzinfo=UTC),
        datetime(2026, 11, 3, tzinfo=UTC),
    )
    assert (record.granularity, record.model, record.request_type) == ("1d", "gpt-6-astra", "chat")
    assert (record.service_type, record.service_tier) == ("sync", "priority")
    assert (record.provider_project_id, record.user_id, record.api_key_id) == ("proj_a", "user-a", "key_a")
    assert (record.request_count, record.success_count, record.error_count) == (5, None, None)
    assert record.metadata == {"endpoint": "completions", "api_source": "agents_api", "new_dimension": "x"}


def test_batch_is_its_own_service_type_and_unknown_stays_unknown(provider, openai):
    provider.on(COMPLETIONS, page(bucket(1, result(batch=True), result(batch=False), result(batch=None))))
    usage, _, _ = completions(openai(endpoints="completions"))
    assert [record.service_type for record in usage] == ["batch", "sync", None]


def test_what_an_older_answer_does_not_say_is_unknown_not_zero(provider, openai):
    provider.on(COMPLETIONS, page(bucket(1, result(input_audio_tokens=None), name="result")))
    (record,), _, _ = completions(openai(endpoints="completions"))
    assert (record.cached_input_tokens, record.cache_creation_tokens, record.token_details) == (None, None, {})


@pytest.mark.parametrize(
    ("endpoint", "kind", "measures", "quantity", "unit", "requests"),
    [
        ("embeddings", "embeddings", {"input_tokens": 7, "num_model_requests": 2}, None, None, 2),
        ("moderations", "moderations", {"input_tokens": 7, "num_model_requests": 2}, None, None, 2),
        ("images", "images", {"images": 3, "num_model_requests": 2, "size": "512x512"}, 3, "images", 2),
        ("audio_speeches", "audio_speeches", {"characters": 45, "num_model_requests": 2}, 45, "characters", 2),
        ("audio_transcriptions", "audio_transcriptions", {"seconds": 20, "num_model_requests": 2}, 20, "seconds", 2),
        ("vector_stores", "vector_stores", {"usage_bytes": 1024}, 24 * 1024, "byte_hours", None),
        ("code_interpreter_sessions", "code_interpreter_sessions", {"num_sessions": 1}, 1, "sessions", None),
        ("file_search_calls", "file_searches", {"num_requests": 4}, 4, "requests", None),
        ("web_search_calls", "web_searches", {"num_requests": 4, "num_model_requests": 2}, 4, "requests", None),
    ],
)
def test_endpoints_without_tokens_measure_in_their_own_unit(provider, openai, endpoint, kind, measures, quantity, unit, requests):
    provider.on(
        f"/v1/organization/usage/{endpoint}",
        page(bucket(1, {"object": f"organization.usage.{kind}.result", "model": None, **measures})),
    )
    (record,), _, rejected = split(openai(endpoints=endpoint).usage(THREE_DAYS))
    assert not rejected
    assert (record.quantity, record.quantity_unit, record.request_count) == (quantity, unit, requests)
    assert record.model == endpoint
    assert record.input_tokens == measures.get("input_tokens", 0)
    assert record.request_type in REQUEST_TYPES


def test_stored_bytes_become_byte_hours_that_may_be_added_up_and_the_level_is_kept(provider, openai):
    stored = {"object": "organization.usage.vector_stores.result", "usage_bytes": 9, "project_id": "proj_a"}
    provider.on("/v1/organization/usage/vector_stores", page(bucket(1, stored)))
    (record,), _, _ = split(openai(endpoints="vector_stores").usage(THREE_DAYS))
    assert record.quantity == 9 * 24
    assert record.metadata == {"endpoint": "vector_stores", "usage_bytes": 9}


def test_model_requests_that_searched_the_web_are_kept_but_never_counted_twice(provider, openai):
    searched = {"object": "organization.usage.web_searches.result", "num_requests": 4, "num_model_requests": 2, "model": "gpt-5"}
    provider.on("/v1/organization/usage/web_search_calls", page(bucket(1, searched)))
    (record,), _, _ = split(openai(endpoints="web_search_calls").usage(THREE_DAYS))
    assert (record.request_count, record.metadata["num_model_requests"]) == (None, 2)


def test_an_unknown_kind_of_result_is_rejected_with_its_payload(provider, openai):
    unknown = {"object": "organization.usage.telepathy.result", "thoughts": 3}
    provider.on(COMPLETIONS, page(bucket(1, unknown, result())))
    usage, _, (rejected,) = completions(openai(endpoints="completions"))
    assert len(usage) == 1
    assert rejected.payload == unknown
    assert "organization.usage.telepathy.result" in rejected.reason
    assert rejected.bucket_start == datetime(2026, 11, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"input_cached_tokens": 8, "input_cache_write_tokens": 3}, "exceed input_tokens 10"),
        ({"output_tokens": -1}, "cannot be negative"),
        ({"input_tokens": None}, "input_tokens is missing"),
        ({"input_tokens": "10"}, "a whole number is required"),
        ({"output_tokens": 1.5}, "a whole number is required"),
        ({"num_model_requests": True}, "a whole number is required"),
        ({"model": 7}, "text is required"),
        ({"batch": "yes"}, "true or false is required"),
    ],
)
def test_a_count_that_cannot_be_is_rejected_with_its_reason(provider, openai, wrong, reason):
    provider.on(COMPLETIONS, page(bucket(1, result() | wrong)))
    usage, _, (rejected,) = completions(openai(endpoints="completions"))
    assert not usage
    assert reason in rejected.reason


# ---- What is asked -------------------------------------------------------------------------------------------------


def test_every_endpoint_is_asked_at_its_finest_grouping(provider, openai):
    assert split(openai().usage(THREE_DAYS)) == ([], [], [])
    asked = {request.path.rsplit("/", 1)[1]: request for request in provider.requests}
    assert set(asked) == set(ENDPOINTS) and len(ENDPOINTS) == 11
    for name, endpoint in ENDPOINTS.items():
        assert tuple(asked[name].query["group_by[]"]) == endpoint.group_by
    assert asked["completions"].query["group_by[]"] == [
        "project_id", "user_id", "api_key_id", "model", "batch", "service_tier", "api_source",
    ]  # fmt: skip
    assert asked["vector_stores"].query["group_by[]"] == ["project_id"]


@pytest.mark.parametrize(("width", "limit"), [("1m", "1440"), ("1h", "168"), ("1d", "31")])
def test_each_width_is_asked_with_its_largest_page(provider, openai, width, limit):
    list(openai(endpoints="completions").usage(Window(THREE_DAYS.start, THREE_DAYS.end, width)))
    (asked,) = provider.requests
    assert (asked.one("bucket_width"), asked.one("limit")) == (width, limit)
    assert (asked.one("start_time"), asked.one("end_time")) == (str(NOV_1), str(NOV_1 + 3 * DAY))


def test_the_admin_key_is_sent_and_the_environment_is_not(provider, openai, secret, monkeypatch):
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_API_KEY", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "from-the-environment")
    openai().check()
    (asked,) = provider.requests
    assert asked.headers["authorization"] == f"Bearer {secret}"
    assert "from-the-environment" not in str(asked.headers)


# ---- Pages ---------------------------------------------------------------------------------------------------------


def test_pages_are_followed_with_identical_parameters(provider, openai):
    provider.on(
        COMPLETIONS,
        page(bucket(1, result(1)), following="t1"),
        page(bucket(2, result(2)), following="t2"),
        page(bucket(3, result(3))),
    )
    usage, _, _ = completions(openai(endpoints="completions"))
    assert [record.input_tokens for record in usage] == [1, 2, 3]
    first, second, third = provider.requests
    assert [first.one("page"), second.one("page"), third.one("page")] == [None, "t1", "t2"]
    for later in (second, third):
        assert {k: v for k, v in later.query.items() if k != "page"} == first.query


def test_empty_buckets_are_read_and_yield_nothing(provider, openai):
    provider.on(COMPLETIONS, page(bucket(1), bucket(2, result()), bucket(3)))
    usage, costs, rejected = completions(openai(endpoints="completions"))
    assert (len(usage), costs, rejected) == (1, [], [])


def test_buckets_that_do_not_start_in_the_window_are_left_out(provider, openai):
    provider.on(COMPLETIONS, page(bucket(0, result(99)), bucket(1, result(1)), bucket(3, result(3)), bucket(4, result(99))))
    usage, _, _ = completions(openai(endpoints="completions"))
    assert [record.input_tokens for record in usage] == [1, 3]


def test_has_more_false_ends_the_pages_even_with_a_token(provider, openai):
    provider.on(COMPLETIONS, page(bucket(1, result()), following="t1") | {"has_more": False})
    assert len(completions(openai(endpoints="completions"))[0]) == 1
    assert len(provider.requests) == 1


def test_has_more_true_without_a_token_ends_the_pages(provider, openai):
    provider.on(COMPLETIONS, page(bucket(1, result())) | {"has_more": True})
    assert len(completions(openai(endpoints="completions"))[0]) == 1
    assert len(provider.requests) == 1


def test_a_repeated_token_ends_the_pages_once_the_window_is_covered(provider, openai):
    provider.on(
        COMPLETIONS,
        page(bucket(1, result(1)), following="t1"),
        page(bucket(2, result(2)), bucket(3, result(3)), following="t1"),
    )
    usage, _, _ = completions(openai(endpoints="completions"))
    assert [record.input_tokens for record in usage] == [1, 2, 3]
    assert len(provider.requests) == 2


def test_a_repeated_token_loses_nothing_that_was_still_to_come(provider, openai):
    provider.on(
        COMPLETIONS,
        page(bucket(1, result(1)), following="t1"),
        page(bucket(2, result(2)), following="t1"),
        page(bucket(3, result(3))),
    )
    usage, _, _ = completions(openai(endpoints="completions"))
    assert [record.input_tokens for record in usage] == [1, 2, 3]
    assert provider.requests[2].one("page") is None
    assert provider.requests[2].one("start_time") == str(NOV_1 + 2 * DAY)


def test_a_server_that_repeats_the_same_page_forever_does_not_hold_us(provider, openai):
    fresh = iter(range(10_000))
    provider.on(COMPLETIONS, lambda asked: page(bucket(1, result()), following=f"t{next(fresh)}"))
    with pytest.raises(TransientError, match="keeps repeating the same pages after 2026-11-02"):
        completions(openai(endpoints="completions"))
    assert len(provider.requests) < 25


def test_a_refused_page_token_restarts_after_the_last_bucket_without_loss_or_repetition(provider, openai, answer):
    provider.on(
        COSTS,
        page(bucket(1, cost("1")), following="bad"),
        invalid_token(answer),
        page(bucket(2, cost("2")), following="bad again"),
        invalid_token(answer),
        page(bucket(3, cost("3"))),
    )
    _, costs, _ = split(openai().costs(THREE_DAYS))
    assert [item.amount for item in costs] == [1, 2, 3]
    restarts = [(asked.one("start_time"), asked.one("page")) for asked in provider.requests]
    assert restarts == [
        (str(NOV_1), None),
        (str(NOV_1), "bad"),
        (str(NOV_1 + DAY), None),
        (str(NOV_1 + DAY), "bad again"),
        (str(NOV_1 + 2 * DAY), None),
    ]


def test_a_restart_that_repeats_known_buckets_yields_them_once(provider, openai, answer):
    provider.on(
        COSTS,
        page(bucket(1, cost("1")), following="bad"),
        invalid_token(answer),
        page(bucket(1, cost("1")), bucket(2, cost("2")), bucket(3, cost("3"))),
    )
    _, costs, _ = split(openai().costs(THREE_DAYS))
    assert [item.amount for item in costs] == [1, 2, 3]


def test_a_refused_token_after_the_last_bucket_ends_the_pages(provider, openai, answer):
    whole = page(bucket(1, cost()), bucket(2, cost()), bucket(3, cost()), following="bad")
    provider.on(COSTS, whole, invalid_token(answer))
    assert len(split(openai().costs(THREE_DAYS))[1]) == 3
    assert len(provider.requests) == 2


def test_restarts_that_bring_nothing_new_end_in_an_error_not_in_a_partial_result(provider, openai, answer):
    provider.on(
        COSTS,
        lambda asked: invalid_token(answer) if asked.one("page") else page(bucket(1, cost()), following="bad"),
    )
    with pytest.raises(TransientError, match="refusing its own page tokens after 2026-11-02"):
        list(openai().costs(THREE_DAYS))
    assert len(provider.requests) == 4


def test_a_bucket_wider_than_asked_for_is_refused(provider, openai):
    provider.on(COMPLETIONS, page(bucket(1, result())))
    with pytest.raises(PermanentError, match="buckets of 3600 s were asked for"):
        list(openai(endpoints="completions").usage(Window(THREE_DAYS.start, THREE_DAYS.end, "1h")))


# ---- Costs ---------------------------------------------------------------------------------------------------------


def test_costs_are_asked_by_line_item_project_and_key_for_whole_days(provider, openai):
    part_of_two_days = Window(datetime(2026, 11, 1, 22, tzinfo=UTC), datetime(2026, 11, 2, 3, tzinfo=UTC), "1h")
    list(openai().costs(part_of_two_days))
    (asked,) = provider.requests
    assert asked.path == COSTS
    assert asked.query["group_by[]"] == ["line_item", "project_id", "api_key_id"]
    assert (asked.one("start_time"), asked.one("end_time")) == (str(NOV_1), str(NOV_1 + 2 * DAY))
    assert (asked.one("bucket_width"), asked.one("limit")) == ("1d", "180")


@pytest.mark.parametrize(
    ("written", "amount"),
    [
        ("0.06", "0.06"),
        ("12.345678901234567890123456789012345", "12.345678901234567890123456789012345"),
        ('"12.345678901234567890123456789012345"', "12.345678901234567890123456789012345"),
        ('"12.50"', "12.50"),
        ("3", "3"),
        ("1e-7", "1e-7"),
        ('"-4.20"', "-4.20"),
    ],
)
def test_amounts_keep_every_digit_as_number_or_as_text(provider, openai, written, amount):
    text = (
        f'{{"data":[{{"start_time":{NOV_1},"end_time":{NOV_1 + DAY},"results":[{{"object":"organization.costs.result",'
        f'"amount":{{"value":{written},"currency":"usd"}},"line_item":"gpt-6-astra, input_tokens","project_id":"proj_a",'
        f'"api_key_id":"key_a","quantity":0.1,"quantity_unit":"1000_tokens"}}]}}],"has_more":false,"next_page":null}}'
    )
    provider.on(COSTS, text)
    (item,) = openai().costs(THREE_DAYS)
    assert isinstance(item, CostRecord)
    assert (item.amount, item.currency) == (Decimal(amount), "USD")
    assert item.amount.as_tuple() == Decimal(amount).as_tuple()
    assert (item.quantity, item.quantity_unit) == (Decimal("0.1"), "1000_tokens")
    assert (item.line_item, item.model, item.token_type) == ("gpt-6-astra, input_tokens", "gpt-6-astra", "input_tokens")
    assert (item.provider_project_id, item.api_key_id) == ("proj_a", "key_a")


def test_a_line_item_without_a_model_is_kept_whole(provider, openai):
    provider.on(COSTS, page(bucket(1, cost("1", line_item="web search tool calls"))))
    (item,) = openai().costs(THREE_DAYS)
    assert (item.line_item, item.model, item.token_type) == ("web search tool calls", None, None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"amount": None},
        {"amount": {"value": "a lot", "currency": "usd"}},
        {"amount": {"value": "NaN", "currency": "usd"}},
        {"amount": {"value": None, "currency": "usd"}},
        {"amount": {"value": 1}},
        {"object": "organization.usage.completions.result"},
    ],
)
def test_a_cost_without_a_usable_amount_is_rejected_never_zero(provider, openai, wrong):
    provider.on(COSTS, page(bucket(1, cost() | wrong)))
    (item,) = openai().costs(THREE_DAYS)
    assert isinstance(item, RejectedItem)


def test_costs_off_asks_nothing(provider, openai):
    assert list(openai(costs="off").costs(THREE_DAYS)) == []
    assert provider.requests == []


# ---- Names and check -----------------------------------------------------------------------------------------------


def test_names_cover_archived_projects_keys_users_and_service_accounts(provider, openai, answer):
    base = "/v1/organization"
    users = [
        {"id": "user-a", "name": "Ada", "email": "ada@example.com", "is_service_account": False},
        {"id": "user-bot", "name": "bot", "is_service_account": True},
    ]
    provider.on(f"{base}/users", {"data": users, "has_more": False})
    provider.on(
        f"{base}/projects",
        {"data": [{"id": "proj_a", "name": "Alpha", "status": "active"}], "has_more": True, "last_id": "proj_a"},
        {"data": [{"id": "proj_old", "name": "Old", "status": "archived", "archived_at": 1}], "has_more": False},
    )
    key = {"id": "key_a", "name": "prod", "redacted_value": "sk-...a", "owner": {"type": "user"}}
    provider.on(f"{base}/projects/proj_a/api_keys", {"data": [key], "has_more": False})
    provider.on(f"{base}/projects/proj_a/service_accounts", {"data": [{"id": "svc_a", "name": "ci"}], "has_more": False})
    provider.on(f"{base}/projects/proj_old/api_keys", answer({"error": {"message": "archived"}}, status=404))
    found = {(entity.kind, entity.id): entity for entity in openai().names()}
    assert {key: entity.name for key, entity in found.items()} == {
        ("user", "user-a"): "Ada",
        ("service_account", "user-bot"): "bot",
        ("project", "proj_a"): "Alpha",
        ("api_key", "key_a"): "prod",
        ("service_account", "svc_a"): "ci",
        ("project", "proj_old"): "Old",
    }
    assert found["api_key", "key_a"].metadata["project_id"] == "proj_a"
    first, second = provider.asked(f"{base}/projects")
    assert first.one("include_archived") == "true"
    assert (first.one("after"), second.one("after")) == (None, "proj_a")
    assert provider.asked(f"{base}/projects/proj_a/api_keys")[0].one("owner_project_access") == "any"


def test_keys_of_an_active_project_that_cannot_be_listed_are_an_error(provider, openai, answer):
    provider.on("/v1/organization/projects", {"data": [{"id": "proj_a", "name": "A"}], "has_more": False})
    provider.on("/v1/organization/projects/proj_a/api_keys", answer({"error": {"message": "no"}}, status=403))
    with pytest.raises(PermanentError, match="project API keys"):
        list(openai().names())


def test_check_asks_one_bucket_and_says_what_it_can_see(provider, openai):
    assert openai().check() == "openai: key accepted; usage readable"
    (asked,) = provider.requests
    assert asked.one("limit") == "1"


def test_records_of_all_kinds_have_utc_times(provider, openai):
    provider.on(COMPLETIONS, page(bucket(1, result())))
    (record,) = openai(endpoints="completions").usage(THREE_DAYS)
    assert isinstance(record, UsageRecord)
    assert record.bucket_start.utcoffset() == timedelta(0)
