"""A report as one HTML file: nothing is loaded from anywhere, nothing in it runs.

Every value goes through jinja2's escaping; only the plots' markup, which is ours, is put in as it is.
"""

from functools import cache

from pipeline.report.document import Report
from pipeline.report.reading import TONES

_LEGEND = {"n3": "below −5", "n2": "−5 to −2", "n1": "−2 to −0.5", "z": "−0.5 to 0.5", "p1": "0.5 to 2",
           "p2": "above 2"}


def render(report: Report) -> str:
    """The whole file."""
    legend = [(name, _LEGEND[name]) for name, _ in TONES]
    return _template().render(report=report, legend=legend)


@cache
def _template():
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("pipeline.report", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True, keep_trailing_newline=True)
    return environment.get_template("report.html.j2")
