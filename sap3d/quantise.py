"""Matrices stored in 8 bits, half the size of float16, for weights that travel with a repository. A way to store, not to compute.

Each matrix or convolution kernel is rounded to 255 steps between minus and plus the largest magnitude of each output channel
(symmetric quantisation, Jacob et al., arXiv 1712.05877, section 2.1). Its scales lie beside it, under its name and a suffix.
"""

from __future__ import annotations

from typing import Mapping

from torch import Tensor, int8

SCALE = ".scale"  # suffix of the names of scales


def quantise(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """int8 of the tensor's shape (at least two dimensions) and float32 scales (channels,) of its first dimension."""
    scale = tensor.float().flatten(1).abs().amax(1) / 127
    steps = tensor.float() / scale.clamp_min(1e-30).view(-1, *[1] * (tensor.ndim - 1))
    return steps.round().clamp(-127, 127).to(int8), scale


def restored(stored: Mapping[str, Tensor], suffix: str = SCALE) -> dict[str, Tensor]:
    """Tensors in float32 by name, those multiplied by their scales that have some; raises ValueError for scales of another size than their weights."""
    tensors = {name: value.float() for name, value in stored.items() if not name.endswith(suffix)}
    for name, scale in ((name.removesuffix(suffix), value) for name, value in stored.items() if name.endswith(suffix)):
        if name not in tensors or tensors[name].ndim < 2 or scale.numel() != len(tensors[name]):
            raise ValueError(f"{name}: scales without weights of their size")
        tensors[name] = tensors[name] * scale.float().view(-1, *[1] * (tensors[name].ndim - 1))
    return tensors
