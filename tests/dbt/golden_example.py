"""A worked example in a built warehouse of its own: loaded through the real path, with the specification's own answers beside it."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from tests.analytics.golden import GOLDEN
from tests.dbt.conftest import database_named, run_models
from tests.warehouse_data import connection, load, record, rows
from tokentra_dagster.records import UsageRecord
from tokentra_dagster.warehouse.database import Database

COUNTS = (
    "request_count", "success_count", "error_count", "input_tokens", "output_tokens", "cached_input_tokens", "total_latency_ms",
)  # fmt: skip
TEXTS = ("model", "request_type", "feature", "environment", "api_key_id", "user_id")


@dataclass(frozen=True, slots=True)
class Example:
    name: str
    database: Database
    org_id: UUID
    case: dict[str, Any]
    expected: dict[str, Any]

    def call(self, statement: str, *arguments: Any) -> list[dict[str, Any]]:
        return rows(self.database, f"SELECT * FROM {statement}", *arguments)

    @property
    def period(self) -> tuple[UUID, str, str]:
        return self.org_id, self.case["start"], self.case["end"]


@contextmanager
def built_example(name: str, server_url: str, template: str, target: Path) -> Iterator[Example]:
    folder = GOLDEN / name
    granularity = "1m" if name == "agents" else "1h"
    with gzip.open(folder / "rows.csv.gz", "rt") as file:
        lines = list(csv.DictReader(file))
    items = [_record(line, granularity) for line in lines]
    start = min(item.bucket_start for item in items).replace(hour=0, minute=0)
    end = max(item.bucket_end for item in items) + timedelta(days=1)
    with database_named(f"golden_{name}", server_url, template) as database:
        row = connection(database, provider=lines[0]["provider"])
        load(database, row, items, start, end.replace(hour=0, minute=0), granularity)
        run_models(database, target)
        case, expected = (json.loads((folder / f"{part}.json").read_text()) for part in ("case", "expected"))
        yield Example(name, database, row.org_id, case, expected)


def _record(line: dict[str, str], granularity: str) -> UsageRecord:
    fields: dict[str, Any] = {name: int(line[name]) for name in COUNTS} | {name: line[name] or None for name in TEXTS}
    return record(datetime.fromisoformat(line["timestamp"]), granularity, reported_cost=Decimal(line["estimated_cost"]), **fields)
