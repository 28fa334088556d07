"""E-mail over SMTP, with TLS that is verified. Some recipients may be refused while others get it: that is reported, not hidden."""

from __future__ import annotations

import re
import smtplib
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.exports.destinations.base import (
    SAFE,
    USUAL_RETRIES,
    Allowances,
    Delivered,
    Delivery,
    RefusedRecipient,
    Retries,
    clean_text,
)
from tokentra_dagster.exports.destinations.certificates import trusting
from tokentra_dagster.exports.destinations.fields import Fields
from tokentra_dagster.exports.destinations.letter import letter_of
from tokentra_dagster.secret_references import resolve_secret

KNOWN = (
    "email",
    "sender",
    "host",
    "port",
    "security",
    "username",
    "password",
    "attach_bytes",
    "timeout_seconds",
    "attempts",
    "first_pause_seconds",
    "longest_pause_seconds",
    "ca_file",
    "store",
)
_PORTS = {"starttls": 587, "tls": 465, "none": 25}
# The dot-atom of RFC 5321; quoted local parts are left out on purpose, they serve attackers more than people.
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ADDRESS = re.compile(rf"(?=.{{3,254}}\Z)(?=[^@]{{1,64}}@){_ATOM}(?:\.{_ATOM})*@{_LABEL}(?:\.{_LABEL})*")
_LONGEST_QUOTE = 300
Replies = dict[str, tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class Mailbox:
    """`security`: starttls (the server must offer it), tls (from the first byte), or none where the operator allows it."""

    recipients: tuple[str, ...]
    sender: str
    host: str
    port: int
    security: str = "starttls"
    username: str | None = None
    password: str | None = None
    """A reference."""
    attach_bytes: int = 10_000_000
    """The files are attached up to this size in total, before base64 makes them a third larger; 0 always sends a link."""
    timeout_seconds: float = 60.0
    """For each answer of the server."""
    retries: Retries = USUAL_RETRIES
    ca_file: Path | None = None

    @classmethod
    def parse(cls, given: Mapping[str, Any], allowances: Allowances = SAFE) -> Mailbox:
        fields = Fields("email", given, KNOWN)
        security = fields.one_of(
            "security", "starttls", ("starttls", "tls", "none") if allowances.plain_text else ("starttls", "tls")
        )
        username, password = fields.text("username", "") or None, fields.reference("password")
        if (username is None) != (password is None):
            raise fields.wrong("username", "and password (a reference) belong together; give both or neither")
        if username and security == "none":
            raise fields.wrong("security", "is 'none', which would send the login unprotected; use starttls or tls")
        host = fields.text("host", example="smtp.example.com")
        if not re.fullmatch(r"[A-Za-z0-9.:-]+", host):
            raise fields.wrong("host", f"is {host!r}; it must be a host name or address")
        recipients = fields.texts("email", "finance@example.com")
        for address in recipients:
            _check_address(fields, "email", address)
        sender = fields.text("sender", example="usage@example.com")
        _check_address(fields, "sender", sender)
        return cls(
            recipients=recipients,
            sender=sender,
            host=host,
            port=fields.whole("port", _PORTS[security], 1, 65535),
            security=security,
            username=username,
            password=password,
            attach_bytes=fields.whole("attach_bytes", 10_000_000, 0, 100_000_000),
            timeout_seconds=fields.number("timeout_seconds", 60.0, 0.1, 600),
            retries=fields.retries(),
            ca_file=fields.file("ca_file"),
        )

    def needs_link(self, delivery: Delivery) -> bool:
        return sum(path.stat().st_size for path in delivery.all_files if path.is_file()) > self.attach_bytes

    def deliver(self, delivery: Delivery) -> Delivered:
        delivery.check_files()
        too_large = self.needs_link(delivery)
        if too_large and delivery.link is None:
            raise PermanentError(
                f"The files of {delivery.files[0].name} are larger than attach_bytes ({self.attach_bytes}) and there is no link; "
                "give the e-mail a store (s3) for the files, or raise attach_bytes."
            )
        return self.send(letter_of(delivery, self.sender, self.recipients, attach=not too_large))

    def send(self, letter: EmailMessage) -> Delivered:
        """Send any letter with a `Message-ID` to all recipients, retried for those who have not got it. Raises only if nobody gets it."""
        waiting = list(self.recipients)
        accepted: list[str] = []
        refused: dict[str, RefusedRecipient] = {}

        attempts = 0

        def attempt(number: int) -> None:
            nonlocal attempts
            attempts = number
            replies = self._ask(letter, waiting)
            accepted.extend(address for address in waiting if address not in replies)
            for address, (code, said) in replies.items():
                refused[address] = RefusedRecipient(address, self._quote(code, said))
            # A 4xx reply is "not now" (greylisting, a full mailbox), 5xx is "never".
            waiting[:] = [address for address, (code, _) in replies.items() if 400 <= code < 500]
            if waiting:
                raise TransientError(
                    f"{self._server} put off {_listed(refused[address] for address in waiting)}; it is tried again."
                )

        try:
            self.retries.run(attempt)
        except (TransientError, PermanentError) as failure:
            if not accepted:
                raise
            for address in waiting:
                refused.setdefault(address, RefusedRecipient(address, str(failure)))
        if not accepted:
            raise PermanentError(f"{self._server} refused every recipient: {_listed(refused.values())}; correct the addresses.")
        still = tuple(refused[address] for address in self.recipients if address in refused and address not in accepted)
        got = ",".join(address for address in self.recipients if address in accepted)
        return Delivered(f"mailto:{got}", str(letter["Message-ID"]), attempts=attempts, refused=still)

    @property
    def _server(self) -> str:
        return f"The mail server {self.host}:{self.port}"

    def _ask(self, letter: EmailMessage, recipients: Sequence[str]) -> Replies:
        """One conversation. The replies for those who were refused; the others were accepted."""
        secret = resolve_secret(self.password) if self.password else None
        tls = trusting(self.ca_file)
        failure: Exception | None = None
        try:
            return self._talk(letter, recipients, secret, tls)
        except smtplib.SMTPRecipientsRefused as error:
            # After a 421 the library stops asking, and names only those asked so far: nobody else got the letter either.
            return {address: error.recipients.get(address, (421, b"not sent")) for address in recipients}
        except Exception as error:
            failure = self._translate(error, secret)
        # Outside the handler: the original error may hold what was sent for the login.
        raise failure

    def _talk(self, letter: EmailMessage, recipients: Sequence[str], secret: str | None, tls: ssl.SSLContext) -> Replies:
        if self.security == "tls":
            server: smtplib.SMTP = smtplib.SMTP_SSL(self.host, self.port, timeout=self.timeout_seconds, context=tls)
        else:
            server = smtplib.SMTP(self.host, self.port, timeout=self.timeout_seconds)
        try:
            if self.security == "starttls":
                server.starttls(context=tls)
            if self.username and secret:
                server.login(self.username, secret)
            refused = server.send_message(letter, self.sender, list(recipients))
        except BaseException:
            server.close()
            raise
        # It is accepted by now: a server that hangs up instead of saying good-bye must not cause a second letter.
        try:
            server.quit()
        except (smtplib.SMTPException, OSError):
            server.close()
        return refused

    def _translate(self, error: Exception, secret: str | None) -> Exception:
        if isinstance(error, smtplib.SMTPNotSupportedError):
            return PermanentError(
                f"{self._server} does not offer what is needed ({error}); nothing was sent. Use a server with TLS, or correct security."
            )
        if isinstance(error, smtplib.SMTPAuthenticationError) and error.smtp_code >= 500:
            return PermanentError(f"{self._server} did not accept the login; check username and what {self.password} holds.")
        if isinstance(error, smtplib.SMTPResponseException):
            reply = self._quote(error.smtp_code, error.smtp_error, secret)
            if 500 <= error.smtp_code < 600:
                return PermanentError(f"{self._server} refused the letter: {reply}; correct what it names.")
            return TransientError(f"{self._server} put the letter off: {reply}; it is tried again.")
        if isinstance(error, ssl.SSLCertVerificationError):
            return PermanentError(
                f"The certificate of {self.host}:{self.port} was not accepted ({error.verify_message}); check host or ca_file."
            )
        # The library reports a time-out while it waits for an answer as a connection that was closed.
        if isinstance(error, TimeoutError) or isinstance(error.__context__, TimeoutError):
            return TransientError(f"{self._server} did not answer within {self.timeout_seconds:g} s; it is tried again.")
        if isinstance(error, (OSError, smtplib.SMTPException)):
            return TransientError(
                f"{self._server} could not be reached or hung up ({type(error).__name__}); check host, port and security."
            )
        return PermanentError(f"{self._server} could not be used ({type(error).__name__}); check host, port and security.")

    def _quote(self, code: int, said: bytes | str, secret: str | None = None) -> str:
        text = clean_text(said.decode("utf-8", "replace") if isinstance(said, bytes) else said)
        if secret:
            text = text.replace(secret, "[secret]")
        return f"{code} {text}"[:_LONGEST_QUOTE]


def _check_address(fields: Fields, name: str, address: str) -> None:
    if not _ADDRESS.fullmatch(address):
        raise fields.wrong(
            name, f"has {address!r}, which is no e-mail address such as finance@example.com (ASCII, no name around it)"
        )


def _listed(refused: Any) -> str:
    return ", ".join(f"{one.recipient} ({one.reason})" for one in refused)
