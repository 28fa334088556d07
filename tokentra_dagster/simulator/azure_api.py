"""Azure as azure-monitor-querymetrics and Azure Resource Manager's lists ask it: accounts, deployments, metrics.

The bearer token says whose subscription it is: `azure-token-acme` or `azure-token-globex`. Like Azure it answers ten series where a
filter splits and `top` is not given, knows both families of metrics, and gives points without a value where nothing was counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from starlette.requests import Request

from tokentra_dagster.simulator.json_api import JsonApi
from tokentra_dagster.simulator.organisation import Organisation
from tokentra_dagster.simulator.query import Ints, Refusal
from tokentra_dagster.simulator.simulation import Simulation
from tokentra_dagster.simulator.truth import Table, minute_of, of_unit

NAMESPACE = "Microsoft.CognitiveServices/accounts"
PAGE_SIZE = 2
"""Accounts or deployments in one page of a list."""
_TOP = 10
_MOST_RESOURCES = 50
_INTERVALS = {"PT1M": timedelta(minutes=1), "PT1H": timedelta(hours=1), "P1D": timedelta(days=1)}
_LONGEST = timedelta(days=30)
_TERM = re.compile(r"^(\w+) eq '([^']*)'$")
_MODEL_DIMENSIONS = ("region", "modeldeploymentname", "modelname", "modelversion")
_OLD_DIMENSIONS = ("region", "modeldeploymentname", "featurename", "modelversion")
_REQUESTS = ("success", "client_errors", "server_errors")
_CODES = {"success": "200", "client_errors": "429", "server_errors": "500"}
METRICS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ModelRequests": (_REQUESTS, (*_MODEL_DIMENSIONS, "statuscode")),
    "InputTokens": (("input", "uncached"), _MODEL_DIMENSIONS),
    "OutputTokens": (("output",), _MODEL_DIMENSIONS),
    "cacheReadInputTokens": (("cache_read",), _MODEL_DIMENSIONS),
    "ephemeral5mInputTokens": (("cache_5m",), _MODEL_DIMENSIONS),
    "ephemeral1hInputTokens": (("cache_1h",), _MODEL_DIMENSIONS),
    "GeneratedImages": ((), _MODEL_DIMENSIONS),
    "AudioInputTokens": ((), _MODEL_DIMENSIONS),
    "AudioOutputTokens": ((), _MODEL_DIMENSIONS),
    "TimeToLastByte": (("latency_ms",), _MODEL_DIMENSIONS),
    "AzureOpenAIRequests": (_REQUESTS, (*_MODEL_DIMENSIONS, "statuscode")),
    "ProcessedPromptTokens": (("input",), _OLD_DIMENSIONS),
    "GeneratedTokens": (("output",), _OLD_DIMENSIONS),
    "AudioPromptTokens": ((), _MODEL_DIMENSIONS),
    "AudioCompletionTokens": ((), _MODEL_DIMENSIONS),
    "AzureOpenAITTLTInMS": (("latency_ms",), _MODEL_DIMENSIONS),
}
"""Metric -> the units it sums, and the dimensions it can be split by."""
_OPENAI_ONLY = frozenset(("AzureOpenAIRequests", "ProcessedPromptTokens", "GeneratedTokens", "AzureOpenAITTLTInMS"))
_SHAPE = {"minimum": 300, "average": 1000, "maximum": 4000}
"""Thousandths of the average latency of a bucket."""


class AzureApi(JsonApi):
    """An ASGI application at `prefix`."""

    provider, token = "azure", "$skiptoken"

    def _counted(self, path: str) -> str:
        return path.rpartition("/")[2]

    def _fault_code(self, status: int) -> str:
        return "Simulated"

    def _error(self, refusal: Refusal) -> dict[str, Any]:
        return {"error": {"code": refusal.code or "BadRequest", "message": refusal.message}}

    def _spoil(self, answer: dict[str, Any], kind: str, token: str | None) -> None:
        """`bad_record`: the first count of an answer becomes negative."""
        points = (
            point
            for resource in answer.get("values", [])
            for metric in resource["value"]
            for series in metric["timeseries"]
            for point in series["data"]
            if "total" in point
        )
        if kind == "bad_record" and (first := next(points, None)):
            first["total"] = -5.0

    def _answer(self, request: Request, path: str, body: bytes) -> dict[str, Any]:
        query = dict(request.query_params)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        org = self._simulation.organisation_of_key("azure", token) if scheme == "Bearer" else None
        if org is None:
            raise Refusal(401, "The access token is invalid.", code="InvalidAuthenticationToken")
        table = self._simulation.table(org, "azure", "models")
        if path.split("/")[2:3] != [table.streams[0].dimensions["subscription"]]:
            raise Refusal(403, "The client does not have authorization over this subscription.", code="AuthorizationFailed")
        if path.endswith("/metrics:getBatch"):
            return _metrics(self._simulation, org, table, query, [str(one) for one in json.loads(body)["resourceids"]])
        url = str(request.url.replace(query=""))
        if path.endswith(f"/providers/{NAMESPACE}"):
            return _page(list(_accounts(table)), query, url)
        if path.endswith("/deployments"):
            return _page(list(_deployments(table, path.removesuffix("/deployments"))), query, url)
        raise Refusal(404, f"{path} is not simulated.", code="ResourceNotFound")


def account_id(dimensions: Mapping[str, Any]) -> str:
    return f"/subscriptions/{dimensions['subscription']}/resourceGroups/ai/providers/{NAMESPACE}/{dimensions['account']}"


def _accounts(table: Table) -> Iterator[dict[str, Any]]:
    found = {account_id(stream.dimensions): stream.dimensions for stream in table.streams}
    for identifier, dimensions in found.items():
        yield {"id": identifier, "name": dimensions["account"], "location": dimensions["region"], "kind": "AIServices"}
        yield {
            "id": f"{identifier}-speech",
            "name": f"{dimensions['account']}-speech",
            "location": "eastus2",
            "kind": "SpeechServices",
        }


def _deployments(table: Table, account: str) -> Iterator[dict[str, Any]]:
    found = {
        stream.dimensions["deployment"]: stream.dimensions for stream in table.streams if account_id(stream.dimensions) == account
    }
    for name, dimensions in found.items():
        maker = "Anthropic" if str(dimensions["model"]).startswith("claude") else "OpenAI"
        model = {"format": maker, "name": dimensions["model"], "version": dimensions["version"]}
        yield {
            "id": f"{account}/deployments/{name}",
            "name": name,
            "sku": {"name": dimensions["type"], "capacity": 100},
            "properties": {"model": model, "provisioningState": "Succeeded"},
        }


def _page(items: list[dict[str, Any]], query: Mapping[str, str], url: str) -> dict[str, Any]:
    first = int(query.get("$skiptoken", "0"))
    more = {"nextLink": f"{url}?api-version={query.get('api-version', '')}&$skiptoken={first + PAGE_SIZE}"}
    return {"value": items[first : first + PAGE_SIZE], **(more if first + PAGE_SIZE < len(items) else {})}


# ---- Metrics ---------------------------------------------------------------------------------------------------------


def _metrics(
    simulation: Simulation, org: Organisation, table: Table, query: Mapping[str, str], resources: list[str]
) -> dict[str, Any]:
    interval = _INTERVALS.get(query.get("interval", "PT1M"))
    names = query.get("metricnames", "").split(",")
    start, end = (datetime.fromisoformat(query[name]).astimezone(UTC) for name in ("starttime", "endtime"))
    if interval is None or not names or any(name not in METRICS for name in names) or query.get("metricnamespace") != NAMESPACE:
        raise Refusal(400, f"interval {query.get('interval')!r} or metrics {names} are not supported.", code="BadRequest")
    if len(resources) > _MOST_RESOURCES or end - start > _LONGEST:
        raise Refusal(400, "At most 50 resources and 30 days are allowed.", code="BadRequest")
    split = _split(query.get("filter"), names)
    top = int(query["top"]) if "top" in query else _TOP
    statistics = [one.lower() for one in query.get("aggregation", "Total").split(",")]
    steps = -((start - end) // interval)
    counts = simulation.counts(table, [minute_of(start + interval * n) for n in range(steps + 1)])
    moments = [f"{start + interval * n:%Y-%m-%dT%H:%M:%SZ}" for n in range(steps)]
    values = []
    for resource in resources:
        rows = [row for row, stream in enumerate(table.streams) if account_id(stream.dimensions).lower() == resource.lower()]
        if not rows:
            raise Refusal(404, f"The resource {resource} was not found.", code="ResourceNotFound")
        values.append(
            {
                "starttime": query["starttime"],
                "endtime": query["endtime"],
                "interval": query.get("interval", "PT1M"),
                "namespace": NAMESPACE,
                "resourceregion": table.streams[rows[0]].dimensions["region"],
                "resourceid": resource,
                "value": [_metric(table, counts, rows, name, split, statistics, moments, top, resource) for name in names],
            }
        )
    return {"values": values}


def _split(text: str | None, names: list[str]) -> dict[str, str]:
    """Dimension in lower case -> its one value, or `*`."""
    if not text:
        return {}
    terms = [_TERM.match(term.strip()) for term in text.split(" and ")]
    found = {term[1].lower(): term[2] for term in terms if term}
    for name in names:
        unknown = set(found) - set(METRICS[name][1])
        if unknown or len(found) != len(terms):
            raise Refusal(400, f"Metric {name} does not support the filter {text!r}.", code="BadRequest")
    return found


def _metric(
    table: Table, counts: Ints, rows: list[int], name: str, split: Mapping[str, str], statistics: list[str], moments: list[str],
    top: int, resource: str,
) -> dict[str, Any]:  # fmt: skip
    units, _ = METRICS[name]
    series: dict[tuple[str, ...], Any] = {}
    requests: dict[tuple[str, ...], Any] = {}
    for row in rows:
        if name in _OPENAI_ONLY and str(table.streams[row].dimensions["model"]).startswith("claude"):
            continue
        for unit in units:
            of = _dimensions(table, row, unit)
            if any(wanted not in ("*", of[dimension]) for dimension, wanted in split.items()):
                continue
            key = tuple(of[dimension] for dimension in split)
            series[key] = series.get(key, 0) + _unit(table, counts[row], unit)
            requests[key] = requests.get(key, 0) + counts[row][:, 0]
    living = [(key, value) for key, value in series.items() if np.any(value)]
    return {
        "id": f"{resource}/providers/Microsoft.Insights/metrics/{name}",
        "type": "Microsoft.Insights/metrics",
        "name": {"value": name, "localizedValue": name},
        "unit": "MilliSeconds" if units == ("latency_ms",) else "Count",
        "errorCode": "Success",
        "timeseries": [
            {
                "metadatavalues": [
                    {"name": {"value": dimension, "localizedValue": dimension}, "value": part}
                    for dimension, part in zip(split, key, strict=True)
                ],
                "data": [
                    {"timeStamp": at} | _values(int(value[n]), int(requests[key][n]), statistics) for n, at in enumerate(moments)
                ],
            }
            for key, value in (living[:top] if split else living)
        ],
    }


def _values(value: int, requests: int, statistics: list[str]) -> dict[str, float]:
    if not value:
        return {}
    average = value / max(requests, 1)
    return {one: float(value) if one == "total" else average * _SHAPE[one] / 1000 for one in statistics}


def _dimensions(table: Table, row: int, unit: str) -> dict[str, str]:
    of = table.streams[row].dimensions
    return {
        "region": of["region"], "modeldeploymentname": of["deployment"], "modelname": of["model"], "featurename": of["model"],
        "modelversion": of["version"], "statuscode": _CODES.get(unit, ""),
    }  # fmt: skip


def _unit(table: Table, of_row: Ints, unit: str) -> Ints:
    if unit == "success":
        return of_row[:, 0] - of_unit(table, of_row, "client_errors") - of_unit(table, of_row, "server_errors")
    return of_unit(table, of_row, unit)
