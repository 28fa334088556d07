"""What an alert is. What makes one is in `quota_alerts` and `event_alerts`; storing and sending are elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from tokentra_dagster.exports.destinations.base import clean_text

QUOTA_LEVELS = {"quota_warning": 1, "quota_critical": 2, "quota_exceeded": 3}
"""In the order in which a quota passes them."""
QUOTA_KINDS = (*QUOTA_LEVELS, "quota_projected")
KINDS = (*QUOTA_KINDS, "anomaly", "failed_sync", "failed_run")
OPERATOR_KINDS = ("failed_sync", "failed_run")
SEVERITIES = ("info", "warning", "critical")
LONGEST_NAME = 100
LONGEST_TITLE = 200
LONGEST_TEXT = 1500
Key = tuple[UUID | None, str, str, datetime]


@dataclass(frozen=True, slots=True)
class Alert:
    """One thing that a person should know. Raised once per organisation, kind, subject and `period_start` (with zone).

    `title` is one line; `body` says with figures what happened and what to do; `details` holds the figures for programs.
    """

    org_id: UUID | None
    """None: about the platform itself, for its operators."""
    kind: str
    subject: str
    period_start: datetime
    severity: str
    title: str
    body: str
    period_end: datetime | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        return (self.org_id, self.kind, self.subject, self.period_start)


def name_of(text: str) -> str:
    """A name that a person gave, on one line and not endless."""
    return clipped(text, LONGEST_NAME) or "(no name)"


def clipped(text: str, longest: int) -> str:
    """On one line, at most so many characters."""
    clean = clean_text(text.replace("\x00", " "))
    return clean if len(clean) <= longest else clean[: longest - 3] + "..."


def moment(time: datetime) -> str:
    """`2026-06-01 00:00 UTC`."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
