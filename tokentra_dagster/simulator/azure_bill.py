"""Azure's bill as a Cost Management export leaves it in a folder: a run for each month, its CSV and its manifest.

A line for each day, deployment's account, meter and kind of token, at list price; batch is cheaper, provisioned throughput is paid by the
hour and not by the token. Names of columns and of the manifest: providers.md 4 and `providers/azure_cost_export`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

from tokentra_dagster.simulator.azure_api import account_id
from tokentra_dagster.simulator.organisation import Organisation, Stream
from tokentra_dagster.simulator.prices import PICO, plain, token_price
from tokentra_dagster.simulator.simulation import Simulation
from tokentra_dagster.simulator.truth import Ints, Table, of_unit

COLUMNS = (
    "date", "meterCategory", "meterSubCategory", "meterName", "ProductName", "ResourceId", "quantity", "unitOfMeasure", "chargeType",
    "costInBillingCurrency", "billingCurrency", "resourceLocation",
)  # fmt: skip
_DAY = timedelta(days=1)
_KINDS = {
    "input": ("input", "Inp"), "uncached": ("input", "Inp"), "cache_read": ("cache_read", "cached Inp"),
    "cache_5m": ("cache_write", "cache write"), "cache_1h": ("cache_write_1h", "cache write 1h"), "output": ("output", "Outp"),
}  # fmt: skip
"""Unit of a stream -> kind of price, words of the meter."""
_PROVISIONED_UNITS, _UNIT_HOUR = 50, PICO
"""Bought by a provisioned deployment, and the pico-dollars of one for an hour."""


def write_month(simulation: Simulation, org: Organisation, folder: Path, month: datetime) -> None:
    """The month's days that have ended, in `FOLDER/YYYYMM/`."""
    table = simulation.table(org, "azure", "models")
    days = simulation.days_of_month(table, month)
    run = folder / f"{month:%Y%m}"
    run.mkdir(parents=True, exist_ok=True)
    path = run / "part_0_0001.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for day, stream, meter, quantity, unit, pico in _charges(table, days):
            of = stream.dimensions
            writer.writerow(
                (
                    f"{day:%m/%d/%Y}", "Foundry Models", "Azure OpenAI", meter, "Azure OpenAI", account_id(of), quantity, unit, "Usage",
                    plain(pico), "USD", of["region"],
                )
            )  # fmt: skip
    last = days[-1][0] if days else month - _DAY
    manifest = {
        "exportConfig": {"exportName": f"{org.name}-actual", "type": "ActualCost", "dataVersion": "2021-10-01"},
        "runInfo": {
            "startDate": f"{month:%Y-%m-%dT00:00:00}", "endDate": f"{last:%Y-%m-%dT00:00:00}",
            "submittedTime": f"{last + _DAY:%Y-%m-%dT06:00:00.0000000Z}",
        },
        "deliveryConfig": {"fileFormat": "Csv", "compressionMode": "None"},
        "blobs": [{"blobName": f"exports/{run.name}/{path.name}", "byteCount": path.stat().st_size}],
    }  # fmt: skip
    (run / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def billed(simulation: Simulation, org: Organisation, start: datetime, end: datetime) -> Decimal:
    """USD of whole days, by its own arithmetic."""
    table = simulation.table(org, "azure", "models")
    return Decimal(sum(pico for *_, pico in _charges(table, simulation.days(table, start, end)))) / PICO


def _charges(table: Table, days: Sequence[tuple[datetime, Ints]]) -> Iterator[tuple[datetime, Stream, str, str, str, int]]:
    """Day, stream, meter, quantity with its unit, pico-dollars."""
    for row, stream in enumerate(table.streams):
        model, kind = str(stream.dimensions["model"]), str(stream.dimensions["type"])
        seller, batch = ("anthropic" if model.startswith("claude") else "azure"), "Batch" in kind
        for day, counted in days:
            if kind.startswith("Provisioned"):
                hours = 24 * _PROVISIONED_UNITS
                yield day, stream, "Provisioned Managed Unit", str(hours), "1 Hour", hours * _UNIT_HOUR
                continue
            for unit, (priced, words) in _KINDS.items():
                if used := int(of_unit(table, counted[row], unit)):
                    price = token_price(seller, model, priced, day.date(), tier="batch" if batch else "standard")
                    meter = f"{model}{' Batch' if batch else ''} {words} glbl Tokens"
                    yield day, stream, meter, plain(used, 3), "1K", used * price
