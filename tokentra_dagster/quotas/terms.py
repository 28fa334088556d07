"""What a quota says (specification 2.4), checked before it is written: limits, period, thresholds, enforcement. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from tokentra_dagster.errors import UsageError

SCOPE_COLUMNS = {
    "team": "team_id", "project": "project_id", "user": "user_identifier", "api_key": "api_key_id", "feature": "feature",
}  # fmt: skip
SCOPE_TYPES = ("organization", *SCOPE_COLUMNS)
PERIOD_TYPES = ("hourly", "daily", "weekly", "monthly")
ENFORCEMENT_MODES = ("alert", "throttle", "block")
LIMITS = {
    "token_limit": "tokens", "request_limit": "requests", "input_token_limit": "input tokens", "output_token_limit": "output tokens",
}  # fmt: skip
"""Column of each limit (correction 29) and what it limits."""
LARGEST_LIMIT = 10**15
WEEKDAYS = ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday")
_RESET_DAYS = {
    "weekly": (0, 6, "0 (Sunday) to 6 (Saturday)"),
    "monthly": (1, 31, "1 to 31, which is the last day of a shorter month"),
}


@dataclass(frozen=True, slots=True)
class Terms:
    """Limits in tokens and requests per period (None: no limit), when a period begins (UTC; correction 27), thresholds in per cent."""

    token_limit: int | None = None
    request_limit: int | None = None
    input_token_limit: int | None = None
    output_token_limit: int | None = None
    period_type: str = "monthly"
    period_reset_day: int = 1
    period_reset_hour: int = 0
    enforcement_mode: str = "alert"
    warning_threshold_pct: int = 80
    critical_threshold_pct: int = 95

    @property
    def limits(self) -> dict[str, int]:
        """Column -> limit, of those that are set."""
        return {column: value for column in LIMITS if (value := getattr(self, column)) is not None}

    @property
    def period(self) -> str:
        """In words, e.g. `weekly from Monday 06:00 UTC`."""
        hour = f"{self.period_reset_hour:02}:00 UTC"
        if self.period_type == "hourly":
            return "hourly"
        if self.period_type == "daily":
            return f"daily from {hour}"
        day = WEEKDAYS[self.period_reset_day].capitalize() if self.period_type == "weekly" else f"day {self.period_reset_day}"
        return f"{self.period_type} from {day} {hour}"

    @property
    def words(self) -> str:
        limits = ", ".join(f"{value:,} {LIMITS[column]}" for column, value in self.limits.items())
        return f"{limits} {self.period}, {self.enforcement_mode}"

    def check(self) -> Terms:
        """Itself. Raises `UsageError`: one sentence about the first thing that cannot be."""
        for column, what in LIMITS.items():
            value = getattr(self, column)
            if value is not None and not 1 <= value <= LARGEST_LIMIT:
                raise UsageError(f"The limit of {what} is {value}; use a whole number from 1 to 10^15, or no limit.")
        if not self.limits:
            raise UsageError(f"The quota has no limit; set at least one of {', '.join(LIMITS.values())}.")
        for name, value, allowed in (
            ("period", self.period_type, PERIOD_TYPES), ("enforcement mode", self.enforcement_mode, ENFORCEMENT_MODES),
        ):  # fmt: skip
            if value not in allowed:
                raise UsageError(f"The {name} is {value!r}; it must be one of {', '.join(allowed)}.")
        least, most, words = _RESET_DAYS.get(self.period_type, (1, 1, ""))
        if not least <= self.period_reset_day <= most:
            raise UsageError(
                f"The reset day of a {self.period_type} quota is {self.period_reset_day}; it must be {words}."
                if words
                else f"A {self.period_type} quota has no reset day; leave it out."
            )
        if self.period_type == "hourly" and self.period_reset_hour:
            raise UsageError("An hourly quota begins anew every hour and has no reset hour; leave it out.")
        if not 0 <= self.period_reset_hour <= 23:
            raise UsageError(f"The reset hour is {self.period_reset_hour}; it must be 0 to 23, UTC.")
        if not 0 < self.warning_threshold_pct <= self.critical_threshold_pct <= 100:
            raise UsageError(
                f"The warning threshold is {self.warning_threshold_pct} % and the critical one {self.critical_threshold_pct} %; "
                "both must be from 1 to 100, and the warning must not be the higher."
            )
        return self


TERMS = tuple(column.name for column in fields(Terms))


def differences(before: Any, after: Any, names: tuple[str, ...]) -> Iterator[str]:
    """What changed from one state to the next, in words: `token_limit 1,000 -> 2,000`."""
    for name in names:
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            yield f"{name} {_shown(old)} -> {_shown(new)}"


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
