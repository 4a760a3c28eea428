"""Shared by all tests: no setting of the surrounding shell reaches them."""

import os

import pytest

os.environ.pop("ROOT_DIR", None)
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # results must not depend on the machine
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are so small that threads would only wait for each other
import sap3d.compat  # noqa: E402, F401  (before anything imports torchvision)


from tests.tiny_scene import make_tiny_object, opened, run, watched  # noqa: E402


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """(scene, what was printed, ground truth opened by each program): one run from start to end, watched, from another
    directory and with a relative ROOT_DIR."""
    folder = tmp_path_factory.mktemp("undisturbed")
    scene = make_tiny_object(folder / "root")
    printed = run("root", cwd=folder, variables=watched(scene) | {"ROOT_DIR": "root"})
    return scene, printed, opened(scene)


@pytest.fixture(autouse=True)
def _undisturbed(monkeypatch):
    monkeypatch.delenv("ROOT_DIR", raising=False)
