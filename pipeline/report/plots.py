"""The kinds of plots that a report has. Each returns markup that scales; legends are HTML beside it.

A plot is 330 units wide and shown at 300 to 500 pixels: text of 10 units stays readable on a phone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.report.svg import COLORS, render

WIDTH, HEIGHT = 330, 196
"""In points, which become the units of the viewBox."""
_DASHES = {"solid": "-", "dashed": (0, (5, 2.5)), "dotted": (0, (1.2, 2.2))}
_MANY = 120
"""More points than that in a line that shares its plot make it thin: what lies under it is to be seen."""
_TEXT = 10
_FEW = 40
"""Up to so many points each gets a dot."""


@dataclass(frozen=True)
class Line:
    """Points joined in order; None interrupts. `low` and `high` make a band."""

    x: Sequence[float]
    y: Sequence[float | None]
    color: str
    style: str = "solid"
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    dots: bool = True


@dataclass(frozen=True)
class Level:
    """A horizontal line with its name."""

    y: float
    label: str
    color: str = "grey"
    style: str = "dashed"


@dataclass(frozen=True)
class Frame:
    """Axes: names with units, what kind of numbers they carry, and what must lie inside."""

    x: str
    y: str
    percent: bool = False
    whole_x: bool = False
    """Ticks at integers only."""
    log_y: bool = False
    inside: Sequence[float] = ()
    """Values of y that must be seen."""
    bounds: tuple[float | None, float | None] = (None, None)
    """y never reaches past these."""
    marks: Sequence[float] = field(default_factory=tuple)
    """x of faint vertical lines."""


def lines(name: str, frame: Frame, drawn: Sequence[Line], levels: Sequence[Level] = ()) -> str:
    """Lines, bands and levels."""
    figure, axes = _figure(frame)
    for x in frame.marks:
        axes.axvline(x, color=COLORS["grid"], linewidth=0.8, zorder=0)
    for line in drawn:
        y = [float("nan") if value is None else value for value in line.y]
        dots = "o" if line.dots and len(y) <= _FEW else None
        axes.plot(line.x, y, color=COLORS[line.color], linestyle=_DASHES[line.style], marker=dots, markersize=3.2,
                  clip_on=False, linewidth=1.6 if len(drawn) == 1 or len(y) <= _MANY else 0.7)
        if line.low:
            band = [[float("nan") if value is None else value for value in side] for side in (line.low, line.high)]
            axes.fill_between(line.x, *band, color=COLORS[line.color], alpha=0.16, linewidth=0)
    _finish(axes, frame, levels)
    return render(figure, name)


def steps(name: str, frame: Frame, edges: Sequence[float], drawn: Sequence[tuple[Sequence[float], str]]) -> str:
    """Histograms over the same buckets, as steps; empty buckets interrupt them."""
    figure, axes = _figure(frame)
    for values, color in drawn:
        axes.stairs([value or float("nan") for value in values], edges, color=COLORS[color], linewidth=1.5,
                    baseline=None)
    _finish(axes, frame, ())
    return render(figure, name)


def stacks(name: str, frame: Frame, x: Sequence[float], parts: Sequence[tuple[Sequence[float], str]]) -> str:
    """Stacked columns, one per x."""
    figure, axes = _figure(frame)
    bottom = [0.0] * len(x)
    for values, color in parts:
        axes.bar(x, values, bottom=bottom, color=COLORS[color], width=0.72, linewidth=0)
        bottom = [low + value for low, value in zip(bottom, values, strict=True)]
    _finish(axes, frame, ())
    return render(figure, name)


def _figure(frame: Frame):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
    axes = figure.add_axes((0.135, 0.185, 0.84, 0.70))
    if frame.log_y:
        axes.set_yscale("log")
    return figure, axes


def _finish(axes, frame: Frame, levels: Sequence[Level]) -> None:
    for level in levels:
        axes.axhline(level.y, color=COLORS[level.color], linestyle=_DASHES[level.style], linewidth=1.1, zorder=1)
        axes.annotate(level.label, (1, level.y), xycoords=("axes fraction", "data"), xytext=(-2, 3),
                      textcoords="offset points", ha="right", fontsize=_TEXT, color=COLORS[level.color])
    if not frame.log_y:
        axes.set_ylim(*_limits(axes, frame, [level.y for level in levels]))
    _ticks(axes, frame)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set(color=COLORS["grey"], linewidth=0.8)
    axes.grid(axis="y", color=COLORS["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(frame.x, fontsize=_TEXT, color=COLORS["muted"], labelpad=3)
    axes.annotate(frame.y, (0, 1), xycoords="axes fraction", xytext=(-40, 8), textcoords="offset points",
                  fontsize=_TEXT, color=COLORS["muted"])


def _ticks(axes, frame: Frame) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    axes.tick_params(length=0, labelsize=_TEXT, labelcolor=COLORS["muted"], pad=4)
    axes.tick_params(which="minor", length=0)
    axes.tick_params(axis="x", length=3, width=0.8, color=COLORS["grey"])
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=frame.whole_x, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _spelled(x)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{_spelled(100 * y)} %" if frame.percent
                                                 else _spelled(y)))
    if frame.log_y:
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, min_n_ticks=3))


def _spelled(value: float) -> str:
    """A tick's label: 0.002, 15,000, 2.5e−5."""
    text = f"{value:.3e}" if 0 < abs(value) < 0.001 else f"{value:,.6g}"
    mantissa, _, exponent = text.partition("e")
    if exponent:
        text = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return text.replace("-", "−")


def _limits(axes, frame: Frame, levels: list[float]) -> tuple[float, float]:
    """Room around what is drawn, within the bounds."""
    must = [float(value) for value in (axes.dataLim.y0, axes.dataLim.y1, *frame.inside, *levels)
            if math.isfinite(value)]
    low, high = min(must, default=0.0), max(must, default=1.0)
    room = 0.07 * (high - low) or 0.1 * abs(high) or (0.01 if frame.percent else 1.0)
    top = room + (room if levels else 0)  # a level's name stands above it
    floor, ceiling = frame.bounds
    return (low - room if floor is None else max(low - room, floor),
            high + top if ceiling is None else min(high + top, ceiling))
