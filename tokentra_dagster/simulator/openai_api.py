"""OpenAI's organisation usage endpoints, as providers really answer them: pages of buckets of results.

Dimensions are null unless grouped by. Buckets without usage come with `results: []`; the current bucket is there and grows.
A start inside a bucket gives a shorter first bucket. Page tokens hold for the very same parameters only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tokentra_dagster.simulator.organisation import ORIGIN, Organisation
from tokentra_dagster.simulator.query import Query, Refusal, Slot, divide, template
from tokentra_dagster.simulator.simulation import Simulation
from tokentra_dagster.simulator.truth import Ints, Table, minute_of, stored_bytes

WIDTHS = {"1m": 1, "1h": 60, "1d": 1440}
LIMITS = {"1m": (60, 1440), "1h": (24, 168), "1d": (7, 31)}
REFUSED_PAGE = "The page token is invalid, have you modified the query parameters?"
_EPOCH = int(ORIGIN.timestamp())

_WHO = ("project_id", "user_id", "api_key_id")
_MODEL = (*_WHO, "model")
_FILTERS = {"project_id": "project_ids", "user_id": "user_ids", "api_key_id": "api_key_ids", "model": "models"}
_SIZES = ("256x256", "512x512", "1024x1024", "1792x1792", "1024x1792")
_SOURCES = ("image.generation", "image.edit", "image.variation")

_UNCACHED = ("text", "audio", "image")
_CACHED = ("cached_text", "cached_audio", "cached_image")
_WRITTEN = ("cache_write_30m", "cache_write_12h")
_OUTPUT = ("output_text", "output_audio", "output_image")
_TOKENS: Mapping[str, tuple[str, ...]] = {
    "input_tokens": (*_UNCACHED, *_CACHED, *_WRITTEN),
    "output_tokens": _OUTPUT,
    "num_model_requests": ("requests",),
    "input_cached_tokens": _CACHED,
    "input_uncached_tokens": _UNCACHED,
    "input_cache_write_tokens": _WRITTEN,
    "input_cache_write_30m_tokens": ("cache_write_30m",),
    "input_cache_write_12h_tokens": ("cache_write_12h",),
    "input_text_tokens": ("text",),
    "input_cached_text_tokens": ("cached_text",),
    "output_text_tokens": ("output_text",),
    "input_audio_tokens": ("audio",),
    "input_cached_audio_tokens": ("cached_audio",),
    "output_audio_tokens": ("output_audio",),
    "input_image_tokens": ("image",),
    "input_cached_image_tokens": ("cached_image",),
    "output_image_tokens": ("output_image",),
}
_INPUT: Mapping[str, tuple[str, ...]] = {"input_tokens": ("text",), "num_model_requests": ("requests",)}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`measures` are sums of the stream's units (`requests` included); `lists` are parameters that filter by a dimension."""

    result: str
    measures: Mapping[str, tuple[str, ...]]
    group_by: tuple[str, ...]
    lists: Mapping[str, str]
    batch: bool = False


_MODEL_LISTS = _FILTERS
ENDPOINTS: dict[str, Endpoint] = {
    "completions": Endpoint("completions", _TOKENS, (*_MODEL, "batch", "service_tier", "api_source"), _MODEL_LISTS, True),
    "decisions": Endpoint("decisions", _TOKENS, (*_MODEL, "batch", "service_tier", "api_source"), _MODEL_LISTS, True),
    "embeddings": Endpoint("embeddings", _INPUT, _MODEL, _MODEL_LISTS),
    "moderations": Endpoint("moderations", _INPUT, _MODEL, _MODEL_LISTS),
    "images": Endpoint(
        "images", {"images": ("images",), "num_model_requests": ("requests",)}, (*_MODEL, "size", "source"),
        {**_MODEL_LISTS, "size": "sizes", "source": "sources"},
    ),
    "audio_speeches": Endpoint(
        "audio_speeches", {"characters": ("characters",), "num_model_requests": ("requests",)}, _MODEL, _MODEL_LISTS
    ),
    "audio_transcriptions": Endpoint(
        "audio_transcriptions", {"seconds": ("seconds",), "num_model_requests": ("requests",)}, _MODEL, _MODEL_LISTS
    ),
    "vector_stores": Endpoint("vector_stores", {"usage_bytes": ("bytes",)}, ("project_id",), {"project_id": "project_ids"}),
    "code_interpreter_sessions": Endpoint(
        "code_interpreter_sessions", {"num_sessions": ("requests",)}, ("project_id",), {"project_id": "project_ids"}
    ),
    "file_search_calls": Endpoint(
        "file_searches", {"num_requests": ("requests",)}, (*_WHO, "vector_store_id"),
        {**{name: _FILTERS[name] for name in _WHO}, "vector_store_id": "vector_store_ids"},
    ),
    "web_search_calls": Endpoint(
        "web_searches", {"num_requests": ("calls",), "num_model_requests": ("requests",)}, (*_MODEL, "context_level", "api_source"),
        {**_MODEL_LISTS, "context_level": "context_levels"},
    ),
}  # fmt: skip
_ALLOWED = {"sizes": _SIZES, "sources": _SOURCES, "context_levels": ("low", "medium", "high")}
_COMMON = ("start_time", "end_time", "bucket_width", "limit", "page", "group_by")


@dataclass(frozen=True, slots=True)
class Page:
    """The buckets of one page: their edges in minutes from the origin, and where the next page begins."""

    edges: list[int]
    following: int | None

    @property
    def times(self) -> list[tuple[int, int]]:
        """Unix seconds of every bucket."""
        seconds = [_EPOCH + 60 * edge for edge in self.edges]
        return list(pairwise(seconds))


def page_of(query: Query, path: str, width: int, default: int, most: int, now: int) -> Page:
    """The buckets that the parameters ask for: those that have begun by `now`, at most `limit` of them."""
    start = (query.whole("start_time", None, 0, 1 << 40) - _EPOCH) // 60
    end = (query.whole("end_time", _EPOCH + 60 * (now - now % width + width), 0, 1 << 40) - _EPOCH) // 60
    if end <= start:
        raise Refusal(400, "'end_time' must be after 'start_time'.", param="end_time")
    limit = query.whole("limit", default, 1, most)
    position = query.position(path, REFUSED_PAGE)
    if position is not None:
        start = position
    edges = [start]
    while len(edges) <= limit and edges[-1] < min(end, now):
        edges.append(min((edges[-1] // width + 1) * width, end))
    more = len(edges) > limit and edges[-1] < min(end, now)
    return Page(edges, edges[-1] if more else None)


def usage(simulation: Simulation, org: Organisation, name: str, query: Query, path: str) -> str:
    """One page of a usage endpoint as JSON text. Raises `Refusal`."""
    endpoint = ENDPOINTS.get(name)
    if endpoint is None:
        raise Refusal(404, f"Invalid URL (GET {path})", code="invalid_url")
    query.only(*_COMMON, *endpoint.lists.values(), *(("batch",) if endpoint.batch else ()))
    width = query.one_of("bucket_width", tuple(WIDTHS), "1d") or "1d"
    group_by = query.some_of("group_by", endpoint.group_by)
    filters: dict[str, Sequence[object]] = {}
    for dimension, parameter in endpoint.lists.items():
        if parameter in _ALLOWED:
            query.some_of(parameter, _ALLOWED[parameter])
        values = query.many(parameter)
        if values is not None:
            filters[dimension] = values
    if endpoint.batch and (batch := query.one_of("batch", ("true", "false"), None)) is not None:
        filters["batch"] = [batch == "true"]
    now = minute_of(simulation.clock())
    page = page_of(query, path, WIDTHS[width], *LIMITS[width], now)
    table = simulation.table(org, "openai", name)
    groups = divide(table.streams, group_by, filters)
    measured = groups.sums(_measures(simulation, table, endpoint, page, now))
    texts = [
        template({"object": f"organization.usage.{endpoint.result}.result"} | dict.fromkeys(endpoint.measures, Slot()) | shared)
        for shared in ({d: dimensions.get(d) for d in endpoint.group_by} for dimensions in groups.dimensions)
    ]
    return page_text(query, path, page, texts, measured)


def page_text(query: Query, path: str, page: Page, texts: Sequence[str], measured: Ints) -> str:
    """`texts` is a template per group; `measured` is groups x buckets x measures. Groups without any are left out."""
    used = measured.any(axis=2)
    by_bucket: list[list[str]] = [[] for _ in page.times]
    where_group, where_bucket = np.nonzero(used)
    values = measured[where_group, where_bucket].tolist()
    for group, bucket, row in zip(where_group.tolist(), where_bucket.tolist(), values, strict=True):
        by_bucket[bucket].append(texts[group] % tuple(row))
    return whole_page(query, path, page, by_bucket)


def whole_page(query: Query, path: str, page: Page, by_bucket: Sequence[Sequence[str]]) -> str:
    buckets = ",".join(
        f'{{"object":"bucket","start_time":{start},"end_time":{end},"results":[{",".join(results)}]}}'
        for (start, end), results in zip(page.times, by_bucket, strict=True)
    )
    following = "null" if page.following is None else f'"{query.token(path, page.following)}"'
    return f'{{"object":"page","data":[{buckets}],"has_more":{str(page.following is not None).lower()},"next_page":{following}}}'


def _measures(simulation: Simulation, table: Table, endpoint: Endpoint, page: Page, now: int) -> Ints:
    """streams x buckets x measures."""
    edges = np.array(page.edges, dtype=np.int64)
    if not table.streams or len(edges) < 2:
        return np.zeros((len(table.streams), len(edges) - 1, len(endpoint.measures)), dtype=np.int64)
    if endpoint.result == "vector_stores":
        return stored_bytes(table, np.minimum(edges[1:], now))[:, :, None]
    units = ("requests", *table.units)
    combine = np.array([[unit in parts for parts in endpoint.measures.values()] for unit in units], dtype=np.int64)
    measured: Ints = simulation.counts(table, edges) @ combine
    return measured
