"""benchmarks.recon at a small size: every case measured, one table, one file."""

import json
import subprocess
import sys

from sap3d.scene import REPOSITORY


def test_tiled_and_whole_steps_are_measured(tmp_path):
    command = [sys.executable, "-m", "benchmarks.recon", "--sizes", "24", "--fields", "dense", "--tile", "100", "--out", str(tmp_path / "rows.json")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["field"], row["pixels"], row["tile"]) for row in rows] == [("dense", 24, 100), ("dense", 24, 0)]
    assert all(row["seconds_a_step"] > 0 and row["memory_mb"] >= 0 for row in rows)
    assert "| dense | 24 |" in done.stdout
