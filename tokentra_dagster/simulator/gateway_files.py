"""What gateways, coding tools and Azure's bill leave behind, as files: the gateway's requests as Langfuse and Helicone export them and as LiteLLM logs
them, and the session logs of Claude Code and Codex.

    FOLDER/acme/langfuse/lf-acme/observations_v2/2026-11-21T00-00-00.jsonl, .../manifests/...     a run for each day
    FOLDER/acme/helicone/2026-11-20.jsonl                                                         a file for each day
    FOLDER/acme/litellm.sql                                                                       for psql: the table and its rows
    FOLDER/acme/claude-code/projects/..., FOLDER/acme/codex/sessions/...
    FOLDER/acme/azure-costs/202611/manifest.json, ...                                             Azure's bill, a run for each month

Names and fields: providers.md 6.1, 6.3 to 6.5, and the sources that `providers/langfuse_export` and `providers/helicone` name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tokentra_dagster.simulator import azure_bill, gateway, session_logs
from tokentra_dagster.simulator.companies import NAMES
from tokentra_dagster.simulator.gateway import GatewayRequest
from tokentra_dagster.simulator.organisation import Organisation
from tokentra_dagster.simulator.simulation import Simulation
from tokentra_dagster.simulator.truth import months

SPEND_LOG = """
CREATE TABLE "LiteLLM_SpendLogs" (
  request_id TEXT PRIMARY KEY, call_type TEXT NOT NULL, api_key TEXT NOT NULL DEFAULT '', spend FLOAT8 NOT NULL DEFAULT 0,
  total_tokens INT NOT NULL DEFAULT 0, prompt_tokens INT NOT NULL DEFAULT 0, completion_tokens INT NOT NULL DEFAULT 0,
  "startTime" TIMESTAMP(3) NOT NULL, "endTime" TIMESTAMP(3) NOT NULL, request_duration_ms INT, model TEXT NOT NULL DEFAULT '',
  model_group TEXT, custom_llm_provider TEXT, "user" TEXT, metadata JSONB, cache_hit TEXT, team_id TEXT, end_user TEXT, status TEXT,
  litellm_call_id TEXT
);
CREATE INDEX ON "LiteLLM_SpendLogs" ("startTime", request_id);
"""
_SPEND_COLUMNS = (
    "request_id", "call_type", "total_tokens", "prompt_tokens", "completion_tokens", "startTime", "endTime", "request_duration_ms", "model",
    "custom_llm_provider", "metadata", "cache_hit", "end_user", "status",
)  # fmt: skip
SESSIONS = 400
"""Requests of each coding tool."""
_NO_REQUEST = "00000000-0000-0000-0000-000000000000"
_DAY = timedelta(days=1)


def write(simulation: Simulation, folder: Path, start: datetime, end: datetime) -> None:
    """Every organisation's files for the days of `[start, end)`, both midnight UTC."""
    for name in NAMES:
        org, inside = simulation.organisation(name), folder / name
        made = gateway.requests(simulation, org, start, end)
        for day, found in _days(made, start, end):
            _write_lines(inside / "helicone" / f"{day:%Y-%m-%d}.jsonl", [helicone(one) for one in found])
            _write_langfuse_run(inside / "langfuse" / f"lf-{name}", day, day + _DAY, made, org)
        write_azure_costs(simulation, org, inside / "azure-costs", start, end)
        (inside / "litellm.sql").write_text(spend_log(made), encoding="utf-8")
        seed = NAMES.index(name) + 1
        session_logs.write_claude_code(
            inside / "claude-code",
            session_logs.requests(seed, start, end, ("claude-sonnet-4-6", "claude-opus-4-6"), SESSIONS),
            seed,
        )
        session_logs.write_codex(inside / "codex", session_logs.requests(seed, start, end, ("gpt-5.4",), SESSIONS), seed)


def write_azure_costs(simulation: Simulation, org: Organisation, folder: Path, start: datetime, end: datetime) -> None:
    """Whole months, as far as they have ended."""
    for month in months(start, end - _DAY):
        azure_bill.write_month(simulation, org, folder, month)


def helicone(one: GatewayRequest) -> dict[str, Any]:
    """A row of Helicone's export tool: `prompt_tokens` is what was not cached."""
    return {
        "request_id": one.id, "request_created_at": f"{one.at:%Y-%m-%d %H:%M:%S.%f}", "response_status": 200, "provider": "OPENAI",
        "request_model": one.model, "request_user_id": one.user, "request_properties": {"team": one.team, "environment": one.environment},
        "prompt_tokens": one.sent - one.cached, "completion_tokens": one.received, "reasoning_tokens": 0,
        "prompt_cache_read_tokens": one.cached, "prompt_cache_write_tokens": 0, "delay_ms": one.milliseconds,
        "target_url": "https://api.openai.com/v1/chat/completions", "cache_reference_id": _NO_REQUEST, "cost": 0,
    }  # fmt: skip


def observation(one: GatewayRequest, org: Organisation) -> dict[str, Any]:
    """A row of Langfuse's `observations_v2`."""
    return {
        "id": one.id, "trace_id": f"trace-{one.id}", "project_id": f"lf-{org.name}", "environment": one.environment, "type": "GENERATION",
        "start_time": f"{one.at:%Y-%m-%d %H:%M:%S.%f}", "end_time": f"{one.at + timedelta(milliseconds=one.milliseconds):%Y-%m-%d %H:%M:%S.%f}",
        "level": "DEFAULT", "user_id": one.user, "provided_model_name": one.model, "usage_details": gateway.usage_details(one),
    }  # fmt: skip


def spend_log(made: Sequence[GatewayRequest]) -> str:
    """SQL that makes LiteLLM's table and fills it."""
    columns = ", ".join(f'"{name}"' for name in _SPEND_COLUMNS)
    rows = "".join("\t".join(map(str, _spend(one))) + "\n" for one in made)
    return f'{SPEND_LOG}\nCOPY "LiteLLM_SpendLogs" ({columns}) FROM stdin;\n{rows}\\.\n'


def _spend(one: GatewayRequest) -> Iterator[object]:
    """`prompt_tokens` holds what the provider's cache served."""
    said = {"user_api_key_team_alias": one.team, "additional_usage_values": {"cache_read_input_tokens": one.cached}}
    ended = one.at + timedelta(milliseconds=one.milliseconds)
    yield from (one.id, "acompletion", one.sent + one.received, one.sent, one.received)
    yield from (f"{moment:%Y-%m-%d %H:%M:%S.%f}" for moment in (one.at, ended))
    yield from (one.milliseconds, one.model, "openai", json.dumps(said), "False", one.user, "success")


def _write_langfuse_run(folder: Path, start: datetime, end: datetime, made: Sequence[GatewayRequest], org: Organisation) -> None:
    """Both ends belong to the run: what began at midnight is in two files."""
    stem = f"{end:%Y-%m-%dT%H-%M-%S}"
    rows = [observation(one, org) for one in made if start <= one.at <= end]
    _write_lines(folder / "observations_v2" / f"{stem}.jsonl", rows)
    manifest = {
        "version": 1, "projectId": f"lf-{org.name}", "window": {"minTimestamp": start.isoformat(), "maxTimestamp": end.isoformat()},
        "createdAt": (end + timedelta(minutes=5)).isoformat(), "tables": ["observations_v2"],
        "files": [{"key": f"lf-{org.name}/observations_v2/{stem}.jsonl", "table": "observations_v2", "rowCount": len(rows)}],
    }  # fmt: skip
    (folder / "manifests").mkdir(parents=True, exist_ok=True)
    (folder / "manifests" / f"{stem}.json").write_text(json.dumps(manifest), encoding="utf-8")


def _days(made: Sequence[GatewayRequest], start: datetime, end: datetime) -> Iterator[tuple[datetime, list[GatewayRequest]]]:
    day = start
    while day < end:
        yield day, [one for one in made if day <= one.at < day + _DAY]
        day += _DAY


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
