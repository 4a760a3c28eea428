"""Every malformed input ends in one clear line and a failing status, and leaves alone what is there.

All of them run in this process, which is quick; python -m tests.malformed runs them as real processes and prints counts.
"""

import pytest

from tests.malformed.cases import all_cases
from tests.malformed.runner import Case, Place, run_case

CASES = all_cases()
GROUPS = list(dict.fromkeys(case.group for case in CASES))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("malformed") / "place")


def test_there_are_many():
    assert len({case.id for case in CASES}) == len(CASES) >= 200 and len(GROUPS) >= 8


@pytest.mark.parametrize("group", GROUPS)
def test_group(place, group):
    faults = {case.id: found for case in CASES if case.group == group and (found := run_case(case, place))}
    assert not faults, "\n".join(f"{name}: {'; '.join(found)}" for name, found in faults.items())


def test_the_judge_sees_faults(place):
    """A run that succeeds, one that says nothing, one that writes, one that runs its input."""
    assert "status 0" in run_case(Case("x", "success", ["dataset.render", "--help"]), place)
    assert any("does not say" in fault for fault in run_case(Case("x", "other words", ["sap3d.report"], None, "no such words"), place))
    assert any("changed files" in fault for fault in run_case(Case("x", "writes", ["dataset.render", "{inputs}/a.obj", "--type", "T2", "--name", "m", "--views", "1", "--input-size", "16", "--test-size", "16"], lambda p: (p.inputs / "a.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 2 3\nf 1 2 4\n")), place))
