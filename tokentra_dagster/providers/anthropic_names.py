"""What Anthropic calls its ids: workspaces (archived and default too), API keys, users and service accounts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tokentra_dagster.providers.failures import Caller, DamagedPage, Refused
from tokentra_dagster.records import EntityName

PAGE_LIMIT = 100


def names(organization: Any, caller: Caller) -> Iterator[EntityName]:
    """`organization` is the SDK's `client.organization`."""
    workspaces = organization.workspaces.with_raw_response.list
    for workspace in _listed(caller, "workspaces", workspaces, include_archived=True, include_default=True):
        yield _named("workspace", workspace, "archived_at", "tags")
    for key in _listed(caller, "API keys", organization.api_keys.with_raw_response.list):
        scope = key.get("scope") or {}
        workspace_id = scope.get("workspace_id") or key.get("workspace_id")
        further = {"workspace_id": workspace_id} if workspace_id else {}
        yield _named("api_key", key, "status", "partial_key_hint", **further)
    for user in _listed(caller, "users", organization.users.with_raw_response.list):
        yield _named("user", user, "email", "role")
    try:
        accounts = organization.service_accounts.with_raw_response.list
        for account in _listed(caller, "service accounts", accounts, include_archived=True):
            yield _named("service_account", account, "archived_at", "description")
    except Refused as refusal:
        # Not every organisation has service accounts, and read:analytics keys may not list them.
        if refusal.status not in (403, 404):
            raise


def _listed(caller: Caller, what: str, ask: Callable[..., Any], **params: Any) -> Iterator[dict[str, Any]]:
    """Every object of a list. Most lists go on with `after_id`, service accounts with `next_page`."""
    cursor: dict[str, str] = {}
    used: set[str] = set()
    while True:
        page = caller.page(f"the list of {what}", lambda: ask(**params, limit=PAGE_LIMIT, **cursor), _check_page)  # noqa: B023
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
