"""Every state of a quota is kept, however it came and went; and databases of the first release are brought along."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

import psycopg
import pytest

from tests.conftest import _at
from tests.quota_data import quota
from tests.warehouse_data import DAY, connection, one, rows
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.migrate import current, head, migrate


@pytest.fixture
def org(database):
    return connection(database).org_id


def _versions(database, quota_id, columns: str = "version, token_limit, valid_to IS NULL AS open") -> list[tuple]:
    found = rows(database, f"SELECT {columns} FROM usage_quota_versions WHERE quota_id = %s ORDER BY version", quota_id)
    return [tuple(row.values()) for row in found]


def _chained(database, quota_id) -> bool:
    spans = _versions(database, quota_id, "valid_from, valid_to")
    return all(before[1] == after[0] for before, after in pairwise(spans))


def test_each_change_is_a_version_and_a_change_of_nothing_is_none(database, org):
    made = quota(database, org, created_at=DAY)
    assert _versions(database, made, "version, valid_from, valid_to") == [(1, DAY, None)]
    for statement in (
        "UPDATE usage_quotas SET token_limit = 1000, updated_at = now()",
        "UPDATE usage_quotas SET current_tokens = 77, description = 'words'",
        "UPDATE usage_quotas SET token_limit = 2000",
        "UPDATE usage_quotas SET is_active = false",
    ):
        with database.connect() as db:
            db.execute(statement)
    assert _versions(database, made, "version, token_limit, is_active") == [(1, 1000, True), (2, 2000, True), (3, 2000, False)]
    assert _chained(database, made)


def test_changes_in_one_transaction_are_one_version_and_none_when_they_undo_each_other(database, org):
    made = quota(database, org)
    with database.connect() as db:
        db.execute("UPDATE usage_quotas SET token_limit = 1")
        db.execute("UPDATE usage_quotas SET token_limit = 2, enforcement_mode = 'block'")
    assert _versions(database, made) == [(1, 1000, False), (2, 2, True)]
    with database.connect() as db:
        db.execute("UPDATE usage_quotas SET token_limit = 3")
        db.execute("SAVEPOINT s")
        db.execute("UPDATE usage_quotas SET token_limit = 2")
    assert _versions(database, made) == [(1, 1000, False), (2, 2, True)]
    with database.connect() as db:
        db.execute(
            "INSERT INTO usage_quotas (org_id, name, scope_type, token_limit) VALUES (%s, 'short', 'organization', 1)", [org]
        )
        db.execute("UPDATE usage_quotas SET token_limit = 9 WHERE name = 'short'")
        db.execute("DELETE FROM usage_quotas WHERE name = 'short'")
    assert one(database, "SELECT count(*) FROM usage_quota_versions WHERE name = 'short'") == 0


def test_a_deleted_quota_keeps_its_versions_and_may_come_back(database, org):
    made = quota(database, org)
    with database.connect() as db:
        db.execute("UPDATE usage_quotas SET token_limit = 5")
    with database.connect() as db:
        db.execute("UPDATE usage_quotas SET token_limit = 6")
        db.execute("DELETE FROM usage_quotas")
    assert _versions(database, made) == [(1, 1000, False), (2, 5, False)]
    quota(database, org, id=made, token_limit=7)
    assert _versions(database, made) == [(1, 1000, False), (2, 5, False), (3, 7, True)]
    spans = _versions(database, made, "valid_from, valid_to")
    assert spans[1][1] <= spans[2][0], "it did not exist in between, whatever its created_at says"


def test_a_change_that_began_earlier_and_commits_later_comes_later(database, org):
    made = quota(database, org)
    with database.connect() as early, database.connect() as late:
        early.execute("SELECT now()")
        late.execute("UPDATE usage_quotas SET token_limit = 2")
        late.commit()
        early.execute("UPDATE usage_quotas SET token_limit = 3")
        early.commit()
    assert _versions(database, made) == [(1, 1000, False), (2, 2, False), (3, 3, True)]
    assert _chained(database, made)


def test_a_changed_beginning_moves_the_first_version_and_no_quota_begins_in_the_future(database, org):
    made = quota(database, org)
    with database.connect() as db:
        db.execute("UPDATE usage_quotas SET created_at = created_at - interval '40 days'")
    assert _versions(database, made, "version, valid_from") == [(1, DAY - timedelta(days=40))]
    future = quota(database, org, "future", created_at=DAY + timedelta(days=36500))
    assert one(database, "SELECT valid_from <= now() FROM usage_quota_versions WHERE quota_id = %s", future)


def test_the_id_of_a_quota_cannot_change(database, org):
    quota(database, org)
    with pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="insert a new quota instead"), database.connect() as db:
        db.execute("UPDATE usage_quotas SET id = gen_random_uuid()")


def test_a_database_of_the_first_release_is_brought_along_with_its_quotas(server_url):
    with psycopg.connect(server_url, autocommit=True) as db:
        db.execute("CREATE DATABASE first_release")
    try:
        old = Database(_at(server_url, "first_release"))
        migrate(old, "0001")
        assert current(old) == "0001"
        with old.connect() as db:
            org = db.execute("INSERT INTO app.organizations (name) VALUES ('acme') RETURNING id").fetchone()["id"]
            db.execute(
                "INSERT INTO app.usage_quotas (org_id, name, scope_type, token_limit, period_reset_hour, is_active, created_at) "
                "VALUES (%s, 'old', 'organization', 10, NULL, NULL, %s)",
                [org, DAY],
            )
        assert migrate(old) and current(old) == head()
        assert rows(old, "SELECT name, valid_from, valid_to, period_reset_hour, is_active FROM usage_quota_versions") == [
            {"name": "old", "valid_from": DAY, "valid_to": None, "period_reset_hour": 0, "is_active": True}
        ]
    finally:
        with psycopg.connect(server_url, autocommit=True) as db:
            db.execute("DROP DATABASE first_release WITH (FORCE)")
