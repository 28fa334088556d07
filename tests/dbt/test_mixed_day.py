"""A day of everything at once, over the end of a month: events, provider syncs, restatements, reservations, builds and a server that
crashes. In the end raw, rollups, quota history and counters say what a plain account of the same requests says.

Usage of `openai` counts by the provider's own reports; that of `google` by events, since nobody else reports it.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from tests.dbt.conftest import run_dbt
from tests.quota_calendar import period_of, periods_of
from tests.quota_data import history, quota
from tests.realtime.event_data import counted, event, flush_all
from tests.warehouse_data import HOUR, connection, load, record, rows
from tokentra_dagster.quotas import Request, reserve, settle
from tokentra_dagster.realtime.flush import flush
from tokentra_dagster.realtime.store import append
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import ConnectionRow
from tokentra_dagster.warehouse.embedded import EmbeddedServer
from tokentra_dagster.warehouse.migrate import migrate

START = datetime(2026, 6, 30, 12, tzinfo=UTC)
END = START + 24 * HOUR
MINUTE = timedelta(minutes=1)
NOT_RESTATED = timedelta(0)
RESTATED = timedelta(days=2)
MODELS = "+quota_usage_history +quota_status +daily_usage_rollup +hourly_usage_by_user"
QUOTAS = (("month", "monthly", 1, 0), ("day", "daily", 1, 7), ("week", "weekly", 3, 0), ("ann", "daily", 1, 0))
USERS = ("ann", "bob")


@dataclass(frozen=True)
class Call:
    """One request that was made."""

    id: str
    at: datetime
    provider: str
    tokens: int
    user: str


@dataclass
class Day:
    """What happens, and the account of it."""

    database: Database
    openai: ConnectionRow
    seed: int
    now: datetime = START
    calls: list[Call] = field(default_factory=list)
    unsent: list[Call] = field(default_factory=list)
    open: list[tuple[UUID, Call]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    @property
    def org(self) -> UUID:
        return self.openai.org_id

    def work(self) -> None:
        """Applications reserve, call and settle; some never settle, some send their event hours later, some twice."""
        with self.database.connect(autocommit=True) as db:
            db.execute("SELECT set_config('tokentra.moment', %s, false)", [self.now.isoformat()])
            for _ in range(self.random.randrange(1, 6)):
                call = Call(
                    f"c{len(self.calls)}", self.now - timedelta(seconds=self.random.randrange(1, 60)),
                    self.random.choice(["openai", "google"]), self.random.randrange(1, 5000), self.random.choice(USERS),
                )  # fmt: skip
                self.calls.append(call)
                self.unsent.append(call)
                held = reserve(db, Request(self.org, user_identifier=call.user, tokens=call.tokens + 100), expires_after=600)
                self.open.append((held.id, call))
            for one in self.random.sample(self.open, len(self.open) * 2 // 3):
                settle(db, one[0], tokens=one[1].tokens)
                self.open.remove(one)
            self.open = [one for one in self.open if self.random.random() < 0.9]

    def send(self) -> None:
        batch = [call for call in self.unsent if self.random.random() < 0.8]
        self.unsent = [call for call in self.unsent if call not in batch]
        again = self.random.sample(self.calls, min(2, len(self.calls)))
        append(
            self.database, self.org, [self.event_of(call) for call in [*batch, *again] if call not in self.unsent], now=self.now
        )

    def event_of(self, call: Call):
        return event(call.id, call.at, provider=call.provider, input_tokens=call.tokens, output_tokens=0, user_id=call.user)

    def sync(self, hours: int, known: float = 1.0, settles_after: timedelta = RESTATED) -> None:
        """The provider reports its last hours, at first not all of it."""
        end = self.now.replace(minute=0, second=0) + HOUR
        start = end - hours * HOUR
        found: dict[tuple[datetime, str], list[int]] = defaultdict(lambda: [0, 0])
        for call in self.calls:
            hour = call.at.replace(minute=0, second=0, microsecond=0)
            if call.provider == "openai" and start <= hour < end and (known == 1 or self.random.random() < known):
                found[hour, call.user][0] += call.tokens
                found[hour, call.user][1] += 1
        items = [
            record(hour, input_tokens=tokens, output_tokens=0, request_count=count, user_id=user)
            for (hour, user), (tokens, count) in found.items()
        ]
        load(self.database, self.openai, items, start, end, now=self.now, settles_after=settles_after)

    def rebuild(self) -> list[dict]:
        with self.database.connect(autocommit=True) as db:
            db.execute("SELECT set_config('tokentra.moment', %s, false)", [self.now.isoformat()])
            return db.execute("SELECT * FROM rebuild_quota_counters()").fetchall()


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    """One that may crash, and so has to wait for the disk."""
    folder = Path(tempfile.mkdtemp(prefix="tokentra-crash-"))
    folder.chmod(0o755)
    server = EmbeddedServer(folder / "var")
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def database(server: EmbeddedServer) -> Database:
    url = server.start()
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("CREATE DATABASE test_dbt")
        admin.execute('ALTER DATABASE test_dbt SET search_path = "$user", public, app, raw, marts, analytics')
    database = Database(url.rsplit("/", 1)[0] + "/test_dbt")
    migrate(database)
    return database


def crash(server: EmbeddedServer, database: Database, meanwhile) -> None:
    """The server dies as if the power went, in the middle of what runs `meanwhile`, and comes back at the same address."""

    def attempt() -> None:
        with suppress(psycopg.Error):
            meanwhile()

    worker = threading.Thread(target=attempt)
    worker.start()
    time.sleep(0.02)
    os.kill(int((server.data / "postmaster.pid").read_text().split()[0]), signal.SIGQUIT)
    worker.join()
    deadline = time.monotonic() + 60
    while server.url() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.start().rsplit("/", 1)[0] == database.url.rsplit("/", 1)[0]


def test_a_day_of_everything_ends_in_agreement(server, database, dbt_target):
    openai = connection(database)
    day = Day(database, openai, seed=8)
    made = {
        name: quota(
            database, openai.org_id, name, period_type=kind, period_reset_day=reset_day, period_reset_hour=reset_hour,
            token_limit=10**9, created_at=START - 24 * HOUR, enforcement_mode="block",
            **({"scope_type": "user", "user_identifier": "ann"} if name == "ann" else {}),
        )
        for name, kind, reset_day, reset_hour in QUOTAS
    }  # fmt: skip

    def build(*arguments: str) -> None:
        success, says = run_dbt(database, dbt_target, *(arguments or ("run",)), "--select", *MODELS.split())
        assert success, says[-3000:]

    # Clock edges: the end of the month is also that of a day, an hour and a minute.
    moments = sorted(
        [START + n * 13 * MINUTE for n in range(110)]
        + [datetime(2026, 7, 1, tzinfo=UTC) + n * timedelta(seconds=1) for n in (-1, 0, 1)]
    )
    for number, moment in enumerate(moment for moment in moments if moment < END):
        day.now = moment
        day.work()
        day.send()
        if number % 3 == 0:
            for one in flush(database, now=day.now):
                assert one.error is None
        if number % 10 == 5:
            day.sync(hours=6, known=0.7)
        if number % 14 == 6:
            day.rebuild()
        if number in (30, 80):
            build()
        if number in (20, 60):
            crash(server, database, lambda: flush(database, now=day.now))
        if number == 70:
            crash(server, database, lambda: day.sync(hours=12))

    day.now = END + 3 * HOUR
    append(database, day.org, [day.event_of(call) for call in day.calls], now=day.now)
    flush_all(database, day.now)
    day.sync(hours=29, settles_after=NOT_RESTATED)
    build()
    corrections = day.rebuild()

    assert counted(database) == {None: _provider_rows(day)} | dict.fromkeys((call.id for call in day.calls), 1)
    assert _hourly(database) == _true_hours(day)
    for name, kind, reset_day, reset_hour in QUOTAS:
        of_quota = [call for call in day.calls if name != "ann" or call.user == "ann"]
        true = Counter({start: 0 for start, _ in periods_of(kind, reset_day, reset_hour, START - 24 * HOUR, END)})
        for call in of_quota:
            true[period_of(kind, reset_day, reset_hour, call.at)[0]] += call.tokens
        assert dict(history(database, made[name], where=f"period_start < '{END:%Y-%m-%d %H:%M}+00'")) == true, name
        current = period_of(kind, reset_day, reset_hour, day.now)[0]
        (counter,) = rows(
            database,
            "SELECT used_tokens, usage_tokens, reserved_tokens FROM quota_counters WHERE quota_id = %s AND period_start = %s",
            made[name],
            current,
        )
        assert counter == {"used_tokens": true[current], "usage_tokens": true[current], "reserved_tokens": 0}, name
    assert any(row["difference"] for row in corrections), "the day left the counters nothing to correct: it proves too little"
    found = _hourly(database)
    build("run", "--full-refresh")
    assert _hourly(database) == found


def _provider_rows(day: Day) -> int:
    """Rows of the last report: one per hour and user."""
    return len({(call.at.replace(minute=0, second=0), call.user) for call in day.calls if call.provider == "openai"})


def _true_hours(day: Day) -> dict[tuple, tuple[int, int]]:
    found: dict[tuple, list[int]] = defaultdict(lambda: [0, 0])
    for call in day.calls:
        key = (call.provider, call.at.replace(minute=0, second=0, microsecond=0), call.user)
        found[key][0] += call.tokens
        found[key][1] += 1
    return {key: (tokens, count) for key, (tokens, count) in found.items()}


def _hourly(database: Database) -> dict[tuple, tuple[int, int]]:
    found = rows(database, "SELECT provider, hour, user_id, total_tokens, request_count FROM hourly_usage_by_user")
    return {(row["provider"], row["hour"], row["user_id"]): (row["total_tokens"], row["request_count"]) for row in found}
