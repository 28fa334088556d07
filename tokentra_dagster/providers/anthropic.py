"""Anthropic's organisation usage and costs, asked with an Admin key through the official SDK.

What can be asked: the Usage and Cost Analytics API (beta) from 2026-01-01 on and 365 days back, in minutes, hours or
days, and before that the legacy reports (`anthropic_legacy.py`). The option `api` chooses: `auto` (default) splits a
window where the analytics history begins, `analytics` and `legacy` use one of them only.

Usage divides by at most five dimensions. The default five (`GROUP_BY`), and why:
  model, service_tier, context_window   the price of a token (batch is half price; long prompts may cost more)
  workspace_id                          the project; not derivable from the others for usage without a key
  actor                                 the user, service account or federated identity, else the API key itself
`api_key_id` is left out because an unbound key is its own actor and fills `api_key_id` of the record; only usage of a
key bound to a user or service account loses which of their keys it was. `speed` and `inference_geo` also change the
price: an organisation that uses fast mode or pinned regions sets the option `group_by` (it must contain model). Costs
use the same five, so both join by day, plus `cost_type` and `token_type`, which do not count towards five.
Never asked: `rbac_group_id` (a user in two groups counts twice) and `claude_tag_user_id` (rows sum to less than the
total). Several actors that Anthropic cannot name come as separate rows with `actor: null`: rows have no unique key.

Not loaded: the legacy Claude Code report. What it counts for API customers is already in messages usage, and its cost
for subscriptions is notional; adding it would count twice.

Anthropic counts only uncached input as input; ours is uncached + cache reads + cache writes. Amounts are text in cents.
What is new in an answer is kept in the metadata under its own name and never guessed to be tokens; a `total_tokens` that is
not our sum is kept as `reported_total_tokens`. How far Anthropic's own figures reach (`data_refreshed_at`) is a remark.
`anthropic-version` is pinned to what was tested: 2026-10-21 with SDK 2.13. How a live account answers is unverified.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.providers.anthropic_legacy import LegacyReports
from tokentra_dagster.providers.anthropic_tokens import USAGE_FIELDS, tokens
from tokentra_dagster.providers.base import ConnectionConfig, Window
from tokentra_dagster.providers.failures import Caller, DamagedPage
from tokentra_dagster.providers.options import Options
from tokentra_dagster.providers.payload import (
    DAY,
    BadItem,
    amount,
    cents_to_units,
    day_ceiling,
    day_floor,
    instant,
    mapping,
    optional_amount,
    optional_count,
    optional_text,
    spans,
)
from tokentra_dagster.records import (
    GRANULARITY_SECONDS,
    CostRecord,
    EntityName,
    Granularity,
    Item,
    RejectedItem,
    UsageRecord,
)

# ---- What it can be asked ------------------------------------------------------------------------------------------

BASE_URL = "https://api.anthropic.com"
VERSION = "2026-10-21"
KEY_NEEDED = "an Admin API key (sk-ant-admin01-..., from Console > Settings > Admin keys) or a key with read:analytics"
OPTIONS = ("api", "group_by")
APIS = ("auto", "analytics", "legacy")

ANALYTICS_BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
ANALYTICS_REACH = timedelta(days=365)
LONGEST: dict[Granularity, timedelta] = {"1m": timedelta(hours=24), "1h": timedelta(days=31), "1d": timedelta(days=31)}
ROWS_PER_PAGE = 1000
MOST_GROUPS = 5

GROUP_BY = ("model", "workspace_id", "actor", "service_tier", "context_window")
GROUPABLE = (
    *GROUP_BY, "api_key_id", "speed", "inference_geo", "product", "actor_type", "agent_id", "claude_tag_category",
    "deployment_id", "environment_id", "organization_id", "session_id", "slack_channel_id", "user_profile_id",
)  # fmt: skip
_OWN_COLUMN = frozenset(("model", "workspace_id", "api_key_id", "actor", "service_tier", "context_window"))
_COST_FIELDS = frozenset(("amount", "list_amount", "currency", "requests"))
_HINT = "correct the option group_by, or set the option api=legacy if this organisation cannot use the analytics API"


class AnthropicSource:
    """One Anthropic organisation."""

    def __init__(self, config: ConnectionConfig, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        options = Options(config, OPTIONS)
        self._api = options.one_of("api", APIS, "auto")
        self._group_by = options.some_of("group_by", GROUPABLE, GROUP_BY, most=MOST_GROUPS)
        if "model" not in self._group_by:
            raise PermanentError("anthropic: option group_by must contain model; without it no usage can be priced")
        self._now = now
        self._unnamed: list[str] = []
        self.data_refreshed_at: str | None = None
        """How far Anthropic's own numbers reached when the last page was made, as it said it."""
        import anthropic

        self._client = anthropic.Anthropic(
            api_key=config.api_key,
            base_url=config.base_url or BASE_URL,
            timeout=options.timeout_seconds,
            max_retries=options.max_retries,
            default_headers={"anthropic-version": VERSION},
        )
        # The SDK adds ANTHROPIC_CUSTOM_HEADERS of the environment, which could even replace the key.
        self._client._custom_headers = {"anthropic-version": VERSION}
        self._caller = Caller("anthropic", anthropic, KEY_NEEDED, config.api_key, min(options.max_retries, 2))
        self._legacy = LegacyReports(self._client, self._caller)

    def usage(self, window: Window) -> Iterator[Item]:
        """Token usage by the chosen five dimensions; before the analytics history begins, by the legacy ones."""
        old, new = self._split(window)
        if old:
            yield from self._legacy.usage(old)
        if new:
            ask: Any = self._client.beta.organization.analytics.usage.with_streaming_response.list
            for row in self._rows("analytics/usage", ask, new, self._group_by):
                yield from _in_span(_usage_item(row, new.granularity), new)

    def costs(self, window: Window) -> Iterator[Item]:
        """What was billed for each UTC day that the window touches."""
        old, new = self._split(Window(day_floor(window.start), day_ceiling(window.end), "1d"))
        if old:
            yield from self._legacy.costs(old)
        if new:
            ask: Any = self._client.beta.organization.analytics.cost.with_streaming_response.list
            for row in self._rows("analytics/cost", ask, new, (*self._group_by, "cost_type", "token_type")):
                yield from _in_span(_cost_item(row), new)

    def names(self) -> Iterator[EntityName]:
        """Workspaces (archived and default too), API keys, users and service accounts, as far as the key may list them."""
        from tokentra_dagster.providers.anthropic_names import names

        self._unnamed.clear()
        return names(self._client.organization, self._caller, self._unnamed)

    def remarks(self) -> list[str]:
        """How far Anthropic's own figures reach, and which names the key may not read."""
        reach = [f"Anthropic's figures reach to {self.data_refreshed_at}."] if self.data_refreshed_at else []
        return reach + [f"The key may not list {what}; their ids stay without names." for what in self._unnamed]

    def check(self) -> str:
        """Asks for one row of yesterday's usage."""
        today = day_floor(self._now())
        if self._api == "legacy":
            self._legacy.check(Window(today - DAY, today, "1d"))
        else:
            ask = self._client.beta.organization.analytics.usage.with_streaming_response.list
            self._caller.page(
                "analytics/usage",
                lambda: ask(starting_at=_text(today - DAY), ending_at=_text(today), time_bucket_width="1d", limit=1),
                _check_page,
                _HINT,
            )
        return "anthropic: key accepted; usage readable"

    def _split(self, window: Window) -> tuple[Window | None, Window | None]:
        """The part of the window for the legacy reports and the part for the analytics API."""
        if self._api == "legacy":
            return window, None
        # One day-aligned boundary, an hour inside what is allowed, so that it still holds when the request arrives.
        begins = max(ANALYTICS_BEGAN, day_ceiling(self._now() - ANALYTICS_REACH + timedelta(hours=1)))
        if self._api == "analytics" and window.start < begins:
            raise PermanentError(
                f"anthropic: the analytics API has nothing before {begins:%Y-%m-%d}, but the window begins at "
                f"{_text(window.start)}; set the option api=auto, or begin later"
            )
        old = Window(window.start, min(window.end, begins), window.granularity) if window.start < begins else None
        new = Window(max(window.start, begins), window.end, window.granularity) if window.end > begins else None
        return old, new

    # ---- How a page is fetched -------------------------------------------------------------------------------------

    def _rows(self, asking: str, ask: Any, window: Window, group_by: tuple[str, ...]) -> Iterator[Any]:
        """Every row of the window, in spans that the API allows, by time: the default order moves with the data."""
        for start, end in spans(window.start, window.end, LONGEST[window.granularity]):
            params: dict[str, Any] = {
                "starting_at": _text(start),
                "ending_at": _text(end),
                "time_bucket_width": window.granularity,
                "group_by": list(group_by),
                "order_by": "time",
                "order": "asc",
                "limit": ROWS_PER_PAGE,
            }
            used: set[str] = set()
            token: dict[str, str] = {}
            while True:
                page = self._caller.page(asking, lambda: ask(**params, **token), _check_page, _HINT)  # noqa: B023
                self.data_refreshed_at = page.get("data_refreshed_at") or self.data_refreshed_at
                yield from page["data"]
                following = page.get("next_page") if page.get("has_more", True) else None
                if not following:
                    break
                if following in used:
                    # Rows have no key, so it cannot be told which of them would be missing or double.
                    raise TransientError(
                        f"anthropic: {asking} repeats the same page for {_text(start)} to {_text(end)}; try again later"
                    )
                used.add(following)
                token = {"page": following}


def _check_page(page: dict[str, Any]) -> None:
    if not isinstance(page.get("data"), list):
        raise DamagedPage("it has no list `data`")
    if not isinstance(page.get("next_page"), str | None):
        raise DamagedPage(f"next_page is {page['next_page']!r}")


def _text(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _in_span(item: Item, window: Window) -> Iterator[Item]:
    if item.bucket_start is None or window.start <= item.bucket_start < window.end:
        yield item


# ---- How one item becomes a record ---------------------------------------------------------------------------------


def _usage_item(row: Any, granularity: Granularity) -> Item:
    start: datetime | None = None
    try:
        start, end = _bounds(row, timedelta(seconds=GRANULARITY_SECONDS[granularity]))
        group, usage = mapping(row, "group"), mapping(row, "usage")
        counted = tokens(usage)
        model, tier = optional_text(group, "model"), optional_text(group, "service_tier")
        metadata = _further(group) | counted.metadata | _new_in(usage, USAGE_FIELDS | {"requests", "total_tokens"})
        total = optional_count(usage, "total_tokens")
        if total is not None and total != counted.input_tokens + counted.output_tokens:
            metadata["reported_total_tokens"] = total  # Anthropic counts something that we do not know yet
        requests = optional_count(usage, "requests")
        if model is None and not counted.input_tokens and not counted.output_tokens and requests is not None:
            # Code execution: no model, no tokens, and its `requests` are spans, not requests.
            metadata["execution_spans"], requests = requests, None
        return UsageRecord(
            bucket_start=start,
            bucket_end=end,
            granularity=granularity,
            model=model or "analytics_usage",
            request_type="chat" if model else None,
            service_type=None if tier is None else "batch" if tier == "batch" else "sync",
            service_tier=tier,
            input_tokens=counted.input_tokens,
            output_tokens=counted.output_tokens,
            cached_input_tokens=counted.cached_input_tokens,
            cache_creation_tokens=counted.cache_creation_tokens,
            token_details=counted.details,
            request_count=requests,
            context_window=optional_text(group, "context_window"),
            metadata=metadata,
            **_who(group),
        )
    except BadItem as bad:
        return RejectedItem(reason=f"anthropic analytics/usage: {bad}", payload=row, bucket_start=start)


def _cost_item(row: Any) -> Item:
    start: datetime | None = None
    try:
        start, end = _bounds(row, DAY)
        group, cost = mapping(row, "group"), mapping(row, "cost")
        list_cents = optional_amount(cost, "list_amount")
        metadata = _further(group, "cost_type", "token_type")
        for name in ("service_tier", "context_window"):
            if group.get(name) is not None:
                metadata[name] = group[name]
        metadata |= _new_in(cost, _COST_FIELDS)
        return CostRecord(
            bucket_start=start,
            bucket_end=end,
            amount=cents_to_units(amount(cost, "amount")),
            list_amount=None if list_cents is None else cents_to_units(list_cents),
            currency=(optional_text(cost, "currency") or "USD").upper(),
            model=optional_text(group, "model"),
            cost_type=optional_text(group, "cost_type"),
            token_type=optional_text(group, "token_type"),
            metadata=metadata,
            **_who(group),
        )
    except BadItem as bad:
        return RejectedItem(reason=f"anthropic analytics/cost: {bad}", payload=row, bucket_start=start)


def _bounds(row: Any, longest: timedelta) -> tuple[datetime, datetime]:
    if not isinstance(row, Mapping):
        raise BadItem(f"the row is a {type(row).__name__}; an object is required")
    start, end = instant(row, "starting_at"), instant(row, "ending_at")
    if not timedelta(0) < end - start <= longest:
        raise BadItem(f"the row covers {end - start}; buckets of {longest} were asked for")
    return start, end


def _who(group: Mapping[str, Any]) -> dict[str, Any]:
    """Workspace, key and user. An actor that is an API key fills the key when the key itself was not asked for."""
    actor = group.get("actor")
    if actor is not None and not isinstance(actor, Mapping):
        raise BadItem(f"actor is {actor!r}; an object is required")
    actor = actor or {}
    return {
        "provider_project_id": optional_text(group, "workspace_id"),
        "api_key_id": optional_text(group, "api_key_id") or optional_text(actor, "api_key_id"),
        "user_id": (
            optional_text(actor, "user_id") or optional_text(actor, "service_account_id") or optional_text(actor, "subject")
        ),
    }


def _new_in(item: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if value is not None and name not in known}


def _further(group: Mapping[str, Any], *but: str) -> dict[str, Any]:
    """Every further dimension given, and what kind of actor it was. Personal data stays with the names."""
    known = _OWN_COLUMN.union(but)
    further = {name: value for name, value in group.items() if value is not None and name not in known}
    actor = group.get("actor")
    if isinstance(actor, Mapping):
        kept = {"actor_type": actor.get("type"), "actor_deleted": actor.get("deleted") or None}
        further |= {name: value for name, value in kept.items() if value is not None}
    return further
