"""Bundle adjustment: cameras of photos taken by hand, corrected until one coloured volume explains all photos.

The search (relposepp/handheld.py) compares outlines and a few colours, and ends five to ten degrees from the truth. Here a coarse
radiance field is fitted to the photos while places, aims and rolls of the cameras move by the gradient of the same loss
(NeRF--, arXiv 2102.07064; coarse to fine as in BARF, arXiv 2104.06405). The space that the outlines leave is cut from the cameras
of before, so the field is begun anew from the corrected ones, a few times. Photos of the protocol, whose aims and outlines are
exact, are left alone: the search knows their cameras better than a coarse volume does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from relposepp.inference import Hypothesis
from relposepp.tangency import poses_of
from sap3d.cameras import rays
from sap3d.images import composite_white, resize
from sap3d.volumes import add_variation_gradient, sample_volume

LEAST_VIEWS = 4  # with three photos there is nearly always a volume that explains them, whatever the cameras (docs/log.md)
ROUNDS, STEPS = 3, 120
PHOTO, MASK = 64, 128  # pixels of the photos, and of the outlines that leave space
BOX = 0.55  # the object lies in [-BOX, BOX]^3
GRIDS, LEVEL = (32, 48), 0.4  # voxels across that; the second grid from this share of the steps on
MARGIN = 0.02  # object lengths, and a cell, by which outlines are let out: the cameras that they are seen from are not right yet
RAYS = 1536  # a step, of those that can meet the object
DENSITY_UNIT, DENSITY_START = 40.0, 8.0  # density at softplus(raw) = 1, and at first, per object length
GRID_RATE, CAMERA_RATE, FINAL_RATE = 0.6, 0.008, 0.2  # Adam's steps: raw values, radians and object lengths; what they fall to
MASK_WEIGHT = 0.3  # of the squared error of opacity, beside that of colour
VARIATION = (2e-7, 1e-6, 1e-6, 1e-6)  # weight of the differences between neighbouring voxels, raw density and colours
VARIATION_LIMITS = (1.0, 0.5, 0.5, 0.5)  # larger ones count linearly


@dataclass
class Pixels:
    """Pixels of all photos: ``ray`` (M, 3) camera frame, ``view`` (M,), ``colour`` (M, 3) over white, ``alpha`` (M,)."""

    ray: torch.Tensor
    view: torch.Tensor
    colour: torch.Tensor
    alpha: torch.Tensor

    @classmethod
    def of(cls, images: list[np.ndarray], fov_rad: list[float], size: int) -> Pixels:
        small = [resize(image, min(size, len(image))) for image in images]
        counts = torch.tensor([image.shape[0] ** 2 for image in small])
        flat = lambda arrays: torch.from_numpy(np.concatenate([a.reshape(-1, *a.shape[2:]) for a in arrays])).float()  # noqa: E731
        directions = flat([rays(np.eye(3, 4), fov, len(image), len(image))[1] for image, fov in zip(small, fov_rad)])
        return cls(directions, torch.repeat_interleave(torch.arange(len(small)), counts), flat([composite_white(image) for image in small]), flat([image[..., 3] for image in small]))

    def __getitem__(self, index) -> Pixels:
        return Pixels(self.ray[index], self.view[index], self.colour[index], self.alpha[index])

    def __len__(self) -> int:
        return len(self.view)


class Cameras(torch.nn.Module):
    """Corrections (N, 6) of elevation, azimuth, radius and turn (``sap3d.cameras.turn_matrix``). Zero is the identity; the first azimuth is the world's and stays."""

    def __init__(self, start: Hypothesis):
        super().__init__()
        table = np.column_stack([start.elevation_rad, start.azimuth_rad, start.radius, np.zeros((len(start.radius), 3)) if start.turn_rad is None else start.turn_rad])
        self.register_buffer("start", torch.from_numpy(table).float())
        self.register_buffer("free", torch.ones_like(self.start))
        self.free[0, 1] = 0
        self.delta = torch.nn.Parameter(torch.zeros_like(self.start))

    def table(self) -> torch.Tensor:
        return self.start + self.delta * self.free

    def poses(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(``camera_from_world`` rotations (N, 3, 3), centres (N, 3))."""
        table = self.table()
        return poses_of(table[:, 0], table[:, 1], table[:, 2], table[:, 3:])

    def rays(self, pixels: Pixels) -> tuple[torch.Tensor, torch.Tensor]:
        """World origins and unit directions (R, 3)."""
        rotation, centre = self.poses()
        return centre[pixels.view], torch.einsum("rji,rj->ri", rotation[pixels.view], pixels.ray)

    @torch.no_grad()
    def corrected(self, hypothesis: Hypothesis) -> Hypothesis:
        table = self.table().double().numpy()
        return replace(hypothesis, elevation_rad=table[:, 0], azimuth_rad=table[:, 1], radius=table[:, 2], turn_rad=table[:, 3:])


class Volume:
    """Raw density and colour logits ``values`` (1, 4, Z, Y, X) of the box ``bounds`` (2, 3) around the cells that all outlines leave (``allowed``, (X, Y, Z))."""

    def __init__(self, masks: list[np.ndarray], fov_rad: list[float], cameras: Cameras, colour: torch.Tensor):
        cells = GRIDS[-1]
        self.cell = 2 * BOX / cells
        axis = (torch.arange(cells) + 0.5) * self.cell - BOX
        points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).view(-1, 3)
        allowed = (_outside(points, masks, fov_rad, cameras) <= MARGIN + self.cell).view(cells, cells, cells)
        if not allowed.any():
            allowed[:] = True
        low, high = (f(allowed.nonzero(), 0) for f in (torch.amin, torch.amax))
        self.bounds = torch.stack([low, high + 1]) * self.cell - BOX
        self.allowed = allowed[low[0] : high[0] + 1, low[1] : high[1] + 1, low[2] : high[2] + 1]
        self.values = torch.zeros(1, 4, *self._shape(0))
        self.values[:, 0] = float(np.log(np.expm1(DENSITY_START / DENSITY_UNIT)))
        self.values[:, 1:] = torch.logit(colour.clamp(0.02, 0.98)).view(1, 3, 1, 1, 1)

    def _shape(self, level: int) -> list[int]:
        side = (self.bounds[1] - self.bounds[0]) / (2 * BOX) * GRIDS[level]
        return [max(round(float(s)) + 1, 4) for s in side.flip(0)]

    def refine(self, level: int) -> None:
        """Go on with another grid; the function it holds stays the same up to interpolation."""
        self.values = F.interpolate(self.values.detach(), self._shape(level), mode="trilinear", align_corners=True)

    @torch.no_grad()
    def samples(self, origins: torch.Tensor, directions: torch.Tensor, jitter: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Distances (R, K), a cell apart, along rays (R, 3), and which of them lie in allowed cells; jitter (R, 1): their place in the cell, 0 to 1."""
        inverse = 1 / torch.where(directions.abs() < 1e-9, torch.full_like(directions, 1e-9), directions)
        first, second = (self.bounds[0] - origins) * inverse, (self.bounds[1] - origins) * inverse
        near, far = torch.minimum(first, second).amax(-1), torch.maximum(first, second).amin(-1)
        count = max(int(((far - near).max() / self.cell).ceil()), 1)
        distance = near[:, None] + (torch.arange(count) + jitter) * self.cell
        last = torch.tensor(self.allowed.shape) - 1
        cell = ((origins[:, None] + directions[:, None] * distance[..., None] - self.bounds[0]) / self.cell).long().clamp_min(0).minimum(last)
        return distance, (distance < far[:, None]) & self.allowed[cell.unbind(-1)]

    def render(self, origins: torch.Tensor, directions: torch.Tensor, jitter: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Colour (R, 3) over white and opacity (R,) of rays (R, 3)."""
        distance, inside = self.samples(origins, directions, jitter)
        ray, sample = inside.nonzero(as_tuple=True)
        points = origins[ray] + directions[ray] * distance[ray, sample][:, None]
        raw = sample_volume(self.values, (points - self.bounds[0]) * (2 / (self.bounds[1] - self.bounds[0])) - 1, align_corners=True)
        depth = torch.zeros_like(distance).index_put((ray, sample), F.softplus(raw[0]) * (DENSITY_UNIT * self.cell))
        weight = (torch.exp(depth - torch.cumsum(depth, 1)) * -torch.expm1(-depth))[ray, sample]
        light = torch.cat([torch.sigmoid(raw[1:]).T, torch.ones(len(ray), 1)], 1) * weight[:, None]
        sums = torch.zeros(len(origins), 4).index_add(0, ray, light)
        return sums[:, :3] + (1 - sums[:, 3:]), sums[:, 3]


@torch.no_grad()
def _outside(points: torch.Tensor, masks: list[np.ndarray], fov_rad: list[float], cameras: Cameras) -> torch.Tensor:
    """How far (P,), object lengths, points (P, 3) lie outside of the outline that they are furthest from."""
    from scipy.ndimage import distance_transform_edt

    worst = torch.zeros(len(points))
    for mask, fov, rotation, centre in zip(masks, fov_rad, *cameras.poses()):
        if mask.max() < 0.5:
            continue
        away = torch.from_numpy(distance_transform_edt(mask < 0.5) * (2.0 / len(mask))).float()  # unit: half a photo
        local = (points - centre) @ rotation.T
        half = (-local[:, 2:] * float(np.tan(fov / 2))).clamp_min(1e-6)  # half a photo at the point's depth
        place = local[:, :2] / half * local.new_tensor([1.0, -1.0])
        found = F.grid_sample(away[None, None], place.view(1, -1, 1, 2), align_corners=False, padding_mode="border").view(-1)
        worst = torch.maximum(worst, found * half[:, 0])
    return worst


def adjust(images: list[np.ndarray], fov_rad: list[float], hypothesis: Hypothesis, rounds: int = ROUNDS, steps: int = STEPS, seed: int = 0) -> Hypothesis:
    """The hypothesis with its cameras corrected: elevation, azimuth, radius and turn, the first azimuth excepted.

    images: straight RGBA, square, as they were taken (not turned), fov_rad across each. Everything random follows from the seed.
    """
    pixels = Pixels.of(images, fov_rad, PHOTO)
    masks = [resize(image, min(MASK, len(image)))[..., 3] for image in images]
    for k in range(rounds):
        hypothesis = _fit(pixels, masks, fov_rad, hypothesis, steps, seed * rounds + k)
    return hypothesis


def _fit(pixels: Pixels, masks: list[np.ndarray], fov_rad: list[float], hypothesis: Hypothesis, steps: int, seed: int) -> Hypothesis:
    """One round: a field from nothing, and the cameras that it ends with."""
    cameras = Cameras(hypothesis)
    seen = pixels.colour[pixels.alpha > 0.5]
    volume = Volume(masks, fov_rad, cameras, seen.mean(0) if len(seen) else torch.full((3,), 0.5))
    with torch.no_grad():  # all other pixels are white whatever the field holds
        parts = torch.arange(len(pixels)).split(4096)
        pixels = pixels[torch.cat([volume.samples(*cameras.rays(pixels[rows]), torch.full((len(rows), 1), 0.5))[1].any(1) for rows in parts])]
    if not len(pixels):
        return hypothesis
    generator = torch.Generator().manual_seed(seed)
    weights, limits = torch.tensor(VARIATION), torch.tensor(VARIATION_LIMITS)
    for step in range(steps):
        if step in (0, int(LEVEL * steps)):
            if step:
                volume.refine(1)
            volume.values.requires_grad_(True)
            optimiser = torch.optim.Adam([{"params": [volume.values], "base": GRID_RATE}, {"params": [cameras.delta], "base": CAMERA_RATE}], betas=(0.9, 0.99))
        for group in optimiser.param_groups:
            group["lr"] = group["base"] * FINAL_RATE ** (step / steps)
        optimiser.zero_grad(set_to_none=True)
        drawn = pixels[torch.randint(len(pixels), (RAYS,), generator=generator)]
        colour, opacity = volume.render(*cameras.rays(drawn), torch.rand(RAYS, 1, generator=generator))
        ((colour - drawn.colour).square().mean() + MASK_WEIGHT * (opacity - drawn.alpha).square().mean()).backward()
        add_variation_gradient(volume.values, weights, limits)
        optimiser.step()
    return cameras.corrected(hypothesis)
