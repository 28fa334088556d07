"""Every role logs in and tries: a reader sees its own organisation's rows and nothing else, by whatever road."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.dbt.conftest import run_dbt
from tests.realtime.event_data import event, flush_all, send
from tests.warehouse_data import DAY, HOUR, connection, load, one, record, rows
from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.analytics.results import InsightRow, MetricRow, RecommendationRow
from tokentra_dagster.analytics_store import Findings, store
from tokentra_dagster.errors import TokenTraError, UsageError
from tokentra_dagster.warehouse.access import apply_access, grant_reader, revoke_reader
from tokentra_dagster.warehouse.database import Database

_numbers = itertools.count(1)
DENIED = psycopg.errors.InsufficientPrivilege
READABLE = (
    "hourly_usage_rollup", "daily_usage_rollup", "daily_usage_by_user", "hourly_usage_by_api_key", "hourly_usage_totals", "daily_active_entities",
    "active_users", "user_activity", "usage_coverage", "usage_records", "usage_quotas", "raw.provider_entities",
    "intermediate.int_user_days", "intermediate.int_counted_records", "intermediate.int_connection_days",
    "staging.stg_raw__usage_records", "staging.stg_app__provider_connections", "app.teams",
    "metrics", "insights", "recommendations", "analytics.documents",
)  # fmt: skip
SECRETS = (
    "SELECT secret_ref FROM app.provider_connections",
    "SELECT base_url FROM app.provider_connections",
    "SELECT options FROM app.provider_connections",
    "SELECT * FROM provider_connections",
    "SELECT payload FROM raw.rejected_records",
    "SELECT error FROM raw.sync_history",
    "SELECT * FROM app.reader_organizations",
    "SELECT * FROM app.users",
    "SELECT * FROM app.attribution_rules",
    "SELECT * FROM raw.usage_changes",
    "SELECT * FROM raw.usage_events",
    "SELECT * FROM raw.pending_usage_events",
    "SELECT * FROM raw.usage_records_default",
    "SELECT * FROM dagster.runs",
    "SELECT * FROM pg_authid",
    "SELECT * FROM pg_statistic",
    "SELECT pg_read_file('PG_VERSION')",
)
WRITES = (
    "INSERT INTO app.reader_organizations (role_name, org_id) VALUES (session_user, NULL)",
    "UPDATE app.reader_organizations SET org_id = NULL",
    "UPDATE usage_records SET input_tokens = 0",
    "DELETE FROM daily_usage_rollup",
    "TRUNCATE hourly_usage_rollup",
    "UPDATE usage_quotas SET token_limit = 1",
    "COPY usage_records FROM PROGRAM 'true'",
    "COPY (SELECT 1) TO PROGRAM 'true'",
    "CREATE TABLE public.mine (n INTEGER)",
    "CREATE TABLE marts.mine (n INTEGER)",
    "CREATE TEMPORARY TABLE mine (n INTEGER)",
    "CREATE FUNCTION pg_temp.leak(TEXT) RETURNS BOOLEAN LANGUAGE sql AS 'SELECT true'",
    "CREATE FUNCTION public.leak(TEXT) RETURNS BOOLEAN LANGUAGE sql AS 'SELECT true'",
    "ALTER TABLE daily_usage_rollup DISABLE ROW LEVEL SECURITY",
    "DROP POLICY readers ON daily_usage_rollup",
    "CREATE ROLE another",
)


def _as(database: Database, name: str, password: str) -> Database:
    parts = urlsplit(database.url)
    return Database(f"postgresql://{name}:{password}@{parts.hostname}:{parts.port}{parts.path}")


def _reader(database: Database, *organizations: str, name: str | None = None, everyone: bool = False) -> Database:
    name = name or f"reader_{database.parts['dbname']}"
    with database.connect() as db:
        granted = grant_reader(db, name, organizations=organizations, all_organizations=everyone)
    assert granted.password
    return _as(database, name, granted.password)


def _member(database: Database, kind: str) -> Database:
    """A login that becomes the group role as it logs in, as docs/access.md makes it."""
    name = f"{kind}_{database.parts['dbname']}"
    with database.connect() as db:
        assert apply_access(db)
        group = f"tokentra_{kind}_{database.parts['dbname']}"
        db.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'p' IN ROLE {group}")
        db.execute(f"ALTER ROLE {name} SET role = '{group}'")
    return _as(database, name, "p")


def _store_findings(db, org_id, model: str) -> None:
    """What an analysis of the organisation would leave in schema `analytics`."""
    said = {"kind": "growth", "severity": "info", "title": model, "description": model}
    advice = {"category": "caching", "priority": "low", "title": model, "description": model, "action": model}
    store(
        db, org_id,
        Findings("dashboard", "7d", Period(DAY, DAY + 7 * 24 * HOUR), "USD", {"model": model}, [MetricRow("total_tokens", 1, "model", model)],
                 [InsightRow(**said)], [RecommendationRow(**advice)]),
    )  # fmt: skip


def _build(database: Database, target: Path, *arguments: str) -> None:
    success, says = run_dbt(database, target, "run", *arguments)
    assert success, says[-4000:]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dbt")


@pytest.fixture(scope="module")
def built(server_url: str, template_database: str, target: Path) -> Iterator[str]:
    """acme with model `public` and globex with model `secret-model`, both with everything a reader might look for; built."""
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE access_built TEMPLATE {template_database}")
        admin.execute('ALTER DATABASE access_built SET search_path = "$user", public, app, raw, marts, analytics')
    database = Database(server_url.rsplit("/", 1)[0] + "/access_built")
    for org, model in (("acme", "public"), ("globex", "secret-model")):
        row = connection(database, org=org, secret_ref="env:KEY", base_url="https://example.test")
        items = [
            record(DAY + n * HOUR, model=model, user_id=f"{org}-user", api_key_id="k", team=f"{org}-team") for n in range(24)
        ]
        load(database, row, items)
        with database.connect() as db:
            db.execute(
                "INSERT INTO app.usage_quotas (org_id, name, scope_type, token_limit) VALUES (%s, 'q', 'organization', 9)",
                [row.org_id],
            )
            db.execute(
                "INSERT INTO raw.provider_entities (provider_connection_id, org_id, provider, kind, entity_id, name) "
                "VALUES (%s, %s, 'openai', 'user', %s, %s)",
                [row.id, row.org_id, f"{org}-user", org],
            )
            _store_findings(db, row.org_id, model)
    _build(database, target)
    yield "access_built"


@pytest.fixture
def two(server_url: str, built: str) -> Iterator[Database]:
    """A copy of `built`, of this test's own."""
    name = f"access_{next(_numbers)}"
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE {built}")
        admin.execute(f'ALTER DATABASE {name} SET search_path = "$user", public, app, raw, marts, analytics')
        yield Database(server_url.rsplit("/", 1)[0] + f"/{name}")
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_a_reader_sees_its_own_organisations_rows_by_whatever_road_also_after_a_full_refresh(two, target):
    reader = _reader(two, "acme")
    acme = one(two, "SELECT id FROM app.organizations WHERE name = 'acme'")
    seen_by_owner = {table: one(two, f"SELECT count(*) FROM {table}") for table in READABLE}
    for refresh in (False, True):
        if refresh:
            _build(two, target, "--full-refresh")
        for table in READABLE:
            assert 0 < one(reader, f"SELECT count(*) FROM {table}") < seen_by_owner[table], table
            text = str(rows(reader, f"SELECT to_jsonb(t) AS r FROM (SELECT * FROM {table}) AS t"))
            assert "secret-model" not in text and "globex" not in text, table
    assert rows(reader, "SELECT id FROM app.organizations") == [{"id": acme}]
    assert one(reader, "SELECT count(DISTINCT org_id) FROM raw.sync_history") == 1
    with reader.connect() as db:
        with db.cursor().copy("COPY daily_usage_rollup (model) TO STDOUT") as copy:
            assert {bytes(line) for line in copy} == {b"public\n"}
        # Statistics of columns (most common values) would tell other organisations' models.
        two.connect(autocommit=True).execute("ANALYZE")
        assert db.execute("SELECT count(*) AS n FROM pg_stats WHERE schemaname IN ('raw', 'marts', 'app', 'intermediate')").fetchone() == {"n": 0}  # fmt: skip
        assert db.execute("SELECT count(*) AS n FROM pg_stats_ext").fetchone() == {"n": 0}
        (planned,) = db.execute("EXPLAIN SELECT * FROM usage_records WHERE model = 'secret-model'").fetchmany(1)
        assert "secret" not in str(planned).replace("'secret-model'", "")
    assert one(two, "SELECT count(*) FROM pg_stats WHERE schemaname = 'marts'") > 0, "the statistics are there"


def test_conditions_of_the_readers_own_are_asked_only_of_rows_it_may_see(two):
    """Row-level security comes before whatever could tell a value: an error message, a notice of a cheap function."""
    reader = _reader(two, "acme")
    with two.connect() as db:
        db.execute(
            "CREATE FUNCTION public.tell(value TEXT) RETURNS BOOLEAN LANGUAGE plpgsql COST 0.0001 AS "
            "$$ BEGIN RAISE NOTICE 'saw %', value; RETURN true; END $$"
        )
        db.execute("CREATE OPERATOR public.<<<< (LEFTARG = TEXT, RIGHTARG = TEXT, FUNCTION = starts_with)")
    for table in ("daily_usage_rollup", "intermediate.int_counted_records", "usage_records"):
        with reader.connect() as db:
            heard: list[str] = []
            db.add_notice_handler(lambda notice, heard=heard: heard.append(notice.message_primary))
            db.execute(f"SELECT * FROM {table} WHERE public.tell(model)")
            assert set(heard) == {"saw public"}
            with pytest.raises(psycopg.errors.InvalidTextRepresentation) as raised:
                db.execute(f"SELECT * FROM {table} WHERE model::INTEGER = 1 ORDER BY model DESC")
            assert "secret" not in str(raised.value)
            db.rollback()
            assert db.execute(f"SELECT count(*) AS n FROM {table} WHERE model OPERATOR(public.<<<<) 'secret'").fetchone() == {"n": 0}  # fmt: skip


def test_a_reader_reads_no_secret_writes_nothing_and_cannot_become_somebody_else(two):
    reader = _reader(two, "acme")
    name = two.parts["dbname"]
    becoming = [f"SET ROLE tokentra_{kind}_{name}" for kind in ("loader", "transformer")]
    becoming += [f"SET ROLE {two.parts['user']}", f"SET SESSION AUTHORIZATION {two.parts['user']}"]
    with reader.connect() as db:
        for statement in (*SECRETS, *WRITES, *becoming):
            with pytest.raises(DENIED):
                db.execute(statement)
            db.rollback()
        if db.info.server_version >= 160000:
            with pytest.raises(DENIED):
                db.execute(f"SET ROLE tokentra_reader_{name}")
            db.rollback()
        db.execute("SET row_security = off")
        for table in ("usage_records", "daily_usage_rollup", "user_activity"):
            with pytest.raises(DENIED, match="row-level security"):
                db.execute(f"SELECT * FROM {table}")
            db.rollback()
            db.execute("SET row_security = off")
        db.rollback()
        db.execute("SET search_path = pg_temp")
        for setting in ("tokentra.org", "app.org_id"):
            db.execute("SELECT set_config(%s, (SELECT max(org_id::text) FROM raw.usage_records), false)", [setting])
        assert db.execute("SELECT DISTINCT model FROM raw.usage_records").fetchall() == [{"model": "public"}]


def test_functions_answer_with_their_callers_rights(two):
    """Such as the stored functions of the specification (2.7) are: not SECURITY DEFINER."""
    reader = _reader(two, "acme")
    with two.connect() as db:
        db.execute(
            "CREATE FUNCTION marts.tokens_of(p_org_id UUID) RETURNS BIGINT LANGUAGE plpgsql STABLE AS $$ BEGIN "
            "RETURN (SELECT sum(total_tokens) FROM daily_usage_rollup WHERE org_id = p_org_id); END $$"
        )
        db.execute("CREATE FUNCTION marts.mistake() RETURNS BIGINT LANGUAGE sql SECURITY DEFINER AS 'SELECT 1::bigint'")
        assert apply_access(db)
    tokens = {
        r["name"]: one(reader, "SELECT tokens_of(%s)", r["id"]) for r in rows(two, "SELECT name, id FROM app.organizations")
    }
    assert tokens == {"acme": 2640, "globex": None}
    with pytest.raises(DENIED):
        one(reader, "SELECT marts.mistake()")


def test_what_a_reader_sees_follows_the_binding_at_once(two):
    reader = _reader(two, "acme")
    models = "SELECT array_agg(DISTINCT model ORDER BY model) FROM daily_usage_rollup"
    with reader.connect() as session:
        with two.connect() as db:
            again = grant_reader(db, reader.parts["user"], organizations=["globex"])
            assert (again.is_new, again.password) == (False, None)
        assert session.execute(models).fetchone() == {"array_agg": ["secret-model"]}
        with two.connect() as db:
            grant_reader(db, reader.parts["user"], all_organizations=True)
        session.rollback()
        assert session.execute(models).fetchone() == {"array_agg": ["public", "secret-model"]}
        with two.connect() as db:
            db.execute("DELETE FROM app.reader_organizations")
        session.rollback()
        assert session.execute(models).fetchone() == {"array_agg": None}
        with two.connect() as db:
            revoke_reader(db, reader.parts["user"])
        with pytest.raises(psycopg.OperationalError):
            session.execute(models)
    with pytest.raises(TokenTraError, match=r"Cannot reach the database"):
        reader.connect()


def test_a_reader_of_one_database_reads_nothing_of_another_on_the_same_server(two, server_url, template_database):
    reader = _reader(two, "acme")
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE another TEMPLATE {template_database}")
        try:
            another = Database(server_url.rsplit("/", 1)[0] + "/another")
            load(another, connection(another), [record()])
            with another.connect() as db:
                assert apply_access(db)
            with pytest.raises(DENIED):
                one(_as(another, reader.parts["user"], reader.parts["password"]), "SELECT count(*) FROM raw.usage_records")
        finally:
            admin.execute("DROP DATABASE another WITH (FORCE)")


def test_a_loader_loads_and_cannot_write_marts_and_a_transformer_builds_and_cannot_load(two, target):
    loader, transformer = _member(two, "loader"), _member(two, "transformer")
    acme = connection(two, org="acme")
    month = DAY.replace(month=7)
    load(loader, acme, [record(month, model="loaded", team="a new team")], month, month + HOUR)
    assert one(two, "SELECT count(*) FROM raw.usage_records_y2026m07") == 1
    send(
        loader,
        acme.org_id,
        event("by the loader", month, provider="google", model="loaded too", project="a new project"),
        now=month,
    )
    assert [done.loaded for done in flush_all(loader, month)] == [1], "also where the first event makes the connection"
    refused = {
        loader: ("DELETE FROM marts.daily_usage_rollup", "SELECT * FROM marts.daily_usage_rollup", "SELECT * FROM app.reader_organizations",
                 "UPDATE app.provider_connections SET secret_ref = 'env:X'"),
        transformer: ("DELETE FROM raw.usage_records", "SELECT secret_ref FROM app.provider_connections", "SELECT * FROM raw.rejected_records",
                      "SELECT * FROM app.reader_organizations", "UPDATE app.organizations SET name = 'x'"),
    }  # fmt: skip
    for role, statements in refused.items():
        for statement in statements:
            with role.connect() as db, pytest.raises(DENIED):
                db.execute(statement)
    _build(transformer, target, "--full-refresh")
    reader = _reader(two, "acme")
    assert one(reader, "SELECT count(DISTINCT model) FROM daily_usage_rollup") == 3
    _build(two, target)
    assert one(two, "SELECT count(DISTINCT model) FROM daily_usage_rollup") == 4


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("Bad Name", {"organizations": ["acme"]}, "lower-case letters"),
        ("r", {}, "--org NAME"),
        ("r", {"organizations": ["acme"], "all_organizations": True}, "--org NAME"),
        ("r", {"organizations": ["nobody"]}, "nobody"),
        ("tokentra", {"organizations": ["acme"]}, "no reader of this database"),
    ],
)
def test_a_wrong_grant_is_refused_in_one_sentence(database, name, arguments, words):
    connection(database)
    with database.connect() as db, pytest.raises(UsageError, match=words):
        grant_reader(db, name, **arguments)


def test_the_commands_make_and_take_away_a_reader_and_keep_the_password_out_of_the_database(database, tmp_path: Path):
    connection(database)
    env = {**os.environ, "TOKENTRA_DATABASE_URL": database.url, "TOKENTRA_HOME": str(tmp_path), "BI_PASSWORD": "from the vault"}

    def tokentra(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).parent / "tokentra"), "db", *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True)

    made = tokentra("grant-reader", "bi", "--org", "acme")
    assert made.returncode == 0 and "bi is new and reads acme" in made.stdout, made.stderr
    password = made.stdout.rsplit(" ", 1)[1].strip()
    assert one(_as(database, "bi", password), "SELECT count(*) FROM usage_records") == 0
    changed = tokentra("grant-reader", "bi", "--all-orgs", "--secret", "env:BI_PASSWORD")
    assert "bi now reads every organisation" in changed.stdout and "vault" not in changed.stdout + changed.stderr
    assert one(_as(database, "bi", "from%20the%20vault"), "SELECT session_user::text") == "bi"
    assert one(database, "SELECT count(*) FROM pg_authid WHERE rolname = 'bi' AND rolpassword LIKE 'SCRAM-SHA-256%%'") == 1
    assert tokentra("revoke-reader", "bi").stdout == "bi reads nothing any more.\n"
    gone = tokentra("revoke-reader", "bi")
    assert gone.returncode == 2 and "No reader is named 'bi'. There are: none." in gone.stderr
