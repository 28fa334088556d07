"""What expires: planned from facts, then on real loads; time is moved by passing `now`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from tests.realtime.event_data import counted, event, flush_all, organization, send
from tests.warehouse_data import HOUR, connection, load, one, record, rows
from tokentra_dagster.errors import PermanentError, SettingsError, TokenTraError
from tokentra_dagster.providers import INTEGRATIONS
from tokentra_dagster.settings import FEWEST_DAYS, RetentionDays, Settings
from tokentra_dagster.warehouse import retention
from tokentra_dagster.warehouse.retention import Removed, Rollup, Usage, expire, plan, preview

RULES = RetentionDays(minute=10, raw=60, hourly=20, daily=400)
NOW = datetime(2026, 6, 30, 12, tzinfo=UTC)
MARCH, MAY = datetime(2026, 3, 10, tzinfo=UTC), datetime(2026, 5, 20, tzinfo=UTC)
ROLLUPS = [Rollup("hourly_usage_rollup", "marts", "hour")]
ORG = UUID(int=1)


def _day(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def _built(database) -> None:
    """Every rollup has read all changes, as the model's own transaction says it."""
    with database.connect() as db:
        db.execute(
            "INSERT INTO raw.model_progress (model, change_number) SELECT 'hourly_usage_rollup', max(change_number) FROM raw.usage_changes "
            "ON CONFLICT (model) DO UPDATE SET change_number = excluded.change_number"
        )


def _hours(database, row, start: datetime, count: int = 24, granularity: str = "1h") -> None:
    load(database, row, [record(start + n * HOUR, granularity) for n in range(count)], start, start + count * HOUR, granularity)


def _months(database) -> list[tuple[str, int]]:
    found = rows(
        database, "SELECT to_char(timestamp, 'YYYY-MM') AS month, count(*) AS n FROM raw.usage_records GROUP BY 1 ORDER BY 1"
    )
    return [(r["month"], r["n"]) for r in found]


def test_each_kind_has_its_own_rule_and_records_go_by_whole_months():
    found = plan(RULES, NOW, [Usage(ORG, "openai", "acme/openai", MARCH, MARCH)])
    assert (found.months, found.hours, found.days) == (_day("2026-05-01"), _day("2026-06-10"), _day("2025-05-26"))
    assert found.minutes == {(ORG, "openai"): _day("2026-06-20")} and found.waits == ()


def test_forever_keeps_everything():
    found = plan(RetentionDays(None, None, None, None), NOW, [Usage(ORG, "openai", "acme/openai", MARCH, MARCH)])
    assert (found.months, found.hours, found.days, found.minutes) == (None, None, None, {})


def test_what_waits_holds_back_the_month_it_is_in_and_only_its_own_minutes():
    waiting = Usage(ORG, "openai", "acme/openai", MARCH, MARCH, waits_from=MARCH + 3 * HOUR, why="is not built")
    other = Usage(ORG, "anthropic", "acme/anthropic", MARCH, MARCH)
    found = plan(RULES, NOW, [waiting, other])
    assert (found.months, found.hours, found.days) == (_day("2026-03-01"), MARCH, _day("2025-05-26"))
    assert found.minutes == {(ORG, "anthropic"): _day("2026-06-20")}
    assert found.waits == ("acme/openai: is not built",)


def test_what_waits_but_is_young_holds_nothing_back():
    young = Usage(ORG, "openai", "acme/openai", MARCH, None, waits_from=NOW - HOUR, why="is not built")
    assert plan(RULES, NOW, [young]).waits == ()


def test_a_built_month_goes_with_its_partition_and_a_repeat_takes_nothing(database):
    row = connection(database)
    _hours(database, row, MARCH)
    _hours(database, row, MAY)
    _built(database)
    foreseen = preview(database, RULES, ROLLUPS, NOW)
    assert foreseen.removed == [Removed("raw.usage_records", _day("2026-04-01"), 24, "usage_records_y2026m03")]
    assert _months(database) == [("2026-03", 24), ("2026-05", 24)], "a preview changes nothing"
    assert expire(database, RULES, ROLLUPS, NOW).removed == foreseen.removed
    assert _months(database) == [("2026-05", 24)]
    assert one(database, "SELECT to_regclass('raw.usage_records_y2026m03')") is None
    assert one(database, "SELECT kept_from FROM raw.retention_horizon") == _day("2026-05-01")
    again = expire(database, RULES, ROLLUPS, NOW)
    assert (again.removed, again.waits) == ([], [])
    assert _months(database) == [("2026-05", 24)]


def test_usage_that_a_model_has_not_read_stays_and_the_report_says_why(database):
    row = connection(database)
    _hours(database, row, MARCH)
    report = expire(database, RULES, ROLLUPS, NOW)
    assert report.removed == []
    assert report.waits == ["acme/openai: hourly_usage_rollup has not read what changed from 2026-03-10 00:00 UTC on"]
    assert rows(database, "SELECT * FROM raw.retention_horizon") == []
    _built(database)
    never = [*ROLLUPS, Rollup("a_new_mart", "marts", "date")]
    assert "a_new_mart has not read" in expire(database, RULES, never, NOW).waits[0]
    assert _months(database) == [("2026-03", 24)]
    expire(database, RULES, ROLLUPS, NOW)
    assert _months(database) == []


def test_minutes_go_before_hours_and_only_minutes_move_the_horizon_that_early(database):
    both, hours = connection(database), connection(database, org="globex", provider="anthropic", name="anthropic")
    _hours(database, both, MAY, granularity="1m")
    _hours(database, both, MAY)
    _hours(database, both, NOW.replace(hour=0), 3, "1m")
    _hours(database, hours, MAY)
    _built(database)
    assert preview(database, RULES, ROLLUPS, NOW).removed == [Removed("minute records of acme/openai", _day("2026-06-20"), 24)]
    expire(database, RULES, ROLLUPS, NOW)
    kept = rows(database, "SELECT granularity, count(*) AS n FROM raw.usage_records GROUP BY 1 ORDER BY 1")
    assert kept == [{"granularity": "1h", "n": 48}, {"granularity": "1m", "n": 3}]
    assert rows(database, "SELECT org_id, kept_from FROM raw.retention_horizon") == [
        {"org_id": both.org_id, "kept_from": _day("2026-06-20")}
    ]


def test_events_go_with_their_records_and_one_that_waits_stays_until_it_is_rejected(database):
    org = organization(database)
    old, young = NOW - timedelta(days=11), NOW - timedelta(days=1)
    send(database, org, event("old", old), event("young", young), now=NOW)
    flush_all(database, NOW)
    _built(database)
    send(database, org, event("waits", old), event("old", old), now=NOW)
    foreseen = preview(database, RULES, ROLLUPS, NOW)
    assert [(gone.what, gone.rows) for gone in foreseen.removed] == [
        ("minute records of acme/openai", 1),
        ("events of acme/openai", 1),
    ]
    assert expire(database, RULES, ROLLUPS, NOW).removed == foreseen.removed
    assert rows(database, "SELECT event_id FROM raw.usage_events ORDER BY 1") == [{"event_id": "waits"}, {"event_id": "young"}]
    send(database, org, event("old", old), now=NOW)
    flush_all(database, NOW)
    assert counted(database) == {"young": 1}, "sent again after it expired, an event is rejected and not counted anew"
    assert one(database, "SELECT count(*) FROM raw.rejected_records") == 2


def test_the_window_of_a_running_load_stays_and_that_of_a_dead_one_does_not(database):
    row = connection(database)
    _hours(database, row, MARCH)
    _built(database)
    with database.connect() as db:
        db.execute(
            "INSERT INTO raw.sync_history (org_id, provider_connection_id, kind, granularity, window_start, window_end) "
            "VALUES (%s, %s, 'sync', '1h', %s, %s)",
            [row.org_id, row.id, MARCH, MARCH + HOUR],
        )
        db.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [f"tokentra connection {row.id}"])
        db.commit()
        report = expire(database, RULES, ROLLUPS, NOW)
        assert report.removed == [] and "a load from 2026-03-10 00:00 UTC on is running" in report.waits[0]
    expire(database, RULES, ROLLUPS, NOW)
    assert _months(database) == [], "the process that held the connection's lock is gone"


def test_a_load_into_expired_time_is_refused_and_says_where_to_start(database):
    row = connection(database)
    _hours(database, row, MARCH)
    _hours(database, row, MAY)
    _built(database)
    expire(database, RULES, ROLLUPS, NOW)
    for start in (MARCH, datetime(2026, 4, 30, 23, tzinfo=UTC)):
        with pytest.raises(PermanentError, match=r"before 2026-05-01 have expired.*start at 2026-05-01"):
            load(database, row, [record(start)], start, MAY)
    assert one(database, "SELECT DISTINCT error_kind FROM raw.sync_history WHERE status = 'failed'") == "permanent"
    assert _months(database) == [("2026-05", 24)]
    load(database, row, [record(MAY)], datetime(2026, 5, 1, tzinfo=UTC), MAY + HOUR)


def test_somebody_who_had_no_usage_then_may_load_it_and_it_stays_until_it_is_built(database):
    acme = connection(database)
    _hours(database, acme, MARCH)
    _built(database)
    expire(database, RULES, ROLLUPS, NOW)
    globex = connection(database, org="globex")
    _hours(database, globex, MARCH, 5)
    assert expire(database, RULES, ROLLUPS, NOW).removed == []
    assert _months(database) == [("2026-03", 5)]
    _built(database)
    expire(database, RULES, ROLLUPS, NOW)
    assert _months(database) == []


def test_a_month_with_usage_that_came_meanwhile_loses_only_what_expired(database):
    """After a crash between the horizon and the drop, another organisation loads the same month before the next run."""
    acme = connection(database)
    _hours(database, acme, MARCH)
    globex = connection(database, org="globex")
    _hours(database, globex, MARCH + HOUR, 5)
    with database.connect() as db:
        db.execute(
            "INSERT INTO raw.retention_horizon (org_id, provider, kept_from) VALUES (%s, 'openai', '2026-05-01+00')",
            [acme.org_id],
        )
        report = retention.Report()
        retention._drop_partition(db, "usage_records_y2026m03", _day("2026-04-01"), report)
    assert report.removed == [Removed("raw.usage_records_y2026m03", _day("2026-04-01"), 24)]
    assert rows(database, "SELECT org_id, count(*) AS n FROM raw.usage_records GROUP BY 1") == [{"org_id": globex.org_id, "n": 5}]


def test_a_reader_of_the_records_is_not_waited_for_and_the_next_run_takes_the_month(database, monkeypatch):
    monkeypatch.setattr(retention, "TABLE_LOCK_SECONDS", 1)
    row = connection(database)
    _hours(database, row, MARCH)
    _built(database)
    with database.connect() as reader:
        reader.execute("SELECT count(*) FROM raw.usage_records")
        report = expire(database, RULES, ROLLUPS, NOW)
        assert report.removed == [] and report.waits == [
            "usage_records_y2026m03: somebody reads or loads usage records; it goes with the next run"
        ]
    assert [removed.partition for removed in expire(database, RULES, ROLLUPS, NOW).removed] == ["usage_records_y2026m03"]


def test_a_build_that_does_not_pause_is_said_in_one_sentence_and_nothing_goes(database, monkeypatch):
    monkeypatch.setattr(retention, "LOCK_SECONDS", 1)
    row = connection(database)
    _hours(database, row, MARCH)
    _built(database)
    with database.connect() as building:
        building.execute("SELECT pg_advisory_xact_lock_shared(%s)", [retention.RETENTION_LOCK])
        with pytest.raises(TokenTraError, match="a build did not pause within 1 seconds"):
            expire(database, RULES, ROLLUPS, NOW)
    assert _months(database) == [("2026-03", 24)] and rows(database, "SELECT * FROM raw.retention_horizon") == []


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("RAW", "7", "from 8 to 36500, or forever"),
        ("RAW", "a year", "from 8 to 36500, or forever"),
        ("MINUTE", "500", "TOKENTRA_RETENTION_MINUTE_DAYS is 500 and TOKENTRA_RETENTION_RAW_DAYS 400"),
        ("HOURLY", "forever", "TOKENTRA_RETENTION_HOURLY_DAYS is forever and TOKENTRA_RETENTION_DAILY_DAYS 731"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(name, value, words):
    with pytest.raises(SettingsError, match=words):
        Settings.from_environment({f"TOKENTRA_RETENTION_{name}_DAYS": value})


def test_the_rules_are_read_and_the_shortest_is_longer_than_what_syncs_read_again():
    read = Settings.from_environment({"TOKENTRA_RETENTION_RAW_DAYS": "forever", "TOKENTRA_RETENTION_HOURLY_DAYS": "30"}).retention
    assert read == RetentionDays(minute=90, raw=None, hourly=30, daily=731)
    assert timedelta(days=FEWEST_DAYS) > max(source.settles_after for source in INTEGRATIONS.values()) + timedelta(days=2)
