"""LiteLLM's spend log: what its own database alone can do to a reader, and what its rows mean (providers.md 6.1)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from tests.providers.conformance import totals
from tests.providers.litellm_log import NEWEST, SECRET, Logged, SpendLog, requests, spend_log
from tests.warehouse_data import connection, rows
from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.ingest.sync import sync_connection
from tokentra_dagster.providers import litellm, open_source
from tokentra_dagster.providers.base import ConnectionConfig, Source, Window
from tokentra_dagster.records import UsageRecord

DAY = datetime(2026, 11, 20, tzinfo=UTC)
WINDOW = Window(DAY, DAY + timedelta(days=1), "1h")


@pytest.fixture
def log(server_url: str) -> Iterator[SpendLog]:
    with spend_log(server_url) as found:
        yield found


def source(log: SpendLog, provider: str = "openai", **options: str) -> Source:
    given = {"database": log.address, "max_retries": "2", "timeout_seconds": "5"} | options
    return open_source(ConnectionConfig(provider, SECRET, None, given, "litellm"))


def read(log: SpendLog, provider: str = "openai", **options: str) -> list[UsageRecord]:
    found = list(source(log, provider, **options).usage(WINDOW))
    assert all(isinstance(item, UsageRecord) for item in found), found
    return found


def test_pages_of_three_rows_are_one_log_though_sessions_end_between_them(log, monkeypatch):
    log.write(requests(1, DAY, WINDOW.end, 60))
    whole = totals(read(log))
    monkeypatch.setattr(litellm, "PAGE", 3)
    assert totals(read(log)) == whole != {}
    asked = litellm.LiteLLMSource._session
    sessions = []

    def session(self):
        made = asked(self)
        sessions.append(made)
        if len(sessions) % 4 == 0:
            with psycopg.connect(log.owner, autocommit=True) as admin:
                admin.execute("SELECT pg_terminate_backend(%s)", [made.info.backend_pid])
        return made

    monkeypatch.setattr(litellm.LiteLLMSource, "_session", session)
    assert totals(read(log)) == whole
    assert len(sessions) > 10


def test_a_database_that_does_not_answer_is_transient_and_tells_what_to_raise(log):
    with psycopg.connect(log.owner) as owner:
        owner.execute('LOCK TABLE "LiteLLM_SpendLogs"')
        with pytest.raises(TransientError, match="raise the option timeout_seconds"):
            read(log, timeout_seconds="0.2", max_retries="0")


def test_the_session_can_only_read(log):
    log.execute(f'GRANT INSERT, DELETE ON "LiteLLM_SpendLogs" TO {log.role}')
    with source(log)._session() as session, pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        session.execute('DELETE FROM "LiteLLM_SpendLogs"')


def test_answers_of_the_cache_and_further_tries_are_told_apart(log):
    at = DAY + timedelta(hours=3)
    log.write(
        [
            Logged("r1", at, "openai", "gpt-4o", 100, 10, call="c1", failed=True, milliseconds=5),
            Logged("r2", at + timedelta(seconds=1), "openai", "gpt-4o", 100, 10, read=40, written=5, call="c1", milliseconds=900),
            Logged("r3_cache_hit9", at, "openai", "gpt-4o", 100, 10, call="c2", is_cached=True),
            Logged("r4", at, "anthropic", "claude-sonnet-4-6", 7, 7),
        ]
    )
    found = {(r.metadata.get("cache_hit", False), r.metadata.get("is_retry", False)): r for r in read(log)}
    assert set(found) == {(False, False), (False, True), (True, False)}
    first, again, cached = found[False, False], found[False, True], found[True, False]
    assert (first.request_count, first.error_count, first.metadata["error_codes"]) == (1, 1, {"429": 1})
    assert (again.input_tokens, again.cached_input_tokens, again.cache_creation_tokens) == (100, 40, 5)
    assert (again.total_latency_ms, sum(again.latency_histogram.values())) == (900, 1)
    assert (cached.request_count, cached.input_tokens, cached.output_tokens, cached.total_latency_ms) == (1, 0, 0, None)
    assert sum(r.input_tokens for r in read(log, "anthropic")) == 7


def test_who_and_whose_it_was_is_said_and_nothing_that_was_written_in_a_prompt(log):
    log.write([Logged("r1", DAY, "openai", "openai/gpt-4o", 1, 1, user="ann", team="core")])
    (record,) = read(log)
    assert (record.user_id, record.team, record.api_key_id, record.model) == ("ann", "core", "hash1", "gpt-4o")
    assert "SECRET" not in repr(record)
    log.execute("""UPDATE "LiteLLM_SpendLogs" SET end_user = 'customer 7'""")
    assert read(log)[0].user_id == "customer 7"
    log.execute("""UPDATE "LiteLLM_SpendLogs" SET "startTime" = now() AT TIME ZONE 'UTC'""")
    assert [(name.kind, name.id, name.name) for name in source(log).names()] == [("api_key", "hash1", "backend")]


def test_an_older_installation_is_read_too_and_a_table_that_is_none_is_said(log):
    log.write(requests(2, DAY, WINDOW.end, 40))
    whole = totals(read(log))
    for column in NEWEST:
        log.execute(f'ALTER TABLE "LiteLLM_SpendLogs" DROP COLUMN {column}')
    assert totals(read(log)) == whole
    log.execute('ALTER TABLE "LiteLLM_SpendLogs" DROP COLUMN prompt_tokens')
    with pytest.raises(PermanentError, match="has no column prompt_tokens; correct the option database"):
        read(log)
    log.execute('DROP TABLE "LiteLLM_SpendLogs"')
    with pytest.raises(PermanentError, match="is not there, or the role may not see it"):
        read(log)


@pytest.mark.parametrize(
    ("database", "says"),
    [
        ("", "the option database is missing"),
        ("nonsense here", "is no address of PostgreSQL"),
        ("postgresql://reader:hunter2@host/litellm", "holds a password; leave it out"),
    ],
)
def test_a_wrong_address_is_said_in_one_sentence(log, database, says):
    with pytest.raises(PermanentError, match=says) as raised:
        source(log, database=database)
    assert "hunter2" not in str(raised.value)


def test_a_database_that_is_not_there_is_transient_and_one_of_another_name_is_not(log):
    with pytest.raises(TransientError, match="cannot be reached"):
        read(log, database="postgresql://reader@127.0.0.1:1/litellm", max_retries="0")
    with pytest.raises(PermanentError, match="does not exist"):
        read(log, database=log.address + "_none")


def test_it_is_synced_as_a_gateway_beside_the_provider(log, database):
    log.write(requests(4, DAY, WINDOW.end, 50))
    row = connection(
        database, name="proxy", provider="openai", integration="litellm", source="gateway", secret_ref="env:LITELLM_PASSWORD",
        options={"database": log.address},
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITELLM_PASSWORD", SECRET)
        loaded = sync_connection(database, row, WINDOW, now=WINDOW.end)
    assert loaded.rejected == 0
    found = rows(
        database,
        "SELECT sum(input_tokens)::bigint AS sent, sum(request_count)::int AS requests, min(source) AS source FROM raw.usage_records",
    )
    true = totals(read(log))
    assert found == [{"sent": true["input"], "requests": true["requests"], "source": "gateway"}]
