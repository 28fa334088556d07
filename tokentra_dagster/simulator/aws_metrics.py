"""The simulated CloudWatch and Bedrock lists: what `boto3` asks of them in AWS's JSON protocol.

The usage of a model is published at two levels of dimensions, by `ModelId` and without any, as AWS does: a client that adds them
up counts twice. Pages hold `PAGE_POINTS` points; a result that goes on in the next page says `PartialData`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from tokentra_dagster.simulator.organisation import Organisation
from tokentra_dagster.simulator.query import Ints, Refusal
from tokentra_dagster.simulator.simulation import Simulation
from tokentra_dagster.simulator.truth import Table, minute_of

NAMESPACE = "AWS/Bedrock"
PAGE_POINTS = 2_000
UNITS = {
    "InputTokenCount": "uncached", "OutputTokenCount": "output", "CacheReadInputTokens": "cache_read",
    "CacheWriteInputTokens": "cache_write", "InvocationClientErrors": "client_errors", "InvocationServerErrors": "server_errors",
    "InvocationThrottles": "throttles", "InvocationLatency": "latency_ms",
}  # fmt: skip
_SHAPE = {"Minimum": 300, "p50": 850, "p95": 2100, "p99": 3200, "Maximum": 4000}
"""Thousandths of the average latency of a bucket."""
_LISTED = timedelta(days=14)


def bedrock(simulation: Simulation, org: Organisation) -> Table:
    return simulation.table(org, "aws", "bedrock")


def answer(simulation: Simulation, org: Organisation, region: str, action: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    if action == "ListMetrics":
        return _list_metrics(simulation, org, region, parameters)
    if action == "GetMetricData":
        return _get_metric_data(simulation, org, region, parameters)
    raise Refusal(400, f"The action {action} is not simulated.", code="InvalidAction")


def profiles(simulation: Simulation, org: Organisation, region: str, kind: str) -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {}
    for stream in bedrock(simulation, org).streams:
        identifier = stream.dimensions["profile_id"] if kind == "APPLICATION" else None
        if identifier and stream.dimensions["region"] == region:
            model = str(stream.dimensions["model"])
            base = model.partition(".")[2] if model.split(".")[0] in ("us", "eu", "global") else model
            found[identifier] = {
                "inferenceProfileId": identifier,
                "inferenceProfileName": stream.project,
                "inferenceProfileArn": stream.dimensions["log_id"],
                "models": [{"modelArn": f"arn:aws:bedrock:{region}::foundation-model/{base}"}],
                "status": "ACTIVE",
                "type": "APPLICATION",
            }
    return {"inferenceProfileSummaries": list(found.values())}


def models(simulation: Simulation, org: Organisation) -> dict[str, Any]:
    names = sorted({str(stream.dimensions["model"]) for stream in bedrock(simulation, org).streams})
    return {"modelSummaries": [{"modelId": name, "modelArn": f"arn:aws:bedrock:::foundation-model/{name}"} for name in names]}


def _list_metrics(simulation: Simulation, org: Organisation, region: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    metrics: list[dict[str, Any]] = []
    if parameters.get("Namespace") == NAMESPACE:
        now = simulation.clock()
        table = bedrock(simulation, org)
        recent = simulation.counts(table, (minute_of(now - _LISTED), minute_of(now)))[:, 0, :]
        for identifier, rows in _of_region(table, region):
            sums = recent[rows].sum(axis=0)
            names = [name for name, unit in UNITS.items() if unit in table.units and sums[1 + table.units.index(unit)]]
            for dimensions in ([{"Name": "ModelId", "Value": identifier}], []):
                metrics += [
                    {"Namespace": NAMESPACE, "MetricName": name, "Dimensions": dimensions}
                    for name in ([*names, "Invocations"] if sums[0] else [])
                ]
    return {"Metrics": metrics}


def _get_metric_data(simulation: Simulation, org: Organisation, region: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    queries = parameters["MetricDataQueries"]
    if not 1 <= len(queries) <= 500:
        raise Refusal(400, "MetricDataQueries must hold 1 to 500 queries.", code="ValidationError")
    start, end = (datetime.fromtimestamp(parameters[name], UTC) for name in ("StartTime", "EndTime"))
    table = bedrock(simulation, org)
    rows = dict(_of_region(table, region))
    points: list[tuple[int, datetime, float]] = []
    counted: dict[int, Ints] = {}
    for number, query in enumerate(queries):
        stat = query["MetricStat"]
        width = timedelta(seconds=stat["Period"])
        periods = -((start - end) // width)
        if stat["Period"] not in counted:
            edges = [minute_of(start + width * n) for n in range(periods + 1)]
            counted[stat["Period"]] = simulation.counts(table, edges)
        values = _values(table, counted[stat["Period"]], stat, rows)
        points += [(number, start + width * int(n), float(values[n])) for n in np.flatnonzero(values)]
    first = _position(parameters.get("NextToken"), len(points))
    page, rest = points[first : first + PAGE_POINTS], {number for number, _, _ in points[first + PAGE_POINTS :]}
    results = []
    for number, query in enumerate(queries):
        mine = [(at, value) for asked, at, value in page if asked == number] if page else []
        if mine or first == 0:
            results.append(
                {
                    "Id": query["Id"],
                    "Label": query["Id"],
                    "Timestamps": [at.timestamp() for at, _ in mine],
                    "Values": [value for _, value in mine],
                    "StatusCode": "PartialData" if number in rest else "Complete",
                }
            )
    more = {"NextToken": f"{first + PAGE_POINTS}"} if rest else {}
    return {"MetricDataResults": results, "Messages": [], **more}


def _values(table: Table, counted: Ints, stat: Mapping[str, Any], rows: Mapping[str, Ints]) -> Any:
    """The points of one query, 0 where there is none."""
    metric = stat["Metric"]
    dimensions = {one["Name"]: one["Value"] for one in metric.get("Dimensions", [])}
    nothing = np.zeros(counted.shape[1])
    if metric["Namespace"] != NAMESPACE or set(dimensions) - {"ModelId"}:
        return nothing
    selected = rows.get(dimensions["ModelId"]) if dimensions else np.concatenate(list(rows.values())) if rows else None
    unit = UNITS.get(metric["MetricName"])
    if selected is None or (unit is None and metric["MetricName"] != "Invocations") or (unit and unit not in table.units):
        return nothing
    summed = counted[selected].sum(axis=0)
    values = summed[:, 0 if unit is None else 1 + table.units.index(unit)]
    if stat["Stat"] == "Sum":
        return values
    return np.where(summed[:, 0] > 0, values * _SHAPE.get(stat["Stat"], 1000) // np.maximum(summed[:, 0], 1) / 1000, 0)


def _of_region(table: Table, region: str) -> Iterator[tuple[str, Ints]]:
    """The value of `ModelId`, and its streams."""
    groups: dict[str, list[int]] = {}
    for row, stream in enumerate(table.streams):
        if stream.dimensions["region"] == region:
            groups.setdefault(str(stream.dimensions["metric_id"]), []).append(row)
    for identifier, rows in groups.items():
        yield identifier, np.array(rows, dtype=np.int64)


def _position(token: str | None, points: int) -> int:
    if token is None:
        return 0
    if not token.isdigit() or not 0 < int(token) < points:
        raise Refusal(400, "The value for parameter NextToken is invalid.", code="InvalidNextToken")
    return int(token)
