"""A real browser for tests: Chromium through playwright, without a network. Tests that need it are skipped by name."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or "/usr/bin/chromium"
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]


@contextmanager
def chromium() -> Iterator:
    """A running browser. Skips where playwright or Chromium is missing.

    One per test module, not per session: while playwright runs, this thread has a running event loop, and tests that
    start one of their own would fail.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright")
    if not Path(CHROMIUM).exists():
        pytest.skip("browser tests need chromium")
    with playwright.sync_playwright() as engine:
        found = engine.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield found
        found.close()


class Page:
    """An opened file, and everything that a well-behaved file does not do."""

    def __init__(self, browser, path: Path, **context):
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.noise: list[str] = []
        self.page.on("console", lambda message: self.noise.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.noise.append(f"error: {error}"))
        self.page.on("dialog", self._dialog)
        self.page.on("request", self._request)
        self._own = path.absolute().as_uri()
        self.page.goto(self._own)

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *_) -> None:
        self.context.close()

    def _dialog(self, dialog) -> None:
        self.noise.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _request(self, request) -> None:
        if request.url.partition("#")[0] != self._own:
            self.noise.append(f"request: {request.url[:200]}")
