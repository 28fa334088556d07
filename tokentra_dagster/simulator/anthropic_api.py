"""Anthropic's Usage and Cost Analytics API (beta), as it really answers: rows, not buckets, at most `limit` of them per page.

Each row names its time and its group; a dimension is null unless grouped by. Amounts are text in fractional cents. By
default the rows with the largest metric come first. Where costs are grouped by their type, a row fans out into several, and
these do not count towards the limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np

from tokentra_dagster.simulator.organisation import Organisation
from tokentra_dagster.simulator.prices import TARIFF, plain, token_price
from tokentra_dagster.simulator.query import Query, Refusal, Slot, divide, template
from tokentra_dagster.simulator.simulation import Simulation
from tokentra_dagster.simulator.truth import Ints, Table, minute_of, moment_of

BETA = "analytics-usage-cost-2026-08-24"
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
REACH = timedelta(days=365)
WIDTHS = {"1m": 1, "1h": 60, "1d": 1440}
MOST_GROUPS = 5
REFUSED_PAGE = "page: Invalid page token."

GROUP_BY = (
    "actor", "actor_type", "agent_id", "api_key_id", "claude_tag_category", "claude_tag_user_id", "context_window", "deployment_id",
    "environment_id", "inference_geo", "model", "organization_id", "product", "rbac_group_id", "service_tier", "session_id",
    "slack_channel_id", "speed", "user_profile_id", "workspace_id",
)  # fmt: skip
_FAN_OUT = ("cost_type", "token_type")
_LISTS = {
    "actor_ids": "actor_id", "actor_types": "actor_type", "agent_ids": "agent_id", "api_key_ids": "api_key_id",
    "claude_tag_categories": "claude_tag_category", "claude_tag_user_ids": "claude_tag_user_id", "context_windows": "context_window",
    "deployment_ids": "deployment_id", "environment_ids": "environment_id", "inference_geos": "inference_geo", "models": "model",
    "organization_ids": "organization_id", "products": "product", "rbac_group_ids": "rbac_group_id", "service_tiers": "service_tier",
    "session_ids": "session_id", "slack_channel_ids": "slack_channel_id", "speeds": "speed", "user_profile_ids": "user_profile_id",
    "workspace_ids": "workspace_id",
}  # fmt: skip
ALLOWED = {
    "actor_types": ("api_actor", "federated_actor", "service_account_actor", "user_actor"),
    "products": (
        "chat", "chat_cowork_unified", "claude_code", "claude_console", "claude_design", "claude_in_chrome", "claude_tag",
        "cowork", "managed_agents_api", "message_batches_api", "messages_api", "office_agent",
    ),
    "inference_geos": ("global", "us", "not_available"),
    "service_tiers": ("batch", "flex", "flex_discount", "priority", "priority_on_demand", "standard"),
    "speeds": ("fast", "standard"),
    "context_windows": ("0-200k", "200k-1M"),
}  # fmt: skip
_COMMON = (
    "starting_at",
    "ending_at",
    "time_bucket_width",
    "group_by",
    "limit",
    "page",
    "order",
    "order_by",
    "exclude_deleted_users",
)

UNITS = ("uncached", "cache_5m", "cache_1h", "cache_read", "output", "web_search")
_MEASURES = {
    "uncached_input_tokens": ("uncached",),
    "cache_creation.ephemeral_5m_input_tokens": ("cache_5m",),
    "cache_creation.ephemeral_1h_input_tokens": ("cache_1h",),
    "cache_read_input_tokens": ("cache_read",),
    "output_tokens": ("output",),
    "web_search_requests": ("web_search",),
    "requests": ("requests",),
    "total_tokens": ("uncached", "cache_5m", "cache_1h", "cache_read", "output"),
}
COMPONENTS: tuple[tuple[str, str | None, str | None, str], ...] = (
    ("tokens", "uncached_input_tokens", "input", "uncached"),
    ("tokens", "output_tokens", "output", "output"),
    ("tokens", "cache_read_input_tokens", "cache_read", "cache_read"),
    ("tokens", "cache_creation.ephemeral_5m_input_tokens", "cache_write", "cache_5m"),
    ("tokens", "cache_creation.ephemeral_1h_input_tokens", "cache_write_1h", "cache_1h"),
    ("web_search", None, None, "web_search"),
    ("code_execution", None, None, "requests"),
)
"""What is charged: cost type, token type, the price's kind, and the stream's unit."""


@dataclass(frozen=True, slots=True)
class Report:
    """What both endpoints are asked: bucket edges in minutes, dimensions, filters, order and page."""

    edges: list[int]
    group_by: list[str]
    fan_out: list[str]
    filters: dict[str, list[str]]
    order_by: str
    descending: bool
    limit: int
    first: int


def usage(simulation: Simulation, org: Organisation, query: Query, path: str) -> str:
    """One page of analytics/usage as JSON text. Raises `Refusal`."""
    orders = ("total_tokens", "output_tokens", "requests", "time", "uncached_input_tokens")
    report = _report(simulation, query, path, (), orders)
    table = simulation.table(org, "anthropic", "messages", "code_execution")
    units = ("requests", *table.units)
    combine = np.array([[unit in parts for parts in _MEASURES.values()] for unit in units], dtype=np.int64)
    groups = divide(table.streams, report.group_by, report.filters)
    measured = groups.sums(_counts(simulation, table, report.edges)) @ combine
    metric = measured[:, :, list(_MEASURES).index(report.order_by)] if report.order_by != "time" else None
    metrics = {
        "uncached_input_tokens": Slot(),
        "cache_creation": {"ephemeral_5m_input_tokens": Slot(), "ephemeral_1h_input_tokens": Slot()},
        "cache_read_input_tokens": Slot(),
        "output_tokens": Slot(),
        "server_tool_use": {"web_search_requests": Slot()},
        "requests": Slot(),
        "total_tokens": Slot(),
    }
    texts = [_row_template({**dict.fromkeys(GROUP_BY), **shared}, "usage", metrics) for shared in groups.dimensions]
    chosen, following = _chosen(report, measured[:, :, list(_MEASURES).index("requests")], metric)
    times = _times(report.edges)
    rows = [texts[group] % (*times[bucket], *measured[group, bucket].tolist()) for group, bucket in chosen]
    return _page(simulation, query, path, rows, following)


def cost(simulation: Simulation, org: Organisation, query: Query, path: str) -> str:
    """One page of analytics/cost as JSON text. Raises `Refusal`."""
    report = _report(simulation, query, path, _FAN_OUT, ("amount", "list_amount", "time"))
    table = simulation.table(org, "anthropic", "messages", "code_execution")
    counted = _counts(simulation, table, report.edges)
    groups = divide(table.streams, report.group_by, report.filters)
    charged = groups.sums(charges(table, counted, report.edges))
    requests = groups.sums(counted[:, :, :1])[:, :, 0]
    metric = None if report.order_by == "time" else charged.sum(axis=2)
    chosen, following = _chosen(report, requests, metric)
    times = _times(report.edges)
    rows = []
    for group, bucket in chosen:
        shared = {**dict.fromkeys((*GROUP_BY, *_FAN_OUT)), **groups.dimensions[group]}
        count = None if report.fan_out else int(requests[group, bucket])
        for kind, amount in _fanned(charged[group, bucket].tolist(), report.fan_out):
            cents = plain(amount, places=10)
            metrics = {"amount": cents, "list_amount": cents, "currency": "USD", "requests": count}
            rows.append(_row_template(shared | kind, "cost", metrics) % times[bucket])
    return _page(simulation, query, path, rows, following)


def charges(table: Table, counted: Ints, edges: Sequence[int]) -> Ints:
    """streams x buckets x `COMPONENTS`, in pico-dollars."""
    units = ("requests", *table.units)
    charged = np.zeros((*counted.shape[:2], len(COMPONENTS)), dtype=np.int64)
    days = [moment_of(edge).date() for edge in edges[:-1]]
    distinct, position = np.unique(np.array([day.toordinal() for day in days], dtype=np.int64), return_inverse=True)
    known = [days[int(np.flatnonzero(position == i)[0])] for i in range(len(distinct))]
    for row, stream in enumerate(table.streams):
        if not counted[row].any():
            continue
        for column, (cost_type, _, kind, unit) in enumerate(COMPONENTS):
            if (cost_type == "code_execution") != (stream.endpoint == "code_execution"):
                continue
            quantity = counted[row, :, units.index(unit)]
            if kind is None:
                charged[row, :, column] = quantity * TARIFF["web_searches" if cost_type == "web_search" else "execution_spans"]
                continue
            long_prompt = stream.dimensions.get("context_window") == "200k-1M"
            tier = "batch" if stream.dimensions["service_tier"] == "batch" else "standard"
            model = stream.dimensions["model"]
            prices = [token_price("anthropic", model, kind, day, tier=tier, long_prompt=long_prompt) for day in known]
            charged[row, :, column] = quantity * np.array(prices, dtype=np.int64)[position]
    return charged


def moment_text(minute: int) -> str:
    return f"{moment_of(minute):%Y-%m-%dT%H:%M:%SZ}"


def parse_moment(query: Query, name: str) -> datetime | None:
    """An RFC 3339 time with its zone."""
    text = query.one(name)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise Refusal(400, f"{name}: Input should be a valid datetime, got {text!r}.", param=name) from None
    if moment.tzinfo is None:
        raise Refusal(400, f"{name}: Input should have timezone info.", param=name)
    return moment.astimezone(UTC)


# ---- The parts of a report -----------------------------------------------------------------------------------------


def _report(simulation: Simulation, query: Query, path: str, fan_out: tuple[str, ...], orders: tuple[str, ...]) -> Report:
    query.only(*_COMMON, *_LISTS)
    asked = query.some_of("group_by", (*GROUP_BY, *fan_out))
    group_by = [name for name in asked if name not in fan_out]
    if len(group_by) > MOST_GROUPS:
        raise Refusal(400, f"group_by: at most {MOST_GROUPS} dimensions are allowed, got {len(group_by)}.", param="group_by")
    if {"rbac_group_id", "claude_tag_user_id"} <= set(group_by):
        raise Refusal(400, "group_by: rbac_group_id cannot be combined with claude_tag_user_id.", param="group_by")
    if query.one_of("exclude_deleted_users", ("true", "false"), "false") == "true" and "actor" not in group_by:
        raise Refusal(400, "exclude_deleted_users: requires group_by[]=actor.", param="exclude_deleted_users")
    filters: dict[str, list[str]] = {}
    for parameter, dimension in _LISTS.items():
        if parameter in ALLOWED:
            query.some_of(parameter, ALLOWED[parameter])
        values = query.many(parameter)
        if values is not None:
            empty = "" if parameter == "api_key_ids" else None
            filters[dimension] = ["" if value == "not_available" else value for value in values if value or empty is not None]
    return Report(
        edges=_edges(simulation, query),
        group_by=group_by,
        fan_out=[name for name in asked if name in fan_out],
        filters=filters,
        order_by=query.one_of("order_by", orders, orders[0]) or orders[0],
        descending=query.one_of("order", ("asc", "desc"), "desc") == "desc",
        limit=query.whole("limit", 20, 1, 1000),
        first=query.position(path, REFUSED_PAGE) or 0,
    )


def _edges(simulation: Simulation, query: Query) -> list[int]:
    """Bucket edges in minutes, of the buckets that have begun; without a width, the whole range in whole hours."""
    width = query.one_of("time_bucket_width", tuple(WIDTHS), None)
    start, end = parse_moment(query, "starting_at"), parse_moment(query, "ending_at")
    clock = simulation.clock()
    if start is None:
        raise Refusal(400, "starting_at: Field required.", param="starting_at")
    if start < BEGAN or start < clock - REACH:
        raise Refusal(
            400, "starting_at: must be within the last 365 days and no earlier than 2026-01-01T00:00:00Z.", param="starting_at"
        )
    if end is None:
        if width is not None:
            raise Refusal(400, "ending_at: required when time_bucket_width is set.", param="ending_at")
        end = min(clock, start + timedelta(days=31))
    if end <= start:
        raise Refusal(400, "ending_at: must be after starting_at.", param="ending_at")
    longest = timedelta(hours=24) if width == "1m" else timedelta(days=31)
    if end - start > longest:
        raise Refusal(400, f"The requested range is longer than {longest}.", param="ending_at")
    first, last, now = minute_of(start), minute_of(end), minute_of(clock)
    if width is None:
        first, last = first - first % 60, last - last % 60
        return [first, last] if first < min(last, now) else [first]
    step = WIDTHS[width]
    first -= first % step
    return list(range(first, max(min(last + (-last) % step, now + (-now) % step), first) + 1, step))


def _counts(simulation: Simulation, table: Table, edges: list[int]) -> Ints:
    if len(edges) < 2:
        return np.zeros((len(table.streams), 0, 1 + len(table.units)), dtype=np.int64)
    return simulation.counts(table, edges)


def _chosen(report: Report, requests: Ints, metric: Ints | None) -> tuple[list[tuple[int, int]], int | None]:
    """The (group, bucket) rows of the page, and where the next page begins. Equal metrics go by time, then by group."""
    bucket, group = np.nonzero(requests.T)
    if metric is None:
        order = np.argsort(-bucket if report.descending else bucket, kind="stable")
    else:
        values = metric[group, bucket]
        order = np.argsort(-values if report.descending else values, kind="stable")
    stop = report.first + report.limit
    page = order[report.first : stop]
    chosen = list(zip(group[page].tolist(), bucket[page].tolist(), strict=True))
    return chosen, stop if stop < len(order) else None


def _fanned(components: Sequence[int], fan_out: Sequence[str]) -> list[tuple[dict[str, str | None], int]]:
    """The amounts by the types asked for; without any, their sum."""
    if not fan_out:
        return [({}, sum(components))]
    summed: dict[tuple[str | None, ...], int] = {}
    for (cost_type, token_type, _, _), amount in zip(COMPONENTS, components, strict=True):
        if amount:
            kinds = {"cost_type": cost_type, "token_type": token_type}
            key = tuple(kinds[name] for name in fan_out)
            summed[key] = summed.get(key, 0) + amount
    return [(dict(zip(fan_out, key, strict=True)), amount) for key, amount in summed.items()]


def _row_template(group: Mapping[str, Any], name: str, metrics: Mapping[str, Any]) -> str:
    times = {"starting_at": Slot('"%s"'), "ending_at": Slot('"%s"')}
    return template({**times, "group": dict(group), name: dict(metrics)})


def _times(edges: Sequence[int]) -> list[tuple[str, str]]:
    return [(moment_text(start), moment_text(end)) for start, end in pairwise(edges)]


def _page(simulation: Simulation, query: Query, path: str, rows: Sequence[str], following: int | None) -> str:
    token = "null" if following is None else f'"{query.token(path, following)}"'
    refreshed = moment_text(minute_of(simulation.clock()))
    more = str(following is not None).lower()
    return f'{{"data":[{",".join(rows)}],"has_more":{more},"next_page":{token},"data_refreshed_at":"{refreshed}"}}'
