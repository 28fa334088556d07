"""docs/gateways.md is true: its statements and commands run, with the address of a real database in the place of the page's."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from click.testing import CliRunner

from tests.providers.helicone_files import Asked, lines
from tests.providers.langfuse_files import run, write
from tests.providers.langfuse_server import PUBLIC, Generated, Langfuse
from tests.providers.langfuse_server import SECRET as LANGFUSE_SECRET
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
    monkeypatch.setenv("LANGFUSE_KEYS", f"{PUBLIC}:{LANGFUSE_SECRET}")
    write(tmp_path / "langfuse", run([Generated("g1", DAY, "gpt-4o", 100, 10)], DAY, WINDOW.end))
    (tmp_path / "helicone").mkdir()
    (tmp_path / "helicone" / "export.jsonl").write_text(lines([Asked("r1", DAY)]))
    (statements,) = re.findall(r"```sql\n(.*?)```", PAGE, re.S)
    with spend_log(server_url) as log, Langfuse([Generated("g1", DAY, "gpt-4o", 100, 10)]).running() as langfuse:
        log.write(requests(1, DAY, WINDOW.end, 40))
        log.execute(f'REVOKE SELECT ON "LiteLLM_SpendLogs" FROM {log.role}')
        grant = statements.splitlines()[1]
        log.execute(grant.replace("usage_reader", log.role))
        assert statements.splitlines()[0] == "CREATE ROLE usage_reader LOGIN PASSWORD '...';"
        for command in COMMANDS:
            told = command.replace("postgresql://usage_reader@db.example:5432/litellm", log.address)
            told = told.replace("https://langfuse.example", langfuse.url).replace("=/data/", f"={tmp_path}/")
            done = CliRunner().invoke(cli, shlex.split(told)[1:], catch_exceptions=False)
            assert done.exit_code == 0, (command, done.output)
    found = rows(
        database,
        "SELECT c.integration, r.source, r.provider, sum(r.request_count) > 0 AS is_used FROM raw.usage_records AS r "
        "JOIN app.provider_connections AS c ON c.id = r.provider_connection_id GROUP BY 1, 2, 3 ORDER BY 1",
    )
    assert [tuple(row.values()) for row in found] == [
        ("helicone", "gateway", "openai", True), ("langfuse", "gateway", "openai", True), ("langfuse_export", "gateway", "openai", True),
        ("litellm", "gateway", "openai", True),
    ]  # fmt: skip


def test_the_page_names_every_option_and_only_those():
    for section in PAGE.split("\n## ")[1:]:
        options = INTEGRATIONS[section.split("\n")[0].lower().replace(" ", "_")].options
        assert set(re.findall(r"^\| `(\w+)` \|", section, re.M)) == {*options, "granularity"}
