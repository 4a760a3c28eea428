"""The optimisation: levels of growing grids, losses of photos and prior, checkpoints that resume exactly."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Mapping

import numpy as np
import torch
import torch.nn.functional as F

from sap3d.cameras import RADIUS, Camera, protocol_test_cameras
from sap3d.interrupt import finish_step_first
from sap3d.progress import Progress
from sap3d.scene import atomic_path
from sap3d.symmetry import mirrored_views

from .config import ReconConfig
from .fields import FIELDS
from .photos import CameraTable, PixelBank, Silhouettes, hull_bounds, pixel_bank
from .prior import Guidance, Likeness, backward_in_tiles, camera_rays, charbonnier, count_seeing, prior_weight
from .regularisers import distortion, opacity_entropy
from .rendering import Occupancy, ray_box, render, sample_distances

OCCUPANCY_EVERY = 25  # steps between looks at which cells are empty
SEEING_EVERY = 100  # steps between looks at what the photos see


class Reconstruction:
    """One object being reconstructed.

    photos: RGBA (S, S, 4) by view name; cameras: of the same names; novel_views: RGB of the 84 protocol cameras or None;
    model: a Zero-1-to-3 model or None (no score distillation); mirror_plane: azimuth of the object's mirror plane, radians, or None.
    """

    def __init__(self, photos: Mapping[str, np.ndarray], cameras: Mapping[str, Camera], config: ReconConfig, novel_views=None, model=None, device="cpu",
                 mirror_plane: float | None = None):  # fmt: skip
        self.config, self.device = config, device
        self.images = list(photos.values())
        table = CameraTable({name: cameras[name] for name in photos})
        self.mirrored = self.mirrored_cameras = None
        mirrored, mirrored_cameras = mirrored_views(photos, cameras, mirror_plane if config.photos and config.mirror_weight > 0 else None)
        self.mirrored_images = list(mirrored.values())
        if mirrored:
            self.mirrored_cameras = CameraTable(mirrored_cameras).to(device)
        self.novel = self.novel_cameras = self.likeness = None
        if novel_views:
            protocol = protocol_test_cameras()
            self.novel_cameras = CameraTable({name: protocol[name] for name in novel_views}).to(device)
            opaque = [np.concatenate([image, np.ones_like(image[..., :1])], -1) for image in novel_views.values()]
            self.novel_all = pixel_bank(opaque, config.warm_start_size).to(device)
            large_enough = min(image.shape[0] for image in novel_views.values()) >= Likeness.SMALLEST
            self.likeness = Likeness(novel_views, config.likeness_size, device) if config.likeness_weight > 0 and large_enough else None
        self.guidance = Guidance(model, {**photos, **mirrored}, {**cameras, **mirrored_cameras}, config) if model is not None else None

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
        self.step, self.level, self.seconds = 0, -1, 0.0
        self.history: list[dict] = []

    def photo_sources(self) -> list[tuple[dict[str, np.ndarray], dict[str, Camera]]]:
        """The photos with their present cameras, then the mirrored ones, if any: what gives colours to the surface, in that order."""
        sets = [(self.images, self.cameras)] + ([(self.mirrored_images, self.mirrored_cameras)] if self.mirrored_cameras is not None else [])
        return [(dict(zip(table.names, images)), table.current()) for images, table in sets]

    # --- the loop -------------------------------------------------------------------------------------------------
    def resume(self, checkpoint: Path, fingerprint: str = "") -> float:
        """Take up ``checkpoint`` if it is there and of the same run; returns the seconds that have gone into it."""
        return self.seconds if checkpoint.is_file() and self.load(checkpoint, fingerprint) else 0.0

    def run(self, checkpoint: Path | None = None, fingerprint: str = "", on_step=None) -> None:
        """Optimise to the end, leaving a checkpoint every ``checkpoint_seconds`` and a small last one."""
        if self.step >= self.config.steps:
            return
        started = saved = time.time()
        already = self.seconds
        with finish_step_first() as stop, Progress("3D_Recon", self.config.steps, start=self.step) as progress:
            while self.step < self.config.steps:
                losses = self.one_step()
                self.seconds = already + time.time() - started
                if self.step % 20 == 0 or self.step == self.config.steps:
                    self.history.append({"step": self.step, **{k: round(v.item(), 6) for k, v in losses.items()}})
                    progress.update(self.step, "  ".join(f"{k} {v.item():.4f}" for k, v in losses.items()))
                if checkpoint is not None and (stop.requested or time.time() - saved > self.config.checkpoint_seconds):
                    self.save(checkpoint, fingerprint)
                    saved = time.time()
                if stop.requested:
                    stop.leave()
                if on_step is not None:
                    on_step(self)
        self.occupancy.update(self.field)
        if checkpoint is not None:
            self.save(checkpoint, fingerprint)

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

        losses = {}
        if config.photos:
            losses.update(self._photo_losses())
            losses.update(self._free_losses())
        if self.mirrored is not None:
            losses["mirror"] = self._mirror_loss()
        if self.novel is not None:
            losses["warm"] = self._warm_start_loss(share)
        if losses:
            torch.stack(list(losses.values())).sum().backward()
        if self.guidance is not None and share >= config.sds_start and self.step % config.sds_every == 0:
            losses["sds"] = self._distil((share - config.sds_start) / (1 - config.sds_start))
        if self.likeness is not None and share >= config.likeness_start and self.step % config.likeness_every == 0:
            losses["like"] = self._resemble()
        for parameter in self.field.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._smooth(share)
        self.optimiser.step()
        self.step += 1
        return losses

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
        if self.mirrored_cameras is not None:
            self.mirrored = self._in_reach(pixel_bank(self.mirrored_images, config.photo_sizes[level]).to(self.device), self.mirrored_cameras)
        if self.novel_cameras is not None:
            self.novel = self._in_reach(self.novel_all, self.novel_cameras)

    @torch.no_grad()
    def _in_reach(self, bank: PixelBank, cameras: CameraTable) -> PixelBank:
        """The pixels whose rays meet an allowed cell; all others see white whatever the field holds."""
        hits = []
        step = 2 * float(self.occupancy.cell.min())
        for rows in torch.arange(len(bank), device=self.device).split(1 << 14):
            origins, directions = cameras.rays(bank.local[rows], bank.view[rows])
            near, far = ray_box(origins, directions, self.field.bounds)
            distance, valid = sample_distances(near, far, step, None)
            hits.append((self.occupancy.allowed.view(-1)[self.occupancy.flat_index(origins, directions, distance)] & valid).any(1))
        return bank[torch.cat(hits)]

    @property
    def prior_share(self) -> float:
        """Factor on likeness and score distillation: 1 with one or two photos, falling with more."""
        return max(1.0, len(self.images) / 2) ** -self.config.prior_exponent

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

    def _warm_start_loss(self, share: float) -> torch.Tensor:
        config = self.config
        pixels = self._draw(self.novel, config.warm_start_rays)
        origins, directions = self.novel_cameras.rays(pixels.local, pixels.view)
        seen = render(self.field, self.occupancy, origins, directions, generator=self.generator)
        trust = self._prior_weight(seen, origins, directions)
        weight = config.warm_start_weight / len(self.images) ** config.prior_exponent * (1 + (config.warm_start_final - 1) * share)
        return weight * (trust[:, None] * charbonnier(seen.colour - pixels.colour)).mean()

    def _distil(self, progress: float) -> torch.Tensor:
        """Add the gradient of score distillation; returns the size of the image gradients, for the log."""
        config, guidance = self.config, self.guidance
        size, total = guidance.size, 0.0
        for _ in range(config.sds_batch):
            camera = guidance.random_camera(self.generator)
            origins, directions = camera_rays(camera, size, self.device)
            colour, trust = self._render_whole(origins, directions)
            gradient = guidance.gradient(colour.T.reshape(1, 3, size, size), camera, progress, self.generator).to(self.device)
            gradient = gradient.view(3, -1).T * trust[:, None] * (config.sds_weight * config.sds_every * self.prior_share / (config.sds_batch * size * size))
            backward_in_tiles(lambda o, d: render(self.field, self.occupancy, o, d), origins, directions, gradient, config.tile_rays)
            total += float(gradient.norm())
        return torch.tensor(total)

    def _resemble(self) -> torch.Tensor:
        """Add the gradient of the perceptual distance between a patch of a novel view and its render; returns the distance."""
        config, likeness = self.config, self.likeness
        view, target, local = likeness.draw(self.generator)
        origins, directions = self.novel_cameras.rays(local, torch.full((len(local),), view, device=self.device))
        colour, trust = self._render_whole(origins, directions)
        distance, gradient = likeness.gradient(colour, target)
        weight = config.likeness_weight * config.likeness_every * self.prior_share
        backward_in_tiles(lambda o, d: render(self.field, self.occupancy, o, d), origins, directions, gradient * trust[:, None] * weight, config.tile_rays)
        return distance

    @torch.no_grad()
    def _render_whole(self, origins: torch.Tensor, directions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Colour (R, 3) of rays, and how much the prior counts on each (R,), without a graph, a tile at a time."""
        colour, trust = torch.ones_like(origins), torch.zeros(len(origins), device=self.device)
        for rows in torch.arange(len(origins), device=self.device).split(self.config.tile_rays):
            seen = render(self.field, self.occupancy, origins[rows], directions[rows])
            colour[rows] = seen.colour
            trust[rows] = self._prior_weight(seen, origins[rows], directions[rows])
        return colour, trust

    def _prior_weight(self, seen, origins, directions) -> torch.Tensor:
        if not self.config.photos:
            return torch.ones(len(origins), device=self.device)
        return prior_weight(seen, origins, directions, self.occupancy, self.seeing, self.config.prior_where_seen)

    # --- checkpoints ----------------------------------------------------------------------------------------------
    def save(self, path: Path, fingerprint: str = "") -> None:
        state = {
            "fingerprint": fingerprint,
            "step": self.step,
            "level": self.level,
            "seconds": self.seconds,
            "history": self.history,
            "field": self.field.state(),
            "delta": self.cameras.delta.detach(),
            "optimiser": self.optimiser.state_dict() if self.step < self.config.steps else None,  # two thirds of the file
            "occupancy": self.occupancy.state(),
            "seeing": self.seeing,
        }
        with atomic_path(path) as temporary:
            torch.save(state, temporary)

    def load(self, path: Path, fingerprint: str = "") -> bool:
        """Take up the state of a checkpoint; False (and nothing changed) when it is damaged or of another run."""
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            if state["fingerprint"] != fingerprint:
                return False
        except Exception:  # a damaged file raises nearly anything; the run then starts from the beginning
            return False
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]
        self.field.load_state(state["field"])
        with torch.no_grad():
            self.cameras.delta.copy_(state["delta"])
        self.occupancy.load_state(state["occupancy"])
        self.seeing = state["seeing"]
        if state["optimiser"] is not None:
            self._enter(state["level"], grow=False)
            self.optimiser.load_state_dict(state["optimiser"])
        return True
