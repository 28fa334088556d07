"""A body of JSON -> events, and what is wrong with the others: pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from tokentra_dagster.collector.limits import Limits, Refused
from tokentra_dagster.errors import UsageError
from tokentra_dagster.realtime.events import UsageEvent, event_of, refuse_future

_LONGEST_SENTENCE = 400


@dataclass(slots=True)
class Parsed:
    """Events with their places in the request, and what is refused by place: (the event's id if it has one, a sentence)."""

    places: list[int] = field(default_factory=list)
    events: list[UsageEvent] = field(default_factory=list)
    refused: dict[int, tuple[str | None, str]] = field(default_factory=dict)

    def take(self, place: int, payload: Any, org_id: UUID, now: datetime) -> None:
        """One event's payload as it came."""
        try:
            event = _event(payload, org_id)
            refuse_future(event, now)
        except UsageError as error:
            event_id = payload.get("event_id") if isinstance(payload, Mapping) else None
            self.refuse(place, event_id if isinstance(event_id, str) else None, str(error))
        else:
            self.places.append(place)
            self.events.append(event)

    def refuse(self, place: int, event_id: str | None, sentence: str) -> None:
        self.refused[place] = (event_id and printable(event_id), printable(sentence))


def json_of(body: bytes, depth: int, containers: int) -> Any:
    """The JSON of a body. Raises `Refused`: 400 for what is no JSON, no UTF-8, or nested more than `depth` deep, 413 for more lists and
    objects than `containers`."""
    if body.count(b"{") + body.count(b"[") > containers:
        raise Refused(413, f"The body has more than {containers:,} lists and objects; send fewer events at a time.")
    try:
        document = json.loads(body.decode(), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise Refused(400, f"The body is not UTF-8 (byte {error.start}).") from None
    except RecursionError:
        raise Refused(400, _too_deep(depth)) from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise Refused(400, f"The body is not JSON ({error.msg}, {where}).") from None
    except ValueError as error:
        raise Refused(400, f"The body is not JSON that can be read: {printable(str(error))}.") from None
    level, found = 0, [document]
    while found := [one for one in found if isinstance(one, dict | list)]:
        level += 1
        if level > depth:
            raise Refused(400, _too_deep(depth))
        found = [inner for one in found for inner in (one.values() if isinstance(one, dict) else one)]
    return document


def events_of(body: bytes, org_id: UUID, now: datetime, limits: Limits) -> Parsed:
    """One event, a list of events, or `{"events": [...]}`. Raises `Refused`: 400 for anything else, 413 for too many."""
    document = json_of(body, limits.depth, limits.containers)
    if isinstance(document, dict) and "events" in document:
        if set(document) != {"events"}:
            other = next(name for name in document if name != "events")
            raise Refused(400, f'Beside events the body has {printable(other)!r}; send {{"events": [...]}} and nothing else.')
        document = document["events"]
    elif isinstance(document, dict):
        document = [document]
    if not isinstance(document, list):
        raise Refused(400, 'The body is neither an event nor a list of events; send an object, [...] or {"events": [...]}.')
    if len(document) > limits.events:
        raise Refused(413, f"The request has {len(document):,} events; send at most {limits.events:,} at a time.")
    parsed = Parsed()
    for place, payload in enumerate(document):
        parsed.take(place, payload, org_id, now)
    return parsed


def printable(text: str) -> str:
    """Short (what is wrong stands at the beginning, what to do at the end), and text that any answer can hold."""
    if len(text) > _LONGEST_SENTENCE:
        half = _LONGEST_SENTENCE // 2 - 3
        text = f"{text[:half]} ... {text[-half:]}"
    return text.encode("utf-8", "backslashreplace").decode()


def _event(payload: Any, org_id: UUID) -> UsageEvent:
    if not isinstance(payload, dict):
        raise UsageError(f"The event is {json.dumps(payload)[:50]}; it must be an object.")
    if "org_id" in payload:
        payload = dict(payload)
        named = payload.pop("org_id")
        if str(named).lower() != str(org_id):
            raise UsageError("The event names another organisation than the key's; leave org_id out: the key says whose it is.")
    return event_of(payload)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _too_deep(depth: int) -> str:
    return f"The body has lists or objects more than {depth} deep in each other; send what is flatter."
