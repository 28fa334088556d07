"""CloudWatch's metrics of Bedrock: which are read at which level, and how the points of one bucket become a `UsageRecord`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from tokentra_dagster.providers.aws_catalogue import Reference
from tokentra_dagster.providers.aws_cloudwatch import Query
from tokentra_dagster.providers.payload import BadItem
from tokentra_dagster.records import GRANULARITY_SECONDS, Granularity, Item, RejectedItem, UsageRecord, token_problem

RUNTIME = "AWS/Bedrock"
MANTLE = "AWS/BedrockMantle"
ENDPOINTS = {RUNTIME: "bedrock-runtime", MANTLE: "bedrock-mantle"}
CACHE_READS = ("CacheReadInputTokens", "CacheReadInputTokenCount")
CACHE_WRITES = ("CacheWriteInputTokens", "CacheWriteInputTokenCount")
READ: dict[str, tuple[str, ...]] = {
    RUNTIME: (
        "Invocations", "InvocationClientErrors", "InvocationServerErrors", "InvocationThrottles", "InputTokenCount",
        "OutputTokenCount", *CACHE_READS, *CACHE_WRITES, "OutputImageCount",
    ),
    MANTLE: ("Inferences", "InferenceClientErrors", "TotalInputTokens", "TotalOutputTokens"),
}  # fmt: skip
"""Namespace -> what is summed."""
LATENCY = "InvocationLatency"
_LATENCY = ("Sum", "Minimum", "Maximum")
_PERCENTILES = ("p50", "p95", "p99")
_KINDS = (
    ("embed", "embedding"),
    ("rerank", None),
    ("image", "image"),
    ("canvas", "image"),
    ("stability.", "image"),
    ("sonic", "audio"),
)

Values = Mapping[tuple[str, str], float]


@dataclass(frozen=True, slots=True)
class Series:
    """One series of usage at the one level that is read."""

    namespace: str
    dimensions: tuple[tuple[str, str], ...]

    def one(self, word: str) -> str | None:
        """The dimension whose name begins so: what AWS calls `ModelId` in one namespace may be `Model` in the other."""
        return next((value for name, value in self.dimensions if name.lower().startswith(word)), None)

    @property
    def model(self) -> str:
        return self.one("model") or ""


def is_level(namespace: str, dimensions: Mapping[str, str], mantle: str) -> bool:
    """Whether these dimensions are the one level that is read; every other holds the same usage again."""
    if namespace == RUNTIME:
        return set(dimensions) == {"ModelId"} and dimensions["ModelId"] != "Across all model IDs"
    words = sorted(name.lower()[:5] for name in dimensions)
    return words == (["model", "proje"] if mantle == "project" else ["model"])


def queries_of(series: Series, percentiles: bool) -> list[Query]:
    sums = [Query(series.namespace, metric, series.dimensions, "Sum") for metric in READ[series.namespace]]
    if series.namespace == MANTLE:
        return sums
    statistics = (*_LATENCY, *(_PERCENTILES if percentiles else ()))
    return sums + [Query(series.namespace, LATENCY, series.dimensions, statistic) for statistic in statistics]


def request_type(model: str) -> str | None:
    """What a model is for, by its name; None where the name says neither."""
    name = model.lower()
    return next((kind for word, kind in _KINDS if word in name), "chat")


def counted(
    series: Series, reference: Reference, region: str, at: datetime, granularity: Granularity, values: Values, successful: bool
) -> Item | None:
    """The record of one bucket; None where nothing was counted in it."""
    try:
        counts = {metric: _count(values, metric) for metric in READ[series.namespace]}
        if not any(counts.values()):
            return None
        tokens = _runtime(counts, successful) if series.namespace == RUNTIME else _mantle(counts)
        problem = token_problem(
            tokens["input_tokens"],
            tokens["output_tokens"],
            tokens.get("cached_input_tokens"),
            tokens.get("cache_creation_tokens"),
        )
        if problem:
            raise BadItem(problem)
        return UsageRecord(
            bucket_start=at,
            bucket_end=at + timedelta(seconds=GRANULARITY_SECONDS[granularity]),
            granularity=granularity,
            model=reference.model,
            request_type=request_type(reference.model),
            provider_project_id=series.one("project") or reference.profile_id,
            total_latency_ms=_milliseconds(values, "Sum"),
            min_latency_ms=_milliseconds(values, "Minimum"),
            max_latency_ms=_milliseconds(values, "Maximum"),
            p50_latency_ms=_milliseconds(values, "p50"),
            p95_latency_ms=_milliseconds(values, "p95"),
            p99_latency_ms=_milliseconds(values, "p99"),
            metadata={"region": region, "endpoint": ENDPOINTS[series.namespace]}
            | ({"model_id": series.model} if series.model != reference.model else {})
            | ({"throttled_requests": counts["InvocationThrottles"]} if counts.get("InvocationThrottles") else {})
            | ({"tokens_unknown": ["input_tokens", "output_tokens"]} if _says_no_tokens(counts) else {}),
            **tokens,
        )
    except BadItem as bad:
        payload = {f"{metric} {statistic}": repr(value) for (metric, statistic), value in values.items()}
        return RejectedItem(
            reason=f"aws {series.namespace}: {bad}", payload={"dimensions": dict(series.dimensions)} | payload, bucket_start=at
        )


def _runtime(counts: Mapping[str, int | None], successful: bool) -> dict[str, Any]:
    reads, writes = (_first(counts, names) for names in (CACHE_READS, CACHE_WRITES))
    invocations = counts["Invocations"]
    errors = (counts["InvocationClientErrors"] or 0) + (counts["InvocationServerErrors"] or 0)
    requests = invocations or 0
    if successful:
        requests, succeeded = requests + errors, requests
    else:
        succeeded = requests - errors
    images = counts["OutputImageCount"]
    return {
        "input_tokens": (counts["InputTokenCount"] or 0) + (reads or 0) + (writes or 0),
        "output_tokens": counts["OutputTokenCount"] or 0,
        "cached_input_tokens": reads,
        "cache_creation_tokens": writes,
        "request_count": requests,
        # More failures than requests: then this account's Invocations are successful ones, and nothing is known of the rest.
        "success_count": succeeded if succeeded >= 0 else None,
        "error_count": errors,
        "quantity": Decimal(images) if images else None,
        "quantity_unit": "images" if images else None,
    }


def _mantle(counts: Mapping[str, int | None]) -> dict[str, Any]:
    """Whether `Inferences` holds the failed ones, and `TotalInputTokens` what a cache held, AWS does not say."""
    return {
        "input_tokens": counts["TotalInputTokens"] or 0,
        "output_tokens": counts["TotalOutputTokens"] or 0,
        "request_count": counts["Inferences"] or 0,
        "error_count": counts["InferenceClientErrors"] or 0,
    }


def _says_no_tokens(counts: Mapping[str, int | None]) -> bool:
    """Requests succeeded and no token was published for them: they are not free."""
    errors = sum(counts.get(name) or 0 for name in ("InvocationClientErrors", "InvocationServerErrors"))
    requests = counts.get("Invocations", counts.get("Inferences")) or 0
    tokens = [count for name, count in counts.items() if "Token" in name]
    return requests > errors and all(count is None for count in tokens) and not counts.get("OutputImageCount")


def _first(counts: Mapping[str, int | None], names: tuple[str, ...]) -> int | None:
    """One spelling of a metric, never the sum of both."""
    return next((counts[name] for name in names if counts[name] is not None), None)


def _count(values: Values, metric: str) -> int | None:
    value = values.get((metric, "Sum"))
    if value is None:
        return None
    if not math.isfinite(value) or value < 0 or abs(value - round(value)) > 1e-6:
        raise BadItem(f"{metric} is {value!r}; a whole number, not negative, is required")
    return round(value)


def _milliseconds(values: Values, statistic: str) -> int | None:
    value = values.get((LATENCY, statistic))
    if value is None:
        return None
    if not math.isfinite(value) or value < 0:
        raise BadItem(f"{LATENCY} {statistic} is {value!r}; a number, not negative, is required")
    return round(value)
