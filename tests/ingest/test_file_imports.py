"""An import replaces the file's own hours in its own connection, as a Dagster asset that shows its evidence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner

from tests.warehouse_data import one, rows
from tokentra_dagster.commands.work import import_
from tokentra_dagster.errors import TokenTraError, UsageError
from tokentra_dagster.ingest.assets import RECORDS
from tokentra_dagster.ingest.imports import apply_rules_job, imported_usage
from tokentra_dagster.resources import Warehouse
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import add_organization, add_rule

HEADER = "timestamp,model,input_tokens,output_tokens,team"
LINES = ["2026-06-01T10:05:00Z,gpt-4o,100,10,core", "2026-06-01T11:59:59Z,o3,200,20,"]


class OwnWarehouse(Warehouse):
    """The test's own database instead of the environment's."""

    url: str

    def database(self) -> Database:
        return Database(self.url)


@pytest.fixture
def org(database):
    with database.connect() as db:
        add_organization(db, "acme")
    return "acme"


def write(folder: Path, lines: list[str], header: str = HEADER) -> Path:
    path = folder / "usage.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def run(database: Database, file: Path, **options: Any) -> dg.ExecuteInProcessResult:
    config = {"file": str(file), "org": "acme", "provider": "openai", **options}
    return dg.materialize(
        [imported_usage],
        resources={"warehouse": OwnWarehouse(url=database.url)},
        run_config={"ops": {"raw__imported_usage": {"config": config}}},
    )


def metadata(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    (event,) = result.asset_materializations_for_node("raw__imported_usage")[:1]
    return {name: value.value for name, value in event.metadata.items()}


USAGE = "SELECT timestamp, model, input_tokens, output_tokens, request_count FROM raw.usage_records ORDER BY timestamp, model"


def test_an_import_loads_the_rows_into_its_own_connection_with_evidence(database, org, tmp_path):
    result = run(database, write(tmp_path, [*LINES, "2026-06-01T11:00:00Z,o3,-1,20,"]))
    assert [(row["model"], row["input_tokens"], row["request_count"]) for row in rows(database, USAGE)] == [
        ("gpt-4o", 100, 1),
        ("o3", 200, 1),
    ]
    assert rows(database, "SELECT name, provider, source FROM app.provider_connections") == [
        {"name": "file-openai", "provider": "openai", "source": "file"}
    ]
    shown = metadata(result)
    assert (shown["dagster/row_count"], shown["replaced"], shown["rejected"]) == (2, 0, 1)
    assert (shown["input_tokens"], shown["output_tokens"], shown["requests"]) == (300, 30, 2)
    assert "| 1 | input_tokens is negative; a count cannot be | 4 |" in shown["rejected_because"]
    assert one(database, "SELECT window_start::text || ' ' || window_end::text FROM raw.sync_history") == (
        "2026-06-01 10:00:00+00 2026-06-01 12:00:00+00"
    )
    written = [event.asset_key for event in result.all_events if event.is_step_materialization]
    assert RECORDS in written, "what follows by automation has to hear of new records"


def test_rejected_rows_keep_their_line_reason_and_original(database, org, tmp_path):
    run(database, write(tmp_path, [LINES[0], "2026-06-01T10:07:00Z,gpt-4o,1.5,10,core", "short"]))
    assert rows(database, "SELECT line_number, reason, payload, bucket_start::text FROM raw.rejected_records ORDER BY 1") == [
        {
            "line_number": 3,
            "reason": "input_tokens: '1.5' is not a whole number",
            "payload": {"timestamp": "2026-06-01T10:07:00Z", "model": "gpt-4o", "input_tokens": "1.5", "output_tokens": "10", "team": "core"},
            "bucket_start": "2026-06-01 10:07:00+00",
        },
        {
            "line_number": 4,
            "reason": "the row has 1 fields, the header has 5",
            "payload": {"line": "short"},
            "bucket_start": None,
        },
    ]  # fmt: skip


def test_importing_the_same_file_twice_changes_nothing_and_says_what_it_replaced(database, org, tmp_path):
    file = write(tmp_path, LINES)
    run(database, file)
    before = rows(database, USAGE)
    assert metadata(run(database, file))["replaced"] == 2
    assert rows(database, USAGE) == before
    assert one(database, "SELECT count(*) FROM app.provider_connections") == 1


def test_a_row_that_the_new_file_lacks_disappears_and_other_hours_stay(database, org, tmp_path):
    run(database, write(tmp_path, ["2026-06-01T09:59:59Z,gpt-4o,1,1,"]))
    run(database, write(tmp_path, LINES))
    run(database, write(tmp_path, ["2026-06-01T10:30:00Z,gpt-4o,7,1,", LINES[1]]))
    assert [row["input_tokens"] for row in rows(database, USAGE)] == [1, 7, 200]


def test_another_name_is_another_connection(database, org, tmp_path):
    run(database, write(tmp_path, LINES))
    run(database, write(tmp_path, LINES), name="second")
    assert one(database, "SELECT count(*) FROM raw.usage_records") == 4


def test_a_file_that_breaks_off_leaves_what_was_there(database, org, tmp_path):
    run(database, write(tmp_path, LINES))
    before = rows(database, USAGE)
    broken = tmp_path / "broken.csv"
    broken.write_text("\n".join([HEADER, *LINES, '2026-06-01T10:00:00Z,"gpt', *LINES * 2_000]))
    with pytest.raises(UsageError, match="quote"):
        run(database, broken)
    assert rows(database, USAGE) == before


def test_a_file_that_changes_while_it_is_loaded_leaves_what_was_there(database, org, tmp_path, monkeypatch):
    from tokentra_dagster.ingest import imports

    file = write(tmp_path, LINES)
    run(database, file)
    before = rows(database, USAGE)
    really_scan = imports.scan

    def scan_and_change(*args: Any) -> Any:
        found = really_scan(*args)
        write(tmp_path, [*LINES, "2026-06-02T10:00:00Z,gpt-4o,1,1,"])
        return found

    monkeypatch.setattr(imports, "scan", scan_and_change)
    with pytest.raises(TokenTraError, match="outside the window"):
        run(database, file)
    assert rows(database, USAGE) == before
    assert one(database, "SELECT count(*) FROM raw.sync_history WHERE status = 'failed'") == 1


def test_names_in_the_file_become_teams_and_are_never_overruled_by_rules(database, org, tmp_path):
    with database.connect() as db:
        add_rule(db, org="acme", match_field="model", match_value="*", team="everyone")
    run(database, write(tmp_path, LINES))
    teams = "SELECT u.model, t.name FROM raw.usage_records u LEFT JOIN app.teams t ON t.id = u.team_id ORDER BY 1"
    assert rows(database, teams) == [{"model": "gpt-4o", "name": "core"}, {"model": "o3", "name": "everyone"}]
    with database.connect() as db:
        add_rule(db, org="acme", match_field="model", match_value="o*", priority=1, team="reasoners")
    result = apply_rules_job.execute_in_process(
        run_config={"ops": {"apply_rules": {"config": {"org": "acme"}}}},
        resources={"warehouse": OwnWarehouse(url=database.url)},
    )
    assert result.success
    assert rows(database, teams) == [{"model": "gpt-4o", "name": "core"}, {"model": "o3", "name": "reasoners"}]


def test_usage_without_tokens_is_unpriced_and_known_usage_is_priced(database, org, tmp_path):
    run(database, write(tmp_path, [LINES[0], "2026-06-01T10:06:00Z,gpt-4o,,,"]))
    assert rows(database, "SELECT cost_basis, estimated_cost IS NULL AS missing, provider_metadata FROM raw.usage_records ORDER BY timestamp") == [
        {"cost_basis": "estimate", "missing": False, "provider_metadata": {}},
        {"cost_basis": "unpriced", "missing": True, "provider_metadata": {"tokens_unknown": ["input_tokens", "output_tokens"]}},
    ]  # fmt: skip


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(import_, [*arguments, "--org", "acme", "--provider", "openai"])


def test_a_dry_run_shows_what_would_be_loaded_and_rejected_and_touches_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENTRA_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    file = write(tmp_path, [*LINES, "2026-06-01T10:07:00Z,gpt-4o,x,10,core", "2026-06-01T10:08:00Z,gpt-4o,y,10,core"])
    result = invoke(str(file), "--dry-run")
    assert result.exit_code == 0, result.output
    for words in (
        "Would load 2 rows (requests, one a row); would reject 2.",
        "Input tokens 300, output tokens 30, requests 2.",
        "2026-06-01 10:00 to 2026-06-01 12:00 UTC",
        "input_tokens is not a number",
        "input_tokens: 'x' is not a number",
        "Nothing was changed.",
    ):
        assert words in result.output
    shown = json.loads(invoke(str(file), "--dry-run", "--json").output)
    assert (shown["loadable"], shown["rejected"], shown["models"]) == (2, 2, {"gpt-4o": 1, "o3": 1})
    assert shown["reasons"] == {
        "input_tokens is not a number": {"rows": 2, "first_line": 4, "example": "input_tokens: 'x' is not a number"}
    }


def test_a_wrong_map_is_one_sentence(tmp_path):
    result = invoke(str(write(tmp_path, LINES)), "--map", "input_tokens=nope", "--dry-run")
    assert isinstance(result.exception, UsageError)
    assert "no column 'nope'" in str(result.exception)


def test_a_dry_run_imports_neither_dagster_nor_a_database_driver(tmp_path):
    code = (
        "import sys; from pathlib import Path; from tokentra_dagster.commands.importing import import_file; "
        f"import_file(Path({str(write(tmp_path, LINES))!r}), org='acme', provider='openai', maps=(), name='x', granularity=None, "
        "bucket_seconds=None, timezone=None, input_convention='includes-cache', dry_run=True, as_json=True); "
        "print({'dagster', 'psycopg', 'sqlalchemy', 'genai_prices'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.strip() == "set()"
