"""What a build leaves alone: views and descriptions that did not change, and the records outside the changed windows."""

from __future__ import annotations

import json

from tests.warehouse_data import DAY, HOUR, connection, load, one, record, rows

MODELS = "+daily_usage_rollup +usage_coverage"


def test_an_incremental_build_reads_records_and_hours_by_key_and_never_a_whole_table(database, build):
    row = connection(database)
    load(
        database, row, [record(DAY + hour * HOUR, user_id=f"u{n}") for hour in range(72) for n in range(20)], DAY, DAY + 72 * HOUR
    )
    build("run")
    with database.connect(autocommit=True) as db:
        db.execute("ANALYZE")
    read_whole = (
        "SELECT sum(seq_tup_read) FROM pg_stat_user_tables "
        "WHERE relname LIKE 'usage\\_records\\_%%' OR relname IN ('hourly_usage_rollup', 'daily_usage_rollup')"
    )
    load(database, row, [record(DAY + 72 * HOUR)], DAY + 72 * HOUR, DAY + 73 * HOUR)
    before = one(database, read_whole)
    build("run")
    assert one(database, read_whole) == before
    assert one(database, "SELECT count(*) FROM marts.hourly_usage_rollup WHERE hour = %s", DAY + 72 * HOUR) == 1


def test_an_unchanged_view_stays_and_with_it_what_people_built_on_it(database, build):
    load(database, connection(database), [record()])
    build("run")
    oid = "SELECT 'marts.usage_coverage'::regclass::oid::bigint"
    first = one(database, oid)
    with database.connect() as db:
        db.execute("CREATE VIEW public.our_report AS SELECT date, is_complete FROM marts.usage_coverage")
    build("run")
    assert one(database, oid) == first
    assert one(database, "SELECT count(*) FROM public.our_report") == 1


def test_a_view_made_from_other_sql_is_made_anew(database, build):
    load(database, connection(database), [record()])
    build("run")
    with database.connect() as db:
        db.execute("DROP VIEW marts.usage_coverage")
        db.execute("CREATE VIEW marts.usage_coverage AS SELECT 1 AS nothing")
    build("run")
    assert one(database, "SELECT count(is_complete) FROM marts.usage_coverage") == 1


def test_every_description_reaches_the_database_and_only_a_different_one_is_written_again(database, build, dbt_target):
    load(database, connection(database), [record()])
    build("run")
    _assert_described(database, dbt_target)
    written = (
        "SELECT objoid::regclass::text AS relation, objsubid, xmin::text AS written FROM pg_description "
        "WHERE objoid::regclass::text LIKE ANY ('{marts.%%,intermediate.%%,staging.%%}') ORDER BY 1, 2"
    )
    before = rows(database, written)
    build("run")
    assert rows(database, written) == before
    with database.connect() as db:
        db.execute("COMMENT ON COLUMN marts.daily_usage_rollup.request_count IS 'something else'")
    build("run")
    _assert_described(database, dbt_target)


def _assert_described(database, dbt_target) -> None:
    models = [
        node
        for node in json.loads((dbt_target / "manifest.json").read_text())["nodes"].values()
        if node["resource_type"] == "model"
    ]
    expected = {
        (f"{model['schema']}.{model['name']}", column["name"]): column["description"]
        for model in models
        for column in model["columns"].values()
    } | {(f"{model['schema']}.{model['name']}", None): model["description"] for model in models if model["description"]}
    found = rows(
        database,
        "SELECT s.nspname || '.' || c.relname AS relation, a.attname AS name, d.description FROM pg_description AS d "
        "JOIN pg_class AS c ON c.oid = d.objoid JOIN pg_namespace AS s ON s.oid = c.relnamespace "
        "LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = d.objsubid AND d.objsubid > 0 "
        "WHERE d.classoid = 'pg_class'::regclass AND s.nspname IN ('staging', 'intermediate', 'marts')",
    )
    assert len(expected) > 100
    assert {(row["relation"], row["name"]): row["description"] for row in found} == expected
