"""One request to one provider: who asks, what is asked, and the answer with the provider's own errors. No HTTP server here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from tokentra_dagster.simulator import anthropic_api, anthropic_legacy, claude_code, names, openai_api, openai_costs
from tokentra_dagster.simulator.faults import STATUS, Fault
from tokentra_dagster.simulator.query import Pairs, Query, Refusal
from tokentra_dagster.simulator.simulation import Simulation

VERSIONS = ("2023-06-01", "2026-10-21")
_ERROR_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error", 500: "api_error",
    503: "api_error", 529: "overloaded_error",
}  # fmt: skip
_SENTENCES = {
    "rate_limit": "Rate limit reached. Please try again later.",
    "server_error": "The server had an error while processing your request.",
    "unavailable": "The service is temporarily unavailable.",
    "overloaded": "Overloaded",
    "revoked_key": "This API key has been revoked.",
    "forbidden": "You have insufficient permissions for this operation. Missing scopes: api.usage.read.",
}


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


def answer(simulation: Simulation, provider: str, path: str, pairs: Pairs, headers: Mapping[str, str]) -> Answer:
    """What `provider` answers to `GET path`; header names are in lower case."""
    try:
        text = (_openai if provider == "openai" else _anthropic)(simulation, path, Query(pairs), headers)
    except Refusal as refusal:
        return refused(provider, path, refusal)
    return Answer(200, text.encode())


def fault_answer(provider: str, path: str, fault: Fault) -> Answer | None:
    """The answer of a fault that replaces the honest one."""
    if fault.kind == "invalid_page_token":
        sentence = openai_api.REFUSED_PAGE if provider == "openai" else anthropic_api.REFUSED_PAGE
        return refused(provider, path, Refusal(400, sentence, param="page"))
    status = STATUS.get(fault.kind)
    if status is None:
        return None
    found = refused(provider, path, Refusal(status, _SENTENCES[fault.kind], kind="requests" if status == 429 else "server_error"))
    return Answer(found.status, found.body, fault.headers)


def refused(provider: str, path: str, refusal: Refusal) -> Answer:
    """The provider's own error body."""
    if provider == "openai":
        kind = "invalid_request_error" if refusal.status in (400, 401, 403, 404) else refusal.kind
        body: dict[str, object] = {
            "error": {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}
        }
    else:
        kind = _ERROR_TYPES.get(refusal.status, "invalid_request_error")
        request_id = "req_" + hashlib.blake2b(f"{path}{refusal.message}".encode(), digest_size=9).hexdigest()
        body = {"type": "error", "error": {"type": kind, "message": refusal.message}, "request_id": request_id}
    return Answer(refusal.status, json.dumps(body).encode())


def _bearer(headers: Mapping[str, str]) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _openai(simulation: Simulation, path: str, query: Query, headers: Mapping[str, str]) -> str:
    key = _bearer(headers)
    org = simulation.organisation_of_key("openai", key)
    if org is None:
        said = f"Incorrect API key provided: {key[:8]}***." if key else "You didn't provide an API key."
        raise Refusal(401, said, code="invalid_api_key")
    parts = [part for part in path.split("/") if part]
    if parts[:1] != ["organization"]:
        raise Refusal(404, f"Invalid URL (GET {path})", code="invalid_url")
    if parts[1:2] == ["usage"] and len(parts) == 3:
        return openai_api.usage(simulation, org, parts[2], query, path)
    if parts[1:] == ["costs"]:
        return openai_costs.costs(simulation, org, query, path)
    return names.openai_list(org, parts[1:], query, path)


def _anthropic(simulation: Simulation, path: str, query: Query, headers: Mapping[str, str]) -> str:
    org = simulation.organisation_of_key("anthropic", headers.get("x-api-key") or _bearer(headers))
    if org is None:
        raise Refusal(401, "invalid x-api-key" if "x-api-key" in headers else "invalid bearer token")
    version = headers.get("anthropic-version")
    if version not in VERSIONS:
        said = (
            "anthropic-version: header is required"
            if version is None
            else f"anthropic-version: {version!r} is not a valid version"
        )
        raise Refusal(400, said)
    betas = frozenset(part.strip() for part in headers.get("anthropic-beta", "").split(","))
    prefix = "/v1/organizations/"
    if not path.startswith(prefix):
        raise Refusal(404, f"Not found: {path}")
    what = path.removeprefix(prefix).strip("/")
    if what in ("analytics/usage", "analytics/cost"):
        if anthropic_api.BETA not in betas:
            raise Refusal(400, f"anthropic-beta: this endpoint requires {anthropic_api.BETA}.")
        return (anthropic_api.usage if what == "analytics/usage" else anthropic_api.cost)(simulation, org, query, path)
    if what == "usage_report/messages":
        return anthropic_legacy.usage(simulation, org, query, path, betas)
    if what == "cost_report":
        return anthropic_legacy.cost(simulation, org, query, path)
    if what == "usage_report/claude_code":
        return claude_code.report(simulation, org, query, path)
    return names.anthropic_list(org, what, query, path, version)
