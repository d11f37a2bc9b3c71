"""The wheel carries everything `opd` needs: built, unpacked elsewhere, run from there."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_wheel_installed_elsewhere_runs_opd_and_its_sql(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("opd_rounds-*.whl")
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True)
    names = zipfile.ZipFile(wheel).namelist()
    assert {"sql/views/tokens.sql", "sql/reports/worst_tokens.sql"} <= set(names)
    assert {"pipeline/report/templates/report.html.j2", "pipeline/report/templates/report.css"} <= set(names)
    assert not [name for name in names if name.startswith(("tests", "benchmarks"))]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    script = site / "bin/opd"

    def opd(*arguments):
        return subprocess.run([sys.executable, str(script), *arguments], cwd=tmp_path, env=environment, text=True,
                              capture_output=True)

    assert "verify" in opd("--help").stdout
    where = subprocess.run([sys.executable, "-c", "import storage; print(storage.__file__)"], cwd=tmp_path,
                           env=environment, text=True, capture_output=True).stdout
    assert where.startswith(str(site))
    assert opd("init", "my.toml").returncode == 0
    subprocess.run([sys.executable, "-c", "from storage.objects import open_store; open_store('s', create=True)"],
                   cwd=tmp_path, env=environment, check=True)
    asked = opd("sql", "overlap_by_round", "--store", "s", "--json")
    assert asked.returncode == 0 and asked.stdout.strip() == "[]", asked.stderr
