"""Who may read what (design, "Security"; docs/access.md): readers' logins and the organisations that they see.

The rules themselves are SQL, `app.apply_access()` in `migrations/access.sql`; here they are applied, and logins are made.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

from tokentra_dagster.errors import TokenTraError, UsageError
from tokentra_dagster.warehouse.directory import Connection, organization_id

NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")


@dataclass(frozen=True, slots=True)
class Granted:
    """A reader's login. `password` is set only where it was made up here: it is kept nowhere else."""

    name: str
    organizations: tuple[str, ...]
    is_new: bool
    password: str | None = None


def apply_access(db: psycopg.Connection[Any]) -> bool:
    """Make the group roles and grant what they need; repeatable. False where the owner may not make roles."""
    known = db.execute("SELECT to_regprocedure('app.apply_access()') IS NOT NULL AS it_is").fetchone()
    if not known or not known["it_is"]:
        return False
    row = db.execute("SELECT app.apply_access() AS done").fetchone()
    return bool(row and row["done"])


def grant_reader(
    db: Connection,
    name: str,
    *,
    organizations: Sequence[str] = (),
    all_organizations: bool = False,
    password: str | None = None,
    may_reserve: bool = False,
) -> Granted:
    """Make or change a login that reads the marts of these organisations, and of no others; with `may_reserve` it also reserves from
    their quotas (docs/quotas.md). An existing login keeps its password unless one is given. Raises `UsageError` for a name that is
    taken or cannot be one, `TokenTraError` without the right to make roles. One transaction; the caller commits."""
    if not NAME.fullmatch(name) or name.startswith("pg_"):
        raise UsageError(
            f"The reader's name is {name!r}; use lower-case letters, digits and _, beginning with a letter or _, at most 63."
        )
    if bool(organizations) == all_organizations:
        raise UsageError("Say which organisations the reader sees: --org NAME, more than once for several, or --all-orgs.")
    ids: list[UUID | None] = [organization_id(db, organization) for organization in organizations]
    if not apply_access(db):
        raise TokenTraError("This database's owner may not make roles; give it CREATEROLE, or use its own login to read.")
    is_new = not _exists(db, name)
    if not is_new and not _is_reader(db, name):
        raise UsageError(f"The server already has a role named {name!r} that is no reader of this database; choose another name.")
    generated = None if password or not is_new else secrets.token_urlsafe(24)
    login = sql.Identifier(name)
    if is_new:
        db.execute(sql.SQL("CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS").format(login))
    if password or generated:
        # Hashed here, so that no log of statements holds it.
        hashed = db.pgconn.encrypt_password((password or generated or "").encode(), name.encode(), b"scram-sha-256").decode()
        db.execute(sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(login, sql.Literal(hashed)))
    may_not_set = sql.SQL(" WITH SET FALSE" if db.info.server_version >= 160000 else "")
    db.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(reader_role(db)), login) + may_not_set)
    db.execute("DELETE FROM app.reader_organizations WHERE role_name = %s", [name])
    db.cursor().executemany(
        "INSERT INTO app.reader_organizations (role_name, org_id, may_reserve) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
        [(name, identifier, may_reserve) for identifier in (ids or [None])],
    )
    return Granted(name, tuple(organizations), is_new, generated)


def revoke_reader(db: Connection, name: str) -> None:
    """Take a reader's login away and end its sessions. Raises `UsageError` that lists the readers there are."""
    if not _exists(db, name) or not _is_reader(db, name):
        known = [row["role_name"] for row in db.execute("SELECT DISTINCT role_name FROM app.reader_organizations ORDER BY 1")]
        raise UsageError(f"No reader is named {name!r}. There are: {', '.join(known) or 'none'}.")
    db.execute("DELETE FROM app.reader_organizations WHERE role_name = %s", [name])
    login = sql.Identifier(name)
    db.execute(sql.SQL("REVOKE {} FROM {}").format(sql.Identifier(reader_role(db)), login))
    db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s AND pid <> pg_backend_pid()", [name])
    db.execute(sql.SQL("ALTER ROLE {} NOLOGIN").format(login))
    try:
        with db.transaction():
            db.execute(sql.SQL("DROP ROLE {}").format(login))
    except psycopg.errors.DependentObjectsStillExist:
        # It owns or may do something that nobody gave it here: it cannot log in any more, which is what was asked.
        return


def reader_role(db: Connection) -> str:
    """The group role of this database's readers."""
    row = db.execute("SELECT app.access_role('reader') AS name").fetchone()
    assert row is not None
    return str(row["name"])


def _exists(db: Connection, name: str) -> bool:
    return db.execute("SELECT FROM pg_roles WHERE rolname = %s", [name]).fetchone() is not None


def _is_reader(db: Connection, name: str) -> bool:
    row = db.execute(
        "SELECT pg_has_role(r.oid, g.oid, 'MEMBER') AND NOT r.rolsuper AS it_is FROM pg_roles AS r, pg_roles AS g "
        "WHERE r.rolname = %s AND g.rolname = %s",
        [name, reader_role(db)],
    ).fetchone()
    return bool(row and row["it_is"])
