"""One direction of imports (design, "One direction"): providers know no database, what computes knows no orchestrator."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tokentra_dagster"
# Each part may import itself and what stands before it in its list; everything may import the leaves.
LEAVES = {"errors", "records", "batch", "settings", "latency", "markdown"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "records": set(),
    "latency": set(),
    "markdown": set(),
    "settings": {"errors"},
    "secret_references": {"errors"},
    "batch": {"records"},
    "model_names": set(),
    "price_list": {"records", "errors", "model_names"},
    "pricing": {"records", "batch", "errors", "model_names", "price_list"},
    "providers": {"errors", "records", "model_names", "latency"},
    "simulator": {"errors", "records"},
    "warehouse": {"errors", "settings", "records"},
    "analytics": {"errors", "price_list"},
    "list_prices": {"analytics", "price_list"},
    "usage_source": {"errors", "analytics", "warehouse"},
    "quotas": {"errors", "markdown", "resources", "warehouse"},
    "runtime": {"settings", "warehouse"},
    "resources": {"runtime", "settings", "warehouse"},
    "ingest": {*LEAVES, "secret_references", "pricing", "model_names", "providers", "warehouse", "resources"},
    "realtime": {*LEAVES, "analytics", "ingest", "pricing", "resources", "transform", "warehouse"},
    "client": set(),
    "collector": {"errors", "realtime", "records", "settings", "warehouse"},
    "summary": {"errors", "warehouse"},
    "allocation": {"errors", "summary", "warehouse"},
    "health": {"errors", "settings", "warehouse", "ingest"},
    "build_evidence": {"markdown", "warehouse"},
    "dbt_manifest": {"runtime", "settings", "warehouse"},
    "transform": {"build_evidence", "dbt_manifest", "ingest", "quotas", "resources", "runtime", "settings", "warehouse"},
    "retention": {"dbt_manifest", "markdown", "resources", "settings", "warehouse"},
    "exports": {"errors", "analytics", "price_list", "providers", "secret_references", "settings", "usage_source", "warehouse"},
    "alerts": {"errors", "exports", "markdown", "resources", "secret_references", "settings", "warehouse"},
    "export_assets": {"alerts", "errors", "exports", "markdown", "resources", "settings", "warehouse"},
    "analyses": {"analytics"},
    "charts": set(),
    "tables": {"analyses", "analytics", "markdown"},
    "figures": {"analyses", "analytics", "charts"},
    "analytics_store": {"analytics", "warehouse"},
    "analytics_assets": {
        "analyses",
        "analytics_store",
        "charts",
        "figures",
        "list_prices",
        "resources",
        "tables",
        "usage_source",
        "warehouse",
    },
    "report": {"analyses", "analytics", "charts", "figures", "tables"},
    "definitions": {
        "alerts",
        "analytics_assets",
        "export_assets",
        "ingest",
        "quotas",
        "realtime",
        "resources",
        "retention",
        "settings",
        "transform",
    },
    "runs": {"errors", "settings", "ingest", "definitions"},
    "platform": {"dbt_manifest", "errors", "runtime", "settings", "warehouse"},
}
VENDORS = {"openai", "anthropic"}
NOT_FOR = {
    "providers": {"psycopg", "sqlalchemy", "dagster", "pyarrow", "pandas"},
    "pricing": {"psycopg", "sqlalchemy", "dagster"},
    "model_names": {"psycopg", "sqlalchemy", "dagster"},
    "batch": {"psycopg", "sqlalchemy", "dagster"},
    "records": {"psycopg", "sqlalchemy", "dagster", "pyarrow"},
    "warehouse": VENDORS,
    "summary": {"dagster", "pyarrow", "sqlalchemy"},
    "allocation": {"dagster", "pyarrow", "sqlalchemy"},
    "analytics": {"psycopg", "sqlalchemy", "dagster", "pyarrow", *VENDORS},
    "list_prices": {"psycopg", "sqlalchemy", "dagster", "pyarrow", *VENDORS},
    "analyses": {"psycopg", "sqlalchemy", "dagster", *VENDORS},
    "charts": {"psycopg", "dagster", "pandas"},
    "figures": {"psycopg", "dagster"},
    "report": {"psycopg", "dagster"},
    "tables": {"psycopg", "dagster", "matplotlib"},
    "secret_references": {"psycopg", "dagster"},
    "usage_source": {"sqlalchemy", "dagster", *VENDORS},
    "quotas": {"sqlalchemy", "pandas", "pyarrow", *VENDORS},
    "simulator": {"psycopg", "dagster", *VENDORS},
    "exports": {"sqlalchemy", "dagster", *VENDORS},
    "collector": {"sqlalchemy", "dagster", "pandas", "pyarrow", *VENDORS},
}
# Two read the files that a provider or gateway exports, imported when one is read; the API of the third is its database.
EXCEPT = {"providers/table_rows.py": {"pyarrow"}, "providers/export_rows.py": {"pyarrow"}, "providers/litellm.py": {"psycopg"}}


def _modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "migrations" not in path.parts)


def _part(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            found.add(node.module or "")
            if node.module == "tokentra_dagster":
                found.update(f"tokentra_dagster.{alias.name}" for alias in node.names)
    return found


def _own_part(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_stands_before_it(path: Path):
    part = _own_part(path)
    ours = {_part(name) for name in _imports(path) if name.startswith("tokentra_dagster.")} - {part}
    if part in ALLOWED:
        assert ours <= ALLOWED[part], f"{part} must not import {ours - ALLOWED[part]}"
    else:
        assert part in {"cli", "commands", "demo", "__init__"}, f"{part} is new: say in this test what it may import"
    others = {name.split(".")[0] for name in _imports(path)}
    assert not others & (NOT_FOR.get(part, set()) - EXCEPT.get(str(path.relative_to(PACKAGE)), set()))


def test_only_providers_and_no_other_module_talks_to_a_vendors_sdk():
    users = {_own_part(path) for path in _modules() if {name.split(".")[0] for name in _imports(path)} & VENDORS}
    assert users == {"providers"}


def test_no_part_is_called_utils():
    assert not [path for path in PACKAGE.rglob("*") if "util" in path.stem]
