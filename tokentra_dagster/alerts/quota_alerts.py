"""Alerts about quotas, from the rows of `marts.quota_status` (specification section 8; corrections 27 to 30). Pure.

Of the levels warning, critical and exceeded only the highest that a quota has reached is raised, and none that is not above what
was raised in the same period: a jump from 70 % to 105 % is one alert, and usage that falls and rises again raises nothing anew.
The projection is an alert of its own, as long as nothing is exceeded and enough of the period has gone by to be believed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from tokentra_dagster.alerts.alert import QUOTA_LEVELS, Alert, Key, moment, name_of

_LIMITS = (
    ("tokens", "total_tokens", "token"),
    ("requests", "total_requests", "request"),
    ("input tokens", "input_tokens", "input_token"),
    ("output tokens", "output_tokens", "output_token"),
)
_LEVEL_OF_STATUS = {"warning": "quota_warning", "critical": "quota_critical", "exceeded": "quota_exceeded"}
_SAID = {
    "quota_warning": "has reached its warning threshold",
    "quota_critical": "has reached its critical threshold",
    "quota_exceeded": "is exceeded",
    "quota_projected": "is projected to be exceeded",
}
_SEVERITY = {"quota_warning": "warning", "quota_critical": "critical", "quota_exceeded": "critical", "quota_projected": "warning"}
_CONSEQUENCE = {
    "alert": "Requests are still let pass.",
    "throttle": "Requests beyond the limit are told to wait.",
    "block": "Requests beyond the limit are refused.",
}


@dataclass(frozen=True, slots=True)
class ProjectionRule:
    """When a projection is believed: after this share of the period, and after so many hours. Usage has hours of the day and days
    of the week, which a projection by elapsed time does not know."""

    least_share: float = 0.25
    least_hours: float = 4.0


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of a quota: counts of its measure; None: unknown."""

    measure: str
    limit: int
    used: int | None
    projected: int | None

    @property
    def used_pct(self) -> float | None:
        return None if self.used is None else 100 * self.used / self.limit if self.limit else None


@dataclass(frozen=True, slots=True)
class QuotaStatus:
    """A row of `marts.quota_status`. `period_end` is excluded; `hours_elapsed`: of the period, as far as usage is loaded."""

    quota_id: UUID
    org_id: UUID
    name: str
    scope_type: str
    enforcement_mode: str
    period_start: datetime
    period_end: datetime
    status: str | None
    projected_to_exceed: bool | None
    hours_elapsed: float | None
    data_until: datetime | None
    warning_threshold_pct: int | None
    critical_threshold_pct: int | None
    limits: tuple[Limit, ...]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> QuotaStatus:
        limits = tuple(
            Limit(measure, row[f"{prefix}_limit"], row[usage], row[f"projected_{usage}"])
            for measure, usage, prefix in _LIMITS
            if row[f"{prefix}_limit"] is not None
        )
        names = ("quota_id", "org_id", "scope_type", "enforcement_mode", "period_start", "period_end", "status")
        more = ("projected_to_exceed", "hours_elapsed", "data_until", "warning_threshold_pct", "critical_threshold_pct")
        return cls(name=row["quota_name"], limits=limits, **{name: row[name] for name in (*names, *more)})


def holding(statuses: Iterable[QuotaStatus], rule: ProjectionRule | None = None) -> list[Alert]:
    """What holds now: of each quota the highest level that it has reached, and the projection where it is believed."""
    chosen = rule or ProjectionRule()
    found = []
    for status in statuses:
        level = _LEVEL_OF_STATUS.get(status.status or "")
        if level:
            found.append(_alert(status, level))
        if status.status != "exceeded" and status.projected_to_exceed and _believed(status, chosen):
            found.append(_alert(status, "quota_projected"))
    return found


def news(holds: Iterable[Alert], raised: Collection[Key]) -> list[Alert]:
    """Those that are above what was raised about the same quota in the same period; a projection only before it has come true."""
    return [alert for alert in holds if alert.key not in raised and not _is_covered(alert, raised)]


def uncovered(holds: Iterable[Alert], raised: Collection[Key]) -> list[Alert]:
    """What holds and is not below what was raised: after "exceeded", usage that was restated to the warning is told by neither."""
    return [alert for alert in holds if not _is_covered(alert, raised)]


def _is_covered(alert: Alert, raised: Collection[Key]) -> bool:
    return any((alert.org_id, kind, alert.subject, alert.period_start) in raised for kind in _covering(alert.kind))


def _covering(kind: str) -> list[str]:
    """The other kinds of alert after which this one is no news."""
    if kind == "quota_projected":
        return ["quota_exceeded"]
    return [other for other, level in QUOTA_LEVELS.items() if level > QUOTA_LEVELS[kind]]


def _believed(status: QuotaStatus, rule: ProjectionRule) -> bool:
    hours = (status.period_end - status.period_start).total_seconds() / 3600
    elapsed = status.hours_elapsed or 0.0
    # An hourly quota is over before four hours have passed: there the share alone decides.
    return elapsed >= rule.least_share * hours and elapsed >= min(rule.least_hours, hours / 2)


def _alert(status: QuotaStatus, kind: str) -> Alert:
    return Alert(
        org_id=status.org_id,
        kind=kind,
        subject=str(status.quota_id),
        period_start=status.period_start,
        period_end=status.period_end,
        severity=_SEVERITY[kind],
        title=f"Quota {name_of(status.name)} {_SAID[kind]}",
        body=" ".join(_sentences(status, kind)),
        details={
            "quota": name_of(status.name),
            "scope_type": status.scope_type,
            "enforcement_mode": status.enforcement_mode,
            "warning_threshold_pct": status.warning_threshold_pct,
            "critical_threshold_pct": status.critical_threshold_pct,
            "data_until": status.data_until.isoformat() if status.data_until else None,
            "limits": [
                {"measure": one.measure, "limit": one.limit, "used": one.used, "used_pct": one.used_pct, "projected": one.projected}
                for one in status.limits
            ],
        },
    )  # fmt: skip


def _sentences(status: QuotaStatus, kind: str) -> list[str]:
    limits = sorted(status.limits, key=lambda one: -(_share(one, kind) or -1.0))
    said = []
    for one in limits:
        if one.used is None:
            said.append(f"{one.measure.capitalize()} are unknown; the limit is {one.limit:,}.")
            continue
        share = "" if one.used_pct is None else f" ({one.used_pct:.1f} %)"
        ahead = ""
        if kind == "quota_projected" and one.projected is not None:
            ahead = f", {one.projected:,} by the end of the period at this rate"
        said.append(f"{one.used:,} of {one.limit:,} {one.measure}{share}{ahead}.")
    said.append(f"The period is {moment(status.period_start)} to {moment(status.period_end)}.")
    if status.data_until:
        said.append(f"Usage is known up to {moment(status.data_until)}.")
    said.append(_CONSEQUENCE.get(status.enforcement_mode, ""))
    return [sentence for sentence in said if sentence]


def _share(limit: Limit, kind: str) -> float | None:
    amount = limit.projected if kind == "quota_projected" else limit.used
    return None if amount is None or not limit.limit else amount / limit.limit
