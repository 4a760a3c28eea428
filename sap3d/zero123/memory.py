"""What makes the published model fit a small card, and what to say when it does not."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from transformers import CLIPVisionModelWithProjection

from sap3d.errors import InputError
from sap3d.zero123.model import Zero123

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_FULL_SIZE_BYTES = 1 << 30  # a U-Net's weights of more than this are the published size


def prepare(model: Zero123, device: str, vae_slicing: bool = False, offload: bool = False, gradient_checkpointing: bool = False) -> Zero123:
    """Put a model that was loaded on the CPU on ``device``, with the chosen savings; the same model.

    Learned parts alone (AutoencoderKL, CLIP) are sliced or stay behind: the small model's are a hundredth of its size. The camera
    projection, the renderer of first guesses and a patch autoencoder stay in fp32.
    """
    for part in (model.cc_projection, model.multiplane, model.vae):
        if part is not None and not isinstance(part, AutoencoderKL):
            part.float()
    if vae_slicing and isinstance(model.vae, AutoencoderKL):
        model.vae.enable_slicing()
    if gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
    if offload:
        model.offloaded = tuple(part for part in (model.vae, model.image_encoder) if isinstance(part, (AutoencoderKL, CLIPVisionModelWithProjection)))
    for part in model.children():
        if not any(part is idle for idle in model.offloaded):
            part.to(device)
    for name, value in model.named_buffers(recurse=False):
        setattr(model, name, value.to(device))
    return model


def check_card(folder: Path, device: str, stage: str, dtype: str = "fp32") -> None:
    """Raises InputError before anything is loaded where the GPU is smaller than the smallest need measured of ``stage`` (train,
    novel_views, sds) at the published size, or would emulate the ``dtype`` that the networks are kept in. Small models and the CPU are let through."""
    from sap3d.presets import measured_need

    unet = Path(folder) / "unet"
    size = sum(path.stat().st_size for path in unet.glob("*.safetensors")) if unet.is_dir() else 0
    need = measured_need("full-11gb", stage)
    if not device.startswith("cuda") or size < _FULL_SIZE_BYTES:
        return
    card = torch.cuda.get_device_properties(device)
    if dtype == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise InputError(f"{card.name} has no bfloat16 and would emulate it, several times slower: set booth.precision=fp16, booth.weights_dtype=fp16 and recon.weights_dtype=fp16, or take --preset=full-11gb")
    if need is not None and card.total_memory / 1e9 < need:
        raise InputError(f"{card.name} has {card.total_memory / 1e9:.1f} GB; {stage} of the published model needs {need:.1f} GB at least (measured, --preset full-11gb): use a larger card, or --preset tiny")
