"""A week of usage of every kind, and its totals by plain Python arithmetic over the records that were put in.

Which records count is known from how they are loaded, not from asking the database: of `openai` the hours of June 1 and 2
and the minutes of June 3 (its hours of that day are loaded as well), none of its SDK events; of `anthropic` day records,
but the hours of June 5; of `google` every request.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from tests.warehouse_data import DAY, HOUR, connection, load, record, rows
from tokentra_dagster.latency import latency_percentile
from tokentra_dagster.records import UsageRecord
from tokentra_dagster.warehouse.database import Database

MINUTE = timedelta(minutes=1)
OTHER_ORG = "globex"


@dataclass(frozen=True, slots=True)
class Used:
    """A record that counts, with the family that its model resolves to."""

    provider: str
    record: UsageRecord

    @property
    def moment(self) -> datetime:
        return self.record.bucket_start

    def of(self, dimension: str) -> str | None:
        """The value of a dimension of table 1.5, by the names of the columns."""
        named = {"user": self.record.user_id, "api_key": self.record.api_key_id, "provider": self.provider}
        return named[dimension] if dimension in named else getattr(self.record, dimension)


@dataclass(frozen=True, slots=True)
class UsageCase:
    database: Database
    org_id: UUID
    counted: list[Used] = field(repr=False)

    @classmethod
    def load(cls, database: Database) -> UsageCase:
        """Put the week in; the caller builds."""
        generator = random.Random(5)
        openai = connection(database, "acme", "openai", "openai")
        events = connection(database, "acme", "sdk", "openai", source="events")
        anthropic = connection(database, "acme", "anthropic", "anthropic")
        google = connection(database, "acme", "gateway", "google", source="gateway")
        other = connection(database, OTHER_ORG, "openai", "openai")
        counted: list[Used] = []

        def put(row: Any, items: list[UsageRecord], start: datetime, days: int, granularity: str, counts: bool) -> None:
            load(database, row, items, start, start + days * 24 * HOUR, granularity)
            counted.extend(Used(row.provider, item) for item in items if counts)

        hours = [_openai(generator, DAY + n * HOUR, "1h") for n in range(72)]
        load(database, openai, hours, DAY, DAY + 72 * HOUR, "1h")
        counted += [Used("openai", item) for item in hours[:48]]
        put(
            openai,
            [_openai(generator, DAY + 48 * HOUR + n * 7 * MINUTE, "1m") for n in range(205)],
            DAY + 48 * HOUR,
            1,
            "1m",
            True,
        )
        put(events, [_openai(generator, DAY + n * HOUR, "1m") for n in range(100)], DAY, 6, "1m", False)
        days = [_anthropic(generator, DAY + n * 24 * HOUR, "1d") for n in range(6)]
        load(database, anthropic, days, DAY, DAY + 144 * HOUR, "1d")
        counted += [Used("anthropic", item) for n, item in enumerate(days) if n != 4]
        put(
            anthropic,
            [_anthropic(generator, DAY + (96 + n) * HOUR, "1h") for n in range(0, 24, 2)],
            DAY + 96 * HOUR,
            1,
            "1h",
            True,
        )
        requests = [_google(generator, DAY + timedelta(microseconds=generator.randrange(6 * 86_400_000_000))) for _ in range(300)]
        put(google, sorted(requests, key=lambda item: item.bucket_start), DAY, 6, "1m", True)
        put(other, [record(DAY + n * HOUR, request_count=200_000_000) for n in range(24)], DAY, 1, "1h", False)
        return cls(database, openai.org_id, counted)

    def within(self, start: datetime, end: datetime) -> list[Used]:
        return [used for used in self.counted if start <= used.moment < end]


def _openai(generator: random.Random, start: datetime, granularity: str) -> UsageRecord:
    """Knows requests, keys and cache reads, but neither errors, latency, users nor prices."""
    tokens = generator.randrange(100, 9_000)
    return record(
        start, granularity, model=generator.choice(["mystery-1", "mystery-2"]), request_type=generator.choice(["chat", "embedding"]),
        service_type=generator.choice(["sync", "batch"]), input_tokens=tokens, output_tokens=generator.randrange(900),
        cached_input_tokens=generator.randrange(tokens), request_count=generator.randrange(1, 50),
        api_key_id=generator.choice(["key-1", "key-2", None]), project=generator.choice(["Chat", None]),
    )  # fmt: skip


def _anthropic(generator: random.Random, start: datetime, granularity: str) -> UsageRecord:
    """Knows no requests; cost is the provider's own, in euros on some days."""
    return record(
        start, granularity, model="claude-x", request_type=None, input_tokens=generator.randrange(50_000), output_tokens=7,
        cache_creation_tokens=0, request_count=None, reported_cost=Decimal(generator.randrange(10**9)) / 10**6,
        currency=generator.choice(["USD", "EUR"]), team="Research", cost_center="R&D",
    )  # fmt: skip


def _google(generator: random.Random, start: datetime) -> UsageRecord:
    """One request, of which everything is known."""
    bucket = generator.randrange(250, 420)
    failed = int(generator.random() < 0.2)
    minute = start.replace(second=0, microsecond=0)
    return UsageRecord(
        bucket_start=start, bucket_end=minute + MINUTE, granularity="1m", model=generator.choice(["g-1", "g-2", "g-3"]),
        request_type="chat", service_type="real-time", input_tokens=generator.randrange(2_000), output_tokens=generator.randrange(500),
        request_count=1, success_count=1 - failed, error_count=failed, total_latency_ms=round(1.02**bucket),
        min_latency_ms=round(1.02**bucket), max_latency_ms=round(1.02**bucket), latency_histogram={bucket: 1},
        reported_cost=Decimal(generator.randrange(10**6)) / 10**6, user_id=generator.choice(["ann", "bob", "cy", None]),
        api_key_id=generator.choice(["g-key", None]), feature=generator.choice(["search", "draft", None]),
        environment=generator.choice(["production", "staging"]), team=generator.choice(["Search", None]),
    )  # fmt: skip


def known(values: Iterable[Any]) -> Any:
    """The sum of what is known; None where nothing is."""
    found = [value for value in values if value is not None]
    return sum(found[1:], found[0]) if found else None


def divided(numerator: Any, denominator: Any, by: float = 1) -> float | None:
    return None if numerator is None or not denominator else float(numerator) / float(denominator) * by


def cost(used: list[Used], currency: str = "USD") -> Decimal | None:
    return known(u.record.reported_cost for u in used if u.record.currency == currency)


def summed(used: list[Used]) -> dict[str, Any]:
    """What every function says of some records, under the columns' names of get_usage_breakdown."""
    records = [u.record for u in used]
    with_errors = [r for r in records if r.error_count is not None]
    latency = [r for r in records if r.total_latency_ms is not None]
    mean = divided(known(r.total_latency_ms for r in latency), known(r.request_count for r in latency))
    return {
        "input_tokens": known(r.input_tokens for r in records),
        "output_tokens": known(r.output_tokens for r in records),
        "total_tokens": known(r.input_tokens + r.output_tokens for r in records),
        "cached_tokens": known(r.cached_input_tokens for r in records),
        "request_count": known(r.request_count for r in records),
        "error_count": known(r.error_count for r in records),
        "estimated_cost": cost(used),
        "unpriced_tokens": sum(r.input_tokens + r.output_tokens for r in records if r.reported_cost is None),
        "error_rate": divided(known(r.error_count for r in with_errors), known(r.request_count for r in with_errors), 100),
        "avg_latency_ms": None if mean is None else int(mean + 0.5),
    }


def percentile(used: list[Used], quantile: float) -> int | None:
    merged: dict[int, int] = defaultdict(int)
    for u in used:
        for bucket, count in (u.record.latency_histogram or {}).items():
            merged[bucket] += count
    return latency_percentile(merged, quantile) if merged else None


def grouped(used: list[Used], key: Callable[[Used], Any]) -> dict[Any, list[Used]]:
    found: dict[Any, list[Used]] = defaultdict(list)
    for u in used:
        found[key(u)].append(u)
    return dict(found)


def ids(database: Database, table: str) -> dict[str, str]:
    """The ids of teams, projects or cost centers by name, as text."""
    return {row["name"]: str(row["id"]) for row in rows(database, f"SELECT name, id FROM app.{table}")}


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)
