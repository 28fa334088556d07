"""E-mail against aiosmtpd with TLS: real conversations, real certificates, real refusals (correction 41)."""

from __future__ import annotations

import email
import logging
import socket
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import default
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

from tests.exports.delivery_data import ROWS, Authority, delivery_of
from tokentra_dagster.errors import PermanentError, TransientError, UsageError
from tokentra_dagster.exports.destinations.base import Allowances, Link
from tokentra_dagster.exports.destinations.smtp import Mailbox

PASSWORD = "correct horse battery"
LINK = Link("https://bucket.example/usage.csv?a=1&b=2", datetime(2026, 1, 3, 6, tzinfo=UTC), "https://bucket.example/manifest")


class Post:
    """Takes letters. `replies` are said to RCPT of an address, one after the other; `data` to the letters."""

    def __init__(self) -> None:
        self.letters: list[tuple[list[str], EmailMessage]] = []
        self.encrypted: list[bool] = []
        self.replies: dict[str, list[str]] = {}
        self.data: list[str] = []
        self.port = 0

    async def handle_RCPT(self, server, session, envelope, address, options):
        waiting = self.replies.get(address, [])
        reply = waiting.pop(0) if waiting else "250 OK"
        if reply.startswith("250"):
            envelope.rcpt_tos.append(address)
        return reply

    async def handle_DATA(self, server, session, envelope):
        if self.data:
            return self.data.pop(0)
        self.encrypted.append(server.transport.get_extra_info("ssl_object") is not None)
        self.letters.append((envelope.rcpt_tos, email.message_from_bytes(envelope.content, policy=default)))
        return "250 taken"


def accept_login(server, session, envelope, mechanism, data) -> AuthResult:
    good = (data.login, data.password) == (b"usage", PASSWORD.encode())
    return AuthResult(success=good, handled=False)


@contextmanager
def serving(post: Post, **options: object):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        post.port = free.getsockname()[1]
    controller = Controller(post, hostname="127.0.0.1", port=post.port, **options)
    controller.start()
    try:
        yield post
    finally:
        controller.stop()


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority.made_in(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def post(authority, monkeypatch):
    """A server that wants STARTTLS and a login."""
    monkeypatch.setenv("MAIL_PASSWORD", PASSWORD)
    context = authority.server_side("localhost")
    with serving(Post(), tls_context=context, require_starttls=True, auth_required=True, authenticator=accept_login) as post:
        yield post


def settings(post: Post, authority: Authority, **changes: object) -> dict[str, object]:
    return {
        "email": "finance@example.com, lead@example.com",
        "sender": "usage@acme.example",
        "host": "localhost",
        "port": post.port,
        "username": "usage",
        "password": "env:MAIL_PASSWORD",
        "ca_file": str(authority.file),
        "timeout_seconds": 5,
        "first_pause_seconds": 0.01,
        **changes,
    }


def mailbox(post: Post, authority: Authority, **changes: object) -> Mailbox:
    return Mailbox.parse(settings(post, authority, **changes))


def test_a_small_export_arrives_attached_with_its_manifest_in_text_and_html_over_tls(post, authority, tmp_path):
    delivery = delivery_of(tmp_path)
    delivered = mailbox(post, authority).deliver(delivery)
    [(recipients, letter)] = post.letters
    assert post.encrypted == [True]
    assert recipients == ["finance@example.com", "lead@example.com"]
    assert letter["Subject"] == ("Usage export acme: Daily usage, 2026-01-01T00:00:00+00:00 to 2026-01-02T00:00:00+00:00")
    attached = {part.get_filename(): part.get_payload(decode=True) for part in letter.iter_attachments()}
    assert attached == {path.name: path.read_bytes() for path in delivery.all_files}
    for kind in ("plain", "html"):
        body = letter.get_body((kind,)).get_content()
        assert "acme" in body and delivery.facts.sha256 in body and str(len(ROWS)) in body
    assert letter["Message-ID"] == delivered.message_id == "<exp_0190_2026-01-01@acme.example>"
    assert letter["Date"].datetime == delivery.time
    assert (delivered.where, delivered.refused) == ("mailto:finance@example.com,lead@example.com", ())


def test_correction_41_the_specifications_way_writes_a_log_line_and_nothing_arrives(post, authority, tmp_path, caplog):
    def specifications_way(address: str, link: str) -> None:
        """Section 12 `sendEmailDelivery`."""
        logging.getLogger("export").warning("Would send email to %s with download link: %s", address, link)

    specifications_way("finance@example.com", LINK.url)
    assert "Would send" in caplog.text and post.letters == []
    mailbox(post, authority).deliver(delivery_of(tmp_path))
    assert len(post.letters) == 1


def test_a_large_export_is_a_link_with_its_expiry(post, authority, tmp_path):
    delivery = delivery_of(tmp_path, link=LINK)
    mailbox(post, authority, attach_bytes=len(ROWS)).deliver(delivery)
    [(_, letter)] = post.letters
    assert list(letter.iter_attachments()) == []
    text, page = (letter.get_body((kind,)).get_content() for kind in ("plain", "html"))
    assert LINK.url in text and "2026-01-03T06:00:00+00:00" in text and LINK.manifest_url in text
    assert '<a href="https://bucket.example/usage.csv?a=1&amp;b=2">' in page


def test_a_large_export_without_a_link_is_an_error_and_no_letter_without_files(post, authority, tmp_path):
    with pytest.raises(PermanentError, match=r"larger than attach_bytes \(10\)"):
        mailbox(post, authority, attach_bytes=10).deliver(delivery_of(tmp_path))
    assert post.letters == []


def test_a_repeat_has_the_same_message_id_and_the_same_text(post, authority, tmp_path):
    box, delivery = mailbox(post, authority), delivery_of(tmp_path)
    assert box.deliver(delivery) == box.deliver(delivery)
    first, second = (letter for _, letter in post.letters)
    assert first["Message-ID"] == second["Message-ID"]
    assert first.get_body(("plain",)).get_content() == second.get_body(("plain",)).get_content()


def test_a_refused_recipient_is_reported_while_the_others_get_it(post, authority, tmp_path):
    post.replies["lead@example.com"] = ["550 no such user here"]
    delivered = mailbox(post, authority).deliver(delivery_of(tmp_path))
    assert [recipients for recipients, _ in post.letters] == [["finance@example.com"]]
    [refused] = delivered.refused
    assert (delivered.where, refused.recipient) == ("mailto:finance@example.com", "lead@example.com")
    assert refused.reason == "550 no such user here"


def test_a_recipient_put_off_is_tried_again_alone(post, authority, tmp_path):
    post.replies["lead@example.com"] = ["451 greylisted, come back"]
    delivered = mailbox(post, authority).deliver(delivery_of(tmp_path))
    assert [recipients for recipients, _ in post.letters] == [["finance@example.com"], ["lead@example.com"]]
    assert len({letter["Message-ID"] for _, letter in post.letters}) == 1
    assert (delivered.attempts, delivered.refused) == (2, ())


def test_when_every_recipient_is_refused_it_fails_at_once_and_names_them(post, authority, tmp_path):
    post.replies = {"finance@example.com": ["550 gone"] * 9, "lead@example.com": ["551 moved"] * 9}
    with pytest.raises(PermanentError, match=r"finance@example\.com \(550 gone\), lead@example\.com \(551 moved\)"):
        mailbox(post, authority).deliver(delivery_of(tmp_path))
    assert len(post.replies["lead@example.com"]) == 8


def test_when_the_server_hangs_up_in_between_nobody_counts_as_served(post, authority, tmp_path):
    # The library names only the recipient at whom the server said 421, although nobody got the letter.
    post.replies["lead@example.com"] = ["421 going down"]
    delivered = mailbox(post, authority).deliver(delivery_of(tmp_path))
    assert [recipients for recipients, _ in post.letters] == [["finance@example.com", "lead@example.com"]]
    assert (delivered.attempts, delivered.refused) == (2, ())


def test_a_letter_put_off_is_tried_again_and_the_retries_end(post, authority, tmp_path):
    post.data = ["452 disk full"]
    assert mailbox(post, authority).deliver(delivery_of(tmp_path)).attempts == 2
    post.data = ["452 disk full"] * 9
    with pytest.raises(TransientError, match="452 disk full"):
        mailbox(post, authority, attempts=3).deliver(delivery_of(tmp_path))
    assert (len(post.letters), len(post.data)) == (1, 6)


def test_a_letter_refused_for_good_is_not_tried_again(post, authority, tmp_path):
    post.data = ["554 looks like spam"] * 2
    with pytest.raises(PermanentError, match="554 looks like spam"):
        mailbox(post, authority).deliver(delivery_of(tmp_path))
    assert len(post.data) == 1


def test_a_wrong_password_is_permanent_and_in_no_error(post, authority, tmp_path, monkeypatch):
    monkeypatch.setenv("MAIL_PASSWORD", "wrong-but-secret")
    with pytest.raises(
        PermanentError, match="did not accept the login; check username and what env:MAIL_PASSWORD holds"
    ) as failure:
        mailbox(post, authority).deliver(delivery_of(tmp_path))
    assert "wrong-but-secret" not in str(failure.value)
    assert failure.value.__context__ is None


def test_a_server_without_starttls_gets_neither_login_nor_letter(authority, tmp_path, monkeypatch):
    monkeypatch.setenv("MAIL_PASSWORD", PASSWORD)
    with serving(Post()) as plain:
        with pytest.raises(PermanentError, match=r"STARTTLS.*nothing was sent"):
            mailbox(plain, authority).deliver(delivery_of(tmp_path))
        assert plain.letters == []


def test_a_certificate_of_an_unknown_authority_gets_no_letter(post, authority, tmp_path):
    with pytest.raises(PermanentError, match="certificate of localhost"):
        mailbox(post, authority, ca_file=None).deliver(delivery_of(tmp_path))
    with pytest.raises(PermanentError, match=r"certificate of 127\.0\.0\.1"):
        mailbox(post, authority, host="127.0.0.1").deliver(delivery_of(tmp_path))
    assert post.letters == []


def test_tls_from_the_first_byte(authority, tmp_path):
    with serving(Post(), ssl_context=authority.server_side("127.0.0.1")) as post:
        given = settings(post, authority, security="tls", host="127.0.0.1", username=None, password=None)
        Mailbox.parse(given).deliver(delivery_of(tmp_path))
        assert (post.encrypted, len(post.letters)) == ([True], 1)


def test_a_server_that_stalls_is_given_up_in_time(authority, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        post = Post()
        post.port = silent.getsockname()[1]
        box = mailbox(post, authority, timeout_seconds=0.3, attempts=2, username=None, password=None)
        with pytest.raises(TransientError, match=r"did not answer within 0\.3 s"):
            box.deliver(delivery_of(tmp_path))


def test_names_with_line_breaks_add_no_header_and_no_html(post, authority, tmp_path):
    delivery = delivery_of(tmp_path)
    evil = "Daily\r\nBcc: everyone@example.com\r\n\r\n<script>alert(1)</script>\u2028x"
    mailbox(post, authority).deliver(replace(delivery, facts=replace(delivery.facts, export_name=evil, organisation="a\nb")))
    [(recipients, letter)] = post.letters
    assert letter["Bcc"] is None and recipients == ["finance@example.com", "lead@example.com"]
    assert "Daily Bcc: everyone@example.com <script>alert(1)</script> x" in letter["Subject"]
    assert "<script>" not in letter.get_body(("html",)).get_content()


def test_names_in_other_scripts_survive(post, authority, tmp_path):
    delivery = delivery_of(tmp_path, name="Verbräuche 消費.csv")
    mailbox(post, authority).deliver(replace(delivery, facts=replace(delivery.facts, organisation="Müller & Söhne 株式会社")))
    [(_, letter)] = post.letters
    assert "Müller & Söhne 株式会社" in letter["Subject"]
    assert next(letter.iter_attachments()).get_filename() == "Verbräuche 消費.csv"
    assert "Müller &amp; Söhne" in letter.get_body(("html",)).get_content()


@pytest.mark.parametrize(
    "address",
    [
        "a@b@c",
        "no-at",
        "a b@example.com",
        "a@exa mple.com",
        "a@x.com\r\nRCPT TO:<e@x.com>",
        "<a@x.com>",
        "a@-x.com",
        "ü@x.com",
        "a..b@x.com",
    ],
)
def test_an_address_that_is_none_is_refused_when_it_is_set(address):
    given = {"email": [address], "sender": "usage@acme.example", "host": "smtp.example.com"}
    with pytest.raises(UsageError, match=r"email has .* no e-mail address"):
        Mailbox.parse(given)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"security": "none"}, "it must be one of starttls, tls"),
        ({"password": None}, "belong together"),
        ({"password": "hunter2"}, "env:NAME or file:PATH"),
        ({"to": "x@example.com"}, "unknown setting 'to'; known settings are email, sender"),
        ({"email": ""}, "must be a list or text"),
        ({"port": 0}, "from 1 to 65535"),
        ({"host": "smtp example"}, "host name"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_sentence(wrong, said):
    given = {
        "email": "a@example.com",
        "sender": "usage@acme.example",
        "host": "smtp.example.com",
        "username": "u",
        "password": "env:P",
    }
    with pytest.raises(UsageError) as refused:
        Mailbox.parse({**given, **wrong})
    assert said in str(refused.value) and "hunter2" not in str(refused.value)


def test_a_login_never_goes_over_a_plain_connection_even_where_plain_text_is_allowed():
    given = {
        "email": "a@example.com",
        "sender": "u@acme.example",
        "host": "h",
        "username": "u",
        "password": "env:P",
        "security": "none",
    }
    with pytest.raises(UsageError, match="send the login unprotected"):
        Mailbox.parse(given, Allowances(plain_text=True))


def test_the_password_may_be_in_a_file(post, authority, tmp_path: Path):
    (tmp_path / "password").write_text(PASSWORD + "\n")
    mailbox(post, authority, password=f"file:{tmp_path / 'password'}").deliver(delivery_of(tmp_path))
    assert len(post.letters) == 1


def test_a_file_without_certificates_is_named(post, authority, tmp_path):
    (tmp_path / "empty.pem").write_text("nothing")
    with pytest.raises(PermanentError, match=r"certificates in .*empty\.pem cannot be read"):
        mailbox(post, authority, ca_file=str(tmp_path / "empty.pem")).deliver(delivery_of(tmp_path))


def test_a_server_that_hangs_up_after_it_took_the_letter_gets_no_second(authority, tmp_path):
    class HangsUp(Post):
        async def handle_QUIT(self, server, session, envelope):
            server.transport.abort()
            return "221 never heard"

    with serving(HangsUp(), tls_context=authority.server_side("localhost"), require_starttls=True) as post:
        box = mailbox(post, authority, username=None, password=None)
        assert box.deliver(delivery_of(tmp_path)).attempts == 1
        assert len(post.letters) == 1
