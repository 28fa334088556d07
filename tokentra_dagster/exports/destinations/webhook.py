"""Signed events over HTTPS: Standard Webhooks (https://www.standardwebhooks.com), event `export.completed`.

The event has the specification's fields (section 12, `sendWebhook`) and more beside them. `webhook-id` is the delivery's message
id in every attempt and every later repeat, so a receiver keeps the ids it has handled and drops a repeat.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from standardwebhooks import Webhook as Signer

from tokentra_dagster.errors import PermanentError
from tokentra_dagster.exports.destinations.base import SAFE, USUAL_RETRIES, Allowances, Delivered, Delivery, Retries
from tokentra_dagster.exports.destinations.fields import Fields
from tokentra_dagster.exports.destinations.post import post
from tokentra_dagster.exports.destinations.targets import Target, target_of
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
            retries=fields.retries(),
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
            "webhook-id": message_id,
            "webhook-timestamp": str(int(sent_at.timestamp())),
            "webhook-signature": " ".join(signer.sign(message_id, sent_at, body) for signer in signers),
        }
        post(target, headers, body.encode(), self.timeout_seconds, self.allowances, self.ca_file)


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
