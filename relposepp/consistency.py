"""How well a camera configuration explains the photos, without any trained prior of shapes: visual hull and colours.

For every candidate the object's visual hull is met by rays through the pixels of every photo (no voxels: a point on a ray is
inside the hull when all photos see object there). A ray through the object that meets no such point contradicts the
silhouettes. Its first point inside is a point of the hull's surface, which other photos that see it should show in the
same colour. All candidates of a chunk and all rays of a photo are worked on together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from relposepp.tangency import poses_of
from sap3d.cameras import FOV_RAD
from sap3d.images import resize

MEASURES = ("silhouette", "worst_silhouette", "colour_sum", "colour_mean", "overlap", "centred")


def likelihood_ratio(count: torch.Tensor, bin_width: float, scale: float, share: float) -> torch.Tensor:
    """(BINS,): log of how much likelier a colour distance is for one point that two photos show than for any two points.

    count: histogram, above zero everywhere, of the distances of any two points, in bins of ``bin_width``; it is smoothed. One point: the same distances made
    rarer exponentially, by e for each ``scale``, for a ``share`` of the points; the others are not the same after all.
    """
    other = F.conv1d(F.pad(count[None, None], (1, 1), mode="replicate"), torch.tensor([[[0.25, 0.5, 0.25]]]))[0, 0]
    rarer = torch.exp(-(torch.arange(len(count)) + 0.5) * bin_width / scale)
    return torch.log(share * rarer / ((other * rarer).sum() / other.sum()) + 1 - share)


def visible(alpha: torch.Tensor) -> torch.Tensor:
    """Alpha (N, S, S) of small photos, up to 1 in every photo in which it passes one half nowhere: of an object that is thinner than a pixel, or faint."""
    most = alpha.amax((1, 2), keepdim=True)
    return torch.where(most > 0.5, alpha, alpha / most.clamp_min(1e-6))


class Consistency:
    """Measures of camera configurations for the photos of one scene (straight RGBA, square, float in [0, 1])."""

    SIZE = 128  # side of the masks and colours that points are looked up in
    SIDE = 32  # rays a side of the grid of rays through a photo; those through the object, a pixel off its edge, are used
    DEPTHS = 64  # points on a ray, evenly spaced within REACH of the object's centre
    REACH = 0.75  # half the length of the ray that is searched, in object lengths
    BEHIND = 0.05  # a point this far behind the surface that another photo sees still counts as seen, object lengths
    CHUNK = 48  # configurations worked on at once
    SAME_SCALE, SAME_SHARE = 0.05, 0.6  # colour distance of the same point in two photos; share of points that are the same
    BINS, BIN_WIDTH = 40, 0.02  # histogram of colour distances (RMS over channels)
    SAME_HEIGHT = 0.1  # pixels of two photos are compared at random within this difference in height, share of the photo
    HUGE = 9.0  # depth where nothing is

    def __init__(self, images: list[np.ndarray], fov_rad: Sequence[float] | None = None):
        """fov_rad: across every photo; the protocol's by default."""
        self.views, size = len(images), self.SIZE
        small = torch.from_numpy(np.stack([resize(image, size) for image in images])).float()
        alpha = visible(small[..., 3])
        self.alpha, self.mask = alpha, (alpha > 0.35).flatten()
        weight = alpha[:, None].clamp_min(1e-3)
        blur = lambda x: F.avg_pool2d(x, 3, 1, 1)  # noqa: E731
        self.colour = (blur(small[..., :3].permute(0, 3, 1, 2) * weight) / blur(weight)).permute(0, 2, 3, 1).reshape(-1, 3).contiguous()
        self.tangent = [float(np.tan(fov / 2)) for fov in fov_rad or [FOV_RAD] * self.views]
        self.depth = torch.linspace(-self.REACH, self.REACH, self.DEPTHS)
        self._rays(alpha)
        self.ratio = self._likelihood_ratios()

    def _rays(self, alpha: torch.Tensor) -> None:
        """A photo: its rays' cells of the grid (M,), pixels (M,) among all photos' and camera-frame directions (M, 3) of depth 1."""
        size, side = self.SIZE, self.SIDE
        at = ((torch.arange(side) + 0.5) * size / side).long()
        eroded = -F.max_pool2d(-alpha[:, None], 3, 1, 1)[:, 0] > 0.5
        self.cell, self.pixel, self.row, self.direction = [], [], [], []
        for v in range(self.views):
            inside = eroded[v] if eroded[v][at][:, at].any() else alpha[v] >= 0.9 * alpha[v].max()
            cell = torch.nonzero(inside[at][:, at].flatten())[:, 0]
            if not len(cell):  # thinner than the grid: its middle
                cell = torch.tensor([side * side // 2 + side // 2])
            row, column = at[cell // side], at[cell % side]
            x, y = ((column + 0.5) / size * 2 - 1) * self.tangent[v], -((row + 0.5) / size * 2 - 1) * self.tangent[v]
            self.cell.append(cell)
            self.row.append((row + 0.5) / size)
            self.pixel.append(v * size**2 + row * size + column)
            self.direction.append(torch.stack([x, y, -torch.ones_like(x)], -1))

    def _likelihood_ratios(self) -> torch.Tensor:
        """(N, N, BINS) by ``likelihood_ratio``. Any two points: pixels of about the same height in the two photos of this scene, so that what an
        object of one colour shows counts for nothing."""
        ratio, generator = torch.zeros(self.views, self.views, self.BINS), torch.Generator().manual_seed(0)
        for i in range(self.views):
            for j in range(i + 1, self.views):
                a, b = (torch.randint(len(self.pixel[v]), (16000,), generator=generator) for v in (i, j))
                level = (self.row[i][a] - self.row[j][b]).abs() < self.SAME_HEIGHT
                gap = self._gap(self.pixel[i][a[level]], self.pixel[j][b[level]])
                count = torch.bincount(gap, minlength=self.BINS).float() + 0.001 * len(gap) + 1e-9  # photos without a common height: nothing is learned
                ratio[i, j] = ratio[j, i] = likelihood_ratio(count, self.BIN_WIDTH, self.SAME_SCALE, self.SAME_SHARE)
        return ratio

    def _gap(self, pixel: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Bins of the colour distances of pixels (flat indices)."""
        distance = (self.colour[pixel] - self.colour[other]).square().mean(-1).sqrt()
        return (distance / self.BIN_WIDTH).long().clamp_max(self.BINS - 1)

    def measures(self, elevation_rad, azimuth_rad, radius, turn=None) -> np.ndarray:
        """(K, len(MEASURES)) of configurations, tensors or arrays (K, N), turn (K, N, 3) or None as in ``axes_of``; every entry but overlap: larger is better.

        silhouette: minus the share of the object's rays that miss the hull, mean over views; worst_silhouette: of the worst view;
        colour_sum: log-likelihood ratios of the colours (``_likelihood_ratios``) over all rays and other photos that see their
        point, a ray; colour_mean: a point seen; overlap: points seen, a ray; centred: minus the squared height of the middle
        of the hull, over 0.05 (the object's box is centred at the origin).
        """
        tensors = poses_of(elevation_rad, azimuth_rad, radius, turn)
        parts = [self._measure(*(x[k : k + self.CHUNK] for x in tensors)) for k in range(0, len(tensors[0]), self.CHUNK)]
        return torch.cat(parts).double().numpy()

    def missed(self, elevation_rad, azimuth_rad, radius, turn=None) -> float:
        """Share of the object's rays that miss the hull under one configuration (N,), turn (N, 3) or None: what the outlines say against it."""
        pose = (None if x is None else np.asarray(x)[None] for x in (elevation_rad, azimuth_rad, radius, turn))
        return -float(self.measures(*pose)[0, MEASURES.index("silhouette")])

    @torch.no_grad()
    def _measure(self, rotation: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
        k, n = rotation.shape[:2]
        points, met, missed, maps = [], [], [], torch.full((k, n, self.SIDE**2), self.HUGE)
        for i in range(n):
            surface, depth, hit = self._surface(i, rotation, centre)
            points.append(surface)
            met.append(hit)
            missed.append(1 - hit.float().mean(1))
            maps[:, i, self.cell[i]] = torch.where(hit, depth, self.HUGE)
        total, seen, rays = torch.zeros(k), torch.zeros(k), sum(len(c) for c in self.cell)
        for i in range(n):
            for j in range(n):
                if i != j:
                    pixel, cell, depth = self._project(points[i], rotation, centre, j)
                    visible = met[i] & (depth < torch.gather(maps[:, j], 1, cell) + self.BEHIND) & (torch.gather(maps[:, j], 1, cell) < self.HUGE)
                    ratio = self.ratio[i, j][self._gap(self.pixel[i].expand_as(pixel), pixel)]
                    total, seen = total + (ratio * visible).sum(1), seen + visible.float().sum(1)
        missed = torch.stack(missed, 1)
        height, hit = torch.cat([p[..., 2] for p in points], 1), torch.cat(met, 1)
        middle = 0.5 * (torch.where(hit, height, -1.0).amax(1) + torch.where(hit, height, 1.0).amin(1))
        return torch.stack(
            [-missed.mean(1), -missed.amax(1), total / rays, total / seen.clamp_min(10), seen / rays, -(middle / 0.05).square().clamp_max(16)], 1
        )  # fmt: skip

    def _surface(self, i: int, rotation: torch.Tensor, centre: torch.Tensor):
        """First points (K, M, 3) of the rays of photo i inside the hull, their depths (K, M) and whether there are any (K, M)."""
        inside, point, depth = self.inside(i, rotation, centre)
        first = inside.to(torch.uint8).argmax(2)
        surface = torch.gather(point, 2, first[:, :, None, None].expand(-1, -1, 1, 3))[:, :, 0]
        return surface, torch.gather(depth, 1, first), inside.any(2)

    def inside(self, i: int, rotation: torch.Tensor, centre: torch.Tensor):
        """Which points of the rays of photo i lie in the hull of the other photos (K, M, D), the points (K, M, D, 3) and their depths (K, D)."""
        depth = centre[:, i].norm(dim=-1, keepdim=True) + self.depth  # (K, D)
        direction = self.direction[i] @ rotation[:, i]  # (K, M, 3)
        point = centre[:, i, None, None] + direction[:, :, None] * depth[:, None, :, None]
        inside = torch.ones(point.shape[:3], dtype=torch.bool)
        for j in range(rotation.shape[1]):
            if j != i:
                inside &= self.within(point.flatten(1, 2), rotation, centre, j).reshape(inside.shape)
        return inside, point, depth

    @torch.no_grad()
    def longest_side(self, elevation_rad, azimuth_rad, radius) -> float:
        """Longest side, object lengths, of the smallest upright box, turned as it may be, around the hull of one configuration (N,); 0 where there is none."""
        rotation, centre = poses_of(*(np.asarray(x)[None] for x in (elevation_rad, azimuth_rad, radius)))
        found = []
        for i in range(self.views):
            inside, point, _ = self.inside(i, rotation, centre)
            found.append(point[inside])
        points = torch.cat(found)
        if not len(points):
            return 0.0
        turn = torch.deg2rad(torch.arange(0.0, 90.0, 3.0))
        across = points[:, :1] * turn.cos() + points[:, 1:2] * turn.sin(), points[:, 1:2] * turn.cos() - points[:, :1] * turn.sin()
        sides = torch.stack([x.amax(0) - x.amin(0) for x in across])
        return float(torch.cat([sides[:, sides.prod(0).argmin()], (points[:, 2].amax() - points[:, 2].amin())[None]]).max())

    def within(self, point: torch.Tensor, rotation: torch.Tensor, centre: torch.Tensor, j: int) -> torch.Tensor:
        """Whether photo j shows object where world points (K, Q, 3) lie: (K, Q)."""
        return self.mask[self._project(point, rotation, centre, j)[0]]

    def _project(self, point: torch.Tensor, rotation: torch.Tensor, centre: torch.Tensor, j: int):
        """World points (K, Q, 3) in photo j: flat pixel among all photos', cell of the grid of rays, depth; each (K, Q)."""
        size, side, scale = self.SIZE, self.SIDE, 0.5 * self.SIZE / self.tangent[j]
        camera = point @ rotation[:, j].transpose(1, 2) - (rotation[:, j] @ centre[:, j, :, None]).transpose(1, 2)
        depth = -camera[..., 2]
        column = (camera[..., 0] / depth * scale + size / 2).long().clamp_(0, size - 1)
        row = (size / 2 - camera[..., 1] / depth * scale).long().clamp_(0, size - 1)
        return j * size**2 + row * size + column, (row * side // size) * side + column * side // size, depth
