"""Where the photos see the surface, and so where a prior should count."""

from __future__ import annotations

import torch

from sap3d.field.photos import RayCameras, pixel_grid
from sap3d.field.rendering import Occupancy, Rendering, render


@torch.no_grad()
def count_seeing(field, occupancy: Occupancy, cameras: RayCameras, size: int = 64) -> torch.Tensor:
    """How many photos see each cell (X, Y, Z) float: those whose rays reach it, give or take two cells."""
    device = occupancy.bounds.device
    index = occupancy.occupied.nonzero()
    points = occupancy.bounds[0] + (index + 0.5) * occupancy.cell
    count = torch.zeros(len(points), device=device)
    slack = 2 * float(occupancy.cell.max())
    local = pixel_grid(size).to(device)
    rotation, center = cameras.poses()
    for k in range(len(center)):
        origins, directions = cameras.rays(local, torch.full((len(local),), k, device=device))
        seen = render(field, occupancy, origins, directions)
        reach = torch.where(seen.opacity > 0.5, seen.depth, torch.full_like(seen.depth, float("inf"))).view(size, size)
        offset = points - center[k]
        camera = offset @ rotation[k]
        scale = -camera[:, 2] * cameras.tangent[k]
        column = ((camera[:, 0] / scale + 1) * (size / 2)).long()
        row = ((1 - camera[:, 1] / scale) * (size / 2)).long()
        framed = (column >= 0) & (column < size) & (row >= 0) & (row < size)
        depth = reach[row.clamp(0, size - 1), column.clamp(0, size - 1)]
        count += framed & (offset.norm(dim=-1) < depth + slack)
    total = torch.zeros(occupancy.allowed.shape, device=device)
    total[occupancy.occupied] = count
    return total


@torch.no_grad()
def prior_weight(rendering: Rendering, origins, directions, occupancy: Occupancy, seeing: torch.Tensor, where_seen: float, enough: int = 2) -> torch.Tensor:
    """How much the prior counts on each ray (R,): 1 where no photo sees the surface, ``where_seen`` where ``enough`` of them do.

    One photo fixes the colour but not the depth, so it counts for half of two, on a logarithmic scale. Rays that meet
    nothing count half as seen.
    """
    cell = occupancy.flat_index(origins[rendering.ray], directions[rendering.ray], rendering.distance[:, None])[:, 0]
    factor = where_seen ** (seeing.view(-1)[cell].clamp(max=enough) / enough)
    on_surface = torch.zeros(len(origins), device=origins.device).index_add(0, rendering.ray, rendering.weight * factor)
    return on_surface + (1 - rendering.opacity) * where_seen**0.5
