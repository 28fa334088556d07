"""Slack's incoming webhooks, and what is compatible with them: JSON with `text` and `blocks`, unsigned (the address is the secret).

https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks. Slack knows no id of a message: a repeat cannot be told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokentra_dagster.exports.destinations.base import SAFE, USUAL_RETRIES, Allowances, Delivered, Retries
from tokentra_dagster.exports.destinations.fields import Fields
from tokentra_dagster.exports.destinations.post import post
from tokentra_dagster.exports.destinations.targets import target_of
from tokentra_dagster.secret_references import resolve_secret

KNOWN = ("webhook_url", "timeout_seconds", "attempts", "first_pause_seconds", "longest_pause_seconds", "ca_file")
REFUSED = "check that the webhook's address is whole and that the channel it posts to still exists"


@dataclass(frozen=True, slots=True)
class SlackWebhook:
    """`url` is a reference: whoever knows the address may post."""

    url: str
    timeout_seconds: float = 30.0
    """For one attempt as a whole, from connecting to the answer."""
    retries: Retries = USUAL_RETRIES
    ca_file: Path | None = None
    allowances: Allowances = SAFE

    @classmethod
    def parse(cls, given: Mapping[str, Any], allowances: Allowances = SAFE) -> SlackWebhook:
        """Raises `UsageError`."""
        fields = Fields("slack", given, KNOWN)
        return cls(
            url=fields.required_reference("webhook_url"),
            timeout_seconds=fields.number("timeout_seconds", 30.0, 0.1, 300),
            retries=fields.retries(),
            ca_file=fields.file("ca_file"),
            allowances=allowances,
        )

    def send(self, message_id: str, payload: Mapping[str, Any]) -> Delivered:
        """Post the message, retried. Raises `PermanentError` or `TransientError`."""
        target = target_of(resolve_secret(self.url), self.allowances)
        body = json.dumps(payload, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()

        def attempt(number: int) -> Delivered:
            post(target, {}, body, self.timeout_seconds, self.allowances, self.ca_file, REFUSED)
            return Delivered(target.shown, message_id, attempts=number)

        return self.retries.run(attempt)
