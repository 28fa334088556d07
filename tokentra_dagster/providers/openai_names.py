"""What OpenAI calls its ids: projects (archived too), project keys, service accounts and users.

Deleted keys stay in usage but are in no list. Whether a service account's usage carries its own id or that of its user
is not documented, so both are given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tokentra_dagster.providers.failures import Caller, DamagedPage, Refused
from tokentra_dagster.records import EntityName

PAGE_LIMIT = 100
_GONE = frozenset((400, 403, 404))


def names(organization: Any, caller: Caller) -> Iterator[EntityName]:
    """`organization` is the SDK's `client.admin.organization`."""
    for user in _listed(caller, "users", organization.users.with_streaming_response.list):
        kind = "service_account" if user.get("is_service_account") else "user"
        yield _named(kind, user, "email", "role")
    projects = organization.projects
    for project in _listed(caller, "projects", projects.with_streaming_response.list, include_archived=True):
        yield _named("project", project, "status", "archived_at")
        of_project = {"project_id": project["id"]}
        archived = bool(project.get("archived_at")) or project.get("status") == "archived"
        try:
            for key in _listed(
                caller, "project API keys", projects.api_keys.with_streaming_response.list, **of_project,
                owner_project_access="any",
            ):  # fmt: skip
                owner = key.get("owner")
                owned_by = {"owner_type": owner["type"]} if isinstance(owner, dict) and owner.get("type") else {}
                yield _named("api_key", key, "redacted_value", **of_project, **owned_by)
            for account in _listed(
                caller, "project service accounts", projects.service_accounts.with_streaming_response.list, **of_project
            ):
                yield _named("service_account", account, "role", **of_project)
        except Refused as refusal:
            # What an archived project still lists is not documented; its own name is what matters.
            if not archived or refusal.status not in _GONE:
                raise


def _listed(caller: Caller, what: str, ask: Callable[..., Any], **params: Any) -> Iterator[dict[str, Any]]:
    """Every object of a cursor list."""
    cursor: dict[str, str] = {}
    used: set[str] = set()
    while True:
        page = caller.page(f"the list of {what}", lambda: ask(**params, limit=PAGE_LIMIT, **cursor), _check_page)  # noqa: B023
        yield from page["data"]
        last = page.get("last_id") or (page["data"][-1]["id"] if page["data"] else None)
        if not page.get("has_more") or not last or last in used:
            return
        used.add(last)
        cursor = {"after": last}


def _check_page(page: dict[str, Any]) -> None:
    data = page.get("data")
    if not isinstance(data, list) or any(not isinstance(x, dict) or not isinstance(x.get("id"), str) for x in data):
        raise DamagedPage("it has no list `data` of objects with an id")


def _named(kind: str, item: dict[str, Any], *kept: str, **further: Any) -> EntityName:
    metadata = {name: item[name] for name in kept if item.get(name) is not None} | further
    return EntityName(kind=kind, id=item["id"], name=item.get("name"), metadata=metadata)
