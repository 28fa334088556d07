"""Options of `tokentra quota`: counts as people write them, days, whose quota it is, and what it says."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import click

_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


class Amount(click.ParamType[int | str]):
    """A count, e.g. 250000, 250_000, 250k, 1.5M or 2B; `none` where a limit can be taken away."""

    name = "count"

    def __init__(self, *, may_be_none: bool = False) -> None:
        self.may_be_none = may_be_none

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if not isinstance(value, str):
            return int(value)
        if self.may_be_none and value.lower() == "none":
            return "none"
        found = re.fullmatch(r"(-?[0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?)([kmb]?)", value.lower())
        count = Decimal(found[1]) * _FACTORS[found[2]] if found else Decimal("0.5")
        if count != int(count) or abs(count) > 10**15:
            what = "a whole number up to 10^15 such as 250000, 250k, 1.5M or 2B" + (", or none" if self.may_be_none else "")
            self.fail(f"{value!r} is not {what}", param, ctx)
        return int(count)


class ResetDay(click.ParamType[int]):
    """A day of the month, or of the week by number (0 is Sunday) or name."""

    name = "day"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from tokentra_dagster.quotas.terms import WEEKDAYS

        if isinstance(value, str) and value.lower() in WEEKDAYS:
            return WEEKDAYS.index(value.lower())
        try:
            return int(value)
        except ValueError:
            self.fail(
                f"{value!r} is no day; use 1 to 31 for a month, 0 (Sunday) to 6 or a name such as monday for a week", param, ctx
            )


def scope_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for decorator in (
        click.option("--feature", help="Of this feature."),
        click.option("--api-key", help="Of this API key, by the provider's id of it."),
        click.option("--user", help="Of this user, as usage names it."),
        click.option("--project", help="Of this project, by name or id."),
        click.option("--team", help="Of this team, by name or id."),
    ):
        command = decorator(command)
    return command


def term_options(may_be_none: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    amount = Amount(may_be_none=may_be_none)
    taken_away = "; none takes it away" if may_be_none else ""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in (
            click.option("--description"),
            click.option("--critical", "critical_threshold_pct", type=int, metavar="PCT", help="Critical at this utilization of any limit (95)."),
            click.option("--warning", "warning_threshold_pct", type=int, metavar="PCT", help="Warning at this utilization of any limit (80)."),
            click.option("--mode", "enforcement_mode", type=click.Choice(["alert", "throttle", "block"]), help="Beyond a limit: let pass and say so (alert), say when to retry, or refuse."),
            click.option("--reset-hour", "period_reset_hour", type=int, metavar="HOUR", help="UTC hour at which a period begins (0)."),
            click.option("--reset-day", "period_reset_day", type=ResetDay(), metavar="DAY", help="Day of the month (31: its last) or of the week (0 or sunday) on which a period begins (1)."),
            click.option("--period", "period_type", type=click.Choice(["hourly", "daily", "weekly", "monthly"]), help="How long a period is (monthly)."),
            click.option("--output-tokens", "output_token_limit", type=amount, help=f"Most output tokens per period{taken_away}."),
            click.option("--input-tokens", "input_token_limit", type=amount, help=f"Most input tokens per period{taken_away}."),
            click.option("--requests", "request_limit", type=amount, help=f"Most requests per period{taken_away}."),
            click.option("--tokens", "token_limit", type=amount, help=f"Most tokens per period, e.g. 250000, 250k or 1.5M{taken_away}."),
        ):  # fmt: skip
            command = decorator(command)
        return command

    return decorate


def one_scope(given: dict[str, Any]) -> dict[str, Any]:
    """`scope_type` and `scope` of the one that is given; empty where none is."""
    chosen = {kind: value for kind, value in given.items() if value is not None}
    if not chosen:
        return {}
    if len(chosen) > 1:
        options = ", ".join("--whole-org" if kind == "organization" else f"--{kind.replace('_', '-')}" for kind in chosen)
        raise click.UsageError(f"A quota has one scope; leave out all but one of {options}.")
    ((kind, value),) = chosen.items()
    return {"scope_type": kind, "scope": None if kind == "organization" else value}
