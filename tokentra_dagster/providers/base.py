"""What every provider module offers: questions it can be asked, and nothing about databases or Dagster.

Adding a source is one module with a class that has these methods, and one entry in `providers/__init__.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from tokentra_dagster.records import EntityName, Granularity, Item


@dataclass(frozen=True, slots=True)
class Window:
    """`[start, end)` in UTC, aligned to `granularity` at both ends."""

    start: datetime
    end: datetime
    granularity: Granularity


@dataclass(frozen=True, slots=True)
class ConnectionConfig:
    """How to reach one account. `api_key` is the resolved secret: never log it; repr hides it."""

    provider: str
    api_key: str = field(repr=False)
    base_url: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)


class Source(Protocol):
    """One account at one provider. Raises `PermanentError` or `TransientError` (after its own bounded retries)."""

    def usage(self, window: Window) -> Iterator[Item]:
        """Usage buckets that start in the window, page by page, at the finest grouping the API allows."""

    def costs(self, window: Window) -> Iterator[Item]:
        """What was billed for the UTC days that the window touches."""

    def names(self) -> Iterator[EntityName]:
        """Projects, workspaces, keys and users by id, archived ones included."""

    def remarks(self) -> list[str]:
        """What a person should know about what was just read, one sentence each: how far the provider's own figures reach,
        what the key may not see."""

    def check(self) -> str:
        """One cheap request with this key. Returns a sentence saying what it can see; raises as above."""
