"""Files as the published weights come in, filled by the recipe of the parity tests (benchmarks/seeded.py)."""

from __future__ import annotations

import pickle
import sys
import types
from pathlib import Path

import torch

from benchmarks.parity import expected_shapes
from sap3d.scene import REPOSITORY

PARITY = REPOSITORY / "tests" / "parity"


def shapes(name: str) -> dict[str, list[int]]:
    return expected_shapes(PARITY, name)


def training_class(name: str, module: str = "pytorch_lightning_gone.callbacks"):
    """A class of a package that is not installed where the file is read."""
    return type(name, (), {"__module__": module, "__init__": lambda self: self.__dict__.update(best=1.0, path="last.ckpt")})


def save_with_training_objects(path: Path, state: dict) -> None:
    """As pytorch-lightning saves: weights beside callbacks, hyper-parameters and counters, whose classes pickle by name."""
    callback, config = training_class("ModelCheckpoint"), training_class("DictConfig", "omegaconf_gone.dictconfig")
    made = []
    for cls in (callback, config):
        module = types.ModuleType(cls.__module__)
        setattr(module, cls.__name__, cls)
        parts = cls.__module__.split(".")
        for k in range(1, len(parts) + 1):
            name = ".".join(parts[:k])
            made.append(name)
            sys.modules.setdefault(name, module if k == len(parts) else types.ModuleType(name))
    try:
        torch.save({"epoch": 3, "global_step": 105000, "state_dict": state, "callbacks": {callback: {"object": callback()}}, "hyper_parameters": config()}, path)
    finally:
        for name in made:
            sys.modules.pop(name, None)


class Hostile:
    """Unpickled, it would make the file stolen.txt."""

    def __reduce__(self):
        return (open, ("stolen.txt", "w"))


def hostile_bytes() -> bytes:
    return pickle.dumps(Hostile())
