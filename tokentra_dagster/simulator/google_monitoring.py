"""Cloud Monitoring as google-cloud-monitoring asks it: ListTimeSeries of publisher models, by gRPC on a port of its own.

The access token in the header says whose projects they are: `google-token-acme` or `google-token-globex`. Like Google it stamps a point
with the end of its period, gives the newest first, tells no point of a period without usage, and answers at most so many points.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from tokentra_dagster.errors import TokenTraError
from tokentra_dagster.simulator.faults import TOLD, Fault
from tokentra_dagster.simulator.google_latencies import distribution
from tokentra_dagster.simulator.query import Ints
from tokentra_dagster.simulator.simulation import Simulation
from tokentra_dagster.simulator.truth import Table, minute_of, of_unit

SERVICE = "google.monitoring.v3.MetricService"
RESOURCE = "aiplatform.googleapis.com/PublisherModel"
PREFIX = "aiplatform.googleapis.com/publisher/online_serving/"
MOST_POINTS = 2_000
"""In one answer, however many are asked for; Google's own limit is 100,000."""
_FILTER = re.compile(r'^metric\.type = "([^"]+)" AND resource\.type = "([^"]+)"$')
_TOKENS = {
    "input": ("input", "TEXT"), "input_audio": ("input", "AUDIO"), "output": ("output", "TEXT"), "uncached": ("input", "TEXT"),
    "cache_read": ("cache_read_input", "TEXT"), "cache_5m": ("cache_write_input", "TEXT"), "cache_1h": ("cache_write_1h_input", "TEXT"),
}  # fmt: skip
_CODES = {"success": ("200", ""), "client_errors": ("429", "user_error"), "server_errors": ("500", "system_error")}
_CODE_OF = {
    "rate_limit": "RESOURCE_EXHAUSTED", "server_error": "INTERNAL", "unavailable": "UNAVAILABLE", "overloaded": "UNAVAILABLE",
    "revoked_key": "UNAUTHENTICATED", "forbidden": "PERMISSION_DENIED", "dropped": "UNAVAILABLE",
}  # fmt: skip


@dataclass(slots=True)
class _Refusal(Exception):
    code: str
    message: str


@dataclass(slots=True)
class _Series:
    labels: dict[str, str]
    resource: dict[str, str]
    counts: Ints
    """One for each period."""
    requests: Ints | None = field(default=None)
    """Of a distribution, whose `counts` are milliseconds in all."""


class GoogleMonitoring:
    """A gRPC server that answers from a simulation until it is stopped. Raises `TokenTraError` without the extra `google`."""

    def __init__(self, simulation: Simulation, host: str = "127.0.0.1", port: int = 0) -> None:
        try:
            import grpc
        except ModuleNotFoundError:
            raise TokenTraError("Simulating Google needs the extra google: pip install 'tokentra-usage[google]'.") from None
        self._simulation, self._grpc = simulation, grpc
        self._stopping = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(4, "google"), options=[("grpc.so_reuseport", 0)])
        handler = grpc.unary_unary_rpc_method_handler(self._list)  # bytes in, bytes out
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"ListTimeSeries": handler}),))
        try:
            self.port: int = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError:
            raise TokenTraError(f"The simulator cannot listen on {host}:{port} for Google; choose another port.") from None
        self.url = f"http://{host}:{self.port}"
        self._server.start()

    def stop(self) -> None:
        self._stopping.set()
        self._server.stop(0).wait(5)

    def _list(self, body: bytes, context: Any) -> bytes:
        from google.cloud.monitoring_v3.types import ListTimeSeriesRequest, ListTimeSeriesResponse

        asked = ListTimeSeriesRequest.pb(ListTimeSeriesRequest.deserialize(body))
        matched = _FILTER.match(asked.filter)
        metric = matched[1].removeprefix(PREFIX) if matched else ""
        path = f"ListTimeSeries {metric}"
        self._simulation.requests[f"google {path}"] += 1
        fault = self._simulation.faults.take("google", path, bool(asked.page_token))
        if fault and fault.kind == "timeout":
            self._wait(fault.seconds, context)
        answer = ListTimeSeriesResponse.pb(ListTimeSeriesResponse())
        try:
            if fault and fault.kind in _CODE_OF:
                raise _Refusal(_CODE_OF[fault.kind], TOLD)
            if fault and fault.kind == "invalid_page_token":
                raise _Refusal("INVALID_ARGUMENT", "The page token is not valid.")
            if matched is None or matched[2] != RESOURCE:
                raise _Refusal("INVALID_ARGUMENT", f"The filter {asked.filter!r} is not simulated.")
            self._fill(answer, asked, metric, dict(context.invocation_metadata()).get("authorization", ""))
        except _Refusal as refusal:
            self._abort(context, refusal, fault)
        _spoil(answer, fault, asked.page_token)
        content: bytes = answer.SerializeToString()
        # The field that is opened here and does not end makes the half unreadable wherever it is cut.
        return content[: len(content) // 2] + b"\x0b" if fault and fault.kind == "truncated_json" else content

    def _wait(self, seconds: float, context: Any) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and context.is_active() and not self._stopping.wait(0.02):
            pass

    def _abort(self, context: Any, refusal: _Refusal, fault: Fault | None) -> None:
        code = getattr(self._grpc.StatusCode, refusal.code)
        patience = fault.retry_after if fault else None
        if patience is None:
            context.abort(code, refusal.message)
            return
        from google.protobuf import any_pb2, duration_pb2  # type: ignore[import-untyped]
        from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
        from grpc_status import rpc_status

        delay = duration_pb2.Duration()
        delay.FromTimedelta(timedelta(seconds=patience))
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        status = status_pb2.Status(code=code.value[0], message=refusal.message, details=[detail])
        context.abort_with_status(rpc_status.to_status(status))

    def _fill(self, answer: Any, asked: Any, metric: str, authorization: str) -> None:
        org = self._simulation.organisation_of_key("google", authorization.removeprefix("Bearer "))
        if org is None or not authorization.startswith("Bearer "):
            raise _Refusal("UNAUTHENTICATED", "Request had invalid authentication credentials.")
        table = self._simulation.table(org, "google", "vertex")
        project = asked.name.removeprefix("projects/")
        rows = [row for row, stream in enumerate(table.streams) if stream.dimensions["project_id"] == project]
        if not rows:
            raise _Refusal(
                "PERMISSION_DENIED", f"Permission monitoring.timeSeries.list denied on {asked.name} (or it may not exist)."
            )
        start, end, period = _checked(asked)
        edges = [minute_of(start + period * n) for n in range(-((start - end) // period) + 1)]
        edges[-1] = minute_of(end)
        counts = self._simulation.counts(table, edges)
        found = list(_merged(_series(table, counts, rows, metric)))
        # Newest first, series by series.
        places = [(series, n) for series in found for n in reversed(np.flatnonzero(series.counts).tolist())]
        first = _offset(asked.page_token)
        most = min(asked.page_size or MOST_POINTS, MOST_POINTS)
        told: dict[int, Any] = {}
        for series, n in places[first : first + most]:
            one = told.get(id(series))
            if one is None:
                one = told[id(series)] = answer.time_series.add()
                one.metric.type, one.resource.type = PREFIX + metric, RESOURCE
                one.metric.labels.update(series.labels)
                one.resource.labels.update(series.resource)
            point = one.points.add()
            point.interval.start_time.FromDatetime(start + period * n)
            point.interval.end_time.FromDatetime(min(start + period * (n + 1), end))
            if series.requests is None:
                point.value.int64_value = int(series.counts[n])
            else:
                distribution(point.value.distribution_value, int(series.requests[n]), int(series.counts[n]), metric)
        if first + most < len(places):
            answer.next_page_token = str(first + most)


def _checked(asked: Any) -> tuple[datetime, datetime, timedelta]:
    start, end = (asked.interval.start_time.ToDatetime(tzinfo=UTC), asked.interval.end_time.ToDatetime(tzinfo=UTC))
    period = asked.aggregation.alignment_period.ToTimedelta()
    if (
        asked.aggregation.per_series_aligner != 14
        or period < timedelta(minutes=1)
        or period % timedelta(minutes=1)
        or start >= end
    ):
        raise _Refusal("INVALID_ARGUMENT", "Ask with ALIGN_SUM over whole minutes of an interval.")
    return start, end, period


def _offset(token: str) -> int:
    if token and not token.isdigit():
        raise _Refusal("INVALID_ARGUMENT", "The page token is not valid.")
    return int(token or 0)


# ---- Series ------------------------------------------------------------------------------------------------------------


def _series(table: Table, counts: Ints, rows: list[int], metric: str) -> Iterator[_Series]:
    for row in rows:
        of = table.streams[row].dimensions
        resource = {
            "resource_container": of["project_id"], "location": of["location"], "publisher": of["publisher"],
            "model_user_id": of["model_user_id"], "model_version_id": of.get("version", ""),
        }  # fmt: skip
        asked = counts[row]
        labels = {"request_type": of["request_type"], "explicit_caching": "false"}
        if metric == "token_count":
            for unit, (kind, modality) in _TOKENS.items():
                if unit in table.units:
                    told = {**labels, "type": kind, "modality": modality, "source": of["source"], "max_token_size": "<=200K"}
                    yield _Series(told, resource, of_unit(table, asked, unit))
        elif metric == "model_invocation_count":
            failed = of_unit(table, asked, "client_errors") + of_unit(table, asked, "server_errors")
            for unit, (code, category) in _CODES.items():
                number = asked[:, 0] - failed if unit == "success" else of_unit(table, asked, unit)
                told = {**labels, "response_code": code, "error_category": category, "method": "GenerateContent"}
                yield _Series(told, resource, number)
        elif metric in ("model_invocation_latencies", "first_token_latencies"):
            unit = "latency_ms" if metric == "model_invocation_latencies" else "first_token_ms"
            kinds = {"latency_type": "total"} if metric == "model_invocation_latencies" else {}
            yield _Series({**labels, **kinds}, resource, of_unit(table, asked, unit), asked[:, 0])


def _merged(series: Iterator[_Series]) -> Iterator[_Series]:
    """One series for each set of labels; what was never used is none."""
    found: dict[str, _Series] = {}
    for one in series:
        known = found.setdefault(repr((one.labels, one.resource)), one)
        if known is not one:
            known.counts = known.counts + one.counts
            known.requests = None if known.requests is None or one.requests is None else known.requests + one.requests
    yield from (one for one in found.values() if np.any(one.counts))


# ---- Faults ------------------------------------------------------------------------------------------------------------


def _spoil(answer: Any, fault: Fault | None, token: str) -> None:
    """`bad_record`: the first count becomes negative; `unknown_result`: the first series is of a type that nobody knows."""
    kind = fault.kind if fault else ""
    if kind == "repeated_page_token":
        answer.next_page_token = token
    elif kind == "empty_buckets":
        del answer.time_series[:]
    elif answer.time_series and kind == "unknown_result":
        answer.time_series[0].metric.labels["type"] = "telepathy"
    elif answer.time_series and kind == "bad_record":
        value = answer.time_series[0].points[0].value
        if value.HasField("distribution_value"):
            value.distribution_value.count += 1
        else:
            value.int64_value = -5
