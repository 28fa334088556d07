"""A scripted Cloud Monitoring: a real gRPC server on loopback that gives the points a test puts, to the real SDK."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from google.api import distribution_pb2
from google.cloud.monitoring_v3.types import ListTimeSeriesRequest, ListTimeSeriesResponse
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

PREFIX = "aiplatform.googleapis.com/publisher/online_serving/"
RESOURCE = "aiplatform.googleapis.com/PublisherModel"
GEMINI = {"model_user_id": "gemini-2.5-flash", "publisher": "google", "location": "global", "model_version_id": ""}
CLAUDE = {"model_user_id": "claude-sonnet-4-5", "publisher": "anthropic", "location": "us-east5", "model_version_id": "20250929"}


class GoogleServer:
    """`put` adds a value to a series at a moment; whole numbers in one period are summed, a distribution is given as it is."""

    def __init__(self, certificate: tuple[bytes, bytes] | None = None) -> None:
        """`certificate`: key and chain in PEM, for TLS."""
        self.points: list[tuple[str, str, dict[str, str], dict[str, str], datetime, Any]] = []
        self.page_size = 1000
        self.failures: list[tuple[grpc.StatusCode, str, float | None]] = []
        self.change: Callable[[Any, Any], None] | None = None
        self.asked: list[Any] = []
        self.tokens: list[str] = []
        self._grpc = grpc.server(ThreadPoolExecutor(2))
        method = grpc.unary_unary_rpc_method_handler(
            self._list,
            request_deserializer=ListTimeSeriesRequest.deserialize,
            response_serializer=ListTimeSeriesResponse.serialize,
        )
        service = grpc.method_handlers_generic_handler("google.monitoring.v3.MetricService", {"ListTimeSeries": method})
        self._grpc.add_generic_rpc_handlers((service,))
        at = "127.0.0.1:0"
        port = (
            self._grpc.add_secure_port(at, grpc.ssl_server_credentials([certificate]))
            if certificate
            else self._grpc.add_insecure_port(at)
        )
        self.address = f"127.0.0.1:{port}"
        self.url = f"http://{self.address}"
        self._grpc.start()

    def stop(self) -> None:
        self._grpc.stop(0).wait(5)

    def put(
        self, metric: str, at: datetime, value: Any, resource: dict[str, str] = GEMINI, project: str = "acme", asked: str = "",
        **labels: str,
    ) -> None:  # fmt: skip
        told = {"resource_container": project, **resource} if project else dict(resource)
        self.points.append((asked or project or "acme", metric, {"request_type": "shared"} | labels, told, at, value))

    def _list(self, request: Any, context: Any) -> Any:
        asked = ListTimeSeriesRequest.pb(request)
        self.asked.append(asked)
        self.tokens.append(dict(context.invocation_metadata()).get("authorization", ""))
        if self.failures:
            code, message, wait = self.failures.pop(0)
            if wait is None:
                context.abort(code, message)
            delay = duration_pb2.Duration()
            delay.FromTimedelta(timedelta(seconds=wait or 0))
            detail = any_pb2.Any()
            detail.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
            status = status_pb2.Status(code=code.value[0], message=message, details=[detail])
            context.abort_with_status(rpc_status.to_status(status))
        response = ListTimeSeriesResponse()
        self._fill(ListTimeSeriesResponse.pb(response), asked)
        if self.change:
            self.change(asked, ListTimeSeriesResponse.pb(response))
        return response

    def _fill(self, answer: Any, asked: Any) -> None:
        start = asked.interval.start_time.ToDatetime(tzinfo=UTC)
        end = asked.interval.end_time.ToDatetime(tzinfo=UTC)
        period = asked.aggregation.alignment_period.ToTimedelta()
        found: dict[str, tuple[dict[str, str], dict[str, str], dict[datetime, Any]]] = {}
        for project, metric, labels, resource, at, value in self.points:
            if asked.name == f"projects/{project}" and PREFIX + metric in asked.filter and start <= at < end:
                # The end of the period that holds the moment; periods are counted back from the interval's end.
                stamp = end - (end - at - timedelta(microseconds=1)) // period * period
                points = found.setdefault(repr((labels, resource)), (labels, resource, {}))[2]
                points[stamp] = value if not isinstance(value, int) else points.get(stamp, 0) + value
        flat = [(key, stamp) for key, (_, _, points) in found.items() for stamp in sorted(points, reverse=True)]
        first, current = int(asked.page_token or 0), None
        for key, stamp in flat[first : first + self.page_size]:
            labels, resource, points = found[key]
            if key != current:
                current = key
                one = answer.time_series.add()
                one.metric.type, one.resource.type = asked.filter.split('"')[1], RESOURCE
                one.metric.labels.update(labels)
                one.resource.labels.update(resource)
            point = answer.time_series[-1].points.add()
            point.interval.end_time.FromDatetime(stamp)
            value = points[stamp]
            if isinstance(value, int):
                point.value.int64_value = value
            else:
                point.value.distribution_value.CopyFrom(value)
        if first + self.page_size < len(flat):
            answer.next_page_token = str(first + self.page_size)


def distribution(kind: str, counts: list[int], mean: float, count: int | None = None, limits: Any = None, **options: Any) -> Any:
    """A `google.api.Distribution` with `linear`, `exponential` or `explicit` buckets."""
    told = distribution_pb2.Distribution(count=sum(counts) if count is None else count, mean=mean, bucket_counts=counts)
    if kind:
        of = getattr(told.bucket_options, f"{kind}_buckets")
        for name, value in options.items():
            if isinstance(value, list):
                getattr(of, name).extend(value)
            else:
                setattr(of, name, value)
        of.SetInParent()
    if limits:
        told.range.min, told.range.max = limits
    return told


@contextmanager
def running(certificate: tuple[bytes, bytes] | None = None) -> Iterator[GoogleServer]:
    server = GoogleServer(certificate)
    try:
        yield server
    finally:
        server.stop()
