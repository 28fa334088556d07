"""Rows of a FOCUS file, batch by batch from the rows of the usage export: its snapshot, its filters, its pseudonyms, its totals."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Protocol
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokentra_dagster.exports.columns import BUCKETS, TYPES, Column, schema_of
from tokentra_dagster.exports.focus import charges as split
from tokentra_dagster.exports.focus.charges import BASES, METERS, Charges, Ints, Level, Objects, Usage
from tokentra_dagster.exports.focus.columns import NEEDED_DIMENSIONS, NEEDED_METRICS, TAGS, TOKEN_COLUMNS
from tokentra_dagster.exports.focus.providers import seller_of
from tokentra_dagster.exports.request import ExportRequest
from tokentra_dagster.exports.rows import RunningTotals, Totals
from tokentra_dagster.exports.writers import Writer

WIDTHS = {"hour": timedelta(hours=1), "day": timedelta(days=1)}
PRICED_TOKENS = 1_000_000
"""Tokens of one PricingUnit: price lists are per million."""
PRICES_ARE_IN = "USD"
USAGE_BYTES = 1024 * 1024
"""Text of a batch of usage: a row becomes up to four charges, and a charge is eight times as wide."""
SAID = {
    "ListPrice": "",
    "Estimate": "",
    "PartlyUnpriced": "; price of some tokens unknown",
    "Unpriced": "; price unknown",
    "OtherCurrency": "; cost in another currency",
}
"""By basis of the cost, what a description says of it."""
_WORD = (1 << 64) - 1


class UsageRows(Protocol):
    """What `rows.RowReader` is: batches of the usage export, and their totals once they went by."""

    columns: list[Column]

    @property
    def totals(self) -> Totals: ...

    def __iter__(self) -> Iterator[Any]: ...


def usage_request(request: ExportRequest) -> ExportRequest:
    """The usage export that has every row and measure that a FOCUS file is made of."""
    others = tuple(name for name in request.grouping if name not in NEEDED_DIMENSIONS)
    return replace(request, profile="usage", focus_version=None, dimensions=(*NEEDED_DIMENSIONS, *others), metrics=NEEDED_METRICS)


class FocusReader:
    """Iterate once for the batches; `totals` holds afterwards the usage's own sums and those of the file's additive columns."""

    def __init__(
        self, usage: UsageRows, request: ExportRequest, organization: str, org_id: UUID, currency: str
    ) -> None:  # fmt: skip
        self.columns = request.columns(currency)
        self._usage, self._request, self._currency = usage, request, currency
        self._constants = {
            "BillingAccountId": str(org_id), "BillingAccountName": organization, "BillingCurrency": currency,
            "ChargeCategory": "Usage", "ChargeClass": None, "ChargeFrequency": "Usage-Based", "InvoiceDetailId": None,
            "InvoiceId": None, "PricingCategory": "Standard", "ServiceCategory": "AI and Machine Learning",
            "ServiceSubcategory": "Generative AI", "x_CostIsEstimated": "true",
        }  # fmt: skip
        self._running = RunningTotals(self.columns)

    @property
    def totals(self) -> Totals:
        own = self._running.totals
        return Totals(own.row_count, {**self._usage.totals.sums, **own.sums})

    def into(self, writer: Writer) -> None:
        """Every row."""
        for batch in self:
            writer.write(batch)

    def __iter__(self) -> Iterator[Any]:
        for rows in self._usage:
            if rows.num_rows:
                batch = self._batch(rows)
                self._running.add(batch)
                yield batch

    def _batch(self, rows: Any) -> Any:
        usage, names = usage_columns(rows, self._currency)
        charges = split.charges_of(usage)
        found = {
            **{name: _constant(value, len(charges.row)) for name, value in self._constants.items()},
            **self._periods(rows, charges.row),
            **self._money(charges),
            **_quantities(usage, charges, rows),
            **_skus(usage, charges, names, rows),
            **_attribution(rows, charges.row, self._request.grouping),
        }
        return pa.record_batch([found[column.name] for column in self.columns], schema=schema_of(self.columns))

    def _periods(self, rows: Any, of_row: Ints) -> dict[str, Any]:
        """Charge periods end where the export's period does; a billing period is the UTC month."""
        start = _moments(rows)
        period = self._request.period
        width = np.timedelta64(WIDTHS[self._request.granularity])
        month = start.astype("M8[M]")
        columns = {
            "ChargePeriodStart": np.maximum(start, _moment64(period.start)),
            "ChargePeriodEnd": np.minimum(start + width, _moment64(period.end)),
            "BillingPeriodStart": month.astype("M8[us]"),
            "BillingPeriodEnd": (month + np.timedelta64(1, "M")).astype("M8[us]"),
        }
        return {name: pa.array(values[of_row], pa.timestamp("us")).cast(TYPES["time"]) for name, values in columns.items()}

    def _money(self, charges: Charges) -> dict[str, Any]:
        """FOCUS forbids NULL in its four costs: where no cost is known they are 0, and x_EstimatedCost and x_CostBasis say so."""
        known = _decimals(charges.cost, 12)
        nowhere_null = pc.fill_null(known, pa.scalar(Decimal(0), known.type))
        billed = _decimals(np.zeros(len(charges.row), dtype=object), 12) if self._request.focus_version == "1.4" else nowhere_null
        unit_price = [None if price < 0 else price * PRICED_TOKENS for price in charges.price.tolist()]
        price = _decimals(np.array(unit_price, dtype=object), 12)
        return {
            **dict.fromkeys(("BilledCost", "EffectiveCost"), billed), **dict.fromkeys(("ContractedCost", "ListCost"), nowhere_null),
            **dict.fromkeys(("ContractedUnitPrice", "ListUnitPrice"), price), "x_EstimatedCost": known,
            "x_CostBasis": _coded(charges.basis, BASES),
        }  # fmt: skip


def usage_columns(rows: Any, currency: str) -> tuple[Usage, list[tuple[Any, ...]]]:
    """The rows as `charges` wants them, and for each group of equal prices its provider, model, family, service type and day."""
    counts = {name: _counts(rows.column(name)) for name in NEEDED_METRICS if name != "estimated_cost"}
    cached, written = counts["cached_tokens"], counts["cache_creation_tokens"]
    days = _moments(rows).astype("M8[D]").astype(np.int64)
    group, distinct = _groups([*(rows.column(name) for name in NEEDED_DIMENSIONS)], days)
    levels: list[Sequence[Level]] = [
        split.levels_of(provider or "", model or "", kind, date.fromordinal(day + date(1970, 1, 1).toordinal()))
        if currency == PRICES_ARE_IN
        else ()
        for provider, model, _, kind, day in distinct
    ]
    usage = Usage(
        tokens=np.column_stack([counts["input_tokens"] - cached - written, cached, written, counts["output_tokens"]]),
        total=counts["total_tokens"],
        requests=counts["request_count"],
        cost=_integers(rows.column("estimated_cost")),
        unpriced=counts["unpriced_tokens"],
        group=group,
        levels=levels,
    )
    return usage, distinct


def _quantities(usage: Usage, charges: Charges, rows: Any) -> dict[str, Any]:
    is_tokens = np.array([meter.unit == "Tokens" for meter in METERS])[charges.meter]
    quantity = charges.quantity.astype(object)
    priced = np.where(is_tokens, quantity, quantity * PRICED_TOKENS)
    units = [meter.unit for meter in METERS]
    found = {
        "ConsumedQuantity": _decimals(quantity * PRICED_TOKENS, 6),
        "ConsumedUnit": _coded(charges.meter, units),
        "PricingQuantity": _decimals(priced, 6),
        "PricingUnit": _coded(charges.meter, [f"{PRICED_TOKENS} {unit}" if unit == "Tokens" else unit for unit in units]),
    }
    sources = ("input_tokens", "cached_tokens", "cache_creation_tokens", "output_tokens")
    for kind, (name, source) in enumerate(zip(TOKEN_COLUMNS, sources, strict=True)):
        is_known = pc.is_valid(rows.column(source)).to_numpy(zero_copy_only=False)
        shown = (charges.meter == kind) | ((charges.meter == split.ALL_TOKENS) & is_known[charges.row])
        found[name] = pa.array(usage.tokens[charges.row, kind], pa.int64(), mask=~shown)
    whole = usage.unpriced[charges.row]
    found["x_UnpricedTokens"] = pa.array(np.where((charges.meter < split.KINDS) & (whole > 0), charges.quantity, whole))
    return found


def _skus(usage: Usage, charges: Charges, names: Sequence[tuple[Any, ...]], rows: Any) -> dict[str, Any]:
    """What follows from provider, model, terms and meter: the provider's names, the SKU, its price, the description."""
    code = (
        (usage.group[charges.row] * len(METERS) + charges.meter) * (max(map(len, usage.levels), default=0) + 1)
        + charges.level
        + 1
    )
    code = code * len(BASES) + charges.basis
    _, first, of_charge = np.unique(code, return_index=True, return_inverse=True)
    values: dict[str, list[str]] = {}
    for place in first.tolist():
        group = int(usage.group[charges.row[place]])
        level = int(charges.level[place])
        terms = terms_of(usage.levels[group][level] if level >= 0 else None, int(charges.meter[place]))
        provider, model, family, service_type, _ = names[group]
        meter, basis = int(charges.meter[place]), BASES[int(charges.basis[place])]
        for name, value in sku(provider, model, family, service_type, meter, terms, basis).items():
            values.setdefault(name, []).append(value)
    return {name: _coded(of_charge, texts) for name, texts in values.items()}


def terms_of(level: Level | None, meter: int) -> dict[str, str]:
    """What else than the service type decides a price, as properties of SkuPriceDetails."""
    if level is None:
        return {}
    is_hour = level.one_hour and METERS[meter].kind == "CacheWrite"
    return {
        **({"x_CacheDuration": "1 hour"} if is_hour else {}),
        **({"x_PromptLength": f"above {level.above} input tokens"} if level.above else {}),
        **({"x_ServiceTier": level.service_tier} if level.service_tier else {}),
    }


def sku(
    provider: str | None, model: str | None, family: str | None, service_type: str | None, meter: int, terms: Mapping[str, str],
    basis: str,
) -> dict[str, str]:  # fmt: skip
    """Columns of one SKU price. Providers publish no such ids: ours are made of provider, model, meter and the terms of the price."""
    measured, seller = METERS[meter], seller_of(provider or "Unknown")
    sku_id = "/".join((provider or "unknown", model or "unknown", measured.slug))
    details = {"x_ModelFamily": family, "x_ModelId": model, "x_ServiceType": service_type, "x_TokenType": measured.kind, **terms}
    said = [text for text in (service_type, *terms.values()) if text]
    in_brackets = f" ({', '.join(said)})" if said else ""
    names = ("HostProviderName", "InvoiceIssuerName", "ProviderName", "PublisherName", "ServiceProviderName")
    return {
        **dict.fromkeys(names, seller.name),
        "ChargeDescription": f"{measured.name} of {model or 'an unknown model'}{in_brackets}{SAID[basis]}",
        "ServiceName": seller.service,
        "SkuId": sku_id,
        "SkuMeter": measured.name,
        "SkuPriceDetails": _json({name: text for name, text in details.items() if text is not None}),
        "SkuPriceId": "/".join((sku_id, *(text.replace(" ", "-") for text in said))),
    }


def _attribution(rows: Any, of_row: Ints, dimensions: Sequence[str]) -> dict[str, Any]:
    """Whose usage it is: Tags by name where there is one, identifiers beside them. Tags hold neither users nor keys."""
    found: dict[str, Any] = {}

    def taken(column: str) -> Any:
        return rows.column(column).take(pa.array(of_row))

    for dimension, name in (
        ("team", "x_TeamId"),
        ("cost_center", "x_CostCenterId"),
        ("user", "x_UserId"),
        ("api_key", "x_ApiKeyId"),
    ):
        if dimension in dimensions:
            found[name] = taken(f"{dimension}_id")
            if f"{dimension}_name" in rows.schema.names:
                found[name.removesuffix("Id") + "Name"] = taken(f"{dimension}_name")
    if "request_type" in dimensions:
        found["x_RequestType"] = taken("request_type")
    if "project" in dimensions:
        code, distinct = _groups([rows.column("project_id"), rows.column("project_name")])
        found["SubAccountId"] = taken("project_id")
        found["SubAccountName"] = _coded(code[of_row], [name or identifier for identifier, name in distinct])
    if tagged := [name for name in TAGS if name in dimensions]:
        sources = [column for name in tagged for column in _tag_columns(name)]
        code, distinct = _groups([rows.column(column) for column in sources])
        found["Tags"] = _coded(code[of_row], [_tags(tagged, sources, values) for values in distinct])
    return found


def _tag_columns(dimension: str) -> tuple[str, ...]:
    return (f"{dimension}_id", f"{dimension}_name") if dimension in ("team", "cost_center") else (dimension,)


def _tags(tagged: Sequence[str], sources: Sequence[str], values: Sequence[str | None]) -> str | None:
    known = {column: value for column, value in zip(sources, values, strict=True) if value is not None}
    tags = {name: known.get(f"{name}_name", known.get(f"{name}_id", known.get(name))) for name in tagged}
    tags = {name: value for name, value in tags.items() if value is not None}
    return _json(tags) if tags else None


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, sort_keys=True)


def _groups(columns: Sequence[Any], numbers: Ints | None = None) -> tuple[Ints, list[tuple[Any, ...]]]:
    """Which rows have the same values in all dictionary `columns` (and `numbers`): each row's group, and the groups' values."""
    keys = [pc.fill_null(pc.cast(column.indices, pa.int64()), -1).to_numpy(zero_copy_only=False) + 1 for column in columns]
    if numbers is not None:
        keys.append(numbers - numbers.min(initial=0))
    code = np.zeros(len(keys[0]), dtype=np.int64)
    for key in keys:
        _, code = np.unique(code * (key.max(initial=0) + 1) + key, return_inverse=True)
    _, first = np.unique(code, return_index=True)
    words = [[None, *column.dictionary.to_pylist()] for column in columns]
    values = [
        (
            *(word[key[place]] for word, key in zip(words, keys, strict=False)),
            *(() if numbers is None else (int(numbers[place]),)),
        )
        for place in first.tolist()
    ]
    return code.astype(np.int64), values


def _moments(rows: Any) -> Any:
    """The start of each row's bucket, UTC without a zone."""
    bucket = next(rows.column(column.name) for column in BUCKETS.values() if column.name in rows.schema.names)
    return pc.cast(pc.cast(bucket, pa.timestamp("us")), pa.int64()).to_numpy(zero_copy_only=False).astype("M8[us]")


def _moment64(moment: datetime) -> Any:
    return np.datetime64(moment.astimezone(UTC).replace(tzinfo=None), "us")


def _counts(column: Any) -> Ints:
    found: Ints = pc.fill_null(column, 0).to_numpy(zero_copy_only=False)
    return found


def _integers(column: Any) -> Objects:
    """A decimal column's digits as whole numbers of its last place; None for NULL."""
    words = np.frombuffer(column.buffers()[1], dtype=np.int64).reshape(-1, 2)[column.offset : column.offset + len(column)]
    found: Objects = (words[:, 1].astype(object) << 64) + words[:, 0].view(np.uint64).astype(object)
    found[pc.is_null(column).to_numpy(zero_copy_only=False)] = None
    return found


def _decimals(values: Objects, scale: int) -> Any:
    """Whole numbers of the last place as decimal128(38, scale); None becomes NULL."""
    is_known = np.array([value is not None for value in values], dtype=bool)
    filled = np.where(is_known, values, 0)
    words = np.empty((len(values), 2), dtype=np.uint64)
    words[:, 0] = (filled & _WORD).astype(np.uint64)
    words[:, 1] = ((filled >> 64) & _WORD).astype(np.uint64)
    validity = pa.py_buffer(np.packbits(is_known, bitorder="little"))
    return pa.Array.from_buffers(pa.decimal128(38, scale), len(values), [validity, pa.py_buffer(words)])


def _coded(indices: Ints, values: Sequence[str | None]) -> Any:
    """A dictionary column of texts; None among the values is NULL."""
    texts = pa.array(values, pa.string())
    places = pa.array(indices, pa.int32(), mask=np.array([value is None for value in values], dtype=bool)[indices])
    return pa.DictionaryArray.from_arrays(places, pc.fill_null(texts, "")).cast(TYPES["text"])


def _constant(value: str | None, length: int) -> Any:
    return _coded(np.zeros(length, dtype=np.int64), [value])
