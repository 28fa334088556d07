"""Webhooks against a real HTTPS receiver that checks the signature with the standard's own library (correction 41)."""

from __future__ import annotations

import base64
import ipaddress
import json
import socket
import ssl
import threading
import time
import traceback
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from tests.exports.delivery_data import Authority, delivery_of
from tests.exports.https_receiver import SECRET, Receiver, receiving, status
from tokentra_dagster.errors import PermanentError, TransientError, UsageError
from tokentra_dagster.exports.destinations.base import Allowances, Delivery, Link
from tokentra_dagster.exports.destinations.targets import refusal
from tokentra_dagster.exports.destinations.webhook import Webhook

HERE = Allowances(private_targets=True)
LINK = Link("https://bucket.example/usage.csv?X-Amz-Signature=1", datetime(2026, 1, 3, 6, tzinfo=UTC), "https://bucket.example/m")


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority.made_in(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def receiver(authority, monkeypatch):
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    with receiving(authority.server_side("localhost", "hooks.acme.test")) as receiver:
        yield receiver


def webhook(receiver: Receiver, authority: Authority, host: str = "localhost", **changes: object) -> Webhook:
    given = {
        "webhookUrl": receiver.url(host),
        "secret": "env:HOOK_SECRET",
        "ca_file": str(authority.file),
        "timeout_seconds": 5,
        "first_pause_seconds": 0.01,
        "longest_pause_seconds": 2,
        **changes,
    }
    return Webhook.parse(given, HERE)


def linked(folder: Path) -> Delivery:
    return delivery_of(folder, link=LINK)


def test_the_event_has_the_specifications_fields_and_a_signature_that_the_library_accepts(receiver, authority, tmp_path):
    delivery = linked(tmp_path)
    delivered = webhook(receiver, authority).deliver(delivery)
    [event] = receiver.accepted
    specified = {name: event[name] for name in ("event", "fileName", "downloadUrl", "expiresAt", "rowCount")}
    assert specified == {
        "event": "export.completed",
        "fileName": "usage_2026-01-01.csv",
        "downloadUrl": LINK.url,
        "expiresAt": "2026-01-03T06:00:00Z",
        "rowCount": 2,
    }
    assert (event["sha256"], event["fileSize"]) == (delivery.facts.sha256, delivery.facts.size_bytes)
    assert (event["periodStart"], event["periodEnd"]) == ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")
    assert receiver.requests[0].headers["webhook-id"] == delivery.message_id == delivered.message_id
    assert (delivered.where, delivered.attempts) == (f"https://localhost:{receiver.port}", 1)


def test_correction_41_the_specifications_unsigned_single_try_is_refused_and_lost_where_ours_arrives(
    receiver, authority, tmp_path
):
    def specifications_way() -> int:
        """Section 12 `sendWebhook`: one unsigned POST, its answer never looked at."""
        body = json.dumps({"event": "export.completed", "fileName": "usage.csv", "downloadUrl": LINK.url, "rowCount": 2})
        request = urllib.request.Request(receiver.url(), body.encode(), {"Content-Type": "application/json"})
        context = ssl.create_default_context(cafile=authority.file)
        try:
            return urllib.request.urlopen(request, context=context, timeout=5).status
        except urllib.error.HTTPError as error:
            return error.code

    assert specifications_way() == 401
    receiver.script = [status(503)]
    assert specifications_way() == 503
    assert receiver.accepted == []

    receiver.script = [status(503)]
    delivered = webhook(receiver, authority).deliver(linked(tmp_path))
    assert (delivered.attempts, len(receiver.accepted)) == (2, 1)


@pytest.mark.parametrize("code", [408, 425, 429, 500, 502, 503, 504])
def test_an_answer_that_may_pass_is_tried_again_under_the_same_id_with_a_fresh_signature(receiver, authority, tmp_path, code):
    receiver.script = [status(code), status(code)]
    assert webhook(receiver, authority).deliver(linked(tmp_path)).attempts == 3
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == 1
    assert len({request.body for request in receiver.requests}) == 1
    assert len(receiver.accepted) == 1


def test_each_attempt_is_signed_with_its_own_time(receiver, authority, tmp_path):
    receiver.script = [status(503, Retry_After="1.1")]
    webhook(receiver, authority).deliver(linked(tmp_path))
    first, second = (int(request.headers["webhook-timestamp"]) for request in receiver.requests)
    assert second > first
    assert receiver.requests[0].headers["webhook-signature"] != receiver.requests[1].headers["webhook-signature"]


def test_retries_end_and_the_error_says_what_the_receiver_answered_without_the_secret_address(receiver, authority, tmp_path):
    receiver.script = [status(500)] * 9
    with pytest.raises(TransientError) as failure:
        webhook(receiver, authority, attempts=3).deliver(linked(tmp_path))
    assert len(receiver.requests) == 3
    assert f"https://localhost:{receiver.port} answered HTTP 500" in str(failure.value)
    assert "private" not in str(failure.value) and "token" not in str(failure.value) and SECRET not in str(failure.value)


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 422])
def test_an_answer_that_cannot_pass_is_not_tried_again(receiver, authority, tmp_path, code):
    receiver.script = [status(code)]
    with pytest.raises(PermanentError, match=f"HTTP {code}"):
        webhook(receiver, authority).deliver(linked(tmp_path))
    assert len(receiver.requests) == 1


def test_retry_after_is_waited_for(receiver, authority, tmp_path):
    receiver.script = [status(429, Retry_After="1")]
    begun = time.monotonic()
    webhook(receiver, authority).deliver(linked(tmp_path))
    assert 1 <= time.monotonic() - begun < 4


def test_a_retry_after_longer_than_allowed_ends_now_and_is_handed_on(receiver, authority, tmp_path):
    receiver.script = [status(429, Retry_After="3600")]
    begun = time.monotonic()
    with pytest.raises(TransientError, match="wait 3600 s") as failure:
        webhook(receiver, authority).deliver(linked(tmp_path))
    assert failure.value.retry_after == 3600
    assert (len(receiver.requests), time.monotonic() - begun < 2) == (1, True)


@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(receiver, authority, tmp_path, code):
    receiver.script = [status(code, Location=receiver.url())]
    with pytest.raises(PermanentError, match="redirects are not followed"):
        webhook(receiver, authority).deliver(linked(tmp_path))
    assert len(receiver.requests) == 1


def test_a_receiver_that_stalls_is_given_up_in_time_and_tried_again(receiver, authority, tmp_path):
    done = threading.Event()
    receiver.script = [lambda handler: done.wait(10)]
    begun = time.monotonic()
    try:
        assert webhook(receiver, authority, timeout_seconds=0.5).deliver(linked(tmp_path)).attempts == 2
    finally:
        done.set()
    assert time.monotonic() - begun < 4


def test_a_receiver_that_drips_its_headers_cannot_hold_us_beyond_the_time_of_one_attempt(receiver, authority, tmp_path):
    def drip(handler) -> None:
        for letter in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"z" * 200:
            handler.wfile.write(bytes([letter]))
            handler.wfile.flush()
            time.sleep(0.1)

    receiver.script = [drip]
    begun = time.monotonic()
    with pytest.raises(TransientError, match="did not answer within 1 s"):
        webhook(receiver, authority, timeout_seconds=1, attempts=1).deliver(linked(tmp_path))
    assert time.monotonic() - begun < 2.5


def test_a_receiver_that_answers_too_much_is_read_no_further(receiver, authority, tmp_path):
    sent = []

    def flood(handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(2000):
            handler.wfile.write(b"x" * 100_000)
            sent.append(100_000)

    receiver.script = [flood]
    assert webhook(receiver, authority).deliver(linked(tmp_path)).attempts == 1
    time.sleep(0.3)
    # What lies in the buffers of both sockets may be more than we read; the 200 MB are not.
    assert sum(sent) < 50_000_000


def test_an_answer_with_endless_headers_is_refused(receiver, authority, tmp_path):
    def flood(handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Much: " + b"x" * 3_000_000)

    receiver.script = [flood]
    with pytest.raises(TransientError, match="could not be reached"):
        webhook(receiver, authority, attempts=1).deliver(linked(tmp_path))


def test_a_certificate_of_an_unknown_authority_is_refused_at_once(receiver, authority, tmp_path):
    with pytest.raises(PermanentError, match="certificate"):
        webhook(receiver, authority, ca_file=None).deliver(linked(tmp_path))
    assert receiver.requests == []


def test_a_certificate_for_another_name_is_refused(receiver, authority, tmp_path):
    with pytest.raises(PermanentError, match="certificate"):
        webhook(receiver, authority, host="127.0.0.1").deliver(linked(tmp_path))


def answers(monkeypatch, name: str, *addresses: list[str]) -> list[str]:
    """Let the resolver answer `name` with each list in turn, the last one for ever. The list returned counts the questions."""
    real, asked = socket.getaddrinfo, []

    def resolve(host, port, *args, **kwargs):
        if host != name:
            return real(host, port, *args, **kwargs)
        asked.append(host)
        found = addresses[min(len(asked), len(addresses)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return asked


def test_the_connection_goes_to_the_checked_address_while_tls_and_host_keep_the_name(receiver, authority, tmp_path, monkeypatch):
    # A name that answers differently the second time: whoever resolves it again reaches the machine inside.
    asked = answers(monkeypatch, "hooks.acme.test", ["127.0.0.1"], ["127.0.0.2"])
    with receiving(authority.server_side("hooks.acme.test"), "127.0.0.2", receiver.port) as inside:
        webhook(receiver, authority, host="hooks.acme.test").deliver(linked(tmp_path))
        assert (len(asked), len(receiver.accepted), len(inside.requests)) == (1, 1, 0)
    assert receiver.requests[0].server_name == "hooks.acme.test"
    assert receiver.requests[0].headers["Host"] == f"hooks.acme.test:{receiver.port}"


def test_a_name_with_one_inner_address_among_public_ones_is_refused_and_nothing_is_sent(receiver, tmp_path, monkeypatch):
    answers(monkeypatch, "hooks.acme.test", ["93.184.216.34", "127.0.0.1"])
    given = {"webhook_url": receiver.url("hooks.acme.test"), "secret": "env:HOOK_SECRET"}
    with pytest.raises(PermanentError, match=r"leads to 127\.0\.0\.1.*nothing was sent"):
        Webhook.parse(given).deliver(linked(tmp_path))
    assert receiver.requests == []


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]"])
def test_this_machine_is_no_target_however_it_is_written(receiver, tmp_path, host):
    with pytest.raises(PermanentError, match="nothing was sent"):
        Webhook.parse({"webhook_url": receiver.url(host), "secret": "env:HOOK_SECRET"}).deliver(linked(tmp_path))
    assert receiver.requests == []


INSIDE = ["10.1.2.3", "172.16.0.1", "192.168.1.1", "127.9.9.9", "100.64.0.1", "fd00::1", "::1", "::127.0.0.1", "240.0.0.1"]
INSIDE += ["64:ff9b::10.0.0.1", "2002:0a00:0001::1", "::ffff:192.168.0.1", "fec0::1", "198.18.0.1"]
NEVER = [
    "169.254.169.254",
    "168.63.129.16",
    "100.100.100.200",
    "fe80::1",
    "fd00:ec2::254",
    "0.0.0.0",
    "::",
    "224.0.0.1",
    "ff02::1",
]
NEVER += ["::ffff:169.254.169.254", "64:ff9b::169.254.169.254"]


@pytest.mark.parametrize("address", [*INSIDE, *NEVER])
def test_inner_addresses_are_refused(address):
    assert refusal(ipaddress.ip_address(address), Allowances())


@pytest.mark.parametrize("address", NEVER)
def test_metadata_and_link_local_addresses_are_refused_even_where_private_ones_are_allowed(address):
    assert refusal(ipaddress.ip_address(address), HERE)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "64:ff9b::93.184.216.34"])
def test_public_addresses_are_targets(address):
    assert refusal(ipaddress.ip_address(address), Allowances()) == ""


@pytest.mark.parametrize(
    "url", ["http://example.com/hook", "ftp://example.com", "https://", "https://u:p@example.com/", "https://exämple.com", "hook"]
)
def test_an_address_that_is_no_target_is_refused_when_it_is_set(url):
    with pytest.raises(PermanentError) as refused:
        Webhook.parse({"webhook_url": url, "secret": "env:HOOK_SECRET"})
    assert "u:p" not in str(refused.value)


def test_the_address_itself_may_be_a_reference(receiver, authority, tmp_path, monkeypatch):
    monkeypatch.setenv("HOOK_URL", receiver.url())
    webhook(receiver, authority, webhookUrl="env:HOOK_URL").deliver(linked(tmp_path))
    assert len(receiver.accepted) == 1


def test_both_keys_sign_while_the_receiver_changes_its_key(receiver, authority, tmp_path, monkeypatch):
    monkeypatch.setenv("NEW_SECRET", "whsec_" + base64.b64encode(b"n" * 32).decode())
    hook = webhook(receiver, authority, secret="env:NEW_SECRET", previous_secret="env:HOOK_SECRET")
    hook.deliver(linked(tmp_path))
    assert len(receiver.accepted) == 1


@pytest.mark.parametrize("secret", ["not base64 at all!", "whsec_c2hvcnQ=", "whsec_" + base64.b64encode(b"x" * 65).decode()])
def test_a_key_that_the_library_would_take_but_is_none_is_refused_without_showing_it(
    receiver, authority, tmp_path, monkeypatch, secret
):
    monkeypatch.setenv("HOOK_SECRET", secret)
    with pytest.raises(PermanentError, match="env:HOOK_SECRET") as refused:
        webhook(receiver, authority).deliver(linked(tmp_path))
    assert secret not in str(refused.value)


def test_a_secret_in_place_of_a_reference_is_refused_without_showing_it():
    with pytest.raises(UsageError, match="env:NAME or file:PATH") as refused:
        Webhook.parse({"webhook_url": "https://example.com/hook", "secret": SECRET})
    assert SECRET not in str(refused.value)


def test_an_unknown_setting_is_refused_and_the_known_are_listed():
    with pytest.raises(UsageError, match=r"unknown setting 'sekret'; known settings are webhook_url, secret"):
        Webhook.parse({"webhook_url": "https://example.com/hook", "sekret": "env:X"})


def test_a_webhook_without_a_link_is_an_error_and_not_an_event_without_a_file(receiver, authority, tmp_path):
    with pytest.raises(PermanentError, match="only a link"):
        webhook(receiver, authority).deliver(delivery_of(tmp_path))
    assert receiver.requests == []


def test_a_link_expiry_in_another_zone_is_sent_in_utc(receiver, authority, tmp_path):
    expires = datetime(2026, 1, 3, 7, tzinfo=ZoneInfo("Europe/Berlin")) + timedelta(minutes=30)
    webhook(receiver, authority).deliver(delivery_of(tmp_path, link=Link("https://x.example/", expires)))
    assert receiver.accepted[0]["expiresAt"] == "2026-01-03T06:30:00Z"


def test_a_receiver_that_said_yes_and_then_stalls_has_it_and_gets_no_second(receiver, authority, tmp_path):
    done = threading.Event()

    def half(handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b"x")
        done.wait(10)

    receiver.script = [half]
    begun = time.monotonic()
    try:
        assert webhook(receiver, authority, timeout_seconds=0.5).deliver(linked(tmp_path)).attempts == 1
    finally:
        done.set()
    assert (len(receiver.requests), time.monotonic() - begun < 3) == (1, True)


def test_a_receiver_that_hangs_up_without_an_answer_is_tried_again(receiver, authority, tmp_path):
    receiver.script = [lambda handler: handler.connection.shutdown(socket.SHUT_RDWR)]
    assert webhook(receiver, authority).deliver(linked(tmp_path)).attempts == 2


def test_no_error_carries_the_address_or_the_key_into_a_log(receiver, authority, tmp_path):
    receiver.script = [lambda handler: handler.connection.shutdown(socket.SHUT_RDWR)]
    with pytest.raises(TransientError) as failure:
        webhook(receiver, authority, attempts=1).deliver(linked(tmp_path))
    shown = "".join(traceback.format_exception(failure.value))
    assert "7f3a-private" not in shown and "in-the-address" not in shown and SECRET not in shown


def test_settings_hold_no_address_that_a_log_would_show(receiver, authority):
    assert "7f3a-private" not in repr(webhook(receiver, authority))
