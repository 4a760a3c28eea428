"""The photos as supervision: rays with colours and masks at several sizes, and the space that the silhouettes leave open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping

import numpy as np
import torch
import torch.nn.functional as F

from sap3d.cameras import Camera
from sap3d.images import composite_white, resize


class RayCameras(torch.nn.Module):
    """Look-at cameras as tensors, with small corrections of polar angle, azimuth and radius as parameters.

    ``delta`` (N, 3) is zero at first and zero is the identity. The first view's azimuth is never corrected: it is the
    gauge that fixes the world's rotation about z.
    """

    def __init__(self, cameras: Mapping[str, Camera]):
        super().__init__()
        self.names = list(cameras)
        table = [[c.polar_rad, c.azimuth_rad, c.radius] for c in cameras.values()]
        self.register_buffer("base", torch.tensor(table, dtype=torch.float32))
        self.register_buffer("tangent", torch.tensor([np.tan(c.fov_rad / 2) for c in cameras.values()], dtype=torch.float32))
        self.fov_rad = [c.fov_rad for c in cameras.values()]
        free = torch.ones_like(self.base)
        free[0, 1] = 0
        self.register_buffer("free", free)
        self.delta = torch.nn.Parameter(torch.zeros_like(self.base), requires_grad=False)

    def poses(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(world_from_camera rotations (N, 3, 3), centres (N, 3)); the columns are the camera's right, up and backward axes."""
        polar, azimuth, radius = (self.base + self.delta * self.free).unbind(-1)
        sin_p, cos_p, sin_a, cos_a = polar.sin(), polar.cos(), azimuth.sin(), azimuth.cos()
        backward = torch.stack([sin_p * cos_a, sin_p * sin_a, cos_p], -1)
        right = torch.stack([-sin_a, cos_a, torch.zeros_like(sin_a)], -1)
        up = torch.stack([-cos_p * cos_a, -cos_p * sin_a, sin_p], -1)
        return torch.stack([right, up, backward], -1), radius[:, None] * backward

    def rays(self, local: torch.Tensor, view: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """World origins and unit directions (R, 3) of pixels at ``local`` (R, 2), in [-1, 1], y up, of views (R,)."""
        rotation, center = self.poses()
        tangent = self.tangent[view, None]
        direction = torch.cat([local * tangent, -torch.ones_like(tangent)], -1)
        return center[view], F.normalize(torch.einsum("rij,rj->ri", rotation[view], direction), dim=-1)

    def current(self) -> dict[str, Camera]:
        """The cameras with their corrections."""
        values = (self.base + self.delta.detach() * self.free).double().tolist()
        return {name: Camera(*v, fov) for name, v, fov in zip(self.names, values, self.fov_rad)}


def pixel_grid(size: int) -> torch.Tensor:
    """Pixel centres (size * size, 2), row by row, as (x right, y up) in [-1, 1]."""
    centre = (torch.arange(size, dtype=torch.float32) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(-centre, centre, indexing="ij")
    return torch.stack([x, y], -1).reshape(-1, 2)


def camera_rays(camera: Camera, size: int, device="cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """World origins and directions (size * size, 3) of a camera's pixels, row by row."""
    table = RayCameras({"camera": camera})
    origins, directions = table.rays(pixel_grid(size), torch.zeros(size * size, dtype=torch.long))
    return origins.to(device), directions.to(device)


@dataclass
class PixelBank:
    """Pixels of several images to draw rays from: ``local`` (M, 2), ``view`` (M,), ``colour`` (M, 3) over white, ``alpha`` (M,)."""

    local: torch.Tensor
    view: torch.Tensor
    colour: torch.Tensor
    alpha: torch.Tensor

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, index) -> PixelBank:
        return PixelBank(self.local[index], self.view[index], self.colour[index], self.alpha[index])

    def to(self, device) -> PixelBank:
        return PixelBank(*(value.to(device) for value in (self.local, self.view, self.colour, self.alpha)))


def pixel_bank(images: list[np.ndarray], size: int) -> PixelBank:
    """All pixels of RGBA images (H, W, 4), each shrunk to ``size`` by a box filter on premultiplied colours."""
    small = [resize(image, min(size, image.shape[0])) for image in images]
    local = torch.cat([pixel_grid(image.shape[0]) for image in small])
    view = torch.cat([torch.full((image.shape[0] ** 2,), k) for k, image in enumerate(small)])
    colour = torch.cat([torch.from_numpy(composite_white(image)).reshape(-1, 3) for image in small])
    alpha = torch.cat([torch.from_numpy(np.ascontiguousarray(image[..., 3])).reshape(-1) for image in small])
    return PixelBank(local, view, colour, alpha)


class Silhouettes:
    """How far a point lies outside the photos' silhouettes.

    ``excess(points)`` is the largest of the distances, in world units, between the point's projection and the mask over all
    photos: 0 inside the visual hull. A photo whose mask touches the border says nothing about points that it does not frame;
    any other shows the whole object, so that what lies out of its frame is not object.
    """

    def __init__(self, images: list[np.ndarray], cameras: RayCameras, size: int = 128):
        from scipy.ndimage import distance_transform_edt

        masks = [resize(image, min(size, image.shape[0]))[..., 3] for image in images]
        distances = [distance_transform_edt(mask < 0.1) * (2.0 / len(mask)) for mask in masks]  # unit: half an image
        self.distance = [torch.from_numpy(d.astype(np.float32))[None, None] for d in distances]
        self.cropped = [max(m[0].max(), m[-1].max(), m[:, 0].max(), m[:, -1].max()) > 0.1 for m in masks]
        self.masks, self.cameras = masks, cameras

    @torch.no_grad()
    def excess(self, points: torch.Tensor) -> torch.Tensor:
        rotation, center = self.cameras.poses()
        worst = torch.zeros(len(points))
        for k, distance in enumerate(self.distance):
            local = (points - center[k]) @ rotation[k]
            scale = -local[:, 2] * self.cameras.tangent[k]  # half an image at the point's depth, world units
            grid = torch.stack([local[:, 0], -local[:, 1]], -1) / scale.clamp_min(1e-6)[:, None]
            found = F.grid_sample(distance, grid.view(1, -1, 1, 2), align_corners=False, padding_mode="border").view(-1)
            if self.cropped[k]:
                found = torch.where((grid.abs() <= 1).all(-1) & (scale > 0), found, torch.zeros_like(found))
            else:
                found = found + (grid.abs() - 1).clamp(0, 2).norm(dim=-1)
            worst = torch.maximum(worst, found * scale.clamp_min(0))
        return worst

    @torch.no_grad()
    def margin(self, bounds: torch.Tensor, least: float, most: float, share: float = 0.985, size: int = 48) -> float:
        """How far the silhouettes must be let out before they agree: cameras with errors leave no common hull.

        Each mask pixel needs a point on its ray that all photos accept; the margin grants that to ``share`` of them. It
        lies in [least, most], world units.
        """
        from sap3d.field.rendering import ray_box

        needed = []
        for k, mask in enumerate(self.masks):
            small = resize(mask[..., None], size).reshape(-1) > 0.5
            if not small.any():
                continue
            local = pixel_grid(size)[torch.from_numpy(small)]
            origins, directions = self.cameras.rays(local, torch.full((len(local),), k))
            near, far = ray_box(origins, directions, bounds)
            distance = near[:, None] + (far - near)[:, None] * torch.linspace(0, 1, 72)
            points = origins[:, None] + directions[:, None] * distance[..., None]
            needed.append(self.excess(points.reshape(-1, 3)).view(distance.shape).amin(1))
        return float(torch.quantile(torch.cat(needed), share).clamp(least, most)) if needed else most

    def allowed_cells(self, bounds: torch.Tensor, cells: int, margin: float) -> torch.Tensor:
        """Cells (X, Y, Z) bool, about ``cells`` along the longest side of the box, that lie within ``margin`` of the hull."""
        side = bounds[1] - bounds[0]
        size = float(side.max()) / cells
        counts = [max(int(np.ceil(float(s) / size - 1e-6)), 1) for s in side]
        axes = [bounds[0, a] + (torch.arange(n) + 0.5) * side[a] / n for a, n in enumerate(counts)]
        points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
        excess = torch.cat([self.excess(chunk) for chunk in points.split(1 << 18)])
        return (excess <= margin + 0.87 * size).view(counts)  # 0.87: half a cell's diagonal


def hull_bounds(silhouettes: Silhouettes, box: float, margin: float) -> torch.Tensor:
    """The smallest box (2, 3) around the hull let out by ``margin``, within [-box, box]^3."""
    whole = torch.tensor([[-box] * 3, [box] * 3])
    index = silhouettes.allowed_cells(whole, 64, margin).nonzero()
    if not len(index):
        return whole
    cell = 2 * box / 64
    low, high = index.amin(0) * cell - box, (index.amax(0) + 1) * cell - box
    return torch.stack([low, high]).clamp(-box, box)
