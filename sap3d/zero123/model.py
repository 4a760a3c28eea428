"""Zero-1-to-3 (arXiv 2303.11328): a latent diffusion model of a view, conditioned on another view and the relative pose.

One class for the published model and for the small one; they differ in the configuration of their parts. On disk it is
a folder in diffusers' format: unet/, vae/, image_encoder/, cc_projection/, scheduler/, model_index.json.
"""

from __future__ import annotations

import json
import math
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sap3d.compat  # noqa: F401  (before diffusers and transformers)
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModelWithProjection

from sap3d.cameras import FOV_RAD
from sap3d.errors import InputError, explaining, first_line
from sap3d.scene import BUNDLED_ZERO123, atomic_dir, write_json
from sap3d.zero123.autoencoder import PatchPCAAutoencoder
from sap3d.zero123.image_encoder import AlexNetCLIPEncoder, PixelCLIPEncoder
from sap3d.zero123.int8 import PATTERN as INT8_FILES
from sap3d.zero123.int8 import load_int8, save_int8
from sap3d.zero123.multiplane import MultiplaneRenderer
from sap3d.zero123.sweep import PlaneSweep

_WEIGHTS = "diffusion_pytorch_model.safetensors"
diffusers_logging.disable_progress_bar()  # a bar for the shards of a small file tells nobody anything
_AUTOENCODERS = {"AutoencoderKL": AutoencoderKL, "PatchPCAAutoencoder": PatchPCAAutoencoder}


@dataclass
class ConditionFeatures:
    """What the model needs of B condition images: computed once, used at every step.

    concat: (B, C, h, w) the autoencoder's mode, not scaled; for a model with a plane sweep (B, 4, S, S) ink and coverage
    (``Zero123.encode_condition``). tokens: (B, L, D) before the pose is added. photos: ink and coverage at the images' own
    size, where that is larger and the model makes first guesses from it. An index (B, M) gives sets of M conditions.
    """

    concat: Tensor
    tokens: Tensor
    photos: Tensor | None = None

    def __len__(self) -> int:
        return len(self.concat)

    def __getitem__(self, index) -> ConditionFeatures:
        index = torch.as_tensor(index, device=self.tokens.device) if isinstance(index, list) else index
        return ConditionFeatures(self.concat[index], self.tokens[index], None if self.photos is None else self.photos[index])

    @classmethod
    def cat(cls, parts: Sequence[ConditionFeatures]) -> ConditionFeatures:
        photos = [p.photos for p in parts]
        whole = None if any(p is None for p in photos) or len({p.shape[-1] for p in photos}) > 1 else torch.cat(photos)
        return cls(torch.cat([p.concat for p in parts]), torch.cat([p.tokens for p in parts]), whole)

    def keep(self, tokens: Tensor) -> ConditionFeatures:
        """With the tokens times ``tokens`` (B,) of 0 or 1. The published training drops the image's token alone: its pose stays."""
        return replace(self, tokens=self.tokens * tokens.view(-1, *[1] * (self.tokens.ndim - 1)).to(self.tokens.dtype))

    @property
    def small(self) -> ConditionFeatures:
        """Without ``photos``: for callers that have the first guess already and index at every step."""
        return replace(self, photos=None)


def at_protocol_fov(pose: Tensor) -> Tensor:
    """Zero-1-to-3's T (..., 4) of poses (..., 8): radii are those from which a camera of the protocol's field of view shows the object as large.

    The published model has seen that field of view alone, so that a radius is a size in the picture to it. With the protocol's cameras T
    is as it stands in the pose.
    """
    condition, target = (pose[..., k] / math.tan(FOV_RAD / 2) for k in (6, 7))
    radius = (pose[..., 3] + pose[..., 5]) * target - pose[..., 5] * condition
    return torch.cat([pose[..., :3], radius[..., None]], -1)


class CameraProjection(nn.Module):
    """``cc_projection``: token and pose (D + 4) to the cross-attention token (D). Starts as the identity on the token.

    pose_dim: how many of the numbers of ``sap3d.cameras.pose_condition`` it sees; the published one sees the first four.
    """

    def __init__(self, token_dim: int = 768, output_dim: int = 768, tokens: str = "pooled", pose_dim: int = 4):
        super().__init__()
        if tokens not in ("pooled", "patches"):
            raise ValueError(f"tokens must be 'pooled' or 'patches', got {tokens!r}")
        self.tokens, self.pose_dim = tokens, pose_dim
        self.linear = nn.Linear(token_dim + pose_dim, output_dim)
        with torch.no_grad():
            nn.init.eye_(self.linear.weight[:, :token_dim])
            self.linear.bias.zero_()

    def forward(self, tokens: Tensor, pose: Tensor) -> Tensor:
        """tokens (..., L, D), pose (..., 8) to (..., L, output_dim). Never rounded: in bfloat16 a pose has steps of a fifth of a degree."""
        if self.pose_dim == 4:
            pose = at_protocol_fov(pose)
        pose = pose[..., None, : self.pose_dim].to(tokens.dtype).expand(*tokens.shape[:-1], -1)
        with torch.autocast(tokens.device.type, enabled=False):
            return self.linear(torch.cat([tokens, pose], dim=-1))

    def config(self) -> dict:
        token_dim = self.linear.in_features - self.pose_dim
        return {"token_dim": token_dim, "output_dim": self.linear.out_features, "tokens": self.tokens, "pose_dim": self.pose_dim}


class Zero123(nn.Module):
    """The four networks and the noise schedule. Images are (B, 3, S, S) over white in [0, 1].

    sweep: how condition images reach the U-Net's input: None for the published form (the autoencoder's mode, the same for
    every target), or a plane sweep, which needs the autoencoder to be the patch one and takes several conditions at once.
    linear_skip: the U-Net predicts what is left of the target after the best linear guess from the noisy latent alone
    (``linear_guess``), so that copying noise need not be learned; needs the patch autoencoder and v-prediction.
    multiplane: renders a first guess of the target from the condition images. Its latents are concatenated too and are the
    mean of the linear guess, so that the U-Net predicts what is left of the guess; needs sweep and linear_skip.
    correction_gain: (bins of noise levels, latent channels), factors on what the U-Net adds to the linear guess around
    ``multiplane``'s (camerabooth/prior/calibrate.py measures them; None: 1).
    """

    GAIN_BINS = 10  # of equal numbers of time steps
    REACH = 1 / 64  # of the image's side: how far from the first guess's object the diffusion model may paint
    INK = (0.1, 0.3)  # how far from white the guess must be to count as object: not at all, and wholly

    def __init__(self, unet: UNet2DConditionModel, vae: nn.Module, image_encoder: nn.Module, cc_projection: CameraProjection, scheduler: DDIMScheduler, sweep: PlaneSweep | None = None,
                 linear_skip: bool = False, multiplane: MultiplaneRenderer | None = None, correction_gain: Tensor | None = None):  # fmt: skip
        super().__init__()
        self.sweep, self.linear_skip, self.multiplane = sweep, linear_skip, multiplane
        self.unet, self.vae, self.image_encoder, self.cc_projection = unet, vae, image_encoder, cc_projection
        self.scheduler = scheduler
        self.offloaded: tuple[nn.Module, ...] = ()  # parts that are kept in main memory while they are idle (sap3d/zero123/memory.py)
        self.register_buffer("alphas_cumprod", scheduler.alphas_cumprod.clone().float(), persistent=False)
        gain = torch.ones(self.GAIN_BINS, self.latent_channels) if correction_gain is None else correction_gain.float()
        if gain.shape != (self.GAIN_BINS, self.latent_channels):
            raise ValueError(f"correction_gain must be {self.GAIN_BINS} lists of {self.latent_channels} numbers, got {tuple(gain.shape)}")
        self.register_buffer("correction_gain", gain, persistent=False)
        for frozen in (vae, image_encoder, multiplane):
            if frozen is not None:
                frozen.requires_grad_(False)

    # --- sizes ----------------------------------------------------------------------------------------------------
    @property
    def latent_size(self) -> int:
        return int(self.unet.config.sample_size)

    @property
    def latent_channels(self) -> int:
        return int(self.unet.config.out_channels)

    @property
    def image_size(self) -> int:
        config = self.vae.config
        factor = config.patch_size if isinstance(self.vae, PatchPCAAutoencoder) else 2 ** (len(config.block_out_channels) - 1)
        return self.latent_size * factor

    @property
    def num_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def device(self) -> torch.device:
        return self.alphas_cumprod.device

    @contextmanager
    def awake(self, part: nn.Module, stay: bool = False):
        """``part`` on the model's device while the block runs. stay: also afterwards, as a backward pass needs it."""
        idle = any(part is other for other in self.offloaded)
        if idle:
            part.to(self.device)
        yield
        if idle and not stay:
            part.to("cpu")

    def _exact_patches(self):
        """Full precision for the patch autoencoder, two matrix products whose images bfloat16 would round to 1/256; the learned one is left as it is."""
        return torch.autocast(self.device.type, enabled=False) if isinstance(self.vae, PatchPCAAutoencoder) else nullcontext()

    # --- images and latents ---------------------------------------------------------------------------------------
    def encode_target(self, images: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) of target images; differentiable with respect to the images."""
        return self._encode(images) * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Images in [0, 1] of scaled latents."""
        with self.awake(self.vae, stay=torch.is_grad_enabled() and latents.requires_grad), self._exact_patches():
            images = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample
        return (images.float() / 2 + 0.5).clamp(0, 1)

    def decode_beside(self, latents: Tensor, guess: Tensor | None) -> Tensor:
        """``decode``, with what latents cannot hold of the first guess (B, 3, S, S): its finest detail, which comes from the photos.
        The images have the guess's size. White that is further than ``REACH`` from anything in the guess stays white: there is
        no object where the photos' outlines leave no room for one, and a small diffusion model leaves stains there."""
        images = self.decode(latents)
        if guess is None:
            return images
        change = images - self.decode(self.encode_target(guess))
        if guess.shape[-1] != change.shape[-1]:
            change = F.interpolate(change, guess.shape[-2:], mode="bicubic", align_corners=False)
        ink = (1 - guess).amax(1, keepdim=True)
        reach = 2 * round(self.REACH * guess.shape[-1]) + 1
        near = F.max_pool2d(ink, (reach, 1), 1, (reach // 2, 0))
        near = F.max_pool2d(near, (1, reach), 1, (0, reach // 2))
        none, whole = self.INK
        return (guess + change * ((near - none) / (whole - none)).clamp(0, 1)).clamp(0, 1)

    def _encode(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (B, 3, S, S), got {tuple(images.shape)}")
        with self.awake(self.vae, stay=torch.is_grad_enabled() and images.requires_grad), self._exact_patches():
            return self.vae.encode((self._resized(images) * 2 - 1).to(self.vae.dtype)).latent_dist.mode()

    def _resized(self, images: Tensor) -> Tensor:
        if images.shape[-1] == self.image_size:
            return images
        return F.interpolate(images, (self.image_size,) * 2, mode="bilinear", align_corners=False, antialias=True)

    def encode_condition(self, images: Tensor, cover: Tensor | None = None) -> ConditionFeatures:
        """Features of condition images (B, 3, S, S), S at least ``image_size`` (the encoder uses what it can of it).

        cover: (B, 1, S, S) share of each pixel that is object; used by a plane sweep alone, which takes what is not white
        for the object where it is not given. Zero-1-to-3 concatenates the autoencoder's mode without the scale factor, and
        gives cross-attention the projected CLIP token; with ``tokens: patches`` the patch tokens follow it.
        """
        encoder = self.image_encoder if isinstance(self.image_encoder, AlexNetCLIPEncoder) else PixelCLIPEncoder(self.image_encoder)
        with self.awake(self.image_encoder):
            pooled, patches = encoder(images)
        tokens = pooled[:, None]
        if self.cc_projection.tokens == "patches":
            tokens = torch.cat([tokens, patches], dim=1)
        if self.sweep is None:
            return ConditionFeatures(self._encode(images), tokens)
        ink = 1 - images
        if cover is None:
            cover = (10 * ink.amax(1, keepdim=True)).clamp(0, 1)
        photos = torch.cat([ink, cover], dim=1)
        own_size = self.multiplane is not None and photos.shape[-1] > self.image_size
        return ConditionFeatures(self._resized(photos), tokens, photos if own_size else None)

    @property
    def takes_sets(self) -> bool:
        """Whether several condition images can serve one prediction."""
        return self.sweep is not None

    @torch.no_grad()
    def first_guess(self, features: ConditionFeatures, pose: Tensor, size: int | None = None) -> Tensor:
        """Images (B, 3, size, size) in [0, 1] of the targets, by ``multiplane``, from conditions (B, M, ...) and poses (B, M, 8).
        size: None for ``image_size``; more shows what the photos have of detail (``ConditionFeatures.photos``).

        Without gradients: cameras are refined through the sweep, and those of the guess would cost three times its time.
        """
        with torch.autocast(self.device.type, enabled=False):  # bfloat16 has too few digits for a product over many planes
            ink = features.concat if features.photos is None else features.photos
            return (1 - self.multiplane(ink.float(), pose.float(), size or self.image_size)[:, :3]).clamp(0, 1)

    def condition_channels(self, features: ConditionFeatures, pose: Tensor, guess: Tensor | None = None) -> Tensor:
        """What is concatenated to the noisy latents: of conditions (B, M, ...), poses (B, M, 8) and the first guess."""
        if self.multiplane is not None:
            latents = self.encode_target(self.first_guess(features, pose) if guess is None else guess)
            return torch.cat([self.sweep(features.concat, pose, self.vae), torch.ones_like(latents[:, :1]), latents], dim=1)
        if self.sweep is not None:
            return self.sweep(features.concat, pose, self.vae)
        if pose.shape[1] != 1:
            raise ValueError(f"this model takes one condition image a prediction, got {pose.shape[1]}")
        return features.concat[:, 0]

    # --- diffusion ------------------------------------------------------------------------------------------------
    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        alpha = self._alpha(t)
        return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise

    def predict(self, noisy: Tensor, t: Tensor, features: ConditionFeatures, pose: Tensor, keep_tokens: Tensor | None = None, keep_concat: Tensor | None = None) -> Tensor:
        """The U-Net's raw output for noisy latents (B, C, h, w) at steps t (B,), poses (B, 8), or (B, M, 8) for sets of
        M conditions (``takes_sets``). ``keep_tokens`` and ``keep_concat`` (B,) of 0 or 1 drop either condition, as
        classifier-free guidance needs.
        """
        if keep_tokens is not None and self.cc_projection.tokens == "pooled":
            features, keep_tokens = features.keep(keep_tokens), None
        return self.predict_prepared(noisy, t, *self.conditions(features, pose), keep_tokens, keep_concat)

    def predict_prepared(self, noisy: Tensor, t: Tensor, tokens: Tensor, concat: Tensor, keep_tokens: Tensor | None = None, keep_concat: Tensor | None = None) -> Tensor:
        """``predict`` of what ``conditions`` gave, which a caller may use for several noises."""
        if keep_tokens is not None:
            tokens = tokens * keep_tokens[:, None, None].to(tokens.dtype)
        if keep_concat is not None:
            concat = concat * keep_concat[:, None, None, None].to(concat.dtype)
        return self._denoise(noisy, t, tokens, concat)

    def guided(self, noisy: Tensor, t: Tensor, tokens: Tensor, concat: Tensor, guidance_scale: float) -> Tensor:
        """Classifier-free guidance on what ``conditions`` gave, which a caller may use for many steps: unconditional + scale *
        (conditional - unconditional); one batch of twice the size."""
        if guidance_scale == 1:
            return self._denoise(noisy, t, tokens, concat)
        tokens, concat = (torch.cat([torch.zeros_like(x), x]) for x in (tokens, concat))
        out = self._denoise(noisy.repeat(2, 1, 1, 1), t.repeat(2), tokens, concat)
        unconditional, conditional = out.chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    def conditions(self, features: ConditionFeatures, pose: Tensor, guess: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Cross-attention tokens (B, M L, D) and concatenated channels (B, C, h, w) for poses (B, 8) or (B, M, 8); ``guess``:
        what ``first_guess`` gave for them, if a caller has it already."""
        if pose.ndim == 2:
            features, pose = features[torch.arange(len(features), device=features.tokens.device)[:, None]], pose[:, None]
        if pose.ndim != 3 or pose.shape[-1] != 8 or features.tokens.shape[:2] != pose.shape[:2]:
            raise ValueError(f"poses must be (B, 8) or (B, M, 8) like their {tuple(features.tokens.shape[:2])} conditions, got {tuple(pose.shape)}")
        dtype = self.unet.dtype
        tokens = self.cc_projection(features.tokens.to(self.cc_projection.linear.weight.dtype), pose).flatten(1, 2)
        return tokens.to(dtype), self.condition_channels(features, pose, guess).to(dtype)

    def _denoise(self, noisy: Tensor, t: Tensor, tokens: Tensor, concat: Tensor) -> Tensor:
        out = self.unet(torch.cat([noisy.to(concat.dtype), concat], dim=1), t, encoder_hidden_states=tokens).sample.to(noisy.dtype)
        if not self.linear_skip:
            return out
        if self.multiplane is None:
            return out + self.linear_guess(noisy, t)
        given = concat[:, -self.latent_channels - 1 : -self.latent_channels].to(noisy.dtype)
        gain = self.correction_gain[t * self.GAIN_BINS // self.num_timesteps][..., None, None].to(noisy.dtype)
        return torch.lerp(torch.ones_like(gain), gain, given) * out + self.linear_guess(noisy, t, concat)

    def linear_guess(self, noisy: Tensor, t: Tensor, concat: Tensor | None = None) -> Tensor:
        """v of the best linear estimate of each latent channel from its own noisy value (a Wiener filter with the channel's
        mean m and variance s): x0 = m + sqrt(a) s / (a s + 1 - a) (x_t - sqrt(a) m). Compare the skip connection of EDM's
        preconditioning (arXiv 2206.00364, section 5), which takes one variance for all channels and mean 0.

        Without ``concat``, m = 0 and s is the channel's variance over the corpus. With it, its last channels are the guess of
        ``multiplane``, which is m, and s is the variance of what is left; where the condition is dropped, they are 0.
        """
        alpha, variance = self._alpha(t), self.vae.latent_variance[:, None, None]
        mean = 0.0
        if concat is not None:
            given, mean = concat[:, -self.latent_channels - 1 :].to(noisy.dtype).split([1, self.latent_channels], dim=1)
            variance = torch.lerp(variance, self.multiplane.residual_variance[:, None, None], given)
        original = mean + alpha.sqrt() * variance / (alpha * variance + 1 - alpha) * (noisy - alpha.sqrt() * mean)
        noise = (noisy - alpha.sqrt() * original) / (1 - alpha).sqrt()
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * original

    def training_target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What ``predict`` should return: the noise, or v = sqrt(a) noise - sqrt(1 - a) x0 (arXiv 2202.00512)."""
        if self.scheduler.config.prediction_type == "epsilon":
            return noise
        alpha = self._alpha(t)
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * latents

    def predicted_original(self, out: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """x0 from the raw output."""
        alpha = self._alpha(t)
        if self.scheduler.config.prediction_type == "epsilon":
            return (noisy - (1 - alpha).sqrt() * out) / alpha.sqrt().clamp_min(1e-4)
        return alpha.sqrt() * noisy - (1 - alpha).sqrt() * out

    def predicted_noise(self, out: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """epsilon from the raw output."""
        if self.scheduler.config.prediction_type == "epsilon":
            return out
        alpha = self._alpha(t)
        return alpha.sqrt() * out + (1 - alpha).sqrt() * noisy

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio a / (1 - a) at steps t."""
        alpha = self.alphas_cumprod[t]
        return alpha / (1 - alpha)

    def _alpha(self, t: Tensor) -> Tensor:
        return self.alphas_cumprod[t][:, None, None, None]

    # --- files ----------------------------------------------------------------------------------------------------
    def save(self, folder: Path, dtype: torch.dtype = torch.float16, int8: bool = False) -> None:
        """Write the model as a diffusers-format folder, atomically; weights in shards of at most 15 MB.

        ``int8``: the U-Net and the renderer, which are most of it, in 8 bits (sap3d/zero123/int8.py); diffusers itself cannot read that.
        """
        with atomic_dir(Path(folder)) as temporary:
            if int8:
                save_int8(self.unet, temporary / "unet")
            else:
                _save_module(self.unet, temporary / "unet", dtype)
            _save_module(self.vae, temporary / "vae", torch.float32)
            _save_module(self.image_encoder, temporary / "image_encoder", dtype)
            if self.multiplane is not None and int8:
                save_int8(self.multiplane, temporary / "multiplane")
            elif self.multiplane is not None:
                _save_module(self.multiplane, temporary / "multiplane", dtype)
            (temporary / "cc_projection").mkdir()
            write_json(temporary / "cc_projection" / "config.json", self.cc_projection.config())
            weights = {k: v.to(dtype).contiguous() for k, v in self.cc_projection.linear.state_dict().items()}
            save_file(weights, temporary / "cc_projection" / _WEIGHTS)
            self.scheduler.save_pretrained(temporary / "scheduler")
            write_json(
                temporary / "model_index.json",
                {
                    "_class_name": "Zero123",
                    "unet": "UNet2DConditionModel",
                    "vae": type(self.vae).__name__,
                    "image_encoder": type(self.image_encoder).__name__,
                    "cc_projection": "CameraProjection",
                    "scheduler": "DDIMScheduler",
                    **({"sweep": self.sweep.config()} if self.sweep is not None else {}),
                    **({"linear_skip": True} if self.linear_skip else {}),
                    **({"multiplane": "MultiplaneRenderer"} if self.multiplane is not None else {}),
                    **({"correction_gain": [[round(x, 3) for x in row] for row in self.correction_gain.tolist()]} if self.multiplane is not None else {}),
                },
            )


def _save_module(module: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    import copy

    copy.deepcopy(module).to("cpu", dtype).save_pretrained(folder, max_shard_size="15MB")


def load_zero123(folder: Path | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Zero123:
    """Load a diffusers-format folder (None: the bundled small model), in evaluation mode, without executing code in it.

    ``dtype``: of the U-Net, the image encoder and a learned autoencoder. What is small and exact (camera projection, renderer of first
    guesses, patch autoencoder, noise schedule) is never rounded.
    Raises InputError naming the folder and what is missing or does not fit.
    """
    folder = Path(folder) if folder else BUNDLED_ZERO123
    index_path = folder / "model_index.json"
    if not index_path.is_file():
        raise InputError(f"{folder}: not a Zero-1-to-3 folder (no model_index.json); give a folder in diffusers' format, or make one: python -m sap3d.weights convert {folder}")

    def damage(error: Exception) -> str:
        if isinstance(error, (OSError, KeyError, ValueError, RuntimeError, TypeError)):
            return f"{folder}: cannot be loaded as Zero-1-to-3 ({first_line(error)}); fetch or convert it again"
        return f"{folder}: damaged weights ({type(error).__name__}: {first_line(error)}); fetch them again"

    with explaining(damage):
        index = json.loads(index_path.read_text())
        if index["_class_name"] != "Zero123":
            raise InputError(f"{folder}: a folder of another program ({index['_class_name']}); convert it first: python -m sap3d.weights convert {folder} NEW_FOLDER")
        unet = _load(UNet2DConditionModel, folder / "unet", dtype)
        vae = _load(_AUTOENCODERS[index["vae"]], folder / "vae", dtype if index["vae"] == "AutoencoderKL" else torch.float32)
        encoder_class = AlexNetCLIPEncoder if index["image_encoder"] == "AlexNetCLIPEncoder" else CLIPVisionModelWithProjection
        image_encoder = _load(encoder_class, folder / "image_encoder", dtype)
        projection = CameraProjection(**json.loads((folder / "cc_projection" / "config.json").read_text()))
        projection.linear.load_state_dict(load_file(folder / "cc_projection" / _WEIGHTS))
        scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
        sweep = PlaneSweep(**index["sweep"]) if "sweep" in index else None
        multiplane = _load(MultiplaneRenderer, folder / "multiplane", torch.float32) if "multiplane" in index else None
        gain = torch.tensor(index["correction_gain"]) if "correction_gain" in index else None
        model = Zero123(unet, vae, image_encoder, projection, scheduler, sweep, bool(index.get("linear_skip")), multiplane, gain).to(device).eval()
    return model


def load_multiplane(folder: Path) -> MultiplaneRenderer:
    """The renderer of first guesses of a model folder alone. Raises InputError where there is none or it is damaged."""
    if not (Path(folder) / "multiplane" / "config.json").is_file():
        raise InputError(f"{folder}: no renderer of first guesses there (multiplane/config.json); python -m camerabooth.prior.train part=multiplane trains one and --export writes it")
    with explaining(lambda error: f"{folder}: damaged renderer ({type(error).__name__}: {first_line(error)}); export it again"):
        return _load(MultiplaneRenderer, Path(folder) / "multiplane", torch.float32)


def _load(cls, folder: Path, dtype: torch.dtype):
    if any(Path(folder).glob(INT8_FILES)):
        return load_int8(cls, folder).to(dtype)
    loaded = cls.from_pretrained(folder, use_safetensors=True, output_loading_info=True, torch_dtype=dtype, local_files_only=True)
    model, info = loaded
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            raise InputError(f"{folder}: {kind.replace('_', ' ')}: {sorted(map(str, info[kind]))[0]}; these are weights of another model")
    return model
