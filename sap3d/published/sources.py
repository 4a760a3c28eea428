"""Where published Zero-1-to-3 weights come from: original checkpoints and the diffusers-format folders that circulate.

Both become ``Published``: for every part the tensors under our names and the configuration of its network. Names that belong to
training and not to the model (averages, schedules, CLIP's text half) are known and left out; any other is an error.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Mapping

from sap3d.errors import InputError
from sap3d.published.names import Target, clip_target, modern_vae_name, unet_target, vae_target
from sap3d.published.reading import TensorEntry, WeightFile, open_weights

PARTS = ("unet", "vae", "image_encoder", "cc_projection")
_PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "image_encoder": "cond_stage_model.model.visual.", "cc_projection": "cc_projection."}
_OF_TRAINING = re.compile(
    r"model_ema\..*|first_stage_model\.loss\..*|cond_stage_model\.(mean|std)|logvar|scale_factor|lvlb_weights|betas|(log_|sqrt_)?(one_minus_)?(recip_|recipm1_)?alphas_cumprod(_prev)?|"
    r"sqrt_recipm?1?_alphas_cumprod|posterior_(variance|log_variance_clipped|mean_coef[12])|"
    r"cond_stage_model\.model\.(positional_embedding|text_projection|logit_scale|token_embedding\.weight|ln_final\.(weight|bias)|transformer\..*)"
)
_FOLDER_FILES = ("diffusion_pytorch_model.safetensors", "model.safetensors", "diffusion_pytorch_model.safetensors.index.json", "model.safetensors.index.json",
                 "diffusion_pytorch_model.fp16.safetensors", "model.fp16.safetensors", "diffusion_pytorch_model.bin", "pytorch_model.bin")  # fmt: skip


@dataclass
class Published:
    """Zero-1-to-3 as a file or folder holds it: parts -> our names -> tensors, and what to build the networks from."""

    path: Path
    parts: dict[str, dict[str, TensorEntry]]
    configs: dict[str, dict]
    notes: list[str] = field(default_factory=list)


def read_published(path: Path, averaged: bool = True) -> Published:
    """An original checkpoint, or a folder in diffusers' format. averaged: the U-Net's moving average where the file has one,
    as the published demonstration uses it; false: the weights of the last training step."""
    path = Path(path)
    return read_folder(path) if path.is_dir() else read_original(open_weights(path), averaged)


# --- original checkpoints ---------------------------------------------------------------------------------------------
def read_original(file: WeightFile, averaged: bool = True) -> Published:
    names = {part: [name for name in file if name.startswith(prefix)] for part, prefix in _PREFIXES.items()}
    for part in PARTS:
        if not names[part]:
            raise InputError(f"{file.path}: has no {_PREFIXES[part]}* tensors, so it is no Zero-1-to-3 checkpoint{_guess(file)}")
    known = {name for part in PARTS for name in names[part]}
    unknown = sorted(name for name in file if name not in known and not _OF_TRAINING.fullmatch(name))
    if unknown:
        raise InputError(f"{file.path}: unexpected tensor {unknown[0]}{_more(unknown)}; this is another model")
    bare = {part: [name.removeprefix(_PREFIXES[part]) for name in names[part]] for part in PARTS}
    downsamplers = [int(found[1]) for name in bare["unet"] if (found := re.fullmatch(r"input_blocks\.(\d+)\.0\.op\.weight", name))]
    blocks = min(downsamplers) - 1 if downsamplers else 2
    levels = 1 + max((int(found[1]) for name in bare["vae"] if (found := re.match(r"encoder\.down\.(\d+)\.", name))), default=0)
    targets = {
        "unet": lambda name: unet_target(name, blocks),
        "vae": lambda name: vae_target(name, levels),
        "image_encoder": clip_target,
        "cc_projection": lambda name: [Target(name)] if name in ("weight", "bias") else None,
    }
    published = Published(file.path, {part: _renamed(file, _PREFIXES[part], bare[part], targets[part]) for part in PARTS}, {})
    if averaged and any(name.startswith("model_ema.diffusion_model") for name in file):
        _take_average(file, published, bare["unet"], targets["unet"])
    published.configs = infer_configs(published)
    _check_schedule(file)
    return published


def _renamed(file: WeightFile, prefix: str, bare: list[str], target) -> dict[str, TensorEntry]:
    renamed: dict[str, TensorEntry] = {}
    for name in bare:
        found = target(name)
        if found is None:
            raise InputError(f"{file.path}: unexpected tensor {prefix}{name}; this is another model")
        for one in found:
            renamed[one.name] = _as(file, prefix + name, one)
    return renamed


def _as(file: WeightFile, name: str, target: Target) -> TensorEntry:
    entry = file[name]
    return TensorEntry(target.shape(entry.shape), entry.dtype, lambda: target.apply(file.tensor(name)))


def _take_average(file: WeightFile, published: Published, bare: list[str], target) -> None:
    """Latent-diffusion keeps averages under the parameters' names without dots."""
    for name in bare:
        stored = f"model_ema.diffusion_model{name.replace('.', '')}"
        if stored not in file:
            raise InputError(f"{file.path}: has averages of the U-Net, but {stored} is missing; fetch it again, or take the last step's weights with --last")
        for one in target(name):
            published.parts["unet"][one.name] = _as(file, stored, one)
    published.notes.append("U-Net: the moving average of training (--last takes the last step)")


def _check_schedule(file: WeightFile) -> None:
    if "alphas_cumprod" in file:
        from sap3d.published.convert import published_scheduler

        found, ours = file.tensor("alphas_cumprod").float(), published_scheduler().alphas_cumprod
        if found.shape != ours.shape or ((found - ours).abs() > 1e-4).any():
            raise InputError(f"{file.path}: alphas_cumprod is not Zero-1-to-3's noise schedule; this is another model")


# --- folders ----------------------------------------------------------------------------------------------------------
def read_folder(folder: Path) -> Published:
    index = _json(folder / "model_index.json", "give a folder in diffusers' format, or an original checkpoint")
    projection = next((name for name in ("cc_projection", "clip_camera_projection") if (folder / name).is_dir()), None)
    if projection is None:
        kind = index.get("_class_name", "another model") if isinstance(index, dict) else "another model"
        raise InputError(f"{folder}: has neither cc_projection/ nor clip_camera_projection/, so it is no Zero-1-to-3 folder (model_index.json: {kind})")
    folders = {"unet": "unet", "vae": "vae", "image_encoder": "image_encoder", "cc_projection": projection}
    published = Published(folder, {}, {})
    for part, name in folders.items():
        file = open_weights(_weights_in(folder / name))
        entries = {key: _entry(file, key) for key in file}
        if part == "vae":
            entries = {modern_vae_name(key): _attention_matrix(key, entry) for key, entry in entries.items()}
        if part == "image_encoder":
            entries.pop("vision_model.embeddings.position_ids", None)  # 0, 1, 2 ..: stored by old versions
        if part == "cc_projection":
            entries = {re.sub(r"^(proj|projection|linear)\.", "", key): entry for key, entry in entries.items()}
            published.configs[part] = projection_config(entries, file.path)
        else:
            published.configs[part] = {k: v for k, v in _json(folder / name / "config.json", "fetch the folder again").items() if not k.startswith("_")}
        published.parts[part] = entries
    published.notes.append(f"a folder in diffusers' format, its projection in {projection}/")
    _check_folder_schedule(folder)
    return published


def _entry(file: WeightFile, name: str) -> TensorEntry:
    return replace(file[name], read=lambda: file.tensor(name))


def _attention_matrix(name: str, entry: TensorEntry) -> TensorEntry:
    """Old autoencoders store the attention's matrices as 1 x 1 convolutions."""
    squeeze = Target("", "squeeze")
    if ".attentions." in name and len(entry.shape) == 4:
        return TensorEntry(squeeze.shape(entry.shape), entry.dtype, lambda: squeeze.apply(entry.read()))
    return entry


def _weights_in(folder: Path) -> Path:
    for name in _FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{folder}: holds no weights ({_FOLDER_FILES[0]} or the like); fetch the folder again")


def _check_folder_schedule(folder: Path) -> None:
    found = _json(folder / "scheduler" / "scheduler_config.json", "fetch the folder again")
    wanted = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
    for name, value in wanted.items():
        if found.get(name) != value:
            raise InputError(f"{folder}/scheduler: {name} is {found.get(name)}, Zero-1-to-3's is {value}; this is another model")
    if found.get("prediction_type", "epsilon") != "epsilon":
        raise InputError(f"{folder}/scheduler: prediction_type is {found['prediction_type']}, Zero-1-to-3's is epsilon; this is another model")


def _json(path: Path, remedy: str) -> dict:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {remedy}") from None
    except ValueError:
        raise InputError(f"{path}: not valid JSON; {remedy}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a table of settings; {remedy}")
    return content


# --- what to build ----------------------------------------------------------------------------------------------------
def infer_configs(published: Published) -> dict[str, dict]:
    """The networks' configurations from the shapes of a few tensors; head counts and groups are those of the published model."""
    shape = {part: {name: entry.shape for name, entry in published.parts[part].items()} for part in PARTS}

    def of(part: str, name: str) -> tuple[int, ...]:
        if name not in shape[part]:
            raise InputError(f"{published.path}: tensor {name} of {part} is missing; the file is incomplete or another model")
        return shape[part][name]

    def count(part: str, pattern: str) -> int:
        return 1 + max((int(found[1]) for name in shape[part] if (found := re.match(pattern, name))), default=-1)

    levels, blocks = count("unet", r"down_blocks\.(\d+)\."), count("unet", r"down_blocks\.0\.resnets\.(\d+)\.")
    crossed = [any(name.startswith(f"down_blocks.{level}.attentions") for name in shape["unet"]) for level in range(levels)]
    vae_levels, width = count("vae", r"encoder\.down_blocks\.(\d+)\."), of("image_encoder", "vision_model.embeddings.class_embedding")[0]
    patch = of("image_encoder", "vision_model.embeddings.patch_embedding.weight")[-1]
    positions = of("image_encoder", "vision_model.embeddings.position_embedding.weight")[0]
    return {
        "unet": {
            "sample_size": 32, "in_channels": of("unet", "conv_in.weight")[1], "out_channels": of("unet", "conv_out.weight")[0], "layers_per_block": blocks,
            "block_out_channels": tuple(of("unet", f"down_blocks.{level}.resnets.0.conv2.weight")[0] for level in range(levels)),
            "down_block_types": tuple("CrossAttnDownBlock2D" if c else "DownBlock2D" for c in crossed),
            "up_block_types": tuple("CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(crossed)),
            "cross_attention_dim": of("unet", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight")[1], "attention_head_dim": 8,  # the number of heads
        },
        "vae": {
            "sample_size": 256, "in_channels": 3, "out_channels": 3, "latent_channels": of("vae", "post_quant_conv.weight")[0],
            "block_out_channels": tuple(of("vae", f"encoder.down_blocks.{level}.resnets.0.conv2.weight")[0] for level in range(vae_levels)),
            "layers_per_block": count("vae", r"encoder\.down_blocks\.0\.resnets\.(\d+)\."), "scaling_factor": 0.18215,
            "down_block_types": ("DownEncoderBlock2D",) * vae_levels, "up_block_types": ("UpDecoderBlock2D",) * vae_levels,
        },
        "image_encoder": {
            "hidden_size": width, "intermediate_size": of("image_encoder", "vision_model.encoder.layers.0.mlp.fc1.weight")[0],
            "num_hidden_layers": count("image_encoder", r"vision_model\.encoder\.layers\.(\d+)\."), "num_attention_heads": max(width // 64, 1),
            "image_size": round((positions - 1) ** 0.5) * patch, "patch_size": patch, "projection_dim": of("image_encoder", "visual_projection.weight")[0],
            "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        },
        "cc_projection": projection_config(published.parts["cc_projection"], published.path),
    }  # fmt: skip


def projection_config(entries: Mapping[str, TensorEntry], path: Path) -> dict:
    if "weight" not in entries or len(entries["weight"].shape) != 2:
        raise InputError(f"{path}: the camera projection has no weight matrix; the file is incomplete or another model")
    out, into = entries["weight"].shape
    return {"token_dim": into - 4, "output_dim": out, "tokens": "pooled", "pose_dim": 4}


def _guess(file: WeightFile) -> str:
    if any(name.startswith("model.diffusion_model.") for name in file):
        return " (a latent diffusion model such as Stable Diffusion or its image variations)"
    return f" (its first tensor is {min(file)})"


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
