"""`POST /v1/events`: events as JSON, one or many, gzip or not."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, TypeAdapter

from tokentra_dagster.collector.auth import Organization
from tokentra_dagster.collector.body import Bodies
from tokentra_dagster.collector.limits import Limits
from tokentra_dagster.collector.parse import Parsed, events_of, printable
from tokentra_dagster.collector.writer import Writer
from tokentra_dagster.realtime.events import UsageEvent
from tokentra_dagster.records import PROVIDERS, REQUEST_TYPES, SERVICE_TYPES

router = APIRouter(tags=["events"])


class RefusedEvent(BaseModel):
    """An event that is not stored; sending it again as it is changes nothing."""

    index: int = Field(description="Its place in the request, from 0.")
    event_id: str | None = Field(description="Its id, if it has one.")
    error: str = Field(description="One sentence: the field, its value, what is allowed.")


class EventsAnswer(BaseModel):
    """What became of the events of a request; `stored`, `duplicates` and the refused ones are all of them."""

    stored: int = Field(description="Events that are on disk now and were not before.")
    duplicates: int = Field(description="Events that had been sent before, the same id with the same content; they count once.")
    refused: list[RefusedEvent]


class ErrorAnswer(BaseModel):
    """Nothing of the request is known to be stored."""

    error: str = Field(description="One sentence: what is wrong and what to do.")


def event_schema() -> dict[str, Any]:
    """JSON schema of one event."""
    schema = TypeAdapter(UsageEvent).json_schema()
    fields = schema["properties"]
    fields["provider"]["enum"] = list(PROVIDERS)
    for name, allowed in (("request_type", REQUEST_TYPES), ("service_type", SERVICE_TYPES)):
        fields[name] = {"enum": [*allowed, None], "default": None}
    fields["event_id"]["description"] = (
        "The sender's own id of the request, unique in its organisation: sent again, it counts once."
    )
    fields["occurred_at"]["description"] = "The moment of the request, ISO 8601 with its zone."
    fields["input_tokens"]["description"] = "Everything sent, cache reads and cache writes included."
    fields["output_tokens"]["description"] = "Everything received, reasoning included."
    schema |= {"title": "UsageEvent", "additionalProperties": False, "description": "One request to a provider."}
    schema["example"] = {
        "event_id": "8f0c2a", "occurred_at": "2026-06-01T12:00:00Z", "provider": "openai", "model": "gpt-4o-2024-08-06",
        "input_tokens": 1200, "output_tokens": 80, "latency_ms": 930, "feature": "search", "user_id": "ann",
    }  # fmt: skip
    return schema


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "The body cannot be read: no UTF-8, no JSON, broken gzip, nested too deeply."},
    401: {"model": ErrorAnswer, "description": "The key is missing, unknown or revoked."},
    408: {"model": ErrorAnswer, "description": "The body came too slowly."},
    413: {"model": ErrorAnswer, "description": "Too many bytes or events; send fewer at a time."},
    415: {"model": ErrorAnswer, "description": "Another Content-Type or Content-Encoding than those that are taken."},
    429: {"model": ErrorAnswer, "description": "Too much is waiting; send the same again after `Retry-After` seconds."},
    503: {
        "model": ErrorAnswer,
        "description": "The database does not store now; send the same again after `Retry-After` seconds.",
    },
}


@router.post(
    "/v1/events",
    response_model=EventsAnswer,
    responses={**ERRORS, 422: {"model": EventsAnswer, "description": "No event of the request is stored; `refused` says why."}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "An event, a list of events, or an object with a list of events; gzip with `Content-Encoding: gzip`.",
            "content": {"application/json": {"schema": {"oneOf": [
                event_schema(),
                {"type": "array", "items": event_schema()},
                {"type": "object", "required": ["events"], "properties": {"events": {"type": "array", "items": event_schema()}}},
            ]}}},
        }
    },
)  # fmt: skip
async def post_events(request: Request, org_id: Organization) -> JSONResponse:
    """Store usage events of the key's organisation. The answer comes when they are on disk; a repeat of the same events, e.g. because no answer came, changes nothing."""
    bodies: Bodies = request.app.state.bodies
    limits: Limits = request.app.state.limits
    async with bodies.body_of(request, ("application/json",)) as (_, body):
        parsed = await bodies.in_thread(len(body), lambda: events_of(body, org_id, datetime.now(UTC), limits))
        answer = await store(request, org_id, parsed)
    nothing = bool(answer.refused) and not answer.stored and not answer.duplicates
    return JSONResponse(answer.model_dump(), status_code=422 if nothing else 200)


async def store(request: Request, org_id: UUID, parsed: Parsed) -> EventsAnswer:
    """Store what was parsed, and say what became of all of it."""
    writer: Writer = request.app.state.writer
    written = await writer.store(org_id, parsed.events)
    refused = dict(parsed.refused)
    for number, sentence in written.refused.items():
        refused[parsed.places[number]] = (parsed.events[number].event_id, printable(sentence))
    return EventsAnswer(
        stored=written.stored, duplicates=written.duplicates,
        refused=[RefusedEvent(index=place, event_id=event_id, error=error) for place, (event_id, error) in sorted(refused.items())],
    )  # fmt: skip
