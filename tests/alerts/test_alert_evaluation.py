"""Evaluating on a real database: failed syncs and anomalies, with two evaluators at once, over and over, and past a source that fails."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit
from uuid import UUID

import psycopg
import pytest

from tests.alerts.alert_data import HERE, alert, raise_, titles, webhook
from tests.warehouse_data import DAY, HOUR, connection, load, one, record, rows
from tokentra_dagster.alerts.deliver import deliver
from tokentra_dagster.alerts.evaluate import evaluate, raise_failed_run
from tokentra_dagster.alerts.event_alerts import FailedRun
from tokentra_dagster.alerts.store import find, keep_current
from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.analytics.results import InsightRow
from tokentra_dagster.analytics_store import Findings, store
from tokentra_dagster.errors import PermanentError, TransientError, UsageError
from tokentra_dagster.ingest.load import load_window
from tokentra_dagster.ingest.windows import aligned
from tokentra_dagster.settings import RetentionDays
from tokentra_dagster.warehouse.access import grant_reader, revoke_reader
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.retention import expire, preview


def fails(database, row, error: Exception | None = None) -> None:
    """A sync of the connection that dies of the error, as the history then has it."""

    def fill(_intake) -> None:
        raise error or PermanentError("The key was refused (401); make a new one.")

    with pytest.raises((PermanentError, TransientError)):
        load_window(database, row, aligned(DAY, DAY + HOUR, "1h"), kind="sync", fill=fill, settles_after=timedelta(0))


def works(database, row) -> None:
    load(database, row, [record()], now=None)


def raised(database) -> list[str]:
    return [one.alert.title for one in evaluate(database).raised]


def test_a_streak_of_failed_syncs_is_one_alert_that_a_success_resolves_and_the_next_streak_is_another(
    database, acme, receiver, authority
):
    webhook(database, receiver, authority)
    row = connection(database)
    works(database, row)
    assert raised(database) == []
    fails(database, row)
    assert raised(database) == ["Usage of acme/openai is not being synced"]
    for _ in range(5):
        fails(database, row)
        assert raised(database) == []
    works(database, row)
    assert raised(database) == []
    assert one(database, "SELECT count(*) FROM app.alerts WHERE resolved_at IS NOT NULL") == 1
    fails(database, row)
    assert raised(database) == ["Usage of acme/openai is not being synced"]
    deliver(database, HERE)
    (only,) = titles(receiver)
    assert len(only) == 1, "the first was over before anything was sent"
    assert "The key was refused (401); make a new one." in receiver.accepted[0]["data"]["alerts"][0]["body"]


def test_failures_that_may_mend_themselves_alert_after_a_run_with_its_retries(database, acme):
    row = connection(database)
    for _ in range(3):
        fails(database, row, TransientError("The provider answered 503."))
        assert raised(database) == []
    fails(database, row, TransientError("The provider answered 503."))
    assert raised(database) == ["Usage of acme/openai is not being synced"]
    fails(database, row)
    assert raised(database) == [], "the same streak, whatever it dies of"


def test_a_disabled_connection_and_a_failed_import_raise_nothing(database, acme):
    row = connection(database)
    with pytest.raises(PermanentError):
        load_window(database, row, aligned(DAY, DAY + HOUR, "1h"), kind="import", fill=_refuse, settles_after=timedelta(0))
    assert raised(database) == []
    fails(database, row)
    with database.connect() as db:
        db.execute("UPDATE app.provider_connections SET is_active = false")
    assert raised(database) == []


def _refuse(_intake) -> None:
    raise PermanentError("The file is not CSV.")


def test_of_many_that_evaluate_at_once_one_raises(database, acme, globex):
    for org in ("acme", "globex"):
        fails(database, connection(database, org=org))
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.extend(raised(database))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == ["Usage of acme/openai is not being synced", "Usage of globex/openai is not being synced"]


def test_a_dry_run_says_what_would_be_raised_and_raises_nothing(database, acme):
    fails(database, connection(database))
    for _ in range(2):
        assert len(evaluate(database, dry_run=True).raised) == 1
    assert one(database, "SELECT count(*) FROM app.alerts") == 0
    assert len(evaluate(database).raised) == 1 and not evaluate(database, dry_run=True).is_news


def anomaly(hours: tuple[int, int], now: datetime, title: str = "Tokens of the organization rose", **changes) -> InsightRow:
    start, end = (now + h * HOUR for h in hours)
    return InsightRow(
        "anomaly", "warning", title, "9 tokens", "tokens", starts_at=start, ends_at=end, direction="spike", **changes
    )


def found_in(database, org: UUID, window: str, now: datetime, *insights: InsightRow) -> None:
    days = {"7d": 7, "30d": 30}[window]
    with database.connect() as db:
        store(db, org, Findings("anomalies", window, Period(now - timedelta(days=days), now), "USD", {}, insights=insights))


def test_an_anomaly_is_raised_once_however_often_and_long_it_is_found(database, acme):
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    for window in ("7d", "30d"):
        found_in(database, acme, window, now, anomaly((-30, -26), now))
    assert raised(database) == ["Tokens of the organization rose"]
    tomorrow = now + timedelta(days=1)
    found_in(database, acme, "7d", tomorrow, anomaly((-31, -3), now, "Requests of model m rose", dimension="model", dimension_value="m"), anomaly((-20, -18), now))  # fmt: skip
    assert raised(database) == []
    found_in(database, acme, "7d", tomorrow, anomaly((-31, -25), now), anomaly((-10, -8), now, "another"))
    assert raised(database) == ["another"]
    assert one(database, "SELECT count(*) FROM app.alerts WHERE resolved_at IS NULL") == 2
    assert evaluate(database, now + timedelta(days=4)).raised == []
    assert one(database, "SELECT count(*) FROM app.alerts WHERE resolved_at IS NULL") == 0, "no longer news"


def test_insights_of_old_days_and_of_other_kinds_raise_nothing(database, acme):
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    forecast = InsightRow("forecast", "critical", "Cost will end June above", "more", "cost")
    found_in(database, acme, "7d", now - timedelta(days=300), anomaly((-7300, -7200), now))
    found_in(database, acme, "30d", now, anomaly((-200, -90), now), forecast)
    assert raised(database) == []


def test_a_failed_run_is_told_once_while_the_job_keeps_failing(database):
    at = datetime.now(UTC)

    def run(number: int, hours: float, job: str = "build_job") -> bool:
        with database.connect() as db:
            new, _ = raise_failed_run(db, FailedRun(f"run{number}", job, at + hours * HOUR, "The disk is full"))
        return new is not None

    assert [run(1, 0), run(1, 0), run(2, 1), run(3, 24), run(4, 1, "flush_events"), run(5, 47.5), run(6, 72)] == [
        True, False, False, False, True, False, True,
    ]  # fmt: skip
    assert {row["org_id"] for row in rows(database, "SELECT org_id FROM app.alerts")} == {None}


def test_one_source_that_fails_stops_no_other_and_is_said(database, acme):
    fails(database, connection(database))
    with database.connect() as db:
        db.execute("CREATE VIEW marts.quota_status AS SELECT 1 / 0 AS org_id, 'q' AS quota_name")
    found = evaluate(database)
    assert found.errors == ["quotas: division by zero"] and len(found.raised) == 1


def test_an_alert_that_holds_again_is_opened_again_without_being_sent_again(database, acme, receiver, authority):
    webhook(database, receiver, authority)
    now = datetime.now(UTC)
    (first,) = raise_(database, alert(1, acme, period_end=now + timedelta(days=1), period_start=now))
    deliver(database, HERE)
    for holds in (set(), {first.alert.key}):
        with database.connect() as db:
            assert keep_current(db, ["quota_exceeded"], holds, now) == 1
            assert (find(db, first.short_id).resolved_at is None) is bool(holds)
        assert deliver(database, HERE) == []


def test_an_id_that_is_none_or_several_is_said(database, acme):
    raise_(database, alert(1, acme))
    with database.connect() as db:
        db.execute("UPDATE app.alerts SET id = '00000000-0000-0000-0000-000000000001'")
    raise_(database, alert(2, acme))
    with database.connect() as db:
        db.execute("UPDATE app.alerts SET id = '00000000-0000-0000-0000-000000000002' WHERE subject = %s", [str(UUID(int=2))])
        for text, words in (("0000", "Several"), ("abcd", "No alert"), ("%", "four characters"), ("____", "four characters")):
            with pytest.raises(UsageError, match=words):
                find(db, text)


def test_retention_takes_old_alerts_with_their_deliveries_and_leaves_what_could_be_raised_anew(
    database, acme, receiver, authority
):
    """Four hundred days on: one that holds, one whose period lasts, and a new one stay."""
    webhook(database, receiver, authority)
    now = datetime.now(UTC)
    _, holds, lasts, new = raise_(database, *(alert(n, acme) for n in range(4)))
    deliver(database, HERE)
    with database.connect() as db:
        db.execute(
            "UPDATE app.alerts SET raised_at = %s, last_seen_at = %s WHERE id <> %s", [*[now - timedelta(days=402)] * 2, new.id]
        )
        db.execute("UPDATE app.alerts SET resolved_at = raised_at WHERE id <> %s", [holds.id])
        db.execute(
            "UPDATE app.alerts SET period_start = raised_at, period_end = raised_at + interval '1 day' WHERE id <> %s", [lasts.id]
        )
        db.execute(
            "UPDATE app.alerts SET period_start = raised_at, period_end = now() + interval '1 day' WHERE id = %s", [lasts.id]
        )
    rules = RetentionDays(None, None, None, None)
    assert [(gone.what, gone.rows) for gone in preview(database, rules, [], now).removed] == [("alerts", 1)]
    assert [(gone.what, gone.rows) for gone in expire(database, rules, [], now).removed] == [("alerts", 1)]
    assert {row["id"] for row in rows(database, "SELECT id FROM app.alerts")} == {holds.id, lasts.id, new.id}
    assert one(database, "SELECT count(*) FROM app.alert_deliveries") == 3
    assert preview(database, RetentionDays(None, None, None, None, None, None), [], now + timedelta(days=9999)).removed == []


def test_a_reader_sees_its_organisations_alerts_without_the_texts_of_errors(database, acme, globex):
    raise_(database, alert(1, acme), alert(2, globex), alert(3, None, kind="failed_run"))
    name = f"alert_reader_{database.parts['dbname']}"
    with database.connect() as db:
        grant_reader(db, name, organizations=["acme"], password="p")
    parts = urlsplit(database.url)
    reader = Database(f"postgresql://{name}:p@{parts.hostname}:{parts.port}{parts.path}")
    try:
        assert [row["title"] for row in rows(reader, "SELECT title FROM app.alerts")] == ["Quota q1 is exceeded"]
        for statement in (
            "SELECT body FROM app.alerts", "SELECT details FROM app.alerts", "SELECT * FROM app.alert_channels", "SELECT * FROM app.alert_snoozes",
            "SELECT * FROM app.alert_deliveries", "UPDATE app.alerts SET resolved_at = now()", "DELETE FROM app.alerts",
        ):  # fmt: skip
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                rows(reader, statement)
    finally:
        with database.connect() as db:
            revoke_reader(db, name)
