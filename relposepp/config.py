"""Every setting of stage 1: the network's shape (saved with its weights), inference and training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sap3d.config import check_choices, check_limits
from sap3d.errors import InputError


@dataclass
class NetworkConfig:
    """Shape of the network. The defaults are the tiny preset; ``published()`` is the network of the paper."""

    backbone: str = "alexnet"  # image encoder: alexnet (frozen, 7 x 7 spatial tokens) or resnet50 (trained, one global token)
    image_size: int = 128  # side of the square images that the encoder sees, pixels
    pixel_patch: int = 4  # side of the RGBA patch that goes with every spatial token of alexnet; 0 for none
    flatten: bool = True  # a view's summary token begins as a linear map of all its spatial tokens together
    flatten_dropout: float = 0.5  # dropout on the input of that map, training only
    kept_tokens: int = 0  # spatial tokens that stay beside the summary, those that the object covers most; 49 for all, 0 for none
    crop_bases: int = 0  # octaves of the encoding of the crop parameters (3 numbers a view); 0 for no crop parameters
    alternate: bool = False  # layers 0, 2, .. attend within a view, the others over all views; false: all over all, as published
    width: int = 256  # channels of the transformer; a projection is learned where the encoder's tokens differ from it
    depth: int = 4  # layers of the transformer
    heads: int = 4  # attention heads
    head_width: int = 64  # channels a head
    mlp_width: int = 512  # hidden channels of the transformer's feed-forward layers
    dropout: float = 0.1  # dropout in the transformer, training only
    view_marker: str = "first"  # how views are told apart: first (a learned mark on view 0) or sinusoid (published)
    energy: str = "bilinear"  # pairwise score: bilinear (dot product, thousands of queries at once) or additive (published)
    energy_width: int = 256  # channels of the pairwise score
    energy_layers: int = 4  # linear layers of the additive score, as published
    rotation_bases: int = 4  # octaves of the harmonic embedding of a relative rotation (8 as published)
    translation_widths: tuple[int, int] = (192, 192)  # hidden channels of the translation head
    elevation_bins: int = 24  # bins of the elevation head between -60 and 80 degrees; 0 for no such head
    azimuth_bins: int = 24  # bins of the head for the azimuth from the object's own front, a help in training; 0 for no such head

    @classmethod
    def published(cls) -> NetworkConfig:
        """RelPose++ as published: ResNet-50 global features with crop parameters, 8 layers, additive score."""
        return cls(
            backbone="resnet50", image_size=224, pixel_patch=0, alternate=False, crop_bases=8, width=2096, depth=8, heads=12, head_width=64,
            mlp_width=1536, view_marker="sinusoid", energy="additive", rotation_bases=8, translation_widths=(1024, 512),
            elevation_bins=0, azimuth_bins=0,
        )  # fmt: skip

    def check(self) -> None:
        """Raises InputError for a value that no network can be built from."""
        for name, allowed in (("backbone", ("alexnet", "resnet50")), ("view_marker", ("first", "sinusoid")), ("energy", ("bilinear", "additive"))):
            if getattr(self, name) not in allowed:
                raise InputError(f"relposepp network: {name}={getattr(self, name)!r} is unknown; use one of {', '.join(allowed)}")
        for name in ("image_size", "width", "depth", "heads", "head_width", "mlp_width", "energy_width", "rotation_bases"):
            if getattr(self, name) < 1:
                raise InputError(f"relposepp network: {name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.kept_tokens <= 49:
            raise InputError(f"relposepp network: kept_tokens must be 0 .. 49, got {self.kept_tokens}")
        if self.backbone == "alexnet" and not self.flatten and not self.kept_tokens:
            raise InputError("relposepp network: without flatten, kept_tokens must be at least 1: nothing of the photos would be seen")
        if self.energy_layers < 3:
            raise InputError(f"relposepp network: energy_layers must be at least 3, got {self.energy_layers}")


@dataclass
class RelPoseConfig:
    """Settings of the stage (``python -m relposepp.run``)."""

    SECTION: ClassVar[str] = "relpose"  # of a preset
    QUICK: ClassVar[tuple[str, ...]] = ()  # wrong cameras spoil all that follows, and the whole search takes seconds

    weights: str = ""  # folder with model.safetensors and config.json; empty: the bundled tiny weights
    device: str = "auto"  # auto, cpu or cuda
    precision: str = "fp32"  # of the network: fp32, bf16 or fp16 (autocast; for the published network on a GPU, the small one gains nothing)
    search: str = "look_at"  # look_at: (azimuth, elevation) a view, no roll; so3: all rotations, as published
    hypotheses: int = 5  # how many scored camera configurations are kept
    starts: int = 40000  # random starts of the search by outlines
    beam: int = 200  # how many partial configurations it carries on (several times as many, in proportion)
    candidates: int = 300  # how many of its configurations are judged by hull, colours and network
    azimuth_step_deg: float = 5.0  # grid of the look_at search
    elevation_step_deg: float = 5.0  # grid of the look_at search
    elevation_range_deg: tuple[float, float] = (-40.0, 70.0)  # where the look_at search, and the search by outlines but for photos by hand, place cameras
    queries: int = 30000  # random rotations a pair in the so3 search (the published evaluation uses 500,000)
    iterations: int = 50  # steps of coordinate ascent in the so3 search, as published
    aim: str = "auto"  # exact: cameras look at the object's centre; free: taken by hand, aim and distance unknown; auto: free for photos of dataset.photos
    taken: str = "auto"  # around: from one distance, some way apart, not from below; anywhere: any distances and directions; auto: where three photos or more contradict around
    rerank: bool = True  # search by outlines, judge by hull, colours and the judge of pairs too; false: the network alone
    network_weight: float = 0.0  # of the network's log-probabilities of relative poses among what judges configurations; the bundled one is near chance on scans
    judge: bool = True  # with two or three photos, ask the learned judge of pairs too (relposepp/judge.py)
    cameras: str = ""  # camera file to take instead of an estimate; the mirror plane is looked for all the same
    symmetry: bool = True  # look for a mirror plane: as a reason to choose a configuration, and for stages 2 and 3
    seed: int = 0  # everything random in the stage

    def check(self) -> None:
        """Raises InputError for a setting that cannot be used."""
        check_choices(self, {"search": ("look_at", "so3"), "aim": ("auto", "exact", "free"), "taken": ("auto", "around", "anywhere"), "precision": ("fp32", "bf16", "fp16")})
        check_limits(
            self,
            {
                "hypotheses": (1, 1000), "candidates": (1, 100_000), "queries": (100, 10_000_000), "iterations": (0, 1_000_000_000), "starts": (100, 1e15), "beam": (4, 1_000_000), "network_weight": (0, 1000),
                "elevation_range_deg": (-85, 85), "azimuth_step_deg": (1, 45), "elevation_step_deg": (1, 170),
            },
        )  # fmt: skip
        low, high = self.elevation_range_deg
        if not low < high or self.elevation_step_deg > high - low:
            raise InputError(f"elevation_range_deg={self.elevation_range_deg} must rise, by at least elevation_step_deg={self.elevation_step_deg:g}")


@dataclass
class TrainConfig:
    """Settings of training (``python -m relposepp.train``)."""

    corpus: str = "dataset/corpus_cache"  # folder made by python -m dataset.corpus
    stretched: str = ""  # folder made by python -m relposepp.stretch: the training objects in other proportions; empty for none
    out: str = ".work/relposepp"  # checkpoints, feature cache and curves
    device: str = "auto"  # auto, cpu or cuda
    seed: int = 0  # everything random is drawn from (seed, step)
    steps: int = 4000  # optimisation steps; the learning rate falls to a fiftieth over them
    minutes: float = 0.0  # stop after so many minutes and go on at the next call; 0 for no limit
    batch_views: int = 288  # views a step: scenes a step = batch_views // views a scene
    variants: int = 4  # augmented versions of every view: as it is, mirrored, other colours, mirrored with other colours
    max_views: int = 6  # views a scene are drawn from 2 .. max_views
    learning_rate: float = 1e-3  # peak, after the warm-up
    warmup_steps: int = 100  # linear warm-up
    weight_decay: float = 0.05  # AdamW
    clip_norm: float = 1.0  # gradient norm is clipped to this
    ema_decay: float = 0.999  # exponential moving average of the weights: what is evaluated and exported
    queries: int = 1024  # relative rotations that the true one competes with
    kernel_deg: float = 10.0  # width of the soft target around the true relative rotation
    elevation_weight: float = 0.3  # weight of the elevation head's loss
    azimuth_weight: float = 0.3  # weight of the front-azimuth head's loss
    translation_weight: float = 1.0  # weight of the translation head's loss
    checkpoint_seconds: float = 60.0  # time between checkpoints
    validate_every: int = 500  # steps between measurements on the validation split
    bf16: bool = True  # bfloat16 autocast
