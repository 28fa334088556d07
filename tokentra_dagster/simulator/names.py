"""The lists by which both providers name their ids: projects or workspaces, keys, people, service accounts.

Archived projects are left out unless asked for. One key was deleted: it is in usage and in no list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tokentra_dagster.simulator.organisation import ORIGIN, Key, Organisation, Person, Project, hour_of
from tokentra_dagster.simulator.query import Query, Refusal

DELETED_KEYS = frozenset(("key_acme_chloe_studio", "apikey_acme_chloe_studio"))
OLD_VERSION = "2023-06-01"
_CREATED = int(ORIGIN.timestamp())
_HOUR = 3600
_CREATED_TEXT = f"{ORIGIN:%Y-%m-%dT%H:%M:%SZ}"


# ---- OpenAI --------------------------------------------------------------------------------------------------------


def openai_list(org: Organisation, parts: Sequence[str], query: Query, path: str) -> str:
    """The list below `/organization/`, one page of at most 100. Raises `Refusal`."""
    project = next((p for p in org.projects if len(parts) > 1 and parts[1] == org.project_id("openai", p.slug)), None)
    further: tuple[str, ...] = ()
    if tuple(parts) == ("users",):
        further, emails = ("emails",), query.many("emails")
        people = [person for person in org.everyone() if emails is None or person.email in emails]
        items = [_openai_user(person) for person in people]
    elif tuple(parts) == ("projects",):
        further = ("include_archived",)
        archived_too = query.one_of("include_archived", ("true", "false"), "false") == "true"
        items = [_openai_project(org, p) for p in org.projects if archived_too or p.archived_on is None]
    elif tuple(parts) == ("admin_api_keys",):
        further = ("order",)
        items = [
            {
                "object": "organization.admin_api_key",
                "id": f"key_{org.name}_admin",
                "name": "Usage reader",
                "redacted_value": "sk-admin-...",
                "created_at": _CREATED,
                "owner": {"type": "user", "object": "organization.user", "role": "owner"},
            }
        ]
    elif parts[:1] == ["projects"] and project is not None:
        further = ("owner_project_access",) if parts[2:] == ["api_keys"] else ()
        query.one_of("owner_project_access", ("active", "inactive", "any"), None)
        items = _openai_project_list(org, project, parts[2:], path)
    elif parts[:1] == ["projects"] and len(parts) > 1:
        raise Refusal(404, f"No such project: {parts[1]}", code="project_not_found")
    else:
        raise Refusal(404, f"Invalid URL (GET {path})", code="invalid_url")
    if isinstance(items, dict):
        return json.dumps(items)
    query.only("after", "limit", *further)
    after = query.one("after")
    page, more = _slice(items, after, query.whole("limit", 20, 1, 100))
    return json.dumps({"object": "list", "data": page, **_ends(page), "has_more": more})


def _openai_project_list(org: Organisation, project: Project, rest: Sequence[str], path: str) -> Any:
    people = org.people(project)
    match list(rest):
        case []:
            return _openai_project(org, project)
        case ["api_keys"]:
            return [_openai_key(key) for key in org.keys("openai") if key.project == project.slug and key.id not in DELETED_KEYS]
        case ["users"]:
            return [
                {
                    "object": "organization.project.user",
                    "id": f"user-{person.id}",
                    "name": person.name,
                    "email": person.email,
                    "role": "member",
                    "added_at": _CREATED,
                }
                for person in people
                if not person.is_service_account
            ]
        case ["service_accounts"]:
            return [
                {
                    "object": "organization.project.service_account",
                    "id": f"user-{person.id}",
                    "name": person.name,
                    "role": "member",
                    "created_at": _CREATED,
                }
                for person in people
                if person.is_service_account
            ]
    raise Refusal(404, f"Invalid URL (GET {path})", code="invalid_url")


def _openai_user(person: Person) -> dict[str, Any]:
    return {
        "object": "organization.user",
        "id": f"user-{person.id}",
        "name": person.name,
        "email": None if person.is_service_account else person.email,
        "role": "reader",
        "added_at": _CREATED,
        "is_service_account": person.is_service_account,
    }


def _openai_project(org: Organisation, project: Project) -> dict[str, Any]:
    return {
        "object": "organization.project",
        "id": org.project_id("openai", project.slug),
        "name": project.name,
        "created_at": _CREATED,
        "archived_at": None if project.archived_on is None else _CREATED + hour_of(project.archived_on, 0) * _HOUR,
        "status": "active" if project.archived_on is None else "archived",
    }


def _openai_key(key: Key) -> dict[str, Any]:
    owner: dict[str, Any] = {"type": "user"}
    if key.owner is not None:
        kind = "service_account" if key.owner.is_service_account else "user"
        person = {"id": f"user-{key.owner.id}", "name": key.owner.name, "created_at": _CREATED, "role": "member"}
        owner = {"type": kind, kind: person if key.owner.is_service_account else person | {"email": key.owner.email}}
    return {
        "object": "organization.project.api_key",
        "id": key.id,
        "name": key.name,
        "redacted_value": f"sk-proj-...{key.id[-4:]}",
        "created_at": _CREATED,
        "last_used_at": None,
        "expires_at": None,
        "owner": owner,
        "owner_project_access": "active",
    }


# Filters of Anthropic's lists: parameter -> the field that must be among its values.
_LIST_FILTERS: Mapping[str, Mapping[str, str]] = {
    "workspaces": {"ids": "id"},
    "users": {"email": "email", "roles": "role"},
    "api_keys": {"status": "status", "workspace_id": "workspace_id", "created_by_user_id": "created_by"},
}


# ---- Anthropic -----------------------------------------------------------------------------------------------------


def anthropic_list(org: Organisation, what: str, query: Query, path: str, version: str) -> str:
    """The list below `/v1/organizations/`, one page of at most 1000. Raises `Refusal`."""
    if what == "me":
        return json.dumps({"id": org.anthropic_id, "type": "organization", "name": org.name})
    if what == "service_accounts":
        return _service_accounts(org, query, path)
    further: tuple[str, ...] = ()
    if what == "workspaces":
        further = ("include_archived", "include_default")
        items = _workspaces(org, query)
    elif what == "api_keys":
        items = [_anthropic_key(org, key, version) for key in org.keys("anthropic") if key.id not in DELETED_KEYS]
    elif what == "users":
        people = [person for person in org.everyone() if not person.is_service_account]
        items = [
            {
                "type": "user",
                "id": _anthropic_id(p),
                "email": p.email,
                "name": p.name,
                "role": "developer",
                "added_at": _CREATED_TEXT,
            }
            for p in people
        ]
    else:
        raise Refusal(404, f"Not found: {path}", kind="not_found_error")
    further = (*further, *_LIST_FILTERS[what])
    query.only("after_id", "before_id", "limit", *further)
    for parameter, field in _LIST_FILTERS[what].items():
        wanted = query.many(parameter)
        items = [item for item in items if wanted is None or _at(item, field) in wanted]
    limit = query.whole("limit", 20, 1, 1000)
    if (before := query.one("before_id")) is not None:
        ids = [item["id"] for item in items]
        if before not in ids:
            raise Refusal(400, f"before_id: no item has the id {before!r}.", param="before_id")
        stop = ids.index(before)
        page, more = items[max(stop - limit, 0) : stop], stop > limit
    else:
        page, more = _slice(items, query.one("after_id"), limit)
    return json.dumps({"data": page, **_ends(page), "has_more": more})


def _at(item: Mapping[str, Any], field: str) -> Any:
    """A key's workspace is inside its scope since version 2026-10-21."""
    return item.get(field, item.get("scope", {}).get(field))


def _workspaces(org: Organisation, query: Query) -> list[dict[str, Any]]:
    archived_too = query.one_of("include_archived", ("true", "false"), "false") == "true"
    default_too = query.one_of("include_default", ("true", "false"), "false") == "true"
    found = []
    for project in org.projects:
        identifier = org.project_id("anthropic", project.slug)
        default = identifier == org.default_workspace
        if (project.archived_on is not None and not archived_too) or (default and not default_too):
            continue
        found.append(
            {
                "type": "workspace",
                "id": identifier,
                "name": "Default" if default else project.name,
                "created_at": _CREATED_TEXT,
                "archived_at": None if project.archived_on is None else f"{project.archived_on}T00:00:00Z",
                "display_color": "#6C5BB9",
                "tags": {"team": project.team} if project.team else {},
                "compartment_id": f"comp_{identifier}",
                "external_key_id": None,
                "user_profile_id": None,
                "data_residency": {
                    "allowed_inference_geos": "unrestricted",
                    "default_inference_geo": "global",
                    "workspace_geo": "us",
                },
            }
        )
    return found


def _anthropic_key(org: Organisation, key: Key, version: str) -> dict[str, Any]:
    workspace = org.project_id("anthropic", key.project)
    scope: dict[str, Any] = (
        {"workspace_id": workspace} if version == OLD_VERSION else {"scope": {"type": "workspace", "workspace_id": workspace}}
    )
    return {
        "type": "api_key",
        "id": key.id,
        "name": key.name,
        "status": "active",
        "created_at": _CREATED_TEXT,
        "expires_at": None,
        "partial_key_hint": f"sk-ant-api03-...{key.id[-4:]}",
        "created_by": None,
        "principal": _principal(key),
        **scope,
    }


def _principal(key: Key) -> dict[str, str] | None:
    """A service account's key acts as it; every other key is its own actor."""
    if key.owner is None or not key.owner.is_service_account:
        return None
    return {"type": "service_account_actor", "service_account_id": _anthropic_id(key.owner)}


def _service_accounts(org: Organisation, query: Query, path: str) -> str:
    """This list goes on with `next_page`."""
    items = [
        {
            "type": "service_account",
            "id": _anthropic_id(person),
            "name": person.name,
            "description": None,
            "organization_role": "developer",
            "created_at": _CREATED_TEXT,
            "updated_at": _CREATED_TEXT,
            "archived_at": None,
        }
        for person in org.everyone()
        if person.is_service_account
    ]
    query.only("include_archived", "limit", "page")
    limit = query.whole("limit", 20, 1, 1000)
    first = query.position(path, "page: Invalid page token.") or 0
    following = query.token(path, first + limit) if first + limit < len(items) else None
    return json.dumps({"data": items[first : first + limit], "next_page": following})


def _anthropic_id(person: Person) -> str:
    return f"{'svac' if person.is_service_account else 'user'}_{person.id}".replace("-", "_")


def _slice(items: Sequence[dict[str, Any]], after: str | None, limit: int) -> tuple[list[dict[str, Any]], bool]:
    start = next((number + 1 for number, item in enumerate(items) if item["id"] == after), 0)
    if after is not None and start == 0:
        raise Refusal(400, f"No item has the id {after!r}.", param="after")
    return list(items[start : start + limit]), start + limit < len(items)


def _ends(page: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
