"""Numbers that follow from a name alone, so that two programs can fill a network with the same random weights."""

from __future__ import annotations

import hashlib
from typing import Mapping

import numpy as np
import torch
from torch import Tensor


def seeded(name: str, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers float32 of a shape: numpy's frozen RandomState, seeded by the first 8 hexadecimal digits of the
    name's SHA-256."""
    state = np.random.RandomState(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))
    return torch.from_numpy(state.standard_normal(shape).astype(np.float32).reshape(shape))


def seeded_weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """A weight of a size at which signals neither die nor grow: matrices and kernels by 1 / sqrt(inputs), gains around 1."""
    draw = seeded(name, shape)
    if len(shape) >= 2:
        return draw / np.sqrt(max(int(np.prod(shape[1:])), 1))
    return 1 + 0.1 * draw if name.endswith("weight") else 0.1 * draw


def seeded_state(shapes: Mapping[str, list[int]]) -> dict[str, Tensor]:
    return {name: seeded_weight(name, tuple(shape)) for name, shape in shapes.items()}
