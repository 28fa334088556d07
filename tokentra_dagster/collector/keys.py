"""Keys of organisations: made, listed and revoked. A key is shown once; the database has only its hash."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import psycopg

from tokentra_dagster.errors import UsageError
from tokentra_dagster.warehouse.directory import Connection, one_named, organization_id

KEY_START = "tokentra_"
"""So that scanners of secrets and people see what a key is for."""
_SHOWN = len(KEY_START) + 6


@dataclass(frozen=True, slots=True)
class OrganizationKey:
    """One row of `app.organization_keys` with its organisation's name. Times UTC; `last_used_at` to the minute."""

    id: UUID
    organization: str
    name: str
    key_prefix: str
    created_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None

    @property
    def label(self) -> str:
        return f"{self.organization}/{self.name}"


def hash_of(key: str) -> bytes:
    """What the database knows of a key: its SHA-256. Keys are random, so it needs neither salt nor slowness."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def add_key(db: Connection, org: str, name: str) -> str:
    """A new key of the organisation, to be shown once. Raises `UsageError` where a valid key has that name; the caller commits."""
    if not name.strip() or len(name) > 200:
        raise UsageError(f"The key's name is {name[:50]!r}; say in 1 to 200 characters who will use it.")
    key = KEY_START + secrets.token_urlsafe(32)
    org_id = organization_id(db, org)
    try:
        with db.transaction():
            db.execute(
                "INSERT INTO app.organization_keys (org_id, name, key_prefix, key_hash) VALUES (%s, %s, %s, %s)",
                [org_id, name.strip(), key[:_SHOWN], hash_of(key)],
            )
    except psycopg.errors.UniqueViolation:
        raise UsageError(
            f"{org} already has a key named {name.strip()!r}; choose another name, or first run `tokentra keys revoke {org}/{name.strip()}`."
        ) from None
    return key


def list_keys(db: Connection, org: str | None = None, *, valid_only: bool = False) -> list[OrganizationKey]:
    """By organisation and name, revoked ones after those that are valid."""
    rows = db.execute(
        """
        SELECT k.id, o.name AS organization, k.name, k.key_prefix, k.created_at, k.last_used_at, k.revoked_at
        FROM app.organization_keys AS k JOIN app.organizations AS o ON o.id = k.org_id
        WHERE (%(org)s::uuid IS NULL OR k.org_id = %(org)s) AND NOT (%(valid)s AND k.revoked_at IS NOT NULL)
        ORDER BY o.name, k.revoked_at NULLS FIRST, k.name
        """,
        {"org": organization_id(db, org) if org else None, "valid": valid_only},
    )
    return [OrganizationKey(**row) for row in rows]


def revoke_key(db: Connection, name: str) -> OrganizationKey:
    """By `ORG/NAME`, by name where it is the only one, or by id; the caller commits. Raises `UsageError` that lists the valid keys."""
    key = one_named(list_keys(db, valid_only=True), name, what="key", owners="Several organisations", add="tokentra keys add")
    db.execute("UPDATE app.organization_keys SET revoked_at = now() WHERE id = %s", [key.id])
    return key
