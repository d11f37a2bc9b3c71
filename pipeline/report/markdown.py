"""A report as markdown: its tables and texts, without plots.

Everything that is not ours is escaped, so that a pipe, a tag, a link or an image in a model's text stays text, also
for readers that render HTML inside markdown or make links of bare addresses.
"""

import re
from collections.abc import Collection, Iterator

from pipeline.report.document import Answer, Block, Message, Note, Plots, Report, Rollout, Section, Table
from pipeline.report.text import NEWLINE

_ESCAPED = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"}
                         | {character: f"\\{character}" for character in "\\`*_[]#~$!{}|"})
_LINKED = re.compile(r"\b(?P<scheme>https?|ftp|mailto|xmpp|javascript|data):|\b(?P<www>www)\.", re.IGNORECASE)
_MENTION = re.compile(r"(?<!\w)@|@(?=[\w-]+\.\w)")
_BEGINS_A_BLOCK = re.compile(r"^(\s*)([-+=]+|[0-9]+[.)])(?=\s|$)")


def cell(text: str) -> str:
    """`text` on one line, with escapes for whatever markdown gives a meaning."""
    escaped = NEWLINE.join(text.splitlines()).translate(_ESCAPED)
    escaped = _LINKED.sub(lambda match: f"{match['scheme']}&#58;" if match["scheme"] else f"{match['www']}&#46;",
                          _MENTION.sub("&#64;", escaped))
    return _BEGINS_A_BLOCK.sub(lambda match: match[1] + "".join(f"&#{ord(each)};" for each in match[2]), escaped)


def render(report: Report) -> str:
    """The whole file."""
    return "\n".join(lines(report)).rstrip("\n") + "\n"


def lines(report: Report) -> Iterator[str]:
    yield f"# {cell(report.title)}"
    yield ""
    yield f"{report.subject}: {cell(report.state)}."
    yield ""
    yield from table_lines(["", ""], [[name, value] for name, value in report.facts], ())
    if report.tiles:
        yield ""
        yield from table_lines(["", "", ""], [[tile.label, tile.value, tile.note] for tile in report.tiles], {1})
    for section in report.sections:
        yield from section_lines(section)


def section_lines(section: Section) -> Iterator[str]:
    yield ""
    yield f"## {cell(section.title)}"
    if section.text:
        yield ""
        yield cell(section.text)
    for block in section.blocks:
        yield from block_lines(block)


def block_lines(block: Block) -> Iterator[str]:
    if isinstance(block, Plots):
        return
    yield ""
    if isinstance(block, Table):
        yield from table_lines(block.columns, block.rows, block.numeric)
        yield ""
        yield " ".join(part for part in (cell(block.caption), f"Ask: `{block.ask}`") if part)
    elif isinstance(block, Note):
        yield cell(block.text)
    elif isinstance(block, Rollout):
        yield f"### {cell(block.title)}"
        yield ""
        yield cell(block.facts)
        yield from quote_lines([*block.prompt, Message("student", block.text)])
    elif isinstance(block, Answer):
        yield f"### {'Right' if block.correct else 'Wrong'}: {cell(block.title)}"
        yield ""
        yield cell(" · ".join(f"{name}: {value}" for name, value in block.facts))
        yield from quote_lines([*block.prompt, block.response])


def quote_lines(messages: list[Message]) -> Iterator[str]:
    """Messages as quotes, one line each."""
    for message in messages:
        cut = f" (and {message.cut:,} more characters)" if message.cut else ""
        yield ""
        yield f"> **{cell(message.role)}** {cell(message.content)}{cut}"


def table_lines(columns: list[str], rows: list[list[str]], numeric: Collection[int]) -> Iterator[str]:
    """A table; `numeric` columns are set flush right."""
    yield "| " + " | ".join(cell(column) for column in columns) + " |"
    yield "|" + "|".join(" ---: " if index in numeric else " --- " for index in range(len(columns))) + "|"
    for row in rows:
        yield "| " + " | ".join(cell(value) for value in row) + " |"
