"""Silhouette coherence: what the photos' outlines alone say about the cameras, for all pairs and without a 3D shape.

All planes through two camera centres (epipolar planes) that touch the object touch both of its outlines, at the same two
extreme angles about the baseline ("epipolar tangency": Hernandez, Schmitt and Cipolla, "Silhouette coherence for camera
calibration under circular motion", PAMI 2007). The outlines' convex hulls are enough, a comparison costs a few dozen rays:
all relative cameras of the search's grid are judged for every pair, and configurations are refined by gradient, distances
included. Where the baseline passes through the object there is no tangent and nothing is said.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from relposepp.inference import Grid
from sap3d.cameras import FOV_RAD
from sap3d.images import resize

OUTLINE_SIZE = 128  # side of the masks whose outlines are compared
SIGMA_RAD = 0.025  # error of an outline in the tables: their step of 5 degrees moves points by up to 0.015
FINE_SIGMA_RAD = 0.01  # error of an outline in the refinement: about a pixel of the masks
WORST = 4.0  # an error over sigma counts as this much at most: masks may be wrong
WRAPS_RAD = 2.6  # an outline that reaches this far from the object's centre about the baseline holds the baseline
NEUTRAL = 2.0  # cost of a pair without tangents


def outline_rays(image: np.ndarray, fov_rad: float = FOV_RAD) -> np.ndarray:
    """Unit camera-frame directions (P, 3) of the convex hull of the object's outline in a straight RGBA photo."""
    from scipy.spatial import ConvexHull, QhullError

    alpha = resize(image, OUTLINE_SIZE)[..., 3]
    rows, columns = np.nonzero(alpha > 0.5)
    if not len(rows):
        rows, columns = np.nonzero(alpha >= alpha.max())
    corners = np.concatenate([np.stack([columns + x, rows + y], -1) for x in (0, 1) for y in (0, 1)]).astype(float)
    try:
        corners = corners[ConvexHull(corners).vertices]
    except QhullError:
        pass
    tangent = np.tan(fov_rad / 2)
    x, y = (corners[:, 0] / OUTLINE_SIZE * 2 - 1) * tangent, -(corners[:, 1] / OUTLINE_SIZE * 2 - 1) * tangent
    directions = np.stack([x, y, -np.ones(len(corners))], -1)
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def look_at_axes(elevation: torch.Tensor, azimuth: torch.Tensor) -> torch.Tensor:
    """``camera_from_world`` (..., 3, 3), OpenGL axes: relposepp.rotations.look_at_rotation, differentiable."""
    ce, se, ca, sa = elevation.cos(), elevation.sin(), azimuth.cos(), azimuth.sin()
    right = torch.stack([-sa, ca, torch.zeros_like(sa)], -1)
    up = torch.stack([-se * ca, -se * sa, ce], -1)
    return torch.stack([right, up, torch.stack([ce * ca, ce * sa, se], -1)], -2)


def tangency_errors(rays_i, rays_j, rotation_i, rotation_j, radius_i, radius_j) -> tuple[torch.Tensor, torch.Tensor]:
    """Angles, in radians, by which the extreme epipolar planes of two outlines miss each other.

    rays (P, 3) in the cameras' frames; rotations (Q, 3, 3) ``camera_from_world``; radii (Q,) or numbers.
    Returns the errors (Q, 2) of both extremes, seen from the cameras, and whether there are tangents (Q,).
    """
    backward_i, backward_j = rotation_i[:, 2], rotation_j[:, 2]
    centre_i = backward_i * torch.as_tensor(radius_i, dtype=backward_i.dtype).reshape(-1, 1)
    centre_j = backward_j * torch.as_tensor(radius_j, dtype=backward_j.dtype).reshape(-1, 1)
    baseline = F.normalize(centre_j - centre_i, dim=-1, eps=1e-6)
    inward = -centre_i + (centre_i * baseline).sum(-1, keepdim=True) * baseline  # from the baseline to the object's centre
    tangent = inward.norm(dim=-1) > 0.02
    axis_1 = F.normalize(inward, dim=-1, eps=1e-6)
    axis_2 = torch.linalg.cross(baseline, axis_1)
    extremes = []
    for rotation, rays in ((rotation_i, rays_i), (rotation_j, rays_j)):
        x = (rotation @ axis_1[..., None])[..., 0] @ rays.T  # (Q, P): the ray's part along axis_1
        y = (rotation @ axis_2[..., None])[..., 0] @ rays.T
        angle = torch.atan2(y, x)
        tangent = tangent & (angle.detach().abs().amax(1) < WRAPS_RAD)
        ends = torch.stack([angle.argmin(1), angle.argmax(1)], 1)
        extremes.append((angle.gather(1, ends), torch.hypot(x, y).gather(1, ends)))
    (angle_i, arm_i), (angle_j, arm_j) = extremes
    return 0.5 * (arm_i + arm_j) * torch.sin((angle_i - angle_j).clamp(-np.pi / 2, np.pi / 2)), tangent


class Outlines:
    """The outlines of the photos (straight RGBA, square) of one scene."""

    def __init__(self, images: list[np.ndarray]):
        self.views = len(images)
        self.rays = [torch.from_numpy(outline_rays(image)).float() for image in images]
        self.pairs = [(i, j) for i in range(self.views) for j in range(i + 1, self.views)]

    def cost(self, elevation: torch.Tensor, azimuth: torch.Tensor, radius: torch.Tensor, sigma: float) -> torch.Tensor:
        """Squared errors over sigma (K,), mean over pairs, of configurations (K, N); robust, differentiable."""
        axes, total = look_at_axes(elevation, azimuth), torch.zeros(len(elevation))
        for i, j in self.pairs:
            errors, tangent = tangency_errors(self.rays[i], self.rays[j], axes[:, i], axes[:, j], radius[:, i], radius[:, j])
            squared = (errors / sigma).square()
            robust = (WORST**2 * squared / (WORST**2 + squared)).sum(-1)  # Geman and McClure
            total = total + torch.where(tangent, robust, torch.full_like(robust, NEUTRAL))
        return total / max(1, len(self.pairs))

    def tables(self, grid: Grid, radius: np.ndarray) -> np.ndarray:
        """Log-likelihoods (N, N, E, E, A), up to a constant, of all pairs (layout: inference.Tables.pair)."""
        n, e, a = self.views, len(grid.elevation_rad), len(grid.azimuth_rad)
        mesh = np.meshgrid(grid.elevation_rad, grid.elevation_rad, grid.azimuth_rad, indexing="ij")
        elevation_i, elevation_j, azimuth = (torch.from_numpy(x.ravel()).float() for x in mesh)
        axes_i, axes_j = look_at_axes(elevation_i, azimuth), look_at_axes(elevation_j, torch.zeros_like(azimuth))
        tables = np.zeros((n, n, e, e, a))
        for i, j in self.pairs:
            errors, tangent = tangency_errors(self.rays[i], self.rays[j], axes_i, axes_j, float(radius[i]), float(radius[j]))
            squared = (errors / SIGMA_RAD).square()
            robust = (WORST**2 * squared / (WORST**2 + squared)).sum(-1)
            cost = torch.where(tangent, robust, torch.full_like(robust, NEUTRAL)).double().numpy()
            tables[i, j] = -0.5 * cost.reshape(e, e, a)
            tables[j, i] = tables[i, j].transpose(1, 0, 2)[:, :, (-np.arange(a)) % a]
        return tables

    def refine(
        self, elevation: np.ndarray, azimuth: np.ndarray, radius: np.ndarray, steps: int = 80, stay_deg: float = 8.0, stay_radius: float = 0.06
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Configurations (K, N) moved by gradient to where their outlines agree; returns elevation, azimuth, radius.

        stay_deg, stay_radius: widths of the belief in the start (angles; radius relative to it, the mean radius is kept).
        """
        start = [torch.from_numpy(np.array(np.broadcast_to(x, elevation.shape))).float() for x in (elevation, azimuth, radius)]
        moves = torch.zeros(3, *elevation.shape, requires_grad=True)  # elevation, azimuth, log radius
        optimiser = torch.optim.Adam([moves], lr=0.02)
        free = torch.ones(3, *elevation.shape)
        free[1, :, 0] = 0  # the first azimuth is the gauge
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = 0.02 * (1 - step / steps) + 0.001
            change = moves * free
            scale = change[2] - change[2].mean(-1, keepdim=True)
            sigma = SIGMA_RAD + (FINE_SIGMA_RAD - SIGMA_RAD) * min(1.0, 2 * step / steps)
            cost = self.cost(start[0] + change[0], start[1] + change[1], start[2] * scale.exp(), sigma) * max(1, len(self.pairs))
            stay = (change[:2] / np.deg2rad(stay_deg)).square().sum((0, 2)) + (scale / stay_radius).square().sum(-1)
            optimiser.zero_grad()
            (cost + stay).sum().backward()
            moves.grad.nan_to_num_(0.0)
            optimiser.step()
        change = (moves * free).detach()
        scale = change[2] - change[2].mean(-1, keepdim=True)
        found = start[0] + change[0], start[1] + change[1], start[2] * scale.exp()
        return tuple(x.double().numpy() for x in found)
