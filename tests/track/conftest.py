"""One made run of three committed rounds for all tracker tests, and a machine that hears every call to the network."""

import socket
import threading
from collections import Counter
from pathlib import Path

import pytest

from storage.objects import ObjectStore, open_store
from storage.rounds import create_run, put_checkpoint
from tests import made_rounds as made

SECRET_TEXT = "what-the-model-wrote-and-nobody-else-may-read"
RESPONSES = {1: [5, 6], 2: [7, 8]}
CONFIG = {"objective": {"type": "teacher_topk_lsm", "k": None}, "train": {"learning_rate": 2e-6},
          "prompts": {"source": {"type": "file", "path": "s3://user:hidden-in-an-address@bucket/problems.parquet"}}}


def step_rows(number: int):
    """Two steps of round `number`: loss 1/step; `drift` is null at the first."""
    steps = [2 * number + 1, 2 * number + 2]
    return made.steps(2, step=steps, loss=[1 / step for step in steps], drift=[None, 0.125],
                      grad_norm=[0.1 * step for step in steps])


def answers(number: int) -> list:
    """Half of the student's answers are right after round 0, three quarters later; the start has none, the teacher all.
    """
    if number == 0:
        return [made.graded("student", {1: [True, False], 2: [True, False]}),
                made.graded("start", {1: [False, False], 2: [False, False]}),
                made.graded("teacher", {1: [True, True], 2: [True, True]})]
    return [made.graded("student", {1: [True, True], 2: [True, False]})]


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> ObjectStore:
    """Run `made` with rounds 0, 1 and 2, whose rollouts hold SECRET_TEXT."""
    folder: Path = tmp_path_factory.mktemp("tracked")
    store = open_store(folder / "store", create=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    start = put_checkpoint(store, "made", 0, folder)
    create_run(store, "made", {"config": CONFIG, "student_checkpoint": start.as_dict()})
    for number in range(3):
        written = made.rollouts(RESPONSES, response_text=[SECRET_TEXT] * 2, data_source=[SECRET_TEXT] * 2)
        made.commit_round(store, folder, "made", number, [(written, made.tokens(RESPONSES))],
                          step_rows=step_rows(number), answers=answers(number))
    return store


class Listener:
    """A proxy for all of the network that only counts who came."""

    def __init__(self):
        self.calls: Counter = Counter()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            connection.settimeout(5)
            self.calls[connection.recv(200)] += 1
            connection.close()

    def close(self):
        self._socket.close()


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """Every tracker gets a home of its own and a proxy that hears it; nobody may call."""
    listener = Listener()
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, listener.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-home"))
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "MLFLOW_TRACKING_URI", "TRACKIO_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    yield
    listener.close()
    assert not listener.calls
