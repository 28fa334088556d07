"""A local CloudWatch, Bedrock and S3 that boto3 talks to: it holds samples and objects, answers in pages, and fails as it is told to.

moto's CloudWatch knows no percentiles, no pages of points and no status of a result; this one speaks the same JSON protocol.
"""

from __future__ import annotations

import gzip
import json
import threading
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape

Dimensions = dict[str, str]


@dataclass
class Fault:
    """What the next requests whose target ends with `target` get; the later `times` run out."""

    target: str
    kind: str
    times: int = 1
    skip: int = 0
    headers: dict[str, str] = field(default_factory=dict)


class AwsServer:
    """`put` adds one sample; `requests` are the targets that were asked for, with their parameters."""

    def __init__(self) -> None:
        self.samples: dict[tuple[str, str, tuple[tuple[str, str], ...]], list[tuple[datetime, float]]] = defaultdict(list)
        self.listed_since: datetime | None = None
        self.page_points = 100_800
        self.page_metrics = 500
        self.page_objects = 1000
        self.objects: dict[str, bytes] = {}
        self.models: list[str] | None = []
        self.profiles: list[dict[str, Any]] = []
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[dict[str, str]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                server._serve(self, body)

            do_GET = do_POST

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=lambda: self._server.serve_forever(poll_interval=0.02), daemon=True).start()

    def put(self, metric: str, dimensions: Dimensions, at: datetime, *values: float, namespace: str = "AWS/Bedrock") -> None:
        self.samples[namespace, metric, tuple(sorted(dimensions.items()))] += [(at, value) for value in values]

    def fail(self, target: str, kind: str, times: int = 1, skip: int = 0, **headers: str) -> None:
        self.faults.append(Fault(target, kind, times, skip, {name.replace("_", "-"): value for name, value in headers.items()}))

    def asked(self, target: str) -> list[dict[str, Any]]:
        return [parameters for name, parameters in self.requests if name == target]

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    # ---- Answers -----------------------------------------------------------------------------------------------------

    def _serve(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        path, _, query = handler.path.partition("?")
        target = (handler.headers.get("x-amz-target") or "").rpartition(".")[2]
        rest = path in ("/inference-profiles", "/foundation-models")
        parameters = json.loads(body) if target else {"path": unquote(path), "query": query + body.decode()}
        if rest:
            target = "ListInferenceProfiles" if path == "/inference-profiles" else "ListFoundationModels"
        elif not target:
            target = "AssumeRole" if path == "/" else "ListObjectsV2" if "list-type=2" in query else "GetObject"
        self.requests.append((target, parameters))
        self.headers.append({name.lower(): value for name, value in handler.headers.items()})
        fault = self._fault(target)
        status, headers = 200, {}
        if fault and fault.kind.isdigit():
            status, headers = int(fault.kind), fault.headers
            code = {400: "ValidationError", 403: "AccessDenied", 429: "ThrottlingException"}.get(status, "InternalServiceFault")
            code = fault.headers.get("code", code)
            answer: Any = {"__type": code, "message": f"{code} on purpose"}
            headers = {"x-amzn-errortype": code, **headers}
        elif target in ("AssumeRole", "ListObjectsV2", "GetObject"):
            status, content = (200, _ASSUMED.encode()) if target == "AssumeRole" else getattr(self, f"_{target}")(parameters)
            if fault and fault.kind == "truncated":
                content = content[: len(content) // 2]
            self._send(handler, status, content, {}, "text/xml")
            return
        else:
            answer = getattr(self, f"_{target}")(parameters)
            if fault:
                answer = _spoiled(fault.kind, answer)
        text = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self._send(handler, status, text, headers, "application/json" if rest else "application/x-amz-json-1.0")

    def _send(self, handler: BaseHTTPRequestHandler, status: int, text: bytes, headers: dict[str, str], kind: str) -> None:
        handler.send_response(status)
        handler.send_header("content-type", kind)
        handler.send_header("content-length", str(len(text)))
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(text)

    def _fault(self, target: str) -> Fault | None:
        for fault in self.faults:
            if fault.target == target and fault.times:
                if fault.skip:
                    fault.skip -= 1
                    return None
                fault.times -= 1
                return fault
        return None

    def _ListObjectsV2(self, parameters: dict[str, Any]) -> tuple[int, bytes]:
        asked = {name: values[0] for name, values in parse_qs(parameters["query"]).items()}
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter")
        after = asked.get("continuation-token") or asked.get("start-after", "")
        keys, folders = [], []
        bucket = parameters["path"].strip("/")
        for name in sorted(self.objects):
            key = name.removeprefix(f"{bucket}/")
            if key == name or not key.startswith(prefix) or key <= after:
                continue
            inside = key.removeprefix(prefix)
            if delimiter and delimiter in inside:
                folders.append(prefix + inside.partition(delimiter)[0] + delimiter)
            else:
                keys.append(key)
        page = keys[: self.page_objects]
        more = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if len(keys) > len(page) else ""
        parts = [
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-11-01T00:00:00.000Z</LastModified><ETag>x</ETag>"
            f"<Size>{len(self.objects[f'{bucket}/{key}'])}</Size></Contents>"
            for key in page
        ] + [f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in dict.fromkeys(folders)]
        text = (
            f'<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>{bucket}</Name><KeyCount>'
            f"{len(parts)}</KeyCount><IsTruncated>{'true' if more else 'false'}</IsTruncated>{more}{''.join(parts)}</ListBucketResult>"
        )
        return 200, text.encode()

    def _GetObject(self, parameters: dict[str, Any]) -> tuple[int, bytes]:
        content = self.objects.get(parameters["path"].lstrip("/"))
        missing = b"<Error><Code>NoSuchKey</Code><Message>The key does not exist.</Message></Error>"
        return (404, missing) if content is None else (200, content)

    def log(
        self, folder: datetime, lines: Iterable[Any], name: str = "0", account: str = "123456789012", region: str = "us-east-1"
    ) -> str:
        """One object of the invocation log of `s3://acme-logs/bedrock` in the folder of that hour; text stays as it is."""
        key = log_key(folder, name, account, region)
        self.objects[f"acme-logs/{key}"] = gzip.compress(
            "\n".join(t if isinstance(t, str) else json.dumps(t) for t in lines).encode()
        )
        return key

    def _ListMetrics(self, parameters: dict[str, Any]) -> dict[str, Any]:
        found = [
            {"Namespace": namespace, "MetricName": metric, "Dimensions": [{"Name": n, "Value": v} for n, v in dimensions]}
            for (namespace, metric, dimensions), samples in sorted(self.samples.items())
            if namespace == parameters["Namespace"]
            and (self.listed_since is None or any(at >= self.listed_since for at, _ in samples))
        ]
        start = int(parameters.get("NextToken", 0))
        more = {"NextToken": str(start + self.page_metrics)} if start + self.page_metrics < len(found) else {}
        return {"Metrics": found[start : start + self.page_metrics], **more}

    def _GetMetricData(self, parameters: dict[str, Any]) -> dict[str, Any]:
        assert len(parameters["MetricDataQueries"]) <= 500
        start, end = (datetime.fromtimestamp(parameters[name], UTC) for name in ("StartTime", "EndTime"))
        points = [
            (query, at, value) for query in parameters["MetricDataQueries"] for at, value in self._points(query, start, end)
        ]
        assert len(parameters["MetricDataQueries"]) * ((end - start).total_seconds() / _period(parameters)) <= 100_800
        first = int(parameters.get("NextToken", 0))
        page = points[first : first + self.page_points]
        rest = {query["Id"] for query, _, _ in points[first + self.page_points :]}
        results = []
        for query in parameters["MetricDataQueries"]:
            mine = [(at, value) for asked, at, value in page if asked is query]
            if mine or first == 0:
                results.append(
                    {
                        "Id": query["Id"],
                        "Label": query["Id"],
                        "Timestamps": [at.timestamp() for at, _ in mine],
                        "Values": [value for _, value in mine],
                        "StatusCode": "PartialData" if query["Id"] in rest else "Complete",
                    }
                )
        more = {"NextToken": str(first + self.page_points)} if rest else {}
        return {"MetricDataResults": results, "Messages": [], **more}

    def _points(self, query: dict[str, Any], start: datetime, end: datetime) -> list[tuple[datetime, float]]:
        stat = query["MetricStat"]
        metric = stat["Metric"]
        key = (metric["Namespace"], metric["MetricName"], tuple(sorted((d["Name"], d["Value"]) for d in metric["Dimensions"])))
        buckets: dict[datetime, list[float]] = defaultdict(list)
        for at, value in self.samples.get(key, []):
            if start <= at < end:
                whole = (at - start) // timedelta(seconds=stat["Period"])
                buckets[start + whole * timedelta(seconds=stat["Period"])].append(value)
        return [(at, _statistic(stat["Stat"], values)) for at, values in sorted(buckets.items())]

    def _ListFoundationModels(self, parameters: dict[str, Any]) -> dict[str, Any]:
        return {
            "modelSummaries": [
                {"modelId": name, "modelArn": f"arn:aws:bedrock:us-east-1::foundation-model/{name}"} for name in self.models or []
            ]
        }

    def _ListInferenceProfiles(self, parameters: dict[str, Any]) -> dict[str, Any]:
        kind = "APPLICATION" if "APPLICATION" in parameters["query"] else "SYSTEM_DEFINED"
        found = [profile for profile in self.profiles if profile["type"] == kind]
        start = 1 if "nextToken=1" in parameters["query"] else 0
        return {"inferenceProfileSummaries": found[start : start + 1], **({"nextToken": "1"} if len(found) > start + 1 else {})}


def log_key(folder: datetime, name: str, account: str, region: str) -> str:
    place = f"bedrock/AWSLogs/{account}/BedrockModelInvocationLogs/{region}"
    return f"{place}/{folder:%Y/%m/%d/%H}/{folder:%Y%m%dT%H%M%S}Z_{name}.json.gz"


def profile(identifier: str, name: str, model: str, kind: str = "APPLICATION") -> dict[str, Any]:
    arn = (
        f"arn:aws:bedrock:us-east-1:123456789012:{'application-' if kind == 'APPLICATION' else ''}inference-profile/{identifier}"
    )
    models = [{"modelArn": f"arn:aws:bedrock:{region}::foundation-model/{model}"} for region in ("us-east-1", "us-west-2")]
    return {
        "inferenceProfileId": identifier, "inferenceProfileName": name, "inferenceProfileArn": arn, "models": models,
        "status": "ACTIVE", "type": kind,
    }  # fmt: skip


def _period(parameters: dict[str, Any]) -> int:
    return min(query["MetricStat"]["Period"] for query in parameters["MetricDataQueries"])


def _statistic(name: str, values: list[float]) -> float:
    if name.startswith("p"):
        return sorted(values)[min(int(float(name[1:]) / 100 * len(values)), len(values) - 1)]
    return {"Sum": sum, "Minimum": min, "Maximum": max}[name](values)


def _spoiled(kind: str, answer: dict[str, Any]) -> Any:
    """An answer with status 200 that is not whole: half of it, or with a result's status changed."""
    if kind == "truncated":
        text = json.dumps(answer)
        return text[: len(text) // 2]
    for result in answer["MetricDataResults"][:1]:
        result["StatusCode"] = kind
        if kind != "Forbidden":
            result["Timestamps"], result["Values"] = result["Timestamps"][:1], result["Values"][:1]
    return {name: value for name, value in answer.items() if name != "NextToken"}


_ASSUMED = """<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>
<AssumedRoleUser><AssumedRoleId>AROA:tokentra</AssumedRoleId><Arn>arn:aws:sts::123456789012:assumed-role/reader/tokentra</Arn></AssumedRoleUser>
<Credentials><AccessKeyId>ASIAASSUMED</AccessKeyId><SecretAccessKey>assumed-secret</SecretAccessKey><SessionToken>assumed-token</SessionToken>
<Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult>
<ResponseMetadata><RequestId>1</RequestId></ResponseMetadata></AssumeRoleResponse>"""
