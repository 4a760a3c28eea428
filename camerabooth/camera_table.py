"""The photos' cameras as parameters: a delta to each initial camera, where zero is the identity."""

from __future__ import annotations

from typing import Mapping

import torch
from torch import Tensor, nn

from sap3d.cameras import Camera, wrap_to_pi


class CameraTable(nn.Module):
    """Polar angle, azimuth and radius of N views.

    ``delta`` (N, 3) holds d_polar (radians), d_azimuth (radians), d_log_radius. The first view's azimuth is the gauge
    and stays. A common change of all polar angles does not move the condition (it sees differences only), so test-time
    training cannot repair absolute elevation.
    """

    def __init__(self, cameras: Mapping[str, Camera]):
        super().__init__()
        self.names = list(cameras)
        self.fov_rad = [c.fov_rad for c in cameras.values()]
        self.register_buffer("initial", torch.tensor([[c.polar_rad, c.azimuth_rad, c.radius] for c in cameras.values()], dtype=torch.float64))
        self.delta = nn.Parameter(torch.zeros(len(self.names), 3, dtype=torch.float64))
        free = torch.ones(len(self.names), 3, dtype=torch.float64)
        free[0, 1] = 0.0
        self.register_buffer("free", free)

    def values(self) -> Tensor:
        """(N, 3): polar, azimuth, radius, differentiable."""
        delta = self.delta * self.free
        polar = (self.initial[:, 0] + delta[:, 0]).clamp(0.02, torch.pi - 0.02)
        return torch.stack([polar, self.initial[:, 1] + delta[:, 1], self.initial[:, 2] * delta[:, 2].exp()], dim=1)

    def pose(self, target: Tensor, condition: Tensor, mirrored: Tensor | None = None) -> Tensor:
        """Zero-1-to-3's T (B, 4) for view indices (B,); a mirrored pair has the azimuth difference's sign changed."""
        values = self.values()
        difference = values[target] - values[condition]
        azimuth = difference[:, 1] if mirrored is None else torch.where(mirrored, -difference[:, 1], difference[:, 1])
        return torch.stack([difference[:, 0], azimuth.sin(), azimuth.cos(), difference[:, 2]], dim=1).float()

    def anchor_loss(self) -> Tensor:
        return (self.delta * self.free).square().sum(1).mean().float()

    def cameras(self) -> dict[str, Camera]:
        values = self.values().detach().cpu().numpy()
        return {
            name: Camera(float(polar), float(wrap_to_pi(azimuth)), float(radius), fov)
            for name, (polar, azimuth, radius), fov in zip(self.names, values, self.fov_rad)
        }
