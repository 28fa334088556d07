"""The `app` schema: organisations, their connections, teams, projects, cost centers and attribution rules."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Any, Protocol, TypeVar
from uuid import UUID

import psycopg
from psycopg import sql

from tokentra_dagster.errors import UsageError
from tokentra_dagster.records import PROVIDERS, SOURCES

Connection = psycopg.Connection[dict[str, Any]]
MATCH_FIELDS = ("project", "workspace", "api_key", "user", "model")
ENTITY_TABLES = {"team": "teams", "project": "projects", "cost_center": "cost_centers"}


@dataclass(frozen=True, slots=True)
class ConnectionRow:
    """One row of `app.provider_connections` with its organisation's name."""

    id: UUID
    org_id: UUID
    organization: str
    name: str
    provider: str
    source: str
    secret_ref: str | None
    base_url: str | None
    options: Mapping[str, str]
    is_active: bool
    integration: str | None = None
    """Who is asked; None for events and imported files."""

    @property
    def label(self) -> str:
        return f"{self.organization}/{self.name}"


def add_organization(connection: Connection, name: str, time_zone: str = "UTC", currency: str = "USD") -> tuple[UUID, bool]:
    """The organisation's id, and whether it is new."""
    row = connection.execute(
        "INSERT INTO app.organizations (name, time_zone, currency) VALUES (%s, %s, %s) ON CONFLICT (name) DO NOTHING RETURNING id",
        [name, time_zone, currency],
    ).fetchone()
    return (row["id"], True) if row else (organization_id(connection, name), False)


def organization_id(connection: Connection, name: str) -> UUID:
    """By name or id. Raises `UsageError` that lists the ones there are."""
    row = connection.execute("SELECT id FROM app.organizations WHERE name = %s OR id::text = %s", [name, name]).fetchone()
    if row is None:
        known = [r["name"] for r in connection.execute("SELECT name FROM app.organizations ORDER BY name")]
        there = f"There are: {', '.join(known)}." if known else "There is none yet: run `tokentra org add NAME`."
        raise UsageError(f"No organisation is named {name!r}. {there}")
    identifier: UUID = row["id"]
    return identifier


def add_connection(
    connection: Connection, *, org: str, name: str, provider: str, source: str,
    secret_ref: str | None = None, base_url: str | None = None, options: Mapping[str, str] | None = None,
    integration: str | None = None,
) -> tuple[UUID, bool]:  # fmt: skip
    """The connection's id, and whether it is new; one of that name gets the new settings."""
    if provider not in PROVIDERS:
        raise UsageError(f"provider is {provider!r}; it must be one of {', '.join(PROVIDERS)}.")
    if source not in SOURCES:
        raise UsageError(f"source is {source!r}; it must be one of {', '.join(SOURCES)}.")
    row = connection.execute(
        """
        INSERT INTO app.provider_connections AS c (org_id, name, provider, source, integration, secret_ref, base_url, options)
        VALUES (%(org)s, %(name)s, %(provider)s, %(source)s, %(integration)s, %(secret)s, %(url)s, %(options)s)
        ON CONFLICT (org_id, name) DO UPDATE SET secret_ref = excluded.secret_ref, base_url = excluded.base_url,
          options = excluded.options, is_active = true, updated_at = now()
        WHERE c.provider = excluded.provider AND c.source = excluded.source AND c.integration IS NOT DISTINCT FROM excluded.integration
        RETURNING id, xmax = 0 AS is_new
        """,
        {
            "org": organization_id(connection, org), "name": name, "provider": provider, "source": source,
            "integration": integration, "secret": secret_ref, "url": base_url, "options": json.dumps(dict(options or {})),
        },
    ).fetchone()  # fmt: skip
    if row is None:
        raise UsageError(
            f"{org} already has a connection named {name!r} to another provider, source or integration; choose another name."
        )
    return row["id"], row["is_new"]


_CONNECTIONS = """
SELECT c.id, c.org_id, o.name AS organization, c.name, c.provider, c.source, c.secret_ref, c.base_url, c.options, c.is_active,
  c.integration
FROM app.provider_connections AS c JOIN app.organizations AS o ON o.id = c.org_id
"""


def connections(connection: Connection, *, active_only: bool = False, asked: bool = False) -> list[ConnectionRow]:
    """`asked`: only those that an integration reads; not what comes as events or files."""
    rows = connection.execute(
        _CONNECTIONS + " WHERE (c.is_active OR NOT %s) AND (c.integration IS NOT NULL OR NOT %s) ORDER BY o.name, c.name",
        [active_only, asked],
    )
    return [ConnectionRow(**row) for row in rows]


def find_connection(connection: Connection, name: str) -> ConnectionRow:
    """By `ORG/NAME`, by name where it is the only one, or by id. Raises `UsageError` that lists the ones there are."""
    return one_named(
        connections(connection), name, what="connection", owners="Several organisations", add="tokentra connection add"
    )


class Labelled(Protocol):
    """What belongs to an organisation and has a name in it; `label` is `ORG/NAME`."""

    @property
    def id(self) -> UUID: ...
    @property
    def name(self) -> str: ...
    @property
    def label(self) -> str: ...


Named = TypeVar("Named", bound=Labelled)


def one_named(everyone: Sequence[Named], name: str, *, what: str, owners: str, add: str) -> Named:
    """By label, by name where it is the only one, or by id. Raises `UsageError` that lists the ones there are."""
    found = [one for one in everyone if name in (one.label, str(one.id))] or [one for one in everyone if one.name == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{owners} have a {what} {name!r}; say which: {', '.join(one.label for one in found)}.")
    there = f"There are: {', '.join(one.label for one in everyone)}." if everyone else f"There is none: run `{add}`."
    raise UsageError(f"No {what} is named {name!r}. {there}")


def connection_for_events(connection: Connection, org_id: UUID, provider: str) -> ConnectionRow:
    """The oldest connection of the organisation whose usage of the provider comes as events, made where there is none."""
    names = chain((f"events-{provider}",), (f"events-{provider}-{number}" for number in count(2)))
    for name in names:
        row = connection.execute(
            _CONNECTIONS + " WHERE c.org_id = %s AND c.provider = %s AND c.source = 'events' ORDER BY c.created_at, c.id LIMIT 1",
            [org_id, provider],
        ).fetchone()
        if row:
            return ConnectionRow(**row)
        connection.execute(
            "INSERT INTO app.provider_connections (org_id, name, provider, source) VALUES (%s, %s, %s, 'events') "
            "ON CONFLICT (org_id, name) DO NOTHING",
            [org_id, name, provider],
        )
    raise AssertionError("names never end")


def disable_connection(connection: Connection, name: str) -> ConnectionRow:
    """It is no longer synced; what it loaded stays."""
    row = find_connection(connection, name)
    connection.execute("UPDATE app.provider_connections SET is_active = false, updated_at = now() WHERE id = %s", [row.id])
    return row


def ensure_entities(connection: Connection, org_id: UUID, kind: str, names: Iterable[str]) -> dict[tuple[str, str], UUID]:
    """Ids of the organisation's teams, projects or cost centers of these names, made where they are new."""
    wanted = sorted(set(names))
    table = sql.Identifier("app", ENTITY_TABLES[kind])
    connection.execute(
        sql.SQL("INSERT INTO {} (org_id, name) SELECT %s, unnest(%s::text[]) ON CONFLICT (org_id, name) DO NOTHING").format(
            table
        ),
        [org_id, wanted],
    )
    rows = connection.execute(
        sql.SQL("SELECT name, id FROM {} WHERE org_id = %s AND name = ANY(%s)").format(table), [org_id, wanted]
    )
    return {(kind, row["name"]): row["id"] for row in rows}


def add_rule(
    connection: Connection, *, org: str, match_field: str, match_value: str, priority: int = 100, provider: str | None = None,
    team: str | None = None, project: str | None = None, cost_center: str | None = None,
    feature: str | None = None, environment: str | None = None,
) -> UUID:  # fmt: skip
    """Add or replace the rule with this priority and match. Teams, projects and cost centers are made where they are new."""
    if match_field not in MATCH_FIELDS:
        raise UsageError(f"match_field is {match_field!r}; it must be one of {', '.join(MATCH_FIELDS)}.")
    org_id = organization_id(connection, org)
    ids: dict[str, UUID | None] = {}
    for kind, name in (("team", team), ("project", project), ("cost_center", cost_center)):
        ids[kind] = ensure_entities(connection, org_id, kind, [name])[kind, name] if name else None
    if not any((*ids.values(), feature, environment)):
        raise UsageError("A rule must fill something: give a team, project, cost center, feature or environment.")
    row = connection.execute(
        """
        INSERT INTO app.attribution_rules
          (org_id, priority, match_field, match_value, provider, team_id, project_id, cost_center_id, feature, environment)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
        ON CONFLICT (org_id, priority, match_field, match_value) DO UPDATE SET provider = excluded.provider,
          team_id = excluded.team_id, project_id = excluded.project_id, cost_center_id = excluded.cost_center_id,
          feature = excluded.feature, environment = excluded.environment
        RETURNING id
        """,
        [
            org_id,
            priority,
            match_field,
            match_value,
            provider,
            ids["team"],
            ids["project"],
            ids["cost_center"],
            feature,
            environment,
        ],
    ).fetchone()
    assert row is not None
    identifier: UUID = row["id"]
    return identifier
