"""Volumes on dense grids: values at points, on all threads of a CPU, and a penalty on differences between neighbours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_MOST_PARTS = 4  # each costs memory for a gradient of the whole volume
_FEWEST_POINTS = 2048  # below, parts do not pay


def sample_volume(volume: Tensor, points: Tensor, align_corners: bool) -> Tensor:
    """Trilinear values (C, P) of a volume (1, C, Z, Y, X) at points (P, 3): x, y, z in [-1, 1], beyond that those at the border.

    -1 and 1 are the centres of the outer cells with ``align_corners``, their outer edges without. The same as ``grid_sample``,
    which on a CPU gives every member of a batch a thread, and only that: so the points are cut into a batch.
    """
    parts = min(torch.get_num_threads(), _MOST_PARTS) if points.device.type == "cpu" and len(points) >= _FEWEST_POINTS else 1
    batch = F.pad(points, (0, 0, 0, -len(points) % parts)).view(parts, -1, 1, 1, 3)
    found = F.grid_sample(volume.expand(parts, -1, -1, -1, -1), batch, mode="bilinear", padding_mode="border", align_corners=align_corners)
    return found[..., 0, 0].transpose(0, 1).flatten(1)[:, : len(points)]


@torch.no_grad()
def add_variation_gradient(values: torch.nn.Parameter, weights: torch.Tensor, limits: torch.Tensor, local: torch.Tensor | None = None) -> None:
    """Add to ``values.grad`` the gradient of a Huber penalty on differences between neighbouring vertices.

    values (1, C, Z, Y, X); weights (C,) and limits (C,): beyond its limit a difference costs linearly, so that edges may
    stay. ``local`` (1, 1, Z, Y, X) multiplies the weight of the differences that start at a vertex. Written out because it
    touches the whole grid at every step, and automatic differentiation would take twice as long.
    """
    weight, limit = weights.view(1, -1, 1, 1, 1), limits.view(1, -1, 1, 1, 1)
    for axis in (2, 3, 4):
        count = values.shape[axis] - 1
        difference = values.narrow(axis, 1, count) - values.narrow(axis, 0, count)
        difference = torch.minimum(torch.maximum(difference, -limit), limit).mul_(weight)
        if local is not None:
            difference.mul_(local.narrow(axis, 0, count))
        values.grad.narrow(axis, 1, count).add_(difference)
        values.grad.narrow(axis, 0, count).sub_(difference)
