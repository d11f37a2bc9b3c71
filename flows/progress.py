"""Progress on stderr: bars in a terminal, one line per finished piece of work elsewhere."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from storage.text import printable


class ProgressBars:
    """Makes one callback per piece of work: `bar(title)(what, done, total)`."""

    def __init__(self):
        self._console = Console(file=sys.stderr)
        columns = [TextColumn("{task.description:<36}", markup=False), BarColumn(), MofNCompleteColumn(),
                   TimeElapsedColumn()]
        self._bars = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._last = None

    def __enter__(self) -> "ProgressBars":
        self._bars.start()
        return self

    def __exit__(self, *_) -> None:
        self._bars.stop()
        self._finish()

    def bar(self, title: str):
        """A callback for one piece of work; the bar before it is complete."""
        self._finish()
        title = printable(title)
        task = self._bars.add_task(title, total=None)
        self._last = (title, task, time.monotonic())

        def update(what: str, done: int, total: int) -> None:
            self._bars.update(task, description=printable(f"{title} {what}")[:36], completed=done, total=total)

        return update

    def _finish(self) -> None:
        if self._last is None:
            return
        title, task, start = self._last
        self._bars.remove_task(task)
        self._console.print(f"{time.monotonic() - start:7.1f} s  {title}", highlight=False, markup=False)
        self._last = None
