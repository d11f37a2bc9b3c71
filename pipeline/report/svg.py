"""matplotlib's SVG, made fit to stand inside a page: colours that follow light and dark, no script, no dates.

The figure is drawn with the colours of the light palette; in the markup each becomes `var(--name, colour)`, so that
the page's style sheet decides. Fonts, metadata, style sheets and comments are taken out; ids are salted with the
figure's name, so that two figures of a page never share one.
"""

import io
import re

COLORS = {"ink": "#24303d", "muted": "#697583", "grid": "#e2e6eb", "blue": "#2b6cb0", "orange": "#c05f1b",
          "teal": "#1f8a80", "plum": "#8a4f9e", "gold": "#9a7a10", "grey": "#8b96a3", "red": "#b3372f",
          "rose": "#b8447c", "moss": "#5d7d2c",
          "age0": "#8fcfc0", "age1": "#53b3b4", "age2": "#3791b3", "age3": "#3a6cab", "age4": "#42479a",
          "age5": "#3d2173"}
"""`age0` to `age5` go from the oldest round shown to the newest."""

_STYLE = re.compile(r'style="([^"]*)"')


def render(figure, name: str) -> str:
    """The figure as one `<svg>` element. Text stays text; nothing in it is read as mathematics."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    FigureCanvasSVG(figure)
    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False}
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    out = io.StringIO()
    with matplotlib.rc_context(settings):
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    return cleaned(out.getvalue())


def cleaned(markup: str) -> str:
    """What a page needs of matplotlib's file."""
    markup = markup[markup.index("<svg "):]
    for pattern in (r"<metadata>.*?</metadata>", r"<style.*?</style>", r"<!--.*?-->"):
        markup = re.sub(pattern, "", markup, flags=re.DOTALL)
    markup = re.sub(r' id="[a-zA-Z.]+(?:_[0-9]+)+"', "", markup)  # figure_1, axes_1, ...: every figure has them
    markup = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', markup, count=1)
    markup = markup.replace("xlink:href", "href")
    markup = _STYLE.sub(lambda match: f'style="{_restyled(match[1])}"', markup)
    return re.sub(r"\s*\n\s*", "\n", markup).strip()


def _restyled(style: str) -> str:
    """Colours of the palette as variables, fonts inherited from the page."""
    for name, color in COLORS.items():
        style = style.replace(color, f"var(--{name}, {color})")
    return re.sub(r"font-family: [^;]*;? ?", "", style)
