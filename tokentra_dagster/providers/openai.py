"""OpenAI's organisation usage and costs, asked with an Admin key through the official SDK.

What can be asked: eleven usage endpoints (`openai_endpoints.py`) in minutes, hours or days, at their finest grouping;
costs by day, line item, project and key; names of projects, keys, users and service accounts (`openai_names.py`).
`user_id` is not among the cost dimensions: OpenAI may refuse it together with `project_id` (HTTP 400), depending on the
organisation and the range.

`input_tokens` includes cache reads and cache writes, as our record does. The modality counts (text, audio, image) are
details of it and never added; `input_cache_write_tokens` is already the sum of its 30-minute and 12-hour parts.
`vector_stores` reports stored bytes: a level, not a flow, never added up over time (metadata: `"measure": "level"`).
The request counts of `web_search_calls` are model requests that used the tool.

OpenAI does not say for how long it restates usage; three days is a cautious guess. Tested against SDK 3.57 and the
documented shapes, not live.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.providers.base import ConnectionConfig, Window
from tokentra_dagster.providers.failures import Caller, DamagedPage, Refused
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
    GRANULARITY_SECONDS,
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
OPTIONS = ("endpoints", "costs")
_OWN_COLUMN = frozenset(("object", "project_id", "user_id", "api_key_id", "model", "batch", "service_tier"))


class OpenAISource:
    """One OpenAI organisation."""

    settles_after = timedelta(days=3)

    def __init__(self, config: ConnectionConfig) -> None:
        options = Options(config, OPTIONS)
        self._endpoints = options.some_of("endpoints", tuple(ENDPOINTS), tuple(ENDPOINTS))
        self._with_costs = options.one_of("costs", ("on", "off"), "on") == "on"
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
            for bucket in self._usage_buckets(name, endpoint, window):
                for result in bucket.results:
                    yield _usage_item(name, endpoint, window.granularity, bucket, result)

    def costs(self, window: Window) -> Iterator[Item]:
        """What was billed for each UTC day that the window touches, by line item, project and key."""
        if not self._with_costs:
            return
        method: Any = self._client.admin.organization.usage.with_raw_response.costs

        def ask(start: int, end: int, token: str | None) -> Any:
            return method(
                start_time=start,
                end_time=end,
                bucket_width="1d",
                limit=COSTS_LIMIT,
                group_by=list(COSTS_GROUP_BY),
                **_page(token),
            )

        days = Window(day_floor(window.start), day_ceiling(window.end), "1d")
        for bucket in self._buckets("costs", ask, days, "set the option costs=off to do without them"):
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
        ask = getattr(self._client.admin.organization.usage.with_raw_response, name)
        self._caller.page(
            f"usage/{name}",
            lambda: ask(start_time=today - 86400, end_time=today, bucket_width="1d", limit=1),
            _check_page,
        )
        return "openai: key accepted; usage readable"

    # ---- How a page is fetched -------------------------------------------------------------------------------------

    def _usage_buckets(self, name: str, endpoint: Endpoint, window: Window) -> Iterator[Bucket]:
        method = getattr(self._client.admin.organization.usage.with_raw_response, name)

        def ask(start: int, end: int, token: str | None) -> Any:
            return method(
                start_time=start,
                end_time=end,
                bucket_width=window.granularity,
                limit=USAGE_LIMITS[window.granularity],
                group_by=list(endpoint.group_by),
                **_page(token),
            )

        hint = "if this organisation does not have this endpoint, leave it out with the option endpoints"
        yield from self._buckets(f"usage/{name}", ask, window, hint)

    def _buckets(self, asking: str, ask: Callable[[int, int, str | None], Any], window: Window, hint: str) -> Iterator[Bucket]:
        """Each bucket of the window once, in order. Every page repeats the same parameters.

        A page token can be refused (HTTP 400) or lead nowhere. The paging then starts again, without a token, at the
        end of the last bucket that arrived. Each restart must bring something new: never more restarts than buckets.
        """
        start, end = int(window.start.timestamp()), int(window.end.timestamp())
        width = GRANULARITY_SECONDS[window.granularity]
        asked_from = reached = start
        token: str | None = None
        used: set[str] = set()
        seen: set[int] = set()
        new_since_restart = True
        refused = False

        def fetch() -> dict[str, Any]:
            return self._caller.page(asking, lambda: ask(asked_from, end, token), _check_page, hint)

        while True:
            try:
                page = fetch()
            except Refused as refusal:
                if token is None or refusal.status != 400:
                    raise
                refused = True
            else:
                fresh = False
                for bucket in _read_buckets(page, width):
                    if bucket.start in seen:
                        continue
                    seen.add(bucket.start)
                    reached = max(reached, bucket.end)
                    fresh = new_since_restart = True
                    if start <= bucket.start < end:
                        yield bucket
                following = page.get("next_page") if page.get("has_more", True) else None
                if not following:
                    return
                if fresh and following not in used:
                    used.add(following)
                    token = following
                    continue
            # The token was refused, or repeats itself.
            if reached >= min(end, int(datetime.now(UTC).timestamp())):
                return
            if not new_since_restart:
                if not refused:
                    return  # asked afresh, without a token, and there was nothing more
                raise TransientError(
                    f"openai: {asking} keeps refusing its own page tokens after "
                    f"{datetime.fromtimestamp(reached, UTC):%Y-%m-%d %H:%M} UTC; try again later or a shorter window"
                )
            asked_from, token, new_since_restart = reached, None, False
            used.clear()


@dataclass(frozen=True, slots=True)
class Bucket:
    start: int
    end: int
    results: list[Any]

    @property
    def times(self) -> tuple[datetime, datetime]:
        return datetime.fromtimestamp(self.start, UTC), datetime.fromtimestamp(self.end, UTC)


def _page(token: str | None) -> dict[str, str]:
    return {} if token is None else {"page": token}


def _check_page(page: dict[str, Any]) -> None:
    """Raises `DamagedPage` unless the whole page has the shape of buckets with results."""
    data = page.get("data")
    if not isinstance(data, list):
        raise DamagedPage("it has no list `data`")
    following = page.get("next_page")
    if following is not None and not isinstance(following, str):
        raise DamagedPage(f"next_page is {following!r}")
    for bucket in data:
        if not isinstance(bucket, dict) or not isinstance(bucket.get("results", bucket.get("result")), list):
            raise DamagedPage("a bucket has no list `results`")
        for name in ("start_time", "end_time"):
            if isinstance(bucket.get(name), bool) or not isinstance(bucket.get(name), int):
                raise DamagedPage(f"a bucket's {name} is {bucket.get(name)!r}")


def _read_buckets(page: dict[str, Any], width: int) -> list[Bucket]:
    """The page's buckets; older answers name the list `result`."""
    buckets = [Bucket(item["start_time"], item["end_time"], item.get("results", item.get("result"))) for item in page["data"]]
    for bucket in buckets:
        if not 0 < bucket.end - bucket.start <= width:
            raise PermanentError(
                f"openai: a bucket from {bucket.start} to {bucket.end} came where buckets of {width} s were asked for; "
                "check that base_url is OpenAI's API"
            )
    return buckets


# ---- How one item becomes a record ---------------------------------------------------------------------------------


def _usage_item(name: str, endpoint: Endpoint, granularity: Granularity, bucket: Bucket, result: Any) -> Item:
    start, end = bucket.times
    try:
        _check_object(result, f"organization.usage.{endpoint.result}.result")
        tokens_in = count(result, "input_tokens") if endpoint.tokens_in else 0
        tokens_out = count(result, "output_tokens") if endpoint.tokens_out else 0
        cached = optional_count(result, "input_cached_tokens")
        written = optional_count(result, "input_cache_write_tokens")
        problem = token_problem(tokens_in, tokens_out, cached, written)
        if problem:
            raise BadItem(problem)
        details = {key: optional_count(result, field) for field, key in TOKEN_DETAILS.items()}
        return UsageRecord(
            bucket_start=start,
            bucket_end=end,
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
            quantity=Decimal(count(result, endpoint.quantity)) if endpoint.quantity else None,
            quantity_unit=endpoint.unit,
            request_count=count(result, endpoint.requests) if endpoint.requests else None,
            provider_project_id=optional_text(result, "project_id"),
            api_key_id=optional_text(result, "api_key_id"),
            user_id=optional_text(result, "user_id"),
            metadata=_metadata(name, result),
        )
    except BadItem as bad:
        return RejectedItem(reason=f"openai usage/{name}: {bad}", payload=result, bucket_start=start)


def _cost_item(bucket: Bucket, result: Any) -> Item:
    start, end = bucket.times
    try:
        _check_object(result, "organization.costs.result")
        money = mapping(result, "amount")
        currency = optional_text(money, "currency")
        if currency is None:
            raise BadItem("amount.currency is missing; it is required")
        line_item = optional_text(result, "line_item")
        model, _, thing = (line_item or "").rpartition(", ")
        return CostRecord(
            bucket_start=start,
            bucket_end=end,
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
        return RejectedItem(reason=f"openai costs: {bad}", payload=result, bucket_start=start)


def _check_object(result: Any, expected: str) -> None:
    kind = result.get("object") if isinstance(result, Mapping) else type(result).__name__
    if kind != expected:
        raise BadItem(f"the result is a {kind!r}; {expected!r} was expected")


def _service_type(result: Mapping[str, Any]) -> str | None:
    batch = result.get("batch")
    if batch is None:
        return None
    if not isinstance(batch, bool):
        raise BadItem(f"batch is {batch!r}; true or false is required")
    return "batch" if batch else "sync"


def _metadata(name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """The endpoint, and every further dimension that OpenAI gave, new ones included."""
    further = {
        key: value for key, value in result.items() if value is not None and key not in MEASURES and key not in _OWN_COLUMN
    }
    level = {"measure": "level"} if name == "vector_stores" else {}
    return {"endpoint": name, **level, **further}
