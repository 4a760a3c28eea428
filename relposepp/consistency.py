"""How well a camera configuration explains the photos, without any trained prior of shapes: visual hull, colours, features.

For every candidate the object's visual hull is met by rays through the pixels of every photo (no voxels: a point on a ray is
inside the hull when all photos see object there). A ray through the object that meets no such point contradicts the
silhouettes. Its first point inside is a point of the hull's surface, which other photos that see it should show in the
same colour and with the same features. All candidates of a chunk, views and rays are worked on together.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from relposepp.rotations import look_at_rotation
from sap3d.alexnet import load_alexnet_features, IMAGENET_MEAN, IMAGENET_STD
from sap3d.cameras import FOV_RAD
from sap3d.images import composite_white, resize

MEASURES = ("silhouette", "worst_silhouette", "colour", "feature", "overlap")


class Consistency:
    """Measures of camera configurations for the photos of one scene.

    Args:
        images: straight RGBA photos (S, S, 4), float in [0, 1].
        rays_side: rays a side of the grid of rays through a photo; only those through the object are used.
        depths: points on a ray, evenly spaced within ``reach`` of the object's centre.
    """

    SIZE = 64  # side of the masks and colours that points are looked up in
    REACH = 0.7  # half the length of the ray that is searched, in object lengths
    DEPTH_TOLERANCE = 0.07  # a point this far behind the surface that another photo sees still counts as seen
    COLOUR_TOLERANCE = 0.22  # colour distance (RMS over channels) at which agreement turns into contradiction
    FEATURE_TOLERANCE = 0.0  # centred cosine at which agreement turns into contradiction
    ELEMENTS = 6_000_000  # points x views worked on at once

    def __init__(self, images: list[np.ndarray], rays_side: int = 20, depths: int = 32):
        self.views, size = len(images), self.SIZE
        small = np.stack([resize(image, size) for image in images])
        alpha = torch.from_numpy(small[..., 3])
        self.mask = (F.max_pool2d(alpha[:, None], 3, 1, 1)[:, 0] > 0.5).float().flatten()  # one pixel of tolerance
        rgb = torch.from_numpy(np.stack([composite_white(s) for s in small])).permute(0, 3, 1, 2)
        weight = alpha[:, None].clamp_min(1e-3)
        blur = lambda x: F.avg_pool2d(x, 3, 1, 1)  # noqa: E731
        self.colour = (blur(rgb * weight) / blur(weight)).permute(0, 2, 3, 1).reshape(-1, 3).contiguous()
        self.feature = self._features(images)
        self.side, self.tangent = rays_side, float(np.tan(FOV_RAD / 2))
        self._rays(small[..., 3], rays_side)
        self.depth = torch.linspace(-self.REACH, self.REACH, depths)

    def _features(self, images: list[np.ndarray]) -> torch.Tensor:
        """Unit features (N * SIZE * SIZE, C) of the second and fifth convolution of AlexNet, centred over the scene's object pixels."""
        trunk = load_alexnet_features()
        white = torch.from_numpy(np.stack([composite_white(resize(i, 192)) for i in images])).permute(0, 3, 1, 2).float()
        alpha = torch.from_numpy(np.stack([resize(i, 192)[..., 3] for i in images]))[:, None].float()
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        maps = []
        with torch.no_grad():
            x = (white - mean) / std
            for k, layer in enumerate(trunk[:12]):
                x = layer(x)
                if k in (4, 11):
                    inside = F.adaptive_avg_pool2d(alpha, x.shape[-2:])
                    centre = (x * inside).sum((0, 2, 3), keepdim=True) / inside.sum().clamp_min(1e-3)
                    unit = F.normalize(F.normalize(x, dim=1) - F.normalize(centre, dim=1), dim=1) * 0.7071
                    maps.append(F.interpolate(unit, (self.SIZE, self.SIZE), mode="bilinear", align_corners=False))
        return torch.cat(maps, 1).permute(0, 2, 3, 1).reshape(len(images) * self.SIZE**2, -1).contiguous()

    def _rays(self, alpha: np.ndarray, side: int) -> None:
        """Camera-frame directions (N, M, 3), depth 1, of the rays through the object; padded, ``valid`` (N, M)."""
        centre = (np.arange(side) + 0.5) / side
        rows, columns = np.meshgrid(centre, centre, indexing="ij")
        at = np.minimum((np.stack([rows, columns], -1) * self.SIZE).astype(int), self.SIZE - 1)
        chosen = [np.flatnonzero(a[at[..., 0], at[..., 1]].ravel() > 0.6) for a in alpha]
        most = max(1, max(len(c) for c in chosen))
        cell = np.zeros((self.views, most), int)
        valid = np.zeros((self.views, most), np.float32)
        for v, c in enumerate(chosen):
            cell[v, : len(c)], valid[v, : len(c)] = c, 1
        x, y = (columns.ravel()[cell] * 2 - 1) * self.tangent, -(rows.ravel()[cell] * 2 - 1) * self.tangent
        pixel = at[..., 0].ravel()[cell] * self.SIZE + at[..., 1].ravel()[cell] + np.arange(self.views)[:, None] * self.SIZE**2
        self.direction = torch.from_numpy(np.stack([x, y, -np.ones_like(x)], -1)).float()
        self.cell, self.valid, self.pixel = torch.from_numpy(cell), torch.from_numpy(valid), torch.from_numpy(pixel)

    def measures(self, elevation_rad: np.ndarray, azimuth_rad: np.ndarray, radius: np.ndarray) -> np.ndarray:
        """(K, len(MEASURES)) of configurations with angles (K, N) and radii (K, N) or (N,); every entry: larger is better.

        silhouette: share of the object's rays that meet the hull, mean over views; worst_silhouette: of the worst view;
        colour and feature: agreement minus tolerance, summed over pairs of photos that see a point, a ray and other view;
        overlap: how many such pairs there are, a ray and other view.
        """
        radius = np.broadcast_to(radius, elevation_rad.shape)
        n, m, d = self.views, self.direction.shape[1], len(self.depth)
        chunk = max(1, self.ELEMENTS // (n * n * m * d))
        parts = [
            self._measure(elevation_rad[k : k + chunk], azimuth_rad[k : k + chunk], radius[k : k + chunk])
            for k in range(0, len(elevation_rad), chunk)
        ]
        return np.concatenate(parts)

    @torch.no_grad()
    def _measure(self, elevation: np.ndarray, azimuth: np.ndarray, radius: np.ndarray) -> np.ndarray:
        k, n = elevation.shape
        size = self.SIZE
        rotation = torch.from_numpy(look_at_rotation(elevation, azimuth)).float()
        distance = torch.tensor(radius, dtype=torch.float32)
        relative = torch.einsum("kjab,kicb->kijac", rotation, rotation)  # camera j from camera i, rotation
        # Centres lie on the cameras' z axes: camera i's frame has the object at (0, 0, -r_i).
        origin = torch.zeros(k, n, n, 3)
        origin[..., 2] = -distance[:, None, :]
        shift = origin - torch.einsum("kijac,kic->kija", relative, torch.stack([torch.zeros_like(distance)] * 2 + [-distance], -1))
        along = torch.einsum("kijac,imc->kijma", relative, self.direction)  # (K, i, j, M, 3)
        depth = distance[:, :, None] + self.depth  # (K, i, D)

        t = depth[:, :, None, None, :]
        x, y, z = (along[..., c, None] * t + shift[..., None, c, None] for c in range(3))  # (K, i, j, M, D)
        pixel = self._pixel(x, y, z)
        inside = self.mask[pixel].amin(dim=2)  # (K, i, M, D): in all photos
        hit = inside.amax(-1) * self.valid
        first = inside.argmax(-1)  # (K, i, M)
        rays = self.valid.sum(-1)
        explained = hit.sum(-1) / rays.clamp_min(1)

        # The surface points in the other photos; a photo sees a point that is not behind its own first points.
        surface = torch.gather(depth, 2, first.flatten(2)).view_as(first)
        index = first[:, :, None, :, None].expand(-1, -1, n, -1, 1)
        u, v, w = (torch.gather(c, 4, index)[..., 0] for c in (x, y, z))  # (K, i, j, M)
        seen_depth = torch.full((k, n, self.side**2), -1.0)
        seen_depth.scatter_(2, self.cell.expand(k, -1, -1), torch.where(hit > 0, surface, torch.full_like(surface, -1.0)))
        column = ((u / -w / self.tangent + 1) / 2 * self.side).long().clamp(0, self.side - 1)
        row = ((1 - v / -w / self.tangent) / 2 * self.side).long().clamp(0, self.side - 1)
        base = (torch.arange(k)[:, None] * n + torch.arange(n))[:, None, :, None] * self.side**2
        front = seen_depth.flatten()[base + row * self.side + column]
        other = 1 - torch.eye(n)
        visible = (front > 0) & (-w < front + self.DEPTH_TOLERANCE)
        visible = visible * hit[:, :, None] * other[None, :, :, None]
        where = torch.gather(pixel, 4, index)[..., 0]
        colour_gap = (self.colour[self.pixel][None, :, None] - self.colour[where]).square().mean(-1).sqrt()
        at = visible.nonzero(as_tuple=True)
        likeness = torch.zeros_like(visible)
        likeness[at] = (self.feature[self.pixel[at[1], at[3]]] * self.feature[where[at]]).sum(-1)
        pairs = rays.sum() * max(1, n - 1)
        total = lambda value: (visible * value).sum((1, 2, 3)) / pairs  # noqa: E731
        return torch.stack(
            [explained.mean(1), explained.amin(1), total(self.COLOUR_TOLERANCE - colour_gap), total(likeness - self.FEATURE_TOLERANCE), total(torch.ones_like(visible))], -1
        ).double().numpy()  # fmt: skip

    def _pixel(self, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Flat indices into ``mask`` and ``colour`` of camera-frame points; axis 2 says which photo."""
        size, scale = self.SIZE, 0.5 * self.SIZE / self.tangent
        column = (x / -z * scale + 0.5 * size).long().clamp_(0, size - 1)
        row = (0.5 * size - y / -z * scale).long().clamp_(0, size - 1)
        return row * size + column + (torch.arange(self.views) * size**2)[None, None, :, None, None]
