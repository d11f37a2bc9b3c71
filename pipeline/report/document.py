"""What a report is made of, before it is HTML or markdown: sections of tables, plots and texts to read.

All strings are plain text; those of models have gone through `text.visible`. `ask` is the command whose answer a
block shows.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """Cells as text; `numeric` names the columns that are set flush right."""

    columns: list[str]
    rows: list[list[str]]
    ask: str
    caption: str = ""
    numeric: frozenset[int] = frozenset()
    folded: bool = False
    """Shown on demand."""
    kind: str = "table"


@dataclass(frozen=True)
class Key:
    """An entry of a plot's legend; `color` names one of plots.COLORS, `style` is solid, dashed, dotted or box."""

    label: str
    color: str
    style: str = "solid"


@dataclass(frozen=True)
class Plot:
    """`svg` is markup of our own making: the only thing that is not escaped."""

    title: str
    svg: str
    caption: str
    ask: str
    legend: list[Key] = field(default_factory=list)


@dataclass(frozen=True)
class Plots:
    """Plots side by side where there is room."""

    plots: list[Plot]
    kind: str = "plots"


@dataclass(frozen=True)
class Note:
    """A sentence, above all what is missing and why."""

    text: str
    kind: str = "note"


@dataclass(frozen=True)
class Message:
    """One message of a prompt."""

    role: str
    content: str
    cut: int = 0
    """Characters left out."""


@dataclass(frozen=True)
class Token:
    """`tone` says how far apart the models are: a class of the style sheet; `masked` that it was masked."""

    text: str
    tone: str
    hover: str
    masked: bool = False


@dataclass(frozen=True)
class Rollout:
    """A rollout, token by token. `left_out` tokens lie between `head` and `tail`."""

    title: str
    facts: str
    prompt: list[Message]
    head: list[Token]
    tail: list[Token]
    left_out: int
    text: str
    """The response as text, cut: for markdown."""
    asks: list[str]
    kind: str = "rollout"


@dataclass(frozen=True)
class Answer:
    """A graded answer."""

    correct: bool
    title: str
    facts: list[tuple[str, str]]
    prompt: list[Message]
    response: Message
    ask: str
    kind: str = "answer"


Block = Table | Plots | Note | Rollout | Answer


@dataclass(frozen=True)
class Section:
    """`id` is its anchor. `on_plots` is said where there are plots and colours to look at."""

    id: str
    title: str
    text: str
    blocks: list[Block]
    on_plots: str = ""


@dataclass(frozen=True)
class Tile:
    """One number that matters, with what it is to be compared with."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Report:
    """A whole report."""

    title: str
    subject: str
    state: str
    in_progress: bool
    facts: list[tuple[str, str]]
    tiles: list[Tile]
    sections: list[Section]
    ask_tiles: str
