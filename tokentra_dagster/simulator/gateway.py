"""What goes through a simulated organisation's own gateway: some people's requests to OpenAI, one by one.

The gateway counts what OpenAI counts for the same streams, under its own names of people: an application's user, whose team is
said by a rule. Who works around it is in OpenAI's totals only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache

import numpy as np

from tokentra_dagster.simulator.companies import GATEWAY_PEOPLE, gateway_user, organisation
from tokentra_dagster.simulator.organisation import Organisation, Stream
from tokentra_dagster.simulator.simulation import Simulation
from tokentra_dagster.simulator.truth import Ints, Table, minute_of, moment_of, of_unit, request_id, share

PROVIDER, ENDPOINT = "openai", "completions"
MODELS = ("gpt-*", "orion-*")
"""What the gateway asks of OpenAI."""
_UNITS = ("text", "cached_text", "output_text")


@dataclass(frozen=True, slots=True)
class GatewayRequest:
    """One request, in canonical tokens: `sent` holds what was read from the provider's cache."""

    id: str
    at: datetime
    model: str
    user: str
    team: str
    environment: str
    sent: int
    cached: int
    received: int
    milliseconds: int


@dataclass(frozen=True, slots=True)
class _Asker:
    """Whose a stream's requests are, by the gateway's names."""

    stream: Stream
    user: str
    team: str
    environment: str


def requests(simulation: Simulation, org: Organisation, start: datetime, end: datetime) -> list[GatewayRequest]:
    """Those of `[start, end)` as known now, in order of time; start and end are whole minutes."""
    table = _table(org.name, org.scale)
    teams = {(project, person): team for project, person, team in GATEWAY_PEOPLE[org.name]}
    environments = {project.slug: project.environment for project in org.projects}
    first = minute_of(start)
    counts = simulation.counts(table, range(first, minute_of(end) + 1))
    found: list[GatewayRequest] = []
    for row, stream in enumerate(table.streams):
        person = _person(org, stream)
        of = _Asker(stream, gateway_user(org, person), teams[stream.project, person], environments[stream.project])
        for minute in np.flatnonzero(counts[row, :, 0]):
            found.extend(_divided(of, first + int(minute), _counted(table, counts[row, minute])))
    return sorted(found, key=lambda one: (one.at, one.id))


def used(simulation: Simulation, org: Organisation, start: datetime, end: datetime) -> dict[str, int]:
    """Requests, and tokens sent, cached and received, by OpenAI's own count of the same streams: the gateway's truth."""
    table = simulation.table(org, PROVIDER, ENDPOINT)
    through = [row for row, stream in enumerate(table.streams) if _is_through(org, stream)]
    of = simulation.counts(table, (minute_of(start), minute_of(end)))[through, 0].sum(axis=0)
    count, text, cached, received = _counted(table, of)
    return {"requests": count, "sent": text + cached, "cached": cached, "received": received}


def usage_details(one: GatewayRequest) -> dict[str, int]:
    """As Langfuse takes OpenAI's usage apart: what was cached is not in `input`; all parts make the total."""
    return {
        "input": one.sent - one.cached,
        "input_cached_tokens": one.cached,
        "output": one.received,
        "total": one.sent + one.received,
    }


@cache
def _table(name: str, scale: int) -> Table:
    """Only the gateway's streams: minute by minute, all of an organisation's would be large."""
    org = organisation(name, scale)
    through = (stream for stream in org.streams(PROVIDER) if stream.endpoint == ENDPOINT and _is_through(org, stream))
    return Table.of(org, PROVIDER, through)


def _is_through(org: Organisation, stream: Stream) -> bool:
    return any((project, person) == (stream.project, _person(org, stream)) for project, person, _ in GATEWAY_PEOPLE[org.name])


def _person(org: Organisation, stream: Stream) -> str:
    return str(stream.dimensions["user_id"]).removeprefix(f"user-{org.name}-")


def _counted(table: Table, of: Ints) -> list[int]:
    """Requests, text, cached text and output."""
    return [int(of[0]), *(int(of_unit(table, of, unit)) for unit in _UNITS)]


def _divided(of: _Asker, minute: int, counted: list[int]) -> Iterator[GatewayRequest]:
    """A minute's requests; together they have its tokens."""
    count, *tokens = counted
    for number in range(count):
        text, cached, received = (share(whole, count, number) for whole in tokens)
        identity = request_id(of.stream, minute, number)
        yield GatewayRequest(
            id=identity,
            at=moment_of(minute) + timedelta(milliseconds=60_000 * number // count),
            model=of.stream.dimensions["model"],
            user=of.user,
            team=of.team,
            environment=of.environment,
            sent=text + cached,
            cached=cached,
            received=received,
            milliseconds=400 + int(identity[:4], 16) % 5000,
        )
