"""OpenAI's costs endpoint: days only, one result per line item; tokens at list price and everything else at the tariff.

Line items are `<model>, <kind of token>`; tools and storage have a line item of their own. Moderation is free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokentra_dagster.simulator.openai_api import ENDPOINTS, page_of, whole_page
from tokentra_dagster.simulator.organisation import Organisation
from tokentra_dagster.simulator.prices import TARIFF, plain, token_price
from tokentra_dagster.simulator.query import Query, Refusal, Slot, divide, template
from tokentra_dagster.simulator.simulation import Simulation
from tokentra_dagster.simulator.truth import Ints, Table, minute_of, moment_of, stored_bytes

GROUP_BY = ("project_id", "user_id", "line_item", "api_key_id", "api_source")
_LISTS = {"project_id": "project_ids", "api_key_id": "api_key_ids", "line_item": "line_items"}
_TOKENS = {
    "input_tokens": ("input", ("text", "image")),
    "cached_input_tokens": ("cache_read", ("cached_text", "cached_image")),
    "cache_write_tokens": ("cache_write", ("cache_write_30m", "cache_write_12h")),
    "output_tokens": ("output", ("output_text", "output_image")),
    "audio_input_tokens": ("input_audio", ("audio",)),
    "audio_output_tokens": ("output_audio", ("output_audio",)),
}
_OTHER = {
    "images": ("{model}, images", "images", "images", "images"),
    "audio_speeches": ("{model}, characters", "characters", "characters", "characters"),
    "audio_transcriptions": ("{model}, duration_seconds", "seconds", "seconds", "duration_seconds"),
    "code_interpreter_sessions": ("code interpreter sessions", "requests", "sessions", None),
    "file_search_calls": ("file search tool calls", "requests", "file_searches", None),
    "web_search_calls": ("web search tool calls", "calls", "web_searches", None),
}
"""Endpoint -> line item, unit, entry of the tariff, the provider's quantity unit."""
_MIB_PER_GIB = 1024


@dataclass(frozen=True, slots=True)
class Charge:
    """One line of one stream, per day: pico-dollars, and the quantity (mebibyte hours for `gibibyte_hours`)."""

    dimensions: Mapping[str, Any]
    amounts: Ints
    quantities: Ints
    quantity_unit: str | None


def costs(simulation: Simulation, org: Organisation, query: Query, path: str) -> str:
    """One page of costs as JSON text. Raises `Refusal`."""
    query.only("start_time", "end_time", "bucket_width", "limit", "page", "group_by", *_LISTS.values())
    query.one_of("bucket_width", ("1d",), "1d")
    group_by = query.some_of("group_by", GROUP_BY)
    filters: dict[str, list[str]] = {}
    for dimension, name in _LISTS.items():
        # A line item is given whole: `gpt-5.2, input_tokens` is one of them.
        values = query.many(name, joined=name != "line_items")
        if values is not None:
            filters[dimension] = values
    if "user_id" in group_by and ("project_id" in group_by or "project_id" in filters):
        raise Refusal(400, "'user_id' cannot be combined with 'project_id' for this organization.", param="group_by")
    page = page_of(query, path, 1440, 7, 180, minute_of(simulation.clock()))
    found = charges(simulation, org, page.edges)
    groups = divide(found, group_by, filters)
    days = len(page.edges) - 1
    amounts = groups.sums(np.array([charge.amounts for charge in found], dtype=np.int64).reshape(len(found), days))
    quantities = groups.sums(np.array([charge.quantities for charge in found], dtype=np.int64).reshape(len(found), days))
    units = _quantity_units(found, groups.rows, groups.of_row, len(groups.dimensions))
    amount = {"value": Slot("%s"), "currency": "usd"}
    texts = [
        template(
            {"object": "organization.costs.result", "amount": amount, "quantity": Slot("%s"), "quantity_unit": unit}
            | {name: shared.get(name) for name in GROUP_BY}
        )
        for shared, unit in zip(groups.dimensions, units, strict=True)
    ]
    by_bucket: list[list[str]] = [[] for _ in range(days)]
    for group, day in zip(*(found.tolist() for found in np.nonzero(amounts.T)[::-1]), strict=True):
        quantity = "null" if units[group] is None else _quantity(int(quantities[group, day]), units[group])
        by_bucket[day].append(texts[group] % (plain(int(amounts[group, day])), quantity))
    return whole_page(query, path, page, by_bucket)


def charges(simulation: Simulation, org: Organisation, edges: list[int]) -> list[Charge]:
    """Every charge of every stream for the days between `edges`, in minutes from the origin."""
    found: list[Charge] = []
    if len(edges) < 2:
        return found
    for name in ENDPOINTS:
        table = simulation.table(org, "openai", name)
        if not table.streams or name == "moderations":
            continue
        if name == "vector_stores":
            found += _storage(simulation, table, edges)
            continue
        counted = simulation.counts(table, edges)
        units = ("requests", *table.units)
        for row, stream in enumerate(table.streams):
            if not counted[row].any():
                continue
            model = stream.dimensions["model"]
            if name in _OTHER:
                text, unit, entry, quantity_unit = _OTHER[name]
                quantity = counted[row, :, units.index(unit)]
                line = text.format(model=model)
                found.append(
                    Charge(dict(stream.dimensions) | {"line_item": line}, quantity * TARIFF[entry], quantity, quantity_unit)
                )
                continue
            tier = "batch" if stream.dimensions.get("batch") else stream.dimensions.get("service_tier") or "default"
            for thing, (kind, parts) in _TOKENS.items():
                present = [units.index(part) for part in parts if part in units]
                quantity = counted[row][:, present].sum(axis=1)
                if quantity.any():
                    days = [moment_of(edge).date() for edge in edges[:-1]]
                    prices = np.array([token_price("openai", model, kind, day, tier=tier) for day in days], dtype=np.int64)
                    line = f"{model}, {thing}"
                    found.append(Charge(dict(stream.dimensions) | {"line_item": line}, quantity * prices, quantity, "tokens"))
    return found


def _storage(simulation: Simulation, table: Table, edges: list[int]) -> list[Charge]:
    """Vector stores: what is there at the end of the day (or now), for the hours of the day so far."""
    ends = np.minimum(np.array(edges[1:], dtype=np.int64), minute_of(simulation.clock()))
    hours = (ends - np.array(edges[:-1], dtype=np.int64)) // 60
    found = []
    for stream, level in zip(table.streams, stored_bytes(table, ends), strict=True):
        mebibyte_hours = (level >> 20) * hours
        amounts = mebibyte_hours * (TARIFF["gibibyte_days"] // 24 // _MIB_PER_GIB)
        dimensions = dict(stream.dimensions) | {"line_item": "vector store storage", "user_id": None, "api_key_id": None}
        found.append(Charge(dimensions, amounts, mebibyte_hours, "gibibyte_hours"))
    return found


def _quantity(quantity: int, unit: str | None) -> str:
    return plain(quantity * 10**12 // _MIB_PER_GIB) if unit == "gibibyte_hours" else str(quantity)


def _quantity_units(found: list[Charge], rows: Ints, of_row: Ints, groups: int) -> list[str | None]:
    """A group of several units has none."""
    units: list[set[str | None]] = [set() for _ in range(groups)]
    for row, group in zip(rows.tolist(), of_row.tolist(), strict=True):
        units[group].add(found[row].quantity_unit)
    return [next(iter(kinds)) if len(kinds) == 1 else None for kinds in units]
