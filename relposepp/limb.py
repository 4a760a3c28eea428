"""Colours at the outline: which side of an object another photo has seen.

Two photos' outlines alone leave a choice between a view and its mirror image on the other side. Colours decide it without
any knowledge of shapes: a point on the outline has its surface normal in the image plane, so a camera on that side sees the
point face to face, somewhere along the ray through it. Its colour must be found there; a camera on the other side of the
object shows it only by chance.
"""

from __future__ import annotations

import numpy as np
import torch

from relposepp.consistency import Consistency, likelihood_ratio
from relposepp.tangency import poses_of

SIZE = Consistency.SIZE


class Limb:
    """Log-likelihood ratio of camera configurations by the colours at the outlines of the photos (straight RGBA, square)."""

    POINTS = 128  # on the outline of a photo, at most
    INSET = 3.5  # how far inside of the outline a colour is read, pixels of ``Consistency.SIZE``
    DEPTHS, REACH = 48, 0.65  # points on a ray, within REACH of the object's centre, object lengths
    FACING = 0.3  # least cosine of normal and direction to the other camera
    CHUNK = 24  # configurations worked on at once
    BINS, BIN_WIDTH = 40, 0.01  # histogram of the smallest colour distance on a ray (RMS over channels)
    SAME_SCALE, SAME_SHARE = 0.03, 0.7  # smallest distance where the point is seen; share of facing points that are seen

    def __init__(self, consistency: Consistency):
        """consistency: of the same photos."""
        self.photos, self.views = consistency, consistency.views
        line = (torch.arange(SIZE) + 0.5) / SIZE * 2 - 1
        self.pixel, self.direction, self.normal = [], [], []
        for v in range(self.views):
            row, column, normal = outline_points(consistency.alpha[v], self.INSET, self.POINTS)
            self.pixel.append(v * SIZE**2 + row * SIZE + column)
            self.direction.append(torch.stack([line[column] * consistency.tangent[v], -line[row] * consistency.tangent[v], -torch.ones(len(row))], -1))
            self.normal.append(torch.cat([normal, torch.zeros(len(row), 1)], 1))

    @torch.no_grad()
    def ratio(self, elevation_rad, azimuth_rad, radius, turn=None, tables: dict | None = None) -> np.ndarray:
        """(K,) of configurations (K, N), turn (K, N, 3) or None as in ``axes_of``: mean over ordered pairs of photos of the ratio's logarithm a point of the outline; larger is better.

        What a smallest distance is worth is judged against the same distances of all the configurations given, most of which
        are wrong: on an object of one colour none says anything. tables: an empty dict, which keeps what this call has found distances to
        be worth for further calls with it.
        """
        rotation, centre = poses_of(elevation_rad, azimuth_rad, radius, turn)
        total = torch.zeros(len(rotation))
        for i in range(self.views):
            parts = [self._smallest(i, rotation[k : k + self.CHUNK], centre[k : k + self.CHUNK]) for k in range(0, len(rotation), self.CHUNK)]
            distance, facing = (torch.cat(x) for x in zip(*parts))  # (K, N, M)
            for j in range(self.views):
                if i != j and len(self.pixel[i]):
                    found = self._ratios(distance[:, j], facing[:, j]) if tables is None or (i, j) not in tables else tables[i, j]
                    if tables is not None:
                        tables[i, j] = found
                    total += (found[self._bins(distance[:, j])] * facing[:, j]).sum(1) / len(self.pixel[i])
        return (total / max(1, self.views * (self.views - 1))).double().numpy()

    def _bins(self, distance: torch.Tensor) -> torch.Tensor:
        return (distance / self.BIN_WIDTH).long().clamp_max(self.BINS - 1)

    def _ratios(self, distance: torch.Tensor, facing: torch.Tensor) -> torch.Tensor:
        """(BINS,) of the distances (K, M) of points that face the other camera."""
        count = torch.bincount(self._bins(distance)[facing], minlength=self.BINS).float()
        return likelihood_ratio(count + 0.001 * count.sum() + 1e-6, self.BIN_WIDTH, self.SAME_SCALE, self.SAME_SHARE)

    def _smallest(self, i: int, rotation: torch.Tensor, centre: torch.Tensor):
        """Of the outline's points of photo i, for every other photo (K, N, M): the smallest colour distance to what lies on the
        point's ray there, where it is inside of all outlines and faced; and whether there is any such place."""
        k, m = len(centre), len(self.pixel[i])
        depth = centre[:, i].norm(dim=-1, keepdim=True) + torch.linspace(-self.REACH, self.REACH, self.DEPTHS)  # (K, D)
        direction, normal = self.direction[i] @ rotation[:, i], self.normal[i] @ rotation[:, i]  # (K, M, 3)
        point = centre[:, i, None, None] + direction[:, :, None] * depth[:, None, :, None]  # (K, M, D, 3)
        along, start = (direction * normal).sum(-1), (centre[:, i, None] * normal).sum(-1)
        height = start[..., None] + along[..., None] * depth[:, None]  # of the points along the normal
        places, inside = {}, torch.ones(point.shape[:3], dtype=torch.bool)
        for j in range(self.views):
            if j != i:
                places[j] = self.photos._project(point.flatten(1, 2), rotation, centre, j)[0].reshape(inside.shape)
                inside &= self.photos.mask[places[j]]
        distance, facing = torch.full((k, self.views, m), 1.0), torch.zeros(k, self.views, m, dtype=torch.bool)
        own = self.photos.colour[self.pixel[i]][None, :, None]
        for j, place in places.items():
            eye = centre[:, j]
            gap = eye[:, None, None] - point
            cosine = ((eye[:, None] * normal).sum(-1)[..., None] - height) / gap.square().sum(-1).sqrt()
            valid = inside & (cosine > self.FACING)
            found = torch.where(valid, (self.photos.colour[place] - own).square().mean(-1).sqrt(), 1.0)
            distance[:, j], facing[:, j] = found.amin(2), valid.any(2)
        return distance, facing


def outline_points(alpha: torch.Tensor, inset: float, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row, column (M,) of at most ``count`` pixels about ``inset`` inside of the outline of a photo (S, S), and the outline's
    normals (M, 2) there, outward, x to the right and y up. Fewer where the object is thinner than that; maybe none."""
    from scipy import ndimage

    mask = (alpha > 0.5).numpy()
    inner = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    rows, columns = np.nonzero((inner > inset - 0.5) & (inner <= inset + 0.5))
    if len(rows) > count:
        chosen = np.linspace(0, len(rows) - 1, count).round().astype(int)
        rows, columns = rows[chosen], columns[chosen]
    down, right = np.gradient(ndimage.gaussian_filter(mask.astype(np.float64), inset))
    normal = np.stack([-right[rows, columns], down[rows, columns]], -1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True).clip(1e-9)
    return torch.from_numpy(rows), torch.from_numpy(columns), torch.from_numpy(normal).float()
