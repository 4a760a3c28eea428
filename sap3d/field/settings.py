"""Settings of a radiance field that is fitted to photos (``sap3d.field.fit``); stage 3's configuration adds its own to them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, List

from sap3d.config import check_choices, check_limits
from sap3d.errors import InputError


@dataclass
class FitSettings:
    seed: int = 0

    # Field: a dense grid that grows, or hashed grids with a small network. Sizes are budgets: n stands for n^3 voxels shared out
    # over the object's own box.
    field: str = "dense"  # dense or hash
    box: float = 0.55  # the object lies inside [-box, box]^3
    grid: List[int] = dataclasses.field(default_factory=lambda: [32, 64])  # one entry a level
    level_starts: List[float] = dataclasses.field(default_factory=lambda: [0.0, 0.4])  # share of the steps at which a level begins
    photo_sizes: List[int] = dataclasses.field(default_factory=lambda: [64, 256])  # pixels of the photos at each level
    initial_density: float = 8.0  # per object length, inside the silhouettes' hull
    occupancy_cells: int = 64  # along the longest side of the box

    # Optimisation
    steps: int = 400  # more, or a third level of 96: sharper where photos see, thinner where none does (docs/log.md)
    rays: int = 2048  # pixels of the photos a step
    learning_rate: float = 0.6  # Adam, of raw grid values; falls exponentially. A third of it leaves surfaces soft (docs/log.md).
    final_rate: float = 0.2  # by this factor until the end

    # Photos
    photos: bool = True  # rgb and mask losses and the silhouettes' hull; false: the prior alone
    mask_weight: float = 0.3  # squared error of opacity, beside weight 1 of the squared error of colour
    hull_margin: float = 0.01  # the hull is let out by at least this (object lengths), more if the masks disagree,
    hull_margin_most: float = 0.15  # and at most this
    refine_cameras: bool = False  # correct polar angle, azimuth and radius by the photo losses
    camera_rate: float = 1e-3  # radians (and object lengths) a step, Adam

    # Mirrored photos, where stage 1 has found a mirror plane (sap3d/symmetry.py)
    mirror_weight: float = 1.0  # of their losses, beside 1 of the photos', where no photo sees; 0: none
    mirror_where_seen: float = 0.01  # factor on it where a photo does

    # What the prior is worth falls with the number of photos N. With the bundled model it gains more than a decibel with two
    # photos, and with five it costs half of one and roughens smooth surfaces unless it counts little (docs/log.md).
    prior_exponent: float = 3.0  # warm start divided by N, likeness and score distillation by max(1, N / 2), to this power

    # Novel views as pictures to begin with, with a robust loss that fades
    warm_start_weight: float = 0.8  # of the Charbonnier loss at the beginning, with one photo
    warm_start_final: float = 0.0  # factor on it at the end
    warm_start_size: int = 64  # pixels of the novel views
    warm_start_rays: int = 768  # pixels a step

    # Where the photos see the surface, the prior counts this much (1: everywhere alike)
    prior_where_seen: float = 0.1

    # Regularisers
    density_variation: float = 2e-7  # total variation of raw density between neighbouring voxels (Huber)
    colour_variation: float = 1e-6  # the same of colour logits; fills in what no photo shows, and keeps the likeness from roughening it
    variation_where_seen: float = 0.1  # factor on both at the end where two photos see; its square root where one does
    distortion: float = 0.01  # mip-NeRF 360's distortion on the photos' rays: gathers a ray's light at one depth
    free_rays: int = 512  # rays a step from all around, for the next two
    free_distortion: float = 0.03  # distortion on them
    free_entropy: float = 0.003  # entropy of their opacity (nats): makes them meet the object or miss it

    FIT_LIMITS: ClassVar[dict[str, tuple[float, float]]] = {
        "box": (0.1, 10), "grid": (4, 512), "level_starts": (0, 1), "photo_sizes": (1, 4096), "initial_density": (1e-6, 1e6), "occupancy_cells": (4, 512),
        "steps": (1, 10_000_000), "rays": (1, 1e15), "learning_rate": (0, 1e3), "final_rate": (1e-9, 1e3),
        "mask_weight": (0, 1e6), "hull_margin": (0, 1), "hull_margin_most": (0, 1), "camera_rate": (0, 10),
        "mirror_weight": (0, 1e3), "mirror_where_seen": (0, 1), "prior_exponent": (0, 10),
        "warm_start_weight": (0, 1e6), "warm_start_final": (0, 1e3), "warm_start_size": (1, 4096), "warm_start_rays": (1, 1 << 26), "prior_where_seen": (0, 1e3),
        "density_variation": (0, 1e3), "colour_variation": (0, 1e3), "variation_where_seen": (0, 1e3), "distortion": (0, 1e3),
        "free_rays": (0, 1 << 26), "free_distortion": (0, 1e3), "free_entropy": (0, 1e3),
    }  # fmt: skip

    def check(self) -> None:
        """Raises InputError for settings that cannot be used."""
        check_limits(self, self.FIT_LIMITS)
        check_choices(self, {"field": ("dense", "hash")})
        if len({len(self.grid), len(self.level_starts), len(self.photo_sizes)}) != 1 or not self.grid:
            raise InputError("grid, level_starts and photo_sizes must have one entry a level each")
        if self.level_starts[0] != 0 or sorted(self.level_starts) != list(self.level_starts) or self.level_starts[-1] >= 1:
            raise InputError(f"level_starts={self.level_starts} must rise from 0 and stay below 1")
        if self.hull_margin > self.hull_margin_most:
            raise InputError(f"hull_margin={self.hull_margin} must not be above hull_margin_most={self.hull_margin_most}")
