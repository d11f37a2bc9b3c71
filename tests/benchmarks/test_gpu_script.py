"""benchmarks/gpu.py as a whole, at toy sizes on the CPU, without the packages that a GPU host lacks."""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu_figures import Figure

ROOT = Path(__file__).parents[2]
ABSENT = ("pydantic", "pydantic_core", "duckdb", "prefect", "vllm", "datasets", "peft", "mlflow")
SITE = f"""
import importlib.util, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
look = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] in {ABSENT!r} else look(name, package)
sys.meta_path.insert(0, Absent())
"""
"""Python runs a sitecustomize.py that it finds before anything else."""


def script(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    (folder / "sitecustomize.py").write_text(SITE)
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *arguments], cwd=folder,
                          env=environment, capture_output=True, text=True)


@pytest.mark.timeout(240)
def test_the_whole_script_runs_with_torch_transformers_and_pyarrow_alone(tmp_path):
    said = script(tmp_path, "--device", "cpu", "--tiny", "--out", str(tmp_path / "gpu.json"))
    assert said.returncode == 0, said.stdout[-3000:] + said.stderr[-3000:]
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["machine"]["pydantic"] == "stand-in" and not result["failures"]
    verdicts = {row["name"]: row["verdict"] for row in result["figures"]}
    assert "missed" not in verdicts.values() and verdicts["scorer packed float32: teacher_log_prob"] == "met"
    assert verdicts["gemm float32/float32: gradients' error / tolerance"] == "met"
    for section in ("trainer teacher_topk_lsm", "normaliser d 24", "scoring 0.5B", "training 0.5B"):
        assert any(name.startswith(section) for name in verdicts)
    table, paste = said.stdout.split("=== table\n")[1].split("\n=== for MEASURED")
    assert [line[:74].rstrip() for line in table.splitlines()] == [name[:74] for name in verdicts]
    assert re.fullmatch(r' {4}"CPU": Rates\([\d.e+]+, [\d.e+]+, \{.*"float32": [\d.e+]+.*\}\),', paste.splitlines()[1])


def test_a_gpu_that_is_not_there_and_full_sizes_on_a_cpu_are_refused_in_one_line(tmp_path):
    for arguments in (["--device", "cpu"], ["--device", "cuda"]):
        said = script(tmp_path, *arguments, "--only", "checks", "--out", str(tmp_path / "none.json"))
        if "cuda" in arguments and said.returncode != 2:
            pytest.skip("there is a GPU")
        assert said.returncode == 2 and said.stderr.startswith("error: ") and len(said.stderr.splitlines()) == 1


def test_a_figure_says_whether_its_target_is_met():
    assert [Figure("f", value, "s", 10.0, at_most).verdict for value, at_most in
            ((9.0, True), (11.0, True), (9.0, False), (11.0, False))] == ["met", "missed", "missed", "met"]
    assert Figure("f", None, "s", 10.0).verdict == "not measured" and Figure("f", 3.0, "s").verdict == ""


CHILD = """
import argparse, os, sys, time
from pathlib import Path
from benchmarks.gpu import STICKY
from benchmarks.gpu_cases import Book, attempt
from benchmarks.gpu_figures import Figure

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path)
parser.add_argument("--started", type=float)
options = parser.parse_known_args()[0]
book = Book(options.out, options.started)

def broken():
    raise RuntimeError("no such kernel")

def sound():
    return [Figure("kept", 1.0, "s")]

for name, case in (("broken", broken), ("killed", lambda: os._exit(9)), ("slow", lambda: time.sleep(60)),
                   ("fatal", broken), ("sound", sound)):
    if name in book.content["done"]:
        continue
    book.begin("checks", name)
    figures, failure = attempt(case)
    book.enter(name, figures, failure, 0.1)
    if name == "fatal":
        sys.exit(STICKY)
"""
"""Cases as the script runs them, which fail in every way that a GPU knows."""


def test_a_case_that_fails_hangs_or_kills_its_process_is_reported_and_the_others_still_count(monkeypatch, tmp_path,
                                                                                           capfd):
    (tmp_path / "child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(gpu, "CASE_S", 1)
    options = argparse.Namespace(device="cpu", tiny=True, only=["checks"], out=tmp_path / "gpu.json")
    partial = tmp_path / "gpu.partial.json"
    assert gpu.cases(options, partial, time.time(), tmp_path / "child.py") == 0
    assert gpu.read(partial)["done"] == ["broken", "killed", "slow", "fatal", "sound"]
    assert gpu.finish(options, partial, 12.0) == 1
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["name"] for row in result["figures"]] == ["kept", "the whole script"] and not partial.exists()
    assert result["failures"]["killed"] == "its process left with code 9"
    assert result["failures"]["slow"] == "ended after 1 s"
    assert "failed: RuntimeError: no such kernel" in capfd.readouterr().out


def test_what_is_still_running_when_time_is_up_is_ended_and_what_was_found_is_kept(monkeypatch, tmp_path):
    (tmp_path / "child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    options = argparse.Namespace(device="cpu", tiny=True, only=["checks"], out=None)
    monkeypatch.setattr(gpu, "LIMIT_S", 0.5)
    assert gpu.cases(options, tmp_path / "gpu.json", time.time(), tmp_path / "child.py") == 1
    assert gpu.read(tmp_path / "gpu.json")["done"][0] in ("broken", "the process of the cases")


def test_a_section_whose_time_is_up_leaves_its_figures_unmeasured(tmp_path):
    late = time.time() - gpu.UNTIL_S["checks"] - 1
    said = script(tmp_path, "--device", "cpu", "--tiny", "--only", "checks", "--out", str(tmp_path / "gpu.json"),
                  "--started", str(late))
    assert said.returncode == 0, said.stderr[-2000:]
    assert {row["verdict"] for row in json.loads((tmp_path / "gpu.json").read_text())["figures"]} == {"not measured"}
