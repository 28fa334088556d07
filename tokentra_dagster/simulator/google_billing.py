"""BigQuery as google-cloud-bigquery asks it for the billing export: the table's columns, a query, its further pages. Nothing is stored.

`ORG-billing.export.gcp_billing_export_v1_SIMULATED` has a row for each day, stream and SKU: tokens at list price, with a credit for some;
provisioned throughput by its units and hours; and storage, which is of no model. SQL is not executed: of the source's own query
the columns and the parameters are honoured, and any other is refused.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from hashlib import blake2b
from typing import Any

from starlette.requests import Request

from tokentra_dagster.simulator.json_api import JsonApi
from tokentra_dagster.simulator.organisation import Organisation, Stream
from tokentra_dagster.simulator.prices import PICO, plain, token_price
from tokentra_dagster.simulator.query import Refusal
from tokentra_dagster.simulator.simulation import Simulation

TABLE = "gcp_billing_export_v1_SIMULATED"
MOST_ROWS = 500
"""In one answer, however many are asked for."""
_DAY = timedelta(days=1)
_VERTEX = {"id": "C7E2-9256-1C43", "description": "Vertex AI"}
_BILLED = {
    "input": ("input", "Text Input"), "input_audio": ("input_audio", "Audio Input"), "output": ("output", "Text Output"),
    "uncached": ("input", "Input Tokens"), "cache_read": ("cache_read", "Cache Read Tokens"),
    "cache_5m": ("cache_write", "Cache Write Tokens"), "cache_1h": ("cache_write_1h", "Cache Write 1h Tokens"),
}  # fmt: skip
"""Unit -> kind of token in the price list, and how its SKU ends."""
_UNIT_HOUR = 2_700_000_000_000
"""Pico-dollars of a unit of provisioned throughput in an hour."""
_UNITS = 4
_CREDIT_PER_CENT = {"gemini-2.5-pro": 8}
_FIELDS: Mapping[str, Any] = {
    "billing_account_id": "STRING",
    "service": {"id": "STRING", "description": "STRING"},
    "sku": {"id": "STRING", "description": "STRING"},
    "usage_start_time": "TIMESTAMP",
    "usage_end_time": "TIMESTAMP",
    "project": {"id": "STRING", "name": "STRING"},
    "location": {"location": "STRING", "region": "STRING"},
    "cost": "FLOAT",
    "currency": "STRING",
    "currency_conversion_rate": "FLOAT",
    "usage": {"amount": "FLOAT", "unit": "STRING", "amount_in_pricing_units": "FLOAT", "pricing_unit": "STRING"},
    "credits": [{"name": "STRING", "amount": "FLOAT", "type": "STRING"}],
    "invoice": {"month": "STRING"},
    "cost_type": "STRING",
    "cost_at_list": "FLOAT",
    "export_time": "TIMESTAMP",
}
_REASONS = {401: "authError", 403: "accessDenied", 429: "rateLimitExceeded"}
_QUERY = re.compile(r"^SELECT ([\w, ]+) FROM `([^`]+)` WHERE usage_start_time >= @first AND usage_start_time < @last\b")


def table_of(org: str) -> str:
    """The option `billing_table` of a connection."""
    return f"{org}-billing.export.{TABLE}"


class GoogleBilling(JsonApi):
    """An ASGI application at `prefix`."""

    provider, token = "google", "pageToken"

    def __init__(self, simulation: Simulation, prefix: str) -> None:
        super().__init__(simulation, prefix)
        self._jobs: OrderedDict[str, tuple[list[str], list[dict[str, Any]]]] = OrderedDict()

    def _asked(self, path: str) -> str:
        return "bigquery " + next((part for part in ("queries", "jobs") if f"/{part}" in path), "tables")

    def _fault_code(self, status: int) -> str:
        return _REASONS.get(status, "backendError")

    def _error(self, refusal: Refusal) -> dict[str, Any]:
        errors = [{"reason": refusal.code or "invalid", "message": refusal.message}]
        return {"error": {"code": refusal.status, "message": refusal.message, "errors": errors}}

    def _spoil(self, answer: dict[str, Any], kind: str, token: str | None) -> None:
        if kind == "bad_record" and answer.get("rows"):
            names = [one["name"] for one in answer["schema"]["fields"]]
            answer["rows"][0]["f"][names.index("cost")]["v"] = "NaN"

    def _answer(self, request: Request, path: str, body: bytes) -> dict[str, Any]:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        org = self._simulation.organisation_of_key("google", token) if scheme == "Bearer" else None
        if org is None:
            raise Refusal(401, "Request had invalid authentication credentials.", code="authError")
        project, dataset, table = table_of(org.name).split(".")
        if not path.startswith(f"/bigquery/v2/projects/{project}/"):
            raise Refusal(403, "Access Denied: the user has no access to this project.", code="accessDenied")
        reference = {"projectId": project, "datasetId": dataset, "tableId": table}
        rest = path.removeprefix(f"/bigquery/v2/projects/{project}")
        if rest == f"/datasets/{dataset}/tables/{table}":
            return {"tableReference": reference, "schema": _schema(_FIELDS), "timePartitioning": {"type": "DAY"}}
        if rest == "/queries":
            asked = json.loads(body)
            columns, rows = self._queried(org, asked)
            job = f"job_{len(self._jobs)}_{self._simulation.requests.total()}"
            self._jobs[job] = (columns, rows)
            while len(self._jobs) > 8:
                self._jobs.popitem(last=False)
            return _page(project, job, columns, rows, 0, asked.get("maxResults"))
        job = rest.rpartition("/")[2]
        if job not in self._jobs:
            raise Refusal(404, f"Not found: {rest}", code="notFound")
        if rest == f"/jobs/{job}":
            place = {"projectId": project, "jobId": job, "location": "US"}
            return {
                "jobReference": place,
                "configuration": {"query": {"destinationTable": reference}},
                "status": {"state": "DONE"},
            }
        first = int(request.query_params.get("pageToken", "0"))
        return _page(project, job, *self._jobs[job], first, request.query_params.get("maxResults"))

    def _queried(self, org: Organisation, asked: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
        found = _QUERY.match(asked.get("query", ""))
        if found is None or found[2] != table_of(org.name) or asked.get("useLegacySql", True):
            raise Refusal(400, "This query is not simulated.", code="invalidQuery")
        columns = [name.strip() for name in found[1].split(",")]
        unknown = [name for name in columns if name not in _FIELDS]
        if unknown:
            raise Refusal(400, f"Unrecognized name: {unknown[0]}", code="invalidQuery")
        given = {one["name"]: one["parameterValue"] for one in asked["queryParameters"]}
        first, last = (datetime.fromisoformat(given[name]["value"]) for name in ("first", "last"))
        words = [one["value"] for one in given["words"]["arrayValues"]]
        wanted = [
            row
            for row in rows(self._simulation, org, first, last)
            if any(
                word in f"{row['service']['id']} {row['service']['description']} {row['sku']['description']}".lower()
                for word in words
            )
        ]
        return columns, wanted


# ---- Rows --------------------------------------------------------------------------------------------------------------


def billed(simulation: Simulation, org_name: str, first: datetime, last: datetime) -> Decimal:
    """What is left to pay for models on the days of `[first, last)`, in dollars."""
    found = Decimal(0)
    for row in rows(simulation, simulation.organisation(org_name), first, last):
        if row["service"] == _VERTEX:
            found += Decimal(row["cost"]) + sum(Decimal(one["amount"]) for one in row["credits"])
    return found


def rows(simulation: Simulation, org: Organisation, first: datetime, last: datetime) -> Iterator[dict[str, Any]]:
    """Rows as BigQuery exports them; numbers as text with every digit."""
    table = simulation.table(org, "google", "vertex")
    # A day that is begun is asked for, too.
    for day, counted in simulation.days(table, first, first - (first - last) // _DAY * _DAY):
        if day >= simulation.clock():
            return
        for row, stream in enumerate(table.streams):
            if not counted[row].any():
                continue
            model = str(stream.dimensions["model"])
            if stream.dimensions["request_type"] == "dedicated":
                unit_hours = _UNITS * 24
                sku = "Vertex AI Provisioned Throughput - Generative AI Scale Unit"
                yield _row(org, stream, day, sku, unit_hours * _UNIT_HOUR, Decimal(unit_hours), "hour", 0)
                continue
            tier = "batch" if str(stream.dimensions["source"]).startswith("batch_") else "standard"
            for unit, quantity in zip(table.units, counted[row, 1:].tolist(), strict=True):
                if quantity and unit in _BILLED:
                    kind, ending = _BILLED[unit]
                    price = token_price("google", model, kind, day.date(), tier=tier)
                    credit = _CREDIT_PER_CENT.get(model, 0)
                    yield _row(org, stream, day, _sku(model, ending, tier), quantity * price, Decimal(quantity), "count", credit)
        yield _storage(org, day)


def _sku(model: str, ending: str, tier: str) -> str:
    if model.startswith("claude"):
        family, *version = model.removeprefix("claude-").split("-")
        return f"Claude {family.title()} {'.'.join(version)} - {'Output Tokens' if ending == 'Text Output' else ending}"
    if "embedding" in model:
        return "Gemini Embedding Text Input - Predictions"
    name = " ".join(word.title() for word in model.split("-"))
    return f"{name} GA {ending} - {'Batch ' if tier == 'batch' else ''}Predictions"


def _row(
    org: Organisation, stream: Stream, day: datetime, sku: str, pico: int, quantity: Decimal, unit: str, credit_per_cent: int,
) -> dict[str, Any]:  # fmt: skip
    credit = pico * credit_per_cent // 100
    location = stream.dimensions["location"]
    return _common(org, day) | {
        "service": _VERTEX,
        "sku": {"id": f"{hash_of(sku):08X}", "description": sku},
        "project": {"id": stream.dimensions["project_id"], "name": stream.project.title()},
        "location": {"location": location, "region": location},
        "cost": plain(pico),
        "usage": {"amount": str(quantity), "unit": unit, "amount_in_pricing_units": str(quantity), "pricing_unit": unit},
        "credits": [{"name": "Committed spend", "amount": f"-{plain(credit)}", "type": "COMMITTED_USAGE_DISCOUNT"}]
        if credit
        else [],
        "cost_at_list": plain(pico),
    }


def _storage(org: Organisation, day: datetime) -> dict[str, Any]:
    return _common(org, day) | {
        "service": {"id": "95FF-2EF5-5EA1", "description": "Cloud Storage"},
        "sku": {"id": "E5F0-6A5D-7BAD", "description": "Standard Storage US Regional"},
        "project": {"id": f"{org.name}-data", "name": "Data"},
        "location": {"location": "us", "region": "us-east1"},
        "cost": plain(PICO * 3 // 7),
        "usage": {"amount": "1", "unit": "byte-seconds", "amount_in_pricing_units": "1", "pricing_unit": "gibibyte month"},
        "credits": [],
        "cost_at_list": plain(PICO * 3 // 7),
    }


def _common(org: Organisation, day: datetime) -> dict[str, Any]:
    return {
        "billing_account_id": f"SIMULA-TED-{org.name.upper()}",
        "usage_start_time": day + timedelta(hours=17),
        "usage_end_time": day + timedelta(hours=18),
        "currency": "USD",
        "currency_conversion_rate": "1",
        "invoice": {"month": f"{day:%Y%m}"},
        "cost_type": "regular",
        "export_time": day + timedelta(hours=23),
    }


def hash_of(text: str) -> int:
    """The same in every process."""
    return int.from_bytes(blake2b(text.encode(), digest_size=4).digest(), "big")


# ---- BigQuery's own JSON -----------------------------------------------------------------------------------------------


def _schema(fields: Mapping[str, Any]) -> dict[str, Any]:
    def one(name: str, kind: Any) -> dict[str, Any]:
        repeated = isinstance(kind, list)
        inner = kind[0] if repeated else kind
        told: dict[str, Any] = {"name": name, "mode": "REPEATED" if repeated else "NULLABLE"}
        return told | ({"type": "RECORD", **_schema(inner)} if isinstance(inner, Mapping) else {"type": inner})

    return {"fields": [one(name, kind) for name, kind in fields.items()]}


def _page(
    project: str, job: str, columns: Sequence[str], found: Sequence[Mapping[str, Any]], first: int, most: Any
) -> dict[str, Any]:
    count = min(int(most or MOST_ROWS), MOST_ROWS)
    fields = {name: _FIELDS[name] for name in columns}
    told: dict[str, Any] = {
        "jobReference": {"projectId": project, "jobId": job, "location": "US"},
        "jobComplete": True,
        "schema": _schema(fields),
        "totalRows": str(len(found)),
        "rows": [_cells(row, fields) for row in found[first : first + count]],
    }
    return told | ({"pageToken": str(first + count)} if first + count < len(found) else {})


def _cells(row: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"f": [{"v": _cell(row.get(name), kind)} for name, kind in fields.items()]}


def _cell(value: Any, kind: Any) -> Any:
    if isinstance(kind, list):
        return [{"v": _cell(one, kind[0])} for one in value or ()]
    if isinstance(kind, Mapping):
        return None if value is None else _cells(value, kind)
    return str(round(value.timestamp() * 1_000_000)) if isinstance(value, datetime) else value
