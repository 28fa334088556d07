"""LiteLLM's spend log in a real database, written from one account of requests (litellm 1.109.1, `schema.prisma`; providers.md 6.1)."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import psycopg

TABLE = """
CREATE TABLE "LiteLLM_SpendLogs" (
  request_id TEXT PRIMARY KEY, call_type TEXT, api_key TEXT NOT NULL DEFAULT '', spend FLOAT8 NOT NULL DEFAULT 0, total_tokens INT NOT NULL DEFAULT 0,
  prompt_tokens INT NOT NULL DEFAULT 0, completion_tokens INT NOT NULL DEFAULT 0, "startTime" TIMESTAMP(3) NOT NULL, "endTime" TIMESTAMP(3) NOT NULL,
  model TEXT NOT NULL DEFAULT '', model_group TEXT, custom_llm_provider TEXT, "user" TEXT, metadata JSONB, cache_hit TEXT, team_id TEXT, end_user TEXT,
  messages JSONB, response JSONB, status TEXT, request_duration_ms INT, litellm_call_id TEXT
);
CREATE INDEX ON "LiteLLM_SpendLogs" ("startTime", request_id);
"""
NEWEST = ("status", "request_duration_ms", "litellm_call_id", "model_group")
SECRET = "litellm-reader-password"
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Logged:
    """One row; `None` for the provider's own cache is not said."""

    id: str
    at: datetime
    provider: str
    model: str
    sent: int
    received: int
    read: int | None = None
    written: int | None = None
    is_cached: bool = False
    failed: bool = False
    call: str | None = None
    user: str | None = None
    team: str | None = None
    milliseconds: int = 800


def requests(seed: int, start: datetime, end: datetime, count: int) -> list[Logged]:
    """Requests to two providers, some answered by the cache, some tried again; always some at the edges of hours."""
    generator = random.Random(seed)
    found = []
    for n in range(count):
        at = start + timedelta(milliseconds=generator.randrange(int((end - start).total_seconds() * 1000)))
        if n % 10 == 0:
            at = at.replace(minute=0, second=0, microsecond=0)
        sent = generator.randrange(1, 300_000)
        known = generator.random() < 0.5
        cached = generator.random() < 0.15
        failed = not cached and generator.random() < 0.1
        found.append(
            Logged(
                id=f"r{n}" + (f"_cache_hit{n}" if cached else ""), at=at, provider=generator.choice(["openai", "anthropic"]),
                model=generator.choice(["gpt-4o", "openai/gpt-4o-mini"]), sent=0 if failed else sent,
                received=0 if failed else generator.randrange(4000), read=sent // 3 if known and not failed else None,
                written=sent // 7 if known and not failed else None, is_cached=cached, failed=failed, call=f"call{n // 2 if n % 6 == 1 else n}",
                user=generator.choice([None, "ann", "bob"]), team=generator.choice([None, "core"]), milliseconds=generator.randrange(90_000),
            )
        )  # fmt: skip
    return found


class SpendLog:
    """A database of LiteLLM's with a role that may read the log, and nothing else."""

    def __init__(self, owner: str, reader: str) -> None:
        self.owner = owner
        parts = urlsplit(owner)
        self.role = reader
        self.address = f"postgresql://{reader}@{parts.hostname}:{parts.port}{parts.path}"

    def execute(self, statement: str, *parameters: object) -> None:
        with psycopg.connect(self.owner, autocommit=True) as db:
            db.execute(statement, parameters or None)  # type: ignore[arg-type]

    def write(self, found: list[Logged]) -> None:
        """Instead of what is there."""
        with psycopg.connect(self.owner) as db:
            db.execute('DELETE FROM "LiteLLM_SpendLogs"')
            db.cursor().executemany(
                'INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, total_tokens, prompt_tokens, completion_tokens, '
                '"startTime", "endTime", model, model_group, custom_llm_provider, "user", metadata, cache_hit, team_id, messages, status, '
                "request_duration_ms, litellm_call_id) VALUES (%s, 'acompletion', 'hash1', 0.1, %s, %s, %s, %s, %s, %s, 'group', %s, %s, %s, %s, "
                "'team-id', %s, %s, %s, %s)",
                [self._row(one) for one in found],
            )

    def _row(self, one: Logged) -> list[object]:
        usage = (
            {"cache_read_input_tokens": one.read, "cache_creation_input_tokens": one.written} if one.read is not None else None
        )
        metadata = {
            "user_api_key_alias": "backend", "user_api_key_team_alias": one.team, "additional_usage_values": usage,
            "error_information": {"error_code": "429"} if one.failed else None, "prompt": "SECRET PROMPT",
        }  # fmt: skip
        at = one.at.astimezone(UTC).replace(tzinfo=None)
        return [
            one.id, one.sent + one.received, one.sent, one.received, at, at + timedelta(milliseconds=one.milliseconds), one.model,
            one.provider, one.user or "", json.dumps(metadata), "True" if one.is_cached else "False", json.dumps(["SECRET PROMPT"]),
            "failure" if one.failed else "success", one.milliseconds, one.call,
        ]  # fmt: skip


@contextmanager
def spend_log(server_url: str) -> Iterator[SpendLog]:
    """A database of its own on the test server."""
    number = next(_numbers)
    name, role = f"litellm_{number}", f"litellm_reader_{number}"
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        admin.execute(f"DROP ROLE IF EXISTS {role}")
        admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{SECRET}'")
        log = SpendLog(server_url.rsplit("/", 1)[0] + "/" + name, role)
        try:
            log.execute(TABLE)
            log.execute(f'GRANT SELECT ON "LiteLLM_SpendLogs" TO {role}')
            yield log
        finally:
            admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            admin.execute(f"DROP ROLE IF EXISTS {role}")
