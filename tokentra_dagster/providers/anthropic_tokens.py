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


def tokens(usage: Mapping[str, Any]) -> Tokens:
    """Raises `BadItem` where a count is missing or is not one."""
    read = count(usage, "cache_read_input_tokens")
    written = mapping(usage, "cache_creation")
    five_minutes = count(written, "ephemeral_5m_input_tokens")
    one_hour = count(written, "ephemeral_1h_input_tokens")
    tools = mapping(usage, "server_tool_use") if usage.get("server_tool_use") is not None else {}
    searches = optional_count(tools, "web_search_requests")
    return Tokens(
        input_tokens=count(usage, "uncached_input_tokens") + read + five_minutes + one_hour,
        output_tokens=count(usage, "output_tokens"),
        cached_input_tokens=read,
        cache_creation_tokens=five_minutes + one_hour,
        details={"cache_write_5m": five_minutes, "cache_write_1h": one_hour},
        metadata={"web_search_requests": searches} if searches else {},
    )
