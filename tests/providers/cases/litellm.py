"""LiteLLM: its spend log in a database of the test server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

from tests.providers.conformance import DAY, HOURS, NOW, Case, Totals
from tests.providers.litellm_log import SECRET, requests, spend_log
from tokentra_dagster.providers import litellm, open_source
from tokentra_dagster.providers.base import ConnectionConfig, Source, Window
from tokentra_dagster.providers.litellm import LiteLLMSource

_HTTP = "it is asked over PostgreSQL, which has no such answer"


class LiteLLMCase(Case):
    name = "litellm"
    secret = SECRET
    not_applicable: ClassVar = {
        "rate_limit": _HTTP,
        "server_error": _HTTP,
        "truncated": "PostgreSQL's protocol tells a row that is not whole: the session ends (dropped)",
        "paging": "test_litellm_source.py reads pages of three rows",
        "timeout": "a lock that is held: test_litellm_source.py",
        "dropped": "a session that ends between pages: test_litellm_source.py",
    }

    @contextmanager
    def running(self, folder: Path) -> Iterator[None]:
        with spend_log(self.fixture("server_url")) as self.log:
            self.made = requests(3, DAY - timedelta(days=92), NOW, 1500)
            self.log.write(self.made)
            self.sessions = 0
            opened = LiteLLMSource._session

            def session(source: LiteLLMSource) -> Any:
                self.sessions += 1
                return opened(source)

            self.fixture("monkeypatch").setattr(LiteLLMSource, "_session", session)
            yield

    def answers(self) -> int:
        """Sessions that it asked for: a refused one is the server's answer, too."""
        return self.sessions

    def source(self, **options: str) -> Source:
        given = {"database": self.log.address, "max_retries": "1", "timeout_seconds": "5"} | options
        return open_source(ConnectionConfig("openai", self.secret, None, given, "litellm"))

    def truth(self, start: datetime, end: datetime) -> Totals:
        found: Totals = Totals()
        for one in self.made:
            if one.provider == "openai" and start <= one.at < end:
                asked = not one.is_cached
                found.update(
                    requests=1, input=one.sent * asked, output=one.received * asked, cached=(one.read or 0) * asked,
                    written=(one.written or 0) * asked,
                )  # fmt: skip
        return +found

    def crowd(self, times: int) -> tuple[Window, int | None]:
        self.fixture("monkeypatch").setattr(litellm, "PAGE", 100)
        self.log.write(requests(11, DAY, DAY + HOURS, 300 * times))
        return Window(DAY, DAY + HOURS, "1h"), 300 * times

    def restate(self, start: datetime, end: datetime) -> None:
        """Rows that were written late."""
        late = [replace(one, id=f"late-{one.id}") for one in self.made if start <= one.at < end]
        self.made += late
        self.log.write(self.made)

    def fault(self, kind: str, times: int = 1) -> None:
        if kind == "wrong_key":
            self.log.execute(f"ALTER ROLE {self.log.role} PASSWORD 'another'")
        elif kind == "forbidden":
            self.log.execute(f'REVOKE SELECT ON "LiteLLM_SpendLogs" FROM {self.log.role}')
        else:
            statement = """UPDATE "LiteLLM_SpendLogs" SET prompt_tokens = -1 WHERE cache_hit = 'False' AND custom_llm_provider = 'openai'"""
            self.log.execute(f'{statement} AND "startTime" >= %s', DAY.replace(tzinfo=None))
