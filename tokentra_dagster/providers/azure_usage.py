"""Points of Azure Monitor become records: series of one deployment and bucket joined, and what no series holds.

`InputTokens` of OpenAI models is everything sent, cache reads included, which are not told apart. Of Anthropic models it is
probably what no cache held (providers.md section 0, unverified): their cache reads and writes are added, unless the option
`anthropic_input` says that they are in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from tokentra_dagster.providers.azure_catalogue import Account, Deployment, model_name
from tokentra_dagster.providers.azure_metrics import STATUS, Family, Point
from tokentra_dagster.providers.payload import BadItem
from tokentra_dagster.records import GRANULARITY_SECONDS, Granularity, Item, RejectedItem, UsageRecord, floor, token_problem

UNATTRIBUTED = "unattributed"
"""The model of what is in an account's total and in no series."""
_KINDS = (
    ("embedding", "embedding"),
    ("dall-e", "image"),
    ("image", "image"),
    ("whisper", "audio"),
    ("tts", "audio"),
    ("transcribe", "audio"),
)
_NO_NAME = frozenset(("", "unknown", "none"))


@dataclass(frozen=True, slots=True)
class Key:
    """What one record is about, within an account and a bucket. All None: in no series."""

    deployment: str | None = None
    model: str | None = None
    version: str | None = None


@dataclass(slots=True)
class Bucket:
    counts: Counter[str] = field(default_factory=Counter)
    """Metric -> sum. A metric that has no point is not in it."""
    statuses: Counter[str] = field(default_factory=Counter)
    least: Decimal | None = None
    most: Decimal | None = None
    average: Decimal | None = None


Buckets = dict[tuple[str, datetime, Key], Bucket]
"""(account, start of the bucket, key) -> what was counted."""


@dataclass(slots=True)
class Joined:
    buckets: Buckets = field(default_factory=dict)
    """What no series holds among them, with an empty key."""
    surplus: Counter[str] = field(default_factory=Counter)
    """Metric -> by how much its series exceed the total."""
    rejected: list[RejectedItem] = field(default_factory=list)


def joined(split: Iterable[Point], whole: Iterable[Point], family: Family, granularity: Granularity) -> Joined:
    """The series of each deployment together, compared with the unsplit totals."""
    found = Joined()
    totals: Counter[tuple[str, datetime, str]] = Counter()
    unknown: set[tuple[str, datetime, str]] = set()
    for point, sign in (*((point, 1) for point in split), *((point, -1) for point in whole)):
        place = (point.account, floor(point.at, granularity), point.metric)
        bucket = found.buckets.setdefault((*place[:2], _key(point, family)), Bucket()) if sign == 1 else Bucket()
        if point.metric == family.latency:
            _latency(bucket, point)
            continue
        try:
            value = _count(point)
        except BadItem as bad:
            unknown.add(place)
            found.rejected.append(_bad_point(point, bad))
            continue
        bucket.counts[point.metric] += value
        totals[place] += sign * value
        if point.metric == family.requests:
            bucket.statuses[point.dimensions.get(STATUS, "")] += value
    for (account, start, metric), difference in totals.items():
        if difference and (account, start, metric) not in unknown:
            if difference > 0:
                found.surplus[metric] += difference
            else:
                found.buckets.setdefault((account, start, Key()), Bucket()).counts[metric] -= difference
    return found


def records(
    buckets: Buckets, accounts: Mapping[str, tuple[Account, Mapping[str, Deployment]]], names: Mapping[str, str], family: Family,
    granularity: Granularity, anthropic_input_is_total: bool,
) -> Iterator[Item]:  # fmt: skip
    """A record for every bucket in which anything was counted, in order of time."""
    for (account_id, at, key), bucket in sorted(buckets.items(), key=lambda one: (one[0][1], one[0][0], repr(one[0][2]))):
        if any(bucket.counts.values()):
            account, deployments = accounts[account_id]
            deployment = deployments.get((key.deployment or "").lower())
            yield _record(account, deployment, names, family, at, granularity, key, bucket, anthropic_input_is_total)


def _record(
    account: Account, deployment: Deployment | None, names: Mapping[str, str], family: Family, at: datetime, granularity: Granularity,
    key: Key, bucket: Bucket, total: bool,
) -> Item:  # fmt: skip
    counts = bucket.counts
    try:
        reads = _optional(counts, family.cache_read)
        writes = {
            name: value
            for name, metric in (("cache_write_5m", family.cache_write_5m), ("cache_write_1h", family.cache_write_1h))
            if (value := _optional(counts, metric)) is not None
        }
        written = sum(writes.values()) if writes else None
        beside = 0 if total else (reads or 0) + (written or 0)
        tokens = (counts[family.input] + beside, counts[family.output], reads, written)
        problem = token_problem(*tokens)
        if problem:
            raise BadItem(problem)
        model, named_by = _model(key, deployment, names)
        images = _optional(counts, family.images)
        requests, errors, succeeded = _requests(bucket, family)
        return UsageRecord(
            bucket_start=at,
            bucket_end=at + timedelta(seconds=GRANULARITY_SECONDS[granularity]),
            granularity=granularity,
            model=model,
            request_type=request_type(model) if key != Key() else None,
            service_type=deployment.service_type if deployment else None,
            service_tier=deployment.service_tier if deployment else None,
            input_tokens=tokens[0],
            output_tokens=tokens[1],
            cached_input_tokens=reads,
            cache_creation_tokens=written,
            token_details=writes | _audio(counts, family, tokens[0], tokens[1]),
            quantity=Decimal(images) if images else None,
            quantity_unit="images" if images else None,
            request_count=requests,
            success_count=succeeded,
            error_count=errors,
            min_latency_ms=None if bucket.least is None else round(bucket.least),
            max_latency_ms=None if bucket.most is None else round(bucket.most),
            provider_project_id=f"{account.name}/{key.deployment}" if key.deployment else account.name,
            metadata=_metadata(account, deployment, family, key, bucket, named_by, granularity),
        )
    except BadItem as bad:
        payload = {"account": account.name, "deployment": key.deployment, "model": key.model} | dict(counts)
        return RejectedItem(reason=f"azure {account.name}: {bad}", payload=payload, bucket_start=at)


def request_type(model: str) -> str:
    """What a model is for, by its name."""
    name = model.lower()
    return next((kind for word, kind in _KINDS if word in name), "chat")


def _key(point: Point, family: Family) -> Key:
    of = point.dimensions
    model = of.get(family.model.lower()) or of.get("modelname")
    return Key(*(_named(value) for value in (of.get("modeldeploymentname"), model, of.get("modelversion"))))


def _named(value: str | None) -> str | None:
    return None if value is None or value.lower() in _NO_NAME else value


def _model(key: Key, deployment: Deployment | None, names: Mapping[str, str]) -> tuple[str, str]:
    """The model, and who named it."""
    if key == Key():
        return UNATTRIBUTED, UNATTRIBUTED
    if key.deployment and key.deployment.lower() in names:
        return names[key.deployment.lower()], "option"
    if key.model:
        return model_name(key.model, key.version), "metric"
    if deployment and deployment.model:
        return model_name(deployment.model, key.version or deployment.version), "deployment"
    return key.deployment or UNATTRIBUTED, "deployment_name"


def _requests(bucket: Bucket, family: Family) -> tuple[int | None, int | None, int | None]:
    """Requests, errors, successes; None where nobody says."""
    if family.requests not in bucket.counts:
        return None, None, None
    outcomes: Counter[str] = Counter()
    for status, number in bucket.statuses.items():
        outcomes[_outcome(status)] += number
    requests = bucket.counts[family.requests]
    if outcomes["unknown"] or outcomes.total() != requests:
        return requests, None, None
    return requests, outcomes["error"], outcomes["success"]


def _outcome(status: str) -> str:
    """Azure's dimension is a code or a word (`successful`, `clienterrors`, `server errors`)."""
    if status[:1].isdigit():
        return "success" if status[0] in "123" else "error"
    word = status.lower()
    return "error" if "error" in word else "success" if "success" in word else "unknown"


def _audio(counts: Counter[str], family: Family, sent: int, received: int) -> dict[str, int]:
    """As parts of input and output; where they cannot be that, they stay in the metadata."""
    found = {"input_audio": (counts[family.audio_input], sent), "output_audio": (counts[family.audio_output], received)}
    return {name: part for name, (part, whole) in found.items() if 0 < part <= whole}


def _metadata(
    account: Account,
    deployment: Deployment | None,
    family: Family,
    key: Key,
    bucket: Bucket,
    named_by: str,
    granularity: Granularity,
) -> dict[str, Any]:
    counts = bucket.counts
    failed = {status: number for status, number in sorted(bucket.statuses.items()) if number and _outcome(status) != "success"}
    succeeded = sum(number for status, number in bucket.statuses.items() if _outcome(status) == "success")
    silent = family.input not in counts and family.output not in counts and not counts[family.images or ""]
    beside = {
        metric: counts[metric]
        for metric, whole in ((family.audio_input, family.input), (family.audio_output, family.output))
        if counts[metric] > counts[whole]
    }
    return (
        {"account": account.name, "region": account.region, "subscription": account.subscription}
        | ({"deployment": key.deployment} if key.deployment else {})
        | ({"model_version": key.version} if key.version else {})
        | ({"deployment_type": deployment.type} if deployment and deployment.type else {})
        | ({"model_named_by": named_by} if named_by not in ("metric", UNATTRIBUTED) else {})
        | ({"failed_requests": failed} if failed else {})
        | ({"average_latency_ms": round(bucket.average)} if bucket.average is not None and granularity != "1d" else {})
        | beside
        | ({"tokens_unknown": ["input_tokens", "output_tokens"]} if succeeded and silent else {})
    )


def _latency(bucket: Bucket, point: Point) -> None:
    low, high = point.values.get("minimum"), point.values.get("maximum")
    bucket.least = min((value for value in (bucket.least, low) if value is not None), default=None)
    bucket.most = max((value for value in (bucket.most, high) if value is not None), default=None)
    bucket.average = point.values.get("average")


def _bad_point(point: Point, bad: BadItem) -> RejectedItem:
    payload = {"account": point.account, "metric": point.metric, "dimensions": dict(point.dimensions)}
    return RejectedItem(reason=f"azure: {bad}", payload=payload, bucket_start=point.at)


def _count(point: Point) -> int:
    value = point.values["total"]
    if value < 0 or value != value.to_integral_value():
        raise BadItem(f"{point.metric} at {point.at.isoformat()} is {value}; a whole number, not negative, is required")
    return int(value)


def _optional(counts: Counter[str], metric: str | None) -> int | None:
    return counts[metric] if metric and metric in counts else None
