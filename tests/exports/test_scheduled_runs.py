"""A due export is planned once, delivered once, tried again when it fails, and waits for final usage where asked (correction 40)."""

from __future__ import annotations

import shutil
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

import psycopg
import pytest

from tests.exports.scheduled_data import DUE, HERE, JULY, history, planned, received, runs, scheduled
from tests.warehouse_data import DAY, HOUR, load, one, record, rows
from tokentra_dagster.errors import PermanentError, UsageError
from tokentra_dagster.exports.scheduled.changes import add_export, delete_export, pause, resume
from tokentra_dagster.exports.scheduled.deliver import DeliveryRules, deliver_due, tidy
from tokentra_dagster.exports.scheduled.finality import MODELS, not_final
from tokentra_dagster.exports.scheduled.runs import events, lock_of, open_runs, plan_due, plan_one
from tokentra_dagster.exports.scheduled.staging import FOLDER
from tokentra_dagster.settings import RetentionDays
from tokentra_dagster.warehouse.access import apply_access, grant_reader, revoke_reader
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import add_organization, find_connection
from tokentra_dagster.warehouse.locks import only_one
from tokentra_dagster.warehouse.retention import expire, preview

FILE = "acme/monthly/2026-07-01T0600Z/tokentra_usage_2026-06-01_to_2026-06-30_day.csv"
MINUTE = timedelta(minutes=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_a_due_export_arrives_with_its_manifest_and_a_second_call_delivers_nothing(warehouse, tmp_path, folder):
    export = scheduled(warehouse, folder, export_config={"includeMetadata": True})
    (run,) = planned(warehouse, export)
    assert (run.period.start, run.period.end, run.status) == (DAY, JULY, "waiting")
    done = deliver_due(warehouse, run.id, tmp_path, HERE, now=DUE)
    assert (done.status, done.says) == ("delivered", str(folder / FILE))
    assert received(folder)[FILE]["row_count"] == done.run.manifest["row_count"] > 5
    assert (folder / f"{FILE}.metadata.json").is_file(), "what belongs to the file goes with it"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    again = deliver_due(warehouse, run.id, tmp_path, HERE)
    assert again.status == "delivered" and "before" in again.says
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert history(warehouse, run) == ["1 started", "1 written", "1 delivered"]


def test_everything_missed_while_nothing_ran_is_planned_once_by_the_stated_policy(warehouse, folder):
    since, now = datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 6, 10, 12, tzinfo=UTC)
    daily = {"schedule": "0 6 * * *", "relative_period": "last_day", "since": since}
    each = scheduled(warehouse, folder, "each", **daily)
    latest = scheduled(warehouse, folder, "latest", catch_up="latest", **daily)
    assert [run.due_at.day for run in planned(warehouse, each, now)] == list(range(1, 11))
    assert [run.status for run in planned(warehouse, latest, now)] == ["skipped"] * 9 + ["waiting"], "left out, not out of sight"
    assert planned(warehouse, each, now) == planned(warehouse, each, now)
    threads = [threading.Thread(target=planned, args=(warehouse, each, now + timedelta(days=5))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [run.due_at.day for run in runs(warehouse, each)] == list(range(1, 16)), "six daemons, each due time once"
    with warehouse.connect() as db:
        assert sorted(run.export for run in open_runs(db, now)) == ["acme/each"] * 10 + ["acme/latest"]


def test_a_pause_keeps_what_was_due_and_makes_nothing_due(warehouse, folder):
    now = datetime.now(UTC)
    hourly = {"schedule": half_an_hour_from(now), "relative_period": "last_day", "since": now - timedelta(hours=3)}
    export = scheduled(warehouse, folder, **hourly)
    with warehouse.connect() as db:
        pause(db, "acme/monthly")
        assert len(runs(warehouse, export)) == 0, "not committed yet"
    assert len(runs(warehouse, export)) == 3, "planned before the pause began"
    with warehouse.connect() as db:
        assert plan_due(db, export.id, now + timedelta(hours=5)) == 0 and open_runs(db, now) == []
        resume(db, "monthly")
        assert len(open_runs(db, now + MINUTE)) == 3
        plan_due(db, export.id, datetime.now(UTC))
    assert len(runs(warehouse, export)) == 3, "nothing of the pause"
    with warehouse.connect() as db:
        delete_export(db, "monthly")
    assert one(warehouse, "SELECT count(*) FROM app.export_runs") == 0


def test_a_run_that_waits_in_a_queue_when_its_export_is_paused_delivers_nothing(warehouse, tmp_path, folder):
    (run,) = planned(warehouse, scheduled(warehouse, folder))
    with warehouse.connect() as db:
        pause(db, "monthly")
    assert deliver_due(warehouse, run.id, tmp_path, HERE).says.startswith("acme/monthly is paused") and not folder.exists()
    assert deliver_due(warehouse, run.id, tmp_path, HERE, by_hand=True).status == "delivered", "a person knows what they do"


def test_a_schedule_that_somebody_broke_in_the_table_is_mended_by_adding_it_again(warehouse, folder):
    export = scheduled(warehouse, folder)
    with warehouse.connect() as db:
        db.execute("UPDATE app.scheduled_exports SET schedule = 'whenever' WHERE id = %s", [export.id])
    assert scheduled(warehouse, folder).schedule == "0 6 1 * *"


def test_a_changed_schedule_keeps_what_came_due_by_the_old_one(warehouse, folder):
    now = datetime.now(UTC)
    export = scheduled(
        warehouse, folder, schedule=half_an_hour_from(now), relative_period="last_day", since=now - timedelta(hours=2)
    )
    with warehouse.connect() as db:
        changed, new = add_export(
            db, org="acme", name="monthly", schedule="0 6 1 * *", relative_period="last_quarter", delivery_method="download",
            delivery_config={"folder": str(folder)},
        )  # fmt: skip
    assert not new and changed.id == export.id and changed.relative_period == "last_quarter"
    assert {run.period.hours for run in runs(warehouse, export)} <= {23, 24, 25} and len(runs(warehouse, export)) == 2


def test_a_failure_is_visible_keeps_its_turn_and_is_tried_again_with_the_same_file(warehouse, tmp_path, folder):
    export = scheduled(warehouse, folder)
    folder.write_text("a file where the folder should be")
    (run,) = planned(warehouse, export)
    failed = deliver_due(warehouse, run.id, tmp_path, HERE, now=DUE)
    assert failed.status == failed.run.status == "failed" and "check the path" in str(failed.run.error)
    assert failed.run.next_attempt_at == DUE + DeliveryRules().longest_pause, "trying again soon cannot help"
    with warehouse.connect() as db:
        assert open_runs(db, DUE + MINUTE) == []
        assert [open_.id for open_ in open_runs(db, DUE + timedelta(hours=2))] == [run.id], "never given up"
    folder.unlink()
    done = deliver_due(warehouse, run.id, tmp_path, HERE, now=DUE + timedelta(hours=2))
    assert done.run.manifest == failed.run.manifest and received(folder)[FILE] == done.run.manifest
    assert history(warehouse, run) == ["1 started", "1 written", "1 failed", "2 started", "2 delivered"]
    assert done.run.error is None


def test_what_failed_in_no_foreseen_way_is_a_sentence_too(warehouse, tmp_path, folder, monkeypatch):
    export = scheduled(warehouse, folder)
    (run,) = planned(warehouse, export)
    monkeypatch.setattr("tokentra_dagster.exports.scheduled.deliver.export", lambda *_: 1 / 0)
    failed = deliver_due(warehouse, run.id, tmp_path, HERE, now=DUE)
    assert failed.says == "ZeroDivisionError while delivering acme/monthly; it is tried again."
    assert failed.run.next_attempt_at == DUE + MINUTE and isinstance(failed.cause, ZeroDivisionError)


def test_two_at_once_deliver_once_and_who_comes_second_says_so(warehouse, tmp_path, folder):
    export = scheduled(warehouse, folder)
    (run,) = planned(warehouse, export)
    with warehouse.connect(autocommit=True) as db, only_one(db, lock_of(run.id)) as ours:
        assert ours and deliver_due(warehouse, run.id, tmp_path, HERE).status == "taken"
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(deliver_due(warehouse, run.id, tmp_path, HERE).status)) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) <= {"delivered", "taken"} and "delivered" in found
    assert history(warehouse, run) == ["1 started", "1 written", "1 delivered"]


def test_by_hand_it_is_delivered_again_as_it_was_and_written_anew_only_where_the_file_is_gone_or_a_person_says_so(
    warehouse, tmp_path, folder
):
    export = scheduled(warehouse, folder)
    (run,) = planned(warehouse, export)
    first = deliver_due(warehouse, run.id, tmp_path, HERE)
    _restate(warehouse)
    shutil.rmtree(folder)
    again = deliver_due(warehouse, run.id, tmp_path, HERE, by_hand=True)
    assert received(folder)[FILE] == first.run.manifest == again.run.manifest
    fresh = deliver_due(warehouse, run.id, tmp_path, HERE, by_hand=True, fresh=True)
    assert fresh.run.manifest["created_at"] >= first.run.manifest["created_at"] and fresh.run.written_by_attempt == 3
    (staged,) = (tmp_path / FOLDER / str(run.id)).iterdir()
    assert staged.name == "3", "what other attempts staged is gone"
    next(staged.glob("*.csv")).write_text("somebody changed it")
    deliver_due(warehouse, run.id, tmp_path, HERE, by_hand=True)
    shutil.rmtree(tmp_path / FOLDER)
    last = deliver_due(warehouse, run.id, tmp_path, HERE, by_hand=True)
    assert received(folder)[FILE] == last.run.manifest and last.run.delivered_at == first.run.delivered_at
    with warehouse.connect() as db:
        says = [(event.attempt, event.says) for event in events(db, run.id) if event.event == "written"]
    gone = "Written again: the staged file was gone or changed."
    assert says == [(1, ""), (3, "Written anew by hand."), (4, gone), (5, gone)]


def test_a_repeat_by_hand_that_fails_does_not_undo_the_delivery(warehouse, tmp_path, folder):
    export = scheduled(warehouse, folder)
    (run,) = planned(warehouse, export)
    deliver_due(warehouse, run.id, tmp_path, HERE)
    shutil.rmtree(folder)
    folder.write_text("")
    failed = deliver_due(warehouse, run.id, tmp_path, HERE, by_hand=True)
    assert (failed.status, failed.run.status) == ("failed", "delivered") and failed.run.delivered_at is not None


def test_one_that_waits_goes_when_the_period_is_synced_final_and_built(warehouse, tmp_path, folder):
    """Each reason in turn; the connections of the built warehouse know nothing of the last days of June."""
    with warehouse.connect() as db:
        db.execute("UPDATE app.provider_connections SET is_active = false WHERE name = 'anthropic'")
        row = find_connection(db, "acme/openai")
    export = scheduled(warehouse, folder, wait_until_final=True)
    (run,) = planned(warehouse, export)

    def outcome():
        return deliver_due(warehouse, run.id, tmp_path, HERE, now=DUE)

    assert outcome().says == "Waits until 2026-07-01 00:00 UTC is synced: openai was synced only up to 2026-06-02 00:00 UTC."
    assert runs(warehouse, export)[0].error == outcome().says and history(warehouse, run) == []
    load(warehouse, row, [record(DAY + 30 * HOUR)], DAY + 24 * HOUR, JULY, now=JULY + HOUR)
    assert outcome().says == "Waits for the build of what was loaded last: `tokentra build` does it now."
    with warehouse.connect() as db:
        # As a build of the models writes it down; what usage_coverage says is made below.
        db.execute(
            "UPDATE raw.model_progress SET change_number = (SELECT max(change_number) FROM raw.usage_changes) WHERE model = ANY(%s)",
            [list(MODELS[1:])],
        )
    assert "the build" in outcome().says, "one model of six has not read it"
    with warehouse.connect() as db:
        db.execute("UPDATE raw.model_progress SET change_number = (SELECT max(change_number) FROM raw.usage_changes)")
        db.execute("ALTER VIEW marts.usage_coverage RENAME TO was")
        db.execute("CREATE TABLE marts.usage_coverage AS SELECT * FROM marts.was")
        db.execute("UPDATE marts.usage_coverage SET is_provisional = date = '2026-06-01', is_complete = false")
    assert outcome().says == "Waits for final usage: no sync has seen all of 2026-06-01: run `tokentra sync` over it."
    with warehouse.connect() as db:
        db.execute("UPDATE marts.usage_coverage SET is_complete = true")
    assert outcome().says == "Waits for final usage: a provider may still restate 2026-06-01."
    anyway = deliver_due(warehouse, run.id, tmp_path / "elsewhere", HERE, by_hand=True, anyway=True)
    assert anyway.status == "delivered", "a person may say that it need not be final"
    with warehouse.connect() as db:
        db.execute("UPDATE marts.usage_coverage SET is_provisional = false")
        assert not_final(db, export.org_id, run.period) is None
        assert not_final(db, UUID(int=9), run.period) is None, "of an organisation without connections nothing is awaited"


def test_due_times_by_hand_are_those_of_the_schedule_that_have_come(warehouse, folder):
    export = scheduled(warehouse, folder)
    with warehouse.connect() as db:
        assert plan_one(db, export, datetime(2026, 3, 1, 6, tzinfo=UTC), DUE)
        with pytest.raises(UsageError, match="not due at 2026-07-01T07:00Z; the next one after it is 2026-08-01T06:00Z"):
            plan_one(db, export, DUE + HOUR, DUE + 2 * HOUR)
        with pytest.raises(UsageError, match="not come yet"):
            plan_one(db, export, datetime(2026, 8, 1, 6, tzinfo=UTC), DUE)
    assert [run.due_at.month for run in runs(warehouse, export)] == [3, 7], "an earlier one by hand loses none that was missed"
    with pytest.raises(UsageError, match="deleted with its export"):
        deliver_due(warehouse, UUID(int=3), folder, HERE)


def test_files_have_the_days_of_the_exports_own_zone_and_organisations_never_share_a_folder(warehouse, tmp_path, folder):
    with warehouse.connect() as db:
        db.execute("UPDATE app.organizations SET time_zone = 'Europe/Berlin', name = 'acme & co' WHERE name = 'acme'")
    export = scheduled(warehouse, folder, org="acme & co", since=datetime(2026, 6, 30, tzinfo=UTC))
    (run,) = planned(warehouse, export)
    assert run.due_at == DUE - 2 * HOUR and (run.period.start, run.period.end) == (DAY - 2 * HOUR, JULY - 2 * HOUR)
    deliver_due(warehouse, run.id, tmp_path, HERE)
    (path,) = received(folder)
    assert path == f"acme-co-{str(export.org_id)[:8]}/monthly/2026-07-01T0400Z/tokentra_usage_2026-06-01_to_2026-06-30_day.csv"


def test_staged_files_go_a_week_after_delivery_and_with_their_export(warehouse, tmp_path, folder):
    export = scheduled(warehouse, folder)
    (run,) = planned(warehouse, export)
    deliver_due(warehouse, run.id, tmp_path, HERE)
    waiting = scheduled(warehouse, folder, "waiting")
    (other,) = planned(warehouse, waiting)
    (tmp_path / FOLDER / str(other.id)).mkdir()
    now = datetime.now(UTC)
    assert tidy(warehouse, tmp_path, now + timedelta(days=6)) == 0
    assert tidy(warehouse, tmp_path, now + timedelta(days=8)) == 1
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == [str(other.id)], "what is not delivered stays"
    with warehouse.connect() as db:
        delete_export(db, "waiting")
    assert tidy(warehouse, tmp_path, now + timedelta(days=8)) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "../up"}, "letters, digits"),
        ({"name": "ends."}, "letters, digits"),
        ({"schedule": "daily"}, "five fields"),
        ({"time_zone": "Mars"}, "time zone is 'Mars'"),
        ({"relative_period": "last_year"}, "last_quarter"),
        ({"catch_up": "none"}, "all, latest"),
        ({"export_config": {"format": "pdf"}}, "format is 'pdf'"),
        ({"export_config": {"fromat": "csv"}}, "known settings are format, granularity"),
        ({"export_config": {"organization": "globex"}}, "not known"),
        ({"delivery_method": "pigeon"}, "one of download"),
        ({"delivery_config": {"folder": "relative"}}, "absolute path"),
        ({"org": "nobody"}, "No organisation"),
    ],
)
def test_what_could_never_run_is_refused_when_it_is_added(warehouse, folder, changes, words):
    with pytest.raises((UsageError, PermanentError), match=words):
        scheduled(warehouse, folder, **changes)
    assert one(warehouse, "SELECT count(*) FROM app.scheduled_exports") == 0


def half_an_hour_from(now: datetime) -> str:
    """Every hour, and not while a test runs that began now."""
    return f"{(now.minute + 30) % 60} * * * *"


def _restate(database) -> None:
    with database.connect() as db:
        db.execute("UPDATE marts.daily_usage_rollup SET total_tokens = total_tokens + 1")


def test_retention_takes_the_history_of_what_was_delivered_long_ago_and_never_the_newest_or_what_is_open(
    warehouse, tmp_path, folder
):
    since, now = datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 6, 5, tzinfo=UTC)
    export = scheduled(warehouse, folder, schedule="0 6 * * *", relative_period="last_day", since=since)
    first, second, open_, newest = planned(warehouse, export, now)
    for run in (first, second, newest):
        deliver_due(warehouse, run.id, tmp_path, HERE)
    later = datetime.now(UTC) + timedelta(days=500)
    with warehouse.connect() as db:
        # The second was delivered once more by hand since.
        db.execute("UPDATE app.export_attempts SET happened_at = %s WHERE run_id = %s", [later - timedelta(days=2), second.id])
    rules = RetentionDays(None, None, None, None, None, exports=400, quota_events=None)
    gone = [("runs of scheduled exports", 1)]
    assert [(one.what, one.rows) for one in preview(warehouse, rules, [], later).removed] == gone
    assert [(one.what, one.rows) for one in expire(warehouse, rules, [], later).removed] == gone
    assert {run.id for run in runs(warehouse, export)} == {second.id, open_.id, newest.id} and history(warehouse, first) == []
    assert {run.id for run in planned(warehouse, export, now)} == {second.id, open_.id, newest.id}, "it is not due again"


def test_a_reader_sees_what_became_of_its_organisations_exports_and_neither_errors_nor_addresses(warehouse, folder):
    export = scheduled(warehouse, folder)
    planned(warehouse, export)
    with warehouse.connect() as db:
        add_organization(db, "globex")
        apply_access(db)
        for name, org in (("exports_reader", "acme"), ("exports_other", "globex")):
            grant_reader(db, name, organizations=[org], password="p")
    parts = urlsplit(warehouse.url)
    reader, other = (
        Database(f"postgresql://{name}:p@{parts.hostname}:{parts.port}{parts.path}")
        for name in ("exports_reader", "exports_other")
    )
    try:
        assert one(reader, "SELECT status FROM app.export_runs") == "waiting"
        assert rows(other, "SELECT status FROM app.export_runs") == []
        for statement in (
            "SELECT error FROM app.export_runs", "SELECT delivered_to FROM app.export_runs", "SELECT * FROM app.scheduled_exports",
            "SELECT * FROM app.export_attempts", "DELETE FROM app.export_runs",
        ):  # fmt: skip
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                rows(reader, statement)
    finally:
        with warehouse.connect() as db:
            for name in ("exports_reader", "exports_other"):
                revoke_reader(db, name)
