"""The official Anthropic SDK at the simulator: every endpoint once, every answer exactly as the SDK's types say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import anthropic
import pytest

from tests.simulator.strictness import undeclared
from tokentra_dagster.simulator.anthropic_api import GROUP_BY
from tokentra_dagster.simulator.server import RunningSimulator

DAY = timedelta(days=1)
TODAY = datetime(2026, 11, 24, tzinfo=UTC)
YESTERDAY = TODAY - DAY
NOT_SIMULATED = {
    "agent_id", "claude_tag_category", "claude_tag_user_id", "deployment_id", "environment_id", "rbac_group_id", "session_id",
    "slack_channel_id", "user_profile_id",
}  # fmt: skip
"""Dimensions that the simulated organisations do not use: null even when grouped by."""


@pytest.fixture
def client(simulator: RunningSimulator) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        api_key="sk-ant-admin01-acme", base_url=simulator.anthropic_url, max_retries=0, timeout=10,
        default_headers={"anthropic-version": "2026-10-21"},
    )  # fmt: skip


def _legacy(client: anthropic.Anthropic, path: str, **params: Any) -> Any:
    return client.get(f"/v1/organizations/{path}", cast_to=object, options={"params": params})


@pytest.mark.parametrize("width", ["1m", "1h", "1d", None])
def test_analytics_answer_the_sdk_in_its_own_types(client: anthropic.Anthropic, width: str | None):
    params: dict[str, Any] = {
        "starting_at": YESTERDAY,
        "ending_at": TODAY,
        "limit": 1000,
        "group_by": ["model", "actor", "product"],
    }
    if width:
        params["time_bucket_width"] = width
    for ask in (client.beta.organization.analytics.usage.list, client.beta.organization.analytics.cost.list):
        page = ask(**params)
        assert page.data and undeclared(*page.data) == []
        assert page.data_refreshed_at == datetime(2026, 11, 24, 13, 37, tzinfo=UTC)
        spans = {row.ending_at - row.starting_at for row in page.data}
        assert spans == {{"1m": timedelta(minutes=1), "1h": timedelta(hours=1)}.get(width or "", DAY)}


def test_the_sdk_pages_through_every_row_by_itself(client: anthropic.Anthropic):
    ask = client.beta.organization.analytics.usage.list
    params: dict[str, Any] = {
        "starting_at": YESTERDAY,
        "ending_at": TODAY,
        "time_bucket_width": "1h",
        "group_by": ["model", "actor"],
    }
    by_time: dict[str, Any] = {"order_by": "time", "order": "asc"}
    paged = [row.to_json() for row in ask(**params, **by_time)]  # 20 rows a page
    at_once = [row.to_json() for row in ask(**params, **by_time, limit=1000)]
    assert paged == at_once and len(paged) > 60
    token = ask(**params).next_page
    with pytest.raises(anthropic.BadRequestError, match="page token"):
        ask(**(params | {"group_by": ["model"]}), page=token)


def test_each_dimension_can_be_grouped_by_alone(client: anthropic.Anthropic):
    for dimension in GROUP_BY:
        rows = client.beta.organization.analytics.usage.list(
            starting_at=YESTERDAY, ending_at=TODAY, group_by=[dimension], limit=1000
        ).data  # type: ignore[list-item]
        named = any(getattr(row.group, dimension) is not None for row in rows)
        assert named is (dimension not in NOT_SIMULATED), dimension
        assert all(getattr(row.group, other) is None for row in rows for other in GROUP_BY if other != dimension)


def test_costs_are_text_in_cents_by_their_types(client: anthropic.Anthropic):
    ask = client.beta.organization.analytics.cost.list
    params: dict[str, Any] = {"starting_at": YESTERDAY, "ending_at": TODAY, "limit": 1000}
    rows = ask(**params, group_by=["model", "cost_type", "token_type"]).data
    assert undeclared(*rows) == []
    assert {row.group.cost_type for row in rows} == {"tokens", "web_search", "code_execution"}
    assert {row.group.token_type for row in rows} == {
        None, "uncached_input_tokens", "output_tokens", "cache_read_input_tokens",
        "cache_creation.ephemeral_5m_input_tokens", "cache_creation.ephemeral_1h_input_tokens",
    }  # fmt: skip
    assert all(row.cost.requests is None and "." in row.cost.amount for row in rows if row.group.cost_type == "tokens")
    (whole,) = ask(**params).data
    assert sum(Decimal(row.cost.amount) for row in rows) == Decimal(whole.cost.amount)
    five = ["model", "actor", "product", "service_tier", "context_window"]
    assert ask(**params, group_by=[*five, "cost_type", "token_type"]).data  # these two do not count towards five


def test_filters_select_and_null_is_selected_as_documented(client: anthropic.Anthropic):
    ask = client.beta.organization.analytics.usage.list
    params: dict[str, Any] = {"starting_at": YESTERDAY, "ending_at": TODAY, "limit": 1000}
    everything = ask(**params, group_by=["inference_geo"]).data
    unknown = ask(**params, group_by=["inference_geo"], inference_geos=["not_available"]).data
    assert [row.to_json() for row in unknown] == [row.to_json() for row in everything if row.group.inference_geo is None]
    assert len(unknown) == 1
    batch = ask(**params, group_by=["service_tier"], service_tiers=["batch"], organization_ids=["org_acme"]).data
    assert [row.group.service_tier for row in batch] == ["batch"]
    assert ask(**params, organization_ids=["org_globex"]).data == []
    for wrong in ({"products": ["abacus"]}, {"actor_types": ["robot"]}, {"speeds": ["slow"]}):
        with pytest.raises(anthropic.BadRequestError):
            ask(**params, **wrong)


def test_the_workspace_is_real_here_and_null_for_the_default_one_in_the_legacy_reports(client: anthropic.Anthropic):
    rows = client.beta.organization.analytics.usage.list(
        starting_at=YESTERDAY, ending_at=TODAY, group_by=["workspace_id"], limit=1000
    ).data
    real = {row.group.workspace_id for row in rows}
    assert "wrkspc_acme_sandbox" in real and None not in real
    for path, group_by in (("usage_report/messages", ["workspace_id"]), ("cost_report", ["workspace_id", "description"])):
        page = _legacy(client, path, starting_at="2026-11-23T00:00:00Z", ending_at="2026-11-24T00:00:00Z", group_by=group_by)
        assert {result["workspace_id"] for result in page["data"][0]["results"]} == real - {"wrkspc_acme_sandbox"} | {None}


def test_the_legacy_usage_report_has_exactly_the_documented_fields(client: anthropic.Anthropic):
    page = _legacy(client, "usage_report/messages", starting_at="2026-11-23T00:00:00Z", ending_at="2026-11-24T00:00:00Z")
    assert set(page) == {"data", "has_more", "next_page"} and set(page["data"][0]) == {"starting_at", "ending_at", "results"}
    (result,) = page["data"][0]["results"]
    dimensions = {
        "account_id", "api_key_id", "service_account_id", "workspace_id", "model", "service_tier", "context_window", "inference_geo", "speed",
    }  # fmt: skip
    assert {name for name, value in result.items() if value is None} == dimensions
    assert set(result) - dimensions == {
        "uncached_input_tokens", "cache_creation", "cache_read_input_tokens", "output_tokens", "server_tool_use"
    }  # fmt: skip
    assert set(result["cache_creation"]) == {"ephemeral_1h_input_tokens", "ephemeral_5m_input_tokens"}
    assert set(result["server_tool_use"]) == {"web_search_requests"}


def test_the_legacy_cost_report_parses_descriptions_only_when_grouped_by_them(client: anthropic.Anthropic):
    when = {"starting_at": "2026-11-23T00:00:00Z", "ending_at": "2026-11-24T00:00:00Z"}
    (whole,) = _legacy(client, "cost_report", **when)["data"][0]["results"]
    parsed = {"cost_type", "description", "model", "token_type", "context_window", "service_tier", "inference_geo"}
    assert set(whole) == {"amount", "currency", "workspace_id", *parsed} and whole["currency"] == "USD"
    assert {name for name, value in whole.items() if value is None} == {"workspace_id", *parsed}
    lines = _legacy(client, "cost_report", **when, group_by=["description"])["data"][0]["results"]
    assert sum(Decimal(line["amount"]) for line in lines) == Decimal(whole["amount"]) > 100
    assert {line["service_tier"] for line in lines} == {"standard", "batch", None}
    assert all(line["description"] and isinstance(line["amount"], str) for line in lines)


@pytest.mark.parametrize(
    ("path", "params", "usual", "most"),
    [
        ("usage_report/messages", {"bucket_width": "1d"}, 7, 31),
        ("usage_report/messages", {"bucket_width": "1h"}, 24, 168),
        ("usage_report/messages", {"bucket_width": "1m"}, 60, 1440),
        ("cost_report", {}, 7, 31),
    ],
)
def test_legacy_pages_hold_the_documented_number_of_buckets(
    client: anthropic.Anthropic, path: str, params: dict, usual: int, most: int
):
    when = {"starting_at": "2026-09-01T00:00:00Z", "ending_at": "2026-11-01T00:00:00Z"}
    assert len(_legacy(client, path, **when, **params)["data"]) == usual
    assert len(_legacy(client, path, **when, **params, limit=most)["data"]) == most
    with pytest.raises(anthropic.BadRequestError):
        _legacy(client, path, **when, **params, limit=most + 1)


def test_the_claude_code_report_covers_one_utc_day_and_agrees_with_messages_usage(client: anthropic.Anthropic):
    page = _legacy(client, "usage_report/claude_code", starting_at="2026-11-23")
    assert set(page) == {"data", "has_more", "next_page"} and page["has_more"] is False
    assert [record["actor"]["api_key_name"] for record in page["data"]] == ["studio-ana", "studio-bruno", "studio-chloe"]
    record = page["data"][0]
    assert set(record) == {
        "date", "organization_id", "actor", "customer_type", "subscription_type", "terminal_type", "core_metrics", "tool_actions",
        "model_breakdown",
    }  # fmt: skip
    assert record["date"].startswith("2026-11-23") and record["core_metrics"]["num_sessions"] > 0
    rows = client.beta.organization.analytics.usage.list(
        starting_at=YESTERDAY, ending_at=TODAY, products=["claude_code"], group_by=["model"]
    ).data
    reported = [model for record in page["data"] for model in record["model_breakdown"]]
    assert sum(model["tokens"]["output"] for model in reported) == sum(row.usage.output_tokens for row in rows) > 0
    cost = client.beta.organization.analytics.cost.list(starting_at=YESTERDAY, ending_at=TODAY, products=["claude_code"],
        group_by=["cost_type"]).data  # fmt: skip
    (cents,) = [Decimal(row.cost.amount) for row in cost if row.group.cost_type == "tokens"]
    assert sum(model["estimated_cost"]["amount"] for model in reported) == pytest.approx(float(cents))


def test_the_claude_code_report_is_paged_and_takes_a_plain_date_only(client: anthropic.Anthropic):
    first = _legacy(client, "usage_report/claude_code", starting_at="2026-11-23", limit=2)
    second = _legacy(client, "usage_report/claude_code", starting_at="2026-11-23", limit=2, page=first["next_page"])
    assert (len(first["data"]), len(second["data"]), second["has_more"], second["next_page"]) == (2, 1, False, None)
    for wrong in (
        {},
        {"starting_at": "2026-11-23T00:00:00Z"},
        {"starting_at": "2026-11-31"},
        {"starting_at": "2026-11-23", "limit": 1001},
    ):
        with pytest.raises(anthropic.BadRequestError):
            _legacy(client, "usage_report/claude_code", **wrong)
    with pytest.raises(anthropic.BadRequestError, match="ending_at"):
        _legacy(client, "usage_report/claude_code", starting_at="2026-11-23", ending_at="2026-11-24")


def test_the_name_lists_answer_the_sdk_in_its_own_types(client: anthropic.Anthropic):
    organization = client.organization
    pages = [
        organization.workspaces.list(limit=1000, include_archived=True, include_default=True),
        organization.api_keys.list(limit=1000),
        organization.users.list(limit=1000),
        organization.service_accounts.list(limit=1000, include_archived=True),
    ]
    for page in pages:
        assert page.data and undeclared(*page.data) == []
    for ask, page in zip((organization.api_keys.list, organization.service_accounts.list), (pages[1], pages[3]), strict=True):
        assert [item.id for item in ask(limit=2)] == [item.id for item in page.data]  # the SDK pages by itself
    studio = organization.api_keys.list(workspace_id="wrkspc_acme_studio", status="active").data
    assert [key.name for key in studio] == ["studio-ana", "studio-bruno"]  # Chloe's was deleted
    assert organization.api_keys.list(status="expired").data == []
    assert [user.email for user in organization.users.list(email="ana@acme.example")] == ["ana@acme.example"]
    assert [one.id for one in organization.workspaces.list(ids=["wrkspc_acme_studio"])] == ["wrkspc_acme_studio"]
    for cursor in ("after_id", "before_id"):
        with pytest.raises(anthropic.BadRequestError, match="apikey_of_nobody"):
            organization.api_keys.list(**{cursor: "apikey_of_nobody"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "status", "said"),
    [
        ("revoked_key", 401, "authentication_error"),
        ("forbidden", 403, "permission_error"),
        ("rate_limit", 429, "rate_limit_error"),
        ("server_error", 500, "api_error"),
        ("overloaded", 529, "overloaded_error"),
    ],
)
def test_an_error_has_anthropics_body(
    simulator: RunningSimulator, client: anthropic.Anthropic, kind: str, status: int, said: str
):
    simulator.simulation.fault(kind, "anthropic", retry_after=7)
    with pytest.raises(anthropic.APIStatusError) as raised:
        client.organization.users.list()
    body: Any = raised.value.body
    assert (raised.value.status_code, body["type"], body["error"]["type"]) == (status, "error", said)
    assert body["request_id"].startswith("req_") and body["error"]["message"]
    assert raised.value.response.headers["retry-after"] == "7"


def test_an_unknown_path_is_404(client: anthropic.Anthropic):
    with pytest.raises(anthropic.NotFoundError, match="telepathy"):
        _legacy(client, "telepathy")


def test_history_reaches_365_days_back(simulator: RunningSimulator, client: anthropic.Anthropic):
    simulator.simulation.now = datetime(2027, 6, 1, tzinfo=UTC)
    ask = client.beta.organization.analytics.usage.list
    reach = datetime(2026, 6, 1, tzinfo=UTC)
    assert ask(starting_at=reach, ending_at=reach + DAY).data
    with pytest.raises(anthropic.BadRequestError, match="365 days"):
        ask(starting_at=reach - timedelta(minutes=1), ending_at=reach + DAY)


def test_without_an_end_the_range_is_31_days_or_until_now(client: anthropic.Anthropic):
    ask = client.beta.organization.analytics.usage.list
    (row,) = ask(starting_at=datetime(2026, 3, 1, tzinfo=UTC)).data
    assert (row.starting_at, row.ending_at) == (datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC))
    (row,) = ask(starting_at=TODAY).data
    assert (row.starting_at, row.ending_at) == (TODAY, datetime(2026, 11, 24, 13, tzinfo=UTC))
