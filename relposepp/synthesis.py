"""Judging camera configurations by view synthesis: each photo rendered from the others, and compared with what it shows.

The renderer (sap3d/zero123/multiplane.py) was trained to render a view of an object from other views and their poses; under
wrong poses it cannot. Unlike the visual hull and the colours of corresponding points (relposepp/consistency.py) it has an
opinion on a single pair: it has learned what objects look like from other sides.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sap3d.cameras import FOV_RAD
from sap3d.images import resize


class Synthesis:
    """renderer: a ``MultiplaneRenderer``; images: straight RGBA photos (S, S, 4); size: side of the compared views."""

    def __init__(self, renderer, images: list[np.ndarray], size: int = 64):
        self.renderer, self.size = renderer, size
        small = np.stack([resize(image, renderer.config.condition_size) for image in images])
        ink = np.concatenate([(1 - small[..., :3]) * small[..., 3:], small[..., 3:]], -1)
        self.ink = torch.from_numpy(ink).permute(0, 3, 1, 2).float()
        self.truth = F.interpolate(self.ink, (size, size), mode="area")

    @torch.no_grad()
    def errors(self, elevation: Tensor, azimuth: Tensor, radius: Tensor, batch: int = 8) -> Tensor:
        """(K, N) mean squared error, ink and coverage, of each photo rendered from the others under K configurations.

        elevation, azimuth (radians), radius: (K, N).
        """
        columns = []
        for view in range(len(self.ink)):
            others = [k for k in range(len(self.ink)) if k != view]
            pose = relative_poses(elevation, azimuth, radius, view, others)
            ink = self.ink[others][None]
            rendered = [self.renderer(ink.expand(len(p), -1, -1, -1, -1), p, self.size) for p in pose.split(batch)]
            columns.append((torch.cat(rendered) - self.truth[view]).square().mean((1, 2, 3)))
        return torch.stack(columns, 1)


def relative_poses(elevation: Tensor, azimuth: Tensor, radius: Tensor, target: int, conditions: list[int]) -> Tensor:
    """(K, M, 8) of ``sap3d.cameras.pose_condition`` for target and condition views of configurations (K, N)."""
    polar = torch.pi / 2 - elevation
    difference = lambda values: values[:, [target]] - values[:, conditions]  # noqa: E731
    turn = difference(azimuth)
    tangent = torch.full_like(turn, float(np.tan(FOV_RAD / 2)))
    parts = [difference(polar), turn.sin(), turn.cos(), difference(radius), polar[:, conditions], radius[:, conditions], tangent, tangent]
    return torch.stack(parts, -1).float()
