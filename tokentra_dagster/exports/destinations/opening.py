"""From a row's delivery method and settings to a destination that is ready to deliver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tokentra_dagster.errors import UsageError
from tokentra_dagster.exports.destinations.base import SAFE, Allowances, Delivered, Delivery, Destination
from tokentra_dagster.exports.destinations.local import LocalFolder
from tokentra_dagster.exports.destinations.s3 import S3Bucket
from tokentra_dagster.exports.destinations.smtp import Mailbox
from tokentra_dagster.exports.destinations.webhook import Webhook

METHODS = ("download", "email", "s3", "webhook")
"""The specification's `deliveryMethod`; `download` is the local folder."""
STORE = "store"


@dataclass(frozen=True, slots=True)
class Linked:
    """Files to a bucket, then the message with a link to them. A message that carries the files itself stores nothing."""

    store: S3Bucket
    message: Destination

    def needs_link(self, delivery: Delivery) -> bool:
        return False

    def deliver(self, delivery: Delivery) -> Delivered:
        if not self.message.needs_link(delivery):
            return self.message.deliver(delivery)
        stored = self.store.deliver(delivery)
        return replace(self.message.deliver(replace(delivery, link=stored.link)), link=stored.link)


def open_destination(method: str, config: Mapping[str, Any], allowances: Allowances = SAFE) -> Destination:
    """Check the settings and build the destination; nothing is asked or sent yet, no secret is read.

    `email` and `webhook` take the settings of a bucket as `store` too. Raises `UsageError` or `PermanentError`.
    """
    if method == "download":
        return LocalFolder.parse(config)
    if method == "s3":
        return S3Bucket.parse(config, allowances)
    if method not in METHODS:
        raise UsageError(f"The delivery method {method!r} is not known; it must be one of {', '.join(METHODS)}.")
    message: Destination = Mailbox.parse(config, allowances) if method == "email" else Webhook.parse(config, allowances)
    store = config.get(STORE)
    if store is None:
        if method == "webhook":
            raise UsageError("webhook: the setting store is missing; a webhook carries a link, so give the bucket for the files.")
        return message
    if not isinstance(store, Mapping):
        raise UsageError(f"{method}: the setting store must hold the settings of a bucket, e.g. {{'bucket': 'acme-exports'}}.")
    return Linked(S3Bucket.parse(store, allowances), message)
