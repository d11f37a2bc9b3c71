"""benchmarks/gpu.py as a whole, at toy sizes on the CPU, without the packages that a GPU host lacks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_tools import Figure

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
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
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
    table = said.stdout.split("=== table\n")[1].splitlines()
    assert [line[:74].rstrip() for line in table] == [name[:74] for name in verdicts]


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


def test_a_case_that_fails_is_reported_and_the_others_still_count(monkeypatch, tmp_path, capsys):
    from benchmarks import gpu, gpu_checks

    def broken():
        raise RuntimeError("no such kernel")

    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(gpu_checks, "cases", lambda bench: [("first", broken), ("second", lambda: [
        Figure("kept", 1.0, "s")])])
    assert gpu.main(["--device", "cpu", "--tiny", "--only", "checks", "--out", str(tmp_path / "gpu.json")]) == 1
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert list(result["failures"]) == ["first"] and result["figures"][0]["name"] == "kept"
    assert "failed: RuntimeError: no such kernel" in capsys.readouterr().out


def test_a_section_whose_time_is_up_leaves_its_figures_unmeasured(monkeypatch, tmp_path):
    from benchmarks import gpu, gpu_checks

    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setitem(gpu.BUDGET_S, "checks", -1)
    monkeypatch.setattr(gpu_checks, "cases", lambda bench: [("late", lambda: [])])
    assert gpu.main(["--device", "cpu", "--tiny", "--only", "checks", "--out", str(tmp_path / "gpu.json")]) == 0
    assert json.loads((tmp_path / "gpu.json").read_text())["figures"][0]["verdict"] == "not measured"
