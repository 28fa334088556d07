"""The migration to 0004 on a database that has names already."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.warehouse_data import rows
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import add_organization, ensure_entities
from tokentra_dagster.warehouse.migrate import migrate


@pytest.fixture
def first_version(server_url: str) -> Iterator[Database]:
    """A database as release 0001 made it."""
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute("CREATE DATABASE first_version")
    database = Database(server_url.rsplit("/", 1)[0] + "/first_version")
    migrate(database, "0001")
    yield database
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute("DROP DATABASE first_version WITH (FORCE)")


def test_names_known_before_the_history_began_are_its_first(first_version):
    with first_version.connect() as db:
        org_id, _ = add_organization(db, "acme")
        made = db.execute(
            "INSERT INTO app.provider_connections (org_id, name, provider) VALUES (%s, 'openai', 'openai') RETURNING id", [org_id]
        ).fetchone()
        ensure_entities(db, org_id, "team", ["search"])
        db.execute(
            "INSERT INTO raw.provider_entities (provider_connection_id, org_id, provider, kind, entity_id, name) VALUES (%s, %s, 'openai', 'user', 'u1', 'Ann')",
            [made["id"], org_id],
        )
    assert migrate(first_version)
    assert [tuple(r.values()) for r in rows(first_version, "SELECT integration, source FROM app.provider_connections")] == [
        ("openai", "provider_api")
    ]
    with first_version.connect() as db:
        db.execute("UPDATE app.teams SET name = 'discovery'")
    history = "SELECT name, valid_from IS NULL AS from_ever, valid_to IS NULL AS now FROM {} ORDER BY valid_from NULLS FIRST"
    assert [tuple(r.values()) for r in rows(first_version, history.format("app.entity_names"))] == [
        ("search", True, False),
        ("discovery", False, True),
    ]
    assert [tuple(r.values()) for r in rows(first_version, history.format("raw.provider_entity_names"))] == [("Ann", True, True)]
