"""What a channel gets: one message of one or many alerts, as a letter, an event or a post. Pure; the same alerts make the same message.

Names in alerts are other people's text: they are one line long (alert.py), escaped in HTML, and plain text in Slack, where
neither `<!channel>` nor `@channel` calls anybody.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Any
from uuid import UUID, uuid5

from tokentra_dagster.alerts.alert import SEVERITIES, moment, name_of
from tokentra_dagster.alerts.store import Raised
from tokentra_dagster.exports.destinations.letter import compose

EVENT = "alert.raised"
TEST_EVENT = "alert.test"
_NAMESPACE = UUID("6f0a4d1e-5c7b-5e0a-9a51-0b6c5f2f9d12")
MOST_IN_LETTER = 100
MOST_IN_POST = 20
"""A post has at most 50 blocks, each text at most 3,000 characters, a header 150 (https://docs.slack.dev/reference/block-kit/blocks)."""
_HEADER, _SECTION = 150, 2900


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent at once to one channel. `id` is the same in every repeat, so that a receiver can tell one."""

    id: UUID
    alerts: Sequence[Raised]
    """The most severe first. None: a test of the channel."""
    sent_for: datetime
    """When the newest of them was raised, with zone: the same in a repeat."""

    @property
    def is_test(self) -> bool:
        return not self.alerts

    @property
    def headline(self) -> str:
        if self.is_test:
            return "Test of this alert channel"
        if len(self.alerts) == 1:
            return _line(self.alerts[0])
        counted = Counter(raised.alert.severity for raised in self.alerts)
        parts = [f"{counted[severity]} {severity}" for severity in reversed(SEVERITIES) if counted[severity]]
        return f"{len(self.alerts)} new alerts: {', '.join(parts)}"


def message_of(channel_id: UUID, alerts: Sequence[Raised]) -> Message:
    """The message of these alerts to this channel."""
    return Message(
        message_id(channel_id, [raised.id for raised in alerts]), in_order(alerts), max(one.raised_at for one in alerts)
    )


def message_id(channel_id: UUID, alert_ids: Sequence[UUID]) -> UUID:
    """Made of the channel and the alerts: nobody has to remember it for a repeat to have the same."""
    return uuid5(_NAMESPACE, " ".join([str(channel_id), *sorted(map(str, alert_ids))]))


def in_order(alerts: Sequence[Raised]) -> list[Raised]:
    """The most severe first, then as they were raised."""
    return sorted(alerts, key=lambda one: (-SEVERITIES.index(one.alert.severity), one.raised_at, one.id))


def letter_of(message: Message, sender: str, recipients: Sequence[str]) -> EmailMessage:
    shown, rest = message.alerts[:MOST_IN_LETTER], len(message.alerts) - MOST_IN_LETTER
    text, page = [], []
    if message.is_test:
        text.append("Alerts of TokenTra Usage arrive here.")
        page.append("<p>Alerts of TokenTra Usage arrive here.</p>")
    elif len(message.alerts) > 1:
        text += [message.headline, ""]
        page.append(f"<h2>{html.escape(message.headline)}</h2>")
    for raised in shown:
        how = _how_to_acknowledge(raised)
        text += [_line(raised), raised.alert.body, how, ""]
        page.append(
            f"<h3>{html.escape(_line(raised))}</h3><p>{html.escape(raised.alert.body)}</p><p><small>{html.escape(how)}</small></p>"
        )
    if rest > 0:
        text.append(_more(rest))
        page.append(f"<p>{html.escape(_more(rest))}</p>")
    document = f"<!doctype html><html><body>{''.join(page)}</body></html>"
    letter = compose(str(message.id), sender, recipients, message.headline, "\r\n".join(text), document)
    letter["Date"] = format_datetime(message.sent_for.astimezone(UTC))
    return letter


def event_of(message: Message) -> dict[str, Any]:
    """`type`, `timestamp` and `data`, as Standard Webhooks advises; one alert or many, always a list, all of them."""
    return {
        "type": TEST_EVENT if message.is_test else EVENT,
        "timestamp": _instant(message.sent_for),
        "data": {"messageId": str(message.id), "count": len(message.alerts), "alerts": [_as_json(raised) for raised in message.alerts]},
    }  # fmt: skip


def slack_of(message: Message) -> dict[str, Any]:
    """`blocks` of plain text, and `text` for notifications, where Slack reads markup: there it is escaped."""
    blocks: list[dict[str, Any]] = [_block("header", message.headline, _HEADER)]
    if message.is_test:
        blocks.append(_block("section", "Alerts of TokenTra Usage arrive here.", _SECTION))
    for raised in message.alerts[:MOST_IN_POST]:
        head = "" if len(message.alerts) == 1 else f"{_line(raised)}\n"
        blocks.append(_block("section", f"{head}{raised.alert.body}\n{_how_to_acknowledge(raised)}", _SECTION))
    if len(message.alerts) > MOST_IN_POST:
        blocks.append(_block("section", _more(len(message.alerts) - MOST_IN_POST), _SECTION))
    return {"text": escaped(message.headline), "blocks": blocks, "unfurl_links": False, "unfurl_media": False}


def escaped(text: str) -> str:
    """For Slack's mrkdwn (https://docs.slack.dev/messaging/formatting-message-text): `&`, `<` and `>`; an `@` calls nobody, also in
    programs that are compatible with Slack and look for names in plain text."""
    return _uncalled(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _uncalled(text: str) -> str:
    return text.replace("@", "@\u200b")


def _block(kind: str, text: str, longest: int) -> dict[str, Any]:
    plain = _uncalled(text)
    plain = plain if len(plain) <= longest else plain[: longest - 3] + "..."
    return {"type": kind, "text": {"type": "plain_text", "text": plain, "emoji": False}}


def _line(raised: Raised) -> str:
    whose = name_of(raised.organization) if raised.organization else "Platform"
    return f"[{raised.alert.severity}] {whose}: {raised.alert.title}"


def _how_to_acknowledge(raised: Raised) -> str:
    return f"Raised {moment(raised.raised_at)}. Say that you know: tokentra alerts ack {raised.short_id}"


def _more(count: int) -> str:
    return f"And {count} more: tokentra alerts list"


def _as_json(raised: Raised) -> dict[str, Any]:
    alert = raised.alert
    return {
        "id": str(raised.id),
        "organisation": raised.organization,
        "kind": alert.kind,
        "severity": alert.severity,
        "subject": alert.subject,
        "title": alert.title,
        "body": alert.body,
        "periodStart": _instant(alert.period_start),
        "periodEnd": _instant(alert.period_end) if alert.period_end else None,
        "raisedAt": _instant(raised.raised_at),
        "details": dict(alert.details),
    }


def _instant(time: datetime) -> str:
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")
