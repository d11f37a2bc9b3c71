"""Writing a report: RUN.html and RUN.md, or RUN-round-N.html and .md. The same store gives the same bytes."""

from pathlib import Path

from pipeline.report.asked import open_source
from storage.newfile import make_folder, new_file
from storage.objects import ObjectStore


def write_report(store: ObjectStore, run: str, number: int | None, folder: Path) -> dict[str, str]:
    """Write the report of a run, or of its round `number`, into `folder`. Returns {"html", "markdown"}: the paths.

    A run that goes on meanwhile does not disturb: what is shown is one snapshot. Raises UserError if there is no such
    run or round, or if the folder cannot be written.
    """
    from pipeline.report import html, markdown
    from pipeline.report.build import build

    report = build(open_source(store, run, number))
    name = run if number is None else f"{run}-round-{number}"
    texts = {"html": (folder / f"{name}.html", html.render(report)),
             "markdown": (folder / f"{name}.md", markdown.render(report))}
    make_folder(folder, "report")
    for path, text in texts.values():
        with new_file(path, force=True) as draft:
            draft.write_bytes(text.encode())
    return {kind: str(path) for kind, (path, _) in texts.items()}
