"""Cameras from outlines: epipolar tangency of all pairs of views, solved by batched Levenberg-Marquardt from many starts at once.

All planes through two camera centres (epipolar planes) that touch the object touch both of its outlines, at the same two
extreme angles about the baseline ("epipolar tangency": Hernandez, Schmitt and Cipolla, "Silhouette coherence for camera
calibration under circular motion", PAMI 2007). The outlines' convex hulls are enough. A pair of views gives two equations;
where the baseline passes through the object there is no tangent, and all that is known is that it does so in both photos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sap3d.cameras import FOV_RAD, RADIUS, radius_at_fov

CLEAR_RAD = 2.95  # an outline that spans less than this about the baseline does not hold it (exactly: pi)
HOLDS_RAD = 3.4  # an outline that spans more than this holds the baseline
VERTICES = 40  # most corners of a hull that are kept
HANDHELD_FOV_DEG = (28.0, 80.0)  # photos of others are taken to be from as far away as with the nearest of these: 2.7 and .8 object lengths
MISMATCH_RAD = 0.03  # residual of a pair whose baseline passes through one outline and not through the other


def outline_rays(image: np.ndarray, fov_rad: float = FOV_RAD) -> np.ndarray:
    """Unit camera-frame directions (P, 3) of the convex hull of the object's outline in a straight RGBA photo.

    The outline is where alpha passes one half, interpolated along rows and columns.
    """
    alpha = np.asarray(image[..., 3], np.float64)
    height, width = alpha.shape
    if alpha.max() <= 0.5:
        alpha = alpha / max(alpha.max(), 1e-6)
    rows = _extremes(alpha)
    columns = _extremes(alpha.T)[:, ::-1]
    corners = _hull(np.concatenate([rows, columns]) if len(rows) else np.array([[0.0, 0.0], [width, 0.0], [width, height], [0.0, height]]))
    tangent = np.tan(fov_rad / 2)
    x, y = (corners[:, 0] / width * 2 - 1) * tangent, -(corners[:, 1] / height * 2 - 1) * tangent * height / width
    directions = np.stack([x, y, -np.ones(len(corners))], -1)
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def _extremes(alpha: np.ndarray) -> np.ndarray:
    """First and last places (M, 2) as (x, y), pixel units, where every row passes one half."""
    padded = np.pad(alpha, ((0, 0), (1, 1)))
    inside = padded > 0.5
    rows = np.flatnonzero(inside.any(1))
    if not len(rows):
        return np.zeros((0, 2))
    block, inside = padded[rows], inside[rows]
    k = np.arange(len(rows))
    first = inside.argmax(1)
    last = inside.shape[1] - 1 - inside[:, ::-1].argmax(1)
    a, b = block[k, first - 1], block[k, first]
    left = first - (b - 0.5) / np.maximum(b - a, 1e-9)
    a, b = block[k, last + 1], block[k, last]
    right = last + (b - 0.5) / np.maximum(b - a, 1e-9)
    x = np.concatenate([left, right]) - 0.5  # column c of the padded block has its centre at c - 0.5
    return np.stack([x, np.tile(rows + 0.5, 2)], -1)


def _hull(points: np.ndarray) -> np.ndarray:
    """Corners of the convex hull, those that matter least left out until VERTICES are left."""
    from scipy.spatial import ConvexHull, QhullError

    try:
        corners = points[ConvexHull(points).vertices]
    except QhullError:
        return points
    while len(corners) > VERTICES:
        before, after = np.roll(corners, 1, 0) - corners, np.roll(corners, -1, 0) - corners
        chord = np.linalg.norm(after - before, axis=1)
        height = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) / np.maximum(chord, 1e-9)
        corners = np.delete(corners, height.argmin(), 0)
    return corners


def likely_radius(fov_rad: Sequence[float]) -> np.ndarray:
    """Distances (N,), object lengths, at which the object fills as much of photos of these fields of view as of the protocol's; within what is searched."""
    return radius_at_fov(RADIUS, np.clip(fov_rad, *np.deg2rad(HANDHELD_FOV_DEG)))


@dataclass(frozen=True)
class Slack:
    """Widths (standard deviations) of the beliefs in what a search otherwise takes as given; 0: it is given.

    radius: in the distances, object lengths. aim: in looking exactly at the origin, radians, sideways and up. roll: in having none, radians.
    """

    radius: float = 0.0
    aim: float = 0.0
    roll: float = 0.0

    @property
    def turn(self) -> tuple[float, float, float]:
        return self.aim, self.aim, self.roll


EXACT = Slack()


def axes_of(elevation: torch.Tensor, azimuth: torch.Tensor, turn: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right, up and backward axes (..., 3) in the world of cameras that look at the origin without roll, then turned.

    turn (..., 3): radians about the camera's own up axis, right axis and backward axis, in this order; None for no turn.
    """
    ce, se, ca, sa = elevation.cos(), elevation.sin(), azimuth.cos(), azimuth.sin()
    right = torch.stack([-sa, ca, torch.zeros_like(sa)], -1)
    up = torch.stack([-se * ca, -se * sa, ce], -1)
    backward = torch.stack([ce * ca, ce * sa, se], -1)
    if turn is None:
        return right, up, backward
    (cx, cy, cr), (sx, sy, sr) = (f(turn).unsqueeze(-1).unbind(-2) for f in (torch.cos, torch.sin))
    right, backward = cx * right - sx * backward, sx * right + cx * backward
    up, backward = cy * up + sy * backward, cy * backward - sy * up
    return cr * right + sr * up, cr * up - sr * right, backward


def _world(axes, ray):
    """World directions of camera-frame rays (..., 3), one for each camera."""
    right, up, backward = axes
    return ray[..., :1] * right + ray[..., 1:2] * up + ray[..., 2:] * backward


def extreme_rays(axes, rays, baseline, inward):
    """The two rays (Q, 2, 3), camera frame, at which planes through the baseline touch an outline, and the angle (Q,) between the planes.

    axes: three (Q, 3); rays (P, 3); baseline (Q, 3) unit; inward (Q, 3): unit, across the baseline towards the origin.
    """
    across = torch.linalg.cross(baseline, inward)
    x, y = (torch.stack([(v * a).sum(-1) for a in axes], -1) @ rays.T for v in (inward, across))
    half = y / (torch.hypot(x, y) + x).clamp_min(1e-9)  # tan of half the angle about the baseline
    low, high = half.min(1), half.max(1)
    return rays[torch.stack([low.indices, high.indices], 1)], 2 * (high.values.atan() - low.values.atan())


def plane_gap(centre_i, centre_j, ray_i, ray_j):
    """Angle (...,), radians as seen from the cameras, between the planes through the baseline and two world rays (..., 3)."""
    baseline = centre_j - centre_i
    normal_i, normal_j = torch.linalg.cross(baseline, ray_i), torch.linalg.cross(baseline, ray_j)
    volume = (normal_i * ray_j).sum(-1)
    return volume / (normal_i.norm(dim=-1) * normal_j.norm(dim=-1)).sqrt().clamp_min(1e-6)


def poses_of(elevation, azimuth, radius, turn=None) -> tuple[torch.Tensor, torch.Tensor]:
    """``camera_from_world`` rotations (..., 3, 3) and centres (..., 3), float32, of tensors or arrays (...) and turn (..., 3) or None."""
    elevation, azimuth, radius, turn = (None if x is None else torch.as_tensor(x).float() for x in (elevation, azimuth, radius, turn))
    return torch.stack(axes_of(elevation, azimuth, turn), -2), _centre(elevation, azimuth, radius)


@dataclass
class Solution:
    """Configurations (K, N): elevation, azimuth (first view 0) in radians, radius; cost (K,): mean robust squared residual, in sigmas.

    turn (K, N, 3): of ``axes_of``, zero where aims are taken to be exact.
    """

    elevation: torch.Tensor
    azimuth: torch.Tensor
    radius: torch.Tensor
    cost: torch.Tensor
    turn: torch.Tensor = None

    FIELDS = ("elevation", "azimuth", "radius", "cost", "turn")

    def __post_init__(self):
        if self.turn is None:
            self.turn = torch.zeros(*self.elevation.shape, 3)

    def __getitem__(self, keep) -> Solution:
        return Solution(*(getattr(self, f)[keep] for f in self.FIELDS))

    def joined(self, other: Solution) -> Solution:
        return Solution(*(torch.cat([getattr(self, f), getattr(other, f)]) for f in self.FIELDS))


class Tangency:
    """The outlines of the photos (straight RGBA, square) of one scene."""

    SIGMA_RAD = 0.0015  # error of an outline, by default
    NEUTRAL = 0.5  # squared residual of a pair without tangents
    ROBUST = 10.0  # residuals of more sigmas than this count ever less

    def __init__(self, images: list[np.ndarray], fov_rad: Sequence[float] | None = None):
        """fov_rad: across every photo; the protocol's by default."""
        self.sigma = self.SIGMA_RAD
        self.rays = [torch.from_numpy(outline_rays(image, fov)).float() for image, fov in zip(images, fov_rad or [FOV_RAD] * len(images))]

    @classmethod
    def of_rays(cls, rays: list[np.ndarray]) -> Tangency:
        """Of camera-frame directions (P, 3) whose convex hull is the outline, one array a view."""
        tangency = cls([])
        tangency.rays = [torch.from_numpy(np.asarray(r)).float() for r in rays]
        return tangency

    @property
    def views(self) -> int:
        return len(self.rays)

    def residuals(self, elevation, azimuth, radius, views, pairs=None, jacobian=False, turn=None):
        """Residuals (K, 2 * pairs) in radians and whether they count; with their derivatives (K, 2 * pairs, 3, N) if asked for.

        elevation, azimuth, radius (K, n): of the views ``views``; pairs: positions in it, all by default. turn (K, n, 3) of the cameras
        (``axes_of``), with three more derivatives a view, or None.
        """
        n = len(views)
        pairs = pairs or [(i, j) for i in range(n) for j in range(i + 1, n)]
        place = [elevation, azimuth, radius] + ([] if turn is None else list(turn.unbind(-1)))
        posed = lambda values: (axes_of(*values[:2], torch.stack(values[3:], -1) if values[3:] else None), _centre(*values[:3]))  # noqa: E731
        axes, centre = posed(place)
        axes = [tuple(a[:, k] for a in axes) for k in range(n)]
        centres = [centre[:, k] for k in range(n)]
        residual, counts, slopes = [], [], []
        for i, j in pairs:
            baseline = centres[j] - centres[i]
            length = baseline.norm(dim=-1, keepdim=True)
            unit = baseline / length.clamp_min(1e-6)
            inward = -centres[i] + (centres[i] * unit).sum(-1, keepdim=True) * unit
            distance = inward.norm(dim=-1, keepdim=True)
            inward = inward / distance.clamp_min(1e-6)
            ray_i, span_i = extreme_rays(axes[i], self.rays[views[i]], unit, inward)
            ray_j, span_j = extreme_rays(axes[j], self.rays[views[j]], unit, inward)
            apart, determined = length[:, 0] > 0.05, distance[:, 0] > 0.02  # a baseline through the centre is in both outlines
            both = (torch.maximum(span_i, span_j) < CLEAR_RAD) & apart & determined
            mismatch = (torch.maximum(span_i, span_j) > HOLDS_RAD) & (torch.minimum(span_i, span_j) < CLEAR_RAD) & determined | ~apart
            spread = lambda k: tuple(a[:, None] for a in axes[k])  # noqa: E731
            world_i, world_j = _world(spread(i), ray_i), _world(spread(j), ray_j)
            gap = plane_gap(centres[i][:, None], centres[j][:, None], world_i, world_j)
            residual.append(torch.where(both[:, None], gap, MISMATCH_RAD * mismatch[:, None].float()))
            counts.append(both)
            if jacobian:
                slope = torch.zeros(len(gap), 2, len(place), n)
                for k, ray, mine, other in ((i, ray_i, world_i, world_j), (j, ray_j, world_j, world_i)):
                    for parameter in range(len(place)):
                        step = 2e-3
                        values = [x[:, k] for x in place]
                        values[parameter] = values[parameter] + step
                        moved, moved_centre = posed(values)
                        moved_ray = _world(tuple(x[:, None] for x in moved), ray)
                        if k == i:
                            changed = plane_gap(moved_centre[:, None], centres[j][:, None], moved_ray, world_j)
                        else:
                            changed = plane_gap(centres[i][:, None], moved_centre[:, None], world_i, moved_ray)
                        slope[:, :, parameter, k] = (changed - gap) / step
                slopes.append(slope * both[:, None, None, None])
        residual = torch.cat(residual, 1)
        counts = torch.stack(counts, 1)
        return (residual, counts, torch.cat(slopes, 1)) if jacobian else (residual, counts)

    def cost(self, elevation, azimuth, radius, views, sigma=None, pairs=None, turn=None, slack: Slack = EXACT):
        """Mean over the residuals (K,): squared, in sigmas, robust (Geman and McClure); NEUTRAL where there is no tangent.

        With a turn, what ``slack`` holds against it comes on top, over the number of residuals.
        """
        residual, counts = self.residuals(elevation, azimuth, radius, views, pairs, turn=turn)
        squared = (residual / (sigma or self.sigma)).square()
        squared = squared + self.NEUTRAL * (~counts).repeat_interleave(2, 1)
        cost = (self.ROBUST**2 * squared / (self.ROBUST**2 + squared)).mean(1)
        return cost if turn is None else cost + (turn / torch.tensor(slack.turn).clamp_min(1e-9)).square().sum((1, 2)) / residual.shape[1]

    def solve(self, elevation, azimuth, radius, views, steps=10, sigma=None, prior_deg=(15.0, 400.0), slack: Slack = EXACT, start_sigma=0.02, turn=None):
        """Levenberg-Marquardt from every start (K, n); the first azimuth stays. Returns a Solution.

        prior_deg: mean and width of a belief about elevations, so weak that it only keeps free ones from drifting away. slack: beliefs in the
        given radii and in no turn; what it says 0 of stays. turn: start (K, n, 3), zero by default. The residuals' sigma falls from
        start_sigma to ``sigma`` over the first half of the steps.
        """
        sigma = sigma or self.sigma
        k, n = elevation.shape
        turned = slack.aim > 0
        state = torch.zeros(k, 6 if turned else 3, n)
        state[:, 0], state[:, 1], state[:, 2] = elevation, azimuth, radius
        # Beliefs, a parameter: where it is and how wide (infinitely: none).
        mean, width = torch.zeros_like(state), torch.full(state.shape[1:], torch.inf)
        mean[:, 0], width[0] = np.deg2rad(prior_deg[0]), np.deg2rad(prior_deg[1])
        free = torch.ones(state.shape[1:], dtype=torch.bool)
        free[1, 0] = False
        mean[:, 2], free[2] = radius, slack.radius > 0
        if slack.radius:
            width[2] = slack.radius
        if turned:
            width[3:] = torch.tensor(slack.turn)[:, None].clamp_min(1e-9)
            free[5] = slack.roll > 0
            if turn is not None:
                state[:, 3:] = turn.transpose(1, 2)
        precision = width.square().reciprocal()
        rows = free.flatten().nonzero()[:, 0]
        damping = torch.full((k,), 1e-2)
        turn_of = lambda x: x[:, 3:].transpose(1, 2) if turned else None  # noqa: E731

        def evaluate(x, s, jacobian):
            out = self.residuals(x[:, 0], x[:, 1], x[:, 2], views, jacobian=jacobian, turn=turn_of(x))
            squared = (out[0] / s).square()
            scale = 1 / (1 + squared / self.ROBUST**2)  # Geman and McClure: cost = squared * scale, weight = scale ** 2
            return out, (squared * scale).sum(1) + ((x - mean).square() * precision).sum((1, 2)), scale

        for step in range(steps):
            s = sigma * (start_sigma / sigma) ** max(0.0, 1 - 2 * step / max(1, steps - 1))
            (residual, _, slope), total, scale = evaluate(state, s, True)
            j = slope.flatten(2)[:, :, rows] / s
            weighted = j * scale.square()[..., None]
            a = weighted.transpose(1, 2) @ j
            b = (weighted.transpose(1, 2) @ (residual / s)[..., None])[..., 0]
            b += ((state - mean) * precision).flatten(1)[:, rows]
            lift = damping[:, None] * torch.diagonal(a, dim1=1, dim2=2) + 1e-3 / 0.3**2 + precision.flatten()[rows]
            move = -torch.linalg.solve(a + torch.diag_embed(lift), b[..., None])[..., 0]
            limit = 0.35 / move.abs().amax(1, keepdim=True).clamp_min(0.35)
            full = torch.zeros(k, state[0].numel())
            full[:, rows] = move * limit
            tried = state + full.reshape(state.shape)
            tried[:, 0], tried[:, 2] = tried[:, 0].clamp(-1.45, 1.45), tried[:, 2].clamp(0.8, 3.5)
            better = evaluate(tried, s, False)[1] < total
            state = torch.where(better[:, None, None], tried, state)
            damping = torch.where(better, damping * 0.3, damping * 8).clamp(1e-5, 1e4)
        cost = self.cost(state[:, 0], state[:, 1], state[:, 2], views, sigma, turn=turn_of(state), slack=slack)
        return Solution(state[:, 0], state[:, 1], state[:, 2], cost, turn_of(state))


def _centre(elevation, azimuth, radius) -> torch.Tensor:
    """Camera centres (..., 3)."""
    across = elevation.cos() * radius
    return torch.stack([across * azimuth.cos(), across * azimuth.sin(), elevation.sin() * radius], -1)
