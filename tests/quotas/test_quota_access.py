"""Who may check, reserve, settle and release: every login tries (docs/quotas.md, "Who may call")."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import psycopg
import pytest
from click.testing import CliRunner

from tests.quota_data import quota
from tests.warehouse_data import connection, one, rows
from tokentra_dagster.cli import cli
from tokentra_dagster.errors import UsageError
from tokentra_dagster.quotas import Request, check, release, reserve, settle
from tokentra_dagster.warehouse.access import apply_access, grant_reader, revoke_reader
from tokentra_dagster.warehouse.database import Database

INTERNAL = (
    "SELECT app.rebuild_quota_counters()",
    "SELECT app.judge_quotas(ROW(%(org)s, NULL, NULL, NULL, NULL, NULL)::app.quota_scope, ROW(1, 1, 1, 1)::app.quota_measures, now(), true)",
    "SELECT app.close_reservation(%(id)s, 'released', NULL, now())",
    "SELECT app.forget_quota_counters('infinity')",
    "SELECT * FROM quota_reservations",
    "SELECT * FROM quota_holds",
    "UPDATE quota_counters SET used_tokens = 0",
    "UPDATE reader_organizations SET may_reserve = true",
)


@pytest.fixture
def logins(database: Database) -> Iterator[dict[str, Database]]:
    """Of acme: one that reads, one that reserves; and one of globex that reserves."""
    for org in ("acme", "globex"):
        connection(database, org=org)
    parts = urlsplit(database.url)
    made = {}
    with database.connect() as db:
        for name, org, may_reserve in (("bi", "acme", False), ("gateway", "acme", True), ("stranger", "globex", True)):
            granted = grant_reader(db, name, organizations=[org], may_reserve=may_reserve, password="p")
            made[name] = Database(f"postgresql://{granted.name}:p@{parts.hostname}:{parts.port}{parts.path}")
    yield made
    with database.connect(autocommit=True) as db:
        for name in made:
            revoke_reader(db, name)


def test_a_reader_checks_its_own_organisation_one_that_may_reserves_and_nobody_touches_anothers(database, logins):
    acme = one(database, "SELECT id FROM organizations WHERE name = 'acme'")
    quota(database, acme, enforcement_mode="block", token_limit=100)
    request = Request(acme, tokens=60)
    with (
        logins["bi"].connect(autocommit=True) as bi,
        logins["gateway"].connect(autocommit=True) as gateway,
        logins["stranger"].connect(autocommit=True) as stranger,
    ):
        assert check(bi, request).allowed
        with pytest.raises(UsageError, match=f"bi may not reserve quotas of organisation {acme}"):
            reserve(bi, request)
        held = reserve(gateway, request).id
        assert not check(bi, request).allowed
        for call in (check, reserve):
            with pytest.raises(UsageError, match=f"stranger may not (check|reserve) quotas of organisation {acme}"):
                call(stranger, request)
        for db in (stranger, bi):
            for call in (lambda db=db: settle(db, held, tokens=0), lambda db=db: release(db, held)):
                with pytest.raises(UsageError, match=f"no reservation has the id {held}"):
                    call()
        assert rows(logins["bi"], "SELECT reserved_tokens FROM quota_counters") == [{"reserved_tokens": 60}]
        assert rows(logins["stranger"], "SELECT reserved_tokens FROM quota_counters") == []
        for statement in INTERNAL:
            for db in (gateway, stranger):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    db.execute(statement, {"org": acme, "id": held})
        gateway.execute("SELECT set_config('search_path', 'pg_temp, public', false)")
        assert settle(gateway, held, tokens=61).changed
    assert rows(database, "SELECT used_tokens, reserved_tokens FROM quota_counters") == [
        {"used_tokens": 61, "reserved_tokens": 0}
    ]


def test_nobody_but_the_owner_moves_the_clock(database, logins):
    acme = one(database, "SELECT id FROM organizations WHERE name = 'acme'")
    quota(database, acme, enforcement_mode="block", token_limit=100)
    with database.connect(autocommit=True) as owner, logins["gateway"].connect(autocommit=True) as gateway:
        assert reserve(owner, Request(acme, tokens=100)).id
        tomorrow = (datetime.now(UTC) + timedelta(days=2)).isoformat()
        for db, passes in ((gateway, False), (owner, True)):
            db.execute("SELECT set_config('tokentra.moment', %s, false)", [tomorrow])
            assert check(db, Request(acme, tokens=1)).allowed is passes
            assert (reserve(db, Request(acme, tokens=1)).id is not None) is passes


def test_the_calls_run_as_the_owner_with_a_path_of_their_own_and_only_readers_may_call_them(database, logins):
    with database.connect() as db:
        assert apply_access(db), "again"
    found = rows(
        database,
        "SELECT proname::text AS name, proconfig AS path, has_function_privilege('bi', oid, 'EXECUTE') AS bi, "
        "EXISTS (SELECT FROM aclexplode(proacl) AS acl WHERE acl.grantee = 0) AS everybody "
        "FROM pg_proc WHERE prosecdef AND pronamespace = 'app'::regnamespace AND proname <> 'reader_org_ids' ORDER BY 1",
    )
    assert [row["name"] for row in found] == ["check_quota_before_request", "release_quota", "reserve_quota", "settle_quota"]
    assert {(tuple(row["path"]), row["bi"], row["everybody"]) for row in found} == {
        (("search_path=pg_catalog, pg_temp",), True, False)
    }


def test_the_command_lets_a_login_reserve_of_its_organisation_only_and_sees_no_quota_of_another(database, logins, tmp_path):
    """By row-level security: neither the quotas, counters, versions, refusals nor corrections of globex."""
    acme, globex = (one(database, "SELECT id FROM organizations WHERE name = %s", name) for name in ("acme", "globex"))
    for org in (acme, globex):
        quota(database, org, enforcement_mode="block", token_limit=100)
    with database.connect(autocommit=True) as owner:
        held = reserve(owner, Request(globex, tokens=60)).id
        assert not reserve(owner, Request(globex, tokens=60)).id
        owner.execute("UPDATE quota_counters SET used_tokens = 7")
        owner.execute("SELECT rebuild_quota_counters()")
    arguments = ["db", "grant-reader", "bi", "--org", "acme", "--may-reserve", "--json"]
    done = CliRunner().invoke(cli, arguments, env={"TOKENTRA_DATABASE_URL": database.url, "TOKENTRA_HOME": str(tmp_path)})
    assert json.loads(done.output)["may_reserve"] is True
    with logins["bi"].connect(autocommit=True) as bi:
        assert reserve(bi, Request(acme, tokens=1)).id
        for call in (check, reserve):
            with pytest.raises(UsageError, match=r"may not (check|reserve) quotas of organisation"):
                call(bi, Request(globex, tokens=1))
        for call in (lambda: settle(bi, held, tokens=0), lambda: release(bi, held)):
            with pytest.raises(UsageError, match="no reservation has the id"):
                call()
        for table in ("usage_quotas", "quota_counters", "usage_quota_versions", "quota_events", "quota_corrections"):
            seen = bi.execute(f"SELECT count(*) FILTER (WHERE org_id = %s) AS other FROM {table}", [globex]).fetchone()
            assert seen == {"other": 0}
            assert one(database, f"SELECT count(*) FROM {table} WHERE org_id = %s", globex) > 0
