"""Arrows point one way: flows -> pipeline -> storage -> sql; heavy imports stay where they are needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = {"storage": {"storage"}, "pipeline": {"pipeline", "storage"}, "flows": {"flows", "pipeline", "storage"}}
ROOMS = set(ALLOWED) | {"sql", "tests", "benchmarks"}


def imports(file: Path) -> set[str]:
    """Top-level packages that `file` imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_rooms_below_it(room):
    for file in (ROOT / room).rglob("*.py"):
        assert imports(file) & ROOMS <= ALLOWED[room], file


@pytest.mark.parametrize("room", ["pipeline", "storage"])
def test_pipeline_and_storage_never_import_prefect(room):
    for file in (ROOT / room).rglob("*.py"):
        assert "prefect" not in imports(file), file


def loaded_by(code: str) -> set[str]:
    """Modules in a fresh interpreter after `code`."""
    script = f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in run.stdout.split()}


def test_the_command_line_starts_without_anything_heavy():
    loaded = loaded_by("import flows.cli; flows.cli.parser()")
    assert not loaded & {"torch", "transformers", "vllm", "prefect", "duckdb", "datasets", "pyarrow"}


def test_every_module_of_pipeline_and_storage_imports_without_duckdb_prefect_and_vllm():
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for room in ("pipeline", "storage")
             for file in (ROOT / room).rglob("*.py") if file.name != "__init__.py"]
    blocked = "import sys\nfor name in ('duckdb', 'prefect', 'vllm'): sys.modules[name] = None\n"
    loaded_by(blocked + "import importlib\nfor name in " + repr(names) + ": importlib.import_module(name)")
