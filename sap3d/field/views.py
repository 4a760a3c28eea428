"""Whole images from a finished field, fast: without gradients, front to back, and only where something is.

Occupied cells are splatted into a coarse image of nearest and farthest distances. Rays then start at the nearest, march a
few samples at a time, and drop out when they are opaque or past the farthest. The samples lie where ``rendering.render``
puts them, so that the images are the same up to its ``stop``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from sap3d.cameras import Camera

from sap3d.field.fields import Field
from sap3d.field.photos import camera_rays
from sap3d.field.rendering import Occupancy, ray_box

TILES = 64  # tiles along a side of the coarse image
CHUNK = 12  # samples of a ray between two looks at its transmittance


@dataclass
class View:
    """An image of the field: ``colour`` (S, S, 3) over white, ``opacity`` (S, S), ``depth`` (S, S): distance along the ray at
    which half of the light is gone, infinite where it never is; ``normal`` (S, S, 3) unit, world, 0 where empty, or None;
    ``seen`` (S, S) in [0, 1]: how squarely a photo sees the surface (``PhotoDetail.add``), or None."""

    colour: torch.Tensor
    opacity: torch.Tensor
    depth: torch.Tensor
    normal: torch.Tensor | None = None
    seen: torch.Tensor | None = None


def distance_range(occupancy: Occupancy, camera: Camera) -> tuple[torch.Tensor, torch.Tensor]:
    """(nearest, farthest) (TILES, TILES): bounds on the distances at which rays of each tile meet occupied cells.

    Tiles that meet none have nearest > farthest.
    """
    device = occupancy.bounds.device
    centres = occupancy.bounds[0] + (occupancy.occupied.nonzero() + 0.5) * occupancy.cell
    pose = torch.from_numpy(camera.camera_from_world()).float().to(device)
    local = centres @ pose[:, :3].T + pose[:, 3]
    reach = 0.5 * float(occupancy.cell.norm())  # half a cell's diagonal
    nearest = torch.full((TILES * TILES,), float("inf"), device=device)
    farthest = torch.full_like(nearest, -float("inf"))
    if not len(local):
        return nearest.view(TILES, TILES), farthest.view(TILES, TILES)
    tangent = float(torch.tan(torch.tensor(camera.fov_rad / 2)))
    depth = (-local[:, 2]).clamp_min(1e-3)
    position = torch.stack([-local[:, 1], local[:, 0]], -1) / (depth[:, None] * tangent)  # row, column in [-1, 1]
    tile = ((position + 1) * (TILES / 2)).floor().long()
    radius = int(torch.ceil(reach / (depth.min() * tangent) * (TILES / 2))) + 1
    inside = ((tile >= -radius) & (tile < TILES + radius)).all(1)
    flat = (tile[inside].clamp(0, TILES - 1) * torch.tensor([TILES, 1], device=device)).sum(1)
    distance = local[inside].norm(dim=-1)
    nearest = nearest.scatter_reduce(0, flat, distance - reach, "amin").view(1, 1, TILES, TILES)
    farthest = farthest.scatter_reduce(0, flat, distance + reach, "amax").view(1, 1, TILES, TILES)
    window = 2 * radius + 1
    return -F.max_pool2d(-nearest, window, 1, radius)[0, 0], F.max_pool2d(farthest, window, 1, radius)[0, 0]


@torch.no_grad()
def render_view(field: Field, occupancy: Occupancy, camera: Camera, size: int, step: float | None = None, stop: float = 2e-3, normals: bool = False) -> View:
    """One image of size x size pixels."""
    step = step or field.voxel_size()
    device = field.bounds.device
    origins, directions = camera_rays(camera, size, device)
    nearest, farthest = distance_range(occupancy, camera)
    row = torch.arange(size, device=device) * TILES // size
    near_tile, far_tile = (t[row][:, row].reshape(-1) for t in (nearest, farthest))
    near, far = ray_box(origins, directions, field.bounds)
    far = torch.minimum(far, far_tile)
    # Samples stay at whole steps from where the ray enters the box, as in ``render``.
    first = ((torch.maximum(near, near_tile) - near) / step).floor().clamp_min(0)
    count = torch.ceil((far - near) / step)
    live = (first < count).nonzero()[:, 0]

    total = torch.zeros(size * size, 3, device=device)
    light = torch.ones(size * size, device=device)
    depth = torch.full_like(light, float("inf"))
    index = first.clone()
    ladder = torch.arange(CHUNK, device=device)
    while len(live):
        origin, direction = origins[live], directions[live]
        distance = near[live, None] + (index[live, None] + ladder + 0.5) * step
        keep = occupancy.occupied.view(-1)[occupancy.flat_index(origin, direction, distance)] & (distance < far[live, None])
        sample = keep.view(-1).nonzero()[:, 0]
        if len(sample):
            ray = sample // CHUNK
            density, colour = field(origin[ray] + direction[ray] * distance.view(-1)[sample, None])
            alpha = torch.zeros_like(distance)
            alpha.view(-1)[sample] = -torch.expm1(-density * step)
            through = torch.cumprod(1 - alpha, 1)
            before = torch.cat([torch.ones_like(through[:, :1]), through[:, :-1]], 1) * light[live, None]
            weight = (before * alpha).view(-1)[sample]
            total.index_add_(0, live[ray], weight[:, None] * colour)
            passed = (through * light[live, None] < 0.5) & torch.isinf(depth[live, None])
            here = passed.any(1)
            last = passed[here].float().argmax(1)
            after, start = (through[here, last] * light[live[here]]).log(), (before[here, last]).log()
            # Within a step light falls exponentially.
            depth[live[here]] = distance[here, last] + step * ((start - np.log(0.5)) / (start - after).clamp_min(1e-6) - 0.5)
            light[live] = light[live] * through[:, -1]
        index[live] += CHUNK
        live = live[(light[live] > stop) & (index[live] < count[live])]
    shape = (size, size)
    view = View((total + light[:, None]).view(*shape, 3), (1 - light).view(shape), depth.view(shape))
    if normals:
        normal = torch.zeros_like(total)
        hit = torch.isfinite(depth)
        normal[hit] = field.normals(origins[hit] + directions[hit] * depth[hit, None], 2 * field.voxel_size())
        view.normal = normal.view(*shape, 3)
    return view
