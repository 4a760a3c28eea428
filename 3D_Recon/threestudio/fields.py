"""Radiance fields: density and colour of every point of the object's box, behind one small interface.

``Field`` says what the renderer, the regularisers and the exporters rely on. ``DenseGrid`` is the choice for a CPU: one
trilinear lookup a sample, which PyTorch does at several million points a second on two cores.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F

from .regularisers import add_variation_gradient

DENSITY_UNIT = 40.0  # density at softplus(raw) = 1, per object length: a raw value of 1 is opaque within some 0.03


class Field(torch.nn.Module, ABC):
    """Density and colour of points in an axis-aligned box.

    ``bounds`` (2, 3): lower and upper corner of the box, world units. Points outside it are never asked for.
    """

    bounds: torch.Tensor

    @abstractmethod
    def forward(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Density (P,), per object length, at least 0, and colour (P, 3) in [0, 1] at world points (P, 3)."""

    @abstractmethod
    def density(self, points: torch.Tensor) -> torch.Tensor:
        """Density (P,) alone."""

    @abstractmethod
    def voxel_size(self) -> float:
        """The smallest detail that the field can hold, world units: the renderer's step follows it."""

    @abstractmethod
    def add_variation_gradient(self, density_weight: float, colour_weight: float, local: torch.Tensor | None = None) -> None:
        """Add the gradient of a total variation of density and colour to the parameters' gradients.

        ``local`` (X, Y, Z), cells of the box, multiplies the weights there.
        """

    def normals(self, points: torch.Tensor, epsilon: float | None = None) -> torch.Tensor:
        """Unit outward normals (P, 3): minus the direction of the density's gradient, by central differences."""
        epsilon = epsilon or self.voxel_size()
        offsets = epsilon * torch.eye(3, device=points.device, dtype=points.dtype)
        sides = torch.cat([points[None] + offsets[:, None], points[None] - offsets[:, None]]).reshape(-1, 3)
        forward, backward = self.density(sides).reshape(2, 3, -1)
        return F.normalize((backward - forward).T, dim=-1, eps=1e-8)


class DenseGrid(Field):
    """Raw density and colour logits at the vertices of a grid, interpolated first and activated afterwards.

    Activation after interpolation lets one voxel hold a sharp surface (DVGO, arXiv 2111.11215, section 4.2).
    ``values`` is (1, 4, Z, Y, X) in channels-last memory: density and the three colours of a vertex lie side by side.
    """

    def __init__(self, bounds: torch.Tensor, voxels: int, density: float = 2.0, colour: torch.Tensor | None = None):
        """``voxels`` is the budget of the whole box, cut into cubes; it starts at uniform ``density`` and ``colour`` (3,)."""
        super().__init__()
        self.register_buffer("bounds", bounds.detach().clone().float())
        values = torch.zeros(1, 4, *self._shape(voxels))
        values[:, 0] = _inverse_softplus(density / DENSITY_UNIT)
        if colour is not None:
            values[:, 1:] = torch.logit(colour.clamp(0.02, 0.98)).view(1, 3, 1, 1, 1)
        self.values = torch.nn.Parameter(_channels_last(values))

    def _shape(self, voxels: int) -> tuple[int, int, int]:
        side = (self.bounds[1] - self.bounds[0]).double()
        size = float((side.prod() / voxels) ** (1 / 3))
        x, y, z = (max(int(round(float(s) / size)) + 1, 4) for s in side)
        return z, y, x

    def voxel_size(self) -> float:
        shape = torch.tensor(self.values.shape[:1:-1], dtype=torch.float32)
        return float(((self.bounds[1] - self.bounds[0]).cpu() / (shape - 1)).min())

    def _interpolate(self, points: torch.Tensor, channels: slice) -> torch.Tensor:
        if points.ndim != 2 or points.shape[-1] != 3:
            raise ValueError(f"points must be (P, 3), got {tuple(points.shape)}")
        unit = (points - self.bounds[0]) * (2 / (self.bounds[1] - self.bounds[0])) - 1
        sampled = F.grid_sample(self.values[:, channels], unit.view(1, -1, 1, 1, 3), align_corners=True, padding_mode="border")
        return sampled[0, :, :, 0, 0]

    def forward(self, points):
        raw = self._interpolate(points, slice(0, 4))
        return F.softplus(raw[0]) * DENSITY_UNIT, torch.sigmoid(raw[1:]).T

    def density(self, points):
        return F.softplus(self._interpolate(points, slice(0, 1))[0]) * DENSITY_UNIT

    def add_variation_gradient(self, density_weight, colour_weight, local=None):
        weights = torch.tensor([density_weight] + [colour_weight] * 3, device=self.values.device)
        limits = torch.tensor([1.0, 0.5, 0.5, 0.5], device=self.values.device)  # of raw values: see regularisers
        if local is not None:
            local = F.interpolate(local.permute(2, 1, 0)[None, None], self.values.shape[2:], mode="trilinear")
        add_variation_gradient(self.values, weights, limits, local)

    @torch.no_grad()
    def refine(self, voxels: int) -> None:
        """Resample the grid to another budget of voxels; the function it holds stays the same up to interpolation."""
        self.set_values(F.interpolate(self.values.contiguous(), self._shape(voxels), mode="trilinear", align_corners=True))

    def set_values(self, values: torch.Tensor) -> None:
        """Replace the grid by (1, 4, Z, Y, X) raw values of any size."""
        self.values = torch.nn.Parameter(_channels_last(values.detach().clone()))


def _channels_last(values: torch.Tensor) -> torch.Tensor:
    return values.contiguous(memory_format=torch.channels_last_3d)


def _inverse_softplus(value: float) -> float:
    return float(torch.log(torch.expm1(torch.tensor(value, dtype=torch.float64))))
