"""How Anthropic's reports count tokens, the same in the analytics API and in the legacy report.

`uncached_input_tokens` excludes what the cache served and what was written to it; ours includes both. Cache writes come
as their 5-minute and 1-hour parts only: there is no sum field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokentra_dagster.providers.payload import count, mapping, optional_count


@dataclass(frozen=True, slots=True)
class Tokens:
    input_tokens: int
    output_tokens: int
    cached_input_tokens: int
    cache_creation_tokens: int
    details: dict[str, int]
    metadata: dict[str, Any]


USAGE_FIELDS = frozenset(
    ("uncached_input_tokens", "cache_read_input_tokens", "cache_creation", "output_tokens", "server_tool_use")
)
_WRITES = {"ephemeral_5m_input_tokens": "cache_write_5m", "ephemeral_1h_input_tokens": "cache_write_1h"}


def tokens(usage: Mapping[str, Any]) -> Tokens:
    """Raises `BadItem` where a count is missing or is not one. What is new in `cache_creation` and `server_tool_use` is kept."""
    read = count(usage, "cache_read_input_tokens")
    written = mapping(usage, "cache_creation")
    details = {name: count(written, field) for field, name in _WRITES.items()}
    creation = sum(details.values())
    tools = mapping(usage, "server_tool_use") if usage.get("server_tool_use") is not None else {}
    used = {name: optional_count(tools, name) for name in tools}
    new = {f"cache_creation.{name}": value for name, value in written.items() if name not in _WRITES and value is not None}
    return Tokens(
        input_tokens=count(usage, "uncached_input_tokens") + read + creation,
        output_tokens=count(usage, "output_tokens"),
        cached_input_tokens=read,
        cache_creation_tokens=creation,
        details=details,
        metadata={name: value for name, value in used.items() if value} | new,
    )
