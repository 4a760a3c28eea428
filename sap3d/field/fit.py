"""A radiance field fitted to photos with known cameras: levels of growing grids, losses of photos, mirrored photos and novel views, regularisers.

Stage 3 adds score distillation and likeness (3D_Recon/threestudio/optimise.py); stage 2 fits one to guide its novel views (camerabooth/photo_field.py).
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Mapping

import numpy as np
import torch
import torch.nn.functional as F

from sap3d.cameras import RADIUS, Camera, protocol_test_cameras
from sap3d.errors import InputError
from sap3d.field.fields import FIELDS
from sap3d.field.photos import PixelBank, RayCameras, Silhouettes, hull_bounds, pixel_bank
from sap3d.field.regularisers import distortion, opacity_entropy
from sap3d.field.rendering import Occupancy, ray_box, render, sample_distances
from sap3d.field.seeing import count_seeing, prior_weight
from sap3d.field.settings import FitSettings
from sap3d.symmetry import mirrored_views

OCCUPANCY_EVERY = 25  # steps between looks at which cells are empty
SEEING_EVERY = 100  # steps between looks at what the photos see


class PhotoFit:
    """One object whose field is being fitted to its photos.

    photos: RGBA (S, S, 4) by view name; cameras: of the same names; config: what it is fitted by;
    mirror_plane: azimuth of the object's mirror plane, radians, or None. novel_views: RGB (S, S, 3) over white of the protocol's test cameras, by their
    names, which count where no photo sees and fade over the steps; or None.
    """

    def __init__(self, photos: Mapping[str, np.ndarray], cameras: Mapping[str, Camera], config: FitSettings, device="cpu", mirror_plane: float | None = None,
                 novel_views: Mapping[str, np.ndarray] | None = None):  # fmt: skip
        self.config, self.device = config, device
        self.images = list(photos.values())
        table = RayCameras({name: cameras[name] for name in photos})
        self.mirrored = self.mirrored_cameras = None
        mirrored, mirrored_cameras = mirrored_views(photos, cameras, mirror_plane if config.photos and config.mirror_weight > 0 else None)
        self.given = {**photos, **mirrored}, {**cameras, **mirrored_cameras}  # photos and cameras by name, mirrored ones too
        self.mirrored_images = list(mirrored.values())
        if mirrored:
            self.mirrored_cameras = RayCameras(mirrored_cameras).to(device)

        whole = torch.tensor([[-config.box] * 3, [config.box] * 3])
        if config.photos:
            silhouettes = Silhouettes(self.images, table)
            self.margin = silhouettes.margin(whole, config.hull_margin, config.hull_margin_most)
            bounds = hull_bounds(silhouettes, config.box, self.margin)
            allowed = silhouettes.allowed_cells(bounds, config.occupancy_cells, self.margin)
        else:
            self.margin, bounds = config.hull_margin_most, whole
            allowed = torch.ones((config.occupancy_cells,) * 3, dtype=torch.bool)
        self.start_cameras = table.to(device)
        self.cameras = copy.deepcopy(self.start_cameras)
        self.cameras.delta.requires_grad_(config.refine_cameras)
        self.occupancy = Occupancy(bounds.to(device), allowed.to(device))
        colours = np.concatenate([image[image[..., 3] > 0.5][:, :3] for image in self.images])
        mean = torch.from_numpy(colours.mean(0) if len(colours) else np.full(3, 0.5, np.float32))
        self.field = FIELDS[config.field](bounds, config.grid[0] ** 3, config.initial_density, mean).to(device)
        self.seeing = torch.zeros(allowed.shape, device=device)
        self.generator = torch.Generator()
        self.step, self.level = 0, -1
        self.novel = self.novel_cameras = None
        if novel_views:
            protocol = protocol_test_cameras()
            self.novel_cameras = RayCameras({name: protocol[name] for name in novel_views}).to(device)
            opaque = [np.concatenate([image, np.ones_like(image[..., :1])], -1) for image in novel_views.values()]
            self.novel_all = pixel_bank(opaque, config.warm_start_size).to(device)

    def photo_sources(self) -> list[tuple[dict[str, np.ndarray], dict[str, Camera]]]:
        """The photos with their present cameras, then the mirrored ones, if any: what gives colours to the surface, in that order."""
        sets = [(self.images, self.cameras)] + ([(self.mirrored_images, self.mirrored_cameras)] if self.mirrored_cameras is not None else [])
        return [(dict(zip(table.names, images)), table.current()) for images, table in sets]

    # --- a step ---------------------------------------------------------------------------------------------------
    def one_step(self) -> dict[str, torch.Tensor]:
        """One step of the optimiser; all its random draws follow from the seed and the step's number."""
        config = self.config
        share = self.step / config.steps
        level = sum(share >= start for start in config.level_starts) - 1
        if level != self.level:
            self._enter(level, grow=True)
        if self.step % OCCUPANCY_EVERY == 0:
            self.occupancy.update(self.field)
        if self.step % SEEING_EVERY == 0 and config.photos:
            self.seeing = count_seeing(self.field, self.occupancy, self.cameras)
        self.generator.manual_seed((config.seed * 1_000_003 + self.step) % (1 << 62))
        for group in self.optimiser.param_groups:
            group["lr"] = group["base"] * config.final_rate**share
        self.optimiser.zero_grad(set_to_none=True)

        losses = self.losses(share)
        if losses:
            total = torch.stack(list(losses.values())).sum()
            if self.step % OCCUPANCY_EVERY == 0 and not torch.isfinite(total):
                raise InputError(f"the fit of the field diverged by step {self.step}; lower learning_rate={config.learning_rate:g}")
            total.backward()
        losses.update(self.add_gradients(share))
        for parameter in self.field.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._smooth(share)
        self.optimiser.step()
        self.step += 1
        return losses

    def losses(self, share: float) -> dict[str, torch.Tensor]:
        """Scalar losses of this step by name, with their graphs; share: of the steps that are done."""
        found = {}
        if self.config.photos:
            found.update(self._photo_losses())
            found.update(self._free_losses())
        if self.mirrored is not None:
            found["mirror"] = self._mirror_loss()
        if self.novel is not None:
            found["warm"] = self._warm_start_loss(share)
        return found

    def add_gradients(self, share: float) -> dict[str, torch.Tensor]:
        """Add to the field's gradients what comes without a graph; returns figures for the log."""
        return {}

    def _smooth(self, share: float) -> None:
        """Total variation, which falls over time where photos see: to ``variation_where_seen`` where two do."""
        config = self.config
        local = None
        if config.photos and config.variation_where_seen != 1:
            local = config.variation_where_seen ** (share * self.seeing.clamp(max=2) / 2)
        self.field.add_variation_gradient(config.density_variation, config.colour_variation, local, self.generator)

    def _enter(self, level: int, grow: bool) -> None:
        """Begin a level: a finer grid, larger photos, a fresh optimiser."""
        config = self.config
        self.level = level
        if grow and level > 0:
            self.field.refine(config.grid[level] ** 3)
        groups = self.field.parameter_groups(config.learning_rate)
        if config.refine_cameras:
            groups.append({"params": [self.cameras.delta], "base": config.camera_rate})
        self.optimiser = torch.optim.Adam(groups, lr=config.learning_rate, betas=(0.9, 0.99), fused=True)
        self.photo_pixels = self._in_reach(pixel_bank(self.images, config.photo_sizes[level]).to(self.device), self.start_cameras)
        if not len(self.photo_pixels):
            raise InputError(f"the outlines of the photos {', '.join(self.start_cameras.names)} have no object in common with these cameras; look at the masks and at the cameras (docs/PHOTOS.md)")
        if self.mirrored_cameras is not None:
            self.mirrored = self._in_reach(pixel_bank(self.mirrored_images, config.photo_sizes[level]).to(self.device), self.mirrored_cameras)
        if self.novel_cameras is not None:
            self.novel = self._in_reach(self.novel_all, self.novel_cameras)

    @torch.no_grad()
    def _in_reach(self, bank: PixelBank, cameras: RayCameras) -> PixelBank:
        """The pixels whose rays meet an allowed cell; all others see white whatever the field holds."""
        hits = []
        step = 2 * float(self.occupancy.cell.min())
        for rows in torch.arange(len(bank), device=self.device).split(1 << 14):
            origins, directions = cameras.rays(bank.local[rows], bank.view[rows])
            near, far = ray_box(origins, directions, self.field.bounds)
            distance, valid = sample_distances(near, far, step, None)
            hits.append((self.occupancy.allowed.view(-1)[self.occupancy.flat_index(origins, directions, distance)] & valid).any(1))
        return bank[torch.cat(hits)]

    # --- losses ---------------------------------------------------------------------------------------------------
    def _draw(self, bank: PixelBank, count: int) -> PixelBank:
        return bank[torch.randint(len(bank), (count,), generator=self.generator).to(self.device)]

    def _photo_losses(self) -> dict[str, torch.Tensor]:
        config = self.config
        pixels = self._draw(self.photo_pixels, config.rays)
        origins, directions = self.cameras.rays(pixels.local, pixels.view)
        seen = render(self.field, self.occupancy, origins, directions, generator=self.generator)
        losses = {
            "rgb": (seen.colour - pixels.colour).square().mean(),
            "mask": config.mask_weight * (seen.opacity - pixels.alpha).square().mean(),
        }
        if config.distortion:
            losses["dist"] = config.distortion * distortion(seen, config.rays)
        return losses

    def _mirror_loss(self) -> torch.Tensor:
        """Colour and opacity of mirrored photos, for what the photos themselves do not show."""
        config = self.config
        pixels = self._draw(self.mirrored, max(1, config.rays // 2))
        origins, directions = self.mirrored_cameras.rays(pixels.local, pixels.view)
        seen = render(self.field, self.occupancy, origins, directions, generator=self.generator)
        trust = prior_weight(seen, origins, directions, self.occupancy, self.seeing, config.mirror_where_seen, enough=1)
        colour = (seen.colour - pixels.colour).square().mean(1)
        opacity = (seen.opacity - pixels.alpha).square()
        return config.mirror_weight * (trust * (colour + config.mask_weight * opacity)).mean()

    def _warm_start_loss(self, share: float) -> torch.Tensor:
        """A robust loss of the novel views' colours, which fades; share: of the steps that are done."""
        config = self.config
        pixels = self._draw(self.novel, config.warm_start_rays)
        origins, directions = self.novel_cameras.rays(pixels.local, pixels.view)
        seen = render(self.field, self.occupancy, origins, directions, generator=self.generator)
        trust = self._prior_weight(seen, origins, directions)
        weight = config.warm_start_weight / len(self.images) ** config.prior_exponent * (1 + (config.warm_start_final - 1) * share)
        return weight * (trust[:, None] * charbonnier(seen.colour - pixels.colour)).mean()

    def _prior_weight(self, seen, origins, directions) -> torch.Tensor:
        if not self.config.photos:
            return torch.ones(len(origins), device=self.device)
        return prior_weight(seen, origins, directions, self.occupancy, self.seeing, self.config.prior_where_seen)

    def _free_losses(self) -> dict[str, torch.Tensor]:
        """Regularisers on rays that no photo has, from all around to points in the box: they show the fog that photos do not."""
        config = self.config
        if not config.free_rays or not (config.free_distortion or config.free_entropy):
            return {}
        draw = torch.rand(config.free_rays, 5, generator=self.generator).to(self.device)
        polar, azimuth = torch.acos(1.4 * draw[:, 0] - 0.7), 2 * np.pi * draw[:, 1]  # elevations within 44 degrees
        origins = torch.stack([polar.sin() * azimuth.cos(), polar.sin() * azimuth.sin(), polar.cos()], -1) * RADIUS
        low, high = self.field.bounds
        directions = F.normalize(low + (high - low) * draw[:, 2:] - origins, dim=-1)
        seen = render(self.field, self.occupancy, origins, directions, generator=self.generator)
        return {
            "free dist": config.free_distortion * distortion(seen, config.free_rays),
            "free entropy": config.free_entropy * opacity_entropy(seen.opacity),
        }


def charbonnier(difference: torch.Tensor, scale: float = 0.1) -> torch.Tensor:
    """Quadratic for differences far below ``scale`` and linear far above it; same shape."""
    return scale * (torch.sqrt((difference / scale).square() + 1) - 1)
