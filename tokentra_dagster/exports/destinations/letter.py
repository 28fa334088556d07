"""The e-mail of an export: text and HTML, the files attached or a link to them. No text of a person can add a header."""

from __future__ import annotations

import html
from collections.abc import Sequence
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime

from tokentra_dagster.exports.destinations.base import Delivery, clean_text
from tokentra_dagster.exports.destinations.content import content_type

LONGEST_SUBJECT = 200


def letter_of(delivery: Delivery, sender: str, recipients: Sequence[str], attach: bool) -> EmailMessage:
    """The files in full when `attach`, otherwise the delivery's link."""
    rows = _rows(delivery, attach)
    text = "\r\n".join([delivery.title, "", *(f"{name}: {value}" for name, value, _ in rows), ""])
    cells = "".join(
        f"<tr><th align='left'>{html.escape(name)}</th><td>{_cell(value, is_link)}</td></tr>" for name, value, is_link in rows
    )
    page = f"<!doctype html><html><body><p>{html.escape(delivery.title)}</p><table>{cells}</table></body></html>"
    letter = compose(delivery.message_id, sender, recipients, f"Usage export {delivery.title}", text, page)
    # Of the export's completion, not of this attempt: a repeat is the same letter.
    letter["Date"] = format_datetime(delivery.time)
    if attach:
        for path in delivery.all_files:
            main, _, sub = content_type(path.name).partition(";")[0].partition("/")
            letter.add_attachment(path.read_bytes(), maintype=main, subtype=sub, filename=path.name)
    return letter


def compose(message_id: str, sender: str, recipients: Sequence[str], subject: str, text: str, page: str) -> EmailMessage:
    """Any letter, e.g. an alert's. `Message-ID` follows from `message_id`, so that a repeat can be told; add a `Date`."""
    letter = EmailMessage(policy=SMTP)
    letter["From"] = sender
    letter["To"] = ", ".join(recipients)
    subject = clean_text(subject)
    letter["Subject"] = subject if len(subject) <= LONGEST_SUBJECT else subject[: LONGEST_SUBJECT - 3] + "..."
    letter["Message-ID"] = f"<{message_id}@{sender.rpartition('@')[2]}>"
    letter["Auto-Submitted"] = "auto-generated"
    letter.set_content(text)
    letter.add_alternative(page, subtype="html")
    return letter


def _rows(delivery: Delivery, attach: bool) -> list[tuple[str, str, bool]]:
    """Name, value, whether the value is a link."""
    facts, link = delivery.facts, delivery.link
    rows = [
        ("Organisation", clean_text(facts.organisation), False),
        ("Export", clean_text(facts.export_name), False),
        ("Period", f"{facts.period_start.isoformat()} to {facts.period_end.isoformat()} (end not included)", False),
        ("File", delivery.files[0].name, False),
        ("Rows", f"{facts.rows:,}", False),
        ("Size", f"{facts.size_bytes:,} bytes", False),
        ("SHA-256", facts.sha256, False),
    ]
    if not attach and link is not None:
        rows.append(("Download", link.url, True))
        if link.manifest_url:
            rows.append(("Manifest", link.manifest_url, True))
        rows.append(("Until", link.expires_at.isoformat(), False))
    return rows


def _cell(value: str, is_link: bool) -> str:
    shown = html.escape(value)
    return f'<a href="{shown}">{shown}</a>' if is_link else shown
