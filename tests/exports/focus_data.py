"""Usage of June 2026 with every way in which a cost can be known: at list prices, at other terms, from the source, partly, not at all."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

import pyarrow as pa

from tests.exports.export_rows import PERIOD
from tests.warehouse_data import DAY, HOUR, connection, load, record
from tokentra_dagster.exports.columns import schema_of
from tokentra_dagster.exports.focus.rows import usage_request
from tokentra_dagster.exports.request import ExportRequest
from tokentra_dagster.warehouse.database import Database

ALL_DAY = 24 * HOUR


def load_usage(database: Database) -> None:
    """Three connections of acme; the caller builds."""
    openai = connection(database, "acme", "openai", "openai")
    anthropic = connection(database, "acme", "anthropic", "anthropic")
    gateway = connection(database, "acme", "gateway", "google", source="gateway")
    whose = {
        "team": "Search", "project": "=1+1", "cost_center": "R&D", "feature": "answers", "environment": "production",
        "user_id": "ann@acme.test", "api_key_id": "key-1",
    }  # fmt: skip
    hours = [
        *(record(DAY + n * HOUR, input_tokens=1400 + n, cached_input_tokens=400, output_tokens=30, **whose) for n in range(3)),
        # Nobody's; no price; nothing but requests; a price for some requests only (the list has no flex price on that day).
        record(DAY, input_tokens=77, output_tokens=0),
        record(DAY + HOUR, model="mystery-1", input_tokens=50, output_tokens=5, cached_input_tokens=20, **whose),
        record(DAY + HOUR, model="whisper-1", request_type="audio", input_tokens=0, output_tokens=0, request_count=8,
               quantity=Decimal(60), quantity_unit="seconds", team="Search"),
        record(DAY + 2 * HOUR, model="gpt-4o-mini", input_tokens=10, output_tokens=1),
        record(DAY + 2 * HOUR, model="gpt-4o-mini", input_tokens=10, output_tokens=1, service_tier="flex"),
    ]  # fmt: skip
    load(database, openai, hours, DAY, DAY + ALL_DAY, "1h")
    days = [
        record(DAY, "1d", model="claude-sonnet-4-6", input_tokens=900, cached_input_tokens=500, cache_creation_tokens=300, output_tokens=7),
        # Half of the cache writes last an hour.
        record(DAY + ALL_DAY, "1d", model="claude-sonnet-4-6", input_tokens=900, cached_input_tokens=500, cache_creation_tokens=300,
               output_tokens=7, token_details={"cache_write_1h": 150}),
        record(DAY + ALL_DAY, "1d", model="claude-x", input_tokens=5, output_tokens=5, reported_cost=Decimal("0.25"), currency="EUR"),
    ]  # fmt: skip
    load(database, anthropic, days, DAY, DAY + 2 * ALL_DAY, "1d")
    requests = [
        record(
            DAY + n * HOUR,
            "1m",
            model="gemini-2.5-pro",
            input_tokens=500,
            output_tokens=100,
            reported_cost=Decimal("0.000123"),
            **whose,
        )
        for n in range(2)
    ]
    load(database, gateway, requests, DAY, DAY + ALL_DAY, "1m")


def usage_batch(**measures: Any) -> Any:
    """One row of gpt-4o on 1 June, as the usage export gives it to FOCUS; tokens are input."""
    columns = usage_request(ExportRequest("acme", PERIOD, profile="focus", dimensions=())).columns("USD")
    tokens = measures.get("input_tokens")
    values = {
        "date": date(2026, 6, 1), "provider": "openai", "model": "gpt-4o", "total_tokens": tokens, "output_tokens": 0, "unpriced_tokens": 0,
        "record_count": 1, **measures,
    }  # fmt: skip
    return pa.record_batch(
        [
            pa.array([values.get(column.name)]).cast(pa.string()).dictionary_encode()
            if column.kind == "text"
            else pa.array([values.get(column.name)], schema_of([column]).field(0).type)
            for column in columns
        ],
        schema=schema_of(columns),
    )
