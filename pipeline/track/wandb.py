"""Weights & Biases. The run's id there is `Run.key`, its name the run's id, its steps are the run's steps.

Online, a run is resumed, and says by its summary how many rounds it holds; a step that it has wandb takes no second
time. Offline, each round is a folder of its own that appears whole, by a rename, and `wandb sync` appends
one after the other to the same run. wandb's crash reports, git, code, console, hardware and host facts are off.
"""

import os
import tempfile
from pathlib import Path

from pipeline.config.trackers import Wandb
from pipeline.track.interface import LAST_VALUE, Points, Run

INIT_TIMEOUT_S = 30.0
FINISH_TIMEOUT_S = 90.0
"""Both below the process's own limit (apart.py), so that wandb says what is wrong."""


class WandbRun:
    """A run of W&B, resumed online or added to in folders."""

    def __init__(self, settings: Wandb):
        import wandb  # noqa: F401  (is it here?)

        self._settings, self._folder = settings, Path(settings.folder)

    def open(self, run: Run) -> int:
        self._about = run
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._settings.mode == "online":
            self._online = self._init(self._folder)
            return int(self._online.summary.get(LAST_VALUE, -1)) + 1
        number = 0
        while self._round_folder(number).exists():
            number += 1
        return number

    def log(self, number: int, points: Points) -> None:
        if self._settings.mode == "online":
            _log(self._online, points)
            return
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=self._folder) as made:
            offline = self._init(Path(made))
            _log(offline, points)
            offline.finish()
            os.rename(Path(offline.dir).parent, self._round_folder(number))

    def close(self) -> None:
        if self._settings.mode == "online":
            self._online.finish()

    def _round_folder(self, number: int) -> Path:
        return self._folder / f"offline-run-{number:06d}-{self._about.key}"

    def _init(self, folder: Path):
        import wandb

        quiet = wandb.Settings(
            silent=True, console="off", symlink=False, host="", disable_git=True, disable_code=True, save_code=False,
            disable_job_creation=True, x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True,
            x_save_requirements=False, init_timeout=INIT_TIMEOUT_S, finish_timeout=FINISH_TIMEOUT_S,
            finish_timeout_raises=True)
        about = self._about
        return wandb.init(project=self._settings.project, entity=self._settings.entity, mode=self._settings.mode,
                          dir=folder, id=about.key, name=about.name, resume="allow", config=about.config,
                          tags=about.tags, settings=quiet)


def _log(run, points: Points) -> None:
    for step, values in points:
        run.log(values, step=step)
