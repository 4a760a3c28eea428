"""Shared by all tests: no setting of the surrounding shell reaches them."""

import os

import pytest

os.environ.pop("ROOT_DIR", None)
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # results must not depend on the machine
import sap3d.compat  # noqa: E402, F401  (before anything imports torchvision)


@pytest.fixture(autouse=True)
def _undisturbed(monkeypatch):
    monkeypatch.delenv("ROOT_DIR", raising=False)
