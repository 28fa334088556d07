"""Everything that is simulated behind the HTTP server: organisations, the clock, adjustments of the past, waiting faults."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import numpy as np

from tokentra_dagster.errors import UsageError
from tokentra_dagster.simulator.companies import NAMES, attribution_rules, organisation
from tokentra_dagster.simulator.faults import Fault, Faults
from tokentra_dagster.simulator.organisation import Organisation
from tokentra_dagster.simulator.truth import Adjustment, Ints, Table, counts, minute_of, moment_of, next_month

KEY_PREFIX = {
    "openai": "sk-admin-",
    "anthropic": "sk-ant-admin01-",
    "aws": "AKIASIM",
    "azure": "azure-token-",
    "langfuse": "sk-lf-",
    "google": "google-token-",
}


@cache
def _table(name: str, scale: int, provider: str, endpoints: tuple[str, ...]) -> Table:
    org = organisation(name, scale)
    return Table.of(org, provider, (stream for stream in org.streams(provider) if stream.endpoint in endpoints))


class Simulation:
    """`now` is the simulated clock (UTC), or None for the real one; it may be set at any time. `scale` multiplies users and keys."""

    def __init__(self, now: datetime | None = None, scale: int = 1) -> None:
        if scale < 1:
            raise UsageError(f"scale is {scale}; it must be 1 or more.")
        self.scale = scale
        self.now = now
        self.faults = Faults()
        self.adjustments: tuple[Adjustment, ...] = ()
        self.requests: Counter[str] = Counter()
        """How often each path was asked for."""
        self._recent: deque[tuple[Table, tuple[Any, ...], Ints]] = deque(maxlen=4)

    @property
    def now(self) -> datetime | None:
        return self._now

    @now.setter
    def now(self, moment: datetime | None) -> None:
        if moment is not None and moment.tzinfo is None:
            raise UsageError(f"now is {moment.isoformat()}; give it a time zone, e.g. 2026-06-30T12:00Z.")
        self._now = moment

    def clock(self) -> datetime:
        """The simulated moment, whole minutes: a minute is used once it has ended."""
        return moment_of(minute_of(self._now or datetime.now(UTC)))

    def organisation(self, name: str) -> Organisation:
        if name not in NAMES:
            raise UsageError(f"No simulated organisation is named {name!r}. There are: {', '.join(NAMES)}.")
        return organisation(name, self.scale)

    def organisation_of_key(self, provider: str, key: str) -> Organisation | None:
        prefix = KEY_PREFIX[provider]
        name = key.removeprefix(prefix)
        return organisation(name, self.scale) if key.startswith(prefix) and name in NAMES else None

    def attribution(self, org_name: str) -> list[dict[str, Any]]:
        """Keyword arguments for `warehouse.directory.add_rule(db, org=org_name, **kwargs)`, one per rule."""
        return attribution_rules(self.organisation(org_name))

    # ---- The truth -----------------------------------------------------------------------------------------------------

    def table(self, org: Organisation, provider: str, *endpoints: str) -> Table:
        return _table(org.name, org.scale, provider, endpoints)

    def counts(self, table: Table, edges: Iterable[int] | Ints) -> Ints:
        """See `truth.counts`; edges are minutes from the origin."""
        at, now, adjustments = np.fromiter(edges, dtype=np.int64), minute_of(self.clock()), self.adjustments
        asked = (at.tobytes(), now, adjustments)
        # Every page of a report asks for the same counts; only the last few reports are kept.
        for known, question, found in list(self._recent):
            if known is table and question == asked:
                return found
        found = counts(table, at, now, adjustments)
        found.flags.writeable = False
        self._recent.append((table, asked, found))
        return found

    def days(self, table: Table, start: datetime, end: datetime) -> list[tuple[datetime, Ints]]:
        """Every whole day of `[start, end)` with its counts, streams x (1 + units), as known now."""
        days = [start + timedelta(days=n) for n in range(max((end - start).days, 0))]
        if not days:
            return []
        counted = self.counts(table, [minute_of(day) for day in (*days, days[-1] + timedelta(days=1))])
        return [(day, counted[:, number]) for number, day in enumerate(days)]

    def days_of_month(self, table: Table, month: datetime) -> list[tuple[datetime, Ints]]:
        """The month's days that have ended."""
        return self.days(table, month, min(next_month(month), self.clock().replace(hour=0, minute=0)))

    def totals(self, org_name: str, provider: str, endpoint: str, start: datetime, end: datetime) -> dict[str, int]:
        """Requests and units of one endpoint in `[start, end)` as known now; what is not used at all is missing."""
        table = self.table(self.organisation(org_name), provider, endpoint)
        summed = self.counts(table, (minute_of(start), minute_of(end))).sum(axis=(0, 1)).tolist()
        return {name: value for name, value in zip(("requests", *table.units), summed, strict=True) if value}

    # ---- What tests and contributors change -------------------------------------------------------------------------------

    def fault(
        self, kind: str, provider: str | None = None, path: str = "", times: int = 1,
        retry_after: float | None = None, seconds: float = 30.0, skip: int = 0,
    ) -> None:  # fmt: skip
        """Let something go wrong for the next `times` requests; kinds are in `faults.KINDS`, the rest is in `Fault`."""
        self.faults.add(Fault(kind, provider, path, times, retry_after, seconds, skip))

    def restate(
        self, org: str, provider: str, factor: float, match: Mapping[str, Any] | None = None,
        start: datetime | None = None, end: datetime | None = None,
    ) -> None:  # fmt: skip
        """Multiply the past (whole hours in `[start, end)`) of the streams with these dimensions, to a thousandth."""
        self.organisation(org)
        if provider not in KEY_PREFIX or not 0 <= factor <= 1000:
            raise UsageError(
                f"provider {provider!r}, factor {factor}: give one of {', '.join(KEY_PREFIX)}, and a factor from 0 to 1000."
            )
        for name, moment in (("start", start), ("end", end)):
            if moment is not None and (moment.tzinfo is None or moment.timestamp() % 3600):
                raise UsageError(f"{name} is {moment.isoformat()}; give a whole hour with its zone, e.g. 2026-06-01T00:00Z.")
        adjustment = Adjustment(org, provider, round(factor * 1000), dict(match or {}), start, end)
        if not adjustment.streams(self.organisation(org).streams(provider)):
            raise UsageError(f"Nothing of {org} at {provider} has {dict(match or {})}.")
        self.adjustments = (*self.adjustments, adjustment)

    def withdraw(
        self, org: str, provider: str, match: Mapping[str, Any], start: datetime | None = None, end: datetime | None = None
    ) -> None:
        """Let a group disappear, as if it had never been used."""
        self.restate(org, provider, 0, match, start, end)

    def reset(self) -> None:
        """Forget faults and adjustments; the clock stays."""
        self.faults.clear()
        self.adjustments = ()
