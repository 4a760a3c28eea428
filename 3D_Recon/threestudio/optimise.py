"""The optimisation: levels of growing grids, losses of photos and prior, checkpoints that resume exactly."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping

import numpy as np
import torch

from sap3d.cameras import Camera
from sap3d.errors import one_line
from sap3d.field.fit import PhotoFit
from sap3d.field.photos import camera_rays
from sap3d.field.rendering import render
from sap3d.interrupt import finish_step_first
from sap3d.plateau import settled
from sap3d.progress import Progress
from sap3d.scene import atomic_path

from .config import ReconConfig
from .prior import Guidance, Likeness, backward_in_tiles


@dataclass
class Checkpoint:
    """What a run is taken up from; its fields are the keys of the file."""

    fingerprint: str
    step: int
    level: int
    seconds: float
    history: list
    field: dict
    delta: torch.Tensor
    errors: list
    optimiser: dict | None  # two thirds of the file; None when the run is finished
    occupancy: dict
    seeing: torch.Tensor | None


class Reconstruction(PhotoFit):
    """One object being reconstructed: the fit to its photos, with novel views and score distillation.

    photos, cameras, mirror_plane: see ``PhotoFit``; novel_views: RGB of the 84 protocol cameras or None;
    model: a Zero-1-to-3 model or None (no score distillation).
    """

    def __init__(self, photos: Mapping[str, np.ndarray], cameras: Mapping[str, Camera], config: ReconConfig, novel_views=None, model=None, device="cpu",
                 mirror_plane: float | None = None):  # fmt: skip
        super().__init__(photos, cameras, config, device, mirror_plane, novel_views)
        self.seconds, self.history = 0.0, []
        self.errors: list[float] = []  # of the photos' colours, each step, where ``patience`` asks for them
        large_enough = novel_views and min(image.shape[0] for image in novel_views.values()) >= Likeness.SMALLEST
        self.likeness = Likeness(novel_views, config.likeness_size, device) if config.likeness_weight > 0 and large_enough else None
        self.guidance = Guidance(model, *self.given, config) if model is not None else None

    # --- the loop -------------------------------------------------------------------------------------------------
    def resume(self, checkpoint: Path, fingerprint: str = "") -> float:
        """Take up ``checkpoint`` if it is there and of the same run; returns the seconds that have gone into it."""
        return self.seconds if checkpoint.is_file() and self.load(checkpoint, fingerprint) else 0.0

    def run(self, checkpoint: Path | None = None, fingerprint: str = "", on_step=None) -> None:
        """Optimise to the end, leaving a checkpoint every ``checkpoint_seconds`` and a small last one."""
        if self.finished:
            return
        started = saved = time.time()
        already = self.seconds
        with finish_step_first() as stop, Progress("3D_Recon", self.config.steps, start=self.step) as progress:
            while not self.finished:
                level, losses = self.level, self.one_step()
                if self.level != level:
                    self.errors = []
                if self.config.patience and "rgb" in losses:
                    self.errors.append(losses["rgb"].item())
                self.seconds = already + time.time() - started
                if self.step % 20 == 0 or self.finished:
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

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or the photos' error has settled on the last level of the grid."""
        return self.step >= self.config.steps or self.level == len(self.config.grid) - 1 and settled(self.errors, self.config.patience)

    def add_gradients(self, share: float) -> dict[str, torch.Tensor]:
        config, found = self.config, {}
        if self.guidance is not None and share >= config.sds_start and self.step % config.sds_every == 0:
            found["sds"] = self._distil((share - config.sds_start) / (1 - config.sds_start))
        if self.likeness is not None and share >= config.likeness_start and self.step % config.likeness_every == 0:
            found["like"] = self._resemble()
        return found

    @property
    def prior_share(self) -> float:
        """Factor on likeness and score distillation: 1 with one or two photos, falling with more."""
        return max(1.0, len(self.images) / 2) ** -self.config.prior_exponent

    # --- what the diffusion model says -----------------------------------------------------------------------------
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

    # --- checkpoints ----------------------------------------------------------------------------------------------
    def save(self, path: Path, fingerprint: str = "") -> None:
        state = Checkpoint(
            fingerprint=fingerprint, step=self.step, level=self.level, seconds=self.seconds, history=self.history, field=self.field.state(),
            delta=self.cameras.delta.detach(), errors=self.errors, optimiser=None if self.finished else self.optimiser.state_dict(),
            occupancy=self.occupancy.state(), seeing=self.seeing,
        )  # fmt: skip
        with atomic_path(path) as temporary:
            torch.save(vars(state), temporary)

    def load(self, path: Path, fingerprint: str = "") -> bool:
        """Take up the state of a checkpoint; False (and nothing changed) when it is damaged or of another run."""
        try:
            state = Checkpoint(**torch.load(path, map_location=self.device, weights_only=True))
            if state.fingerprint != fingerprint:
                return False
        except Exception as error:  # a damaged file raises nearly anything; the run then starts from the beginning
            if one_line(error) is not None:  # too little memory, no permission: the steps are not lost
                raise
            return False
        self.step, self.seconds, self.history, self.errors = state.step, state.seconds, state.history, state.errors
        self.level = state.level
        self.field.load_state(state.field)
        with torch.no_grad():
            self.cameras.delta.copy_(state.delta)
        self.occupancy.load_state(state.occupancy)
        self.seeing = state.seeing
        if state.optimiser is not None:
            self._enter(state.level, grow=False)
            self.optimiser.load_state_dict(state.optimiser)
        return True
