"""Bodies of revolution: bottles, cups, bells, balls. Their outlines leave every azimuth open; what is printed on them does not.

Where the outlines of all photos are those of one body of revolution about the world's up axis, its surface is known exactly: the largest
circle at every height that lies inside all outlines. So every photo can be unwrapped onto that surface, a picture over height and angle,
and the azimuth between two photos is the turn under which their pictures agree where both see the surface. What an agreement is worth is judged
against the same two pictures at all other turns: on a plain body, or one with bands alone, none says anything, and nothing is changed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from relposepp.consistency import likelihood_ratio, visible
from relposepp.tangency import poses_of
from sap3d.cameras import FOV_RAD
from sap3d.images import resize

TANGENT = float(np.tan(FOV_RAD / 2))


@dataclass
class Unwrapped:
    """What one set of elevations makes of the photos.

    agreement (N, N, TURNS): of photos i < j, for azimuths of j less that of i of all turns from 0 on: sum of the log-likelihood ratios of the colours
    over what both see, over what one of them sees.
    """

    agreement: torch.Tensor

    def of(self, azimuth_rad: np.ndarray) -> np.ndarray:
        """(K,) of azimuths (K, N): the ratio of all pairs, over the number of photos, times 2: a point of the surface that a photo sees."""
        azimuth = torch.as_tensor(azimuth_rad).float()
        n, turns = azimuth.shape[1], self.agreement.shape[2]
        total = torch.zeros(len(azimuth))
        for i in range(n):
            for j in range(i + 1, n):
                place = (azimuth[:, j] - azimuth[:, i]) * turns / (2 * np.pi)
                low = place.floor()
                part, low = place - low, low.long()
                total += (1 - part) * self.agreement[i, j, low % turns] + part * self.agreement[i, j, (low + 1) % turns]
        return (2 * total / n).double().numpy()


class Revolution:
    """The photos (straight RGBA, square) of one scene, taken to be of a body of revolution; all cameras look at the origin."""

    SIZE = 256  # side of the photos that are read, pixels
    HEIGHTS, HALVINGS, CIRCLE = 80, 8, 36  # of the profile: heights, halvings of the interval of a radius, points of a circle
    SLACK = 0.006  # a ray that passes the body this near meets it
    HALF, WIDEST = 0.52, 0.6  # largest height and radius, object lengths
    RAYS, DEPTHS = 48, 64  # rays a side of a photo and points on each that ask how much of the outlines the body fills
    TURNS = 180  # of an unwrapped picture
    FACING = 0.3  # least cosine of normal and direction to the camera
    BINS, BIN_WIDTH = 60, 0.015  # histogram of colour distances (RMS over channels)
    TAX = 0.1  # taken from every point's ratio: what agrees everywhere shall not draw photos together
    SAME_SCALE, SAME_SHARE = 0.06, 0.7  # colour distance of the same point in two photos; share of points that are the same

    def __init__(self, images: list[np.ndarray]):
        self.views, size = len(images), self.SIZE
        small = torch.from_numpy(np.stack([resize(image, size) for image in images])).float().permute(0, 3, 1, 2)
        alpha = visible(small[:, 3])[:, None]
        blur = lambda x: F.avg_pool2d(F.avg_pool2d(x, 3, 1, 1), 3, 1, 1)  # noqa: E731
        weight = alpha.clamp_min(1e-3)
        self.photos = torch.cat([blur(small[:, :3] * weight) / blur(weight), alpha], 1)  # (N, 4, S, S)
        self.mask = (alpha[:, 0] > 0.3).flatten(1)
        at = ((torch.arange(self.RAYS) + 0.5) * size / self.RAYS).long()
        self.direction = []
        for v in range(self.views):
            row, column = at[(alpha[v, 0][at][:, at] > 0.5).nonzero()].unbind(1)
            x, y = ((column + 0.5) / size * 2 - 1) * TANGENT, -((row + 0.5) / size * 2 - 1) * TANGENT
            self.direction.append(torch.stack([x, y, -torch.ones_like(x)], -1))
        self.height = torch.linspace(-self.HALF, self.HALF, self.HEIGHTS)
        self.angle = torch.arange(self.TURNS) * 2 * np.pi / self.TURNS

    def profile(self, elevation: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
        """Radius (HEIGHTS,) of the largest circle at every height that lies inside the outlines of all photos, 0 for none; of cameras (N,)."""
        circle = torch.arange(self.CIRCLE) * 2 * np.pi / self.CIRCLE
        around = torch.stack([circle.cos(), circle.sin(), torch.zeros_like(circle)], -1)
        middle = torch.stack([torch.zeros_like(self.height)] * 2 + [self.height], -1)[:, None]
        cameras = self._cameras(elevation, radius)
        low, high = torch.zeros(self.HEIGHTS), torch.full((self.HEIGHTS,), self.WIDEST)
        for _ in range(self.HALVINGS):  # larger circles are inside only where smaller ones are
            tried = 0.5 * (low + high)
            point = (middle + tried[:, None, None] * around).reshape(-1, 3)
            inside = torch.ones(len(point), dtype=torch.bool)
            for v, (rotation, centre) in enumerate(cameras):
                column, row = ((self._project(point, rotation, centre) + 1) * (self.SIZE / 2)).long().clamp_(0, self.SIZE - 1).unbind(-1)
                inside &= self.mask[v][row * self.SIZE + column]
            inside = inside.view(self.HEIGHTS, self.CIRCLE).all(1)
            low, high = torch.where(inside, tried, low), torch.where(inside, high, tried)
        return low

    def missed(self, elevation_rad, radius) -> float:
        """Share of the object's rays that miss the body of elevations and distances (N,), mean over photos."""
        elevation, radius = torch.as_tensor(elevation_rad).float(), torch.as_tensor(radius).float()
        profile, total = self.profile(elevation, radius), 0.0
        for v, (rotation, centre) in enumerate(self._cameras(elevation, radius)):
            depth = centre.norm() + torch.linspace(-0.75, 0.75, self.DEPTHS)
            point = centre + (self.direction[v] @ rotation)[:, None] * depth[:, None]
            level = ((point[..., 2] + self.HALF) / (2 * self.HALF) * (self.HEIGHTS - 1)).round().long()
            widest = profile[level.clamp(0, self.HEIGHTS - 1)] * ((level >= 0) & (level < self.HEIGHTS))
            met = ((point[..., :2].norm(dim=-1) <= widest + self.SLACK) & (widest > 0)).any(1)
            total += float(1 - met.float().mean()) / self.views
        return total

    def unwrapped(self, elevation_rad, radius) -> Unwrapped:
        """Of elevations and distances (N,)."""
        elevation, radius = torch.as_tensor(elevation_rad).float(), torch.as_tensor(radius).float()
        profile = self.profile(elevation, radius)
        colour, weight = self._pictures(elevation, radius, profile)
        n = self.views
        agreement = torch.zeros(n, n, self.TURNS)
        for i in range(n):
            seen = (weight[i].sum(0) > 0).nonzero()[:, 0]
            for j in range(i + 1, n):
                # What photo i sees at an angle, seen from photo j: at that angle less the azimuth between them.
                moved = (seen - torch.arange(self.TURNS)[:, None]) % self.TURNS  # (TURNS, A)
                both = torch.minimum(weight[i][:, None, seen], weight[j][:, moved])  # (Z, TURNS, A)
                gap = (colour[i][:, :, None, seen] - colour[j][:, :, moved]).square().mean(0).sqrt()
                whole = 0.5 * (weight[i].sum() + weight[j].sum()).clamp_min(1e-6)
                agreement[i, j] = (self._ratio(gap, both) * both).sum((0, 2)) / whole
        return Unwrapped(agreement)

    def _ratio(self, gap: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Log of how much likelier a colour distance is for one point in both photos than for two points of equal height; of any shape."""
        place = (gap / self.BIN_WIDTH).long().clamp_max(self.BINS - 1)
        count = torch.bincount(place.flatten(), weights=weight.flatten(), minlength=self.BINS)
        return likelihood_ratio(count + 0.001 * count.sum() + 1e-9, self.BIN_WIDTH, self.SAME_SCALE, self.SAME_SHARE)[place] - self.TAX

    def _pictures(self, elevation: torch.Tensor, radius: torch.Tensor, profile: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Colours (N, 3, HEIGHTS, TURNS) of the body's surface, angles counted from each camera's azimuth, and areas (N, HEIGHTS, TURNS), 0 where it is not seen."""
        smooth = F.avg_pool1d(F.pad(profile[None, None], (2, 2), mode="replicate"), 5, 1)[0, 0]
        slope = torch.gradient(smooth, spacing=(self.height,))[0]
        length = (1 + slope.square()).sqrt()
        cos, sin = self.angle.cos(), self.angle.sin()
        point = torch.stack(torch.broadcast_tensors(profile[:, None] * cos, profile[:, None] * sin, self.height[:, None]), -1)
        normal = torch.stack(torch.broadcast_tensors(cos / length[:, None], sin / length[:, None], -(slope / length)[:, None]), -1)
        colours, areas = [], []
        for v, (rotation, centre) in enumerate(self._cameras(elevation, radius)):
            facing = (F.normalize(centre - point, dim=-1) * normal).sum(-1)
            read = F.grid_sample(self.photos[v : v + 1], self._project(point, rotation, centre)[None], mode="bilinear", align_corners=False)[0]
            seen = (facing > self.FACING) & (profile > 0.02)[:, None] & (read[3] > 0.6)
            colours.append(read[:3])
            areas.append(seen * (profile * length)[:, None])
        return torch.stack(colours), torch.stack(areas)

    def _cameras(self, elevation: torch.Tensor, radius: torch.Tensor):
        """Rotations (3, 3) and centres (3,) at azimuth 0."""
        return list(zip(*poses_of(elevation, torch.zeros_like(elevation), radius)))

    @staticmethod
    def _project(point: torch.Tensor, rotation: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
        """World points (..., 3) to ``grid_sample`` coordinates (..., 2)."""
        x, y, z = ((point - centre) @ rotation.T).unbind(-1)
        return torch.stack([x, -y], -1) / (-z[..., None] * TANGENT)


def azimuths_of(agreement: torch.Tensor, penalty, keep: int = 24, beam: int = 150) -> np.ndarray:
    """The best azimuths (keep, N), first 0, radians, by ``Unwrapped.agreement`` and a penalty; of those within two turns of each other the best.

    Views are added one by one, at all turns beside the best ``beam`` of those before. penalty: function of azimuths (K, n) to (K,), added to
    the ratio of ``Unwrapped.of``.
    """
    n, turns = agreement.shape[0], agreement.shape[2]
    found, ratio = torch.zeros(1, 1, dtype=torch.long), torch.zeros(1)
    for new in range(1, n):
        places = torch.arange(turns)
        more = sum(agreement[k, new][(places - found[:, k, None]) % turns] for k in range(new))  # (K, turns)
        ratio = (ratio[:, None] + 2 * more / n).flatten()
        found = torch.cat([found[:, None].expand(-1, turns, -1), places[None, :, None].expand(len(found), -1, 1)], 2).flatten(0, 1)
        total = ratio + torch.from_numpy(penalty(found.double().numpy() * 2 * np.pi / turns)).float()
        kept = _distinct(found, total, beam if new < n - 1 else keep, turns)
        found, ratio = found[kept], ratio[kept]
    return found.double().numpy() * 2 * np.pi / turns


def _distinct(found: torch.Tensor, total: torch.Tensor, limit: int, turns: int, apart: int = 2) -> torch.Tensor:
    """Indices of the best ``limit`` of turns (K, n), none of them within ``apart`` of a better one everywhere."""
    order = torch.topk(total, min(len(total), 60 * limit)).indices
    kept, alive = [], torch.ones(len(order), dtype=torch.bool)
    for place, k in enumerate(order.tolist()):
        if alive[place]:
            kept.append(k)
            if len(kept) == limit:
                break
            gap = (found[order] - found[k]).abs()
            alive &= torch.minimum(gap, turns - gap).amax(1) > apart
    return torch.tensor(kept)
