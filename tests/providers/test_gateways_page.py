"""docs/gateways.md is true: its statements and commands run, with the address of a real database in the place of the page's."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from click.testing import CliRunner

from tests.providers.litellm_log import SECRET, spend_log
from tests.providers.test_litellm_source import DAY, WINDOW, requests
from tests.warehouse_data import rows
from tokentra_dagster.cli import cli
from tokentra_dagster.providers import INTEGRATIONS

PAGE = (Path(__file__).parents[2] / "docs" / "gateways.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.splitlines()]


def test_every_statement_and_command_of_the_page_runs(database, server_url, tmp_path, monkeypatch):
    for name, value in (("DATABASE_URL", database.url), ("HOME", str(tmp_path))):
        monkeypatch.setenv(f"TOKENTRA_{name}", value)
    monkeypatch.setenv("LITELLM_PASSWORD", SECRET)
    (statements,) = re.findall(r"```sql\n(.*?)```", PAGE, re.S)
    with spend_log(server_url) as log:
        log.write(requests(1, DAY, WINDOW.end, 40))
        log.execute(f'REVOKE SELECT ON "LiteLLM_SpendLogs" FROM {log.role}')
        grant = statements.splitlines()[1]
        log.execute(grant.replace("usage_reader", log.role))
        assert statements.splitlines()[0] == "CREATE ROLE usage_reader LOGIN PASSWORD '...';"
        for command in COMMANDS:
            told = command.replace("postgresql://usage_reader@db.example:5432/litellm", log.address)
            done = CliRunner().invoke(cli, shlex.split(told)[1:], catch_exceptions=False)
            assert done.exit_code == 0, (command, done.output)
    found = rows(database, "SELECT source, provider, sum(request_count) > 0 AS is_used FROM raw.usage_records GROUP BY 1, 2")
    assert found == [{"source": "gateway", "provider": "openai", "is_used": True}]


def test_the_page_names_every_option_and_only_those():
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.M)) == {*INTEGRATIONS["litellm"].options, "granularity"}
