"""The marts about users and API keys after any sequence of loads, compared with what Python works out from the loads alone."""

from __future__ import annotations

import random
from collections import defaultdict
from datetime import date
from decimal import Decimal
from itertools import pairwise

from hypothesis import HealthCheck, Phase, given, settings

from tests.dbt.conftest import MODELS_ONLY
from tests.dbt.test_rollups import STEPS, Expected, apply_step
from tests.dbt.test_users import MINUTE, MODELS, ONE_DAY, TEST_EVERYTHING  # noqa: F401 - MODELS is for `build`
from tests.warehouse_data import connection, rows

CHOICES = {
    "user_id": [None, "ann", "bob", "eve"],
    "api_key_id": [None, "k1", "k2"],
    "feature": [None, "chat"],
    "currency": ["USD", "EUR"],
    "reported_cost": [None, Decimal("0.25"), Decimal("1.5")],
    "request_count": [None, 1, 7],
}


def _known_sum(values):
    known = [value for value in values if value is not None]
    return sum(known) if known else None


@settings(
    max_examples=3,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(STEPS)
def test_after_any_sequence_users_and_keys_say_what_the_records_say(database, build, steps):
    org = f"org-{random.SystemRandom().randrange(2**60)}"
    connections = {
        "first": connection(database, org=org, name="first"),
        "second": connection(database, org=org, name="second", provider="anthropic"),
    }
    expected = {name: Expected() for name in connections}
    for step in steps:
        if step == "build":
            build(*MODELS_ONLY)
        else:
            apply_step(database, connections[step[0]], expected[step[0]], step, **CHOICES)
    build()
    of_org = f"org_id = '{connections['first'].org_id}'"
    counted = [(connections[name].provider, r) for name, part in expected.items() for r in part.counted()]

    for mart, column, field in (
        ("daily_usage_by_user", "user_id", "user_id"),
        ("daily_usage_by_api_key", "api_key_id", "api_key_id"),
    ):
        parts: dict = defaultdict(list)
        for provider, r in counted:
            parts[r.bucket_start.date(), provider, getattr(r, field), r.currency].append(r)
        found = rows(database, f"SELECT * FROM {mart} WHERE {of_org}")
        assert {
            (r["date"], r["provider"], r[column], r["currency"]): (r["total_tokens"], r["request_count"], r["record_count"])
            for r in found
        } == {
            key: (sum(r.input_tokens + r.output_tokens for r in part), _known_sum(r.request_count for r in part), len(part))
            for key, part in parts.items()
        }

    days: dict = defaultdict(list)
    for _, r in counted:
        days[r.user_id, r.bucket_start.date()].append(r)
    found = {(r["user_identifier"], r["activity_date"]): r for r in rows(database, f"SELECT * FROM user_activity WHERE {of_org}")}
    assert found.keys() == days.keys()
    for key, part in days.items():
        models: dict = defaultdict(int)
        for r in part:
            models[r.model] += r.input_tokens + r.output_tokens
        assert {model: usage["tokens"] for model, usage in found[key]["model_usage"].items()} == models
        priced = [r for r in part if r.reported_cost is not None and r.currency == "USD"]
        assert found[key]["estimated_cost"] == _known_sum(r.reported_cost for r in priced)
        times = sorted(r.bucket_start for r in part if r.granularity == "1m")
        gaps = sum(later - earlier > 30 * MINUTE for earlier, later in pairwise(times))
        assert found[key]["session_count"] == (None if key[0] is None else 1 + gaps)
        known = [r.bucket_start for r in part if r.granularity != "1d"]
        assert (found[key]["first_activity_at"], found[key]["last_activity_at"]) == (
            (min(known), max(known)) if known else (None, None)
        )

    used = {r.bucket_start.date() for _, r in counted}
    users = {(r.bucket_start.date(), r.user_id) for _, r in counted if r.user_id is not None}
    calendar = [min(used) + n * ONE_DAY for n in range((max(used) - min(used)).days + 1)] if used else []

    def active(day: date, length: int) -> int | None:
        inside = {day - n * ONE_DAY for n in range(length)}
        return len({user for at, user in users if at in inside}) or (None if inside & used else 0)

    found = rows(database, f"SELECT * FROM active_users WHERE {of_org} ORDER BY date")
    assert [
        (r["date"], r["daily_active_users"], r["weekly_active_users"], r["monthly_active_users"], r["week_to_date_active_users"],
         r["month_to_date_active_users"])
        for r in found
    ] == [
        (day, active(day, 1), active(day, 7), active(day, 30), active(day, day.weekday() + 1), active(day, day.day)) for day in calendar
    ]  # fmt: skip
    build(*TEST_EVERYTHING)
