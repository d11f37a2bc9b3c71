"""The stand-in for pydantic gives every section of the config the defaults that the real one gives it."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHOWN = """
import json, sys
if {without}:
    sys.modules["pydantic"] = None
    import importlib.util
    look = importlib.util.find_spec
    importlib.util.find_spec = lambda name, package=None: None if name == "pydantic" else look(name, package)
    del sys.modules["pydantic"]
    from benchmarks import gpu_plain
    assert gpu_plain.provide()
from pipeline.config.model import TailBucketTopK, TeacherTopKLsm
from pipeline.config.score import Score
from pipeline.config.train import Train
simple = (int, float, str, bool, type(None))
found = dict()
for section in (Score(head_rows=7), Train(precision="bfloat16"), TeacherTopKLsm(), TailBucketTopK()):
    found[type(section).__name__] = dict((name, value) for name, value in vars(section).items()
                                         if isinstance(value, simple))
print(json.dumps(found))
"""


def shown(without: bool) -> dict:
    run = subprocess.run([sys.executable, "-c", SHOWN.format(without=without)], cwd=ROOT, capture_output=True,
                         text=True, check=True)
    return json.loads(run.stdout)


def test_defaults_and_what_is_given_are_the_same_with_and_without_pydantic():
    plain = shown(without=True)
    assert plain == shown(without=False)
    assert plain["Score"]["head_rows"] == 7 and plain["Train"]["precision"] == "bfloat16"


def test_a_key_that_does_not_exist_is_refused_without_pydantic_too():
    code = SHOWN.format(without=True) + "\nScore(no_such_key=1)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1 and "Score has no no_such_key" in run.stderr
