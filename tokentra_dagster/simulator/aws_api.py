"""AWS as boto3 asks it: CloudWatch by its JSON protocol, Bedrock's lists and S3 by REST. One address for all of them.

The access key id says whose account it is, `AKIASIMacme` or `AKIASIMglobex` with any secret: signatures are not checked.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from urllib.parse import parse_qs, unquote

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tokentra_dagster.simulator import aws_metrics
from tokentra_dagster.simulator.aws_objects import Bucket
from tokentra_dagster.simulator.faults import TOLD, damage
from tokentra_dagster.simulator.query import Refusal
from tokentra_dagster.simulator.simulation import Simulation

_CREDENTIAL = re.compile(r"Credential=([^/]+)/\d+/([^/]+)/")
_CODES = {401: "InvalidClientTokenId", 403: "AccessDenied", 404: "NotFound", 429: "Throttling"}


class AwsApi:
    """An ASGI application at `prefix`."""

    def __init__(self, simulation: Simulation, prefix: str) -> None:
        self._simulation, self._prefix = simulation, prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        path = unquote(request.url.path.removeprefix(self._prefix))
        body = await request.body()
        if request.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        action = request.headers.get("x-amz-target", "").rpartition(".")[2]
        parameters = json.loads(body) if action else {name: values[-1] for name, values in parse_qs(request.url.query).items()}
        asked = action or path
        self._simulation.requests[f"aws {asked}"] += 1
        token = parameters.get("NextToken") or parameters.get("continuation-token")
        fault = self._simulation.faults.take("aws", asked, token is not None)
        if fault and fault.kind == "timeout":
            await asyncio.sleep(fault.seconds)
        xml = not action and not path.startswith(("/inference-profiles", "/foundation-models"))
        headers: dict[str, str] = {}
        try:
            if fault and fault.status:
                headers = fault.headers
                raise Refusal(fault.status, TOLD, code=_CODES.get(fault.status, "InternalFailure"))
            content = self._answer(request, path, action, parameters)
            if fault and fault.kind in ("truncated_json", "dropped"):
                content = damage("truncated_json", content, token)
            status = 200
        except Refusal as refusal:
            status, code = refusal.status, refusal.code or _CODES.get(refusal.status, "ValidationError")
            headers["x-amzn-errortype"] = code
            error = {"__type": code, "message": refusal.message}
            content = (
                f"<Error><Code>{code}</Code><Message>{refusal.message}</Message></Error>".encode()
                if xml
                else json.dumps(error).encode()
            )
        kind = "application/xml" if xml else "application/x-amz-json-1.0" if action else "application/json"
        await Response(content, status, headers, media_type=kind)(scope, receive, send)

    def _answer(self, request: Request, path: str, action: str, parameters: dict[str, str]) -> bytes:
        signed = _CREDENTIAL.search(request.headers.get("authorization", ""))
        org = self._simulation.organisation_of_key("aws", signed[1]) if signed else None
        if org is None or signed is None:
            raise Refusal(403, "The security token included in the request is invalid.", code="InvalidClientTokenId")
        if action:
            return json.dumps(aws_metrics.answer(self._simulation, org, signed[2], action, parameters)).encode()
        if path == "/inference-profiles":
            return json.dumps(aws_metrics.profiles(self._simulation, org, signed[2], parameters.get("type", ""))).encode()
        if path == "/foundation-models":
            return json.dumps(aws_metrics.models(self._simulation, org)).encode()
        bucket = Bucket(self._simulation, org)
        name, _, key = path.strip("/").partition("/")
        if name != bucket.name:
            raise Refusal(404, "The specified bucket does not exist.", code="NoSuchBucket")
        if key:
            return bucket.content(key)
        after = max(parameters.get("continuation-token", ""), parameters.get("start-after", ""))
        return bucket.listing(parameters.get("prefix", ""), parameters.get("delimiter", ""), after)
