"""The sources that a connection can name. Listing them imports no vendor's SDK; opening one does."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

from tokentra_dagster.errors import PermanentError
from tokentra_dagster.providers.base import ConnectionConfig, Source


@dataclass(frozen=True, slots=True)
class ProviderEntry:
    """Where a source's class lives (`module:Class`, made from one `ConnectionConfig`), and what its user needs."""

    target: str
    title: str
    key_needed: str
    options: tuple[str, ...]
    settles_after: timedelta
    """The provider restates usage for this long: what is younger is provisional, and every scheduled sync reads it again."""
    costs_settle_after: timedelta
    """The same for what was billed; one scheduled sync a day reaches back as far."""

    def open(self, config: ConnectionConfig) -> Source:
        module, _, name = self.target.partition(":")
        return cast(Source, getattr(importlib.import_module(module), name)(config))


SOURCES: dict[str, ProviderEntry] = {
    "openai": ProviderEntry(
        # How long a provider restates is documented nowhere: cautious guesses (providers.md 1.4, quirk 10).
        target="tokentra_dagster.providers.openai:OpenAISource",
        title="OpenAI organisation usage and costs",
        key_needed="an Admin API key (sk-admin-...)",
        options=("endpoints", "costs", "costs_group_by", "timeout_seconds", "max_retries"),
        settles_after=timedelta(days=3),
        costs_settle_after=timedelta(days=7),
    ),
    "anthropic": ProviderEntry(
        target="tokentra_dagster.providers.anthropic:AnthropicSource",
        title="Anthropic organisation usage and costs",
        key_needed="an Admin API key (sk-ant-admin01-...) or a key with read:analytics",
        options=("api", "group_by", "timeout_seconds", "max_retries"),
        settles_after=timedelta(days=3),
        costs_settle_after=timedelta(days=7),
    ),
}


def open_source(config: ConnectionConfig) -> Source:
    """The source that this connection describes. Asks the provider nothing yet."""
    entry = SOURCES.get(config.provider)
    if entry is None:
        raise PermanentError(f"unknown provider {config.provider!r}; known providers are {', '.join(sorted(SOURCES))}")
    if not config.api_key.strip():
        raise PermanentError(f"{config.provider}: the connection has no key; give it {entry.key_needed}")
    return entry.open(config)
