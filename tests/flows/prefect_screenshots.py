"""Screenshots of what Prefect's pages show of a round: python -m tests.flows.prefect_screenshots FOLDER

Starts a server of its own, deploys prefect.yaml, plays one tiny round as `opd run` does, and opens its pages in
Chromium (playwright; CHROMIUM names another one than /usr/bin/chromium). Two minutes on two cores.
"""

import os
import sys
import tempfile
from pathlib import Path

from tests.flows.prefect_server import PrefectServer, prefect_server
from tests.tiny import make_tiny

RUN = "shown"
GUARDED = {"PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true"}
LONG_ENOUGH = {"prompts.per_round": 64, "prompts.per_shard": 16, "rollout.samples": 8, "rollout.max_new_tokens": 1500}
"""For a stage that shows its progress."""
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work, prefect_server(Path(work) / "home", **GUARDED) as server:
        server.opd("doctor", "--fix")
        server.prefect("work-pool", "create", "opd", "--type", "process")
        server.prefect("deploy", "--all", "--no-prompt")
        config = make_tiny(Path(work), run=RUN, rounds=1, **LONG_ENOUGH)
        played = server.opd("run", config)
        assert played.returncode == 0, played.stderr
        photograph(server, folder)


def photograph(server: PrefectServer, folder: Path) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.on("requestfailed", lambda request: print("not loaded:", request.url[:120]))
        for name, path, tall in pages(server):
            page.goto(server.url.removesuffix("/api") + path)
            page.wait_for_timeout(4000)
            if tall:
                page.set_viewport_size({"width": 1400, "height": tall})
                page.wait_for_timeout(1000)
            page.screenshot(path=folder / f"{name}.png")
            page.set_viewport_size({"width": 1400, "height": 1000})
        browser.close()


def pages(server: PrefectServer) -> list[tuple[str, str, int]]:
    """(file, path, height in pixels or 0) of each page."""
    (round,) = server.call("/flow_runs/filter", {"flow_runs": {"name": {"any_": [f"{RUN} round 0"]}}})
    deployment = server.call("/deployments/name/opd-tick/nightly")["id"]
    made = {each["key"]: each["id"] for each in server.call("/artifacts/filter", {})}
    tall = {"report": 2600, "statistics": 1500, "progress": 0}
    return [("runs", "/runs", 0), ("round", f"/runs/flow-run/{round['id']}", 1300),
            ("artifacts", "/artifacts", 0),
            ("history", f"/artifacts/key/opd-{RUN}-report", 0),
            *((kind, f"/artifacts/artifact/{made[f'opd-{RUN}-{kind}']}", height) for kind, height in tall.items()),
            ("deployment", f"/deployments/deployment/{deployment}", 1300),
            ("custom_run", f"/deployments/deployment/{deployment}/run", 9800),
            ("limits", "/concurrency-limits", 0)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
