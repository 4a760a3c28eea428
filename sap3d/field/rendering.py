"""Volume rendering over white: a fast renderer that skips empty and hidden space, and a plain one to check it against.

Both take the same samples: ``sample_distances`` cuts the part of a ray inside the field's box into equal steps and puts
one sample into each, at random when training and in the middle otherwise. A sample of density s stands for its whole
step d, so its opacity is 1 - exp(-s d); the remaining transmittance is multiplied front to back, and what is left at the
end shows the white background (Max 1995; NeRF, arXiv 2003.08934, equation 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from sap3d.field.fields import Field


@dataclass
class Rendering:
    """What rays see. ``depth`` is the mean distance from the ray's origin of the light it receives, 0 where it is empty.

    The samples that were kept, ray by ray in front-to-back order: ``ray`` (S,) index, ``distance`` (S,), ``weight`` (S,)
    share of the ray's light; regularisers work on these.
    """

    colour: torch.Tensor  # (R, 3) over white
    opacity: torch.Tensor  # (R,)
    depth: torch.Tensor  # (R,)
    ray: torch.Tensor
    distance: torch.Tensor
    weight: torch.Tensor


def ray_box(origins: torch.Tensor, directions: torch.Tensor, bounds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances (R,), (R,) at which rays enter and leave a box (2, 3); equal where they miss it."""
    inverse = 1 / torch.where(directions.abs() < 1e-9, torch.full_like(directions, 1e-9), directions)
    first, second = (bounds[0] - origins) * inverse, (bounds[1] - origins) * inverse
    near = torch.minimum(first, second).amax(-1).clamp_min(0)
    far = torch.maximum(first, second).amin(-1)
    return near, torch.maximum(far, near)


def sample_distances(near, far, step: float, generator: torch.Generator | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances (R, K) of one sample in each ``step`` between near and far, and which of them (R, K) lie before far."""
    count = max(int(torch.ceil((far - near).max() / step)), 1) if len(near) else 1
    index = torch.arange(count, device=near.device, dtype=near.dtype)
    if generator is None:
        offset = index[None] + 0.5
    else:
        offset = index[None] + torch.rand(len(near), count, generator=generator).to(near)
    distance = near[:, None] + offset * step
    return distance, distance < far[:, None]


class Occupancy:
    """Which cells of the field's box can hold matter, and how much at least: a cache that lets the renderer skip.

    ``allowed`` (X, Y, Z) bool: cells outside it are empty by decree (the photos' silhouettes exclude
    them), and the renderer treats the density there as zero.
    """

    def __init__(self, bounds: torch.Tensor, allowed: torch.Tensor, threshold: float = 0.3):
        self.bounds, self.allowed, self.threshold = bounds, allowed, threshold
        self.cell = (bounds[1] - bounds[0]) / torch.tensor(allowed.shape, device=bounds.device)
        self.occupied = allowed.clone()
        self.floor = torch.zeros_like(allowed, dtype=torch.float32)  # half the least density found in the cell

    @torch.no_grad()
    def update(self, field: Field) -> None:
        """Look at eight points of each allowed cell. A cell stays occupied if it or a neighbour exceeds the threshold."""
        index = self.allowed.nonzero()
        highest = torch.zeros(len(index), device=index.device)
        lowest = torch.full_like(highest, float("inf"))
        for corner in range(8):
            offset = torch.tensor([0.25 + 0.5 * (corner >> axis & 1) for axis in range(3)], device=index.device)
            density = field.density(self.bounds[0] + (index + offset) * self.cell)
            highest, lowest = torch.maximum(highest, density), torch.minimum(lowest, density)
        dense = torch.zeros_like(self.floor)
        dense[self.allowed] = highest
        self.occupied = (F.max_pool3d(dense[None, None], 3, 1, 1)[0, 0] > self.threshold) & self.allowed
        self.floor = torch.zeros_like(dense)
        self.floor[self.allowed] = 0.5 * lowest

    def flat_index(self, origins, directions, distance) -> torch.Tensor:
        """Index (R, K) of the cells in which the points at ``distance`` (R, K) along rays (R, 3) lie."""
        flat = torch.zeros((), dtype=torch.long, device=distance.device)
        for axis in range(3):
            origin = (origins[:, axis : axis + 1] - self.bounds[0, axis]) / self.cell[axis]
            slope = directions[:, axis : axis + 1] / self.cell[axis]
            size = self.allowed.shape[axis]
            flat = flat * size + torch.addcmul(origin, distance, slope).clamp_(0, size - 1).long()
        return flat

    def state(self) -> dict:
        return {"occupied": self.occupied, "floor": self.floor}

    def load_state(self, state: dict) -> None:
        self.occupied, self.floor = state["occupied"], state["floor"]


def render(field, occupancy, origins, directions, step=None, generator=None, stop=1e-3, reach=None) -> Rendering:
    """Render rays (R, 3), (R, 3) with samples in occupied cells only, until transmittance surely is below ``stop``.

    ``step`` is the distance between samples (default: one voxel); ``generator`` jitters them; ``reach`` ends rays at that
    distance. With ``stop`` 0 and all cells occupied the result equals ``render_reference``.
    """
    step = step or field.voxel_size()
    with torch.no_grad():
        near, far = ray_box(origins, directions, field.bounds)
        if reach is not None:
            far = torch.maximum(near, far.clamp_max(reach))
        distance, valid = sample_distances(near, far, step, generator)
        cell = occupancy.flat_index(origins, directions, distance)
        keep = occupancy.occupied.view(-1)[cell] & valid
        ray, column = keep.nonzero(as_tuple=True)
        distance, cell = distance[ray, column], cell[ray, column]
        if stop > 0 and len(ray):
            lit = _transmittance(occupancy.floor.view(-1)[cell] * step, ray, len(origins)) > stop
            ray, distance = ray[lit], distance[lit]
    points = origins[ray] + directions[ray] * distance[:, None]
    density, colour = field(points)
    depth = density * step
    weight = _transmittance(depth, ray, len(origins)) * (-torch.expm1(-depth))
    terms = [weight[:, None] * colour, weight[:, None], (weight * distance)[:, None]]
    sums = torch.zeros(len(origins), 5, device=origins.device).index_add(0, ray, torch.cat(terms, 1))
    opacity = sums[:, 3]
    mean_depth = sums[:, 4] / opacity.clamp_min(1e-6)
    return Rendering(sums[:, :3] + (1 - opacity)[:, None], opacity, mean_depth, ray, distance, weight)


def _transmittance(optical_depth: torch.Tensor, ray: torch.Tensor, rays: int) -> torch.Tensor:
    """Light that reaches each sample (S,) of rays packed one after another: exp(-sum of what lies before it)."""
    before = torch.cumsum(optical_depth.double(), 0) - optical_depth
    first = torch.searchsorted(ray, torch.arange(rays, device=ray.device))  # sample at which each ray begins
    return torch.exp(before[first.clamp_max(max(len(ray) - 1, 0))][ray] - before).float() if len(ray) else optical_depth


def render_reference(field, origins, directions, step, generator=None, allowed=None) -> Rendering:
    """The definition, sample by sample, with no skipping; ``allowed`` is an ``Occupancy`` whose forbidden cells are empty."""
    near, far = ray_box(origins, directions, field.bounds)
    distance, valid = sample_distances(near, far, step, generator)
    rays, count = distance.shape
    points = origins[:, None] + directions[:, None] * distance[..., None]
    density, colour = field(points.reshape(-1, 3))
    density, colour = density.view(rays, count) * valid, colour.view(rays, count, 3)
    if allowed is not None:
        density = density * allowed.allowed.view(-1)[allowed.flat_index(origins, directions, distance)]
    light = torch.ones_like(near)
    total_colour, total_depth, opacity, weights = torch.zeros_like(origins), torch.zeros_like(near), torch.zeros_like(near), []
    for k in range(count):
        alpha = 1 - torch.exp(-density[:, k] * step)
        weights.append(light * alpha)
        total_colour = total_colour + weights[-1][:, None] * colour[:, k]
        total_depth = total_depth + weights[-1] * distance[:, k]
        opacity = opacity + weights[-1]
        light = light * (1 - alpha)
    ray = torch.arange(rays, device=origins.device)[:, None].expand(rays, count)
    return Rendering(
        total_colour + light[:, None], opacity, total_depth / opacity.clamp_min(1e-6), ray[valid], distance[valid], torch.stack(weights, 1)[valid]
    )
