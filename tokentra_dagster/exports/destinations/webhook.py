"""Signed events over HTTPS: Standard Webhooks (https://www.standardwebhooks.com), event `export.completed`.

The event has the specification's fields (section 12, `sendWebhook`) and more beside them. `webhook-id` is the delivery's message
id in every attempt and every later repeat, so a receiver keeps the ids it has handled and drops a repeat.
"""

from __future__ import annotations

import base64
import binascii
import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpcore2
from standardwebhooks import Webhook as Signer

from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.exports.destinations.base import SAFE, USUAL_RETRIES, Allowances, Delivered, Delivery, Retries
from tokentra_dagster.exports.destinations.certificates import trusting
from tokentra_dagster.exports.destinations.fields import Fields
from tokentra_dagster.exports.destinations.targets import PinnedBackend, Target, addresses_of, target_of
from tokentra_dagster.providers.failures import retry_after
from tokentra_dagster.secret_references import is_reference, resolve_secret

KNOWN = (
    "webhook_url",
    "secret",
    "previous_secret",
    "timeout_seconds",
    "attempts",
    "first_pause_seconds",
    "longest_pause_seconds",
    "ca_file",
    "store",
)
EVENT = "export.completed"
_TRANSIENT_STATUS = frozenset((408, 425, 429))
_MOST_OF_ANSWER = 64 * 1024
"""Bytes of the answer's body that we read, to let the receiver finish; none of it is used."""
_TIMED_OUT = (httpcore2.TimeoutException,)
_BROKE_OFF = (httpcore2.NetworkError, httpcore2.ProtocolError, OSError)


@dataclass(frozen=True, slots=True)
class Webhook:
    """`url` is an address or, where the address itself is a secret, a reference. `secret` refers to a `whsec_...` key."""

    url: str = field(repr=False)
    secret: str
    previous_secret: str | None = None
    """While the receiver changes to a new key: both sign."""
    timeout_seconds: float = 30.0
    """For one attempt as a whole, from connecting to the answer."""
    retries: Retries = USUAL_RETRIES
    ca_file: Path | None = None
    allowances: Allowances = SAFE

    @classmethod
    def parse(cls, given: Mapping[str, Any], allowances: Allowances = SAFE) -> Webhook:
        fields = Fields("webhook", given, KNOWN)
        url = fields.text("webhook_url", example="https://example.com/hook")
        if not is_reference(url):
            target_of(url, allowances)
        return cls(
            url=url,
            secret=fields.required_reference("secret"),
            previous_secret=fields.reference("previous_secret"),
            timeout_seconds=fields.number("timeout_seconds", 30.0, 0.1, 300),
            retries=Retries(
                attempts=fields.whole("attempts", 4, 1, 10),
                first_pause=fields.number("first_pause_seconds", 1.0, 0, 60),
                longest_pause=fields.number("longest_pause_seconds", 60.0, 0, 600),
            ),
            ca_file=fields.file("ca_file"),
            allowances=allowances,
        )

    def needs_link(self, delivery: Delivery) -> bool:
        return True

    def deliver(self, delivery: Delivery) -> Delivered:
        if delivery.link is None:
            raise PermanentError("A webhook carries no file, only a link to it; give the webhook a store (s3) for the files.")
        delivery.check_files()
        return self.send(delivery.message_id, event_of(delivery))

    def send(self, message_id: str, event: Mapping[str, Any]) -> Delivered:
        """Send any event, signed and retried. Raises `PermanentError` or `TransientError`."""
        target = target_of(resolve_secret(self.url) if is_reference(self.url) else self.url, self.allowances)
        signers = [_signer(reference) for reference in (self.secret, self.previous_secret) if reference]
        body = json.dumps(event, ensure_ascii=False, separators=(",", ":"), allow_nan=False)

        def attempt(number: int) -> Delivered:
            self._post(target, message_id, body, signers)
            return Delivered(target.shown, message_id, attempts=number)

        return self.retries.run(attempt)

    def _post(self, target: Target, message_id: str, body: str, signers: list[Signer]) -> None:
        # The receiver refuses an old timestamp, so each attempt is signed anew. In UTC: the library drops any other zone.
        sent_at = datetime.now(UTC)
        headers = {
            "Host": target.shown.partition("://")[2],
            "Content-Type": "application/json",
            "User-Agent": "tokentra-usage",
            "Connection": "close",
            "Accept-Encoding": "identity",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(sent_at.timestamp())),
            "webhook-signature": " ".join(signer.sign(message_id, sent_at, body) for signer in signers),
        }
        status, wait = self._ask(target, headers, body.encode())
        if 200 <= status < 300:
            return
        said = f"The webhook {target.shown} answered HTTP {status}"
        if status in _TRANSIENT_STATUS or status >= 500:
            when = f"wait {wait:g} s before trying again" if wait is not None else "it is tried again"
            raise TransientError(f"{said}; {when}.", retry_after=wait)
        if 300 <= status < 400:
            raise PermanentError(f"{said}, a redirect, and redirects are not followed; give the final address.")
        if status == 410:
            raise PermanentError(f"{said}: the receiver wants no more events; remove or pause this export.")
        raise PermanentError(f"{said}; check the address, and that the receiver has the same secret.")

    def _ask(self, target: Target, headers: dict[str, str], body: bytes) -> tuple[int, float | None]:
        """Status, and the seconds of Retry-After. The answer's body is drained within bounds and dropped."""
        deadline = time.monotonic() + self.timeout_seconds
        backend = PinnedBackend(addresses_of(target, self.allowances), deadline)
        tls = trusting(self.ca_file)
        failure: Exception | None = None
        try:
            with (
                httpcore2.ConnectionPool(ssl_context=tls, network_backend=backend) as pool,
                pool.stream("POST", _sendable(target), headers=list(headers.items()), content=body) as answer,
            ):
                _drain(answer)
                named = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in answer.headers}
                return answer.status, retry_after(named)
        except _TIMED_OUT:
            failure = TransientError(
                f"The webhook {target.shown} did not answer within {self.timeout_seconds:g} s; it is tried again, or raise timeout_seconds."
            )
        except _BROKE_OFF as error:
            failure = _broken(target, error)
        # Outside the handlers: the original error may hold the address.
        raise failure


def event_of(delivery: Delivery) -> dict[str, Any]:
    """The event as JSON: the specification's five fields, then what proves completeness."""
    facts, link = delivery.facts, delivery.link
    return {
        "event": EVENT,
        "fileName": delivery.files[0].name,
        "downloadUrl": link.url if link else None,
        "expiresAt": _instant(link.expires_at) if link else None,
        "rowCount": facts.rows,
        "type": EVENT,
        "timestamp": _instant(delivery.time),
        "messageId": delivery.message_id,
        "organisation": facts.organisation,
        "exportName": facts.export_name,
        "periodStart": _instant(facts.period_start),
        "periodEnd": _instant(facts.period_end),
        "fileSize": facts.size_bytes,
        "sha256": facts.sha256,
        "manifestUrl": link.manifest_url if link else None,
    }


def _instant(time: datetime) -> str:
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _sendable(target: Target) -> str:
    """The address without its fragment, which is never sent."""
    return urlsplit(target.url)._replace(fragment="").geturl()


def _signer(reference: str) -> Signer:
    """Raises `PermanentError` for what the library would take without a word: it skips every character that is not base64."""
    key = resolve_secret(reference).removeprefix("whsec_")
    try:
        raw = base64.b64decode(key + "=" * (-len(key) % 4), validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if not 24 <= len(raw) <= 64:
        raise PermanentError(
            f"The webhook's secret at {reference} must be whsec_ and the base64 of 24 to 64 random bytes, "
            "as Standard Webhooks asks; make a new one for sender and receiver."
        )
    return Signer(raw)


def _drain(answer: httpcore2.Response) -> None:
    # The status already says how it went. A receiver that is cut off while it still writes may count that as a failure.
    read = 0
    try:
        for piece in answer.iter_stream():
            read += len(piece)
            if read > _MOST_OF_ANSWER:
                return
    except (*_TIMED_OUT, *_BROKE_OFF):
        return


def _broken(target: Target, error: BaseException) -> Exception:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return PermanentError(
                f"The certificate of the webhook {target.shown} was not accepted ({cause.verify_message}); check the address or ca_file."
            )
        cause = cause.__cause__ or cause.__context__
    return TransientError(
        f"The webhook {target.shown} could not be reached or broke off ({type(error).__name__}); it is tried again."
    )
