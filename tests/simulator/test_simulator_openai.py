"""The simulated OpenAI: what it measures, charges, names and refuses. Totals are compared in tests/ingest/test_sync_simulated.py."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from genai_prices import Usage, calc_price

from tokentra_dagster.errors import PermanentError
from tokentra_dagster.providers.base import Source, Window
from tokentra_dagster.records import CostRecord, UsageRecord, split
from tokentra_dagster.simulator.prices import TARIFF
from tokentra_dagster.simulator.server import RunningSimulator

DAY = timedelta(days=1)
TODAY = datetime(2026, 11, 24, tzinfo=UTC)
YESTERDAY = TODAY - DAY


def _usage(source: Source, start: datetime, end: datetime, granularity: str = "1d") -> list[UsageRecord]:
    usage, _, rejected = split(source.usage(Window(start, end, granularity)))  # type: ignore[arg-type]
    assert rejected == []
    return usage


def _costs(source: Source, start: datetime, end: datetime) -> list[CostRecord]:
    _, costs, rejected = split(source.costs(Window(start, end, "1d")))
    assert rejected == []
    return costs


def test_stored_bytes_are_a_level_that_becomes_byte_hours(openai):
    by_width = {width: _usage(openai(endpoints="vector_stores"), YESTERDAY, TODAY, width) for width in ("1h", "1d")}
    hours, (day,) = by_width["1h"], by_width["1d"]
    levels = [hour.metadata["usage_bytes"] for hour in hours]
    assert len(hours) == 24 and levels[-1] == day.metadata["usage_bytes"]
    assert levels[0] <= levels[-1] < 2 * levels[0]
    assert [hour.quantity for hour in hours] == levels and day.quantity == 24 * levels[-1]


def test_the_details_of_tokens_add_up_as_documented(openai):
    used = [r for r in _usage(openai(endpoints="completions"), YESTERDAY, TODAY) if r.input_tokens]
    for record in used:
        details = record.token_details
        uncached = details["input_text"] + details["input_audio"] + details["input_image"]
        assert record.input_tokens == uncached + (record.cached_input_tokens or 0) + (record.cache_creation_tokens or 0)
        assert record.cached_input_tokens == details["cached_text"] + details["cached_audio"] + details["cached_image"]
        assert record.cache_creation_tokens == details["cache_write_30m"] + details["cache_write_12h"]
        assert record.output_tokens == details["output_text"] + details["output_audio"] + details["output_image"]
    assert {record.service_type for record in used} == {"sync", "batch"}
    assert any(record.service_tier == "priority" for record in used)
    assert any(record.cache_creation_tokens for record in used) and any(record.token_details["input_audio"] for record in used)


def test_a_long_window_comes_in_pages_and_no_page_is_missed(simulator: RunningSimulator, openai):
    usage = _usage(openai(endpoints="embeddings"), TODAY - 40 * DAY, TODAY, "1h")
    assert simulator.simulation.requests["openai /organization/usage/embeddings"] == 6  # 960 hours, at most 168 a page
    truth = simulator.simulation.totals("acme", "openai", "embeddings", TODAY - 40 * DAY, TODAY)
    assert sum(record.input_tokens for record in usage) == truth["text"]


def test_costs_are_tokens_times_list_price_and_the_tariff_for_the_rest(openai):
    source = openai()
    expected: dict[str | None, Decimal] = defaultdict(Decimal)
    for record in _usage(source, YESTERDAY, TODAY):
        expected[record.model if record.request_type in ("chat", "decision", "embedding") else None] += _list_price(record)
    billed: dict[str | None, Decimal] = defaultdict(Decimal)
    for cost in _costs(source, YESTERDAY, TODAY):
        if cost.quantity_unit in ("tokens", None):
            billed[cost.model] += cost.amount
    assert set(billed) == {model for model, amount in expected.items() if amount}
    assert {model: amount for model, amount in expected.items() if amount} == dict(billed)
    assert sum(billed.values()) > 10


def _list_price(record: UsageRecord) -> Decimal:
    """By `calc_price` itself, one token of each kind at a time: its long-prompt tiers are per request."""
    if record.request_type in ("code_interpreter", "file_search", "web_search"):
        entry = {"code_interpreter": "sessions", "file_search": "file_searches", "web_search": "web_searches"}[
            record.request_type
        ]
        return Decimal(record.quantity or 0) * TARIFF[entry] / 10**12
    if record.request_type not in ("chat", "decision", "embedding"):
        return Decimal(0)
    if record.model == "orion-preview-1":
        parts = (
            (4, record.input_tokens - (record.cached_input_tokens or 0)),
            (Decimal("0.4"), record.cached_input_tokens),
            (16, record.output_tokens),
        )
        return sum((Decimal(price) * (tokens or 0) for price, tokens in parts), Decimal(0)) / 10**6
    cached, written = record.cached_input_tokens or 0, record.cache_creation_tokens or 0
    audio_in, audio_out = record.token_details.get("input_audio", 0), record.token_details.get("output_audio", 0)
    context = (
        {"processing": "batch"}
        if record.service_type == "batch"
        else {"service_tier": record.service_tier}
        if record.service_tier == "priority"
        else None
    )
    total = Decimal(0)
    for tokens, one in (
        (record.input_tokens - cached - written - audio_in, Usage(input_tokens=1)),
        (cached, Usage(input_tokens=1, cache_read_tokens=1)),
        (written, Usage(input_tokens=1, cache_write_tokens=1)),
        (audio_in, Usage(input_tokens=1, input_audio_tokens=1)),
        (record.output_tokens - audio_out, Usage(output_tokens=1)),
        (audio_out, Usage(output_tokens=1, output_audio_tokens=1)),
    ):
        found = calc_price(
            one, record.model, provider_id="openai", genai_request_timestamp=record.bucket_start, price_context=context
        )  # type: ignore[arg-type]
        total += found.total_price * tokens
    return total


def test_costs_have_a_line_for_everything_that_is_not_tokens(openai):
    costs = _costs(openai(), YESTERDAY, TODAY)
    other = {cost.line_item: (cost.quantity, cost.quantity_unit) for cost in costs if cost.quantity_unit != "tokens"}
    assert {"images", "characters", "duration_seconds", "gibibyte_hours"} == {unit for _, unit in other.values()} - {None}
    assert {"vector store storage", "code interpreter sessions", "file search tool calls", "web search tool calls"} <= set(other)
    assert not any(cost.line_item and "moderation" in cost.line_item for cost in costs)
    seconds = sum(cost.quantity or 0 for cost in costs if cost.line_item == "whisper-1, duration_seconds")
    assert sum(cost.amount for cost in costs if cost.line_item == "whisper-1, duration_seconds") == seconds * Decimal("0.0001")


def test_the_price_of_a_day_is_the_one_of_that_day(openai):
    def per_token(start: datetime) -> Decimal:
        found = [c for c in _costs(openai(), start, start + 5 * DAY) if c.line_item == "o3-2025-04-16, input_tokens"]
        return sum(c.amount for c in found) / sum(c.quantity or 0 for c in found)

    assert per_token(datetime(2025, 5, 12, tzinfo=UTC)) == Decimal("0.00001")
    assert per_token(datetime(2026, 5, 11, tzinfo=UTC)) == Decimal("0.000002")


def test_names_cover_every_id_in_usage_but_the_deleted_key(openai):
    source = openai()
    names = {(name.kind, name.id): name.name for name in source.names()}
    usage = _usage(source, datetime(2025, 12, 1, tzinfo=UTC), datetime(2025, 12, 2, tzinfo=UTC))
    assert {r.provider_project_id for r in usage} <= {i for k, i in names if k == "project"}
    keys = {r.api_key_id for r in usage if r.api_key_id}
    assert keys - {i for k, i in names if k == "api_key"} == {"key_acme_chloe_studio"}
    users = {r.user_id for r in usage if r.user_id}
    assert users <= {i for k, i in names if k in ("user", "service_account")}
    assert names["project", "proj_acme_chatbot"] == "Retired chatbot"


def test_archived_projects_are_listed_only_when_asked_for(ask_openai):
    usual = {project["id"] for project in ask_openai("projects", limit=100).json["data"]}
    everyone = {project["id"] for project in ask_openai("projects", limit=100, include_archived="true").json["data"]}
    assert everyone - usual == {"proj_acme_chatbot"}


def test_lists_go_on_after_the_last_id(ask_openai):
    seen, after = [], {}
    while True:
        page = ask_openai("users", limit=2, **after).json
        seen += [user["id"] for user in page["data"]]
        assert page["last_id"] == seen[-1]
        if not page["has_more"]:
            break
        after = {"after": page["last_id"]}
    assert seen == [user["id"] for user in ask_openai("users", limit=100).json["data"]] and len(seen) > 4


@pytest.mark.parametrize("key", ["sk-admin-initech", "sk-ant-admin01-acme", "sk-proj-1234", "sk-admin-"])
def test_any_other_key_is_refused(openai, key: str):
    with pytest.raises(PermanentError, match=r"HTTP 401.*Admin API key"):
        openai(key=key).check()


def test_without_a_key_the_error_has_openais_shape(simulator: RunningSimulator, request_to: Callable):
    reply = request_to(f"{simulator.openai_url}/organization/users")
    assert reply.status == 401 and set(reply.json["error"]) == {"message", "type", "param", "code"}


def test_without_group_by_there_is_one_result_with_null_dimensions(ask_openai):
    page = ask_openai("usage/completions", start_time=YESTERDAY, end_time=TODAY).json
    (bucket,) = page["data"]
    (result,) = bucket["results"]
    assert (page["object"], page["has_more"], page["next_page"], bucket["object"]) == ("page", False, None, "bucket")
    assert bucket["end_time"] - bucket["start_time"] == 86400
    for name in ("project_id", "user_id", "api_key_id", "model", "batch", "service_tier", "api_source"):
        assert result[name] is None
    grouped = ask_openai("usage/completions", start_time=YESTERDAY, end_time=TODAY, group_by=["model", "batch"]).json
    results = grouped["data"][0]["results"]
    assert sum(r["input_tokens"] for r in results) == result["input_tokens"] and len(results) > 3
    assert all(r["model"] and isinstance(r["batch"], bool) and r["project_id"] is None for r in results)


def test_filters_select_and_other_spellings_of_lists_are_understood(ask_openai):
    when = {"start_time": YESTERDAY, "end_time": TODAY, "group_by": ["project_id"]}
    one = ask_openai("usage/completions", project_ids=["proj_acme_insights"], **when).text
    plain = ask_openai("usage/completions", project_ids="proj_acme_insights", **when).text
    assert one == plain
    results = ask_openai("usage/completions", **when).json["data"][0]["results"]
    assert ask_openai("usage/completions", project_ids="proj_acme_insights", **when).json["data"][0]["results"] == [
        result for result in results if result["project_id"] == "proj_acme_insights"
    ]
    two = ask_openai("usage/completions", project_ids="proj_acme_insights,proj_acme_studio", **when).json["data"][0]["results"]
    assert {result["project_id"] for result in two} == {"proj_acme_insights", "proj_acme_studio"}
    batch = ask_openai("usage/completions", start_time=YESTERDAY, end_time=TODAY, batch="true", group_by=["batch"]).json
    assert [result["batch"] for result in batch["data"][0]["results"]] == [True]


@pytest.mark.parametrize(
    ("path", "params", "param"),
    [
        ("usage/completions", {}, "start_time"),
        ("usage/completions", {"start_time": YESTERDAY, "bucket_width": "1w"}, "bucket_width"),
        ("usage/completions", {"start_time": YESTERDAY, "limit": 32}, "limit"),
        ("usage/completions", {"start_time": YESTERDAY, "bucket_width": "1h", "limit": 169}, "limit"),
        ("usage/completions", {"start_time": YESTERDAY, "bucket_width": "1m", "limit": 1441}, "limit"),
        ("usage/completions", {"start_time": YESTERDAY, "group_by": ["line_item"]}, "group_by"),
        ("usage/embeddings", {"start_time": YESTERDAY, "group_by": ["batch"]}, "group_by"),
        ("usage/vector_stores", {"start_time": YESTERDAY, "models": ["gpt-5.2"]}, "models"),
        ("usage/images", {"start_time": YESTERDAY, "sizes": ["7x7"]}, "sizes"),
        ("usage/completions", {"start_time": TODAY, "end_time": YESTERDAY}, "end_time"),
        ("costs", {"start_time": YESTERDAY, "bucket_width": "1h"}, "bucket_width"),
        ("costs", {"start_time": YESTERDAY, "limit": 181}, "limit"),
        ("costs", {"start_time": YESTERDAY, "group_by": ["project_id", "user_id"]}, "group_by"),
    ],
)
def test_what_openai_refuses_is_refused_by_name(ask_openai, path: str, params: dict, param: str):
    reply = ask_openai(path, **params)
    assert reply.status == 400
    assert reply.json["error"]["param"] == param and reply.json["error"]["type"] == "invalid_request_error"


def test_an_unknown_address_is_not_found(ask_openai):
    assert ask_openai("usage/telepathy", start_time=YESTERDAY).status == 404
    assert ask_openai("projects/proj_other/api_keys").status == 404


@pytest.mark.parametrize(("width", "default"), [("1m", 60), ("1h", 24), ("1d", 7)])
def test_a_page_has_the_default_number_of_buckets(ask_openai, width: str, default: int):
    page = ask_openai("usage/completions", start_time=TODAY - 30 * DAY, bucket_width=width).json
    assert len(page["data"]) == default and page["has_more"] and isinstance(page["next_page"], str)


def test_a_page_token_holds_for_the_same_parameters_only(ask_openai):
    params = {"start_time": TODAY - 9 * DAY, "end_time": TODAY}
    token = ask_openai("usage/completions", **params).json["next_page"]
    following = ask_openai("usage/completions", **params, page=token).json
    assert [b["start_time"] for b in following["data"]] == [int((TODAY - d * DAY).timestamp()) for d in (2, 1)]
    assert following["next_page"] is None
    for wrong in ({"limit": 8, "page": token}, {"page": "page_abc"}, {"page": token[:-3]}):
        reply = ask_openai("usage/completions", **(params | wrong))
        assert reply.status == 400 and "page token is invalid" in reply.json["error"]["message"]


def test_empty_buckets_are_there_and_the_future_is_not(ask_openai):
    before = datetime(2023, 12, 30, tzinfo=UTC)
    empty = ask_openai("usage/completions", start_time=before, end_time=before + 2 * DAY).json["data"]
    assert [bucket["results"] for bucket in empty] == [[], []]
    page = ask_openai("usage/completions", start_time=YESTERDAY, end_time=TODAY + 5 * DAY).json
    assert [b["start_time"] for b in page["data"]] == [int(YESTERDAY.timestamp()), int(TODAY.timestamp())] and not page[
        "has_more"
    ]


def test_a_start_inside_a_bucket_makes_it_shorter(simulator: RunningSimulator, ask_openai):
    start = YESTERDAY + timedelta(hours=9, minutes=30)
    page = ask_openai("usage/embeddings", start_time=start, end_time=TODAY).json
    (bucket,) = page["data"]
    assert bucket["start_time"] == int(start.timestamp()) and bucket["end_time"] == int(TODAY.timestamp())
    truth = simulator.simulation.totals("acme", "openai", "embeddings", start, TODAY)
    assert bucket["results"][0]["input_tokens"] == truth["text"]


def test_the_clock_moves_and_the_current_hour_grows(simulator: RunningSimulator, openai, now: datetime):
    hour = now.replace(minute=0)
    source = openai(endpoints="embeddings")
    early = sum(r.input_tokens for r in _usage(source, hour, hour + timedelta(hours=1), "1h"))
    simulator.simulation.now = now + timedelta(days=4)
    late = sum(r.input_tokens for r in _usage(source, hour, hour + timedelta(hours=1), "1h"))
    assert 0 < early < late
