"""What every provider module offers: questions it can be asked, and nothing about databases or Dagster.

Adding an integration is one module with a class that has these methods, one entry in `providers/__init__.py`, and a page in docs/.
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
    """How to reach one account. `api_key` is the resolved secret, empty where the integration does without: never log it; repr hides it.

    `integration` says who is asked, empty for the provider itself; a gateway is asked for the usage of one `provider`.
    """

    provider: str
    api_key: str = field(repr=False)
    base_url: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    integration: str = ""

    @property
    def asked(self) -> str:
        return self.integration or self.provider


class Source(Protocol):
    """One account. Raises `PermanentError` or `TransientError` (after its own bounded retries).

    The constructor checks the options and asks nothing; it is made once with a key that is none, to check them.
    """

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
