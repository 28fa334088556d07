"""One line of Bedrock's model invocation log, read for its counters only.

Prompts and answers are in the same line (`inputBodyJson`, `outputBodyJson`). Nothing of them leaves this module except the numbers
in their `usage` and `metrics`, and what is kept of a line that cannot be used never holds them (`without_bodies`).

`inputTokenCount` is what no cache held: reads and writes are added to it. Where the counts are not in the line itself (models
that are not for text, some streams), those of the answer's `usage` are taken; where neither is, the tokens are unknown, not zero.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tokentra_dagster.providers.payload import BadItem, instant, optional_count, optional_text
from tokentra_dagster.records import token_problem

_KEPT = (
    "schemaType", "schemaVersion", "timestamp", "accountId", "region", "inferenceRegion", "requestId", "operation", "modelId",
    "errorCode", "status",
)  # fmt: skip
_LONGEST_TEXT = 500
_METRICS = "amazon-bedrock-invocationMetrics"
_INPUT = ("inputTokens", "input_tokens", "inputTokenCount")
_OUTPUT = ("outputTokens", "output_tokens", "outputTokenCount")
_READS = ("cacheReadInputTokens", "cache_read_input_tokens", "cacheReadInputTokenCount")
_WRITES = ("cacheWriteInputTokens", "cache_creation_input_tokens", "cacheWriteInputTokenCount")
_LATENCY = ("latencyMs", "invocationLatency")


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """One request. Counts are None where the line does not say; `input_tokens` includes what caches held."""

    at: datetime
    account: str
    region: str
    request_id: str
    model_id: str
    operation: str | None
    identity: str | None
    inference_region: str | None
    service_tier: str | None
    error_code: str | None
    input_tokens: int | None
    output_tokens: int | None
    cached: int | None
    written: int | None
    written_1h: int | None
    latency_ms: int | None
    metadata: Mapping[str, str]


def read(line: bytes) -> Any:
    """The JSON of a line. Raises `BadItem`, whose text holds nothing of the line."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        where = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise BadItem(f"the line is no JSON{where}") from None


def invocation(item: Any) -> Invocation:
    """The request that a line tells of. Raises `BadItem`."""
    if not isinstance(item, Mapping) or item.get("schemaType", "ModelInvocationLog") != "ModelInvocationLog":
        raise BadItem("the line is no ModelInvocationLog")
    given, answered = _part(item, "input"), _part(item, "output")
    usage = _measures(answered.get("outputBodyJson"))
    error = optional_text(item, "errorCode")
    uncached = _either(given, ("inputTokenCount",), usage, _INPUT)
    reads = _either(given, ("cacheReadInputTokenCount",), usage, _READS)
    writes = _either(given, ("cacheWriteInputTokenCount",), usage, _WRITES)
    produced = _either(answered, ("outputTokenCount",), usage, _OUTPUT)
    total = None if uncached is None else uncached + (reads or 0) + (writes or 0)
    problem = token_problem(
        total or 0, produced or 0, reads if total is not None else None, writes if total is not None else None
    )
    if problem:
        raise BadItem(problem)
    tier = item.get("serviceTier")
    return Invocation(
        at=instant(item, "timestamp"),
        account=_required(item, "accountId"),
        region=_required(item, "region"),
        request_id=_required(item, "requestId"),
        model_id=_required(item, "modelId"),
        operation=optional_text(item, "operation"),
        identity=optional_text(_part(item, "identity"), "arn"),
        inference_region=optional_text(item, "inferenceRegion"),
        service_tier=optional_text(tier if isinstance(tier, Mapping) else {"type": tier}, "type"),
        error_code=error,
        input_tokens=total if total is not None or error is None else 0,
        output_tokens=produced if produced is not None or error is None else 0,
        cached=reads if total is not None else None,
        written=writes if total is not None else None,
        written_1h=usage.get("written_1h"),
        latency_ms=next((usage[name] for name in _LATENCY if name in usage), None),
        metadata={
            str(key): str(value)[:_LONGEST_TEXT] for key, value in _part(item, "requestMetadata").items() if value is not None
        },
    )


def without_bodies(item: Any) -> Any:
    """What may be kept of a line: known fields and counts. A field that is not known may hold what was said."""
    if not isinstance(item, Mapping):
        return {"kind": type(item).__name__}
    kept: dict[str, Any] = {
        name: str(item[name])[:_LONGEST_TEXT] for name in _KEPT if isinstance(item.get(name), str | int | float)
    }
    for name in ("input", "output"):
        kept[name] = {key: value for key, value in _part(item, name).items() if key.endswith("Count") and isinstance(value, int)}
    return kept


def _part(item: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = item.get(name)
    return value if isinstance(value, Mapping) else {}


def _required(item: Mapping[str, Any], name: str) -> str:
    text = optional_text(item, name)
    if text is None:
        raise BadItem(f"{name} is missing; it is required")
    return text


def _either(part: Mapping[str, Any], names: tuple[str, ...], usage: Mapping[str, int], others: tuple[str, ...]) -> int | None:
    """The count that the line gives, else the one of the answer."""
    for name in names:
        found = optional_count(part, name)
        if found is not None:
            return found
    return next((usage[name] for name in others if name in usage), None)


def _measures(body: Any) -> dict[str, int]:
    """The counters of an answer: one object, or the events of a stream, of which a later one replaces an earlier."""
    found: dict[str, int] = {}
    for event in body if isinstance(body, list) else [body]:
        for part in _counters(event):
            for name, value in part.items():
                if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
                    found[name] = value
            hours = _one_hour(part)
            if hours is not None:
                found["written_1h"] = hours
    return found


def _counters(event: Any) -> Iterator[Mapping[str, Any]]:
    """The objects of an event that hold counters: Converse's, Anthropic's, and Bedrock's own at the end of a stream."""
    if not isinstance(event, Mapping):
        return
    for holder in (event, event.get("message"), event.get("metadata")):
        if isinstance(holder, Mapping):
            for name in ("usage", "metrics", _METRICS):
                part = holder.get(name)
                if isinstance(part, Mapping):
                    yield part


def _one_hour(part: Mapping[str, Any]) -> int | None:
    """Cache writes that are kept for an hour, of all cache writes; they have a price of their own."""
    details = part.get("cacheDetails")
    if isinstance(details, list):
        counts = [one.get("inputTokens") for one in details if isinstance(one, Mapping) and one.get("ttl") == "1h"]
        return sum(count for count in counts if isinstance(count, int))
    creation = part.get("cache_creation")
    hour = creation.get("ephemeral_1h_input_tokens") if isinstance(creation, Mapping) else None
    return hour if isinstance(hour, int) else None
