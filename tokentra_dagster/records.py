"""What a source says was used or billed, before the warehouse knows about it.

A provider module turns each item of a provider's answer into one `UsageRecord`, one `CostRecord` or one
`RejectedItem`; a file importer turns columns into the same Arrow schema. Nothing here knows a database.

Tokens (design, "Tokens"; providers.md section 0): `input_tokens` is everything sent, cache reads
(`cached_input_tokens`) and cache writes (`cache_creation_tokens`) included; reasoning is part of
`output_tokens`. `None` is "the source does not say", never zero. Every bucket is `[bucket_start, bucket_end)` in UTC.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal

Granularity = Literal["1m", "1h", "1d"]
GRANULARITIES: tuple[Granularity, ...] = ("1m", "1h", "1d")
GRANULARITY_SECONDS: dict[str, int] = {"1m": 60, "1h": 3600, "1d": 86400}

PROVIDERS = ("openai", "anthropic", "google", "azure", "aws")
SOURCES = ("provider_api", "gateway", "events", "file")
"""Where a connection's usage was seen, most authoritative first (correction 11)."""

REQUEST_TYPES = (
    "chat", "completion", "embedding", "image", "audio", "moderation", "decision",
    "vector_store", "code_interpreter", "file_search", "web_search",
)  # fmt: skip
SERVICE_TYPES = ("sync", "batch", "real-time")


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRecord:
    """One bucket (or one request) of usage in canonical units. Times UTC, latencies milliseconds, cost in `currency`."""

    bucket_start: datetime
    bucket_end: datetime
    granularity: Granularity
    model: str
    """As the source spells it; endpoints without a model use their own name, e.g. `vector_stores`."""
    request_type: str | None = None
    service_type: str | None = None
    service_tier: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int | None = None
    cache_creation_tokens: int | None = None
    token_details: dict[str, int] = field(default_factory=dict)
    """Subsets of the counts above, never added to them: `cache_write_1h`, `input_audio`, `cached_audio`, `output_audio`, ..."""
    quantity: Decimal | None = None
    """What is not tokens: images, characters, seconds, sessions, requests or bytes, named by `quantity_unit`."""
    quantity_unit: str | None = None
    request_count: int | None = None
    success_count: int | None = None
    error_count: int | None = None
    total_latency_ms: int | None = None
    min_latency_ms: int | None = None
    max_latency_ms: int | None = None
    p50_latency_ms: int | None = None
    p95_latency_ms: int | None = None
    p99_latency_ms: int | None = None
    latency_histogram: dict[int, int] | None = None
    """Bucket index -> requests; bucket i holds latencies in (1.02**(i-1), 1.02**i] ms. Mergeable (correction 6)."""
    reported_cost: Decimal | None = None
    """The source's own figure for this usage, if it gives one; else the price list is used."""
    currency: str = "USD"
    provider_project_id: str | None = None
    """The provider's project or workspace id."""
    api_key_id: str | None = None
    user_id: str | None = None
    team: str | None = None
    """Names that the source itself gives (files, gateways); attribution rules fill what is left empty."""
    project: str | None = None
    cost_center: str | None = None
    feature: str | None = None
    environment: str | None = None
    context_window: str | None = None
    """The provider's own price tier by prompt length, e.g. `200k-1M` (tiers are per request)."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Every further dimension the provider gave, under its own name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRecord:
    """One line of what the provider billed for one UTC day. `amount` is in `currency` units (dollars, not cents)."""

    bucket_start: datetime
    bucket_end: datetime
    amount: Decimal
    list_amount: Decimal | None = None
    currency: str = "USD"
    line_item: str | None = None
    model: str | None = None
    cost_type: str | None = None
    token_type: str | None = None
    provider_project_id: str | None = None
    api_key_id: str | None = None
    user_id: str | None = None
    quantity: Decimal | None = None
    quantity_unit: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedItem:
    """An item that cannot be usage: kept with its reason in `raw.rejected_records`, never dropped silently."""

    reason: str
    payload: Any
    bucket_start: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EntityName:
    """What the provider calls one of its ids. `kind` is project, workspace, api_key, user or service_account."""

    kind: str
    id: str
    name: str | None
    metadata: dict[str, Any] = field(default_factory=dict)


Item = UsageRecord | CostRecord | RejectedItem


def floor(moment: datetime, granularity: str) -> datetime:
    """The start of the bucket that holds `moment`."""
    seconds = GRANULARITY_SECONDS[granularity]
    return datetime.fromtimestamp(moment.timestamp() // seconds * seconds, UTC)


def field_names(kind: type) -> tuple[str, ...]:
    return tuple(f.name for f in fields(kind))


def token_problem(input_tokens: int, output_tokens: int, cached: int | None, creation: int | None) -> str | None:
    """Why these counts cannot be right, or None. `uncached = input - cached - creation` is never negative (design, "Tokens")."""
    parts: Sequence[tuple[str, int]] = (
        ("input_tokens", input_tokens),
        ("output_tokens", output_tokens),
        ("cached_input_tokens", cached or 0),
        ("cache_creation_tokens", creation or 0),
    )
    for name, value in parts:
        if value < 0:
            return f"{name} is {value}; a count cannot be negative"
    inside = (cached or 0) + (creation or 0)
    if inside > input_tokens:
        return (
            f"cached_input_tokens {cached or 0} + cache_creation_tokens {creation or 0} exceed input_tokens {input_tokens}; "
            "input must include both"
        )
    return None


def split(items: Iterable[Item]) -> tuple[list[UsageRecord], list[CostRecord], list[RejectedItem]]:
    """The items by kind, in order."""
    usage: list[UsageRecord] = []
    costs: list[CostRecord] = []
    rejected: list[RejectedItem] = []
    for item in items:
        if isinstance(item, UsageRecord):
            usage.append(item)
        elif isinstance(item, CostRecord):
            costs.append(item)
        else:
            rejected.append(item)
    return usage, costs, rejected
