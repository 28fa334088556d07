"""Spans of OpenTelemetry's GenAI conventions -> the fields of events: pure, and the content of prompts and answers is not looked at.

Names of the conventions as of 1.38 to 1.45 (`gen_ai.provider.name`, `gen_ai.usage.input_tokens`), the older ones of 1.27 to 1.36
(`gen_ai.system`) and before (`gen_ai.usage.prompt_tokens`), and those that OpenLLMetry wrote meanwhile. By the conventions,
`gen_ai.usage.input_tokens` includes what was read from and written to a cache, as ours does.
https://opentelemetry.io/docs/specs/semconv/gen-ai/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tokentra_dagster.errors import UsageError
from tokentra_dagster.realtime.events import LONGEST_TEXT

PROVIDERS = {
    "openai": "openai", "anthropic": "anthropic", "aws.bedrock": "aws", "aws_bedrock": "aws", "azure.ai.openai": "azure",
    "azure.ai.inference": "azure", "az.ai.openai": "azure", "az.ai.inference": "azure", "gcp.gemini": "google", "gcp.vertex_ai": "google",
    "gcp.gen_ai": "google", "gemini": "google", "vertex_ai": "google", "google": "google", "azure": "azure", "aws": "aws",
}  # fmt: skip
"""`gen_ai.provider.name` and `gen_ai.system` to our providers."""
REQUEST_TYPES = {
    "chat": "chat", "generate_content": "chat", "text_completion": "completion", "completion": "completion", "embeddings": "embedding",
    "embedding": "embedding",
}  # fmt: skip
NO_REQUESTS = {"create_agent", "invoke_agent", "invoke_workflow", "execute_tool", "retrieval", "plan"}
"""Operations that hold requests, whose own spans have the usage: theirs would count it a second time."""

_PROVIDER = ("gen_ai.provider.name", "gen_ai.system")
_OPERATION = ("gen_ai.operation.name", "llm.request.type")
_INPUT = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")
_OUTPUT = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")
_COUNTS = {
    "cached_input_tokens": ("gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cache_read_input_tokens"),
    "cache_creation_tokens": ("gen_ai.usage.cache_creation.input_tokens", "gen_ai.usage.cache_creation_input_tokens"),
}
_REASONING = ("gen_ai.usage.reasoning.output_tokens", "gen_ai.usage.reasoning_tokens")
_TIER = (
    "openai.response.service_tier", "gen_ai.openai.response.service_tier", "openai.request.service_tier",
    "gen_ai.openai.request.service_tier",
)  # fmt: skip
DIMENSIONS = {
    "user_id": ("tokentra.user_id", "user.id", "enduser.id"),
    "environment": ("tokentra.environment", "deployment.environment.name", "deployment.environment"),
    **{
        name: (f"tokentra.{name}",) for name in ("team", "project", "cost_center", "feature", "api_key_id", "provider_project_id")
    },
}
"""What an event's dimensions are read from: attributes of the span, then of its resource."""
_KEPT = ("gen_ai.response.id", "gen_ai.conversation.id", "gen_ai.agent.name", "gen_ai.request.model")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Attributes = Mapping[str, Any]


def requests_of(export: ExportTraceServiceRequest) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """For every span that is a request to a provider, its id and the fields of its event, or a sentence why it cannot be one."""
    for of_resource in export.resource_spans:
        resource = _attributes(of_resource.resource.attributes)
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                attributes = _attributes(span.attributes)
                if not _is_request(attributes):
                    continue
                try:
                    yield span.span_id.hex(), _event(span, attributes, resource)
                except UsageError as error:
                    yield span.span_id.hex(), str(error)


def _is_request(attributes: Attributes) -> bool:
    operation = _first(attributes, _OPERATION)
    if operation in NO_REQUESTS:
        return False
    return _first(attributes, _PROVIDER) is not None or attributes.get("gen_ai.operation.name") is not None


def _event(span: Span, attributes: Attributes, resource: Attributes) -> dict[str, Any]:
    if len(span.trace_id) != 16 or len(span.span_id) != 8:
        raise UsageError("The span has no trace id of 16 bytes and span id of 8 bytes.")
    started, latency = _times(span)
    said = _first(attributes, _PROVIDER)
    if said not in PROVIDERS:
        raise UsageError(f"gen_ai.provider.name is {said!r}; usage is counted of {', '.join(sorted(PROVIDERS))}.")
    failed = span.status.code == Status.STATUS_CODE_ERROR or "error.type" in attributes
    request_type = REQUEST_TYPES.get(str(_first(attributes, _OPERATION)))
    event: dict[str, Any] = {
        "event_id": f"{span.trace_id.hex()}-{span.span_id.hex()}",
        "occurred_at": started,
        "provider": PROVIDERS[said],
        "model": _first(attributes, ("gen_ai.response.model", "gen_ai.request.model")),
        "request_type": request_type,
        "service_tier": _first(attributes, _TIER),
        "input_tokens": _tokens(attributes, _INPUT, none_used=failed),
        "output_tokens": _tokens(attributes, _OUTPUT, none_used=failed or request_type == "embedding"),
        "is_error": failed,
        "latency_ms": latency,
        "metadata": _metadata(attributes, resource),
    }
    if event["model"] is None:
        raise UsageError("The span has neither gen_ai.response.model nor gen_ai.request.model.")
    if failed:
        event["error_message"] = _storable(span.status.message) or _storable(str(attributes.get("error.type", "")))
    event |= {name: _first(attributes, names) for name, names in _COUNTS.items()}
    if (reasoning := _first(attributes, _REASONING)) is not None:
        event["token_details"] = {"reasoning": reasoning}
    for name, names in DIMENSIONS.items():
        found = _first(attributes, names)
        event[name] = _first(resource, names) if found is None else found
    return event


def _times(span: Span) -> tuple[datetime, int]:
    """When it began, and for how many milliseconds it went on."""
    start, end = span.start_time_unix_nano, span.end_time_unix_nano
    if not 0 < start <= end:
        raise UsageError(f"The span begins at {start} and ends at {end} ns; it must begin after 1970 and before it ends.")
    try:
        return _EPOCH + timedelta(microseconds=start // 1000), round((end - start) / 1_000_000)
    except OverflowError:
        raise UsageError(f"The span begins at {start} ns, which is no time.") from None


def _tokens(attributes: Attributes, names: Sequence[str], *, none_used: bool) -> Any:
    """`none_used`: no figure means none. A request that failed has no answer with usage in it, an embedding has no output."""
    found = _first(attributes, names)
    if found is None and not none_used:
        raise UsageError(f"The span has no {names[0]}; switch the usage of tokens on in the instrumentation (for streams too).")
    return 0 if found is None else found


def _metadata(attributes: Attributes, resource: Attributes) -> dict[str, Any]:
    found = {name: attributes.get(name) for name in _KEPT} | {"service.name": resource.get("service.name")}
    return {name: text for name, value in found.items() if isinstance(value, str) and (text := _storable(value))}


def _storable(text: str) -> str | None:
    return text.replace("\x00", "")[:LONGEST_TEXT] or None


def _first(attributes: Attributes, names: Sequence[str]) -> Any:
    """The first that is there and says something."""
    return next((attributes[name] for name in names if attributes.get(name) not in (None, "")), None)


def _attributes(pairs: Sequence[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    """Text, numbers and booleans; None for what is longer and is not looked at."""
    kind = value.WhichOneof("value")
    if kind == "double_value":
        return int(value.double_value) if value.double_value.is_integer() else value.double_value
    return getattr(value, kind) if kind in ("string_value", "int_value", "bool_value") else None
