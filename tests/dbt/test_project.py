"""The dbt project as a whole: its unit tests pass, and everything in it is documented."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlglot
from sqlglot import exp
from sqlglot.optimizer.scope import traverse_scope

from tests.warehouse_data import connection, load, record, rows

DOCUMENTED = ("nodes", "sources", "macros", "exposures", "metrics", "semantic_models")
PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_the_unit_tests_of_the_models_pass(database, build):
    build("run")
    assert "ERROR" not in build("test", "--select", "test_type:unit")


def test_everything_in_the_project_and_every_column_is_documented(database, build, dbt_target):
    build("run")
    build("docs", "generate")
    manifest = json.loads((dbt_target / "manifest.json").read_text())
    catalog = json.loads((dbt_target / "catalog.json").read_text())
    assert set(catalog["nodes"]) == {name for name, node in manifest["nodes"].items() if node["resource_type"] == "model"}
    assert undocumented(manifest, catalog) == []
    for kind, least in {"metrics": 17, "semantic_models": 5, "exposures": 4, "sources": 10}.items():
        assert len(manifest[kind]) >= least, kind

    for path in (
        ("nodes", "model.tokentra.daily_usage_rollup", "columns", "error_count"),
        ("sources", "source.tokentra.raw.usage_records", "columns", "user_ids"),
        ("metrics", "metric.tokentra.error_rate"),
        ("exposures", "exposure.tokentra.dagster_ui"),
        ("macros", "macro.tokentra.aggregate_usage"),
        ("semantic_models", "semantic_model.tokentra.usage"),
    ):
        described = manifest
        for name in path:
            described = described[name]
        kept, described["description"] = described["description"], ""
        assert len(undocumented(manifest, catalog)) == 1, f"{path} without a description is not noticed"
        described["description"] = kept


def undocumented(manifest: dict[str, Any], catalog: dict[str, Any]) -> list[str]:
    """What has no description: models, columns, sources and those of their columns that we read, macros, semantic models with
    their parts, metrics (which also say unit and formula) and exposures; and documented columns that a source does not have."""
    ours = {
        name: item
        for kind in DOCUMENTED
        for name, item in manifest[kind].items()
        if item["package_name"] == "tokentra" and item["resource_type"] not in ("test", "unit_test")
    }
    missing = [name for name, item in ours.items() if not item["description"]]
    for name, node in catalog["nodes"].items():
        missing += [f"{name}.{column}" for column in node["columns"] if not _described(ours[name], column)]
    for name, columns in _source_columns_read(manifest).items():
        missing += [f"{name}.{column}" for column in sorted(columns) if not _described(ours[name], column)]
    for name, node in catalog["sources"].items():
        missing += [f"{name}.{column} does not exist" for column in ours[name]["columns"] if column not in node["columns"]]
    for name, model in manifest["semantic_models"].items():
        parts = [*model["entities"], *model["dimensions"], *model["measures"]]
        missing += [f"{name}.{part['name']}" for part in parts if not part["description"]]
    for name, metric in manifest["metrics"].items():
        missing += [f"{name} {key}" for key in ("unit", "formula") if not metric["config"]["meta"].get(key)]
    return missing


def _described(item: dict[str, Any], column: str) -> bool:
    return bool(item["columns"].get(column, {}).get("description"))


def _source_columns_read(manifest: dict[str, Any]) -> dict[str, set[str]]:
    """Columns of source tables in the compiled SQL of models and tests."""
    names = {(source["schema"], source["name"]): name for name, source in manifest["sources"].items()}
    read: dict[str, set[str]] = defaultdict(set)
    for node in manifest["nodes"].values():
        for table, column in _columns(node["compiled_code"]) if node.get("compiled_code") else ():
            if table in names:
                read[names[table]].add(column)
    return read


def _columns(statement: str) -> Iterator[tuple[tuple[str, str], str]]:
    """((schema, table), column) for every column that is read from a table of its own select."""
    for scope in traverse_scope(sqlglot.parse_one(statement, dialect="postgres")):
        tables = {alias: (of.db, of.name) for alias, of in scope.sources.items() if isinstance(of, exp.Table)}
        for column in scope.columns:
            alias = column.table or (next(iter(scope.sources)) if len(scope.sources) == 1 else "")
            if alias in tables:
                yield tables[alias], column.name


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


def test_the_page_of_metrics_says_what_the_definitions_say(database, build, dbt_target):
    build("parse")
    metrics = json.loads((dbt_target / "manifest.json").read_text())["metrics"].values()
    found = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    wanted = [_line(metric) for metric in sorted(metrics, key=_place)]
    assert found == wanted, "docs/metrics.md should have these lines:\n" + "\n".join(wanted)
    specified = [metric["config"]["meta"]["specification"] for metric in metrics if "specification" in metric["config"]["meta"]]
    assert sorted(specified) == sorted(SPECIFIED)


SPECIFIED = (
    "totalRequests", "inputTokens", "outputTokens", "totalTokens", "cachedTokens", "cacheCreationTokens", "averageLatency",
    "p50Latency", "p95Latency", "p99Latency", "errorCount", "errorRate", "successRate", "tokensPerRequest", "requestsPerMinute",
    "activeUsers", "activeFeatures",
)  # fmt: skip
"""The 17 metrics of specification 1.4, in its order."""


def _place(metric: dict[str, Any]) -> tuple[int, str]:
    name = metric["config"]["meta"].get("specification")
    return (SPECIFIED.index(name), "") if name else (len(SPECIFIED), metric["name"])


def _line(metric: dict[str, Any]) -> str:
    meta = metric["config"]["meta"]
    cells = [f"`{metric['name']}`", *([meta["specification"]] if "specification" in meta else []), meta["unit"], meta["formula"]]
    return "| " + " | ".join(cells) + " |"
