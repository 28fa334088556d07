"""Charts of usage, as SVG for a page (colours from the page's style, so that they follow dark and light) and as PNG for the Dagster UI.

Figures are drawn without pyplot: no state is shared between threads. matplotlib is imported on first use.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that mean something to the page: `svg` replaces each by a variable of its style sheet.
TEXT, GRID, MARK, BAND = "#010203", "#040506", "#070809", "#0a0b0c"
SERIES = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2", "#65a30d", "#db2777")
VARIABLES = {
    TEXT: "var(--text)", GRID: "var(--grid)", MARK: "var(--mark)", BAND: "var(--series-1)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, 1)},
}  # fmt: skip
ON_WHITE = {TEXT: "#1f2937", GRID: "#d1d5db", MARK: "#dc2626", BAND: SERIES[0]}
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")

Point = tuple[datetime, float | None]


def time_chart(
    series: Mapping[str, Sequence[Point]],
    unit: str,
    *,
    marks: Sequence[tuple[datetime, float]] = (),
    band: Sequence[tuple[datetime, float, float]] = (),
) -> Figure:
    """Lines over UTC time; an unknown value leaves a gap. `marks` are anomalies, `band` an interval from low to high."""
    figure, axes = _canvas(7.2, 2.8)
    for number, (name, points) in enumerate(series.items()):
        values = [float("nan") if value is None else float(value) for _, value in points]
        moments = [moment for moment, _ in points]
        axes.plot(
            moments,  # type: ignore[arg-type]
            values,
            color=SERIES[number % len(SERIES)],
            label=name,
            linewidth=1.4,
            marker="o" if len(points) == 1 else None,
        )
    if band:
        axes.fill_between([b[0] for b in band], [b[1] for b in band], [b[2] for b in band], color=BAND, alpha=0.18, linewidth=0)  # type: ignore[arg-type]
    if marks:
        axes.scatter([m[0] for m in marks], [m[1] for m in marks], color=MARK, s=26, zorder=5, label="anomaly")  # type: ignore[arg-type]
    _dates(axes)
    _amounts(axes, unit)
    if len(series) + bool(marks) > 1:
        axes.legend(frameon=False, labelcolor=TEXT, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return figure


def bar_chart(items: Sequence[tuple[str, float]], unit: str) -> Figure:
    """Horizontal bars, the first on top."""
    figure, axes = _canvas(7.2, 0.7 + 0.32 * max(len(items), 1))
    names = [_short(name) for name, _ in items]
    places = range(len(items))
    axes.barh(list(places), [float(value) for _, value in items], color=SERIES[0], height=0.64)
    axes.set_yticks(list(places), names)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(_formatter(unit))
    axes.set_xlabel(unit, color=TEXT, fontsize=8)
    return figure


def heat_map(matrix: Sequence[Sequence[float | None]], unit: str) -> Figure:
    """Seven rows from Monday, 24 hours each: darker is more."""
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap

    figure, axes = _canvas(7.2, 2.5)
    values = np.array([[np.nan if value is None else float(value) for value in row] for row in matrix])
    shades = LinearSegmentedColormap.from_list("usage", ["#dbeafe", "#1e3a8a"])
    picture = axes.pcolormesh(values, cmap=shades, edgecolors="none", vmin=0)
    axes.set_yticks([n + 0.5 for n in range(7)], WEEKDAYS)
    axes.set_xticks([n + 0.5 for n in range(0, 24, 3)], [f"{n:02d}" for n in range(0, 24, 3)])
    axes.invert_yaxis()
    axes.grid(visible=False)
    bar = figure.colorbar(picture, ax=axes, format=_formatter(unit), pad=0.02)
    bar.ax.tick_params(colors=TEXT, labelsize=8)
    bar.outline.set_visible(False)
    axes.set_xlabel(f"hour of day; {unit}", color=TEXT, fontsize=8)
    return figure


def svg(figure: Figure, title: str) -> str:
    """An `<svg>` element for a page: scales with it, takes its colours and its font, says `title` to a screen reader."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tokentra"}):
        figure.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Type": None, "Format": None}
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1), count=1)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    text = re.sub(r";? ?font-family: [^;\"]*", "", text)
    # Several charts stand on one page: what one names must not be another's.
    name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{_escaped(title)}"', 1).strip()


def png_markdown(figure: Figure, title: str) -> str:
    """A Markdown image with its data inside, as Dagster's metadata shows it."""
    return f"![{title}](data:image/png;base64,{base64.b64encode(png(figure)).decode()})"


def png(figure: Figure) -> bytes:
    """The figure on white."""
    for artist in figure.findobj():
        for get, put in (("get_color", "set_color"), ("get_facecolor", "set_facecolor"), ("get_edgecolor", "set_edgecolor")):
            _recolour(artist, get, put)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor="white")
    return buffer.getvalue()


def _recolour(artist: Any, get: str, put: str) -> None:
    from matplotlib.colors import to_hex

    if not hasattr(artist, get) or not hasattr(artist, put):
        return
    try:
        colour = to_hex(getattr(artist, get)())
    except (TypeError, ValueError):
        return
    if colour in ON_WHITE:
        getattr(artist, put)(ON_WHITE[colour])


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    axes.grid(visible=True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=TEXT, labelsize=8, length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    return figure, axes


def _dates(axes: Axes) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=3, maxticks=8)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.xaxis.get_offset_text().set_color(TEXT)
    axes.xaxis.get_offset_text().set_fontsize(8)


def _amounts(axes: Axes, unit: str) -> None:
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(_formatter(unit))
    axes.set_ylabel(unit, color=TEXT, fontsize=8)


def _formatter(unit: str) -> Any:
    from matplotlib.ticker import FuncFormatter

    del unit
    return FuncFormatter(lambda value, _: short_number(value))


def short_number(value: float) -> str:
    """1234567 -> 1.2M; at most three digits and a letter."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _short(name: str, most: int = 36) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
