"""Points of Cloud Monitoring become records: the series of one model in one project and bucket joined.

`token_count` names its kinds by the label `type`. Gemini's are `input`, which holds cached reads, too, and cannot be split, and `output`.
Claude's `input` is what no cache held, and its caches have types of their own (seen: `cache_read_input`, `cache_write_input`,
`cache_write_1h_input`): they are added to the input. Any other type is kept as a rejected item, never counted as input.

Only `token_count` says what was batch (`source` begins with `batch_`). Requests and latencies of a model that had tokens by batch only are
batch; where it had both, they are with the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from tokentra_dagster.providers.google_distributions import Latencies
from tokentra_dagster.providers.google_metrics import FIRST_TOKEN, LATENCY, REQUESTS, TOKENS, Point, Series
from tokentra_dagster.providers.payload import BadItem
from tokentra_dagster.records import GRANULARITY_SECONDS, Granularity, Item, RejectedItem, UsageRecord, floor, token_problem

UNNAMED = "unnamed"
"""The model of a series that names none."""
CACHES = {"cache_read_input": "read", "cache_write_input": "cache_write_5m", "cache_write_1h_input": "cache_write_1h"}
"""Type of Claude's cached tokens -> what it is here."""
ALL_TYPES = "all"
_CACHING_PUBLISHERS = frozenset(("anthropic",))
_MODALITIES = frozenset(("audio", "image", "video"))
_TIERS = frozenset(("flex", "priority"))
_KINDS = (
    ("embedding", "embedding"),
    ("imagen", "image"),
    ("-image", "image"),
    ("-tts", "audio"),
    ("chirp", "audio"),
    ("lyria", "audio"),
)


@dataclass(frozen=True, slots=True)
class Key:
    """What one record is about, within a bucket."""

    project: str
    publisher: str
    model: str
    version: str
    location: str
    request_type: str
    """`dedicated` is provisioned throughput, `shared` is not."""
    tier: str
    batch: bool = False


@dataclass(slots=True)
class Bucket:
    tokens: Counter[str] = field(default_factory=Counter)
    """Type -> sum. A type that has no point is not in it."""
    parts: Counter[str] = field(default_factory=Counter)
    """`input_audio` and the like -> sum."""
    sources: set[str] = field(default_factory=set)
    statuses: Counter[str] = field(default_factory=Counter)
    categories: Counter[str] = field(default_factory=Counter)
    latencies: dict[str, Latencies] = field(default_factory=dict)
    """By `latency_type`: they measure the same requests and are never summed."""
    first_token: Latencies = field(default_factory=Latencies)

    @property
    def is_used(self) -> bool:
        measured = (self.first_token, *self.latencies.values())
        return any(self.tokens.values()) or any(self.statuses.values()) or any(one.count for one in measured)


Buckets = dict[tuple[datetime, Key], Bucket]


def joined(points: Iterable[Point], granularity: Granularity) -> tuple[Buckets, list[RejectedItem]]:
    """The points of each bucket together, and those that cannot be usage."""
    found: Buckets = {}
    rejected: list[RejectedItem] = []
    for point in points:
        at = floor(point.start, granularity)
        key = key_of(point.series)
        bucket = found.setdefault((at, key), Bucket())
        try:
            _add(bucket, key, point)
        except BadItem as bad:
            payload = {"metric": point.series.metric, "at": point.start.isoformat(), "value": str(point.value)[:1000]}
            payload |= dict(point.series.labels) | {f"resource.{name}": value for name, value in point.series.resource}
            rejected.append(RejectedItem(reason=f"google {key.project}: {bad}", payload=payload, bucket_start=at))
    _find_batch(found)
    return found, rejected


def key_of(series: Series) -> Key:
    named = series.of("model_user_id")
    path = named.split("/")
    # `publishers/google/models/gemini-2.5-flash`, or the last part only.
    publisher = series.of("publisher") or (path[path.index("publishers") + 1] if "publishers" in path[:-1] else "")
    tier = series.label("shared_request_type").lower()
    return Key(
        project=series.of("project_id") or series.of("resource_container") or series.asked,
        publisher=publisher.lower(),
        model=path[-1] or UNNAMED,
        version=series.of("model_version_id"),
        location=series.of("location"),
        request_type=series.label("request_type").lower(),
        tier=tier if tier in _TIERS else "",
        batch=series.label("source").lower().startswith("batch_"),
    )


def records(buckets: Buckets, granularity: Granularity, latency_type: str, input_is_total: bool) -> Iterator[Item]:
    """A record for every bucket in which anything was counted, in order of time.

    `latency_type` chooses among several; `input_is_total`: Claude's caches are inside its `input`.
    """
    for (at, key), bucket in sorted(buckets.items(), key=lambda one: (one[0][0], repr(one[0][1]))):
        if bucket.is_used:
            yield _record(at, key, bucket, granularity, latency_type, input_is_total)


def latency_types(buckets: Buckets) -> set[str]:
    """Of the buckets in which one must be chosen."""
    return {name for bucket in buckets.values() if len(bucket.latencies) > 1 for name in bucket.latencies}


# ---- Points into buckets -----------------------------------------------------------------------------------------------


def _add(bucket: Bucket, key: Key, point: Point) -> None:
    """Raises `BadItem`."""
    series, value = point.series, point.value
    if series.metric == LATENCY:
        bucket.latencies.setdefault(series.label("latency_type").lower() or ALL_TYPES, Latencies()).add(value)
    elif series.metric == FIRST_TOKEN:
        bucket.first_token.add(value)
    elif value < 0:
        raise BadItem(f"{series.metric} is {value}; a count cannot be negative")
    elif series.metric == REQUESTS:
        code = series.label("response_code")
        bucket.statuses[code] += value
        if series.label("error_category"):
            bucket.categories[series.label("error_category")] += value
    elif series.metric == TOKENS:
        kind = series.label("type").lower()
        known = ("input", "output", *(CACHES if key.publisher in _CACHING_PUBLISHERS else ()))
        if kind not in known:
            raise BadItem(f"{value} tokens of {key.model} have the type {series.label('type')!r}; known are {', '.join(known)}")
        bucket.tokens[kind] += value
        modality = series.label("modality").lower()
        if modality in _MODALITIES and kind not in CACHES:
            bucket.parts[f"{kind}_{modality}"] += value
        if series.label("source"):
            bucket.sources.add(series.label("source"))


def _find_batch(found: Buckets) -> None:
    """Requests and latencies without tokens go to the batch of the same model, if there is one."""
    for (at, key), bucket in found.items():
        other = found.get((at, replace(key, batch=True)))
        if key.batch or other is None or other is bucket or any(bucket.tokens.values()) or other.statuses or other.latencies:
            continue
        other.statuses, other.categories = bucket.statuses, bucket.categories
        other.latencies, other.first_token = bucket.latencies, bucket.first_token
        found[at, key] = Bucket()


# ---- Buckets into records ----------------------------------------------------------------------------------------------


def _record(at: datetime, key: Key, bucket: Bucket, granularity: Granularity, latency_type: str, input_is_total: bool) -> Item:
    counts = bucket.tokens
    reads = counts.get("cache_read_input")
    writes = {CACHES[kind]: counts[kind] for kind in CACHES if kind in counts and kind != "cache_read_input"}
    written = sum(writes.values()) if writes else None
    beside = 0 if input_is_total else (reads or 0) + (written or 0)
    tokens = (counts["input"] + beside, counts["output"], reads, written)
    problem = token_problem(*tokens)
    if problem:
        payload = {"project": key.project, "model": key.model, "location": key.location} | dict(counts)
        return RejectedItem(reason=f"google {key.project}: {problem}", payload=payload, bucket_start=at)
    requests, errors, succeeded = _requests(bucket)
    chosen = bucket.latencies.get(latency_type) or (next(iter(bucket.latencies.values())) if len(bucket.latencies) == 1 else None)
    return UsageRecord(
        bucket_start=at,
        bucket_end=at + timedelta(seconds=GRANULARITY_SECONDS[granularity]),
        granularity=granularity,
        model=key.model,
        request_type=request_type(key.model),
        service_type="batch" if key.batch else "sync",
        service_tier=_tier(key),
        input_tokens=tokens[0],
        output_tokens=tokens[1],
        cached_input_tokens=reads,
        cache_creation_tokens=written,
        token_details=writes | {name: part for name, part in bucket.parts.items() if 0 < part <= counts[name.partition("_")[0]]},
        request_count=requests,
        success_count=succeeded,
        error_count=errors,
        provider_project_id=key.project,
        metadata=_metadata(key, bucket, succeeded, chosen, requests),
        **_latency(chosen, requests),
    )


def request_type(model: str) -> str:
    """What a model is for, by its name."""
    return next((kind for word, kind in _KINDS if word in model.lower()), "chat")


def _tier(key: Key) -> str | None:
    if key.request_type == "dedicated":
        return "provisioned"
    return key.tier or (None if key.request_type in ("", "shared") else key.request_type)


def _requests(bucket: Bucket) -> tuple[int | None, int | None, int | None]:
    """Requests, errors, successes; None where nobody says."""
    if not bucket.statuses:
        return None, None, None
    total = bucket.statuses.total()
    if any(number and not code[:1].isdigit() for code, number in bucket.statuses.items()):
        return total, None, None
    errors = sum(number for code, number in bucket.statuses.items() if _failed(code))
    return total, errors, total - errors


def _failed(code: str) -> bool:
    return code[:1] not in ("1", "2", "3")


def _latency(found: Latencies | None, requests: int | None) -> dict[str, Any]:
    if found is None or not found.count:
        return {}
    told: dict[str, Any] = {}
    if found.count == requests:
        # An average divides the sum by the requests: a sum over others than these would make it wrong.
        told["total_latency_ms"] = round(found.total)
    if found.ranged and found.least is not None and found.most is not None:
        told |= {"min_latency_ms": round(found.least), "max_latency_ms": round(found.most)}
    if not found.without_histogram:
        told["latency_histogram"] = dict(sorted(found.histogram.items()))
        told |= {f"p{part}_latency_ms": found.percentile(part / 100) for part in (50, 95, 99)}
    return told


def _metadata(key: Key, bucket: Bucket, succeeded: int | None, chosen: Latencies | None, requests: int | None) -> dict[str, Any]:
    failed = {code: number for code, number in sorted(bucket.statuses.items()) if number and _failed(code)}
    silent = not bucket.tokens and not bucket.sources and (succeeded is None or succeeded > 0)
    first = bucket.first_token
    told: dict[str, Any] = {
        "publisher": key.publisher, "location": key.location, "model_version": key.version, "vertex_request_type": key.request_type,
        "sources": sorted(bucket.sources), "failed_requests": failed, "error_categories": dict(sorted(bucket.categories.items())),
    }  # fmt: skip
    if chosen is not None and chosen.count:
        if chosen.count != requests:
            told |= {"latency_requests": chosen.count, "average_latency_ms": chosen.average}
        told["latency_requests_above_ms"] = _above(chosen)
    if first.count:
        histogram = {str(number): requests for number, requests in sorted(first.histogram.items())}
        told["first_token_latency"] = {
            "requests": first.count, "average_ms": first.average, "p50_ms": first.percentile(0.5), "p95_ms": first.percentile(0.95),
            "histogram": histogram,
        }  # fmt: skip
    if silent:
        told["tokens_unknown"] = ["input_tokens", "output_tokens"]
    return {name: value for name, value in told.items() if value not in ("", None, [], {})}


def _above(found: Latencies) -> Mapping[str, int]:
    """Requests that took longer than the last bound tells; they count at the bound."""
    return {f"{bound:g}": number for bound, number in sorted(found.above.items())}
