"""Vertex AI: usage by project, model and location as Cloud Monitoring counts it, with latency histograms, and the bill.

Every publisher model of the named projects is read, through google-cloud-monitoring. Batch and provisioned throughput are told apart. Cached
tokens of Gemini are inside the input and not told; there is no user and no key. The bill is BigQuery's billing export, or its rows as files.

Google keeps these metrics for six weeks: an older window is refused, because it would replace usage by nothing.
Tested against local servers, not live. Sources are named in `google_metrics`, `google_usage` and `google_cost_lines`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

from tokentra_dagster.errors import PermanentError
from tokentra_dagster.providers import google_billing, google_client
from tokentra_dagster.providers.base import ConnectionConfig, Window
from tokentra_dagster.providers.failures import Refused
from tokentra_dagster.providers.google_billing import Billing
from tokentra_dagster.providers.google_client import Google
from tokentra_dagster.providers.google_metrics import COUNTED, FIRST_TOKEN, LATENCY, REQUESTS, Point, distinct, intervals, points
from tokentra_dagster.providers.google_usage import joined, latency_types, records
from tokentra_dagster.providers.options import Options
from tokentra_dagster.records import EntityName, Item

# ---- What it can be asked ------------------------------------------------------------------------------------------

OPTIONS = (
    "projects", "details", "latency_type", "anthropic_input", "retention_days", *google_client.OPTIONS, *google_billing.OPTIONS,
)  # fmt: skip
DETAILS = {"latency": LATENCY, "first_token": FIRST_TOKEN}
RETENTION_DAYS = 42
_PROJECT = re.compile(r"^[a-z][a-z0-9.:-]*[a-z0-9]$|^[0-9]+$")


class GoogleSource:
    """The Vertex AI usage of some Google Cloud projects."""

    def __init__(self, config: ConnectionConfig, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        options = Options(config, OPTIONS)
        self._now = now
        self._projects = options.texts("projects")
        if not self._projects or not all(map(_PROJECT.match, self._projects)):
            raise options.wrong(
                "projects", ",".join(self._projects), "name the projects by id in a comma list, e.g. acme-assistant"
            )
        chosen = () if options.text("details") == "none" else options.some_of("details", tuple(DETAILS), tuple(DETAILS))
        self._details = tuple(DETAILS[name] for name in chosen)
        self._latency_type = (options.text("latency_type") or "total").lower()
        self._input_is_total = options.one_of("anthropic_input", ("uncached", "total"), "uncached") == "total"
        self._kept = timedelta(days=options.whole("retention_days", RETENTION_DAYS, 1, 3660))
        self._google = Google.of(config, options)
        self._billing = Billing.of(self._google, options)
        self._remarks: list[str] = []

    def usage(self, window: Window) -> Iterator[Item]:
        """A record for each project, model, location, kind of service and bucket in which Google counted anything."""
        if window.start < self._now() - self._kept:
            raise PermanentError(
                f"google: Cloud Monitoring keeps these metrics for {self._kept.days} days, and the window starts at "
                f"{window.start:%Y-%m-%d %H:%M} UTC; start later, or set the option retention_days where yours are kept longer. "
                "Nothing was changed."
            )
        for start, end, period in intervals(window, self._now()):
            buckets, rejected = joined(self._read(start, end, period), window.granularity)
            several = latency_types(buckets)
            if several and self._latency_type not in several:
                self._remark(
                    f"Latencies are told by {', '.join(sorted(several))} and not by {self._latency_type}; choose one with the option "
                    "latency_type. None is loaded until then."
                )
            yield from rejected
            yield from records(buckets, window.granularity, self._latency_type, self._input_is_total)

    def costs(self, window: Window) -> Iterator[Item]:
        """What the billing export says was charged; nothing without it, because metrics know no prices."""
        if self._billing is not None:
            yield from self._billing.costs(window.start, window.end)

    def names(self) -> Iterator[EntityName]:
        """The projects. Their ids are names that people gave; asking for others would need one more role."""
        for project in self._projects:
            yield EntityName(kind="project", id=project, name=project)

    def remarks(self) -> list[str]:
        return [*self._remarks, *(self._billing.remarks if self._billing else ())]

    def check(self) -> str:
        """Asks every project for the requests of an hour, and BigQuery for its table."""
        now = self._now().replace(minute=0, second=0, microsecond=0)
        for project in self._projects:
            points(self._google, project, REQUESTS, now - timedelta(hours=1), now, timedelta(hours=1))
        bill = self._billing.check() if self._billing else "no bill is read"
        return f"google: login accepted; {len(self._projects)} projects can be read: {', '.join(self._projects)}; {bill}"

    # ---- What Google answers -------------------------------------------------------------------------------------------

    def _read(self, start: datetime, end: datetime, period: timedelta) -> Iterator[Point]:
        owner: dict[tuple[object, ...], str] = {}
        for project in self._projects:
            for metric in (*COUNTED, *self._details):
                found = self._asked(project, metric, start, end, period)
                kept, others = distinct(found, owner)
                for other in sorted(others):
                    self._remark(f"Usage of {project} is in the metrics scope of {other}, too; it is counted once.")
                yield from kept

    def _asked(self, project: str, metric: str, start: datetime, end: datetime, period: timedelta) -> list[Point]:
        try:
            found = points(self._google, project, metric, start, end, period)
        except Refused as refusal:
            if metric in COUNTED or refusal.status != 400:
                raise
            self._remark(f"{refusal}. Latencies of {metric} are missing.")
            return []
        if found is None:
            self._remark(f"Project {project} has no metric {metric}: no model of Vertex AI was asked there, or it is not told.")
        return found or []

    def _remark(self, text: str) -> None:
        if text not in self._remarks:
            self._remarks.append(text)
