"""The official OpenAI SDK at the simulator: every endpoint once, every answer exactly as the SDK's types say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import openai
import pytest

from tests.simulator.strictness import undeclared
from tokentra_dagster.simulator.server import RunningSimulator

DAY = timedelta(days=1)
TODAY = datetime(2026, 11, 24, tzinfo=UTC)
START, END = int((TODAY - DAY).timestamp()), int(TODAY.timestamp())
_WHO = ["project_id", "user_id", "api_key_id"]
_MODEL = [*_WHO, "model"]
_TOKENS = [*_MODEL, "batch", "service_tier", "api_source"]
GROUP_BY = {
    "completions": _TOKENS,
    "decisions": _TOKENS,
    "embeddings": _MODEL,
    "moderations": _MODEL,
    "images": [*_MODEL, "size", "source"],
    "audio_speeches": _MODEL,
    "audio_transcriptions": _MODEL,
    "vector_stores": ["project_id"],
    "code_interpreter_sessions": ["project_id"],
    "file_search_calls": [*_WHO, "vector_store_id"],
    "web_search_calls": [*_MODEL, "context_level", "api_source"],
}
RESULTS = {"file_search_calls": "file_searches", "web_search_calls": "web_searches"}


@pytest.fixture
def client(simulator: RunningSimulator) -> openai.OpenAI:
    return openai.OpenAI(admin_api_key="sk-admin-acme", base_url=simulator.openai_url, max_retries=0, timeout=10)


@pytest.mark.parametrize("name", GROUP_BY)
@pytest.mark.parametrize("width", ["1m", "1h", "1d"])
def test_a_usage_endpoint_answers_the_sdk_in_its_own_types(client: openai.OpenAI, name: str, width: str):
    ask = getattr(client.admin.organization.usage, name)
    page = ask(start_time=START, end_time=END, bucket_width=width, group_by=GROUP_BY[name])
    assert undeclared(page) == []
    assert len(page.data) == {"1m": 60, "1h": 24, "1d": 1}[width]  # the documented default limits
    results = [result for bucket in page.data for result in bucket.results]
    assert results and {r.object for r in results} == {f"organization.usage.{RESULTS.get(name, name)}.result"}
    assert all(result.project_id for result in results)
    ungrouped = ask(start_time=START, end_time=END, bucket_width=width)
    assert {getattr(r, d) for b in ungrouped.data for r in b.results for d in GROUP_BY[name]} == {None}
    assert all(len(bucket.results) <= 1 for bucket in ungrouped.data)


@pytest.mark.parametrize("name", GROUP_BY)
def test_each_dimension_of_an_endpoint_can_be_grouped_by_alone_and_no_other(client: openai.OpenAI, name: str):
    ask = getattr(client.admin.organization.usage, name)
    every = sorted({d for dimensions in GROUP_BY.values() for d in dimensions} | {"line_item"})
    for dimension in every:
        if dimension in GROUP_BY[name]:
            results = ask(start_time=START, end_time=END, group_by=[dimension]).data[0].results
            assert any(getattr(r, dimension) is not None for r in results), dimension
            assert {getattr(r, other) for r in results for other in GROUP_BY[name] if other != dimension} <= {None}
        else:
            with pytest.raises(openai.BadRequestError, match=dimension):
                ask(start_time=START, end_time=END, group_by=[dimension])


@pytest.mark.parametrize("name", ["completions", "decisions"])
def test_the_identities_of_the_specification_hold_for_every_result(client: openai.OpenAI, name: str):
    page = getattr(client.admin.organization.usage, name)(start_time=START, end_time=END, bucket_width="1h", group_by=_TOKENS)
    results = [result for bucket in page.data for result in bucket.results]
    assert len(results) > 20
    for r in results:
        assert r.input_tokens == r.input_uncached_tokens + r.input_cached_tokens + r.input_cache_write_tokens
        assert r.input_uncached_tokens == r.input_text_tokens + r.input_audio_tokens + r.input_image_tokens
        cached = r.input_cached_text_tokens + r.input_cached_audio_tokens + r.input_cached_image_tokens
        assert r.input_cached_tokens == cached
        assert r.input_cache_write_tokens == r.input_cache_write_30m_tokens + r.input_cache_write_12h_tokens
        assert r.output_tokens == r.output_text_tokens + r.output_audio_tokens + r.output_image_tokens


def test_costs_answer_the_sdk_and_a_line_item_is_filtered_by_its_whole_name(client: openai.OpenAI):
    ask = client.admin.organization.usage.costs
    page = ask(start_time=START, end_time=END, group_by=["line_item", "project_id", "api_key_id", "api_source"])
    assert undeclared(page) == []
    results: list[Any] = page.data[0].results
    assert {result.object for result in results} == {"organization.costs.result"}
    assert {result.api_source for result in results} >= {"unlabeled", "agents_api"}
    line = next(result.line_item for result in results if result.line_item and result.line_item.endswith(", input_tokens"))
    only = ask(start_time=START, end_time=END, group_by=["line_item"], line_items=[line]).data[0].results
    assert [result.line_item for result in only] == [line]
    by_user = ask(start_time=START, end_time=END, group_by=["user_id"]).data[0].results
    assert {result.user_id for result in by_user} >= {"user-acme-ana", "user-acme-dev"}
    with pytest.raises(openai.BadRequestError, match="user_id"):
        ask(start_time=START, end_time=END, group_by=["user_id"], project_ids=["proj_acme_studio"])


def test_pages_go_on_through_the_sdk_until_next_page_is_null(client: openai.OpenAI):
    params: dict[str, Any] = {"start_time": END - 10 * 86400, "end_time": END, "limit": 4}
    for ask in (client.admin.organization.usage.completions, client.admin.organization.usage.costs):
        starts, token = [], openai.omit
        while True:
            page = ask(**params, page=token)
            starts += [bucket.start_time for bucket in page.data]
            assert page.has_more is (page.next_page is not None)
            if page.next_page is None:
                break
            token = page.next_page
        assert starts == list(range(params["start_time"], END, 86400))
        with pytest.raises(openai.BadRequestError, match="page token is invalid"):
            ask(**(params | {"end_time": END - 86400}), page=token)


def test_the_costs_page_defaults_to_seven_days_and_holds_up_to_180(client: openai.OpenAI):
    ask = client.admin.organization.usage.costs
    assert len(ask(start_time=END - 200 * 86400, end_time=END).data) == 7
    assert len(ask(start_time=END - 200 * 86400, end_time=END, limit=180).data) == 180


def test_the_name_lists_answer_the_sdk_in_its_own_types(client: openai.OpenAI):
    organization = client.admin.organization
    pages = [
        organization.users.list(limit=100),
        organization.projects.list(limit=100, include_archived=True),
        organization.admin_api_keys.list(limit=100),
        organization.projects.api_keys.list("proj_acme_studio", limit=100, owner_project_access="any"),
        organization.projects.users.list("proj_acme_studio", limit=100),
        organization.projects.service_accounts.list("proj_acme_search", limit=100),
    ]
    for page in pages:
        assert page.data and undeclared(*page.data) == []
    archived = next(project for project in pages[1].data if project.status == "archived")
    assert archived.archived_at == datetime(2026, 2, 2, tzinfo=UTC).timestamp()
    assert [user.id for user in organization.users.list(limit=2)] == [
        user.id for user in pages[0].data
    ]  # the SDK pages by itself


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("revoked_key", openai.AuthenticationError),
        ("forbidden", openai.PermissionDeniedError),
        ("rate_limit", openai.RateLimitError),
        ("server_error", openai.InternalServerError),
        ("unavailable", openai.InternalServerError),
        ("dropped", openai.APIConnectionError),
        ("timeout", openai.APITimeoutError),
    ],
)
def test_a_fault_is_the_sdks_own_error(simulator: RunningSimulator, client: openai.OpenAI, kind: str, error: type[Exception]):
    simulator.simulation.fault(kind, "openai", seconds=3)
    with pytest.raises(error) as raised:
        client.with_options(timeout=0.5).admin.organization.usage.completions(start_time=START, end_time=END)
    if isinstance(raised.value, openai.APIStatusError):
        body: Any = raised.value.body
        assert set(body) == {"message", "type", "param", "code"} and body["message"]


def test_an_unknown_endpoint_or_project_is_404(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError):
        client.admin.organization.projects.api_keys.list("proj_of_nobody")
    with pytest.raises(openai.NotFoundError):
        client.get("/organization/usage/telepathy", cast_to=object, options={"security": {"admin_api_key_auth": True}})
