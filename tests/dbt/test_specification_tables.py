"""Every table of the specification's section 2 is there under its name, unqualified, with every column it gives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.warehouse_data import rows

SPECIFICATION = Path(__file__).parents[3] / "shared" / "spec" / "usage-system.md"
MODELS = "+daily_usage_rollup +user_activity +quota_usage_history"
TABLES = {"usage_records", "usage_quotas", "quota_usage_history", "user_activity", "hourly_usage_rollup", "daily_usage_rollup"}


def specified_columns() -> dict[str, set[str]]:
    """Table or view -> columns, read from the specification's own SQL."""
    text = SPECIFICATION.read_text().split("### 2.7")[0]
    found: dict[str, set[str]] = {}
    for name, body in re.findall(r"CREATE TABLE (\w+) \(\n(.*?)\n\);", text, re.DOTALL):
        found[name] = set(re.findall(r"^  ([a-z_0-9]+) [A-Z]", body, re.MULTILINE))
    for name, body in re.findall(r"CREATE MATERIALIZED VIEW (\w+) AS\nSELECT(.*?)\nFROM usage_records", text, re.DOTALL):
        found[name] = set(re.findall(r"^  ([a-z_]+),$", body, re.MULTILINE)) | set(
            re.findall(r" AS ([a-z_0-9]+),?$", body, re.MULTILINE)
        )
    return found


@pytest.mark.skipif(not SPECIFICATION.exists(), reason="the specification is not beside this checkout")
def test_every_table_and_column_of_section_2_answers_unqualified(database, build):
    specified = specified_columns()
    assert set(specified) == TABLES and min(map(len, specified.values())) > 15
    build("run")
    missing = {}
    for table, columns in specified.items():
        ours = rows(
            database,
            "SELECT attname AS name FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped",
            table,
        )
        if absent := columns - {row["name"] for row in ours}:
            missing[table] = absent
    assert missing == {}
