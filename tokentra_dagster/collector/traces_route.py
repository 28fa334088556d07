"""`POST /v1/traces`: OTLP/HTTP, protobuf and JSON. Spans that are requests to a provider are stored as events; others are let pass.

The protocol: https://opentelemetry.io/docs/specs/otlp/#otlphttp
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from google.protobuf import json_format  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from tokentra_dagster.collector.auth import Organization
from tokentra_dagster.collector.body import Bodies
from tokentra_dagster.collector.events_route import ERRORS, store
from tokentra_dagster.collector.genai_spans import requests_of
from tokentra_dagster.collector.limits import Limits, Refused
from tokentra_dagster.collector.parse import Parsed, json_of, printable

PATH = "/v1/traces"
PROTOBUF, JSON = "application/x-protobuf", "application/json"
router = APIRouter(tags=["OpenTelemetry"])
_TOLD = 3
_CODES = {400: 3, 401: 16, 408: 4, 413: 3, 415: 3, 429: 8, 503: 14}
"""Of google.rpc.Code, for the status in an answer's body."""
_SCHEMA = {"type": "object", "description": "ExportTraceServiceRequest of opentelemetry-proto."}


@router.post(
    PATH,
    response_class=Response,
    responses={
        **{status: {"description": said["description"]} for status, said in ERRORS.items()},
        200: {"description": "ExportTraceServiceResponse in the encoding of the request; `partial_success` says which spans were refused."},
    },
    openapi_extra={"requestBody": {"required": True, "content": {PROTOBUF: {"schema": {"type": "string", "format": "binary"}}, JSON: {"schema": _SCHEMA}}}},
)  # fmt: skip
async def post_traces(request: Request, org_id: Organization) -> Response:
    """Store the requests to providers that are among the spans, by the GenAI conventions. A span that is sent again counts once."""
    bodies: Bodies = request.app.state.bodies
    limits: Limits = request.app.state.limits
    async with bodies.body_of(request, (PROTOBUF, JSON)) as (media_type, body):
        ids, parsed = await bodies.in_thread(len(body), lambda: _parsed(body, media_type, org_id, datetime.now(UTC), limits))
        refused = dict(parsed.refused)
        for part in _parts(parsed, limits.events):
            answer = await store(request, org_id, part)
            refused |= {one.index: (one.event_id, one.error) for one in answer.refused}
    return _answer(media_type, {ids[place]: sentence for place, (_, sentence) in sorted(refused.items())}, len(refused))


def status_answer(request: Request, status: int, sentence: str, headers: dict[str, str]) -> Response:
    """An error as OTLP has it: google.rpc.Status in the encoding of the request."""
    code = _CODES.get(status, 13)
    if request.headers.get("content-type", "").startswith(PROTOBUF):
        # google.rpc.Status has a number as field 1 and text as field 2, and so has this message.
        content = ExportTracePartialSuccess(rejected_spans=code, error_message=sentence).SerializeToString()
        return Response(content, status, headers, media_type=PROTOBUF)
    return JSONResponse({"code": code, "message": sentence}, status, headers)


def _parsed(body: bytes, media_type: str, org_id: UUID, now: datetime, limits: Limits) -> tuple[list[str], Parsed]:
    """Ids of the spans that are requests, and by their places what they are as events."""
    export = _export_of_json(body, limits) if media_type == JSON else _export(body, limits)
    ids: list[str] = []
    parsed = Parsed()
    for place, (span_id, found) in enumerate(requests_of(export)):
        ids.append(span_id)
        if isinstance(found, str):
            parsed.refuse(place, None, found)
        else:
            parsed.take(place, found, org_id, now)
    return ids, parsed


def _parts(parsed: Parsed, size: int) -> list[Parsed]:
    """Events in parts that are each stored by one commit."""
    starts = range(0, len(parsed.events), size)
    return [Parsed(parsed.places[start : start + size], parsed.events[start : start + size]) for start in starts]


def _export(body: bytes, limits: Limits) -> ExportTraceServiceRequest:
    export = ExportTraceServiceRequest()
    try:
        if spans_in(body, limits.spans) > limits.spans:
            raise Refused(413, f"The body has more than {limits.spans:,} spans; send fewer at a time.")
        export.ParseFromString(body)
    except (DecodeError, IndexError):
        raise Refused(400, "The body is no ExportTraceServiceRequest in protobuf.") from None
    return export


_SPANS = (1, 2, 2)
"""Numbers of the fields resource_spans, scope_spans and spans, each in the one before."""


def spans_in(body: bytes, most: int) -> int:
    """How many spans, with their scopes and resources, a request in protobuf has, counted without parsing it, to `most` and one more.

    Raises `IndexError` or `DecodeError` for what is no protobuf.
    """
    found = 0
    waiting = [(0, len(body), 0)]
    while waiting and found <= most:
        at, end, level = waiting.pop()
        while at < end and found <= most:
            tag, at = _varint(body, at)
            kind = tag & 7
            if kind == 0:
                _, at = _varint(body, at)
            elif kind == 2:
                size, at = _varint(body, at)
                if tag >> 3 == _SPANS[level]:
                    found += 1
                    if level + 1 < len(_SPANS):
                        waiting.append((at, min(at + size, end), level + 1))
                at += size
            elif kind in (1, 5):
                at += 8 if kind == 1 else 4
            else:
                raise DecodeError(f"wire type {kind}")
    return found


def _varint(body: bytes, at: int) -> tuple[int, int]:
    """The number that begins there, and where it ends. Raises `DecodeError` for one of more than ten bytes."""
    value = shift = 0
    while shift < 70:
        byte = body[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise DecodeError("varint")


def _export_of_json(body: bytes, limits: Limits) -> ExportTraceServiceRequest:
    document = json_of(body, limits.trace_depth, limits.containers)
    try:
        for of_resource in document.get("resourceSpans", ()):
            for of_scope in of_resource.get("scopeSpans", ()):
                of_scope["spans"] = [_with_bytes(span) for span in of_scope.get("spans", ())]
        export = ExportTraceServiceRequest()
        json_format.ParseDict(document, export, ignore_unknown_fields=True)
    except (json_format.ParseError, AttributeError, TypeError, ValueError) as error:
        raise Refused(
            400, f"The body is no ExportTraceServiceRequest in JSON: {printable(' '.join(str(error).split()))}."
        ) from None
    return export


def _with_bytes(span: dict[str, Any]) -> dict[str, Any]:
    """OTLP writes ids as hexadecimal digits, where protobuf's JSON has base64. What is not looked at is left out."""
    kept = {name: value for name, value in span.items() if name not in ("parentSpanId", "links", "events")}
    for name in ("traceId", "spanId"):
        kept[name] = base64.b64encode(bytes.fromhex(kept.get(name) or "")).decode()
    return kept


def _answer(media_type: str, sentences: dict[str, str], count: int) -> Response:
    answer = ExportTraceServiceResponse()
    if count:
        told = [f"Span {span_id}: {sentence}" for span_id, sentence in list(sentences.items())[:_TOLD]]
        said = f"{count} of the spans {'is' if count == 1 else 'are'} not stored. {' '.join(told)}"
        answer.partial_success.CopyFrom(ExportTracePartialSuccess(rejected_spans=count, error_message=said))
    if media_type == JSON:
        return JSONResponse(json_format.MessageToDict(answer))
    return Response(answer.SerializeToString(), media_type=PROTOBUF)
