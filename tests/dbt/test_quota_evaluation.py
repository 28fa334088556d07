"""Counters are a cache (issue 7): an evaluation makes them what usage says, keeps the difference, and gives back what expired."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import dagster as dg
import pytest
from click.testing import CliRunner

from tests.dbt.conftest import MODELS_ONLY
from tests.quota_data import quota
from tests.warehouse_data import HOUR, connection, load, one, record, rows
from tokentra_dagster.cli import cli
from tokentra_dagster.quotas import Request, release, reserve, settle
from tokentra_dagster.quotas.assets import quota_counters, quotas_schedule
from tokentra_dagster.quotas.counters import corrections, evaluate, news
from tokentra_dagster.resources import Warehouse
from tokentra_dagster.settings import RetentionDays
from tokentra_dagster.warehouse.access import grant_reader, revoke_reader
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.retention import expire, preview

MODELS = "+quota_usage_history +quota_status"
NOTHING_ELSE = {"minute": None, "raw": None, "hourly": None, "daily": None, "alerts": None}
TABLE = "| when (UTC) | quota | measure | counted | is | difference | in usage |"


@pytest.fixture
def warehouse(database, tmp_path, monkeypatch) -> Warehouse:
    monkeypatch.setenv("TOKENTRA_DATABASE_URL", database.url)
    monkeypatch.setenv("TOKENTRA_HOME", str(tmp_path))
    return Warehouse()


def why(database: Database) -> str | None:
    with database.connect() as db:
        return news(db)


def look(warehouse: Warehouse):
    with dg.build_schedule_context(resources={"warehouse": warehouse}) as context:
        return quotas_schedule(context)


def test_restated_usage_corrects_counters_without_a_build_of_ours_and_the_difference_is_kept_and_shown(
    database, build, warehouse
):
    """The build itself does not rebuild here: what the schedule finds is what it would find after an outage."""
    now = datetime.now(UTC)
    start = (now - timedelta(days=10)).replace(hour=0, minute=0, second=0, microsecond=0)
    row = connection(database)
    period = {"period_type": "monthly", "period_reset_day": start.day}
    made = quota(database, row.org_id, "a|b", enforcement_mode="block", token_limit=10_000, **period)
    build(*MODELS_ONLY)
    with database.connect(autocommit=True) as db:
        settle(db, reserve(db, Request(row.org_id, tokens=0)).id, input_tokens=500, output_tokens=0)
    assert why(database) is None and isinstance(look(warehouse), dg.SkipReason)
    load(database, row, [record(start, input_tokens=7000, output_tokens=50)], start, start + HOUR, now=start + HOUR)
    build(*MODELS_ONLY)
    assert why(database) == "usage says otherwise than counters"
    assert isinstance(look(warehouse), dg.RunRequest)
    result = dg.materialize([quota_counters], resources={"warehouse": warehouse})
    metadata = result.asset_materializations_for_node("app__quota_counters")[0].metadata
    assert (metadata["counters"].value, metadata["counters_corrected"].value, metadata["tokens_corrected"].value) == (1, 1, 7050)
    table = metadata["corrections"].value.splitlines()
    assert table[0] == TABLE and r"| acme/a\|b | tokens | 500 | 7,550 | 7,050 | 7,050 |" in metadata["corrections"].value
    assert isinstance(look(warehouse), dg.SkipReason), "and then there is nothing to do"
    load(database, row, [record(start, input_tokens=100, output_tokens=50)], start, start + HOUR, now=start + HOUR)
    build(*MODELS_ONLY)
    with database.connect(autocommit=True) as db:
        assert reserve(db, Request(row.org_id, tokens=9000)).id, "the first reservation after a build recounts by itself"
        kept = [(found["measure"], found["counted_before"], found["difference"]) for found in corrections(db, quota_id=made)]
    assert set(kept[:2]) == {("tokens", 7550, -6900), ("input_tokens", 7500, -6900)} and len(kept) == 6
    assert evaluate(database).corrections == ()
    shown = CliRunner().invoke(cli, ["quota", "show", "a|b"]).output
    assert "Corrected by usage" in shown and "-6,900" in shown and "+7,050" in shown


def test_a_counter_that_something_spoiled_is_found_and_made_right(database, warehouse):
    org = connection(database).org_id
    quota(database, org)
    with database.connect(autocommit=True) as db:
        settle(db, reserve(db, Request(org, tokens=0)).id, tokens=40)
        assert news(db) is None
        db.execute("UPDATE app.quota_counters SET used_tokens = 39")
        assert news(db) == "usage says otherwise than counters"
    (found,) = evaluate(database).corrections
    assert (found.measure, found.counted_before, found.counted) == ("tokens", 39, 40)
    assert why(database) is None


def test_expired_reservations_give_back_their_room_also_of_past_periods_and_settled_ones_are_no_news(database, warehouse):
    org = connection(database).org_id
    quota(database, org, "hours", period_type="hourly")
    past = datetime.now(UTC) - timedelta(hours=3)
    with database.connect(autocommit=True) as db:
        db.execute("SELECT set_config('tokentra.moment', %s, false)", [past.isoformat()])
        reserve(db, Request(org, tokens=100), expires_after=60)
        for _ in range(2):
            release(db, reserve(db, Request(org, tokens=1), expires_after=60).id)
    assert why(database) == "reservations have expired"
    result = dg.materialize([quota_counters], resources={"warehouse": warehouse})
    metadata = result.asset_materializations_for_node("app__quota_counters")[0].metadata
    assert metadata["reservations_expired"].value == 1 and "| acme/hours | 1 |" in metadata["expired"].value
    assert rows(database, "SELECT reserved_tokens FROM app.quota_counters") == [{"reserved_tokens": 0}]
    assert one(database, "SELECT count(*) FROM app.quota_holds") == 0 and why(database) is None


def test_what_is_long_over_is_forgotten_by_an_evaluation(database, warehouse):
    org = connection(database).org_id
    quota(database, org)
    with database.connect(autocommit=True) as db:
        db.execute("SELECT set_config('tokentra.moment', %s, false)", [(datetime.now(UTC) - timedelta(days=3)).isoformat()])
        settle(db, reserve(db, Request(org, tokens=1)).id, tokens=1)
    assert why(database) == "reservations are long over"
    evaluate(database)
    assert why(database) is None
    assert [
        one(database, f"SELECT count(*) FROM app.{table}") for table in ("quota_reservations", "quota_settled", "quota_counters")
    ] == [0, 0, 0]


def test_refusals_expire_and_the_history_still_counts_them_and_a_reader_sees_its_own(database, build):
    now = datetime.now(UTC)
    acme, globex = connection(database).org_id, connection(database, org="globex").org_id
    began = now - timedelta(days=200)
    for org in (acme, globex):
        quota(database, org, "hard", enforcement_mode="block", token_limit=1, period_type="monthly", created_at=began)
    with database.connect(autocommit=True) as db:
        for moment in (now - timedelta(days=100), now):
            db.execute("SELECT set_config('tokentra.moment', %s, false)", [moment.isoformat()])
            for org in (acme, acme, globex):
                assert not reserve(db, Request(org, tokens=2)).id
        db.execute(
            "INSERT INTO app.quota_events (quota_id, period_start, kind) SELECT quota_id, period_start, 'alert' FROM app.quota_events LIMIT 1"
        )
    build(*MODELS_ONLY)
    refused = "SELECT quota_id, period_start, alerts_sent, throttle_events, block_events FROM quota_usage_history WHERE block_events > 0 ORDER BY 1, 2"
    before = rows(database, refused)
    assert sorted(row["block_events"] for row in before) == [1, 1, 2, 2]
    rules = RetentionDays(**NOTHING_ELSE, quota_events=90)
    expected = [("events of quotas", 3)]
    assert [(gone.what, gone.rows) for gone in preview(database, rules, [], now).removed] == expected
    assert [(gone.what, gone.rows) for gone in expire(database, rules, [], now).removed] == expected
    assert one(database, "SELECT count(*) FROM app.quota_events") == 4
    assert rows(database, refused) == before
    expire(database, rules, [], now + timedelta(days=91))
    assert one(database, "SELECT count(*) FROM app.quota_events") == 0 and rows(database, refused) == before
    name = f"history_{database.parts['dbname']}"
    with database.connect() as db:
        grant_reader(db, name, organizations=["acme"], password="p")
    parts = urlsplit(database.url)
    reader = Database(f"postgresql://{name}:p@{parts.hostname}:{parts.port}{parts.path}")
    try:
        assert [row["block_events"] for row in rows(reader, refused)] == [2, 2]
        for table in ("quota_event_counts", "quota_events", "quota_corrections"):
            assert one(reader, f"SELECT count(*) FROM app.{table} WHERE org_id <> %s", acme) == 0
        assert one(reader, "SELECT sum(events)::int FROM app.quota_event_counts WHERE kind = 'block'") == 4
    finally:
        with database.connect() as db:
            revoke_reader(db, name)


def test_corrections_expire_with_them(database):
    org = connection(database).org_id
    quota(database, org)
    now = datetime.now(UTC)
    with database.connect(autocommit=True) as db:
        settle(db, reserve(db, Request(org, tokens=0)).id, tokens=40)
        db.execute("UPDATE app.quota_counters SET used_tokens = 39")
    evaluate(database)
    rules = RetentionDays(**NOTHING_ELSE, quota_events=8)
    assert expire(database, rules, [], now).removed == []
    assert [(gone.what, gone.rows) for gone in expire(database, rules, [], now + timedelta(days=10)).removed] == [
        ("corrections of quotas", 1)
    ]
