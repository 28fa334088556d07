"""What Anthropic calls its ids: workspaces (archived and default too), API keys, users and service accounts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tokentra_dagster.providers.failures import Caller, DamagedPage, Refused
from tokentra_dagster.records import EntityName

PAGE_LIMIT = 1000
SERVICE_ACCOUNTS_LIMIT = 100
"""How many it may be is not documented for service accounts."""


def names(organization: Any, caller: Caller, unnamed: list[str]) -> Iterator[EntityName]:
    """`organization` is the SDK's `client.organization`. What the key may not list (a key with read:analytics reads usage
    but no names) is left out and named in `unnamed`."""
    for what, listed in _lists(organization, caller):
        try:
            yield from listed
        except Refused as refusal:
            if refusal.status not in (403, 404):
                raise
            unnamed.append(what)


def _lists(organization: Any, caller: Caller) -> Iterator[tuple[str, Iterator[EntityName]]]:
    def each(what: str, resource: Any, *kept: str, limit: int = PAGE_LIMIT, **params: Any) -> tuple[str, Iterator[EntityName]]:
        kind = what.rstrip("s").replace(" ", "_").lower()
        found = _listed(caller, what, resource.with_streaming_response.list, limit=limit, **params)
        return what, (_named(kind, item, *kept, **_workspace(item)) for item in found)

    yield each("workspaces", organization.workspaces, "archived_at", "tags", include_archived=True, include_default=True)
    yield each("API keys", organization.api_keys, "status", "partial_key_hint")
    yield each("users", organization.users, "email", "role")
    accounts = organization.service_accounts
    yield each("service accounts", accounts, "archived_at", "description", limit=SERVICE_ACCOUNTS_LIMIT, include_archived=True)


def _workspace(item: dict[str, Any]) -> dict[str, str]:
    """An API key's workspace: in its scope, before API version 2026-10-21 beside its name; keys of the organisation have none."""
    scope = item.get("scope")
    found = (scope.get("workspace_id") if isinstance(scope, dict) else None) or item.get("workspace_id")
    return {"workspace_id": found} if found else {}


def _listed(caller: Caller, what: str, ask: Callable[..., Any], **params: Any) -> Iterator[dict[str, Any]]:
    """Every object of a list. Most lists go on with `after_id`, service accounts with `next_page`."""
    cursor: dict[str, str] = {}
    used: set[str] = set()
    while True:
        page = caller.page(f"the list of {what}", lambda: ask(**params, **cursor), _check_page)  # noqa: B023
        yield from page["data"]
        following = page.get("next_page")
        if following:
            cursor = {"page": following}
        else:
            following = page.get("last_id") if page.get("has_more") else None
            cursor = {"after_id": following or ""}
        if not following or following in used:
            return
        used.add(following)


def _check_page(page: dict[str, Any]) -> None:
    data = page.get("data")
    if not isinstance(data, list) or any(not isinstance(x, dict) or not isinstance(x.get("id"), str) for x in data):
        raise DamagedPage("it has no list `data` of objects with an id")


def _named(kind: str, item: dict[str, Any], *kept: str, **further: Any) -> EntityName:
    metadata = {name: item[name] for name in kept if item.get(name)} | further
    return EntityName(kind=kind, id=item["id"], name=item.get("name"), metadata=metadata)
