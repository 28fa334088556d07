"""Random sequences of calls and of time, beside a plain Python account of the same quota."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from tests.quota_calendar import period_of
from tests.quota_data import quota
from tests.warehouse_data import connection
from tokentra_dagster.quotas import Request, check, release, reserve, settle

START = datetime(2026, 6, 10, 20, 30, tzinfo=UTC)
LIMIT = 100


@dataclass
class Held:
    period: tuple[datetime, datetime]
    tokens: int
    expires_at: datetime
    used: int | None = None
    released: bool = False

    def counts(self, now: datetime) -> int:
        """What it takes of its period's limit."""
        if self.used is not None:
            return self.used
        return 0 if self.released or self.expires_at <= now else self.tokens


@pytest.mark.parametrize("seed", range(4))
def test_every_answer_is_that_of_a_plain_account(database, seed):
    generator = random.Random(seed)
    org = connection(database).org_id
    made = quota(database, org, enforcement_mode="throttle", token_limit=LIMIT, period_type="hourly")
    held: dict[UUID, Held] = {}
    now = START
    decisions = set()
    with database.connect(autocommit=True) as db:
        for _ in range(150):
            now += timedelta(seconds=generator.choice([0, 1, 20, 90, 400]))
            db.execute("SELECT set_config('tokentra.moment', %s, false)", [now.isoformat()])
            period = period_of("hourly", 1, 0, now)
            taken = sum(h.counts(now) for h in held.values() if h.period == period)
            call = generator.choice(["reserve", "reserve", "reserve", "settle", "release", "rebuild"])
            if call == "reserve":
                tokens, seconds = generator.randrange(1, 60), generator.choice([30, 300, 3000])
                said = check(db, Request(org, tokens=tokens))
                answer = reserve(db, Request(org, tokens=tokens), expires_after=seconds)
                decisions.add(answer.decision.decision)
                assert answer.decision.allowed is said.allowed is (taken + tokens <= LIMIT)
                if answer.id:
                    held[answer.id] = Held(period, tokens, now + timedelta(seconds=seconds))
                else:
                    # At the moment that it names there is room, and a second earlier there is none.
                    later = answer.decision.retry_at
                    for moment, room in ((later, True), (later - timedelta(seconds=1), False)):
                        db.execute("SELECT set_config('tokentra.moment', %s, false)", [moment.isoformat()])
                        assert check(db, Request(org, tokens=tokens)).allowed is room
            elif call == "rebuild":
                db.execute("SELECT rebuild_quota_counters()")
            elif held:
                identifier = generator.choice(list(held))
                one = held[identifier]
                if call == "settle":
                    tokens = generator.randrange(80)
                    assert settle(db, identifier, tokens=tokens).changed is (one.used is None)
                    one.used = tokens if one.used is None else one.used
                else:
                    assert release(db, identifier).changed is (one.used is None and not one.released)
                    one.released = True
            row = db.execute(
                "SELECT used_tokens, reserved_tokens FROM quota_counters WHERE quota_id = %s AND period_start = %s",
                [made, period[0]],
            ).fetchone()
            if row:
                assert row["used_tokens"] == sum(h.used or 0 for h in held.values() if h.period == period)
    assert decisions == {"allowed", "throttled"}
    assert len({h.period for h in held.values()}) > 2
