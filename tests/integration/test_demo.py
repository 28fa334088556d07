"""`tokentra demo`: both simulated organisations over HTTP through the real connectors; a second run changes no total."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.warehouse_data import one, rows

TOTALS = "SELECT org_id, provider, model, date, sum(total_tokens) AS t, sum(request_count) AS r, sum(estimated_cost) AS c FROM {} GROUP BY 1, 2, 3, 4"


def test_the_demo_ends_well_and_a_second_run_changes_no_total(database, tmp_path: Path):
    env = {**os.environ, "TOKENTRA_DATABASE_URL": database.url, "TOKENTRA_HOME": str(tmp_path / "home")}
    found = []
    for _ in range(2):
        done = subprocess.run(
            [str(Path(sys.executable).parent / "tokentra"), "demo", "--days", "3"],
            env=env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
        assert "Synced 12 connections" in done.stdout and "by team" in done.stdout
        found.append({tuple(row.items()) for row in rows(database, TOTALS.format("daily_usage_rollup"))})
        assert "what OpenAI counts by the gateway's teams" in done.stdout
    # The gateway is counted once, in OpenAI's totals, and names some of what they do not attribute.
    seen = rows(
        database,
        "SELECT u.source, sum(u.input_tokens) AS t FROM usage_records AS u JOIN app.provider_connections AS c ON c.id = u.provider_connection_id WHERE c.provider = 'openai' GROUP BY 1",
    )
    tokens = {row["source"]: row["t"] for row in seen}
    assert 0 < tokens["gateway"] < tokens["provider_api"]
    assert one(database, "SELECT sum(input_tokens) FROM daily_usage_rollup WHERE provider = 'openai'") == tokens["provider_api"]
    shares = rows(
        database, "SELECT basis, sum(total_tokens) AS t FROM daily_usage_allocation WHERE dimension = 'team' GROUP BY 1"
    )
    assert {row["basis"] for row in shares if row["t"]} == {"direct", "allocated", "unattributed"}
    # The second build of a home reads again only what changed since the first.
    logs = sorted((tmp_path / "home" / "dbt" / "runs").glob("*/dbt.log"), key=lambda path: path.stat().st_mtime)
    assert ["Starting full parse" in path.read_text() for path in logs] == [True, False]
    # Nothing is left for the hourly syncs to ask a simulator that is gone.
    assert rows(database, "SELECT name FROM app.provider_connections WHERE is_active") == []
    assert found[0] == found[1] and len(found[0]) > 30
    analysed = rows(database, "SELECT analysis, count(*) AS documents FROM analytics.documents GROUP BY 1")
    assert {row["analysis"]: row["documents"] for row in analysed}["dashboard"] == 2 * 4
    raw = rows(
        database,
        TOTALS.format(
            "(SELECT *, (timestamp AT TIME ZONE 'UTC')::date AS date FROM usage_records WHERE source <> 'gateway') AS u"
        ),
    )
    assert {tuple(row.items()) for row in raw} == found[0]
