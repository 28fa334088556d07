"""Cloud Monitoring's metrics of publisher models: what is asked, and each answer's points, all of them.

ListTimeSeries aligns periods to the end of the interval that is asked for, stamps each point with its period's end, and gives the newest
first. So every interval ends at a whole period in UTC and never in the future: the period that goes on is asked in minutes.
Sources: providers.md 3.1; google-cloud-monitoring (`metric_service.proto`, `common.proto`); the labels are those of public integrations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from tokentra_dagster.providers.base import Window
from tokentra_dagster.providers.failures import DamagedPage, Refused
from tokentra_dagster.providers.google_client import Google
from tokentra_dagster.providers.payload import spans as cut
from tokentra_dagster.records import GRANULARITY_SECONDS, floor

RESOURCE = "aiplatform.googleapis.com/PublisherModel"
PREFIX = "aiplatform.googleapis.com/publisher/online_serving/"
TOKENS, REQUESTS, LATENCY, FIRST_TOKEN = (
    "token_count",
    "model_invocation_count",
    "model_invocation_latencies",
    "first_token_latencies",
)
COUNTED = (TOKENS, REQUESTS)
PAGE_SIZE = 20_000
"""Points in one answer; Google gives at most 100,000. A distribution is some hundred bytes."""
SPANS = {"1m": timedelta(days=1), "1h": timedelta(days=7), "1d": timedelta(days=100)}
"""How much time one question asks for."""
_MINUTE = timedelta(minutes=1)
_RESTARTS = 2
_ABSENT = "cannot find metric"
"""What Google says of a metric that was never written in a project: unverified."""


@dataclass(frozen=True, slots=True)
class Series:
    """What Google tells of a series apart from its points."""

    asked: str
    """The project that was asked for it; its metrics scope may hold other projects."""
    metric: str
    labels: tuple[tuple[str, str], ...]
    resource: tuple[tuple[str, str], ...]

    def label(self, name: str) -> str:
        return dict(self.labels).get(name, "")

    def of(self, name: str) -> str:
        """A label of the resource."""
        return dict(self.resource).get(name, "")

    @property
    def identity(self) -> tuple[Any, ...]:
        """The same for the same series, whichever project's scope it was found in."""
        told = self.of("project_id") or self.of("resource_container")
        return (self.metric, self.labels, self.resource, None if told else self.asked)


@dataclass(frozen=True, slots=True)
class Point:
    series: Series
    start: datetime
    value: Any
    """A whole number, or a `google.api.Distribution`."""


def intervals(window: Window, now: datetime) -> Iterator[tuple[datetime, datetime, timedelta]]:
    """Start, end and period of each question. What lies in the future is not asked for."""
    width = timedelta(seconds=GRANULARITY_SECONDS[window.granularity])
    end = min(window.end, floor(now, "1m"))
    whole = min(window.end, floor(now, window.granularity))
    for start, stop in cut(window.start, whole, SPANS[window.granularity]):
        yield start, stop, width
    if max(whole, window.start) < end:
        yield max(whole, window.start), end, _MINUTE


def points(google: Google, project: str, metric: str, start: datetime, end: datetime, period: timedelta) -> list[Point] | None:
    """Every point of one metric in `[start, end)`; None where the project has no such metric."""
    question = {
        "name": f"projects/{project}",
        "filter": f'metric.type = "{PREFIX}{metric}" AND resource.type = "{RESOURCE}"',
        "interval": {"start_time": start, "end_time": end},
        "aggregation": {"alignment_period": period, "per_series_aligner": "ALIGN_SUM"},
        "view": "FULL",
        "page_size": PAGE_SIZE,
    }
    todo = (
        f"name the project by its id in the option projects, and give the login the role Monitoring Viewer "
        f"(roles/monitoring.viewer) on project {project}"
    )
    for restart in range(_RESTARTS + 1):
        try:
            return google.ask(f"reading {metric} of project {project}", lambda: _walk(google, project, metric, question), todo)
        except Refused as refusal:
            if refusal.status == 404 and _ABSENT in str(refusal).lower():
                return None
            # A page's token may run out; a question that is wrong itself is refused on its first page again.
            if refusal.status != 400 or "page" not in str(refusal).lower() or restart == _RESTARTS:
                raise
    raise AssertionError


def _walk(google: Google, project: str, metric: str, question: Mapping[str, Any]) -> list[Point]:
    """All pages of a question. Raises `DamagedPage` where they are not what was asked for."""
    found: list[Point] = []
    seen: set[tuple[Any, ...]] = set()
    tokens: set[str] = set()
    token = ""
    while True:
        page = google.time_series({**question, "page_token": token})
        if page.execution_errors:
            raise DamagedPage(f"it is incomplete: {page.execution_errors[0].message or 'execution errors'}")
        for one in page.time_series:
            series = _series(one, project, metric)
            for start, value in _values(one, metric, question):
                if (series, start) in seen:
                    raise DamagedPage(f"it holds the same point of {metric} at {start.isoformat()} twice")
                seen.add((series, start))
                found.append(Point(series, start, value))
        token = page.next_page_token
        if not token:
            return found
        if token in tokens:
            raise DamagedPage("its pages come round in a circle")
        tokens.add(token)


def _series(one: Any, project: str, metric: str) -> Series:
    if one.metric.type != PREFIX + metric or one.resource.type != RESOURCE:
        raise DamagedPage(f"it holds {one.metric.type!r} of {one.resource.type!r}, which was not asked for")
    return Series(project, metric, _labels(one.metric.labels), _labels(one.resource.labels))


def _labels(labels: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))


def _values(one: Any, metric: str, question: Mapping[str, Any]) -> Iterator[tuple[datetime, Any]]:
    """Start of the period and value, for each point."""
    start, end = question["interval"]["start_time"], question["interval"]["end_time"]
    period = question["aggregation"]["alignment_period"]
    for point in one.points:
        ended = point.interval.end_time.ToDatetime(tzinfo=UTC)
        if ended == start:
            # An older definition of the interval held its start, too: the point is of the period before.
            continue
        if not start < ended <= end or (ended - start) % period:
            raise DamagedPage(f"it holds a point at {ended.isoformat()}, which was not asked for in steps of {period}")
        yield ended - period, _value(point.value, metric)


def _value(value: Any, metric: str) -> Any:
    kind = value.WhichOneof("value")
    if kind == "distribution_value" and metric not in COUNTED:
        return value.distribution_value
    if metric in COUNTED and kind == "int64_value":
        return int(value.int64_value)
    if metric in COUNTED and kind == "double_value" and value.double_value.is_integer():
        return int(value.double_value)
    raise DamagedPage(f"a point of {metric} is a {kind}")


def distinct(found: Sequence[Point], owner: dict[tuple[Any, ...], str]) -> tuple[list[Point], set[str]]:
    """The points whose series no other project was asked for, and the projects in whose scope the others were found.

    `owner` says who had a series first, and is added to.
    """
    kept: list[Point] = []
    others: set[str] = set()
    for point in found:
        first = owner.setdefault(point.series.identity, point.series.asked)
        if first == point.series.asked:
            kept.append(point)
        else:
            others.add(first)
    return kept, others
