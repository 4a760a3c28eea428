"""Settings of stage 3."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, List

from sap3d.config import check_choices, check_limits
from sap3d.errors import InputError
from sap3d.field.settings import FitSettings


@dataclass
class ReconConfig(FitSettings):
    """Those of the field and its fit to the photos (sap3d/field/settings.py), and these."""

    device: str = "auto"  # auto, cpu, cuda or cuda:K
    model: str = ""  # folder of the base Zero-1-to-3 in diffusers' format ("": the bundled small model), as in stage 2
    weights_dtype: str = "fp32"  # how its networks are kept: fp32, bf16 or fp16, as in stage 2
    vae_slicing: bool = False  # a learned autoencoder works on one picture at a time
    offload: bool = False  # its image encoder and learned autoencoder stay in main memory while they are idle
    cameras: str = ""  # camera file to use instead of stage 2's refined cameras (e.g. true ones, for an upper bound)

    patience: int = 0  # end earlier, when the photos' error of colour has not fallen by 1 % from so many steps to as many next ones; 0: never

    warm_start: bool = True  # begin with the novel views of stage 2 as pictures

    # Likeness: patches of renders shall look like patches of the novel views (LPIPS, as in ReconFusion).
    likeness_weight: float = 0.01  # of the distance, with one or two photos; 0: none
    likeness_start: float = 0.5  # share of the steps at which it begins
    likeness_every: int = 4  # steps from one patch to the next
    likeness_size: int = 96  # pixels of a patch

    # Score distillation from the personal model
    sds: bool = True
    sds_weight: float = 0.3  # of the residual's gradient, per pixel, with one or two photos
    sds_start: float = 0.3  # share of the steps at which it begins
    sds_every: int = 4  # steps from one evaluation to the next
    sds_batch: int = 1  # cameras an evaluation
    sds_cameras: int = 48  # different cameras in all, for a model that makes first guesses (others: a new one each time)
    sds_size: int = 64  # pixels of the renders that are judged (0: the model's own size)
    # Photos that condition: all at once, or one: near (nearer is likelier), nearest, random, first; mean: all, averaged.
    sds_condition: str = "auto"  # auto takes all where the model has a plane sweep, else near
    sds_residual: str = "image"  # where the residual is taken: image (decoded prediction minus render) or latent (published)
    sds_t_start: List[float] = dataclasses.field(default_factory=lambda: [0.5, 0.9])  # range of noise levels (share of all time steps) at first
    sds_t_end: List[float] = dataclasses.field(default_factory=lambda: [0.02, 0.4])  # and at the end
    guidance_scale: float = 1.0
    sds_elevations: List[float] = dataclasses.field(default_factory=lambda: [-45.0, 60.0])  # degrees
    tile_rays: int = 8192  # rays rendered with a graph at a time: sets the peak memory

    # Outputs
    render_size: int = 256  # pixels of the 84 views
    # Renders get back what the grid is too coarse to hold: the difference of the photos from renders of them, where photos see the surface, times this.
    photo_detail: float = 0.75  # all of it is sharper still, but where surface and cameras are a little wrong it is detail in the wrong place (docs/log.md)
    outline_sharpness: float = 1.0  # how much of what the voxels blur of opacities is given back to renders; 0: none
    turntable_frames: int = 60
    turntable_size: int = 256
    mesh_cells: int = 160  # marching cubes, along the longest side
    mesh_slack: float = 3.0  # voxels by which a point must lie in front of what a depth map shows to be empty
    mesh_faces: int = 40000
    texture: str = "uv"  # uv (atlas with a texture) or vertex (vertex colours)
    texture_from_photos: bool = True  # where photos see the surface; false: colours of the field alone
    texture_size: int = 1024
    checkpoint_seconds: float = 15.0

    SECTION: ClassVar[str] = "recon"  # of a preset
    QUICK: ClassVar[tuple[str, ...]] = (
        "steps=220", "rays=1536", "free_rays=384", "warm_start_rays=512", "sds_every=8", "sds_cameras=12",
        "turntable_frames=24", "turntable_size=128", "mesh_cells=112", "mesh_slack=2", "mesh_faces=20000", "texture_size=512",
    )  # fmt: skip

    LIMITS: ClassVar[dict[str, tuple[float, float]]] = {
        "patience": (0, 10_000_000),
        "likeness_weight": (0, 1e3), "likeness_start": (0, 1), "likeness_every": (1, 10_000_000), "likeness_size": (32, 1024),
        "sds_weight": (0, 1e6), "sds_start": (0, 1), "sds_every": (1, 10_000_000), "sds_batch": (1, 1024), "sds_cameras": (1, 1_000_000), "sds_size": (0, 4096),
        "sds_t_start": (0, 1), "sds_t_end": (0, 1), "guidance_scale": (0, 1000), "sds_elevations": (-90, 90), "tile_rays": (1, 1 << 26),
        "render_size": (8, 4096), "photo_detail": (0, 1), "outline_sharpness": (0, 5), "turntable_frames": (1, 10_000), "turntable_size": (8, 4096),
        "mesh_cells": (8, 1024), "mesh_slack": (0, 10), "mesh_faces": (4, 100_000_000), "texture_size": (8, 16384), "checkpoint_seconds": (0, 1e6),
    }  # fmt: skip

    def check(self) -> None:
        """Raises InputError for settings that cannot be used."""
        super().check()
        check_limits(self, self.LIMITS)
        check_choices(
            self,
            {
                "sds_condition": ("auto", "all", "nearest", "near", "random", "first", "mean"),
                "sds_residual": ("image", "latent"),
                "texture": ("uv", "vertex"),
                "weights_dtype": ("fp32", "bf16", "fp16"),
            },
        )
        for name in ("sds_t_start", "sds_t_end", "sds_elevations"):
            pair = getattr(self, name)
            if len(pair) != 2 or pair[0] > pair[1]:
                raise InputError(f"{name}={pair} must be two numbers, the lower one first")
        if not (self.photos or self.sds or self.warm_start):
            raise InputError("photos, sds and warm_start are all switched off: nothing is left to reconstruct from")
