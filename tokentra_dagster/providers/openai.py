"""OpenAI's organisation usage and costs, asked with an Admin key through the official SDK.

What can be asked: eleven usage endpoints (`openai_endpoints.py`) in minutes, hours or days, at their finest grouping;
costs by day, line item, project and key; names of projects, keys, users and service accounts (`openai_names.py`).
`user_id` is not among the cost dimensions unless the option `costs_group_by` asks for it: OpenAI may refuse it together
with `project_id` (HTTP 400), depending on the organisation and the range. A refusal is an error: silently dividing some days
otherwise than others would make them incomparable.

`input_tokens` includes cache reads and cache writes, as our record does. The modality counts (text, audio, image) are
details of it and never added. `input_cache_write_tokens` is already the sum of its 30-minute and 12-hour parts; these are
added only where the sum is missing.
`vector_stores` reports stored bytes: a level, not a flow. It becomes byte-hours, which may be added up (metadata: `usage_bytes`).
The model requests of `web_search_calls` used the tool; whether `completions` counts them too is not documented, so they are
kept in the metadata and no request is counted twice.

Tested against SDK 3.57 and the documented shapes, not live.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from tokentra_dagster.errors import PermanentError
from tokentra_dagster.providers.base import ConnectionConfig, Window
from tokentra_dagster.providers.bucket_pages import Bucket, Report, buckets, check_page, results_of
from tokentra_dagster.providers.failures import Caller, DamagedPage
from tokentra_dagster.providers.openai_endpoints import ENDPOINTS, MEASURES, TOKEN_DETAILS, Endpoint
from tokentra_dagster.providers.options import Options
from tokentra_dagster.providers.payload import (
    BadItem,
    amount,
    count,
    day_ceiling,
    day_floor,
    mapping,
    optional_amount,
    optional_count,
    optional_text,
)
from tokentra_dagster.records import (
    CostRecord,
    EntityName,
    Granularity,
    Item,
    RejectedItem,
    UsageRecord,
    token_problem,
)

# ---- What it can be asked ------------------------------------------------------------------------------------------

BASE_URL = "https://api.openai.com/v1"
KEY_NEEDED = "an Admin API key (sk-admin-..., made by an organisation owner under Settings > Admin keys)"
USAGE_LIMITS: dict[Granularity, int] = {"1m": 1440, "1h": 168, "1d": 31}
"""The most buckets that one page may hold, by width."""
COSTS_LIMIT = 180
COSTS_GROUP_BY = ("line_item", "project_id", "api_key_id")
COSTS_GROUPABLE = (*COSTS_GROUP_BY, "user_id", "api_source")
OPTIONS = ("endpoints", "costs", "costs_group_by")
_COSTS_HINT = (
    "OpenAI does not give every organisation user_id together with project_id: correct the option costs_group_by, "
    "or set the option costs=off to do without costs"
)
_YEAR_3000 = 32_503_680_000
_OWN_COLUMN = frozenset(("object", "project_id", "user_id", "api_key_id", "model", "batch", "service_tier"))


class OpenAISource:
    """One OpenAI organisation."""

    def __init__(self, config: ConnectionConfig) -> None:
        options = Options(config, OPTIONS)
        self._endpoints = options.some_of("endpoints", tuple(ENDPOINTS), tuple(ENDPOINTS))
        self._with_costs = options.one_of("costs", ("on", "off"), "on") == "on"
        self._costs_group_by = options.some_of("costs_group_by", COSTS_GROUPABLE, COSTS_GROUP_BY)
        if "line_item" not in self._costs_group_by:
            raise PermanentError("openai: option costs_group_by must contain line_item; without it costs say not what for")
        import openai

        self._client = openai.OpenAI(
            admin_api_key=config.api_key,
            base_url=config.base_url or BASE_URL,
            timeout=options.timeout_seconds,
            max_retries=options.max_retries,
        )
        # The key says which organisation is asked; a developer's environment must not.
        self._client.organization = None
        self._client.project = None
        self._caller = Caller("openai", openai, KEY_NEEDED, config.api_key, min(options.max_retries, 2))

    def usage(self, window: Window) -> Iterator[Item]:
        """Every endpoint's buckets that start in the window, at the finest grouping."""
        for name in self._endpoints:
            endpoint = ENDPOINTS[name]
            for bucket in buckets(self._caller, self._usage_report(name, endpoint, window.granularity), window):
                for result in bucket.results:
                    yield _usage_item(name, endpoint, window.granularity, bucket, result)

    def costs(self, window: Window) -> Iterator[Item]:
        """What was billed for each UTC day that the window touches, by line item, project and key."""
        if not self._with_costs:
            return
        days = Window(day_floor(window.start), day_ceiling(window.end), "1d")
        for bucket in buckets(self._caller, self._cost_report(), days):
            for result in bucket.results:
                yield _cost_item(bucket, result)

    def names(self) -> Iterator[EntityName]:
        """Projects (archived too), their keys and service accounts, and users."""
        from tokentra_dagster.providers.openai_names import names

        return names(self._client.admin.organization, self._caller)

    def check(self) -> str:
        """Asks for one bucket of yesterday's usage."""
        name = self._endpoints[0]
        today = int(day_floor(datetime.now(UTC)).timestamp())
        ask = getattr(self._client.admin.organization.usage.with_streaming_response, name)
        self._caller.page(
            f"usage/{name}",
            lambda: ask(start_time=today - 86400, end_time=today, bucket_width="1d", limit=1),
            _read,
        )
        return "openai: key accepted; usage readable"

    def remarks(self) -> list[str]:
        return []

    # ---- How a page is fetched -------------------------------------------------------------------------------------

    def _usage_report(self, name: str, endpoint: Endpoint, granularity: Granularity) -> Report:
        method = getattr(self._client.admin.organization.usage.with_streaming_response, name)

        def ask(start: datetime, end: datetime, limit: int, token: str | None) -> Any:
            return method(
                start_time=int(start.timestamp()),
                end_time=int(end.timestamp()),
                bucket_width=granularity,
                limit=limit,
                group_by=list(endpoint.group_by),
                **_page(token),
            )

        hint = "if this organisation does not have this endpoint, leave it out with the option endpoints"
        return Report(f"usage/{name}", ask, _read, USAGE_LIMITS[granularity], hint)

    def _cost_report(self) -> Report:
        method: Any = self._client.admin.organization.usage.with_streaming_response.costs

        def ask(start: datetime, end: datetime, limit: int, token: str | None) -> Any:
            return method(
                start_time=int(start.timestamp()),
                end_time=int(end.timestamp()),
                bucket_width="1d",
                limit=limit,
                group_by=list(self._costs_group_by),
                **_page(token),
            )

        return Report("costs", ask, _read, COSTS_LIMIT, _COSTS_HINT)


def _page(token: str | None) -> dict[str, str]:
    return {} if token is None else {"page": token}


def _read(page: dict[str, Any]) -> list[Bucket]:
    """The page's buckets; older answers name the list `result`. Raises `DamagedPage`."""
    return [
        Bucket(_moment(item, "start_time"), _moment(item, "end_time"), results_of(item))
        for item in check_page(page, "start_time", "end_time")
    ]


def _moment(bucket: dict[str, Any], name: str) -> datetime:
    seconds = bucket[name]
    if isinstance(seconds, bool) or not isinstance(seconds, int) or not 0 <= seconds < _YEAR_3000:
        raise DamagedPage(f"a bucket's {name} is {seconds!r}")
    return datetime.fromtimestamp(seconds, UTC)


# ---- How one item becomes a record ---------------------------------------------------------------------------------


def _usage_item(name: str, endpoint: Endpoint, granularity: Granularity, bucket: Bucket, result: Any) -> Item:
    try:
        _check_object(result, f"organization.usage.{endpoint.result}.result")
        tokens_in = count(result, "input_tokens") if endpoint.tokens_in else 0
        tokens_out = count(result, "output_tokens") if endpoint.tokens_out else 0
        cached = optional_count(result, "input_cached_tokens")
        written = _cache_writes(result)
        problem = token_problem(tokens_in, tokens_out, cached, written)
        if problem:
            raise BadItem(problem)
        details = {key: optional_count(result, field) for field, key in TOKEN_DETAILS.items()}
        return UsageRecord(
            bucket_start=bucket.start,
            bucket_end=bucket.end,
            granularity=granularity,
            model=optional_text(result, "model") or name,
            request_type=endpoint.request_type,
            service_type=_service_type(result),
            service_tier=optional_text(result, "service_tier"),
            input_tokens=tokens_in,
            output_tokens=tokens_out,
            cached_input_tokens=cached,
            cache_creation_tokens=written,
            token_details={key: value for key, value in details.items() if value is not None},
            quantity=_quantity(endpoint, bucket, result),
            quantity_unit=endpoint.unit,
            request_count=count(result, endpoint.requests) if endpoint.requests else None,
            provider_project_id=optional_text(result, "project_id"),
            api_key_id=optional_text(result, "api_key_id"),
            user_id=optional_text(result, "user_id"),
            metadata=_metadata(name, endpoint, result) | _disagreement(result, tokens_in, cached, written),
        )
    except BadItem as bad:
        return RejectedItem(reason=f"openai usage/{name}: {bad}", payload=result, bucket_start=bucket.start)


def _cost_item(bucket: Bucket, result: Any) -> Item:
    try:
        _check_object(result, "organization.costs.result")
        money = mapping(result, "amount")
        currency = optional_text(money, "currency")
        if currency is None:
            raise BadItem("amount.currency is missing; it is required")
        line_item = optional_text(result, "line_item")
        model, _, thing = (line_item or "").rpartition(", ")
        return CostRecord(
            bucket_start=bucket.start,
            bucket_end=bucket.end,
            amount=amount(money, "value"),
            currency=currency.upper(),
            line_item=line_item,
            model=model or None,
            token_type=thing if model else None,
            provider_project_id=optional_text(result, "project_id"),
            api_key_id=optional_text(result, "api_key_id"),
            user_id=optional_text(result, "user_id"),
            quantity=optional_amount(result, "quantity"),
            quantity_unit=optional_text(result, "quantity_unit"),
            metadata={"api_source": result["api_source"]} if result.get("api_source") is not None else {},
        )
    except BadItem as bad:
        return RejectedItem(reason=f"openai costs: {bad}", payload=result, bucket_start=bucket.start)


def _check_object(result: Any, expected: str) -> None:
    kind = result.get("object") if isinstance(result, Mapping) else type(result).__name__
    if kind != expected:
        raise BadItem(f"the result is a {kind!r}; {expected!r} was expected")


def _cache_writes(result: Mapping[str, Any]) -> int | None:
    """The sum where it is given, else its two parts; never both."""
    whole = optional_count(result, "input_cache_write_tokens")
    parts = [optional_count(result, f"input_cache_write_{kept}_tokens") for kept in ("30m", "12h")]
    known = [part for part in parts if part is not None]
    return whole if whole is not None or not known else sum(known)


def _service_type(result: Mapping[str, Any]) -> str | None:
    batch = result.get("batch")
    if batch is None:
        return None
    if not isinstance(batch, bool):
        raise BadItem(f"batch is {batch!r}; true or false is required")
    return "batch" if batch else "sync"


def _disagreement(result: Mapping[str, Any], tokens_in: int, cached: int | None, written: int | None) -> dict[str, int]:
    """OpenAI's own count of uncached input, kept where it is not what is left of `input_tokens`."""
    uncached = optional_count(result, "input_uncached_tokens")
    left = tokens_in - (cached or 0) - (written or 0)
    return {} if uncached is None or uncached == left else {"reported_uncached_tokens": uncached}


def _quantity(endpoint: Endpoint, bucket: Bucket, result: Mapping[str, Any]) -> Decimal | None:
    """What is not tokens. Stored bytes become byte-hours, which may be added up over time as levels may not."""
    if endpoint.quantity is None:
        return None
    counted = Decimal(count(result, endpoint.quantity))
    if not endpoint.level:
        return counted
    hours = Decimal(int((bucket.end - bucket.start).total_seconds())) / 3600
    return (counted * hours).quantize(Decimal("0.000001"))


def _metadata(name: str, endpoint: Endpoint, result: Mapping[str, Any]) -> dict[str, Any]:
    """The endpoint, every further dimension that OpenAI gave, new ones included, and measures that fill no column."""
    further = {
        key: value for key, value in result.items() if value is not None and key not in MEASURES and key not in _OWN_COLUMN
    }
    unused = {
        key: result[key]
        for key in ("usage_bytes", "num_model_requests")
        if result.get(key) is not None and key != endpoint.requests
    }
    return {"endpoint": name, **further, **unused}
