"""Sending, against real servers: once, also with two at the same time and after a crash; quiet; snoozed; put off; many at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from uuid import UUID

import pytest

from tests.alerts.alert_data import HERE, SlackLike, alert, mailbox, quota_status, raise_, slack, titles, webhook
from tests.exports.https_receiver import status
from tests.warehouse_data import one, rows
from tokentra_dagster.alerts.channels import add_channel, delete_channel, find_channel, set_active
from tokentra_dagster.alerts.deliver import DeliveryRules, deliver, is_due, send_test
from tokentra_dagster.alerts.messages import message_id
from tokentra_dagster.alerts.quota_alerts import holding
from tokentra_dagster.alerts.store import acknowledge, end_snooze, resolve, snooze
from tokentra_dagster.errors import PermanentError, UsageError
from tokentra_dagster.warehouse.directory import add_organization

MINUTE = timedelta(minutes=1)


def states(database) -> list[str]:
    return [row["status"] for row in rows(database, "SELECT status FROM app.alert_deliveries ORDER BY status")]


def in_an_hour() -> datetime:
    return datetime.now(UTC) + 60 * MINUTE


def test_an_alert_arrives_signed_in_mail_and_in_chat_once_and_then_it_is_quiet(database, acme, receiver, post, authority):
    webhook(database, receiver, authority)
    mailbox(database, post)
    (raised,) = raise_(database, alert(org_id=acme))
    first = deliver(database, HERE)
    assert sorted((one.channel, one.status, one.alerts) for one in first) == [("acme/hook", "sent", 1), ("acme/mail", "sent", 1)]
    (event,) = receiver.accepted
    (told,) = event["data"]["alerts"]
    assert (event["type"], event["data"]["count"], told["id"]) == ("alert.raised", 1, str(raised.id))
    assert (told["organisation"], told["kind"], told["severity"]) == ("acme", "quota_exceeded", "critical")
    assert (told["periodStart"], told["periodEnd"]) == ("2026-06-01T00:00:00Z", "2026-07-01T00:00:00Z")
    (letter,) = post.letters
    assert letter["Subject"] == "[critical] acme: Quota q1 is exceeded"
    for kind in ("plain", "html"):
        assert "1,050 of 1,000 tokens" in letter.get_body((kind,)).get_content()
    assert parsedate_to_datetime(letter["Date"]) == raised.raised_at.replace(microsecond=0)
    assert f"tokentra alerts ack {raised.short_id}" in letter.get_body(("plain",)).get_content()
    requests = len(receiver.requests)
    for _ in range(20):
        raise_(database, alert(org_id=acme))
        assert not due(database) and deliver(database, HERE) == []
    assert (len(receiver.requests), len(post.letters)) == (requests, 1), "nothing new, not a byte"
    assert one(database, "SELECT count(*) FROM app.quota_events WHERE kind = 'alert'") == 1, "two channels, one alert sent"


def due(database) -> bool:
    with database.connect() as db:
        return is_due(db)


def test_slack_gets_text_and_blocks(database, acme, receiver, authority):
    chat = SlackLike(receiver)
    slack(database, authority)
    raise_(database, alert(org_id=acme))
    assert deliver(database, HERE)[0].status == "sent"
    (sent,) = chat.posts
    assert sent["text"] == "[critical] acme: Quota q1 is exceeded"
    assert [block["type"] for block in sent["blocks"]] == ["header", "section"]
    assert sent["blocks"][1]["text"]["text"].startswith("1,050 of 1,000 tokens (105.0 %).")


def test_two_that_deliver_at_the_same_time_send_once(database, acme, receiver, authority):
    webhook(database, receiver, authority)
    raise_(database, *(alert(number, acme) for number in range(3)))
    entered = threading.Event()

    def slow(handler):
        entered.set()
        time.sleep(0.5)
        receiver.answer(handler, receiver.requests.pop())

    receiver.script.append(slow)
    first: list = []
    thread = threading.Thread(target=lambda: first.extend(deliver(database, HERE)))
    thread.start()
    assert entered.wait(5)
    assert deliver(database, HERE) == [], "the other holds the channel"
    thread.join()
    assert [one.status for one in first] == ["sent"] and len(receiver.accepted) == 1
    together = [threading.Thread(target=deliver, args=(database, HERE)) for _ in range(6)]
    raise_(database, alert(9, acme))
    for each in together:
        each.start()
    for each in together:
        each.join()
    assert titles(receiver) == [[f"Quota q{n} is exceeded" for n in range(3)], ["Quota q9 is exceeded"]]


def test_a_process_killed_after_the_receiver_took_it_repeats_with_the_same_id_and_content(database, acme, receiver, authority):
    """It dies between the receiver's yes and our writing it down; the next one must neither lose it nor send another message."""
    webhook(database, receiver, authority)
    raise_(database, alert(1, acme), alert(2, acme))
    code = (
        "import os, sys\n"
        "from tests.alerts.alert_data import HERE\n"
        "from tokentra_dagster.alerts import deliver\n"
        "from tokentra_dagster.warehouse.database import Database\n"
        "deliver._sent = lambda *_: os.kill(os.getpid(), 9)\n"
        "deliver.deliver(Database(sys.argv[1]), HERE)\n"
    )
    died = subprocess.run([sys.executable, "-c", code, database.url], cwd=Path(__file__).parents[2], env=dict(os.environ))
    assert died.returncode == -signal.SIGKILL and len(receiver.accepted) == 1
    raise_(database, alert(3, acme))
    assert deliver(database, HERE) == [], "the repeat is due in a minute, as after any failure, and nothing overtakes it"
    deliver(database, HERE, in_an_hour())
    first, repeat, rest = receiver.accepted
    assert first == repeat and len(first["data"]["alerts"]) == 2
    assert [one["title"] for one in rest["data"]["alerts"]] == ["Quota q3 is exceeded"]
    ids = [request.headers["webhook-id"] for request in receiver.requests]
    assert ids[0] == ids[1] != ids[2]
    assert states(database) == ["sent"] * 3


def test_many_at_once_are_one_message_to_each_channel(database, acme, receiver, post, authority):
    webhook(database, receiver, authority)
    mailbox(database, post)
    raise_(database, *(alert(number, acme, severity="warning" if number else "critical") for number in range(200)))
    deliver(database, HERE)
    (event,), (letter,) = receiver.accepted, post.letters
    assert event["data"]["count"] == len(event["data"]["alerts"]) == 200
    assert letter["Subject"] == "200 new alerts: 1 critical, 199 warning"
    text = letter.get_body(("plain",)).get_content()
    assert text.count("[warning]") == 99 and "And 100 more: tokentra alerts list" in text
    assert text.index("[critical]") < text.index("[warning]")


def test_a_post_of_many_keeps_within_slacks_bounds(database, acme, receiver, authority):
    chat = SlackLike(receiver)
    slack(database, authority)
    raise_(database, *(alert(number, acme, body="b" * 5000, title="t" * 200) for number in range(60)))
    deliver(database, HERE)
    (sent,) = chat.posts
    assert len(sent["blocks"]) == 22 and "And 40 more" in sent["blocks"][-1]["text"]["text"]
    assert all(len(block["text"]["text"]) <= (150 if block["type"] == "header" else 3000) for block in sent["blocks"])


def test_a_channel_that_fails_stops_no_other_is_tried_again_and_tells_the_rest_afterwards(
    database, acme, receiver, post, authority
):
    webhook(database, receiver, authority)
    mailbox(database, post)
    raise_(database, alert(1, acme))
    receiver.script += [status(503), status(500), status(503, Retry_After="3600")]
    assert {(one.channel, one.status) for one in deliver(database, HERE)} == {("acme/hook", "waiting"), ("acme/mail", "sent")}
    assert one(database, "SELECT error FROM app.alert_deliveries WHERE status = 'waiting'").endswith(
        "HTTP 503; it is tried again."
    )
    raise_(database, alert(2, acme))
    assert [one.channel for one in deliver(database, HERE)] == ["acme/mail"], "the next attempt is not due yet"
    now = datetime.now(UTC)
    assert deliver(database, HERE, now + 2 * MINUTE)[0].status == "waiting"
    assert deliver(database, HERE, now + 3 * MINUTE) == [], "after the second failure the pause is two minutes"
    assert deliver(database, HERE, now + 5 * MINUTE)[0].status == "waiting"
    assert deliver(database, HERE, now + 64 * MINUTE) == [], "the receiver asked for an hour"
    deliver(database, HERE, now + 66 * MINUTE)
    assert titles(receiver) == [["Quota q1 is exceeded"], ["Quota q2 is exceeded"]]
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == 2
    assert len(post.letters) == 2


def test_a_receiver_that_stalls_delays_no_other_channel(database, acme, receiver, post, authority):
    webhook(database, receiver, authority, config={"timeout_seconds": 2})
    mailbox(database, post)
    raise_(database, alert(1, acme))
    receiver.script.append(lambda handler: time.sleep(3))
    began, done = time.monotonic(), []
    thread = threading.Thread(target=lambda: done.extend(deliver(database, HERE)))
    thread.start()
    while not post.letters and time.monotonic() - began < 5:
        time.sleep(0.02)
    assert time.monotonic() - began < 1.5
    thread.join()
    assert {one.status for one in done} == {"sent", "waiting"}


def test_what_cannot_be_mended_by_trying_is_marked_and_sent_once_the_channel_is_mended(database, acme, receiver, authority):
    webhook(database, receiver, authority)
    raise_(database, alert(1, acme), alert(2, acme))
    receiver.script.append(status(302, Location="https://elsewhere.example/"))
    (attempt,) = deliver(database, HERE)
    assert attempt.status == "failed" and "redirects are not followed" in attempt.says
    assert deliver(database, HERE, in_an_hour()) == [] and states(database) == ["failed", "failed"]
    with database.connect() as db:
        resolve(db, [one(database, "SELECT id FROM app.alerts WHERE title LIKE '%%q2%%'")], datetime.now(UTC))
    webhook(database, receiver, authority)
    assert deliver(database, HERE)[0].status == "sent" and states(database) == ["sent", "sent"]


def test_it_is_given_up_after_many_attempts(database, acme, receiver, authority):
    webhook(database, receiver, authority)
    raise_(database, alert(1, acme))
    receiver.script += [status(503)] * 3
    rules = DeliveryRules(most_attempts=3)
    said = [deliver(database, HERE, datetime.now(UTC) + n * 60 * MINUTE, rules)[0].status for n in range(3)]
    assert said == ["waiting", "waiting", "failed"]
    assert rules.pause(1) == MINUTE and rules.pause(3) == 4 * MINUTE and rules.pause(5000) == 30 * MINUTE


def test_a_secret_that_this_process_cannot_read_gives_nothing_up(database, acme, receiver, authority, monkeypatch):
    webhook(database, receiver, authority)
    raise_(database, alert(1, acme))
    monkeypatch.delenv("HOOK_SECRET")
    (attempt,) = deliver(database, HERE)
    assert attempt.status == "waiting" and "env:HOOK_SECRET" in attempt.says and receiver.requests == []
    assert deliver(database, HERE) == [], "not again at once"
    monkeypatch.setenv("HOOK_SECRET", receiver.secret)
    deliver(database, HERE, in_an_hour())
    assert len(receiver.accepted) == 1


def test_what_is_snoozed_is_not_sent_until_the_end_and_then_only_where_it_holds(database, acme, globex, receiver, authority):
    webhook(database, receiver, authority)
    webhook(database, receiver, authority, org="globex")
    with database.connect() as db:
        snooze(db, acme, None, str(UUID(int=1)), in_an_hour(), "ann")
        snooze(db, acme, "anomaly", None, in_an_hour(), "ann")
    mine = [alert(1, acme), alert(1, acme, kind="quota_warning"), alert(3, acme, kind="anomaly")]
    raised = raise_(database, *mine, alert(2, acme), alert(1, globex))
    assert len(raised) == 5, "it is history all the same"
    deliver(database, HERE)
    assert sorted(titles(receiver)) == [["Quota q1 is exceeded"], ["Quota q2 is exceeded"]]
    assert {event["data"]["alerts"][0]["organisation"] for event in receiver.accepted} == {"acme", "globex"}
    with database.connect() as db:
        resolve(db, [one.id for one in raised if one.alert.kind == "quota_warning"], datetime.now(UTC))
        db.execute("UPDATE app.alert_snoozes SET snoozed_until = now()")
    (after,) = deliver(database, HERE)
    assert (after.channel, after.alerts) == ("acme/hook", 2)
    assert deliver(database, HERE) == []


def test_a_message_that_waits_is_not_sent_while_all_in_it_is_snoozed_and_holds_up_nothing(database, acme, receiver, authority):
    webhook(database, receiver, authority)
    raise_(database, alert(1, acme))
    receiver.script.append(status(503))
    deliver(database, HERE)
    with database.connect() as db:
        snooze(db, acme, "quota_exceeded", str(UUID(int=1)), in_an_hour(), "ann")
    raise_(database, alert(2, acme))
    deliver(database, HERE, in_an_hour())
    assert titles(receiver) == [["Quota q2 is exceeded"]]
    with database.connect() as db:
        assert end_snooze(db, acme, "quota_exceeded", str(UUID(int=1)))
    deliver(database, HERE, in_an_hour())
    assert titles(receiver)[1:] == [["Quota q1 is exceeded"]]


def test_what_somebody_knows_or_what_no_longer_holds_is_not_sent(database, acme, receiver, authority):
    webhook(database, receiver, authority)
    known, over, waiting = raise_(database, alert(1, acme), alert(2, acme), alert(3, acme))
    with database.connect() as db:
        done, new = acknowledge(db, str(known.id), "ann", "I am on it")
        assert new and (done.acknowledged_by, done.acknowledgement_note) == ("ann", "I am on it")
        assert acknowledge(db, str(known.id), "bob")[0].acknowledged_by == "ann"
        resolve(db, [over.id], datetime.now(UTC))
    receiver.script.append(status(503))
    deliver(database, HERE)
    with database.connect() as db:
        resolve(db, [waiting.id], datetime.now(UTC))
    assert deliver(database, HERE, in_an_hour()) == [] and receiver.accepted == []
    assert states(database) == ["skipped"]


def test_a_channel_gets_its_organisations_alerts_of_its_kinds_and_severity_raised_since_it_was_added(
    database, acme, globex, receiver, post, authority
):
    raise_(database, alert(1, acme, kind="anomaly"))
    webhook(database, receiver, authority, alert_kinds=["anomaly"], least_severity="critical")
    mailbox(database, post, org=None)
    wanted = alert(2, acme, kind="anomaly", title="wanted")
    raise_(
        database, wanted, alert(3, acme, kind="anomaly", severity="warning"), alert(4, acme), alert(5, globex, kind="anomaly"),
        alert(6, globex, kind="failed_sync", title="a sync"), alert(7, None, kind="failed_run", title="a run"),
    )  # fmt: skip
    deliver(database, HERE)
    assert titles(receiver) == [["wanted"]]
    text = post.letters[0].get_body(("plain",)).get_content()
    assert post.letters[0]["Subject"].startswith("2 new alerts")
    assert "globex: a sync" in text and "Platform: a run" in text and len(post.letters) == 1


def test_a_paused_channel_gets_what_still_holds_when_it_is_resumed_and_a_deleted_one_nothing(database, acme, receiver, authority):
    webhook(database, receiver, authority)
    with database.connect() as db:
        set_active(db, "hook", False)
    raise_(database, alert(1, acme), alert(2, acme))
    assert deliver(database, HERE) == [] and not due(database)
    with database.connect() as db:
        set_active(db, "acme/hook", True)
    assert deliver(database, HERE)[0].alerts == 2
    with database.connect() as db:
        delete_channel(db, "hook")
    raise_(database, alert(3, acme))
    assert deliver(database, HERE) == [] and len(receiver.accepted) == 1


def test_names_can_add_no_header_no_markup_and_call_nobody(database, receiver, post, authority):
    evil = 'x\r\nBcc: all@example.com\n<script>alert("1")</script> <!channel> @channel <https://evil.example|click> *b*'
    with database.connect() as db:
        org, _ = add_organization(db, evil)
    mailbox(database, post, org=evil)
    slack(database, authority, org=evil)
    chat = SlackLike(receiver)
    raise_(database, *holding([quota_status(1050, org_id=org, name=evil)]))
    assert {one.status for one in deliver(database, HERE)} == {"sent"}
    (letter,) = post.letters
    assert letter["Bcc"] is None and letter["To"] == "finance@example.com" and letter["Subject"].startswith("[critical] x Bcc:")
    page = letter.get_body(("html",)).get_content()
    assert "<script>" not in page and "&lt;script&gt;" in page
    (sent,) = chat.posts
    assert not set("<>") & set(sent["text"]) and "&lt;!channel&gt;" in sent["text"] and "@channel" not in sent["text"]
    for block in sent["blocks"]:
        assert block["text"]["type"] == "plain_text" and "@channel" not in block["text"]["text"]


def test_a_test_message_really_arrives_and_an_error_says_what_to_do(database, acme, receiver, post, authority):
    webhook(database, receiver, authority)
    mailbox(database, post)
    with database.connect() as db:
        hook, mail = find_channel(db, "hook"), find_channel(db, "mail")
    assert send_test(database, hook, HERE).where == f"https://localhost:{receiver.port}"
    assert receiver.accepted[0]["type"] == "alert.test" and receiver.accepted[0]["data"]["alerts"] == []
    send_test(database, mail, HERE)
    assert post.letters[0]["Subject"] == "Test of this alert channel"
    with pytest.raises(PermanentError, match="private, loopback or reserved"):
        send_test(database, hook)


def test_slacks_address_is_a_secret_and_stays_one(database, acme, receiver, authority):
    with pytest.raises(UsageError, match="env:NAME or file:PATH") as refused, database.connect() as db:
        add_channel(db, org="acme", name="s", kind="slack", config={"webhook_url": "https://hooks.slack.com/services/T0/B0/abc"})
    assert "services" not in str(refused.value)
    slack(database, authority)
    raise_(database, alert(1, acme))
    receiver.script.append(status(404))
    (attempt,) = deliver(database, HERE)
    assert attempt.status == "failed" and "7f3a-private" not in attempt.says and "HTTP 404" in attempt.says
    stored = "".join(str(row) for row in rows(database, "SELECT * FROM app.alert_channels, app.alert_deliveries"))
    assert "7f3a-private" not in stored and "env:SLACK_URL" in stored


def test_settings_of_files_and_unknown_kinds_are_refused(database, acme, post):
    for kind, config, kinds, words in (
        ("email", {"attach_bytes": 1}, (), "attach_bytes"), ("webhook", {"store": {}}, (), "store"), ("pager", {}, (), "pager"),
        ("slack", {"webhook_url": "env:A", "colour": 1}, (), "colour"), ("slack", {"webhook_url": "env:A"}, ("quota",), "quota_warning"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words), database.connect() as db:
            add_channel(db, org="acme", name="c", kind=kind, config=config, alert_kinds=kinds)
    assert one(database, "SELECT count(*) FROM app.alert_channels") == 0


def test_the_id_of_a_message_is_made_of_its_channel_and_alerts():
    ids = [UUID(int=2), UUID(int=1)]
    assert message_id(UUID(int=9), ids) == message_id(UUID(int=9), ids[::-1])
    assert len({message_id(UUID(int=9), ids), message_id(UUID(int=8), ids), message_id(UUID(int=9), ids[:1])}) == 3
