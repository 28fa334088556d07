"""Anthropic's legacy reports: usage_report/messages and cost_report, for days that the analytics API does not reach.

They are not in the SDK; its client sends the requests. `anthropic-version` is pinned to 2023-06-01, the version they
were documented with. They differ from the analytics API: no request counts, the default workspace is `workspace_id:
null` (metadata says `"default_workspace": true`), costs divide by workspace and description only, never by key, and
leave out Priority Tier. Usage is grouped by everything but `speed`, which needs a beta header and did not exist in the
days that only these reports reach. Code execution is in costs, not in usage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from tokentra_dagster.errors import TransientError
from tokentra_dagster.providers.anthropic_tokens import tokens
from tokentra_dagster.providers.base import Window
from tokentra_dagster.providers.failures import Caller, DamagedPage
from tokentra_dagster.providers.payload import BadItem, amount, cents_to_units, instant, optional_text
from tokentra_dagster.records import (
    GRANULARITY_SECONDS,
    CostRecord,
    Granularity,
    Item,
    RejectedItem,
    UsageRecord,
)

# ---- What it can be asked ------------------------------------------------------------------------------------------

USAGE_PATH = "/v1/organizations/usage_report/messages"
COST_PATH = "/v1/organizations/cost_report"
VERSION = "2023-06-01"
USAGE_LIMITS: dict[Granularity, int] = {"1m": 1440, "1h": 168, "1d": 31}
COST_LIMIT = 31
USAGE_GROUP_BY = (
    "account_id", "api_key_id", "context_window", "inference_geo", "model", "service_account_id", "service_tier",
    "workspace_id",
)  # fmt: skip
COST_GROUP_BY = ("workspace_id", "description")


class LegacyReports:
    def __init__(self, client: Any, caller: Caller) -> None:
        self._client = client
        self._caller = caller

    def usage(self, window: Window) -> Iterator[Item]:
        def to_item(start: datetime, end: datetime, result: Any) -> Item:
            return _usage_item(start, end, window.granularity, result)

        limit = USAGE_LIMITS[window.granularity]
        yield from self._items("usage_report/messages", USAGE_PATH, window, USAGE_GROUP_BY, limit, to_item)

    def costs(self, window: Window) -> Iterator[Item]:
        yield from self._items("cost_report", COST_PATH, window, COST_GROUP_BY, COST_LIMIT, _cost_item)

    def check(self, window: Window) -> None:
        params = {"starting_at": _text(window.start), "ending_at": _text(window.end), "bucket_width": "1d", "limit": 1}
        self._caller.page("usage_report/messages", lambda: self._get(USAGE_PATH, params), _check_page)

    # ---- How a page is fetched -------------------------------------------------------------------------------------

    def _items(
        self,
        asking: str,
        path: str,
        window: Window,
        group_by: tuple[str, ...],
        limit: int,
        to_item: Callable[[datetime, datetime, Any], Item],
    ) -> Iterator[Item]:
        params: dict[str, Any] = {
            "starting_at": _text(window.start),
            "ending_at": _text(window.end),
            "bucket_width": window.granularity,
            "group_by": list(group_by),
            "limit": limit,
        }
        width = timedelta(seconds=GRANULARITY_SECONDS[window.granularity])
        used: set[str] = set()
        token: dict[str, str] = {}
        while True:
            page = self._caller.page(asking, lambda: self._get(path, params | token), _check_page)  # noqa: B023
            for bucket in page["data"]:
                try:
                    start, end = instant(bucket, "starting_at"), instant(bucket, "ending_at")
                    if not timedelta(0) < end - start <= width:
                        raise BadItem(f"the bucket covers {end - start}; buckets of {width} were asked for")
                except BadItem as bad:
                    yield RejectedItem(reason=f"anthropic {asking}: {bad}", payload=bucket)
                    continue
                if window.start <= start < window.end:
                    for result in bucket["results"]:
                        yield to_item(start, end, result)
            following = page.get("next_page") if page.get("has_more", True) else None
            if not following:
                return
            if following in used:
                raise TransientError(f"anthropic: {asking} repeats the same page; try again later")
            used.add(following)
            token = {"page": following}

    def _get(self, path: str, params: Mapping[str, Any]) -> Any:
        import httpx2

        options = {"params": dict(params), "headers": {"anthropic-version": VERSION}}
        return self._client.get(path, cast_to=httpx2.Response, options=options)


def _check_page(page: dict[str, Any]) -> None:
    data = page.get("data")
    if not isinstance(data, list):
        raise DamagedPage("it has no list `data`")
    if any(not isinstance(bucket, dict) or not isinstance(bucket.get("results"), list) for bucket in data):
        raise DamagedPage("a bucket has no list `results`")
    if not isinstance(page.get("next_page"), str | None):
        raise DamagedPage(f"next_page is {page['next_page']!r}")


def _text(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


# ---- How one item becomes a record ---------------------------------------------------------------------------------


def _usage_item(start: datetime, end: datetime, granularity: Granularity, result: Any) -> Item:
    try:
        _check_object(result)
        counted = tokens(result)
        tier = optional_text(result, "service_tier")
        return UsageRecord(
            bucket_start=start,
            bucket_end=end,
            granularity=granularity,
            model=optional_text(result, "model") or "messages",
            request_type="chat",
            service_type=None if tier is None else "batch" if tier == "batch" else "sync",
            service_tier=tier,
            input_tokens=counted.input_tokens,
            output_tokens=counted.output_tokens,
            cached_input_tokens=counted.cached_input_tokens,
            cache_creation_tokens=counted.cache_creation_tokens,
            token_details=counted.details,
            provider_project_id=optional_text(result, "workspace_id"),
            api_key_id=optional_text(result, "api_key_id"),
            user_id=optional_text(result, "account_id") or optional_text(result, "service_account_id"),
            context_window=optional_text(result, "context_window"),
            metadata=_further(result, "inference_geo", "service_account_id") | counted.metadata,
        )
    except BadItem as bad:
        return RejectedItem(reason=f"anthropic usage_report/messages: {bad}", payload=result, bucket_start=start)


def _cost_item(start: datetime, end: datetime, result: Any) -> Item:
    try:
        _check_object(result)
        return CostRecord(
            bucket_start=start,
            bucket_end=end,
            amount=cents_to_units(amount(result, "amount")),
            currency=(optional_text(result, "currency") or "USD").upper(),
            line_item=optional_text(result, "description"),
            model=optional_text(result, "model"),
            cost_type=optional_text(result, "cost_type"),
            token_type=optional_text(result, "token_type"),
            provider_project_id=optional_text(result, "workspace_id"),
            metadata=_further(result, "service_tier", "context_window", "inference_geo"),
        )
    except BadItem as bad:
        return RejectedItem(reason=f"anthropic cost_report: {bad}", payload=result, bucket_start=start)


def _check_object(result: Any) -> None:
    if not isinstance(result, Mapping):
        raise BadItem(f"the result is a {type(result).__name__}; an object is required")


def _further(result: Mapping[str, Any], *names: str) -> dict[str, Any]:
    further = {name: result[name] for name in names if result.get(name) is not None}
    return further if result.get("workspace_id") else {**further, "default_workspace": True}
