"""Zero-1-to-3 (arXiv 2303.11328): a latent diffusion model of a view, conditioned on another view and the relative pose.

One class for the published model and for the small one; they differ in the configuration of their parts. On disk it is
a folder in diffusers' format: unet/, vae/, image_encoder/, cc_projection/, scheduler/, model_index.json.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sap3d.compat  # noqa: F401  (before diffusers and transformers)
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModelWithProjection

from sap3d.errors import InputError, first_line
from sap3d.scene import BUNDLED_ZERO123, atomic_dir, write_json
from sap3d.zero123.autoencoder import PatchPCAAutoencoder
from sap3d.zero123.image_encoder import AlexNetCLIPEncoder, PixelCLIPEncoder

BUNDLED = BUNDLED_ZERO123
_WEIGHTS = "diffusion_pytorch_model.safetensors"
diffusers_logging.disable_progress_bar()  # a bar for the shards of a small file tells nobody anything
_AUTOENCODERS = {"AutoencoderKL": AutoencoderKL, "PatchPCAAutoencoder": PatchPCAAutoencoder}


@dataclass
class ConditionFeatures:
    """What the model needs of B condition images: computed once, used at every step.

    concat: (B, C, h, w) the autoencoder's mode, not scaled; tokens: (B, L, D) before the pose is added.
    """

    concat: Tensor
    tokens: Tensor

    def __len__(self) -> int:
        return len(self.concat)

    def __getitem__(self, index) -> ConditionFeatures:
        return ConditionFeatures(self.concat[index], self.tokens[index])

    def repeat(self, count: int) -> ConditionFeatures:
        """The first (only) condition ``count`` times."""
        return ConditionFeatures(self.concat.expand(count, -1, -1, -1), self.tokens.expand(count, -1, -1))

    def detach(self) -> ConditionFeatures:
        return ConditionFeatures(self.concat.detach(), self.tokens.detach())


class CameraProjection(nn.Module):
    """``cc_projection``: token and pose (D + 4) to the cross-attention token (D). Starts as the identity on the token."""

    def __init__(self, token_dim: int = 768, output_dim: int = 768, tokens: str = "pooled"):
        super().__init__()
        if tokens not in ("pooled", "patches"):
            raise ValueError(f"tokens must be 'pooled' or 'patches', got {tokens!r}")
        self.tokens = tokens
        self.linear = nn.Linear(token_dim + 4, output_dim)
        with torch.no_grad():
            nn.init.eye_(self.linear.weight[:, :token_dim])
            self.linear.bias.zero_()

    def forward(self, tokens: Tensor, pose: Tensor) -> Tensor:
        pose = pose.to(tokens.dtype)[:, None].expand(-1, tokens.shape[1], -1)
        return self.linear(torch.cat([tokens, pose], dim=-1))

    def config(self) -> dict:
        return {"token_dim": self.linear.in_features - 4, "output_dim": self.linear.out_features, "tokens": self.tokens}


class Zero123(nn.Module):
    """The four networks and the noise schedule. Images are (B, 3, S, S) over white in [0, 1]."""

    def __init__(self, unet: UNet2DConditionModel, vae: nn.Module, image_encoder: nn.Module, cc_projection: CameraProjection, scheduler: DDIMScheduler):
        super().__init__()
        self.unet, self.vae, self.image_encoder, self.cc_projection = unet, vae, image_encoder, cc_projection
        self.scheduler = scheduler
        self.register_buffer("alphas_cumprod", scheduler.alphas_cumprod.clone().float(), persistent=False)
        for frozen in (vae, image_encoder):
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

    # --- images and latents ---------------------------------------------------------------------------------------
    def encode_target(self, images: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) of target images; differentiable with respect to the images."""
        return self._encode(images) * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Images in [0, 1] of scaled latents."""
        images = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample
        return (images.float() / 2 + 0.5).clamp(0, 1)

    def _encode(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (B, 3, S, S), got {tuple(images.shape)}")
        if images.shape[-1] != self.image_size:
            images = F.interpolate(images, (self.image_size,) * 2, mode="bilinear", align_corners=False, antialias=True)
        return self.vae.encode((images * 2 - 1).to(self.vae.dtype)).latent_dist.mode()

    def encode_condition(self, images: Tensor) -> ConditionFeatures:
        """Features of condition images (B, 3, S, S), S at least ``image_size`` (the encoder uses what it can of it).

        Zero-1-to-3 concatenates the autoencoder's mode without the scale factor, and gives cross-attention the
        projected CLIP token; with ``tokens: patches`` the patch tokens follow it.
        """
        encoder = self.image_encoder if isinstance(self.image_encoder, AlexNetCLIPEncoder) else PixelCLIPEncoder(self.image_encoder)
        pooled, patches = encoder(images)
        tokens = pooled[:, None]
        if self.cc_projection.tokens == "patches":
            tokens = torch.cat([tokens, patches], dim=1)
        return ConditionFeatures(self._encode(images), tokens)

    # --- diffusion ------------------------------------------------------------------------------------------------
    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        alpha = self._alpha(t)
        return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise

    def predict(self, noisy: Tensor, t: Tensor, features: ConditionFeatures, pose: Tensor, keep_tokens: Tensor | None = None, keep_concat: Tensor | None = None) -> Tensor:
        """The U-Net's raw output for noisy latents (B, C, h, w) at steps t (B,), poses (B, 4).

        ``keep_tokens`` and ``keep_concat`` (B,) of 0 or 1 drop either condition, as classifier-free guidance needs.
        """
        if pose.shape != (len(noisy), 4):
            raise ValueError(f"pose must be ({len(noisy)}, 4), got {tuple(pose.shape)}")
        dtype = self.unet.dtype
        tokens = self.cc_projection(features.tokens.to(dtype), pose)
        concat = features.concat.to(dtype)
        if keep_tokens is not None:
            tokens = tokens * keep_tokens[:, None, None].to(dtype)
        if keep_concat is not None:
            concat = concat * keep_concat[:, None, None, None].to(dtype)
        return self.unet(torch.cat([noisy.to(dtype), concat], dim=1), t, encoder_hidden_states=tokens).sample.to(noisy.dtype)

    def predict_guided(self, noisy: Tensor, t: Tensor, features: ConditionFeatures, pose: Tensor, guidance_scale: float) -> Tensor:
        """Classifier-free guidance: unconditional + scale * (conditional - unconditional); one batch of twice the size."""
        if guidance_scale == 1:
            return self.predict(noisy, t, features, pose)
        keep = torch.cat([torch.zeros(len(noisy)), torch.ones(len(noisy))]).to(noisy)
        twice = ConditionFeatures(features.concat.repeat(2, 1, 1, 1), features.tokens.repeat(2, 1, 1))
        out = self.predict(noisy.repeat(2, 1, 1, 1), t.repeat(2), twice, pose.repeat(2, 1), keep, keep)
        unconditional, conditional = out.chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

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
    def save(self, folder: Path, dtype: torch.dtype = torch.float16) -> None:
        """Write the model as a diffusers-format folder, atomically; weights in shards of at most 15 MB."""
        with atomic_dir(Path(folder)) as temporary:
            _save_module(self.unet, temporary / "unet", dtype)
            _save_module(self.vae, temporary / "vae", torch.float32)
            _save_module(self.image_encoder, temporary / "image_encoder", dtype)
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
                },
            )


def _save_module(module: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    import copy

    copy.deepcopy(module).to("cpu", dtype).save_pretrained(folder, max_shard_size="15MB")


def load_zero123(folder: Path | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Zero123:
    """Load a diffusers-format folder (None: the bundled small model), in evaluation mode, without executing code in it.

    Raises InputError naming the folder and what is missing or does not fit.
    """
    folder = Path(folder) if folder else BUNDLED
    index_path = folder / "model_index.json"
    if not index_path.is_file():
        raise InputError(f"{folder}: not a Zero-1-to-3 folder (no model_index.json); give a folder in diffusers' format")
    try:
        index = json.loads(index_path.read_text())
        unet = _load(UNet2DConditionModel, folder / "unet")
        vae = _load(_AUTOENCODERS[index["vae"]], folder / "vae")
        encoder_class = AlexNetCLIPEncoder if index["image_encoder"] == "AlexNetCLIPEncoder" else CLIPVisionModelWithProjection
        image_encoder = _load(encoder_class, folder / "image_encoder")
        projection = CameraProjection(**json.loads((folder / "cc_projection" / "config.json").read_text()))
        projection.linear.load_state_dict(load_file(folder / "cc_projection" / _WEIGHTS))
        scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
    except (OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise InputError(f"{folder}: cannot be loaded as Zero-1-to-3 ({first_line(error)}); fetch or convert it again") from None
    except Exception as error:  # safetensors raises its own class for damaged files
        raise InputError(f"{folder}: damaged weights ({type(error).__name__}: {first_line(error)}); fetch them again") from None
    return Zero123(unet, vae, image_encoder, projection, scheduler).to(device, dtype).eval()


def _load(cls, folder: Path):
    loaded = cls.from_pretrained(folder, use_safetensors=True, output_loading_info=True, torch_dtype=torch.float32, local_files_only=True)
    model, info = loaded
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            raise InputError(f"{folder}: {kind.replace('_', ' ')}: {sorted(map(str, info[kind]))[0]}; these are weights of another model")
    return model
