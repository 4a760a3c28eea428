"""python -m tests.crash_safety finds no fault, and finds faults where there are some."""

import re
import subprocess
import sys

import pytest

from sap3d.scene import REPOSITORY
from tests.crash_safety import choose


def test_moments_are_spread_over_all_parts():
    trace = [f"{kind} {part}/box/{k}" for part in ("camerabooth/configs/TINY", "camerabooth/experiments_TINY_view_3", "camerabooth/experiments_nvs", "results/TINY") for k in range(9) for kind in ("open", "rename")]
    trace.insert(20, "rename camerabooth/experiments_TINY_view_3/box/checkpoint.pt")
    chosen = choose(trace, 5)
    assert len(chosen) == 4 * 5 + 2 and chosen.count("rename camerabooth/experiments_TINY_view_3/box/checkpoint.pt") == 2
    assert chosen == sorted(chosen, key=trace.index)


@pytest.mark.slow
def test_killed_at_many_moments():
    done = subprocess.run([sys.executable, "-m", "tests.crash_safety"], cwd=REPOSITORY, capture_output=True, text=True)
    print(done.stdout + done.stderr)
    assert done.returncode == 0
    kills = [int(number) for number in re.findall(r"^(\d+) kills", done.stdout, re.M)]
    assert sum(kills) >= 25 and done.stdout.count("as undisturbed") >= 3 and "FAULT" not in done.stdout
