"""What the simulator holds to be true, and what the warehouse holds after a sync, in the same shape."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import numpy as np

from tests.warehouse_data import one, rows
from tokentra_dagster.providers.openai_endpoints import ENDPOINTS
from tokentra_dagster.simulator import anthropic_api, openai_costs
from tokentra_dagster.simulator.simulation import Simulation
from tokentra_dagster.simulator.truth import minute_of, stored_bytes
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import ConnectionRow

NOW = datetime(2026, 11, 24, 13, 37, tzinfo=UTC)
TODAY = datetime(2026, 11, 24, tzinfo=UTC)
DAY = timedelta(days=1)

Totals = dict[str, dict[str, int]]
"""Endpoint -> what was used."""

_CACHED = ("cached_text", "cached_audio", "cached_image", "cache_read")
_WRITTEN = ("cache_write_30m", "cache_write_12h", "cache_5m", "cache_1h")
_INPUT = ("text", "audio", "image", "uncached", *_CACHED, *_WRITTEN)
_OUTPUT = ("output_text", "output_audio", "output_image", "output")
_QUANTITY = {
    "images": "images", "audio_speeches": "characters", "audio_transcriptions": "seconds",
    "code_interpreter_sessions": "requests", "file_search_calls": "requests", "web_search_calls": "calls",
}  # fmt: skip
_NO_REQUESTS = frozenset(("code_interpreter_sessions", "file_search_calls", "web_search_calls", "code_execution"))


def truth(simulation: Simulation, connection: ConnectionRow, start: datetime, end: datetime) -> Totals:
    """By the simulator's own arithmetic, never over HTTP."""
    org, found = connection.organization, {}
    for endpoint in ENDPOINTS if connection.provider == "openai" else ("messages", "code_execution"):
        if endpoint == "vector_stores":
            continue
        used = simulation.totals(org, connection.provider, endpoint, start, end)
        if used:
            found[endpoint] = {
                "input": sum(used.get(unit, 0) for unit in _INPUT),
                "output": sum(used.get(unit, 0) for unit in _OUTPUT),
                "cached": sum(used.get(unit, 0) for unit in _CACHED),
                "written": sum(used.get(unit, 0) for unit in _WRITTEN),
                "requests": 0 if endpoint in _NO_REQUESTS else used["requests"],
                "quantity": used.get(_QUANTITY.get(endpoint, ""), 0),
                "spans": used["requests"] if endpoint == "code_execution" else 0,
                "searches": used.get("web_search", 0),
            }
    return found


def true_cost(simulation: Simulation, connection: ConnectionRow, start: datetime, end: datetime) -> Decimal:
    """USD for whole days."""
    edges = list(range(minute_of(start), minute_of(end) + 1, 1440))
    org = simulation.organisation(connection.organization)
    if connection.provider == "openai":
        pico = sum(int(charge.amounts.sum()) for charge in openai_costs.charges(simulation, org, edges))
    else:
        table = simulation.table(org, "anthropic", "messages", "code_execution")
        pico = int(anthropic_api.charges(table, simulation.counts(table, edges), edges).sum())
    return Decimal(pico) / 10**12


def true_level(simulation: Simulation, connection: ConnectionRow, at: datetime) -> int:
    """Bytes in vector stores at a moment."""
    table = simulation.table(simulation.organisation(connection.organization), "openai", "vector_stores")
    return int(stored_bytes(table, np.array([minute_of(at)])).sum())


def loaded(database: Database, connection: ConnectionRow) -> Totals:
    """What `raw.usage_records` holds of the connection; what is stored is left out."""
    found = rows(
        database,
        """
        SELECT coalesce(provider_metadata ->> 'endpoint', CASE model WHEN 'analytics_usage' THEN 'code_execution' ELSE 'messages' END) AS endpoint,
          sum(input_tokens)::bigint AS input, sum(output_tokens)::bigint AS output,
          coalesce(sum(cached_input_tokens), 0)::bigint AS cached, coalesce(sum(cache_creation_tokens), 0)::bigint AS written,
          coalesce(sum(request_count), 0)::bigint AS requests, coalesce(sum(quantity), 0)::bigint AS quantity,
          coalesce(sum((provider_metadata ->> 'execution_spans')::bigint), 0)::bigint AS spans,
          coalesce(sum((provider_metadata ->> 'web_search_requests')::bigint), 0)::bigint AS searches
        FROM raw.usage_records
        WHERE provider_connection_id = %s AND quantity_unit IS DISTINCT FROM 'byte_hours'
        GROUP BY 1
        """,
        connection.id,
    )
    return {row.pop("endpoint"): row for row in found}


def loaded_cost(database: Database, connection: ConnectionRow) -> Decimal:
    return one(
        database, "SELECT coalesce(sum(amount), 0) FROM raw.provider_costs WHERE provider_connection_id = %s", connection.id
    )
