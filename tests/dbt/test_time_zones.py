"""Local days (correction 5): they add up, over clocks that change, in zones of half and quarter hours, and over a change of zone."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from tests.warehouse_data import HOUR, connection, load, one, record, rows

STEPS = {"1m": timedelta(minutes=15), "1h": HOUR, "1d": timedelta(hours=24)}


def utc(month: int, day: int) -> datetime:
    return datetime(2026, month, day, tzinfo=UTC)


# Organisation -> its zone, the width of its records, and spans of usage around the days on which its clocks change.
PLACES: dict[str, tuple[str, str, list[tuple[datetime, datetime]]]] = {
    "berlin": ("Europe/Berlin", "1h", [(utc(3, 28), utc(3, 31)), (utc(10, 24), utc(10, 27))]),
    "new york": ("America/New_York", "1h", [(utc(3, 7), utc(3, 10)), (utc(10, 31), utc(11, 3))]),
    # Clocks go back at midnight: the day has it twice.
    "havana": ("America/Havana", "1h", [(utc(3, 7), utc(3, 10)), (utc(10, 31), utc(11, 3))]),
    "kolkata": ("Asia/Kolkata", "1m", [(utc(6, 1), utc(6, 4))]),
    "kolkata by the hour": ("Asia/Kolkata", "1h", [(utc(6, 1), utc(6, 4))]),
    "kathmandu": ("Asia/Kathmandu", "1m", [(utc(6, 1), utc(6, 4))]),
    "lord howe": ("Australia/Lord_Howe", "1m", [(utc(4, 4), utc(4, 7)), (utc(10, 2), utc(10, 6))]),
    "days only": ("America/New_York", "1d", [(utc(6, 1), utc(6, 4))]),
    "days only in UTC": ("UTC", "1d", [(utc(6, 1), utc(6, 4))]),
}


def items(granularity: str, start: datetime, end: datetime, tokens: int = 1):
    step = STEPS[granularity]
    return [
        record(start + n * step, granularity, input_tokens=tokens, output_tokens=0, user_id=f"u{n % 3}")
        for n in range((end - start) // step)
    ]


def expected(found: list, zone: str) -> dict[str, int]:
    """Tokens per local day, by Python's own time zones: a record counts on the day it begins, a day record on its UTC date."""
    days: Counter[str] = Counter()
    for each in found:
        local = each.bucket_start if each.granularity == "1d" else each.bucket_start.astimezone(ZoneInfo(zone))
        days[f"{local:%Y-%m-%d}"] += each.input_tokens
    return dict(days)


def local(database, org: str, columns: str = "sum(input_tokens)::int") -> dict:
    found = rows(
        database,
        f"SELECT d.local_date::text AS day, {columns} AS value FROM daily_usage_local AS d JOIN app.organizations AS o ON o.id = d.org_id "
        "WHERE o.name = %s GROUP BY 1",
        org,
    )
    return {r["day"]: r["value"] for r in found}


def place(database, org: str, zone: str):
    row = connection(database, org=org)
    with database.connect() as db:
        db.execute("UPDATE app.organizations SET time_zone = %s WHERE id = %s", [zone, row.org_id])
    return row


def test_local_days_add_up_over_clock_changes_odd_zones_restatements_and_a_change_of_zone(database, build):
    loaded: dict[str, list] = {}
    connections = {}
    for org, (zone, granularity, spans) in PLACES.items():
        connections[org] = place(database, org, zone)
        loaded[org] = []
        for start, end in spans:
            loaded[org] += items(granularity, start, end)
            load(database, connections[org], items(granularity, start, end), start, end, granularity)
    build("run", "--select", "+daily_usage_local")
    for org, (zone, _, _) in PLACES.items():
        assert local(database, org) == expected(loaded[org], zone), org
    assert local(database, "berlin")["2026-03-29"] == 23
    assert local(database, "berlin")["2026-10-25"] == 25
    assert local(database, "new york")["2026-11-01"] == 25
    assert local(database, "havana")["2026-11-01"] == 25
    assert local(database, "lord howe")["2026-10-04"] == 94, "23.5 hours of quarter hours"
    assert local(database, "lord howe")["2026-04-05"] == 98, "24.5 hours"
    in_utc = (
        "SELECT DISTINCT sum(input_tokens)::int AS tokens FROM hourly_usage_rollup AS h JOIN app.organizations AS o ON o.id = h.org_id "
        "WHERE o.name = 'berlin' GROUP BY date_trunc('day', hour, 'UTC')"
    )
    assert one(database, in_utc) == 24, "UTC days stay whole"

    # Marked is a day with a record that local midnight divides; in Kolkata the usage of 4 June begins after it.
    marked = {org: {day for day, yes in local(database, org, "bool_or(is_approximate)").items() if yes} for org in PLACES}
    three_days = {"2026-06-01", "2026-06-02", "2026-06-03"}
    assert {org: days for org, days in marked.items() if days} == {"kolkata by the hour": three_days, "days only": three_days}

    # A restated UTC day, and another zone for two organisations: the furthest apart that there are.
    start, end = utc(3, 29), utc(3, 30)
    load(database, connections["berlin"], items("1h", start, end, tokens=5), start, end)
    loaded["berlin"] = [r for r in loaded["berlin"] if not start <= r.bucket_start < end] + items("1h", start, end, tokens=5)
    moved = {"new york": "Pacific/Kiritimati", "kathmandu": "Pacific/Honolulu", "days only": "UTC"}
    for org, zone in moved.items():
        place(database, org, zone)
    build("run", "--select", "+daily_usage_local")
    for org, (zone, _, _) in PLACES.items():
        assert local(database, org) == expected(loaded[org], moved.get(org, zone)), org
    assert set(local(database, "days only", "bool_or(is_approximate)").values()) == {False}
    state = "SELECT to_jsonb(d) AS r FROM daily_usage_local AS d"
    incremental = sorted((r["r"] for r in rows(database, state)), key=str)
    build("build", "--full-refresh", "--exclude-resource-type", "unit_test", "--vars", "compare: everything")
    assert sorted((r["r"] for r in rows(database, state)), key=str) == incremental


def test_a_local_day_counts_each_user_once_and_moves_with_its_hours(database, build):
    """Correction 5: 22:30 UTC is the next day in Berlin, and the user of both days counts once in each."""
    row = place(database, "acme", "Europe/Berlin")
    late, early = datetime(2026, 6, 1, 22, tzinfo=UTC), datetime(2026, 6, 2, 3, tzinfo=UTC)
    load(
        database,
        row,
        [record(late, user_id="ann"), record(early, user_id="ann"), record(utc(6, 1), user_id="bob")],
        utc(6, 1),
        utc(6, 3),
    )
    build()
    found = rows(database, "SELECT local_date::text, user_ids, request_count, time_zone FROM daily_usage_local ORDER BY 1")
    assert [tuple(r.values()) for r in found] == [
        ("2026-06-01", ["bob"], 1, "Europe/Berlin"),
        ("2026-06-02", ["ann"], 2, "Europe/Berlin"),
    ]
