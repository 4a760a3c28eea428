"""Settings of stage 3."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, List

from sap3d.errors import InputError


@dataclass
class ReconConfig:
    device: str = "auto"  # auto, cpu, cuda or cuda:K
    seed: int = 0
    model: str = ""  # folder of the base Zero-1-to-3 in diffusers' format ("": the bundled small model), as in stage 2
    weights_dtype: str = "fp32"  # how its networks are kept: fp32, bf16 or fp16, as in stage 2
    vae_slicing: bool = False  # a learned autoencoder works on one picture at a time
    offload: bool = False  # its image encoder and learned autoencoder stay in main memory while they are idle
    cameras: str = ""  # camera file to use instead of stage 2's refined cameras (e.g. true ones, for an upper bound)

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

    # Warm start: the novel views of stage 2 as pictures, with a robust loss that fades.
    warm_start: bool = True
    warm_start_weight: float = 0.8  # of the Charbonnier loss at the beginning, with one photo
    warm_start_final: float = 0.0  # factor on it at the end
    warm_start_size: int = 64  # pixels of the novel views
    warm_start_rays: int = 768  # pixels a step

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


def check_config(config: ReconConfig) -> None:
    """Raise InputError for settings that cannot be run."""
    levels = {len(config.grid), len(config.level_starts), len(config.photo_sizes)}
    if len(levels) != 1 or 0 in levels:
        raise InputError("grid, level_starts and photo_sizes must have one entry a level each")
    if config.level_starts[0] != 0 or sorted(config.level_starts) != list(config.level_starts) or config.level_starts[-1] >= 1:
        raise InputError(f"level_starts={config.level_starts} must rise from 0 and stay below 1")
    for name in ("steps", "rays", "render_size", "turntable_frames", "mesh_cells", "mesh_faces", "texture_size", "tile_rays", "sds_every", "sds_batch", "sds_cameras", "likeness_every"):
        if getattr(config, name) < 1:
            raise InputError(f"{name}={getattr(config, name)} must be at least 1")
    for name, low, high in (
        ("mesh_slack", 0, 10), ("prior_exponent", 0, 10), ("mirror_weight", 0, 1e3), ("mirror_where_seen", 0, 1), ("photo_detail", 0, 1), ("outline_sharpness", 0, 5), ("box", 0.1, 10), ("occupancy_cells", 4, 512), ("render_size", 1, 4096), ("turntable_size", 1, 4096), ("mesh_cells", 1, 1024), ("texture_size", 1, 16384),
        ("warm_start_size", 1, 4096), ("sds_size", 0, 4096), ("likeness_size", 32, 1024), ("likeness_weight", 0, 1e3), ("likeness_start", 0, 1), ("learning_rate", 0, 1e3), ("tile_rays", 1, 1 << 26),
    ):  # fmt: skip
        if not low <= getattr(config, name) <= high:
            raise InputError(f"{name}={getattr(config, name)} must lie in {low} .. {high}")
    if min(config.photo_sizes) < 1 or max(config.photo_sizes) > 4096:
        raise InputError(f"photo_sizes={config.photo_sizes}: sizes must lie in 1 .. 4096")
    if min(config.grid) < 4 or max(config.grid) > 512:
        raise InputError(f"grid={config.grid}: sizes must lie in 4..512")
    for name, choices in (
        ("sds_condition", ("auto", "all", "nearest", "near", "random", "first", "mean")),
        ("sds_residual", ("image", "latent")),
        ("texture", ("uv", "vertex")),
        ("field", ("dense", "hash")),
        ("weights_dtype", ("fp32", "bf16", "fp16")),
    ):
        if getattr(config, name) not in choices:
            raise InputError(f"{name}={getattr(config, name)!r} must be one of {', '.join(choices)}")
    if not (config.photos or config.sds or config.warm_start):
        raise InputError("photos, sds and warm_start are all switched off: nothing is left to reconstruct from")
