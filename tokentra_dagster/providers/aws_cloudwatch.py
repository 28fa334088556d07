"""Reading CloudWatch: which series there are, and their points, each once and all of them.

`GetMetricData` answers up to 500 queries and 100,800 points a call, in pages, each result with a status of its own: `PartialData`
goes on in the next page, and where none follows, or a result says `InternalError`, the call is made again; a series that stays
incomplete is an error, never a result with a part missing. A point belongs to the period that starts at its time stamp.

https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/API_GetMetricData.html
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.providers.aws_client import Aws
from tokentra_dagster.providers.failures import DamagedPage, Refused

MOST_QUERIES = 500
MOST_POINTS = 100_800
_TRIES = 3
_ACTIONS = "cloudwatch:ListMetrics and cloudwatch:GetMetricData"
_TODO = f"the key may not read CloudWatch, allow it {_ACTIONS}"

Points = dict[datetime, float]


@dataclass(frozen=True, slots=True)
class Query:
    """One statistic of one metric under exactly these dimensions."""

    namespace: str
    metric: str
    dimensions: tuple[tuple[str, str], ...]
    statistic: str


def series(aws: Aws, region: str, namespace: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Every metric of the namespace with its dimensions: what reported in about the last two weeks."""
    client = aws.client("cloudwatch", region)
    token: str | None = None
    used: set[str] = set()
    while True:
        more = {"NextToken": token} if token else {}
        page = aws.ask(
            f"ListMetrics in {region}",
            lambda more=more: whole(client.list_metrics(Namespace=namespace, **more), "Metrics"),  # type: ignore[misc]
            _TODO,
        )
        for metric in page["Metrics"]:
            yield metric["MetricName"], {d["Name"]: d["Value"] for d in metric.get("Dimensions", [])}
        token = page.get("NextToken")
        if not token:
            return
        if token in used:
            raise TransientError(f"{aws.integration}: ListMetrics in {region} keeps repeating the same page; try again later")
        used.add(token)


def whole(page: dict[str, Any], name: str) -> dict[str, Any]:
    """The page, if it has the list it is for: botocore reads one that is cut off as an empty answer. Raises `DamagedPage`."""
    if not isinstance(page.get(name), list):
        raise DamagedPage(f"it has no list {name}")
    return page


def points(aws: Aws, region: str, queries: Sequence[Query], start: datetime, end: datetime, period: int) -> list[Points]:
    """The points of each query in `[start, end)`. At most `MOST_QUERIES` queries and `MOST_POINTS` points."""
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(0.25 * 2**attempt)
        found, incomplete = _walk(aws, region, queries, start, end, period)
        if not incomplete:
            return found
    raise TransientError(
        f"{aws.integration}: GetMetricData in {region} gave {incomplete} {_TRIES} times for {start:%Y-%m-%d %H:%M} to "
        f"{end:%Y-%m-%d %H:%M} UTC; nothing of it was used, try again later"
    )


def _walk(
    aws: Aws, region: str, queries: Sequence[Query], start: datetime, end: datetime, period: int
) -> tuple[list[Points], str]:
    """All pages of one call: the points, and why they are not complete, or ""."""
    client = aws.client("cloudwatch", region)
    asked = [
        {"Id": f"q{number}", "MetricStat": _metric_stat(query, period), "ReturnData": True}
        for number, query in enumerate(queries)
    ]
    found: list[Points] = [{} for _ in queries]
    status: dict[int, str] = {}
    token: str | None = None
    used: set[str] = set()
    while True:
        more = {"NextToken": token} if token else {}

        def fetch(more: dict[str, str] = more) -> Any:
            page = whole(
                client.get_metric_data(
                    MetricDataQueries=asked,
                    StartTime=start,
                    EndTime=end,
                    ScanBy="TimestampAscending",
                    MaxDatapoints=MOST_POINTS,
                    **more,
                ),
                "MetricDataResults",
            )
            for result in page["MetricDataResults"]:
                if not result["Id"][1:].isdigit() or int(result["Id"][1:]) >= len(asked):
                    raise DamagedPage(f"it holds a result {result['Id']!r} that was not asked for")
                if len(result.get("Timestamps", [])) != len(result.get("Values", [])):
                    raise DamagedPage("a result has not as many values as time stamps")
            return page

        try:
            page = aws.ask(f"GetMetricData in {region}", fetch, _TODO)
        except Refused as refusal:
            if token is None or refusal.status != 400:
                raise
            return found, "a page token that it then refused"
        for result in page["MetricDataResults"]:
            number = int(result["Id"][1:])
            status[number] = result.get("StatusCode", "Complete")
            for moment, value in zip(result.get("Timestamps", []), result.get("Values", []), strict=True):
                at = moment.astimezone(UTC)
                if start <= at < end:
                    found[number][at] = value
        token = page.get("NextToken")
        if not token:
            break
        if token in used:
            return found, "the same page over and over"
        used.add(token)
    if "Forbidden" in status.values():
        raise PermanentError(f"{aws.integration}: GetMetricData in {region} answered Forbidden; {_TODO}")
    unfinished = sorted({status.get(number, "missing") for number in range(len(queries))} - {"Complete"})
    return found, f"results that are not complete ({', '.join(unfinished)})" if unfinished else ""


def _metric_stat(query: Query, period: int) -> dict[str, Any]:
    return {
        "Metric": {
            "Namespace": query.namespace,
            "MetricName": query.metric,
            "Dimensions": [{"Name": name, "Value": value} for name, value in query.dimensions],
        },
        "Period": period,
        "Stat": query.statistic,
    }


def spans(start: datetime, end: datetime, period: int, queries: int) -> Iterator[tuple[datetime, datetime]]:
    """`[start, end)` cut so that a call with so many queries stays under `MOST_POINTS`."""
    step = timedelta(seconds=period * max(MOST_POINTS // max(queries, 1), 1))
    while start < end:
        stop = min(start + step, end)
        yield start, stop
        start = stop
