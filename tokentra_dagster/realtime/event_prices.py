"""What events cost, priced when they are stored by the same rules that price their records when they are flushed (`pricing`)."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa

from tokentra_dagster.batch import USAGE_SCHEMA
from tokentra_dagster.pricing import price_batch
from tokentra_dagster.realtime.events import UsageEvent

_log = logging.getLogger(__name__)
_SAME = (
    "reported_cost", "currency", "quantity", "model", "service_type", "service_tier", "context_window", "input_tokens", "output_tokens",
    "cached_input_tokens", "cache_creation_tokens",
)  # fmt: skip
_COLUMNS = (*_SAME, "bucket_start", "request_count", "token_details", "metadata")
_SCHEMA = pa.schema([USAGE_SCHEMA.field(name) for name in _COLUMNS])


def price_events(events: Sequence[UsageEvent]) -> list[tuple[Decimal | None, str]]:
    """Cost (in the event's currency, None without a known price) and whose figure it is (`actual`, `estimate`, `unpriced`), in order.

    An event is kept whatever the price list says: where pricing fails, that is logged and the events are unpriced.
    """
    priced: list[tuple[Decimal | None, str]] = [(None, "unpriced")] * len(events)
    places: dict[str, list[int]] = defaultdict(list)
    for place, event in enumerate(events):
        places[event.provider].append(place)
    for provider, mine in places.items():
        try:
            found = price_batch(_batch([events[place] for place in mine]), provider)
        except Exception:
            _log.exception("Events of %s could not be priced", provider)
            continue
        for place, cost, basis in zip(mine, found.cost.to_pylist(), found.basis.to_pylist(), strict=True):
            priced[place] = (cost, basis)
    return priced


def _batch(events: Sequence[UsageEvent]) -> pa.RecordBatch:
    """The columns that a price depends on, as `record_of` would give them."""
    columns: dict[str, Sequence[Any]] = {name: [getattr(event, name) for event in events] for name in _SAME}
    columns["bucket_start"] = [event.occurred_at for event in events]
    columns["request_count"] = [1] * len(events)
    for name in ("token_details", "metadata"):
        columns[name] = [_json(getattr(event, name)) for event in events]
    arrays = [pa.array(columns[field.name], type=field.type) for field in _SCHEMA]
    return pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA)


def _json(value: Mapping[str, Any]) -> str | None:
    return json.dumps(dict(value), sort_keys=True, default=str) if value else None
