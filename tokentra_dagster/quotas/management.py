"""Quotas as people set them (specification 8): create, find, change, pause, delete, and the versions that each change leaves.

Every change is a version (the trigger of `migrations/quota_versions.sql`), so a past period is judged by the limits of its time.
The caller commits.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

from tokentra_dagster.errors import UsageError
from tokentra_dagster.quotas.terms import SCOPE_COLUMNS, SCOPE_TYPES, TERMS, Terms
from tokentra_dagster.warehouse.directory import ENTITY_TABLES, Connection, one_named, organization_id

LONGEST_NAME = 200


@dataclass(frozen=True, slots=True)
class Quota:
    """A row of `app.usage_quotas`. `scope_value` is the team's or project's id, or the user, key or feature as sources name it;
    `scope_name` is what a person calls it. A deleted one has `deleted_at`."""

    id: UUID
    org_id: UUID
    organization: str
    name: str
    description: str | None
    scope_type: str
    scope_value: str | None
    scope_name: str
    terms: Terms
    is_active: bool
    created_at: datetime
    deleted_at: datetime | None = None

    @property
    def label(self) -> str:
        return f"{self.organization}/{self.name}"

    @property
    def scope(self) -> str:
        return "whole organisation" if self.scope_type == "organization" else f"{self.scope_type} {self.scope_name}"

    def as_json(self) -> dict[str, Any]:
        shown = asdict(self)
        return {**{name: value for name, value in shown.items() if name != "terms"}, **shown["terms"]}


# A deleted quota is what its last version says.
_QUOTAS = sql.SQL(
    """
SELECT q.id, q.org_id, o.name AS organization, q.name, q.description, q.scope_type,
  coalesce(q.team_id::text, q.project_id::text, q.user_identifier, q.api_key_id, q.feature) AS scope_value,
  coalesce(t.name, p.name, q.user_identifier, q.api_key_id, q.feature, q.team_id::text, q.project_id::text, o.name) AS scope_name,
  {terms}, q.is_active, q.created_at, q.deleted_at
FROM (
  SELECT id, org_id, name, description, scope_type, team_id, project_id, user_identifier, api_key_id, feature, {columns}, is_active,
    created_at, NULL::timestamptz AS deleted_at
  FROM app.usage_quotas
  UNION ALL
  SELECT v.quota_id, v.org_id, v.name, NULL, v.scope_type, v.team_id, v.project_id, v.user_identifier, v.api_key_id, v.feature, {columns},
    v.is_active, (SELECT min(b.valid_from) FROM app.usage_quota_versions AS b WHERE b.quota_id = v.quota_id), v.valid_to
  FROM (SELECT DISTINCT ON (quota_id) * FROM app.usage_quota_versions ORDER BY quota_id, version DESC) AS v
  WHERE %(deleted)s AND NOT EXISTS (SELECT FROM app.usage_quotas AS n WHERE n.id = v.quota_id)
) AS q
JOIN app.organizations AS o ON o.id = q.org_id
LEFT JOIN app.teams AS t ON t.id = q.team_id
LEFT JOIN app.projects AS p ON p.id = q.project_id
WHERE (%(org)s::uuid IS NULL OR q.org_id = %(org)s)
ORDER BY q.deleted_at NULLS FIRST, o.name, q.name
"""
).format(
    terms=sql.SQL(", ").join(sql.Identifier("q", name) for name in TERMS), columns=sql.SQL(", ").join(map(sql.Identifier, TERMS))
)  # fmt: skip


def quotas(db: Connection, org: str | None = None, *, with_deleted: bool = False) -> list[Quota]:
    """By organisation and name; deleted ones, the longest gone first, after those that are."""
    parameters = {"org": organization_id(db, org) if org else None, "deleted": with_deleted}
    return [_quota(row) for row in db.execute(_QUOTAS, parameters).fetchall()]


def find_quota(db: Connection, name: str, *, with_deleted: bool = False) -> Quota:
    """By `ORG/NAME`, by name where it is the only one, or by id. Raises `UsageError` that lists the ones there are.

    `with_deleted`: a deleted one is found where no other has the name, the last deleted of several.
    """
    if with_deleted:
        there = [one for one in quotas(db, with_deleted=True) if name in (one.label, one.name, str(one.id))]
        if there and all(one.deleted_at for one in there) and len({one.org_id for one in there}) == 1:
            return there[-1]
    return one_named(quotas(db), name, what="quota", owners="Several organisations", add="tokentra quota add")


def add_quota(
    db: Connection, *, org: str, name: str, scope_type: str = "organization", scope: str | None = None, description: str | None = None,
    **terms: Any,
) -> Quota:  # fmt: skip
    """Create a quota. `scope` is the name or id of the team or project, or the user, key or feature; `terms` are those of `Terms`.

    Raises `UsageError`: one sentence about the first thing that cannot be.
    """
    _check_name(name)
    chosen = Terms(**terms).check()
    org_id = organization_id(db, org)
    columns = {
        "org_id": org_id,
        "name": name,
        "description": description,
        **_scope(db, org_id, org, scope_type, scope),
        **asdict(chosen),
    }
    row = db.execute(
        sql.SQL("INSERT INTO app.usage_quotas ({}) VALUES ({}) ON CONFLICT (org_id, name) DO NOTHING RETURNING id").format(
            sql.SQL(", ").join(map(sql.Identifier, columns)), sql.SQL(", ").join(map(sql.Placeholder, columns))
        ),
        columns,
    ).fetchone()
    if row is None:
        raise _is_taken(org, name)
    return find_quota(db, str(row["id"]))


def change_quota(db: Connection, name: str, changes: Mapping[str, Any]) -> tuple[Quota, Quota]:
    """The quota before and after. `changes` may hold `name`, `description`, `scope_type` with `scope`, and terms (a limit of None is
    taken away). A new period begins on its first day unless `period_reset_day` says another. Raises `UsageError`."""
    before = _locked(db, name)
    if not changes:
        raise UsageError(f"Nothing is to be changed of quota {before.label}: say what, e.g. a limit.")
    given = {key: value for key, value in changes.items() if key in TERMS}
    period = given.get("period_type", before.terms.period_type)
    if period != before.terms.period_type:
        given = {"period_reset_day": 1} | ({"period_reset_hour": 0} if period == "hourly" else {}) | given
    columns = asdict(replace(before.terms, **given).check())
    if "name" in changes:
        _check_name(changes["name"])
        columns["name"] = changes["name"]
    if "description" in changes:
        columns["description"] = changes["description"]
    if "scope_type" in changes:
        columns |= dict.fromkeys(SCOPE_COLUMNS.values())
        columns |= _scope(db, before.org_id, before.organization, changes["scope_type"], changes.get("scope"))
    try:
        with db.transaction():
            _update(db, before.id, columns)
    except psycopg.errors.UniqueViolation:
        raise _is_taken(before.organization, changes["name"]) from None
    return before, find_quota(db, str(before.id))


def set_active(db: Connection, name: str, active: bool) -> tuple[Quota, bool]:
    """Pause (it refuses, warns and alerts no more; its usage is still told) or resume. The quota, and whether that changed it."""
    quota = _locked(db, name)
    if quota.is_active == active:
        return quota, False
    _update(db, quota.id, {"is_active": active})
    return replace(quota, is_active=active), True


def delete_quota(db: Connection, name: str) -> Quota:
    """It is gone, with its counters and reservations; its history and versions stay."""
    quota = _locked(db, name)
    db.execute("DELETE FROM app.usage_quotas WHERE id = %s", [quota.id])
    return quota


def entity_id(db: Connection, org_id: UUID, organization: str, kind: str, name: str) -> UUID:
    """The id of a team or project of the organisation, by name or id. Raises `UsageError` that lists the ones there are."""
    rows = db.execute(
        sql.SQL("SELECT id, name FROM {} WHERE org_id = %s ORDER BY name").format(sql.Identifier("app", ENTITY_TABLES[kind])), [org_id]
    ).fetchall()  # fmt: skip
    found = [row["id"] for row in rows if row["name"] == name] or [row["id"] for row in rows if str(row["id"]) == name]
    if found:
        identifier: UUID = found[0]
        return identifier
    known = ", ".join(row["name"] for row in rows[:50]) + (f" and {len(rows) - 50:,} more" if len(rows) > 50 else "")
    raise UsageError(f"{organization} has no {kind} named {name!r}. There are: {known or 'none'}.")


def _scope(db: Connection, org_id: UUID, organization: str, scope_type: str, scope: str | None) -> dict[str, Any]:
    if scope_type not in SCOPE_TYPES:
        raise UsageError(f"The scope is {scope_type!r}; it must be one of {', '.join(SCOPE_TYPES)}.")
    if scope_type == "organization":
        if scope is not None:
            raise UsageError(f"A quota of the whole organisation has no scope {scope!r}; leave it out.")
        return {"scope_type": scope_type}
    if scope is None or not scope.strip():
        raise UsageError(f"The quota is of one {scope_type}; say which.")
    value = entity_id(db, org_id, organization, scope_type, scope) if scope_type in ("team", "project") else scope
    return {"scope_type": scope_type, SCOPE_COLUMNS[scope_type]: value}


def _locked(db: Connection, name: str) -> Quota:
    """Nobody else changes it until the caller commits."""
    quota = find_quota(db, name)
    if db.execute("SELECT FROM app.usage_quotas WHERE id = %s FOR UPDATE", [quota.id]).fetchone() is None:
        raise UsageError(f"Quota {quota.label} has just been deleted.")
    return find_quota(db, str(quota.id))


def _update(db: Connection, quota_id: UUID, columns: Mapping[str, Any]) -> None:
    sets = sql.SQL(", ").join(sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in columns)
    differs = sql.SQL("ROW({}) IS DISTINCT FROM ROW({})").format(
        sql.SQL(", ").join(map(sql.Identifier, columns)), sql.SQL(", ").join(map(sql.Placeholder, columns))
    )
    db.execute(
        sql.SQL("UPDATE app.usage_quotas SET {}, updated_at = now() WHERE id = {} AND {}").format(
            sets, sql.Placeholder("quota_id"), differs
        ),
        {**columns, "quota_id": quota_id},
    )


def _check_name(name: str) -> None:
    if not name or name != name.strip() or not name.isprintable() or "/" in name or len(name) > LONGEST_NAME:
        raise UsageError(
            f"The quota's name is {name!r}; it must be one line of at most {LONGEST_NAME} characters, not empty, without slashes."
        )


def _is_taken(organization: str, name: str) -> UsageError:
    return UsageError(
        f"{organization} already has a quota named {name!r}; choose another name, or change that one: "
        f"tokentra quota set {shlex.quote(f'{organization}/{name}')}"
    )


def _quota(row: dict[str, Any]) -> Quota:
    terms = Terms(**{name: row.pop(name) for name in TERMS})
    return Quota(terms=terms, **row)
