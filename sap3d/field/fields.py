"""Radiance fields: density and colour of every point of the object's box, behind one small interface.

``Field`` says what the renderer, the regularisers, the optimiser and the exporters rely on. ``DenseGrid`` is the choice for a CPU:
one trilinear lookup a sample, which PyTorch does at several million points a second on two cores. ``HashGrid`` holds finer detail in
less memory, at many lookups and a small network a sample.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F

from sap3d.volumes import add_variation_gradient, sample_volume

VARIATION_LIMITS = (1.0, 0.5, 0.5, 0.5)  # of density and colours, raw: larger differences cost linearly (sap3d/volumes.py)
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
    def refine(self, voxels: int) -> None:
        """Let the field hold finer detail, as a grid of ``voxels`` cubes would; what it shows stays the same up to interpolation."""

    @abstractmethod
    def parameter_groups(self, rate: float) -> list[dict]:
        """Groups for an optimiser, each with its learning rate as ``base``; ``rate`` is that of a dense grid's raw values."""

    def state(self) -> dict:
        """All that ``load_state`` needs, as tensors and numbers."""
        return dict(self.state_dict())

    def load_state(self, state: dict) -> None:
        """Take up what ``state`` gave."""
        self.load_state_dict(state)

    @abstractmethod
    def add_variation_gradient(self, density_weight: float, colour_weight: float, local: torch.Tensor | None = None, generator: torch.Generator | None = None) -> None:
        """Add the gradient of a total variation of density and colour to the parameters' gradients.

        ``local`` (X, Y, Z), cells of the box, multiplies the weights there; ``generator``: for a field that estimates it.
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
        return sample_volume(self.values[:, channels], unit, align_corners=True)

    def forward(self, points):
        raw = self._interpolate(points, slice(0, 4))
        return F.softplus(raw[0]) * DENSITY_UNIT, torch.sigmoid(raw[1:]).T

    def density(self, points):
        return F.softplus(self._interpolate(points, slice(0, 1))[0]) * DENSITY_UNIT

    def add_variation_gradient(self, density_weight, colour_weight, local=None, generator=None):
        weights = torch.tensor([density_weight] + [colour_weight] * 3, device=self.values.device)
        limits = torch.tensor(VARIATION_LIMITS, device=self.values.device)
        if local is not None:
            local = F.interpolate(local.permute(2, 1, 0)[None, None], self.values.shape[2:], mode="trilinear")
        add_variation_gradient(self.values, weights, limits, local)

    @torch.no_grad()
    def refine(self, voxels: int) -> None:
        """Resample the grid to another budget of voxels; the function it holds stays the same up to interpolation."""
        self.set_values(F.interpolate(self.values.contiguous(), self._shape(voxels), mode="trilinear", align_corners=True))

    def parameter_groups(self, rate):
        return [{"params": [self.values], "base": rate}]

    def load_state(self, state):
        self.set_values(state["values"])  # of any size

    def set_values(self, values: torch.Tensor) -> None:
        """Replace the grid by (1, 4, Z, Y, X) raw values of any size."""
        self.values = torch.nn.Parameter(_channels_last(values.detach().clone()))


class HashGrid(Field):
    """Levels of ever finer grids whose vertices share a table of features by a hash, and a small network (Instant-NGP, arXiv 2201.05989).

    A vertex (x, y, z) has row (x ^ 2654435761 y ^ 805459861 z) mod T of its level's table, coarse levels a row of their own each.
    Levels finer than ``refine`` has allowed yet are multiplied by zero (coarse to fine, as in Neuralangelo, arXiv 2306.03092).
    """

    PRIMES = (1, 2654435761, 805459861)
    FEATURES = 2
    TABLE_RATE, NETWORK_RATE = 0.2, 0.034  # of the rate of a dense grid's raw values
    PROBES = 2048  # points of the total variation's estimate

    def __init__(self, bounds: torch.Tensor, voxels: int, density: float = 2.0, colour: torch.Tensor | None = None, levels: int = 10, table: int = 1 << 15,
                 coarsest: int = 8, finest: int = 256, width: int = 32):  # fmt: skip
        """``voxels``, ``density``, ``colour``: as for a dense grid; ``table``: rows a level; ``coarsest``, ``finest``: cells of the first and
        last level along the longest side of the box."""
        super().__init__()
        self.register_buffer("bounds", bounds.detach().clone().float())
        growth = (finest / coarsest) ** (1 / max(levels - 1, 1))
        self.register_buffer("resolutions", torch.tensor([round(coarsest * growth**k) for k in range(levels)]))
        self.register_buffer("voxels", torch.tensor(voxels))
        generator = torch.Generator().manual_seed(0)
        self.table = torch.nn.Parameter((2 * torch.rand(levels, table, self.FEATURES, generator=generator) - 1) * 1e-3)
        draw = lambda rows, columns: torch.nn.Parameter(torch.randn(rows, columns, generator=generator) * (2 / columns) ** 0.5)  # noqa: E731
        self.hidden, self.output = draw(width, levels * self.FEATURES), draw(4, width)
        self.bias = torch.nn.Parameter(torch.zeros(width))
        start = torch.zeros(4)
        start[0] = _inverse_softplus(density / DENSITY_UNIT)
        if colour is not None:
            start[1:] = torch.logit(colour.clamp(0.02, 0.98))
        self.start = torch.nn.Parameter(start)

    def voxel_size(self) -> float:
        side = (self.bounds[1] - self.bounds[0]).double().cpu()
        return float((side.prod() / int(self.voxels)) ** (1 / 3))

    def refine(self, voxels: int) -> None:
        self.voxels.fill_(voxels)

    def parameter_groups(self, rate):
        network = [self.hidden, self.output, self.bias, self.start]
        return [{"params": [self.table], "base": rate * self.TABLE_RATE}, {"params": network, "base": rate * self.NETWORK_RATE}]

    def _features(self, points: torch.Tensor) -> torch.Tensor:
        """(P, levels * FEATURES): trilinear means of the table's rows at the eight vertices around each point, level by level."""
        if points.ndim != 2 or points.shape[-1] != 3:
            raise ValueError(f"points must be (P, 3), got {tuple(points.shape)}")
        longest = (self.bounds[1] - self.bounds[0]).max()
        unit = ((points - self.bounds[0]) / longest).clamp(0, 1)
        smallest = self.voxel_size() / float(longest)
        corners = torch.tensor([[corner >> axis & 1 for axis in range(3)] for corner in range(8)], device=points.device)
        found = []
        for level, resolution in enumerate(self.resolutions.tolist()):
            if level and resolution * smallest > 1.01:  # not yet
                found.append(points.new_zeros(len(points), self.FEATURES))
                continue
            place = unit * resolution
            low = place.floor().clamp(max=resolution - 1)
            share, low = place - low, low.long()
            weight = torch.where(corners.bool(), share[:, None], 1 - share[:, None]).prod(-1, keepdim=True)  # (P, 8, 1)
            rows = self._row((low[:, None] + corners).reshape(-1, 3), resolution)
            found.append((weight * self.table[level][rows].view(-1, 8, self.FEATURES)).sum(1))
        return torch.cat(found, 1)

    def _row(self, vertex: torch.Tensor, resolution: int) -> torch.Tensor:
        rows, side = self.table.shape[1], resolution + 1
        if side**3 <= rows:
            return (vertex[:, 0] * side + vertex[:, 1]) * side + vertex[:, 2]
        x, y, z = (vertex[:, axis] * prime for axis, prime in enumerate(self.PRIMES))
        return (x ^ y ^ z) % rows

    def _raw(self, points: torch.Tensor) -> torch.Tensor:
        return F.relu(self._features(points) @ self.hidden.T + self.bias) @ self.output.T + self.start

    def forward(self, points):
        raw = self._raw(points)
        return F.softplus(raw[:, 0]) * DENSITY_UNIT, torch.sigmoid(raw[:, 1:])

    def density(self, points):
        return F.softplus(self._raw(points)[:, 0]) * DENSITY_UNIT

    def add_variation_gradient(self, density_weight, colour_weight, local=None, generator=None):
        """Of the same penalty as a dense grid's, estimated at ``PROBES`` random points and their neighbours a voxel away."""
        if not (density_weight or colour_weight):
            return
        low, high = self.bounds
        voxel = self.voxel_size()
        unit = torch.rand(self.PROBES, 3, generator=generator).to(low)
        points = low + unit * (high - low - voxel)
        sides = torch.cat([points[None], points[None] + voxel * torch.eye(3, device=low.device)[:, None]]).reshape(-1, 3)
        raw = self._raw(sides).view(4, self.PROBES, 4)
        weights, limits = torch.tensor([density_weight] + [colour_weight] * 3).to(low), torch.tensor(VARIATION_LIMITS).to(low)
        size = (raw[1:] - raw[:1]).abs()
        huber = torch.where(size < limits, 0.5 * size.square(), limits * (size - 0.5 * limits)) * weights
        if local is not None:
            cell = (unit * torch.tensor(local.shape, device=low.device)).long()
            huber = huber * local[cell[:, 0], cell[:, 1], cell[:, 2]][None, :, None]
        (huber.sum() * (int(self.voxels) / self.PROBES)).backward()


FIELDS = {"dense": DenseGrid, "hash": HashGrid}


def _channels_last(values: torch.Tensor) -> torch.Tensor:
    return values.contiguous(memory_format=torch.channels_last_3d)


def _inverse_softplus(value: float) -> float:
    return float(torch.log(torch.expm1(torch.tensor(value, dtype=torch.float64))))
