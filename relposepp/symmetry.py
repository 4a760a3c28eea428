"""Mirror symmetry: most things that people photograph have a vertical mirror plane, and the photos tell whether and where.

The mirror image of a photo is a photo of the mirrored object, by the mirrored camera. Where the object equals its mirror image,
that is one more photo of it: the visual hull of photos and mirrored photos must fill the outlines as the photos' own hull does.
For a point of the hull that means that its mirror image too lies inside all outlines, so nothing has to be mirrored but points.
The plane passes through the origin, where stage 1 puts the middle of the object, and contains the world's up axis: one unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from relposepp.consistency import MEASURES, Consistency
from relposepp.tangency import poses_of

MIRRORED_TURN = np.array([-1.0, 1.0, -1.0])  # a mirrored camera's turn (``axes_of``): the one about its right axis stays


@dataclass(frozen=True)
class MirrorPlane:
    """A vertical plane through the origin at an azimuth (radians, modulo pi), and how well the photos bear it out.

    missed: share of the object's rays that miss the hull when all outlines are mirrored too, over what they miss without it (0: perfect).
    colours: mean log-likelihood ratio a ray of the colours that photos and mirrored photos show of the same points (``Consistency``).
    """

    azimuth_rad: float
    missed: float
    colours: float


class Symmetry:
    """Looks for mirror planes of camera configurations of a scene's photos (straight RGBA, square)."""

    STEP_DEG = 3.0  # between planes that are tried
    CLOSE = 0.004  # planes that miss at most this much more than the best one are judged by colours
    MISSES = 20.0  # colours' log-likelihood ratio that a ray's miss outweighs

    def __init__(self, images: list[np.ndarray], fov_rad: Sequence[float] | None = None, photos: Consistency | None = None):
        """fov_rad: across every photo; photos: their ``Consistency``, where there is one already."""
        self.photos = photos or Consistency(images, fov_rad)
        self.both = Consistency([*images, *(image[:, ::-1].copy() for image in images)], None if fov_rad is None else [*fov_rad, *fov_rad])

    @torch.no_grad()
    def missed(self, elevation_rad, azimuth_rad, radius, planes_rad, turn=None) -> np.ndarray:
        """(K, P) of configurations (K, N) and azimuths of planes (K, P) or (P,): ``MirrorPlane.missed``, mean over photos."""
        rotation, centre = poses_of(elevation_rad, azimuth_rad, radius, turn)
        planes = torch.as_tensor(planes_rad).float().expand(len(rotation), -1)
        return np.stack([self._missed(rotation[k : k + 1], centre[k : k + 1], planes[k]) for k in range(len(rotation))])

    def _missed(self, rotation: torch.Tensor, centre: torch.Tensor, planes: torch.Tensor) -> np.ndarray:
        photos, total = self.photos, torch.zeros(len(planes))
        for i in range(photos.views):
            inside, point, _ = photos.inside(i, rotation, centre)
            ray = inside[0].nonzero()[:, 0]
            image = mirrored_points(point[0][inside[0]], planes)  # (P, Q, 3)
            kept = torch.ones(image.shape[:2], dtype=torch.bool)
            for j in range(photos.views):
                kept &= photos.within(image.reshape(1, -1, 3), rotation, centre, j).view(kept.shape)
            met = torch.zeros(len(planes), inside.shape[1]).index_add_(1, ray, kept.float()) > 0
            total += inside.any(2).float().mean() - met.float().mean(1)
        return (total / photos.views).double().numpy()

    def colours(self, elevation_rad, azimuth_rad, radius, planes_rad, turn=None) -> np.ndarray:
        """``MirrorPlane.colours`` (P,) of planes (P,) of one configuration (N,)."""
        elevation, azimuth, radius, planes = (np.asarray(x, float) for x in (elevation_rad, azimuth_rad, radius, planes_rad))
        twice = lambda x: np.tile(np.concatenate([x, x]), (len(planes), 1))  # noqa: E731
        both = np.concatenate([np.tile(azimuth, (len(planes), 1)), 2 * planes[:, None] - azimuth], 1)
        turn = None if turn is None else np.tile(np.concatenate([turn, np.asarray(turn) * MIRRORED_TURN]), (len(planes), 1, 1))
        return self.both.measures(twice(elevation), both, twice(radius), turn)[:, MEASURES.index("colour_sum")]

    def best(self, elevation_rad, azimuth_rad, radius, turn=None) -> MirrorPlane:
        """The plane of one configuration (N,), turn (N, 3) or None, that the photos bear out best: by outlines, by colours among those alike in them."""
        pose = [np.asarray(x, float) for x in (elevation_rad, azimuth_rad, radius)]
        turns = None if turn is None else np.asarray(turn, float)[None]
        planes = np.deg2rad(np.arange(0, 180, self.STEP_DEG))
        for finer_deg in (1.0, 0.25, None):
            missed = self.missed(*(x[None] for x in pose), planes, turns)[0]
            close = np.flatnonzero(missed <= missed.min() + self.CLOSE)
            colours = self.colours(*pose, planes[close], turn)
            k = int(np.argmax(colours - self.MISSES * missed[close]))
            found = MirrorPlane(float(planes[close[k]] % np.pi), float(missed[close[k]]), float(colours[k]))
            if finer_deg:
                planes = found.azimuth_rad + np.deg2rad(finer_deg) * np.arange(-3, 4)
        return found


def mirrored_points(points: torch.Tensor, planes_rad: torch.Tensor) -> torch.Tensor:
    """Points (Q, 3) mirrored in vertical planes through the origin (P,): (P, Q, 3)."""
    normal = torch.stack([-planes_rad.sin(), planes_rad.cos(), torch.zeros_like(planes_rad)], -1)
    return points - 2 * (points @ normal.T).T[..., None] * normal[:, None]
