"""A hand-made object for the tests of stage 1: a few coloured balls, ray-traced exactly."""

from __future__ import annotations

import numpy as np

from sap3d.cameras import FOV_RAD, Camera, rays
from sap3d.images import save_image

BALLS = (  # centre, radius, colour
    ((0.0, 0.0, -0.1), 0.22, (0.8, 0.2, 0.2)),
    ((0.3, 0.05, -0.15), 0.14, (0.2, 0.7, 0.2)),
    ((-0.1, -0.28, 0.0), 0.12, (0.2, 0.3, 0.9)),
    ((-0.12, 0.1, 0.28), 0.13, (0.9, 0.8, 0.1)),
    ((-0.3, 0.2, -0.25), 0.1, (0.6, 0.2, 0.7)),
)


def mirrored_balls(azimuth_rad: float, more=()):
    """Balls with a mirror plane at an azimuth, and ``more``."""
    normal = np.array([-np.sin(azimuth_rad), np.cos(azimuth_rad), 0.0])
    along = np.array([np.cos(azimuth_rad), np.sin(azimuth_rad), 0.0])
    balls = [(0.2 * along - [0, 0, 0.1], 0.2, (0.8, 0.2, 0.2)), (-0.28 * along + [0, 0, 0.2], 0.13, (0.9, 0.8, 0.1))]
    for side in (1, -1):
        balls += [(0.32 * side * normal - 0.05 * along, 0.12, (0.2, 0.7, 0.2)), (0.2 * side * normal + 0.1 * along + [0, 0, 0.26], 0.1, (0.2, 0.3, 0.9))]
    return (*balls, *more)


def render(camera: Camera, size: int = 96, balls=BALLS) -> np.ndarray:
    """Straight RGBA (size, size, 4) of the balls."""
    origins, directions = rays(camera.camera_from_world(), FOV_RAD, size, size)
    image, nearest = np.zeros((size, size, 4), np.float32), np.full((size, size), np.inf)
    for centre, radius, colour in balls:
        to = origins - np.array(centre)
        b = (to * directions).sum(-1)
        inside = b * b - ((to * to).sum(-1) - radius**2)
        depth = np.where(inside > 0, -b - np.sqrt(np.maximum(inside, 0)), np.inf)
        front = depth < nearest
        image[front] = (*colour, 1.0)
        nearest = np.minimum(nearest, depth)
    return image


def write_scene(root, cameras: list[Camera], type_: str = "Balls", name: str = "balls", size: int = 96, balls=BALLS) -> None:
    """The photos of a scene in the data layout, without poses."""
    for k, camera in enumerate(cameras):
        save_image(root / "dataset" / "data" / "train" / type_ / name / "images" / f"{k:03d}.png", render(camera, size, balls))


class TrueScores:
    """PairScores that know the cameras: minus the squared error of a relative rotation, with modes and noise if asked for.

    ghosts: {(i, j): relative rotation} of wrong modes that score higher than the truth for that pair alone.
    """

    def __init__(self, rotations: np.ndarray, width_deg: float = 12.0, ghosts=None, elevations: bool = True):
        self.rotations, self.width, self.views = rotations, width_deg, len(rotations)
        self.ghosts, self.elevations = ghosts or {}, elevations

    def pair(self, i, j, relative):
        from relposepp.rotations import relative_rotation
        from sap3d.cameras import rotation_angle_deg

        def bump(truth):
            return np.exp(-0.5 * (rotation_angle_deg(relative, truth) / self.width) ** 2)

        score = bump(relative_rotation(self.rotations[i], self.rotations[j]))
        if (i, j) in self.ghosts:
            score = score + 1.2 * bump(self.ghosts[i, j])
        return 8.0 * score

    def elevation(self, view, elevation_rad):
        if not self.elevations:
            return np.zeros(len(elevation_rad))
        truth = np.arcsin(self.rotations[view, 2, 2])
        return -0.5 * ((np.asarray(elevation_rad) - truth) / np.deg2rad(8)) ** 2
