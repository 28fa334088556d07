"""Live usage as a terminal shows it: a `LiveUsage` becomes something that rich prints, as wide and as high as there is room. Pure.

Names come from senders: they are shown as text, whatever control characters or markup are in them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tokentra_dagster.realtime.live import LiveShare, LiveUsage, Projection

Shown = Literal["both", "models", "features"]
BARS = "▁▂▃▄▅▆▇█"
ASCII_BARS = ".:-=+*#@"
UNKNOWN = "-"
COST = "cost"
"""Its column is headed by the currency."""
HEAD_LINES = 7
TABLE_LINES = 3
"""Title, heading and rule above the rows of one table."""
_UNITS = ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))


@dataclass(frozen=True, slots=True)
class Room:
    """Columns and lines of the terminal; `height` None: as many lines as there are. `ascii_only`: its encoding has no blocks."""

    width: int
    height: int | None = None
    ascii_only: bool = False


def view(usage: LiveUsage, organization: str, room: Room, shown: Shown = "both", trouble: str | None = None) -> RenderableType:
    """Header, sparkline and tables. `trouble`: why the figures are not of now."""
    head = _head(usage, organization, room, trouble)
    tables = [name for name in ("models", "features") if shown in ("both", name)]
    lines = {name: len(getattr(usage, name)) for name in tables}
    if room.height is not None:
        lines = _shared_out(lines, room.height - HEAD_LINES - TABLE_LINES * len(tables))
    return Group(*head, *(_table(usage, name, room.width, lines[name]) for name in tables))


def _shared_out(wanted: Mapping[str, int], lines: int) -> dict[str, int]:
    """How many of the lines each gets: an equal share, and what another does not need of its own; one at least."""
    share = lines // len(wanted)
    spare = sum(max(share - count, 0) for count in wanted.values())
    return {name: max(min(count, share + spare), 1) for name, count in wanted.items()}


def sparkline(values: Sequence[int], width: int, bars: str = BARS) -> str:
    """The last `width` values as bars from nothing to the largest; a space is none at all."""
    recent = values[-max(width, 1) :]
    top = max(recent, default=0)
    return "".join(" " if not value else bars[min(value * len(bars) // top, len(bars) - 1)] for value in recent)


def short(number: float | None) -> str:
    """`1234567` -> `1.23M`; up to 9,999 in full; unknown is `-`."""
    if number is None:
        return UNKNOWN
    for scale, unit in _UNITS:
        if number >= scale and (unit != "k" or number >= 10_000):
            return f"{number / scale:#.3g}".rstrip(".") + unit if number < scale * 999.5 else f"{number / scale:,.0f}{unit}"
    return f"{number:,.0f}" if number == int(number) or number >= 100 else f"{number:.3g}"


def money(amount: Decimal | None, currency: str) -> str:
    """With the digits that say something: `USD 12.30`, `USD 0.0042`; unknown is `-`."""
    return UNKNOWN if amount is None else f"{currency} {_amount(amount)}"


def _amount(amount: Decimal | None) -> str:
    if amount is None:
        return UNKNOWN
    return f"{amount:,.2f}" if amount >= Decimal("0.1") or amount == 0 else f"{float(amount):.2g}"


def duration(milliseconds: float | None) -> str:
    if milliseconds is None:
        return UNKNOWN
    return f"{milliseconds:,.0f} ms" if milliseconds < 10_000 else f"{milliseconds / 1000:,.1f} s"


def printable(name: str) -> str:
    """What a terminal may be shown: nothing that moves its cursor or changes its colours."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)


def _head(usage: LiveUsage, organization: str, room: Room, trouble: str | None) -> list[Text]:
    rate, bars = usage.rate, ASCII_BARS if room.ascii_only else BARS
    minutes = [point.tokens for point in usage.minute_data]
    title = Text.assemble(
        (printable(organization), "bold"), f"  {usage.window_end:%Y-%m-%d %H:%M:%S} UTC, last {len(minutes) - 1} min", ("   q quit  m models  f features" if room.height else "")
    )  # fmt: skip
    now = Text.assemble(
        (f"{short(rate.tokens_per_minute)} tokens/min", "bold cyan"), f"  {short(rate.requests_per_minute)} requests/min",
        f"  {money(rate.cost_per_minute, usage.currency)}/min", f"  errors {_percent(usage.error_rate)}",
        f"  p50 {duration(usage.p50_latency_ms)}" if room.width >= 100 else "", f"  p95 {duration(usage.p95_latency_ms)}",
    )  # fmt: skip
    change = "" if rate.token_rate_change is None else f" ({rate.token_rate_change:+.0f} % on the last)"
    running = (
        f"this minute {short(rate.current_minute_tokens)} tokens so far, {short(rate.projected_minute_tokens)} expected{change}"
    )
    line = Text.assemble(
        (sparkline(minutes, room.width - 22, bars), "green"), f"  max {short(max(minutes))} tokens/min"
    )  # fmt: skip
    lines = [
        title,
        now,
        Text(running),
        _towards("hour", usage.hour, usage.currency),
        _towards("day", usage.day, usage.currency),
        line,
    ]
    lines.append(Text(f"{trouble}", style="bold red") if trouble else Text(", ".join(_remarks(usage)), style="yellow"))
    for one in lines:
        one.no_wrap, one.overflow = True, "ellipsis"
    return lines


def _towards(name: str, projection: Projection, currency: str) -> Text:
    cost = f"  {money(projection.cost_so_far, currency)} of {money(projection.projected_cost, currency)}"
    return Text(
        f"{name:<4} {short(projection.tokens_so_far)} of {short(projection.projected_tokens)} tokens"
        f"{cost} at this rate until {projection.end:%H:%M}"
    )


def _remarks(usage: LiveUsage) -> list[str]:
    """What the figures do not say by themselves."""
    counted = (
        (usage.unpriced_requests, "without a known price"), (usage.other_currency_requests, f"not in {usage.currency}"),
        (usage.late_requests, "came over a minute late"), (usage.ahead_requests, "dated ahead of now"),
    )  # fmt: skip
    said = [f"{short(count)} {words}" for count, words in counted if count]
    return [f"requests: {said[0]}", *said[1:]] if said else []


def _percent(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1f} %"


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of the tables; the terminal must be at least `from_width` wide for it."""

    heading: str
    cell: Callable[[LiveShare], str]
    from_width: int = 0


_COLUMNS = (
    _Column("tokens", lambda one: short(one.tokens)),
    _Column("%", lambda one: UNKNOWN if one.percentage is None else f"{one.percentage:.0f}", 40),
    _Column("requests", lambda one: short(one.requests), 50),
    _Column("errors", lambda one: short(one.errors), 70),
    _Column(COST, lambda one: _amount(one.estimated_cost), 60),
    _Column("unpriced", lambda one: short(one.unpriced_requests), 110),
    _Column("p50", lambda one: duration(one.p50_latency_ms), 100),
    _Column("p95", lambda one: duration(one.p95_latency_ms), 78),
    _Column("p99", lambda one: duration(one.p99_latency_ms), 110),
)


def _table(usage: LiveUsage, name: str, width: int, most: int) -> Table:
    shares = usage.models if name == "models" else usage.features
    listed = shares[:most]
    hidden = len(shares) - len(listed)
    table = Table(
        title=f"{name}{f' ({hidden} more)' if hidden else ''}", title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False,
        width=width, show_edge=False,
    )  # fmt: skip
    columns = [column for column in _COLUMNS if width >= column.from_width]
    table.add_column(name.removesuffix("s"), ratio=1, no_wrap=True, overflow="ellipsis")
    for column in columns:
        table.add_column(usage.currency if column.heading == COST else column.heading, justify="right", no_wrap=True)
    for share in listed:
        table.add_row(Text(_name(share, name)), *(column.cell(share) for column in columns))
    return table


def _name(share: LiveShare, name: str) -> str:
    if share.other_count:
        return f"Other ({share.other_count})"
    if name == "models":
        return printable(f"{share.model} ({share.provider})")
    return "(none named)" if share.feature is None else printable(share.feature)
