"""Makes torchvision importable beside a PyTorch without CUDA.

The wheels of torchvision are built against CUDA. Beside a CPU build of PyTorch their compiled operators do not load, and
the import stops because the schemas of ``torchvision::nms`` are missing. Models, transforms and lpips need none of
those operators, so declaring the two schemas is enough. Import this module before torchvision or anything that
imports it (lpips, transformers, pytorch_lightning). Where the operators load, nothing is changed.
"""

from __future__ import annotations

import importlib.util
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # every weight comes from a path; never ask a hub
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

import torch

_library = None


def _declare_schemas() -> None:
    global _library
    if torch.cuda.is_available() or importlib.util.find_spec("torchvision") is None:
        return
    try:
        _library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except RuntimeError:
        pass  # already declared: torchvision was imported before and its operators work


_declare_schemas()
