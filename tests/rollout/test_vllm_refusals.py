"""What vLLM cannot do here is said in one line before anything is written; its process never outlives its parent."""

import importlib.metadata
import os
import signal
import subprocess
import sys
import time
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import pytest
import torch

from flows.cli import main
from pipeline.config.engines import TransformersEngine, VllmEngine
from pipeline.config.model import Model
from pipeline.rollout.vllm_engine import VllmRollouts, _in_order, _parts
from pipeline.vllm.checks import check_devices, check_engine
from pipeline.vllm.messages import receive, send
from pipeline.vllm.start import environment
from storage.errors import UserError
from tests.tiny import make_tiny

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("version", ["0.31.1", "0.33.0", "0.2.7", "1.0"])
def test_another_version_of_vllm_is_refused_in_one_line(monkeypatch, version):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    with pytest.raises(UserError, match=f"works with vLLM 0.32, here is {version}: install 'vllm>=0.32") as error:
        check_engine(VllmEngine())
    assert "\n" not in str(error.value)
    check_engine(TransformersEngine())


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1", "0.32.0+cu130"])
def test_every_build_of_the_right_version_is_taken(monkeypatch, version):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    check_engine(VllmEngine())


def test_without_vllm_it_is_said_how_to_get_it(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(UserError, match="not installed: pip install 'opd-rounds.vllm.'"):
        check_engine(VllmEngine())


@pytest.mark.parametrize("settings, devices, refused", [
    ({"tensor_parallel": 2}, 0, "needs 2 GPUs .*here is none"), ({"tensor_parallel": 4}, 2, "needs 4 GPUs .*here is 2"),
    ({"tensor_parallel": 2, "data_parallel": 4}, 4, "needs 8 GPUs"), ({"data_parallel": 3}, 2, "needs 3 GPUs"),
    ({"data_parallel": 2}, 0, None), ({"tensor_parallel": 2, "data_parallel": 4}, 8, None)])
def test_a_gpu_that_is_not_there_is_named(settings, devices, refused):
    if refused is None:
        check_devices(VllmEngine(**settings), devices, "rollout")
        return
    with pytest.raises(UserError, match=refused):
        check_devices(VllmEngine(**settings), devices, "rollout")


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
@pytest.mark.parametrize("section", ["rollout", "score"])
def test_a_run_that_needs_gpus_which_are_not_here_does_not_begin(section, tmp_path, capsys):
    pytest.importorskip("vllm")
    config = make_tiny(tmp_path, **{f"{section}.engine.type": "vllm", f"{section}.engine.tensor_parallel": 2})
    assert main(["run", str(config)]) == 2
    assert f"{section}.engine needs 2 GPUs (tensor_parallel = 2" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "store").exists()
    assert main(["start", str(config)]) == 0, "for other machines"


@pytest.mark.timeout(240)
def test_a_cache_too_small_for_the_asked_length_is_refused_in_one_line(students):
    settings = VllmEngine(cpu_kv_cache_gb=0.001, max_model_len=4096)
    with pytest.raises(UserError, match="vLLM cannot hold .*KV cache.*raise rollout.engine.cpu_kv_cache_gb") as error:
        VllmRollouts(settings, Model(path=str(students[0])), students[0])
    assert "\n" not in str(error.value)


def test_an_engines_process_sends_no_statistics_and_takes_no_plugin(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "40")
    found = environment(3, ["2", "5"], eager=False)
    assert found["OMP_NUM_THREADS"] == "3" and found["CUDA_VISIBLE_DEVICES"] == "2,5"
    assert found["VLLM_NO_USAGE_STATS"] == found["HF_HUB_OFFLINE"] == "1" and found["VLLM_PLUGINS"] == ""
    assert "VLLM_CPU_KVCACHE_SPACE" not in found and "TORCHDYNAMO_DISABLE" not in found


PARENT = """
import sys
from pipeline.vllm.start import EngineProcess
process = EngineProcess(1, [], True)
process.send("open", {"folder": "nowhere", "options": {}, "cpu": {}, "gpu": {}})
print(process.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_an_engines_process_dies_with_its_parent(how):
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    pid = int(parent.stdout.readline())
    os.kill(pid, signal.SIGINT)  # Ctrl-C reaches the whole group: the parent decides
    time.sleep(0.3)
    assert Path(f"/proc/{pid}").exists()
    parent.send_signal(how)
    parent.wait()
    deadline = time.monotonic() + 20
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_messages_arrive_as_they_were_sent():
    ours, theirs = Pipe()
    arrays = {"a": np.arange(5, dtype=np.int32), "b": np.array([], np.float32), "c": np.array([2**62], np.int64)}
    send(ours, {"call": "x", "arguments": {"text": "é\n"}}, **arrays)
    header, found = receive(theirs)
    assert header == {"call": "x", "arguments": {"text": "é\n"}} and list(found) == list(arrays)
    for name, each in arrays.items():
        assert found[name].dtype == each.dtype and found[name].tolist() == each.tolist()
    ours.close()
    with pytest.raises(EOFError):
        receive(theirs)


@pytest.mark.parametrize("engines", [1, 2, 3, 7])
def test_rollouts_of_several_engines_come_back_in_order_and_a_prompts_samples_stay_together(engines):
    rng = np.random.default_rng(engines)
    prompts = [np.array([n % 5, 7], np.int32) for n in range(15)]
    parts = _parts(prompts, engines)
    assert sorted(i for part in parts for i in part) == list(range(15))
    for key in range(5):
        assert len({at for at, part in enumerate(parts) for i in part if i % 5 == key}) == 1
    lengths = rng.integers(1, 4, 15)
    answers = [{"sizes": lengths[part], "stopped": np.array([i % 2 for i in part], np.uint8),
                "token_ids": np.concatenate([np.full(lengths[i], i, np.int32) for i in part]),
                "log_probs": np.concatenate([np.arange(lengths[i], dtype=np.float32) - i for i in part]),
                "sampling_log_probs": np.zeros(lengths[part].sum(), np.float32)} for part in parts if part]
    joined = _in_order([part for part in parts if part], answers)
    for i in range(15):
        assert joined.tokens(i).tolist() == [i] * lengths[i]
        assert joined.log_probs[joined.offsets[i]:joined.offsets[i + 1]].tolist() == [j - i for j in range(lengths[i])]
        assert joined.finish_reasons[i] == ("stop" if i % 2 else "length")
