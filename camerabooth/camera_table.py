"""The photos' cameras as parameters: a delta to each initial camera, where zero is the identity."""

from __future__ import annotations

from typing import Mapping

import torch
from torch import Tensor, nn

from sap3d.cameras import Camera, wrap_to_pi

POLE_RAD = 0.02  # polar angle, or what it lacks of pi, below which an azimuth means nothing
DETERMINED = 3  # from so many photos on, outlines give more equations (two a pair of views) than cameras have unknowns


def freedom_of(confidence: Mapping[str, float]) -> dict[str, float]:
    """How far test-time training may move each camera, from stage 1's confidence in it.

    Stage 1's cameras, where it is sure of them and the outlines determine them, are exact to about 0.1 degrees, and the gradient of
    the diffusion loss moves them away by more than that; where it is not sure, or with two photos, the gradient is all there is.
    """
    if len(confidence) < DETERMINED:
        return dict.fromkeys(confidence, 1.0)
    return {name: 1.0 - value for name, value in confidence.items()}


class CameraTable(nn.Module):
    """Polar angle, azimuth and radius of N views.

    ``delta`` (N, 3) holds d_polar (radians), d_azimuth (radians), d_log_radius, each times ``freedom`` of its view, a factor
    in [0, 1]: 1 for a camera that may move, 0 for one that is known. The first view's azimuth is the gauge and stays. The
    published condition sees differences of polar angles only, so with it test-time training cannot repair a common error in
    elevation; a plane sweep sees the polar angles themselves.
    """

    def __init__(self, cameras: Mapping[str, Camera], freedom: Mapping[str, float] | None = None):
        super().__init__()
        self.names = list(cameras)
        self.fov_rad = [c.fov_rad for c in cameras.values()]
        self.register_buffer("tangent", torch.tensor(self.fov_rad, dtype=torch.float64).div(2).tan())
        self.register_buffer("initial", torch.tensor([[c.polar_rad, c.azimuth_rad, c.radius] for c in cameras.values()], dtype=torch.float64))
        self.delta = nn.Parameter(torch.zeros(len(self.names), 3, dtype=torch.float64))
        free = torch.tensor([[1.0 if freedom is None else freedom[name]] * 3 for name in self.names], dtype=torch.float64)
        free[0, 1] = 0.0
        self.register_buffer("free", free)

    def values(self) -> Tensor:
        """(N, 3): polar, azimuth, radius, differentiable. Cameras do not come nearer to a pole than ``POLE_RAD``, or than they were at first."""
        delta, first = self.delta * self.free, self.initial[:, 0]
        polar = (first + delta[:, 0]).maximum(first.clamp_max(POLE_RAD)).minimum(first.clamp_min(torch.pi - POLE_RAD))
        return torch.stack([polar, self.initial[:, 1] + delta[:, 1], self.initial[:, 2] * delta[:, 2].exp()], dim=1)

    def pose(self, target: Tensor, condition: Tensor, mirrored: Tensor | None = None) -> Tensor:
        """Poses (..., 8) of ``sap3d.cameras.pose_condition`` for view indices that broadcast; differentiable.

        mirrored: of the targets' shape (B,); a mirrored pair has the azimuth difference's sign changed.
        """
        values = self.values()
        target, condition = torch.broadcast_tensors(target, condition)
        difference, start = values[target] - values[condition], values[condition]
        azimuth = difference[..., 1]
        if mirrored is not None:
            azimuth = torch.where(mirrored.to(azimuth.device).view(-1, *[1] * (azimuth.ndim - 1)), -azimuth, azimuth)
        parts = [difference[..., 0], azimuth.sin(), azimuth.cos(), difference[..., 2], start[..., 0], start[..., 2], self.tangent[condition], self.tangent[target]]
        return torch.stack(parts, dim=-1).float()

    def anchor_loss(self) -> Tensor:
        return (self.delta * self.free).square().sum(1).mean().float()

    def cameras(self) -> dict[str, Camera]:
        values = self.values().detach().cpu().numpy()
        return {
            name: Camera(float(polar), float(wrap_to_pi(azimuth)), float(radius), fov)
            for name, (polar, azimuth, radius), fov in zip(self.names, values, self.fov_rad)
        }
