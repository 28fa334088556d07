"""What the collector takes and how long it waits: `Limits`, and `Refused`, the answer to what is beyond them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bytes, seconds and counts. What the defaults make of memory is in docs/decisions/0018."""

    body_bytes: int = 5 * 2**20
    """Of a body as it is sent."""
    decompressed_bytes: int = 8 * 2**20
    held_bytes: int = 64 * 2**20
    """Of all bodies that are held at one time, until their events are stored; then 429."""
    events: int = 5000
    """In one request of JSON."""
    spans: int = 50_000
    """In one request of OTLP, resources and scopes included: an empty one takes two bytes, and a hundred times that when it is parsed."""
    containers: int = 200_000
    """Lists and objects in one request, for the same reason."""
    depth: int = 20
    """Of lists and objects in each other."""
    trace_depth: int = 90
    """The same in OTLP's JSON, where each level of a value takes several."""
    header_bytes: int = 64 * 2**10
    header_seconds: float = 10.0
    """From a connection, or the first byte of a further request on it, to the last byte of the headers."""
    body_seconds: float = 30.0
    """To the last byte of the body."""
    connections: int = 1000
    waiting_events: int = 20_000
    """Taken and not yet stored; then 429."""
    group_events: int = 2000
    """Stored by one commit, unless one request has more."""
    store_seconds: float = 20.0
    """Until a request that is not stored is told so."""
    key_seconds: float = 2.0
    """How long a key that was found valid is taken for valid: a revocation holds after that time."""


class Refused(Exception):
    """A request that is answered with an error: HTTP status, one sentence, and in how many seconds to try again, if that can help."""

    def __init__(self, status: int, sentence: str, *, retry_after: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.retry_after = retry_after
