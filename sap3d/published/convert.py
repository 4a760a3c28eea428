"""Published weights, checked name by name and shape by shape, into the folder that every stage loads."""

from __future__ import annotations

import json
from pathlib import Path

import torch

import sap3d.compat  # noqa: F401  (before diffusers and transformers)
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from sap3d.errors import InputError, first_line
from sap3d.published.sources import PARTS, Published
from sap3d.scene import atomic_dir, write_json
from sap3d.zero123.model import CameraProjection

PUBLISHED_PARAMETERS = {"unet": 859_532_484, "vae": 83_653_863, "image_encoder": 303_966_208, "cc_projection": 593_664}  # of the published model


def published_scheduler() -> DDIMScheduler:
    """The noise schedule of Zero-1-to-3, with the time steps of its sampler (1, 1 + 1000 / steps ..)."""
    return DDIMScheduler(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                         set_alpha_to_one=False, steps_offset=1, prediction_type="epsilon", timestep_spacing="leading")  # fmt: skip


def build_part(part: str, config: dict) -> nn.Module:
    """The network of a part from its configuration, on the device of the surrounding context."""
    if part == "image_encoder":
        return CLIPVisionModelWithProjection(CLIPVisionConfig(**config))
    if part == "cc_projection":
        return CameraProjection(**config)
    return {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part].from_config(config)


def check(published: Published) -> dict[str, int]:
    """Compare every name and shape with the networks that the configurations describe; parameters of each part.

    Raises InputError naming the first tensor that is missing, unexpected or of another shape.
    """
    counts = {}
    for part in PARTS:
        found = published.parts[part]
        try:
            with torch.device("meta"):
                module = build_part(part, published.configs[part])
        except Exception as error:
            raise InputError(f"{published.path}: no {part} can be built from its configuration ({first_line(error)})") from None
        wanted = {_plain(part, name): tuple(value.shape) for name, value in module.state_dict().items()}
        missing, unexpected = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
        if missing:
            raise InputError(f"{published.path}: {part}: tensor {missing[0]} is missing{_more(missing)}; the file is incomplete or another model")
        if unexpected:
            raise InputError(f"{published.path}: {part}: unexpected tensor {unexpected[0]}{_more(unexpected)}; this is another model")
        for name, shape in wanted.items():
            if found[name].shape != shape:
                raise InputError(f"{published.path}: {part}: tensor {name} has shape {list(found[name].shape)}, expected {list(shape)}; this is another model or a damaged file")
        counts[part] = sum(parameter.numel() for parameter in module.parameters())
    unet, projection = published.configs["unet"], published.configs["cc_projection"]
    if unet["in_channels"] != 2 * unet["out_channels"]:
        raise InputError(f"{published.path}: its U-Net takes {unet['in_channels']} channels, Zero-1-to-3's twice as many as it gives ({2 * unet['out_channels']}); this is another model")
    if (projection["token_dim"], projection["output_dim"]) != (published.configs["image_encoder"]["projection_dim"], unet["cross_attention_dim"]):
        raise InputError(f"{published.path}: the camera projection maps {projection['token_dim']} + 4 numbers to {projection['output_dim']}, which does not fit the other parts")
    return counts


def convert(published: Published, folder: Path, dtype: torch.dtype | None = None, image_size: int = 256) -> dict[str, int]:
    """Check, then write ``folder`` (atomically; an old one is replaced); parameters of each part.

    dtype: of the floating-point tensors, None: as they are stored. image_size: the model's own, which no tensor tells. One part
    at a time is in memory. Raises InputError also for numbers that are not finite.
    """
    counts = check(published)
    with atomic_dir(Path(folder)) as temporary:
        for part in PARTS:
            config = dict(published.configs[part])
            if part == "unet":
                config["sample_size"] = image_size // 2 ** (len(published.configs["vae"]["block_out_channels"]) - 1)
            _write_config(part, config, temporary / part)
            tensors = {name: _checked(published, part, name, dtype) for name in published.parts[part]}
            name = "model.safetensors" if part == "image_encoder" else "diffusion_pytorch_model.safetensors"
            save_file(tensors, temporary / part / name, metadata={"format": "pt"})
            del tensors
        published_scheduler().save_pretrained(temporary / "scheduler")
        write_json(temporary / "model_index.json", {"_class_name": "Zero123", "unet": "UNet2DConditionModel", "vae": "AutoencoderKL",
                                                    "image_encoder": "CLIPVisionModelWithProjection", "cc_projection": "CameraProjection", "scheduler": "DDIMScheduler"})  # fmt: skip
    return counts


def _checked(published: Published, part: str, name: str, dtype: torch.dtype | None) -> torch.Tensor:
    tensor = published.parts[part][name].read()
    if not tensor.is_floating_point():
        raise InputError(f"{published.path}: {part}: tensor {name} holds {tensor.dtype}, not real numbers; this is another model")
    tensor = tensor if dtype is None else tensor.to(dtype)
    if not torch.isfinite(tensor).all():
        raise InputError(f"{published.path}: {part}: tensor {name} has numbers that are not finite; the file is damaged, or they do not fit {dtype}")
    return tensor.contiguous()


def verify_numbers(published: Published) -> None:
    """Read every tensor once: finds damage that names and shapes do not show (the archive keeps a checksum of each)."""
    for part in PARTS:
        for name in published.parts[part]:
            _checked(published, part, name, None)


def _write_config(part: str, config: dict, folder: Path) -> None:
    if part == "cc_projection":
        write_json(folder / "config.json", config)
        return
    with torch.device("meta"):
        module = build_part(part, config)
    (module.config.save_pretrained if part == "image_encoder" else module.save_config)(folder)
    path = folder / "config.json"
    write_json(path, {key: value for key, value in json.loads(path.read_text()).items() if key != "_name_or_path"})


def _plain(part: str, name: str) -> str:
    return name.removeprefix("linear.") if part == "cc_projection" else name


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
