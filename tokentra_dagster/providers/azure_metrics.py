"""Azure Monitor's metrics of models: what is asked, and each answer's points, all of them.

Two families count the same traffic, `Models` and the older `Azure OpenAI`: one of them is read, never both. Dimensions are split
by a filter, and with a filter Azure answers ten series unless told otherwise and has no pages (`max_results`); a series that
lacks a dimension is in no split at all. So the same metrics are asked without a filter, too, and what the split does not hold is
known. Sources: the table of supported metrics of Microsoft.CognitiveServices/accounts; azure-monitor-querymetrics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from tokentra_dagster.providers.azure_catalogue import Account
from tokentra_dagster.providers.azure_client import Azure
from tokentra_dagster.providers.failures import DamagedPage
from tokentra_dagster.providers.payload import BadItem, instant

NAMESPACE = "Microsoft.CognitiveServices/accounts"
MOST_RESOURCES = 50
"""Of one subscription and region in one call."""
MOST_SERIES = 2147483647
KEPT = timedelta(days=93)
INTERVALS = {"1m": timedelta(minutes=1), "1h": timedelta(hours=1), "1d": timedelta(hours=1)}
"""Days are summed from hours, so that they begin at midnight UTC whatever Azure aligns a day to."""
SPANS = {"1m": timedelta(hours=3), "1h": timedelta(days=5), "1d": timedelta(days=5)}
"""How much time one call asks for: an answer has no pages, and Azure allows about 30 days."""
DETAILS = ("cache", "audio", "images", "latency")
STATUS = "statuscode"
_DEPLOYMENT, _MODEL, _VERSION, _FEATURE = "ModelDeploymentName", "ModelName", "ModelVersion", "FeatureName"


@dataclass(frozen=True, slots=True)
class Family:
    """The names of one family's metrics; None where it has no such metric."""

    requests: str
    input: str
    output: str
    audio_input: str
    audio_output: str
    latency: str
    model: str
    """The dimension of token metrics that names the model."""
    images: str | None = None
    cache_read: str | None = None
    cache_write_5m: str | None = None
    cache_write_1h: str | None = None

    @property
    def required(self) -> tuple[str, ...]:
        return (self.requests, self.input, self.output)


FAMILIES = {
    "models": Family(
        "ModelRequests", "InputTokens", "OutputTokens", "AudioInputTokens", "AudioOutputTokens", "TimeToLastByte", _MODEL,
        "GeneratedImages", "cacheReadInputTokens", "ephemeral5mInputTokens", "ephemeral1hInputTokens",
    ),
    "azure_openai": Family(
        "AzureOpenAIRequests", "ProcessedPromptTokens", "GeneratedTokens", "AudioPromptTokens", "AudioCompletionTokens",
        "AzureOpenAITTLTInMS", _FEATURE,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Question:
    """Metrics that are split by the same dimensions; without dimensions they are not split."""

    metrics: tuple[str, ...]
    dimensions: tuple[str, ...] = ()
    statistics: tuple[str, ...] = ("Total",)


@dataclass(frozen=True, slots=True)
class Point:
    """One value of one series. `dimensions` have names in lower case."""

    account: str
    metric: str
    dimensions: Mapping[str, str]
    at: datetime
    values: Mapping[str, Decimal]
    """Statistic in lower case -> value; never empty."""


def questions(family: Family, details: Sequence[str]) -> tuple[list[Question], Question]:
    """What is asked split, and the same counts unsplit."""
    further = {
        "cache": (family.cache_read, family.cache_write_5m, family.cache_write_1h),
        "images": (family.images,),
        "audio": (family.audio_input, family.audio_output),
    }
    by_model = [family.input, family.output]
    by_name: list[str] = []
    for kind, metrics in further.items():
        if kind in details:
            (by_name if kind == "audio" and family.model != _MODEL else by_model).extend(filter(None, metrics))
    split = [Question(tuple(by_model), (_DEPLOYMENT, family.model, _VERSION))]
    if by_name:
        split.append(Question(tuple(by_name), (_DEPLOYMENT, _MODEL, _VERSION)))
    split.append(Question((family.requests,), (_DEPLOYMENT, _MODEL, _VERSION, "StatusCode")))
    counted = tuple(metric for question in split for metric in question.metrics)
    if "latency" in details:
        split.append(Question((family.latency,), (_DEPLOYMENT, _MODEL, _VERSION), ("Average", "Minimum", "Maximum")))
    return split, Question(counted)


def points(
    azure: Azure, accounts: Sequence[Account], question: Question, start: datetime, end: datetime, interval: timedelta,
    required: Sequence[str],
) -> tuple[list[Point], list[str]]:  # fmt: skip
    """Every point in `[start, end)`, and why a metric that is not required was not answered. `accounts` are of one subscription
    and region, at most `MOST_RESOURCES`."""
    region = accounts[0].region
    split = (
        {"filter": " and ".join(f"{name} eq '*'" for name in question.dimensions), "max_results": MOST_SERIES}
        if question.dimensions
        else {}
    )

    def fetch() -> tuple[list[Point], list[str]]:
        answer = azure.metrics(
            region,
            resource_ids=[one.id for one in accounts],
            metric_namespace=NAMESPACE,
            metric_names=list(question.metrics),
            timespan=(start, end),
            granularity=interval,
            aggregations=list(question.statistics),
            **split,
        )
        refused: list[str] = []
        return list(_read(answer, accounts, question, start, end, interval, required, refused)), refused

    todo = f"give the login the role Monitoring Reader on subscription {accounts[0].subscription}"
    return azure.ask(f"reading metrics in {region}", fetch, todo)


def _read(
    answer: Mapping[str, Any], accounts: Sequence[Account], question: Question, start: datetime, end: datetime, interval: timedelta,
    required: Sequence[str], refused: list[str],
) -> Iterator[Point]:  # fmt: skip
    """Raises `DamagedPage` where anything that was asked for is missing."""
    of = {one.id.lower(): one for one in accounts}
    missing = {(account, metric) for account in of for metric in question.metrics}
    for resource in _list(answer, "values"):
        account = str(resource.get("resourceid", "")).lower()
        if account not in of:
            raise DamagedPage(f"it holds the account {account!r} that was not asked for")
        for metric in _list(resource, "value"):
            name = _name(metric)
            if (account, name) not in missing:
                raise DamagedPage(f"it holds the metric {name} twice or unasked")
            missing.discard((account, name))
            error = metric.get("errorCode") or "Success"
            if error != "Success":
                said = f"{name} of {of[account].name} answered {error}: {' '.join(str(metric.get('errorMessage') or '').split())}"
                if name in required:
                    raise DamagedPage(said)
                refused.append(said)
                continue
            for series in _list(metric, "timeseries"):
                dimensions = {_name(one).lower(): str(one.get("value") or "") for one in series.get("metadatavalues") or ()}
                for point in series.get("data") or ():
                    values = {
                        statistic.lower(): _number(point, statistic.lower(), name)
                        for statistic in question.statistics
                        if point.get(statistic.lower()) is not None
                    }
                    at = _moment(point, start, end, interval)
                    if values:
                        yield Point(account, name, dimensions, at, values)
    if missing:
        account, metric = sorted(missing)[0]
        raise DamagedPage(f"it holds nothing of {metric} of {of[account].name}")


def _list(item: Mapping[str, Any], name: str) -> list[Any]:
    found = item.get(name)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise DamagedPage(f"it has no list {name}")
    return found


def _name(item: Mapping[str, Any]) -> str:
    name = item.get("name")
    if not isinstance(name, Mapping) or not isinstance(name.get("value"), str):
        raise DamagedPage("something in it has no name")
    return str(name["value"])


def _number(point: Mapping[str, Any], statistic: str, metric: str) -> Decimal:
    value = point[statistic]
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise DamagedPage(f"the {statistic} of {metric} is {value!r}")
    return Decimal(value)


def _moment(point: Mapping[str, Any], start: datetime, end: datetime, interval: timedelta) -> datetime:
    try:
        at = instant(point, "timeStamp").astimezone(UTC)
    except BadItem as bad:
        raise DamagedPage(str(bad)) from None
    if not start <= at < end or (at - start) % interval:
        raise DamagedPage(f"it holds a point at {at.isoformat()}, which was not asked for in steps of {interval}")
    return at
