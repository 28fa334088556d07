"""The dbt project as a whole: its unit tests pass, and everything in it is documented."""

from __future__ import annotations

import json

from tests.warehouse_data import connection, load, record, rows


def test_the_unit_tests_of_the_models_pass(database, build):
    build("run")
    assert "ERROR" not in build("test", "--select", "test_type:unit")


def test_every_model_column_and_source_is_documented(database, build, dbt_target):
    build("docs", "generate")
    manifest = json.loads((dbt_target / "manifest.json").read_text())
    catalog = json.loads((dbt_target / "catalog.json").read_text())
    missing = []
    for name, node in catalog["nodes"].items():
        described = {column: value["description"] for column, value in manifest["nodes"][name]["columns"].items()}
        missing += [f"{name}.{column}" for column in node["columns"] if not described.get(column)]
    missing += [
        name
        for name, node in (manifest["nodes"] | manifest["sources"]).items()
        if node["resource_type"] != "test" and not node["description"]
    ]
    assert missing == []


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
