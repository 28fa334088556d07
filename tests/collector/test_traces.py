"""OTLP/HTTP with the GenAI conventions, from the official SDK and as bytes."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode

from tests.collector.service import Collector, key_of
from tests.realtime.event_data import counted
from tests.warehouse_data import one, rows
from tokentra_dagster.collector.traces_route import spans_in
from tokentra_dagster.realtime.flush import flush

NOW = datetime.now(UTC)
CHAT = {"gen_ai.provider.name": "openai", "gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-4o",
        "gen_ai.usage.input_tokens": 100, "gen_ai.usage.output_tokens": 10}  # fmt: skip


@pytest.fixture
def collector(database):
    with Collector(database) as running:
        yield running


def value(one: Any) -> dict[str, Any]:
    if isinstance(one, str):
        return {"stringValue": one}
    return (
        {"boolValue": one} if isinstance(one, bool) else {"intValue": str(one)} if isinstance(one, int) else {"doubleValue": one}
    )


def attributes(named: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": name, "value": value(one)} for name, one in named.items()]


def span(number: int, named: dict[str, Any], **fields: Any) -> dict[str, Any]:
    start = int((NOW - timedelta(seconds=2)).timestamp() * 1_000_000) * 1000
    return {
        "traceId": f"{number:032x}", "spanId": f"{number:016x}", "name": "chat", "kind": 3, "startTimeUnixNano": str(start),
        "endTimeUnixNano": str(start + 1_500_400_000), "attributes": attributes(named),
    } | fields  # fmt: skip


def export(*spans: dict[str, Any], **resource: Any) -> dict[str, Any]:
    named = {name.replace("_", "."): one for name, one in resource.items()}
    return {
        "resourceSpans": [
            {"resource": {"attributes": attributes(named)}, "scopeSpans": [{"scope": {"name": "t"}, "spans": list(spans)}]}
        ]
    }


def binary(document: dict[str, Any]) -> bytes:
    """The same request as protobuf."""
    from tokentra_dagster.collector.traces_route import _with_bytes

    for of_resource in document["resourceSpans"]:
        for of_scope in of_resource["scopeSpans"]:
            of_scope["spans"] = [_with_bytes(one) for one in of_scope["spans"]]
    return json_format.ParseDict(document, ExportTraceServiceRequest()).SerializeToString()


@pytest.mark.parametrize("compression", list(Compression))
def test_the_official_exporter_sends_and_its_requests_become_records(collector, database, compression):
    key = key_of(database)
    exporter = OTLPSpanExporter(
        endpoint=f"{collector.url}/v1/traces", headers={"authorization": f"Bearer {key}"}, compression=compression
    )
    provider = TracerProvider(
        resource=Resource.create({"service.name": "shop", "deployment.environment.name": "prod", "tokentra.team": "core"})
    )
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("tests")
    with (
        tracer.start_as_current_span("GET /answer", attributes={"http.request.method": "GET"}),
        tracer.start_as_current_span("invoke_agent", attributes={**CHAT, "gen_ai.operation.name": "invoke_agent"}),
    ):
        with tracer.start_as_current_span("chat gpt-4o", kind=SpanKind.CLIENT, attributes=CHAT) as chat:
            chat.set_attribute("gen_ai.response.model", "gpt-4o-2024-08-06")
            chat.set_attribute("gen_ai.response.id", "chatcmpl-1")
            chat.set_attribute("gen_ai.usage.cache_read.input_tokens", 40)
            chat.set_attribute("gen_ai.usage.reasoning.output_tokens", 4)
            chat.set_attribute("gen_ai.input.messages", json.dumps([{"role": "user", "content": "the secret"}]))
            chat.set_attribute("enduser.id", "ann")
            chat.set_attribute("tokentra.feature", "search")
            identity = chat.get_span_context()
        with tracer.start_as_current_span("chat claude", kind=SpanKind.CLIENT, attributes={
            "gen_ai.system": "anthropic", "gen_ai.request.model": "claude-opus-4-20250514", "gen_ai.operation.name": "chat", "error.type": "overloaded_error",
        }) as failed:  # fmt: skip
            failed.set_status(Status(StatusCode.ERROR, "overloaded"))
    assert provider.force_flush(30_000)
    provider.shutdown()
    assert one(database, "SELECT count(*) FROM raw.usage_events") == 2, "agents hold requests and are none"
    flush(database)
    ours = f"{identity.trace_id:032x}-{identity.span_id:016x}"
    assert counted(database)[ours] == 1
    chat, failed = rows(
        database,
        "SELECT r.*, t.name AS team FROM usage_records AS r JOIN app.teams AS t ON t.id = r.team_id ORDER BY provider DESC",
    )
    assert (chat["model"], chat["input_tokens"], chat["output_tokens"], chat["cached_input_tokens"]) == (
        "gpt-4o-2024-08-06",
        100,
        10,
        40,
    )
    assert (chat["team"], chat["environment"], chat["feature"], chat["user_ids"], chat["request_type"]) == (
        "core",
        "prod",
        "search",
        ["ann"],
        "chat",
    )
    assert (chat["success_count"], chat["token_details"], chat["provider_metadata"]["service.name"]) == (
        1,
        {"reasoning": 4},
        "shop",
    )
    assert chat["total_latency_ms"] is not None and "the secret" not in str(chat)
    assert (failed["provider"], failed["error_count"], failed["total_tokens"]) == ("anthropic", 1, 0)
    assert failed["provider_metadata"]["error_message"] == "overloaded"


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (CHAT, {"provider": "openai", "model": "gpt-4o", "input_tokens": 100, "output_tokens": 10, "request_type": "chat", "is_error": False, "latency_ms": 1500}),
        ({"gen_ai.system": "openai", "gen_ai.request.model": "m", "gen_ai.usage.prompt_tokens": 7, "gen_ai.usage.completion_tokens": 3, "llm.request.type": "chat"},
         {"input_tokens": 7, "output_tokens": 3, "request_type": "chat"}),
        ({**CHAT, "gen_ai.provider.name": "aws.bedrock", "gen_ai.usage.cache_creation.input_tokens": 5, "gen_ai.usage.cache_read.input_tokens": 6},
         {"provider": "aws", "cache_creation_tokens": 5, "cached_input_tokens": 6}),
        ({**CHAT, "gen_ai.provider.name": "azure.ai.openai"}, {"provider": "azure"}),
        ({**CHAT, "gen_ai.provider.name": "", "gen_ai.system": "az.ai.openai"}, {"provider": "azure"}),
        ({**CHAT, "gen_ai.provider.name": "gcp.vertex_ai", "gen_ai.operation.name": "generate_content"}, {"provider": "google", "request_type": "chat"}),
        ({**CHAT, "gen_ai.operation.name": "text_completion", "gen_ai.openai.response.service_tier": "flex"}, {"request_type": "completion", "service_tier": "flex"}),
        ({"gen_ai.provider.name": "openai", "gen_ai.operation.name": "embeddings", "gen_ai.request.model": "e", "gen_ai.usage.input_tokens": 9},
         {"input_tokens": 9, "output_tokens": 0, "request_type": "embedding"}),
        ({**CHAT, "gen_ai.usage.input_tokens": 12.0, "tokentra.cost_center": "cc", "user.id": "u"}, {"input_tokens": 12, "cost_center": "cc", "user_id": "u"}),
        ({**CHAT, "gen_ai.operation.name": "something_new"}, {"request_type": None}),
    ],
)  # fmt: skip
def test_attributes_of_old_and_new_conventions(collector, database, named, expected):
    key = key_of(database)
    answer = collector.post(export(span(1, named)), key, "/v1/traces")
    assert (answer.status, answer.body) == (200, {})
    (found,) = rows(database, "SELECT * FROM raw.usage_events")
    assert {name: found[name] for name in expected} == expected
    assert found["event_id"] == f"{1:032x}-{1:016x}" and abs(found["occurred_at"] - (NOW - timedelta(seconds=2))) < timedelta(
        milliseconds=1
    )


BAD = [
    ({**CHAT, "gen_ai.provider.name": "cohere"}, "gen_ai.provider.name is 'cohere'; usage is counted of"),
    ({name: one for name, one in CHAT.items() if "usage" not in name}, "has no gen_ai.usage.input_tokens; switch"),
    ({name: one for name, one in CHAT.items() if "output" not in name}, "has no gen_ai.usage.output_tokens"),
    ({name: one for name, one in CHAT.items() if "model" not in name}, "neither gen_ai.response.model nor"),
    ({**CHAT, "gen_ai.usage.input_tokens": -1}, "input_tokens is -1"),
    ({**CHAT, "gen_ai.usage.input_tokens": "many"}, "input_tokens is 'many'"),
    ({**CHAT, "gen_ai.usage.cache_read.input_tokens": 101}, "exceed input_tokens 100"),
]


@pytest.mark.parametrize("encoding", ["json", "protobuf"])
def test_the_good_spans_are_stored_and_the_others_told_in_a_partial_success(collector, database, encoding):
    key = key_of(database)
    spans = [span(n + 1, named) for n, (named, _) in enumerate(BAD)]
    spans += [span(50, CHAT, traceId=""), span(51, CHAT, startTimeUnixNano="0"), span(52, CHAT, endTimeUnixNano="1"), span(53, CHAT, startTimeUnixNano=str(2**63), endTimeUnixNano=str(2**63))]  # fmt: skip
    good = [span(100, CHAT), span(101, {"http.request.method": "GET"})]
    for number, wrong in enumerate(spans):
        document = export(wrong, *good, span(200 + number, CHAT))
        if encoding == "json":
            answer = collector.post(document, key, "/v1/traces")
            partial = answer.body["partialSuccess"]
            rejected, said = int(partial["rejectedSpans"]), partial["errorMessage"]
        else:
            answer = collector.post(
                binary(document), key, "/v1/traces", Content_Type="application/x-protobuf", zipped=number % 2 == 0
            )
            partial = ExportTraceServiceResponse.FromString(answer.body).partial_success
            rejected, said = partial.rejected_spans, partial.error_message
            assert answer.headers["content-type"] == "application/x-protobuf"
        assert (answer.status, rejected) == (200, 1)
        assert said.startswith(f"1 of the spans is not stored. Span {wrong['spanId']}: ") and "\n" not in said, said
        if number < len(BAD):
            assert BAD[number][1] in said
    assert one(database, "SELECT count(*) FROM raw.usage_events") == 1 + len(spans), "span 100 came every time and counts once"


def test_a_span_that_is_sent_again_with_other_usage_is_told(collector, database):
    key = key_of(database)
    assert collector.post(export(span(1, CHAT)), key, "/v1/traces").body == {}
    answer = collector.post(export(span(1, {**CHAT, "gen_ai.usage.input_tokens": 101})), key, "/v1/traces")
    assert "was sent before with other content" in answer.body["partialSuccess"]["errorMessage"]


def test_an_export_that_cannot_be_read_gets_a_status_in_its_own_encoding(collector, database):
    key = key_of(database)
    for body, who, status, code, words in (
        (b"\xff\xff", key, 400, 3, "no ExportTraceServiceRequest in protobuf"),
        (b"", None, 401, 16, "The request has no key"),
        (b" " * (5 * 2**20 + 1), key, 413, 3, "larger than"),
    ):
        answer = collector.post(body, who, "/v1/traces", Content_Type="application/x-protobuf")
        said = ExportTracePartialSuccess.FromString(answer.body)
        assert (answer.status, said.rejected_spans) == (status, code) and words in said.error_message
    for body, words in (
        (b"{", "not JSON"), (b"[]", "no ExportTraceServiceRequest in JSON"), (b'{"resourceSpans": [3]}', "no ExportTraceServiceRequest in JSON"),
        (json.dumps(export(span(1, CHAT, traceId="xyz"))).encode(), "no ExportTraceServiceRequest in JSON"),
        (json.dumps(export(span(1, CHAT, endTimeUnixNano="late"))).encode(), "no ExportTraceServiceRequest in JSON"),
        (b'{"resourceSpans":' + b"[" * 200 + b"]" * 200 + b"}", "more than 90 deep"),
    ):  # fmt: skip
        answer = collector.post(body, key, "/v1/traces")
        assert (
            answer.status == 400
            and answer.body["code"] == 3
            and words in answer.body["message"]
            and "\n" not in answer.body["message"]
        )
    assert collector.post(b"{}", key, "/v1/traces").body == collector.post(export(), key, "/v1/traces").body == {}
    assert one(database, "SELECT count(*) FROM raw.usage_events") == 0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), max_size=4), max_size=4), st.binary(max_size=30))
def test_spans_are_counted_without_parsing(shape, junk):
    document = {
        "resourceSpans": [
            {"resource": {"attributes": attributes({"service.name": "x" * 200})}, "scopeSpans": [
                {"spans": [span(n + 1, CHAT, traceId="AAAA", spanId="AAAA") for n in range(count)], "schemaUrl": "s"} for count in scopes
            ]} for scopes in shape
        ]
    }  # fmt: skip
    body = json_format.ParseDict(document, ExportTraceServiceRequest()).SerializeToString()
    count = len(shape) + sum(len(scopes) + sum(scopes) for scopes in shape)
    assert spans_in(body, 1000) == count and spans_in(body, 5) == min(count, 6)
    try:
        parsed = ExportTraceServiceRequest.FromString(junk)
    except DecodeError:
        return
    with suppress(DecodeError, IndexError):  # groups, which no one sends
        of_scopes = [of_scope for of_resource in parsed.resource_spans for of_scope in of_resource.scope_spans]
        assert spans_in(junk, 1000) == len(parsed.resource_spans) + len(of_scopes) + sum(len(one.spans) for one in of_scopes)


def test_many_empty_spans_are_refused_before_they_are_parsed(collector, database):
    def field(number: int, data: bytes) -> bytes:
        size = b""
        count = len(data)
        while count > 127:
            size, count = size + bytes([count & 127 | 128]), count >> 7
        return bytes([number << 3 | 2]) + size + bytes([count]) + data

    for body in (field(1, field(2, field(2, b"") * 50_000)), field(1, b"") * 50_001, field(1, field(2, b"") * 50_000)):
        answer = collector.post(
            body, key_of(database, name=str(len(body))), "/v1/traces", Content_Type="application/x-protobuf", zipped=True
        )
        assert (
            answer.status == 413 and "more than 50,000 spans" in ExportTracePartialSuccess.FromString(answer.body).error_message
        )


def test_a_large_export_is_stored_in_parts(collector, database):
    key = key_of(database)
    document = export(*(span(n + 1, CHAT) for n in range(5001)))
    assert collector.post(binary(document), key, "/v1/traces", Content_Type="application/x-protobuf", zipped=True).status == 200
    assert one(database, "SELECT count(*) FROM raw.usage_events") == 5001
