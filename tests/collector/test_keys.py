"""Who may send: keys that are shown once, found by their hash, and refused soon after they are revoked."""

from __future__ import annotations

import json
import time

import psycopg
import pytest
from click.testing import CliRunner

from tests.collector.service import Collector, key_of, payload
from tests.warehouse_data import one, rows
from tokentra_dagster.cli import cli
from tokentra_dagster.collector.keys import add_key, hash_of, list_keys, revoke_key
from tokentra_dagster.collector.limits import Limits
from tokentra_dagster.collector.session import Session
from tokentra_dagster.errors import UsageError
from tokentra_dagster.warehouse.access import apply_access

REVOKED_WITHIN = Limits().key_seconds


@pytest.fixture
def collector(database):
    with Collector(database) as running:
        yield running


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer ", "Basic dG9rOmVu", "Bearer tokentra_", "Bearer sk-proj-1",
                                           "Bearer tokentra_" + "x" * 43, "Bearer tokentra_" + "x" * 5000, "Bearer tokentra_\xff\xfe"])  # fmt: skip
def test_without_a_valid_key_nothing_is_stored(collector, database, authorization):
    key_of(database)
    headers = {"Content-Type": "application/json"} | ({} if authorization is None else {"Authorization": authorization})
    answer = collector.ask("POST", "/v1/events", json.dumps(payload()).encode(), headers)
    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert "key" in answer.body["error"] and "xxxxx" not in answer.body["error"]
    assert one(database, "SELECT count(*) FROM raw.usage_events") == 0


def test_a_revoked_key_is_refused_within_two_seconds_and_another_key_goes_on(collector, database):
    key, other = key_of(database), key_of(database, name="other")
    assert collector.post(payload("a"), key).status == 200
    with database.connect() as db:
        revoke_key(db, "acme/tests")
        db.commit()
        revoked = time.monotonic()
    held, sent = payload("b"), revoked
    while (status := collector.post(held, key).status) == 200:
        assert sent < revoked + REVOKED_WITHIN, "nothing that is sent later than that is taken"
        time.sleep(0.1)
        sent = time.monotonic()
    assert status == 401 and REVOKED_WITHIN == 2
    assert collector.post(payload("c"), other).status == 200


def test_a_new_key_holds_at_once_even_where_it_was_refused_before(collector, database):
    key = key_of(database)
    with database.connect() as db:
        db.execute("UPDATE app.organization_keys SET revoked_at = now()")
    assert collector.post(payload(), key).status == 401
    with database.connect() as db:
        db.execute("UPDATE app.organization_keys SET revoked_at = NULL")
    assert collector.post(payload(), key).status == 200


def test_the_organisation_is_the_keys_and_an_event_that_names_another_is_refused(collector, database):
    acme, globex = key_of(database), key_of(database, "globex")
    org = {row["name"]: str(row["id"]) for row in rows(database, "SELECT name, id FROM app.organizations")}
    sent = [payload("a", org_id=org["globex"]), payload("b", org_id=org["acme"]), payload("c"), payload("d", org_id="globex"), payload("e", organization="x")]  # fmt: skip
    answer = collector.post(sent, acme)
    assert (answer.body["stored"], [r["index"] for r in answer.body["refused"]]) == (2, [0, 3, 4])
    assert "names another organisation than the key's" in answer.body["refused"][0]["error"]
    assert collector.post(payload("c", input_tokens=1), globex).body["stored"] == 1, "ids are an organisation's own"
    stored = "SELECT o.name, array_agg(e.event_id ORDER BY e.event_id) AS ids FROM raw.usage_events AS e JOIN app.organizations AS o ON o.id = e.org_id GROUP BY 1 ORDER BY 1"
    assert [tuple(row.values()) for row in rows(database, stored)] == [("acme", ["b", "c"]), ("globex", ["c"])]


def test_many_wrong_keys_at_once_are_few_questions_to_the_database(collector, database):
    from concurrent.futures import ThreadPoolExecutor

    key = key_of(database)
    asked = []
    session_run = Session.run

    async def counting(self, work):
        asked.append(1)
        return await session_run(self, work)

    Session.run = counting
    try:
        with ThreadPoolExecutor(20) as pool, database.connect() as db:
            db.execute("LOCK app.organization_keys IN ACCESS EXCLUSIVE MODE")
            answers = [pool.submit(collector.post, payload(), f"tokentra_wrong-{n}") for n in range(19)]
            while len(collector.app.state.keys._asked) < 18:
                time.sleep(0.02)
            db.rollback()
            assert {answer.result().status for answer in answers} == {401}
    finally:
        Session.run = session_run
    assert len(asked) == 2
    assert collector.post(payload(), key).status == 200


def test_only_the_hash_is_stored_and_when_it_was_used(collector, database):
    key = key_of(database)
    with database.connect() as db:
        (before,) = list_keys(db)
    assert before.last_used_at is None and key.startswith(before.key_prefix) and len(key) - len(before.key_prefix) > 30
    collector.post(payload(), key)
    (row,) = rows(database, "SELECT * FROM app.organization_keys")
    assert bytes(row["key_hash"]) == hash_of(key) and row["last_used_at"] is not None
    assert key not in str(row) and key[len("tokentra_") :] not in str(row)


def test_names_are_an_organisations_own_and_free_again_after_a_revocation(database):
    first = key_of(database)
    with database.connect() as db:
        with pytest.raises(UsageError, match=r"already has a key named 'tests'.*tokentra keys revoke acme/tests"):
            add_key(db, "acme", "tests")
        key_of(database, "globex")
        with pytest.raises(UsageError, match="Several organisations have a key 'tests'"):
            revoke_key(db, "tests")
        revoke_key(db, "acme/tests")
        assert add_key(db, "acme", "tests") != first
        assert [(key.label, key.revoked_at is None) for key in list_keys(db, "acme")] == [
            ("acme/tests", True),
            ("acme/tests", False),
        ]
        for name in ("", "  ", "x" * 201):
            with pytest.raises(UsageError, match="1 to 200 characters"):
                add_key(db, "acme", name)


def test_the_commands_show_a_key_once_and_only_its_beginning_later(database, monkeypatch):
    monkeypatch.setenv("TOKENTRA_DATABASE_URL", database.url)

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(cli, ["keys", *arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    key_of(database, name="other")
    key = run("add", "backend", "--org", "acme").split()[-1]
    assert key in json.dumps({"key": key}) and key.startswith("tokentra_")
    assert json.loads(run("add", "web", "--org", "acme", "--json"))["key"].startswith("tokentra_")
    listed = run("list", "--org", "acme")
    assert key not in listed and key[:15] in listed and "never" in listed
    assert run("revoke", "acme/backend").startswith("acme/backend (tokentra_")
    found = {row["name"]: row for row in json.loads(run("list", "--json"))}
    assert found["backend"]["revoked_at"] and not found["web"]["revoked_at"] and "key_hash" not in found["web"]


async def _refused_to_the_role(database, statements):
    session = Session(database, "tokentra collect")
    try:
        user = await session.run(lambda db: db.execute("SELECT current_user AS name").fetchone()["name"])
        refused = []
        for statement in statements:
            try:
                await session.run(lambda db, statement=statement: db.execute(statement))
            except psycopg.errors.InsufficientPrivilege:
                refused.append(statement)
        return user, refused
    finally:
        await session.close()


@pytest.mark.parametrize("login", ["the owner's", "its own"])
def test_the_collectors_sessions_may_store_events_and_nothing_else(database, login):
    import asyncio

    key = key_of(database)
    name = database.parts["dbname"]
    with database.connect() as db:
        assert apply_access(db)
        if login == "its own":
            db.execute(f"CREATE ROLE login_{name} LOGIN PASSWORD 'p' IN ROLE tokentra_collector_{name}")
    used = (
        database
        if login == "the owner's"
        else type(database)(
            database.url.replace(f"//{database.parts['user']}:{database.parts['password']}@", f"//login_{name}:p@")
        )
    )
    forbidden = [
        "SELECT * FROM raw.usage_records", "SELECT secret_ref FROM app.provider_connections", "SELECT payload FROM raw.rejected_records",
        "SELECT name FROM app.organizations", "SELECT name FROM app.organization_keys", "UPDATE app.organization_keys SET revoked_at = NULL",
        "INSERT INTO app.organization_keys (org_id, name, key_prefix, key_hash) SELECT id, 'x', 'x', '' FROM app.organizations",
        "UPDATE raw.usage_events SET input_tokens = 0", "DELETE FROM raw.usage_events", "TRUNCATE raw.pending_usage_events",
        "DELETE FROM raw.pending_usage_events", "CREATE TABLE raw.mine (n INTEGER)", "SELECT * FROM usage_quotas",
    ]  # fmt: skip
    user, refused = asyncio.run(_refused_to_the_role(used, forbidden))
    assert user == f"tokentra_collector_{name}" and refused == forbidden
    with Collector(used) as collector:
        assert collector.post([payload("a"), payload("a"), payload("b")], key).body == {
            "stored": 2,
            "duplicates": 1,
            "refused": [],
        }
        assert collector.post(payload("a", input_tokens=7), key).status == 422
    with database.connect() as db:
        db.execute(f"DROP ROLE IF EXISTS login_{name}")
