"""Anthropic's legacy Claude Code report: one UTC day, a record per actor.

What it counts is in messages usage too (`product` is `claude_code`); its cost is an estimate, in cents as a JSON number.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, date, datetime
from typing import Any

from tokentra_dagster.simulator.anthropic_api import COMPONENTS, REFUSED_PAGE, charges
from tokentra_dagster.simulator.organisation import Organisation
from tokentra_dagster.simulator.query import Query, Refusal, divide
from tokentra_dagster.simulator.simulation import Simulation
from tokentra_dagster.simulator.truth import minute_of

_PARTS = {
    "input": ("uncached",),
    "output": ("output",),
    "cache_read": ("cache_read",),
    "cache_creation": ("cache_5m", "cache_1h"),
}
_PICO_PER_CENT = 10**10
_TOKEN_COLUMNS = [column for column, component in enumerate(COMPONENTS) if component[0] == "tokens"]


def report(simulation: Simulation, org: Organisation, query: Query, path: str) -> str:
    """One page of usage_report/claude_code as JSON text. Raises `Refusal`."""
    query.only("starting_at", "limit", "page")
    day = _day(query)
    limit, first = query.whole("limit", 20, 1, 1000), query.position(path, REFUSED_PAGE) or 0
    records = _records(simulation, org, day)
    following = query.token(path, first + limit) if first + limit < len(records) else None
    return json.dumps({"data": records[first : first + limit], "has_more": following is not None, "next_page": following})


def _day(query: Query) -> date:
    text = query.one("starting_at")
    if text is None:
        raise Refusal(400, "starting_at: Field required.", param="starting_at")
    try:
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            raise ValueError
        return date.fromisoformat(text)
    except ValueError:
        raise Refusal(400, f"starting_at: Input should be a date as YYYY-MM-DD, got {text!r}.", param="starting_at") from None


def _records(simulation: Simulation, org: Organisation, day: date) -> list[dict[str, Any]]:
    table = simulation.table(org, "anthropic", "messages")
    start = minute_of(datetime(day.year, day.month, day.day, tzinfo=UTC))
    edges = [start, start + 1440]
    counted = simulation.counts(table, edges)
    charged = charges(table, counted, edges)[:, :, _TOKEN_COLUMNS].sum(axis=2, keepdims=True)
    groups = divide(table.streams, ("actor", "model"), {"product": ["claude_code"]})
    units = ("requests", *table.units)
    names = {key.id: key.name for key in org.keys("anthropic")}
    found: dict[str, dict[str, Any]] = {}
    summed, amounts = groups.sums(counted)[:, 0, :].tolist(), groups.sums(charged)[:, 0, 0].tolist()
    for shared, values, pico in zip(groups.dimensions, summed, amounts, strict=True):
        of_unit = dict(zip(units, values, strict=True))
        if not of_unit["requests"]:
            continue
        actor = _actor(shared["actor"], names)
        record = found.setdefault(json.dumps(actor), _record(org, day, actor))
        _add_core(record, of_unit["requests"])
        record["model_breakdown"].append(
            {
                "model": shared["model"],
                "tokens": {name: sum(of_unit[part] for part in parts) for name, parts in _PARTS.items()},
                "estimated_cost": {"amount": pico / _PICO_PER_CENT, "currency": "USD"},
            }
        )
    return list(found.values())


def _actor(actor: dict[str, Any], names: dict[str, str]) -> dict[str, str]:
    """Keys by name and users by address; a service account appears under its key's kind."""
    if actor["type"] == "user_actor":
        return {"type": "user_actor", "email_address": actor["email_address"]}
    identifier = actor.get("api_key_id") or actor["service_account_id"]
    return {"type": "api_actor", "api_key_name": names.get(identifier, identifier)}


def _record(org: Organisation, day: date, actor: dict[str, str]) -> dict[str, Any]:
    tools = ("edit_tool", "multi_edit_tool", "write_tool", "notebook_edit_tool")
    return {
        "date": f"{day}T00:00:00Z",
        "organization_id": org.anthropic_id,
        "actor": actor,
        "customer_type": "api",
        "subscription_type": None,
        "terminal_type": "vscode",
        "core_metrics": {
            "num_sessions": 0,
            "lines_of_code": {"added": 0, "removed": 0},
            "commits_by_claude_code": 0,
            "pull_requests_by_claude_code": 0,
        },
        "tool_actions": {tool: {"accepted": 0, "rejected": 0} for tool in tools},
        "model_breakdown": [],
    }


def _add_core(record: dict[str, Any], requests: int) -> None:
    """Sessions, lines and edits in proportion to the requests."""
    core, tools = record["core_metrics"], record["tool_actions"]
    core["num_sessions"] += requests // 12 + 1
    core["lines_of_code"]["added"] += requests * 9
    core["lines_of_code"]["removed"] += requests * 3
    core["commits_by_claude_code"] += requests // 25
    core["pull_requests_by_claude_code"] += requests // 100
    tools["edit_tool"]["accepted"] += requests // 2
    tools["edit_tool"]["rejected"] += requests // 20
    tools["write_tool"]["accepted"] += requests // 6
