"""Settings of stage 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sap3d.config import check_choices, check_limits
from sap3d.errors import InputError


@dataclass
class BoothConfig:
    model: str = ""  # folder of the base Zero-1-to-3 in diffusers' format ("": the bundled small model)
    device: str = "auto"  # auto, cpu, cuda or cuda:K
    precision: str = "auto"  # auto, fp32, bf16, fp16 (autocast; auto takes bf16 where the hardware has it)
    weights_dtype: str = "fp32"  # how the networks are kept: fp32, or as ``precision`` (half the memory; only lora and projection can be trained then)
    gradient_checkpointing: bool = False  # compute activations twice instead of keeping them
    vae_slicing: bool = False  # a learned autoencoder works on one picture at a time
    offload: bool = False  # image encoder and learned autoencoder stay in main memory while they are idle
    seed: int = 0

    # Test-time training (skipped for one view: there are no pairs)
    train: bool = True  # false: novel views from the base model and the initial cameras
    trained: str = "unet"  # unet (whole U-Net + projection, as published), attention (its attention layers + projection), lora (low-rank changes of them + projection), projection
    lora_rank: int = 16  # of lora (arXiv 2106.09685)
    steps: int = 32  # optimiser steps for two views
    steps_per_extra_view: int = 7  # and these for each further view
    patience: int = 0  # end earlier, when the photos' loss has not fallen by 1 % from so many steps to as many next ones; 0: never
    batch_size: int = 8  # photo pairs a step
    regulariser_batch: int = 2  # pairs of regulariser objects a step (prior preservation); 0: none
    regulariser: str = "similar"  # which objects: similar (to the photos), random or none
    regulariser_objects: int = 8  # how many objects
    learning_rate: float = 1e-4  # of the networks; falls to nearly zero along a cosine over all steps
    camera_learning_rate: float = 2e-4  # Adam's: about as many radians a step (radius: shares), times a camera's freedom; 0 keeps the cameras
    camera_anchor: float = 1.0  # weight of the squared distance to the initial cameras (radians^2)
    trust_confident: bool = True  # cameras that stage 1 is sure of are moved less (camera_table.freedom_of)
    mirror: bool = True  # also train on mirrored pairs (azimuth difference with the other sign: exact)
    drop_condition: float = 0.05  # probability to drop tokens, concatenation, or both (classifier-free guidance)
    snr_gamma: float = 0.0  # min-SNR weighting (arXiv 2303.09556); 0: the published uniform weighting
    gradient_clip: float = 1.0

    # Novel views
    nvs_steps: int = 1  # DDIM steps: with the bundled weights one, the mean of what they expect, is better than more (docs/log.md)
    ddim_eta: float = 0.0  # noise that a step puts in anew, as a share of DDPM's (arXiv 2010.02502, eq. 16); SAP3D's novel views take 1
    guidance_scale: float = 1.0
    # The photos that condition a step: all of them at once, or one: near (nearer is likelier), nearest, random or first.
    condition_strategy: str = "auto"  # auto takes all where the model has a plane sweep, else near
    symmetry: bool = True  # mirrored photos condition too, where stage 1 has found a mirror plane (sap3d/symmetry.py)
    field_steps: int = 200  # of a radiance field fitted to the photos, which guides the novel views from two photos on (photo_field.py); 0: none
    nvs_batch_size: int = 12  # views denoised together
    output_size: int = 256  # pixels of the stored views (bicubic from the model's own size)

    SECTION: ClassVar[str] = "booth"  # of a preset
    QUICK: ClassVar[tuple[str, ...]] = ("steps=6", "steps_per_extra_view=1", "field_steps=120")

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        "precision": ("auto", "fp32", "bf16", "fp16"),
        "weights_dtype": ("fp32", "bf16", "fp16"),
        "trained": ("unet", "attention", "lora", "projection"),
        "regulariser": ("similar", "random", "none"),
        "condition_strategy": ("auto", "all", "nearest", "near", "random", "first"),
    }
    LIMITS: ClassVar[dict[str, tuple[float, float]]] = {
        "lora_rank": (1, 4096), "steps": (1, 10_000_000), "steps_per_extra_view": (0, 10_000_000), "patience": (0, 10_000_000), "batch_size": (1, 4096), "regulariser_batch": (0, 4096), "regulariser_objects": (0, 100_000),
        "learning_rate": (0, 10), "camera_learning_rate": (0, 10), "camera_anchor": (0, 1e9), "drop_condition": (0, 1 / 3), "snr_gamma": (0, 1e9), "gradient_clip": (1e-9, 1e9),
        "nvs_steps": (1, 1000), "ddim_eta": (0, 1), "guidance_scale": (0, 1000), "field_steps": (0, 1_000_000), "nvs_batch_size": (1, 4096), "output_size": (8, 4096),
    }  # fmt: skip

    def check(self) -> None:
        """Raises InputError for a setting that cannot be used, before anything is touched."""
        check_choices(self, self.CHOICES)
        check_limits(self, self.LIMITS)
        if self.weights_dtype != "fp32" and (self.precision != self.weights_dtype or self.train and self.trained not in ("lora", "projection")):
            raise InputError(f"weights_dtype={self.weights_dtype} needs precision={self.weights_dtype} and trained=lora or trained=projection: other weights are trained in fp32")
