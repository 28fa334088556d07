"""Alerts and channels for tests: small quotas and events, a mail server and a receiver of posts on this machine."""

from __future__ import annotations

import email
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.policy import default
from typing import Any
from uuid import UUID

from aiosmtpd.controller import Controller

from tests.exports.https_receiver import SECRET, Receiver, Request, status
from tokentra_dagster.alerts.alert import Alert
from tokentra_dagster.alerts.channels import add_channel
from tokentra_dagster.alerts.quota_alerts import Limit, QuotaStatus
from tokentra_dagster.alerts.store import Raised, lock_evaluation, raise_alerts
from tokentra_dagster.exports.destinations.base import Allowances
from tokentra_dagster.warehouse.database import Database

HERE = Allowances(plain_text=True, private_targets=True)
START, END = datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 7, 1, tzinfo=UTC)
QUOTA, ACME, GLOBEX = UUID(int=7), UUID(int=1), UUID(int=2)


def quota_status(used: int = 0, limit: int = 1000, **changes: Any) -> QuotaStatus:
    """A monthly quota of tokens that is half over; status and projection as `marts.quota_status` computes them."""
    hours = changes.pop("hours_elapsed", 360.0)
    projected = changes.pop("projected", round(used * 720 / hours) if used and hours else None)
    level = (
        "exceeded"
        if used > limit
        else "critical"
        if used * 100 >= limit * 95
        else "warning"
        if used * 100 >= limit * 80
        else "ok"
    )
    values: dict[str, Any] = {
        "quota_id": QUOTA, "org_id": ACME, "name": "Team budget", "scope_type": "organization", "enforcement_mode": "block",
        "period_start": START, "period_end": END, "status": level,
        "projected_to_exceed": used > limit or (projected is not None and projected > limit), "hours_elapsed": hours,
        "data_until": START + timedelta(hours=hours or 0), "warning_threshold_pct": 80, "critical_threshold_pct": 95,
        "limits": (Limit("tokens", limit, used, projected),),
    }  # fmt: skip
    return QuotaStatus(**values | changes)


def alert(number: int = 1, org_id: UUID | None = None, **changes: Any) -> Alert:
    """A quota that is exceeded; each number is another quota."""
    values: dict[str, Any] = {
        "org_id": org_id, "kind": "quota_exceeded", "subject": str(UUID(int=number)), "period_start": START, "period_end": END,
        "severity": "critical", "title": f"Quota q{number} is exceeded", "body": "1,050 of 1,000 tokens (105.0 %).",
    }  # fmt: skip
    return Alert(**values | changes)


def raise_(database: Database, *alerts: Alert) -> list[Raised]:
    with database.connect() as db:
        lock_evaluation(db)
        return raise_alerts(db, alerts)


def webhook(database: Database, receiver: Receiver, authority: Any, org: str | None = "acme", name: str = "hook", **more: Any) -> UUID:  # fmt: skip
    config = {
        "webhook_url": receiver.url(), "secret": "env:HOOK_SECRET", "ca_file": str(authority.file), "attempts": 1, "timeout_seconds": 5,
        **more.pop("config", {}),
    }  # fmt: skip
    with database.connect() as db:
        return add_channel(db, org=org, name=name, kind="webhook", config=config, allowances=HERE, **more)[0]


def slack(database: Database, authority: Any, org: str | None = "acme", name: str = "chat", **more: Any) -> UUID:
    config = {"webhook_url": "env:SLACK_URL", "ca_file": str(authority.file), "attempts": 1, "timeout_seconds": 5}
    with database.connect() as db:
        return add_channel(db, org=org, name=name, kind="slack", config=config, allowances=HERE, **more)[0]


def mailbox(database: Database, post: Post, org: str | None = "acme", name: str = "mail", **more: Any) -> UUID:
    config = {
        "email": "finance@example.com", "sender": "usage@acme.example", "host": "127.0.0.1", "port": post.port, "security": "none",
        "attempts": 1, "timeout_seconds": 5,
    }  # fmt: skip
    with database.connect() as db:
        return add_channel(db, org=org, name=name, kind="email", config=config, allowances=HERE, **more)[0]


def titles(receiver: Receiver) -> list[list[str]]:
    """Of each event that was accepted, the titles in it."""
    return [[one["title"] for one in event["data"]["alerts"]] for event in receiver.accepted]


class SlackLike:
    """Makes a receiver take unsigned posts, as Slack does, and keep them."""

    def __init__(self, receiver: Receiver) -> None:
        self.posts: list[dict[str, Any]] = []
        receiver.answer = self.answer  # type: ignore[method-assign]

    def answer(self, handler: Any, request: Request) -> None:
        assert "webhook-signature" not in {name.lower() for name in request.headers}
        self.posts.append(json.loads(request.body))
        status(200)(handler)


class Post:
    """A mail server's letters. `data` is answered to the next ones instead of taking them."""

    def __init__(self) -> None:
        self.letters: list[EmailMessage] = []
        self.data: list[str] = []
        self.port = 0

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        if self.data:
            return self.data.pop(0)
        self.letters.append(email.message_from_bytes(envelope.content, policy=default))  # type: ignore[arg-type]
        return "250 taken"


@contextmanager
def mail_server() -> Iterator[Post]:
    post = Post()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        post.port = free.getsockname()[1]
    controller = Controller(post, hostname="127.0.0.1", port=post.port)
    controller.start()
    try:
        yield post
    finally:
        controller.stop()


__all__ = ["SECRET"]
