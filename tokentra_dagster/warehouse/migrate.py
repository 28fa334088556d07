"""Migrations: versioned, transactional, repeatable (Alembic). The version table is `app.alembic_version`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import psycopg.sql

from tokentra_dagster.warehouse.access import apply_access
from tokentra_dagster.warehouse.database import DAGSTER_SCHEMA, SEARCH_PATH, Database

FOLDER = Path(__file__).parent / "migrations"
MIGRATION_LOCK = 7_265_001


def head() -> str:
    """The newest revision: migration files are named `<revision>_<what>.py`, in order."""
    return max(path.name.split("_")[0] for path in (FOLDER / "versions").glob("[0-9]*.py"))


def current(database: Database) -> str | None:
    """The revision the database is at, or None when it was never migrated. Needs no Alembic, so it is quick."""
    with database.connect() as connection:
        try:
            row = connection.execute("SELECT version_num FROM app.alembic_version").fetchone()
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            return None
        return row["version_num"] if row else None


def migrate(database: Database, target: str = "head") -> bool:
    """Bring the database to `target`. False when it was there already. Two at once: the second waits, then finds it done."""
    if target == "head" and current(database) == head():
        return False
    from alembic import command

    with database.connect(autocommit=True) as guard:
        guard.execute("SELECT pg_advisory_lock(%s)", [MIGRATION_LOCK])
        if target == "head" and current(database) == head():
            return False
        command.upgrade(configuration(database), target)
        _set_search_path(guard, database)
        apply_access(guard)
    return True


def configuration(database: Database) -> Any:
    """Alembic's configuration for this database."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    config.attributes["url"] = database.url
    return config


def _set_search_path(connection: psycopg.Connection[Any], database: Database) -> None:
    """The specification's names work unqualified for every client with the default search path (design, "PostgreSQL")."""
    name = psycopg.sql.Identifier(database.parts["dbname"])
    path = psycopg.sql.SQL(", ").join(psycopg.sql.Identifier(schema) for schema in SEARCH_PATH)
    connection.execute(psycopg.sql.SQL('ALTER DATABASE {} SET search_path = "$user", {}').format(name, path))
    connection.execute(psycopg.sql.SQL("ALTER DATABASE {} SET timezone = 'UTC'").format(name))
    connection.execute(psycopg.sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(psycopg.sql.Identifier(DAGSTER_SCHEMA)))
