"""What a run or one of its rounds did, to read: an HTML file, a markdown file, and a summary in statistics.

    write_report(open_store("./opd-store"), "first-run", None, Path("opd-reports"))
    summary(open_store("./opd-store"), "first-run", 3)
"""

from pipeline.report.summary import summary
from pipeline.report.write import write_report

__all__ = ["summary", "write_report"]
