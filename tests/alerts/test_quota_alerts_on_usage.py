"""Quotas whose usage was loaded and built: levels, a restatement, the next period, a paused quota, two organisations."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.dbt.conftest import MODELS_ONLY, build, database, dbt_target  # noqa: F401 - fixtures of dbt's tests
from tests.quota_data import change, quota
from tests.warehouse_data import DAY, HOUR, connection, load, one, record, rows
from tokentra_dagster.alerts.evaluate import evaluate

MODELS = "+quota_usage_history +quota_status"
D = timedelta(days=1)


def raised(database, at) -> list[tuple[str, str]]:  # noqa: F811
    """Organisation and kind of what an evaluation at the moment raises, and that the next raises nothing."""
    found = [(one.organization, one.alert.kind) for one in evaluate(database, at).raised]
    assert evaluate(database, at).raised == []
    return sorted(found)


def state(database) -> dict[str, bool]:  # noqa: F811
    """Kind of each alert of acme's first period -> whether it holds."""
    return {
        row["kind"]: row["holds"]
        for row in rows(
            database,
            "SELECT kind, resolved_at IS NULL AS holds FROM app.alerts JOIN app.organizations AS o ON o.id = org_id "
            "WHERE o.name = 'acme' AND period_start = %s",
            DAY,
        )
    }


def hours(row, database, *tokens: int, start=DAY) -> None:  # noqa: F811
    """The day's usage: so many tokens in each of its first hours, and nothing is known after them."""
    items = [record(start + n * HOUR, input_tokens=amount, output_tokens=0) for n, amount in enumerate(tokens)]
    load(database, row, items, start, start + len(tokens) * HOUR)


@pytest.mark.usefixtures("environment_stays_as_it_was")
def test_a_quota_is_told_once_per_level_and_period_through_restatements(database, build):  # noqa: F811
    acme, globex = connection(database), connection(database, org="globex")
    assert evaluate(database).errors == [], "before the first build there is nothing to say"
    first = quota(database, acme.org_id, token_limit=1000, created_at=DAY)
    quota(database, globex.org_id, token_limit=1000, created_at=DAY)

    hours(acme, database, 100, 0, 0, 0, 0, 0, 200)
    hours(globex, database, 10, 0, 0, 0, 0, 0, 10)
    build(*MODELS_ONLY)
    assert raised(database, DAY + 7 * HOUR) == [("acme", "quota_projected")], "300 in 7 of 24 hours; globex stays far below"

    hours(acme, database, 100, 0, 0, 0, 0, 0, 200, 750)
    hours(globex, database, 10, 0, 0, 0, 0, 0, 10, 800)
    build(*MODELS_ONLY)
    assert raised(database, DAY + 8 * HOUR) == [
        ("acme", "quota_exceeded"), ("globex", "quota_projected"), ("globex", "quota_warning"),
    ]  # fmt: skip
    assert state(database) == {"quota_exceeded": True, "quota_projected": False}

    hours(acme, database, 100, 0, 0, 0, 0, 0, 200, 520)
    build(*MODELS_ONLY)
    assert raised(database, DAY + 9 * HOUR) == [], "restated: 820 are at the warning, which is below what was told"
    assert state(database) == {"quota_exceeded": False, "quota_projected": False}

    hours(acme, database, 100, 0, 0, 0, 0, 0, 200, 750)
    hours(acme, database, 1200, start=DAY + D)
    build(*MODELS_ONLY)
    assert raised(database, DAY + 10 * HOUR) == []
    assert state(database)["quota_exceeded"], "it holds again; nobody is told twice"
    assert raised(database, DAY + 25 * HOUR) == [("acme", "quota_exceeded")], "a new period"
    assert state(database) == {"quota_exceeded": False, "quota_projected": False}, "the old one is over"
    assert one(database, "SELECT count(*) FROM app.alerts WHERE resolved_at IS NULL") == 1

    change(database, first, DAY + 25 * HOUR, is_active=False)
    assert raised(database, DAY + 26 * HOUR) == []
    assert one(database, "SELECT count(*) FROM app.alerts WHERE resolved_at IS NULL") == 0
