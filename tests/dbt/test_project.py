"""The dbt project as a whole: its unit tests pass, and everything in it is documented."""

from __future__ import annotations

import json


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
