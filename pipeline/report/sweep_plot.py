"""The plots of a sweep: a row per preset, a dot per seed, a bar at their mean, a line at what they are compared with.

The page has them one by one, as SVG that follows light and dark; the PNG has them side by side on white.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.svg import COLORS, render
from pipeline.report.text import number, on_one_line, percent

WIDTH, ROW = 330, 17
"""In points, which become the units of the viewBox; ROW is a preset's."""
_LEFT, _TOP, _BOTTOM = 130, 8, 24
_NAME = 20
"""Characters of a preset's name that fit into _LEFT."""
_TEXT = 10
_STYLES = {"solid": "-", "dashed": (0, (5, 2.5)), "dotted": (0, (1.2, 2.2))}
_KINDS = (
    ("avg_at_k", "Held-out accuracy", "avg@k of the student that the branch made: further right is better.", True),
    ("closing_teacher_kl", "KL to the teacher", "KL(p || q) in nats per token on the teacher's top-K and one bucket "
     "for the rest, of the final student: further left is nearer to the teacher.", False),
    ("closing_student_entropy", "Student's entropy", "In nats per token, over the whole vocabulary, of the final "
     "student. Near 0 it always says the same.", False),
    ("closing_student_mass", "Student's mass on the teacher's top-K", "Of the final student, as a share of 1. What a "
     "renormalised loss does not see leaks to the left.", False))
"""Metric, title, caption, whether it is a share to be read in percent."""


@dataclass(frozen=True)
class Level:
    """A reference: where it lies and what it is."""

    x: float
    preset: str
    label: str
    style: str


@dataclass(frozen=True)
class Panel:
    """One metric: presets from top to bottom, and each one's values."""

    metric: str
    title: str
    caption: str
    percent: bool
    presets: list[str]
    values: list[list[float]]
    levels: list[Level]


def panels(rows: Sequence[dict[str, Any]], presets: Sequence[str]) -> list[Panel]:
    """The metrics that any row has, with `presets` in the order given; all other rows are references."""
    found = []
    for metric, title, caption, is_percent in _KINDS:
        held = {preset: [row[metric] for row in rows if row["preset"] == preset and row[metric] is not None]
                for preset in dict.fromkeys(row["preset"] for row in rows)}
        shown = percent if is_percent else number
        levels = [Level(values[0], preset, f"{preset}: {shown(values[0])}", style)
                  for (preset, values), style in zip(((each, held[each]) for each in held if each not in presets
                                                      and held[each]), ("dashed", "dotted"))]
        if any(held.values()):
            found.append(Panel(metric, title, caption, is_percent, list(presets), [held[each] for each in presets],
                               levels))
    return found


def svg(panel: Panel) -> str:
    """The panel as markup for a page."""
    from matplotlib.figure import Figure

    height = _TOP + ROW * max(1, len(panel.presets)) + _BOTTOM
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    axes = figure.add_axes((_LEFT / WIDTH, _BOTTOM / height, 1 - (_LEFT + 12) / WIDTH, 1 - (_TOP + _BOTTOM) / height))
    _draw(axes, panel, names=True)
    return render(figure, f"sweep-{panel.metric}")


def png(drawn: Sequence[Panel], title: str) -> bytes:
    """All panels side by side on white, the names once."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = max((len(panel.presets) for panel in drawn), default=1)
    width, height = _LEFT + 12 + 190 * max(1, len(drawn)), 52 + ROW * max(1, rows) + _BOTTOM
    figure = Figure(figsize=(width / 72, height / 72), dpi=200)
    FigureCanvasAgg(figure)
    figure.text(12 / width, 1 - 16 / height, title, fontsize=11, color=COLORS["ink"], parse_math=False)
    lines = dict.fromkeys(f"{level.style} line: {level.preset}" for panel in drawn for level in panel.levels)
    figure.text(1 - 12 / width, 1 - 16 / height, ", ".join(lines), fontsize=_TEXT, color=COLORS["orange"], ha="right",
                parse_math=False)
    for place, panel in enumerate(drawn):
        axes = figure.add_axes(((_LEFT + 190 * place) / width, _BOTTOM / height, 172 / width, ROW * rows / height))
        _draw(axes, panel, names=place == 0)
        axes.set_title("Student's mass on top-K" if panel.metric == "closing_student_mass" else panel.title,
                       fontsize=_TEXT, color=COLORS["ink"], loc="left", pad=6)
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _draw(axes, panel: Panel, names: bool) -> None:
    for level in panel.levels:
        axes.axvline(level.x, color=COLORS["orange"], linestyle=_STYLES[level.style], linewidth=1.2, zorder=1)
    for row, values in enumerate(panel.values):
        if len(values) > 1:
            axes.plot([min(values), max(values)], [row, row], color=COLORS["blue"], linewidth=1.1, alpha=0.45, zorder=2)
            mean = sum(values) / len(values)
            axes.plot([mean, mean], [row - 0.32, row + 0.32], color=COLORS["blue"], linewidth=2.2, zorder=4,
                      solid_capstyle="butt")
        axes.plot(values, [row] * len(values), linestyle="none", marker="o", markersize=4.2, zorder=3, alpha=0.75,
                  color=COLORS["blue"], markeredgewidth=0, clip_on=False)
    _axes(axes, panel, names)


def _axes(axes, panel: Panel, names: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_ylim(len(panel.presets) - 0.4, -0.6)
    axes.set_yticks(range(len(panel.presets)))
    axes.set_yticklabels([_short(each) for each in panel.presets] if names else [], parse_math=False)
    low, high = _limits(panel)
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(MaxNLocator(4, min_n_ticks=2))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _tick(x, panel.percent)))
    axes.tick_params(length=0, labelsize=_TEXT, labelcolor=COLORS["muted"], pad=4)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set(color=COLORS["grey"], linewidth=0.8)
    axes.grid(axis="both", color=COLORS["grid"], linewidth=0.8)
    axes.set_axisbelow(True)


def _limits(panel: Panel) -> tuple[float, float]:
    """Room around all that is drawn."""
    xs = [x for values in panel.values for x in values] + [level.x for level in panel.levels]
    low, high = min(xs), max(xs)
    room = 0.06 * (high - low) or 0.1 * abs(high) or (0.02 if panel.percent else 0.1)
    return low - room, high + room


def _tick(value: float, is_percent: bool) -> str:
    text = f"{100 * value:.4g} %" if is_percent else f"{value:.4g}"
    return text.replace("-", "−")


def _short(name: str) -> str:
    shown = on_one_line(name, 200)
    return shown if len(shown) <= _NAME else f"{shown[:_NAME - 1]}…"
