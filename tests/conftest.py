"""Shared by all tests: no setting of the surrounding shell reaches them."""

import os

import pytest

os.environ.pop("ROOT_DIR", None)
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # results must not depend on the machine
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are so small that threads would only wait for each other
import sap3d.compat  # noqa: E402, F401  (before anything imports torchvision)


@pytest.fixture(autouse=True)
def _undisturbed(monkeypatch):
    monkeypatch.delenv("ROOT_DIR", raising=False)
