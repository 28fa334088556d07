"""Langfuse's Observations API v2 over what went through the gateway: newest first, cursors, Basic authentication.

The keys say whose project it is: `pk-lf-acme:sk-lf-acme` or `pk-lf-globex:sk-lf-globex`.
"""

from __future__ import annotations

import base64
import binascii
from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.requests import Request

from tokentra_dagster.simulator import gateway
from tokentra_dagster.simulator.gateway import GatewayRequest
from tokentra_dagster.simulator.json_api import JsonApi
from tokentra_dagster.simulator.organisation import Organisation
from tokentra_dagster.simulator.query import Query, Refusal
from tokentra_dagster.simulator.simulation import Simulation
from tokentra_dagster.simulator.truth import iso

OBSERVATIONS = "/api/public/v2/observations"
LIMITS = (50, 1000)
"""Observations in a page: the usual number, and the most."""
_KEPT_REPORTS = 4
_TYPE = "GENERATION"
_PARAMETERS = ("fromStartTime", "toStartTime", "type", "fields", "limit", "cursor")


class LangfuseApi(JsonApi):
    """An ASGI application at `prefix`."""

    provider, token = "langfuse", "cursor"

    def __init__(self, simulation: Simulation, prefix: str) -> None:
        super().__init__(simulation, prefix)
        self._reports: OrderedDict[tuple[Any, ...], list[GatewayRequest]] = OrderedDict()

    def _error(self, refusal: Refusal) -> dict[str, Any]:
        return {"message": refusal.message, "error": "Refused"}

    def _spoil(self, answer: dict[str, Any], kind: str, token: str | None) -> None:
        if kind == "bad_record" and answer["data"]:
            answer["data"][0]["usageDetails"]["input"] = -5
        if kind == "repeated_page_token":
            answer["meta"] = {"cursor": token}
        if kind == "empty_buckets":
            answer["data"] = []

    def _answer(self, request: Request, path: str, body: bytes) -> dict[str, Any]:
        query = Query(request.query_params.multi_items())
        org = self._simulation.organisation_of_key("langfuse", _secret_key(request.headers.get("authorization", "")))
        if org is None:
            raise Refusal(401, "Invalid credentials. Confirm that you've configured the correct host.")
        if path != OBSERVATIONS:
            raise Refusal(404, f"{path} is not simulated.")
        query.only(*_PARAMETERS)
        limit = query.whole("limit", LIMITS[0], 1, LIMITS[1])
        first = query.whole("cursor", 0, 0, 1 << 40)
        if query.one("type") not in (None, _TYPE):
            return {"data": [], "meta": {}}
        now = self._simulation.clock()
        start, end = (
            _moment(query.one(name), usual) for name, usual in (("fromStartTime", now - timedelta(days=1)), ("toStartTime", now))
        )
        found = self._report(org, start, end)
        more = {"cursor": str(first + limit)} if first + limit < len(found) else {}
        return {"data": [_observation(org, one) for one in found[first : first + limit]], "meta": more}

    def _report(self, org: Organisation, start: datetime, end: datetime) -> list[GatewayRequest]:
        """Newest first. Every page of a report asks for the same requests; only the last few reports are kept."""
        asked = (org.name, start, end, self._simulation.clock(), repr(self._simulation.adjustments))
        found = self._reports.get(asked)
        if found is None:
            low, high = start.replace(second=0, microsecond=0), end.replace(second=0, microsecond=0) + timedelta(minutes=1)
            found = [one for one in gateway.requests(self._simulation, org, low, high) if start <= one.at < end][::-1]
            self._reports[asked] = found
            while len(self._reports) > _KEPT_REPORTS:
                self._reports.popitem(last=False)
        return found


def _secret_key(authorization: str) -> str:
    """The secret key of Basic credentials whose public key is of the same project, otherwise nothing."""
    scheme, _, token = authorization.partition(" ")
    try:
        public, _, secret = base64.b64decode(token, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return ""
    return secret if scheme == "Basic" and public == f"pk-{secret.removeprefix('sk-')}" else ""


def _moment(text: str | None, usual: datetime) -> datetime:
    try:
        return usual if text is None else datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        raise Refusal(400, f"{text!r} is no time.") from None


def _observation(org: Organisation, one: GatewayRequest) -> dict[str, Any]:
    ended = one.at + timedelta(milliseconds=one.milliseconds)
    return {
        "id": one.id, "traceId": f"trace-{one.id}", "startTime": iso(one.at), "endTime": iso(ended), "projectId": f"lf-{org.name}",
        "type": _TYPE, "level": "DEFAULT", "userId": one.user, "environment": one.environment, "model": one.model,
        "usageDetails": gateway.usage_details(one),
        "latency": one.milliseconds / 1000,
    }  # fmt: skip
