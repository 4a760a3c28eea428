"""Settings of the prior's training."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar, Sequence

from sap3d.config import check_choices, check_limits
from sap3d.errors import InputError


@dataclass
class PriorConfig:
    corpus: list[str] = field(default_factory=lambda: ["dataset/corpus_cache"])  # folders that `python -m dataset.corpus` wrote
    out: str = ".work/prior"  # checkpoints, curves and sample sheets
    max_minutes: float = 60.0  # stop (with a checkpoint) after this time; run again to go on
    max_steps: int = 1_000_000  # optimiser steps in all, over all runs
    seed: int = 0
    part: str = "unet"  # what is trained: multiplane (the renderer of the first guess), unet (all else, with that guess), or both at once
    init: str = ""  # model folder whose weights a new run starts from, e.g. sap3d/weights/tiny/zero123 ("": random)

    # Model (see sap3d.zero123.build.build_tiny)
    image_size: int = 128  # pixels of the generated views
    patch_size: int = 8  # pixels of a patch of the autoencoder
    latent_channels: int = 48  # components kept of each patch
    whitening: float = 0.5  # 0: components at natural variance, 1: all at variance 1
    channels: list[int] = field(default_factory=lambda: [96, 192, 256])  # of the U-Net's levels
    attention: list[bool] = field(default_factory=lambda: [False, True, True])  # which levels attend to the condition
    token_dim: int = 256  # width of the condition tokens
    encoder_layers: int = 2  # transformer layers on the trunk's features
    tokens: str = "patches"  # what the U-Net attends to: patches (pooled and patch tokens of each photo) or pooled (that one alone, as published)
    trunk: str = "alexnet"  # convolutional trunk of the image encoder: alexnet (frozen ImageNet features) or scratch (the same layers, trained from random weights)
    planes: int = 8  # of the plane sweep that carries condition images to the target (0: concatenated as published, one photo a prediction whatever ``sets``)
    plane_components: int = 24  # components of the autoencoder that describe a plane
    multiplane: int = 32  # planes of the renderer that makes the first guess of a view (0: none)
    multiplane_widths: list[int] = field(default_factory=lambda: [16, 32, 64, 96])  # channels of its 3D network's levels, for a new one

    # Optimisation
    groups_per_step: int = 8  # objects a step
    targets_per_group: int = 4  # target views of each
    noises_per_target: int = 1  # noises and time steps drawn for each target, its conditions and first guess made once; the batch is the product of the three
    sets: list[float] = field(default_factory=lambda: [0.55, 0.2, 0.15, 0.0, 0.1])  # share of steps with 1, 2, .. condition images
    learning_rate: float = 4e-4
    multiplane_rate: float = 3.2  # part=both: the renderer's learning rate in units of the U-Net's
    diffusion_weight: float = 1.0  # part=both: of the diffusion loss beside the renderer's
    view_perceptual: float = 0.15  # part=both: weight of the LPIPS distance of what a run of one step shows
    warmup_steps: int = 200
    decay_minutes: float = 0.0  # the learning rate falls to zero over the last minutes of this run (0: constant)
    decay_steps: int = 0  # and over the last steps before max_steps, whatever the speed (0: not by steps)
    weight_decay: float = 1e-3
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    guess_size: int = 64  # pixels at which the first guess is compared with the truth (part=both: the image's)
    guess_perceptual: float = 0.1  # weight of the LPIPS distance of the first guess, at the image's size, beside its squared error
    pose_noise_deg: list[float] = field(default_factory=lambda: [0.0, 1.0, 3.0])  # spread of errors of the cameras, one drawn for each object; for the guess
    drop_condition: float = 0.05  # probability of each of: tokens, concatenation, both dropped
    snr_gamma: float = 0.0  # min-SNR weighting of part=unet (arXiv 2303.09556); 0: uniform. With v-prediction it all but removes high noise, where structure is decided
    precision: str = "bf16-mixed"  # of pytorch-lightning's Trainer: bf16-mixed or 32-true
    devices: int = 1  # processes (GPUs) a node; the batch grows with them
    nodes: int = 1  # machines; each runs the same command (camerabooth/README.md)
    allow_other_processes: bool = False  # go on although the checkpoint is of another number of processes: other data and another batch from there on
    compile: list[str] = field(default_factory=list)  # of composite, renderer, unet: by torch.compile, once for each number of photos (for long runs on a GPU; benchmarks/prior_step.py)
    resident: bool = True  # on a GPU: the decoded corpus is kept in its memory (1.6 MB an object) and batches are made there, unless it is read in shards
    shard_objects: int = 0  # objects that a process holds at a time, decoded from the packed corpus (0: all of it, decoded on disk once and mapped)
    shard_steps: int = 500  # steps after which a process takes its next shard
    threads: int = 0  # CPU threads (0: all)

    # Reports and results
    export_int8: bool = True  # --export writes the U-Net and the renderer in 8 bits
    log_every: int = 50
    validate_every: int = 1000
    checkpoint_every: int = 200

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        "part": ("multiplane", "unet", "both"),
        "tokens": ("patches", "pooled"),
        "trunk": ("alexnet", "scratch"),
        "precision": ("bf16-mixed", "32-true"),
    }
    LIMITS: ClassVar[dict[str, tuple[float, float]]] = {
        "max_minutes": (0, 1e9), "max_steps": (1, 1e12), "image_size": (8, 4096), "patch_size": (1, 4096), "latent_channels": (1, 100_000), "whitening": (0, 1),
        "channels": (1, 100_000), "token_dim": (1, 100_000), "encoder_layers": (1, 1000), "planes": (0, 4096), "plane_components": (1, 100_000), "multiplane": (0, 4096),
        "multiplane_widths": (1, 100_000), "groups_per_step": (1, 1e6), "targets_per_group": (1, 1e6), "noises_per_target": (1, 1e6), "sets": (0, 1e9),
        "learning_rate": (0, 10), "multiplane_rate": (0, 1e6), "diffusion_weight": (0, 1e9), "view_perceptual": (0, 1e9), "warmup_steps": (0, 1e12),
        "decay_minutes": (0, 1e9), "decay_steps": (0, 1e12), "weight_decay": (0, 1e3), "gradient_clip": (1e-9, 1e9), "ema_decay": (0, 1), "guess_size": (1, 4096),
        "guess_perceptual": (0, 1e9), "pose_noise_deg": (0, 180), "drop_condition": (0, 1 / 3), "snr_gamma": (0, 1e9), "devices": (1, 1e6), "nodes": (1, 1e6),
        "shard_objects": (0, 1e9), "shard_steps": (1, 1e12), "threads": (0, 4096), "log_every": (1, 1e12), "validate_every": (1, 1e12), "checkpoint_every": (1, 1e12),
    }  # fmt: skip
    # What a checkpoint's weights depend on, and what the data of its next steps do besides
    MODEL: ClassVar[tuple[str, ...]] = ("part", "init", "image_size", "patch_size", "latent_channels", "whitening", "channels", "attention", "token_dim", "encoder_layers", "tokens", "trunk",
                                        "planes", "plane_components", "multiplane", "multiplane_widths")  # fmt: skip
    DATA: ClassVar[tuple[str, ...]] = ("corpus", "seed", "groups_per_step", "targets_per_group", "sets", "shard_objects", "shard_steps")

    def check(self) -> None:
        """Raises InputError for a setting that cannot be used, before anything is read."""
        check_choices(self, self.CHOICES)
        check_limits(self, self.LIMITS)
        for name in ("corpus", "channels", "multiplane_widths", "sets", "pose_noise_deg"):
            if not getattr(self, name):
                raise InputError(f"{name}=[] must have one entry at least")
        if not sum(self.sets) > 0:
            raise InputError(f"sets={self.sets}: one share at least must be above 0")
        if len(self.attention) != len(self.channels):
            raise InputError(f"attention={self.attention} and channels={self.channels} must have an entry for each level of the U-Net")
        if self.image_size % self.patch_size:
            raise InputError(f"image_size={self.image_size} must be a multiple of patch_size={self.patch_size}")
        if self.latent_channels > 3 * self.patch_size**2:
            raise InputError(f"latent_channels={self.latent_channels}: patches of {self.patch_size} x {self.patch_size} pixels have {3 * self.patch_size**2} components; lower it")
        if self.plane_components > self.latent_channels:
            raise InputError(f"plane_components={self.plane_components} must be at most latent_channels={self.latent_channels}")
        # Normalisations work on groups of channels (sap3d/zero123/build.py, multiplane.py).
        groups = min(32, self.channels[0])
        if any(width % groups for width in self.channels):
            raise InputError(f"channels={self.channels} must all be multiples of {groups}")
        if any(width % 4 or width % min(8, width // 4) for width in self.multiplane_widths):
            raise InputError(f"multiplane_widths={self.multiplane_widths} must all be multiples of 4, and from 32 on of 8")
        check_compiled(self.compile)


def check_compiled(parts: Sequence[str]) -> None:
    """Raises InputError for a part that torch.compile is not asked about (``camerabooth.prior.train.compile_parts``)."""
    unknown = set(parts) - {"composite", "renderer", "unet"}
    if unknown:
        raise InputError(f"compile={sorted(unknown)[0]} is unknown: use composite, renderer or unet")


def settings_apart(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line's other words, and its ``key=value`` ones: behind an option of several values argparse would take these for one more of them."""
    settings = [word for word in argv if re.match(r"[A-Za-z_]\w*=", word)]
    return [word for word in argv if word not in settings], settings
