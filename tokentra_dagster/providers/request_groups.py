"""Requests of a log summed into buckets: one `UsageRecord` for what shares every dimension.

Requests whose latency, tokens or cost are known stay apart from the others, so that a sum never mixes known and unknown. The length of the prompt is a dimension, because prices are per request (`context_window`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np

from tokentra_dagster.latency import latency_buckets, latency_percentile
from tokentra_dagster.records import GRANULARITY_SECONDS, Granularity, UsageRecord

_WAITING = 256


@dataclass(frozen=True, slots=True)
class Group:
    """What the requests of one record share."""

    bucket_start: datetime
    model: str
    request_type: str | None
    provider_project_id: str | None
    user_id: str | None
    api_key_id: str | None
    service_tier: str | None
    context_window: str | None
    names: tuple[tuple[str, str], ...]
    """Team, project, cost center, feature and environment, as far as the caller gave them."""
    metadata: tuple[tuple[str, Any], ...]
    knows_latency: bool
    knows_tokens: bool
    knows_cost: bool = False
    """Whether the source's own cost is taken; else the price list's is."""


@dataclass(slots=True)
class Latencies:
    """Milliseconds, kept as a histogram: memory does not grow with the requests."""

    total: int = 0
    least: int | None = None
    most: int = 0
    histogram: Counter[int] = field(default_factory=Counter)
    _waiting: list[int] = field(default_factory=list)
    """Those that are not in the histogram yet: one by one it would be slow."""

    def add(self, milliseconds: int) -> None:
        self.total += milliseconds
        self.least = milliseconds if self.least is None else min(self.least, milliseconds)
        self.most = max(self.most, milliseconds)
        self._waiting.append(milliseconds)
        if len(self._waiting) >= _WAITING:
            self._settle()

    def fields(self) -> dict[str, Any]:
        """The fields of a `UsageRecord`; none where nothing was added."""
        if self.least is None:
            return {}
        self._settle()
        histogram = dict(sorted(self.histogram.items()))
        percentiles = {f"p{part}_latency_ms": latency_percentile(histogram, part / 100) for part in (50, 95, 99)}
        return {
            "total_latency_ms": self.total,
            "min_latency_ms": self.least,
            "max_latency_ms": self.most,
            "latency_histogram": histogram,
            **percentiles,
        }

    def _settle(self) -> None:
        buckets, requests = np.unique(latency_buckets(np.array(self._waiting, dtype=np.int64)), return_counts=True)
        self.histogram.update(dict(zip(buckets.tolist(), requests.tolist(), strict=True)))
        self._waiting.clear()


@dataclass(slots=True)
class Sums:
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached: int | None = None
    written: int | None = None
    written_1h: int | None = None
    latencies: Latencies = field(default_factory=Latencies)
    first_tokens: list[int] = field(default_factory=lambda: [0, 0])
    """Requests that say how long their first token took, and the sum of that in milliseconds."""
    cost: Decimal = Decimal(0)
    errors: Counter[str] = field(default_factory=Counter)

    def add(
        self, input_tokens: int | None, output_tokens: int | None, cached: int | None, written: int | None, written_1h: int | None,
        latency_ms: int | None, error: str | None, first_token_ms: int | None = None, cost: Decimal | None = None,
    ) -> None:  # fmt: skip
        self.requests += 1
        self.input_tokens += input_tokens or 0
        self.output_tokens += output_tokens or 0
        self.cached = _plus(self.cached, cached)
        self.written = _plus(self.written, written)
        self.written_1h = _plus(self.written_1h, written_1h)
        if latency_ms is not None:
            self.latencies.add(latency_ms)
        if first_token_ms is not None:
            self.first_tokens = [self.first_tokens[0] + 1, self.first_tokens[1] + first_token_ms]
        self.cost += cost or 0
        if error is not None:
            self.errors[error] += 1


def prompt_length(tokens: int | None, bounds: Sequence[int], top: int) -> str | None:
    """In which price tier a prompt lies (`context_window`), e.g. `128k-200k`: above one of the ascending `bounds`, up to the next.
    `top` is what the last one is called up to. None: the length is not known."""
    if tokens is None:
        return None
    edges = (0, *bounds, top)
    place = bisect_left(bounds, tokens)
    return f"{_short(edges[place])}-{_short(edges[place + 1])}"


def _short(tokens: int) -> str:
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if tokens >= size:
            return f"{tokens // size}{letter}"
    return str(tokens)


def record(group: Group, sums: Sums, granularity: Granularity) -> UsageRecord:
    failed = sum(sums.errors.values())
    metadata: dict[str, Any] = dict(group.metadata)
    names: dict[str, Any] = dict(group.names)
    if sums.errors:
        metadata["error_codes"] = dict(sorted(sums.errors.items()))
    if not group.knows_tokens:
        metadata["tokens_unknown"] = ["input_tokens", "output_tokens"]
    if sums.first_tokens[0]:
        metadata["time_to_first_token_ms"] = dict(zip(("requests", "total"), sums.first_tokens, strict=True))
    one_hour = min(sums.written_1h, sums.written or 0) if sums.written_1h is not None else None
    return UsageRecord(
        bucket_start=group.bucket_start,
        bucket_end=group.bucket_start + timedelta(seconds=GRANULARITY_SECONDS[granularity]),
        granularity=granularity,
        model=group.model,
        request_type=group.request_type,
        service_type="sync",
        service_tier=group.service_tier,
        input_tokens=sums.input_tokens,
        output_tokens=sums.output_tokens,
        cached_input_tokens=sums.cached,
        cache_creation_tokens=sums.written,
        token_details={} if one_hour is None else {"cache_write_1h": one_hour},
        request_count=sums.requests,
        success_count=sums.requests - failed,
        error_count=failed,
        reported_cost=sums.cost if group.knows_cost else None,
        provider_project_id=group.provider_project_id,
        api_key_id=group.api_key_id,
        user_id=group.user_id,
        context_window=group.context_window,
        metadata=metadata,
        **names,
        **sums.latencies.fields(),
    )


class Buckets:
    """Open buckets, and the requests already counted in them. `lag` hours after its end a bucket is closed and forgotten."""

    def __init__(self, granularity: Granularity, lag: int) -> None:
        self._granularity = granularity
        self._lag = timedelta(hours=lag)
        self._groups: dict[datetime, dict[Group, Sums]] = {}
        self._seen: dict[datetime, set[bytes]] = {}

    def is_new(self, hour: datetime, request: bytes) -> bool:
        """Whether this request of that hour was not counted before: the log is delivered at least once."""
        seen = self._seen.setdefault(hour, set())
        if request in seen:
            return False
        seen.add(request)
        return True

    def sums(self, group: Group) -> Sums:
        return self._groups.setdefault(group.bucket_start, {}).setdefault(group, Sums())

    def closed(self, folder: datetime | None) -> Iterator[UsageRecord]:
        """The records of every bucket that no request can join any more once the folder of this hour is reached; None: all."""
        width = timedelta(seconds=GRANULARITY_SECONDS[self._granularity])
        for start in sorted(self._groups):
            if folder is None or folder >= start + width + self._lag:
                for group, sums in self._groups.pop(start).items():
                    yield record(group, sums, self._granularity)
        for hour in [hour for hour in self._seen if folder is None or folder > hour + self._lag]:
            del self._seen[hour]


def _plus(total: int | None, value: int | None) -> int | None:
    return total if value is None else (total or 0) + value
