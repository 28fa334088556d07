"""Anthropic's legacy reports: usage_report/messages and cost_report, as they really answer.

They know no request counts; the default workspace is null; code execution is in costs only; Priority Tier is in usage only;
costs have days only, divided by workspace and description, never by key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from tokentra_dagster.simulator.anthropic_api import ALLOWED, COMPONENTS, REFUSED_PAGE, WIDTHS, charges, moment_text, parse_moment
from tokentra_dagster.simulator.organisation import Organisation, Stream
from tokentra_dagster.simulator.prices import plain
from tokentra_dagster.simulator.query import Query, Refusal, Slot, divide, template
from tokentra_dagster.simulator.simulation import Simulation
from tokentra_dagster.simulator.truth import Ints, minute_of

FAST_MODE = "fast-mode-2026-02-01"
USAGE_LIMITS = {"1d": (7, 31), "1h": (24, 168), "1m": (60, 1440)}
_GROUP_BY = (
    "account_id", "api_key_id", "context_window", "inference_geo", "model", "service_account_id", "service_tier", "speed", "workspace_id",
)  # fmt: skip
_LISTS = {
    "account_ids": "account_id", "api_key_ids": "api_key_id", "service_account_ids": "service_account_id",
    "workspace_ids": "workspace_id", "models": "model", "service_tiers": "service_tier", "context_window": "context_window",
    "inference_geos": "inference_geo", "speeds": "speed",
}  # fmt: skip
_VALUES = {**ALLOWED, "context_window": ALLOWED["context_windows"]}
_MEASURES = ("uncached", "cache_1h", "cache_5m", "cache_read", "output", "web_search")
_PARSED = ("cost_type", "model", "token_type", "context_window", "service_tier", "inference_geo")
_WORDS = {
    "uncached_input_tokens": "Input Tokens",
    "output_tokens": "Output Tokens",
    "cache_read_input_tokens": "Input Tokens, Cache Hit",
    "cache_creation.ephemeral_5m_input_tokens": "Input Tokens, Cache Write",
    "cache_creation.ephemeral_1h_input_tokens": "Input Tokens, Cache Write (1h)",
}


@dataclass(frozen=True, slots=True)
class _Divided:
    """A stream, or one charge of it, under the legacy names."""

    dimensions: Mapping[str, Any]


def usage(simulation: Simulation, org: Organisation, query: Query, path: str, betas: frozenset[str]) -> str:
    """One page of usage_report/messages as JSON text. Raises `Refusal`."""
    query.only("starting_at", "ending_at", "bucket_width", "limit", "page", "group_by", *_LISTS)
    width = query.one_of("bucket_width", tuple(WIDTHS), "1d") or "1d"
    group_by = query.some_of("group_by", _GROUP_BY)
    if "speed" in group_by and FAST_MODE not in betas:
        raise Refusal(400, f"group_by: speed requires the beta header {FAST_MODE}.", param="group_by")
    filters: dict[str, list[str]] = {}
    for parameter, dimension in _LISTS.items():
        if parameter in _VALUES:
            query.some_of(parameter, _VALUES[parameter])
        values = query.many(parameter)
        if values is not None:
            filters[dimension] = ["" if value == "not_available" else value for value in values if value]
    edges, following = _buckets(simulation, query, path, WIDTHS[width], *USAGE_LIMITS[width])
    table = simulation.table(org, "anthropic", "messages")
    groups = divide([_Divided(_dimensions(stream)) for stream in table.streams], group_by, filters)
    counted = simulation.counts(table, edges)[:, :, [1 + table.units.index(unit) for unit in _MEASURES]]
    summed = groups.sums(counted)
    texts = [
        template(
            {
                "uncached_input_tokens": Slot(),
                "cache_creation": {"ephemeral_1h_input_tokens": Slot(), "ephemeral_5m_input_tokens": Slot()},
                "cache_read_input_tokens": Slot(),
                "output_tokens": Slot(),
                "server_tool_use": {"web_search_requests": Slot()},
            }
            | {name: shared.get(name) for name in _GROUP_BY}
        )
        for shared in groups.dimensions
    ]
    results: list[list[str]] = [[] for _ in edges[1:]]
    where_group, where_bucket = np.nonzero(summed.any(axis=2))
    for group, bucket in zip(where_group.tolist(), where_bucket.tolist(), strict=True):
        results[bucket].append(texts[group] % tuple(summed[group, bucket].tolist()))
    return _page(query, path, edges, results, following)


def cost(simulation: Simulation, org: Organisation, query: Query, path: str) -> str:
    """One page of cost_report as JSON text. Raises `Refusal`."""
    query.only("starting_at", "ending_at", "bucket_width", "limit", "page", "group_by")
    query.one_of("bucket_width", ("1d",), "1d")
    group_by = query.some_of("group_by", ("workspace_id", "description"))
    edges, following = _buckets(simulation, query, path, 1440, 7, 31)
    found, amounts = _charges(simulation, org, edges)
    parsed = ("description", *_PARSED) if "description" in group_by else ()
    groups = divide(found, (*(["workspace_id"] if "workspace_id" in group_by else []), *parsed), {})
    summed = groups.sums(amounts)
    results: list[list[str]] = [[] for _ in edges[1:]]
    for group, shared in enumerate(groups.dimensions):
        fields = {name: shared.get(name) for name in ("workspace_id", "description", *_PARSED)}
        text = template({"currency": "USD", "amount": Slot('"%s"')} | fields)
        for day in np.flatnonzero(summed[group]).tolist():
            results[day].append(text % plain(int(summed[group, day]), places=10))
    return _page(query, path, edges, results, following)


def _charges(simulation: Simulation, org: Organisation, edges: list[int]) -> tuple[list[_Divided], Ints]:
    """Every charge with its legacy names, and charges x days in pico-dollars."""
    table = simulation.table(org, "anthropic", "messages", "code_execution")
    charged = charges(table, simulation.counts(table, edges), edges)
    found, amounts = [], []
    for row, stream in enumerate(table.streams):
        if stream.dimensions.get("service_tier") == "priority":
            continue
        for column, (cost_type, token_type, _, _) in enumerate(COMPONENTS):
            if charged[row, :, column].any():
                found.append(_Divided(_described(stream, cost_type, token_type)))
                amounts.append(charged[row, :, column])
    return found, np.array(amounts, dtype=np.int64).reshape(len(found), len(edges) - 1)


def _described(stream: Stream, cost_type: str, token_type: str | None) -> dict[str, Any]:
    dimensions: dict[str, Any] = {"workspace_id": stream.dimensions["legacy_workspace_id"], "cost_type": cost_type}
    if token_type is None:
        return dimensions | {"description": "Web Search Usage" if cost_type == "web_search" else "Code Execution Usage"}
    model, tier, window = (stream.dimensions[name] for name in ("model", "service_tier", "context_window"))
    extra = "".join([" (Batch)" if tier == "batch" else "", " (Long Context)" if window == "200k-1M" else ""])
    parsed = {"model": model, "token_type": token_type, "context_window": window, "service_tier": tier}
    geo = {"inference_geo": stream.dimensions["inference_geo"]}
    return dimensions | parsed | geo | {"description": f"{model} Usage{extra} - {_WORDS[token_type]}"}


def _dimensions(stream: Stream) -> dict[str, Any]:
    return dict(stream.dimensions) | {"workspace_id": stream.dimensions["legacy_workspace_id"]}


def _buckets(
    simulation: Simulation, query: Query, path: str, width: int, default: int, most: int
) -> tuple[list[int], int | None]:
    """Edges in minutes, snapped to whole buckets in UTC, of the buckets that have begun; and where the next page begins."""
    start, end, now = parse_moment(query, "starting_at"), parse_moment(query, "ending_at"), minute_of(simulation.clock())
    if start is None:
        raise Refusal(400, "starting_at: Field required.", param="starting_at")
    first = minute_of(start) // width * width
    last = now if end is None else min(minute_of(end), now)
    if end is not None and end <= start:
        raise Refusal(400, "ending_at: must be after starting_at.", param="ending_at")
    limit = query.whole("limit", default, 1, most)
    position = query.position(path, REFUSED_PAGE)
    begin = first if position is None else position
    edges = [begin]
    while len(edges) <= limit and edges[-1] < last:
        edges.append(edges[-1] + width)
    return edges, edges[-1] if edges[-1] < last else None


def _page(query: Query, path: str, edges: list[int], results: list[list[str]], following: int | None) -> str:
    buckets = ",".join(
        f'{{"starting_at":"{moment_text(start)}","ending_at":"{moment_text(end)}","results":[{",".join(inside)}]}}'
        for (start, end), inside in zip(pairwise(edges), results, strict=True)
    )
    token = "null" if following is None else f'"{query.token(path, following)}"'
    return f'{{"data":[{buckets}],"has_more":{str(following is not None).lower()},"next_page":{token}}}'
