"""Anthropic's legacy reports: usage_report/messages and cost_report, for days that the analytics API does not reach.

They are not in the SDK; its client sends the requests. `anthropic-version` is pinned to 2023-06-01, the version they
were documented with. They differ from the analytics API: no request counts, the default workspace is `workspace_id:
null` (metadata says `"default_workspace": true`), costs divide by workspace and description only, never by key, and
leave out Priority Tier. Usage is grouped by everything but `speed`, which needs a beta header and did not exist in the
days that only these reports reach. Code execution is in costs, not in usage. New fields are kept in the metadata.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing
from datetime import UTC, datetime
from typing import Any

from tokentra_dagster.providers.anthropic_tokens import USAGE_FIELDS, tokens
from tokentra_dagster.providers.base import Window
from tokentra_dagster.providers.bucket_pages import Bucket, Report, buckets, check_page, results_of
from tokentra_dagster.providers.failures import Caller, DamagedPage
from tokentra_dagster.providers.payload import BadItem, amount, cents_to_units, instant, optional_text
from tokentra_dagster.records import (
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
_USAGE_COLUMNS = frozenset((*USAGE_FIELDS, "model", "workspace_id", "api_key_id", "account_id", "service_tier", "context_window"))
_COST_COLUMNS = frozenset(("amount", "currency", "description", "model", "cost_type", "token_type", "workspace_id"))


class LegacyReports:
    def __init__(self, client: Any, caller: Caller) -> None:
        self._client = client
        self._caller = caller

    def usage(self, window: Window) -> Iterator[Item]:
        limit = USAGE_LIMITS[window.granularity]
        report = self._report("usage_report/messages", USAGE_PATH, window.granularity, USAGE_GROUP_BY, limit)
        for bucket in buckets(self._caller, report, window):
            for result in bucket.results:
                yield _usage_item(bucket, window.granularity, result)

    def costs(self, window: Window) -> Iterator[Item]:
        report = self._report("cost_report", COST_PATH, "1d", COST_GROUP_BY, COST_LIMIT)
        for bucket in buckets(self._caller, report, window):
            for result in bucket.results:
                yield _cost_item(bucket, result)

    def check(self, window: Window) -> None:
        """Asks for one bucket without grouping."""
        params = {"starting_at": _text(window.start), "ending_at": _text(window.end), "bucket_width": "1d", "limit": 1}
        self._caller.page("usage_report/messages", lambda: self._get(USAGE_PATH, params), _read)

    # ---- How a page is fetched -------------------------------------------------------------------------------------

    def _report(self, asking: str, path: str, width: Granularity, group_by: tuple[str, ...], most: int) -> Report:
        def ask(start: datetime, end: datetime, limit: int, token: str | None) -> Any:
            params: dict[str, Any] = {
                "starting_at": _text(start),
                "ending_at": _text(end),
                "bucket_width": width,
                "group_by": list(group_by),
                "limit": limit,
            }
            return self._get(path, params if token is None else params | {"page": token})

        return Report(asking, ask, _read, most)

    def _get(self, path: str, params: dict[str, Any]) -> AbstractContextManager[Any]:
        import httpx2

        headers = {"anthropic-version": VERSION, "X-Stainless-Raw-Response": "stream"}
        answer: Any = self._client.get(path, cast_to=httpx2.Response, options={"params": params, "headers": headers})
        return closing(answer)


def _read(page: dict[str, Any]) -> list[Bucket]:
    """The page's buckets. Raises `DamagedPage`."""
    try:
        return [
            Bucket(instant(item, "starting_at"), instant(item, "ending_at"), results_of(item))
            for item in check_page(page, "starting_at", "ending_at")
        ]
    except BadItem as bad:
        raise DamagedPage(f"a bucket's {bad}") from None


def _text(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


# ---- How one item becomes a record ---------------------------------------------------------------------------------


def _usage_item(bucket: Bucket, granularity: Granularity, result: Any) -> Item:
    try:
        _check_object(result)
        counted = tokens(result)
        tier = optional_text(result, "service_tier")
        return UsageRecord(
            bucket_start=bucket.start,
            bucket_end=bucket.end,
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
            metadata=_further(result, _USAGE_COLUMNS) | counted.metadata,
        )
    except BadItem as bad:
        return RejectedItem(reason=f"anthropic usage_report/messages: {bad}", payload=result, bucket_start=bucket.start)


def _cost_item(bucket: Bucket, result: Any) -> Item:
    try:
        _check_object(result)
        return CostRecord(
            bucket_start=bucket.start,
            bucket_end=bucket.end,
            amount=cents_to_units(amount(result, "amount")),
            currency=(optional_text(result, "currency") or "USD").upper(),
            line_item=optional_text(result, "description"),
            model=optional_text(result, "model"),
            cost_type=optional_text(result, "cost_type"),
            token_type=optional_text(result, "token_type"),
            provider_project_id=optional_text(result, "workspace_id"),
            metadata=_further(result, _COST_COLUMNS),
        )
    except BadItem as bad:
        return RejectedItem(reason=f"anthropic cost_report: {bad}", payload=result, bucket_start=bucket.start)


def _check_object(result: Any) -> None:
    if not isinstance(result, Mapping):
        raise BadItem(f"the result is a {type(result).__name__}; an object is required")


def _further(result: Mapping[str, Any], own_columns: frozenset[str]) -> dict[str, Any]:
    """Every further field that was given, new ones included."""
    further = {name: value for name, value in result.items() if value is not None and name not in own_columns}
    return further if result.get("workspace_id") else {**further, "default_workspace": True}
