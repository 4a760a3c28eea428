"""Training data of the judge: pairs of views of the corpus, and for each pair poses whose outlines agree, one of them near the truth.

All images lie in one uint8 tensor on the device. The hard negatives are made there too, for many pairs at once: random poses, a few
Gauss-Newton steps onto the outlines' equations (relposepp/tangency.py; two equations, three unknowns), then those that agree, away from
the truth and from each other. The positive goes the same way from a place near the truth, so that nothing but the pose tells it apart.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from relposepp.tangency import CLEAR_RAD, HOLDS_RAD, MISMATCH_RAD, Tangency, axes_of, plane_gap
from sap3d.cameras import FOV_RAD
from sap3d.errors import InputError

DIRECTIONS = 40  # in which the outermost point of an outline is kept
SIGMA_RAD = 0.003  # error of an outline of 128 pixels
ELEVATION_DEG = (-50.0, 75.0)  # of hypotheses
AWAY_DEG = 12.0  # negatives are at least so far from the truth, as rotations
APART_DEG = 8.0  # and from each other
NEAR_DEG = 15.0  # half of the random poses have elevations within this of the truth's
_PERMUTATIONS = torch.tensor(list(itertools.permutations(range(3))))


# --- the corpus on the device -----------------------------------------------------------------------------------------
def _decode(job: tuple) -> tuple[np.ndarray, np.ndarray]:
    from dataset.corpus_reader import decode_object

    return decode_object(*job)


def read_corpora(folders: list[str], part: str, size: int, limit: int = 0, workers: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Images (objects, views, S, S, 4) uint8, premultiplied, and polar, azimuth, radius (objects, views, 3) of one part of some corpora.

    limit: at most so many objects a corpus, evenly spread (0: all). workers: processes that decode what is packed; 0: CorpusReader,
    which keeps the decoded array beside the corpus. Objects of the index that are not there are left out.
    """
    from dataset.corpus_reader import CorpusReader, PackedCorpus

    images, poses = [], []
    for folder in folders:
        corpus = PackedCorpus(folder, part, size)
        rows = np.flatnonzero([corpus.path(row).is_file() for row in range(len(corpus))])
        if not len(rows):
            continue
        whole = len(rows) == len(corpus)
        if limit and limit < len(rows):
            rows = rows[np.linspace(0, len(rows) - 1, limit).astype(int)]
        if whole and not workers:
            corpus = CorpusReader(folder, part, size)
            images.extend(corpus.images[row] for row in rows)
            poses.append(np.stack([corpus.polar_rad, corpus.azimuth_rad, corpus.radius], -1)[rows].astype(np.float32))
            continue
        with ProcessPoolExecutor(max(1, workers), get_context("fork")) as pool:
            decoded = list(pool.map(_decode, [(corpus.path(row), size) for row in rows], chunksize=4))
        images.extend(image for image, _ in decoded)
        poses.append(np.stack([pose for _, pose in decoded]).astype(np.float32))
    if not images:
        raise InputError(f"{', '.join(folders)}: no object of the part {part!r} there; run python -m dataset.corpus")
    if len({image.shape for image in images}) != 1:
        raise InputError("the corpora have different numbers of views: render them alike")
    return images, np.concatenate(poses)


def support_points(alpha: Tensor, directions: int = DIRECTIONS) -> Tensor:
    """Outermost points (V, directions, 2) of outlines, coverage (V, S, S) in [0, 1]: x to the right and y up, in [-1, 1] across the photo.

    The outline is where coverage passes one half, interpolated along rows and columns (``relposepp.tangency.outline_rays``); one point for
    each of some directions that are evenly spread. Views that show nothing have their points at the centre.
    """
    size = alpha.shape[-1]
    place = torch.arange(size, device=alpha.device, dtype=torch.float32) + 0.5

    def ends(block: Tensor) -> tuple[Tensor, Tensor]:
        """First and last passing (V, S, 2) along the last axis, and whether there is any (V, S)."""
        padded = F.pad(block, (1, 1))
        inside = padded > 0.5
        first = inside.int().argmax(-1)
        last = padded.shape[-1] - 1 - inside.flip(-1).int().argmax(-1)
        at = lambda index: padded.gather(-1, index[..., None].clamp(0, size + 1))[..., 0]  # noqa: E731
        left = first - (at(first) - 0.5) / (at(first) - at(first - 1)).clamp_min(1e-6)
        right = last + (at(last) - 0.5) / (at(last) - at(last + 1)).clamp_min(1e-6)
        return torch.stack([left, right], -1) - 0.5, inside.any(-1)  # column c of the padded block has its centre at c - 0.5

    x, row_met = ends(alpha)
    y, column_met = ends(alpha.transpose(1, 2))
    lines = place[None, :, None].expand_as(x)
    points = torch.cat([torch.stack([x, lines], -1).flatten(1, 2), torch.stack([lines, y], -1).flatten(1, 2)], 1)  # (V, 4 S, 2)
    met = torch.cat([row_met, column_met], 1).repeat_interleave(2, 1)
    points = (points / size * 2 - 1) * torch.tensor([1.0, -1.0], device=alpha.device)
    angle = torch.arange(directions, device=alpha.device) * (2 * np.pi / directions)
    reach = points @ torch.stack([angle.cos(), angle.sin()])
    best = reach.masked_fill(~met[..., None], -9.0).argmax(1)  # (V, directions)
    found = points.gather(1, best[..., None].expand(-1, -1, 2))
    return torch.where(met.any(1)[:, None, None], found, torch.zeros_like(found))


class DeviceCorpus:
    """Views of some objects on the device: images (objects, views, S, S, 4) uint8, outlines (objects, views, DIRECTIONS, 3) unit rays."""

    def __init__(self, images, poses: np.ndarray, device: str):
        """images: a list of, or an array (objects, views, S, S, 4); poses (objects, views, 3) polar, azimuth, radius."""
        self.device = device
        self.images = torch.empty((len(images), *images[0].shape), dtype=torch.uint8, device=device)
        self.rays = torch.empty(*self.images.shape[:2], DIRECTIONS, 3, device=device)
        for row in range(len(images)):
            self.images[row] = torch.from_numpy(np.array(images[row]))
        for row in range(0, len(images), 16):
            points = support_points(self.images[row : row + 16, ..., 3].flatten(0, 1).float() / 255) * np.tan(FOV_RAD / 2)
            rays = F.normalize(torch.cat([points, -torch.ones_like(points[..., :1])], -1), dim=-1)
            self.rays[row : row + 16] = rays.unflatten(0, (-1, self.images.shape[1]))
        self.elevation_rad = np.pi / 2 - poses[..., 0].astype(np.float64)
        self.azimuth_rad, self.radius = poses[..., 1].astype(np.float64), poses[..., 2].astype(np.float64)

    def __len__(self) -> int:
        return len(self.images)

    def draw(self, count: int, generator: np.random.Generator, angle_deg=(30.0, 150.0), share: float = 0.9) -> Pairs:
        """Random pairs of views of random objects; ``share`` of them with directions ``angle_deg`` apart, the rest any."""
        tries = 6
        rows = generator.integers(len(self), size=count)
        views = self.images.shape[1]
        first = generator.integers(views, size=(count, tries))
        second = (first + generator.integers(1, views, size=(count, tries))) % views
        e, a = self.elevation_rad[rows[:, None]], self.azimuth_rad[rows[:, None]]
        e, a = (np.broadcast_to(x, (count, 1, views)).repeat(tries, 1) for x in (e, a))
        take = lambda x, v: np.take_along_axis(x, v[..., None], -1)[..., 0]  # noqa: E731
        cosine = np.sin(take(e, first)) * np.sin(take(e, second)) + np.cos(take(e, first)) * np.cos(take(e, second)) * np.cos(take(a, first) - take(a, second))
        angle = np.rad2deg(np.arccos(np.clip(cosine, -1, 1)))
        good = (angle > angle_deg[0]) & (angle < angle_deg[1])
        good[generator.random(count) > share] = True
        chosen = good.argmax(1)  # the first that is good, or just the first
        k = np.arange(count)
        return Pairs(rows, np.stack([first[k, chosen], second[k, chosen]], 1))

    def poses(self, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
        """True elevation (P, 2), azimuth difference (P,) and radius (P, 2), on the device."""
        at = lambda x: torch.from_numpy(x[pairs.rows[:, None], pairs.views]).float().to(self.device, non_blocking=True)  # noqa: E731
        azimuth = at(self.azimuth_rad)
        return at(self.elevation_rad), wrapped(azimuth[:, 1] - azimuth[:, 0]), at(self.radius)

    def outlines(self, pairs: Pairs) -> Tensor:
        """Rays (P, 2, DIRECTIONS, 3)."""
        return self.rays[self._index(pairs.rows)[:, None], self._index(pairs.views)]

    def photos(self, pairs: Pairs) -> Tensor:
        """Photos (P, 2, 4, S, S), premultiplied, in [0, 1]."""
        chosen = self.images[self._index(pairs.rows)[:, None], self._index(pairs.views)]
        return chosen.permute(0, 1, 4, 2, 3).float() / 255

    def _index(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device, non_blocking=True)  # without waiting for what is queued


@dataclass
class Pairs:
    """Objects (P,) and views (P, 2)."""

    rows: np.ndarray
    views: np.ndarray


def augment(photos: Tensor, generator: torch.Generator) -> Tensor:
    """Photos (P, 2, 4, S, S) of pairs with other colours: permuted channels, a tint and a contrast for both photos of a pair; brightness,
    white balance and a soft edge of the mask a photo. Still premultiplied."""
    count, device = len(photos), photos.device
    uniform = lambda low, high, *shape: low + (high - low) * torch.rand(*shape, generator=generator, device=device)  # noqa: E731
    some = lambda share, *shape: torch.rand(*shape, generator=generator, device=device) < share  # noqa: E731
    colour, alpha = photos[:, :, :3], photos[:, :, 3:]
    order = _PERMUTATIONS.to(device, non_blocking=True)[torch.randint(6, (count,), generator=generator, device=device)]
    colour = colour.gather(2, order[:, None, :, None, None].expand_as(colour))
    tint = uniform(0.3, 1.0, count, 1, 3, 1, 1)
    tint = tint / tint.amax(2, keepdim=True) * uniform(0.6, 1.25, count, 1, 1, 1, 1)
    tint = torch.where(some(0.5, count, 1, 1, 1, 1), tint, torch.ones_like(tint))
    shift = torch.where(some(0.4, count, 1, 1, 1, 1), uniform(-0.2, 0.2, count, 1, 3, 1, 1), torch.zeros_like(tint))
    inverted = some(0.1, count, 1, 1, 1, 1)
    colour = torch.where(inverted, alpha - colour, colour) * tint + shift * alpha
    light = uniform(0.85, 1.15, count, 2, 1, 1, 1) * uniform(0.94, 1.06, count, 2, 3, 1, 1)  # of each photo
    colour = torch.minimum((colour * light).clamp_min(0), alpha)
    photos = torch.cat([colour, alpha], 2)
    soft = F.avg_pool2d(photos.flatten(0, 1), 3, 1, 1, count_include_pad=False).view_as(photos)
    part = torch.where(some(0.4, count, 2, 1, 1, 1), uniform(0.0, 1.0, count, 2, 1, 1, 1), torch.zeros(count, 2, 1, 1, 1, device=device))
    photos = torch.lerp(photos, soft, part)
    return photos


# --- poses that agree with the outlines -------------------------------------------------------------------------------
def wrapped(angle: Tensor) -> Tensor:
    return torch.remainder(angle + np.pi, 2 * np.pi) - np.pi


def relative_rotations(pose: Tensor) -> Tensor:
    """``camera_second_from_camera_first`` (..., 9) of poses (..., 3): elevations of both and azimuth difference, radians."""
    first = torch.stack(axes_of(pose[..., 0], torch.zeros_like(pose[..., 2])), -2)
    second = torch.stack(axes_of(pose[..., 1], pose[..., 2]), -2)
    return (second @ first.transpose(-1, -2)).flatten(-2)


def angle_deg(first: Tensor, second: Tensor) -> Tensor:
    """Degrees (...,) between rotations (..., 9)."""
    return torch.rad2deg(((((first * second).sum(-1)) - 1) / 2).clamp(-1, 1).arccos())


def outline_gaps(rays: Tensor, radius: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
    """How outlines disagree: angles (P, Q, 2), radians, and whether they count (P, Q).

    As ``relposepp.tangency.Tangency.residuals``. rays (P, 2, D, 3), radius (P, 2), pose (P, Q, 3).
    """
    zero = torch.zeros_like(pose[..., 2])
    axes = [torch.stack(axes_of(pose[..., 0], zero), -2), torch.stack(axes_of(pose[..., 1], pose[..., 2]), -2)]  # (P, Q, 3, 3), rows right, up, backward
    centre = [axes[v][..., 2, :] * radius[:, v, None, None] for v in range(2)]
    baseline = centre[1] - centre[0]
    length = baseline.norm(dim=-1, keepdim=True)
    unit = baseline / length.clamp_min(1e-6)
    inward = -centre[0] + (centre[0] * unit).sum(-1, keepdim=True) * unit
    distance = inward.norm(dim=-1, keepdim=True)
    inward = inward / distance.clamp_min(1e-6)
    across = torch.linalg.cross(unit, inward)
    touching, span = [], []
    for v in range(2):
        x, y = ((axes[v] @ d[..., None])[..., 0] @ rays[:, v].transpose(1, 2) for d in (inward, across))  # (P, Q, D)
        half = y / (torch.hypot(x, y) + x).clamp_min(1e-9)
        low, high = half.min(-1), half.max(-1)
        ends = torch.stack([low.indices, high.indices], -1)  # (P, Q, 2)
        ray = rays[:, v].gather(1, ends.flatten(1)[..., None].expand(-1, -1, 3)).unflatten(1, ends.shape[1:])
        touching.append(ray @ axes[v])
        span.append(2 * (high.values.atan() - low.values.atan()))
    wide, narrow = torch.maximum(*span), torch.minimum(*span)
    apart, determined = length[..., 0] > 0.05, distance[..., 0] > 0.02
    counts = (wide < CLEAR_RAD) & apart & determined
    mismatch = (wide > HOLDS_RAD) & (narrow < CLEAR_RAD) & determined | ~apart
    gap = plane_gap(centre[0][..., None, :], centre[1][..., None, :], *touching)
    return torch.where(counts[..., None], gap, MISMATCH_RAD * mismatch[..., None].float()), counts


def outline_cost(gap: Tensor, counts: Tensor) -> Tensor:
    """Mean robust squared residual (P, Q), in sigmas."""
    squared = (gap / SIGMA_RAD).square() + Tangency.NEUTRAL * (~counts)[..., None]
    return (Tangency.ROBUST**2 * squared / (Tangency.ROBUST**2 + squared)).mean(-1)


def agreeing(rays: Tensor, radius: Tensor, pose: Tensor, steps: int = 4) -> Tensor:
    """Poses (P, Q, 3) moved onto the outlines' equations by the shortest way: Gauss-Newton steps of least norm. Those without stay."""
    step = 2e-3
    nudges = torch.cat([pose.new_zeros(1, 3), step * torch.eye(3, device=pose.device)])
    for _ in range(steps):
        gap, counts = outline_gaps(rays, radius, (pose[:, :, None] + nudges).flatten(1, 2))
        gap, counts = gap.unflatten(1, (-1, 4)), counts.unflatten(1, (-1, 4)).all(-1)
        residual = gap[:, :, 0]
        slope = ((gap[:, :, 1:] - gap[:, :, :1]) / step).transpose(-1, -2)  # (P, Q, 2, 3)
        a, b = slope.square().sum(-1).unbind(-1)
        c = (slope[..., 0, :] * slope[..., 1, :]).sum(-1)
        a, b = a + 1e-4, b + 1e-4
        determinant = (a * b - c * c).clamp_min(1e-9)
        u = (b * residual[..., 0] - c * residual[..., 1]) / determinant
        v = (a * residual[..., 1] - c * residual[..., 0]) / determinant
        move = -(u[..., None] * slope[..., 0, :] + v[..., None] * slope[..., 1, :])
        move = move * (0.2 / move.norm(dim=-1, keepdim=True).clamp_min(0.2))
        pose = torch.where(counts[..., None], pose + move, pose)
    return torch.cat([pose[..., :2].clamp(-1.45, 1.45), wrapped(pose[..., 2:])], -1)


@dataclass
class Hypotheses:
    """Poses (P, H, 3) of pairs, the first near the truth; which are hypotheses at all (P, H); their angle from the truth (P, H), degrees."""

    pose: Tensor
    valid: Tensor
    angle_deg: Tensor


@torch.no_grad()
def hard_hypotheses(rays: Tensor, radius: Tensor, truth: Tensor, count: int, generator: torch.Generator, random: int = 768, refined: int = 128) -> Hypotheses:
    """``count`` poses a pair whose outlines agree, the first within a few degrees of the truth, the others away from it.

    rays (P, 2, D, 3), radius (P, 2), truth (P, 3): elevations and azimuth difference. random: poses that are drawn; refined: the best of
    them, which are moved onto the outlines' equations.
    """
    pairs, device = len(truth), truth.device
    uniform = lambda *shape: torch.rand(*shape, generator=generator, device=device)  # noqa: E731
    low, high = np.deg2rad(ELEVATION_DEG)
    near = torch.arange(random, device=device) % 2 == 0
    elevation = torch.where(
        near[:, None], truth[:, None, :2] + np.deg2rad(NEAR_DEG) * (2 * uniform(pairs, random, 2) - 1), low + (high - low) * uniform(pairs, random, 2)
    ).clamp(low, high)
    drawn = torch.cat([elevation, 2 * np.pi * uniform(pairs, random, 1) - np.pi], -1)
    cost = outline_cost(*outline_gaps(rays, radius, drawn))
    best = cost.topk(min(refined, random), 1, largest=False).indices
    drawn = drawn.gather(1, best[..., None].expand(-1, -1, 3))
    # The other way round, and turned by 180 degrees: what colours and symmetric things confuse.
    copies = 6
    special = torch.stack([-truth[:, 2], truth[:, 2] + np.pi, np.pi - truth[:, 2]], 1).repeat(1, copies)
    special = torch.cat([truth[:, None, :2].expand(-1, special.shape[1], -1), special[..., None]], -1)
    special = special + 0.1 * torch.randn(special.shape, generator=generator, device=device)
    noise = np.deg2rad(3.0) * uniform(pairs, 1, 1) * torch.randn(pairs, 1, 3, generator=generator, device=device).clamp(-1.5, 1.5)
    pose = torch.cat([truth[:, None] + noise, special, drawn], 1)
    moved = agreeing(rays, radius, pose)
    moved_cost = outline_cost(*outline_gaps(rays, radius, moved))
    # The positive stays where it is if the way to the equations is long.
    true_rotation = relative_rotations(truth)[:, None]
    astray = angle_deg(relative_rotations(moved[:, :1]), true_rotation) > 6
    moved = torch.cat([torch.where(astray[..., None], pose[:, :1], moved[:, :1]), moved[:, 1:]], 1)
    rotation = relative_rotations(moved)
    angle = angle_deg(rotation, true_rotation)

    inside = ((moved[..., :2] > low) & (moved[..., :2] < high)).all(-1)
    possible = inside & (angle > AWAY_DEG)
    gumbel = -(-uniform(*angle.shape).clamp(1e-6, 1 - 1e-6).log()).log()
    worth = gumbel - 2 * moved_cost
    worth[:, 1 : 1 + special.shape[1]] += 2.0
    worth = worth.masked_fill(~possible, -1e6)
    worth[:, 0] = -1e9
    limit = 1 + 2 * float(np.cos(np.deg2rad(APART_DEG)))  # trace of a rotation by that angle
    chosen = [torch.zeros(pairs, dtype=torch.long, device=device)]
    for _ in range(count - 1):
        pick = worth.argmax(1)
        chosen.append(pick)
        close = (rotation * rotation.gather(1, pick[:, None, None].expand(-1, 1, 9))).sum(-1) > limit
        worth = worth - 1e3 * close  # taken again only when nothing else is left
        worth = worth.scatter_add(1, pick[:, None], torch.full((pairs, 1), -1e7, device=device))
    chosen = torch.stack(chosen, 1)
    take = lambda x: x.gather(1, chosen)  # noqa: E731
    valid = take(possible)
    valid[:, 0] = True
    return Hypotheses(moved.gather(1, chosen[..., None].expand(-1, -1, 3)), valid, take(angle))
