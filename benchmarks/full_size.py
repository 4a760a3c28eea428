"""Memory and time of every stage at the published size, with random weights of the true shape (860 M-parameter U-Net, CLIP ViT-L/14, VAE).

    python -m benchmarks.full_size --stage train novel_views sds --preset full                     one GPU
    python -m benchmarks.full_size --stage train novel_views sds --preset full --device cpu --batch 1     one step each, under 16 GB

Each stage runs in a process of its own through the code of the pipeline: camerabooth.training.fit, camerabooth.nvs.novel_views,
3D_Recon's Guidance. On a GPU the memory is PyTorch's (reserved, peak), on a CPU the process's largest resident size, all libraries
included. --record keeps the peaks in sap3d/presets/measured.json, from where errors and checks of cards take them.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

import sap3d.compat  # noqa: F401
from camerabooth.config import BoothConfig
from sap3d.cameras import Camera, protocol_test_cameras
from sap3d.presets import FOLDER, preset_settings
from sap3d.published.convert import build_part, published_scheduler
from sap3d.scene import write_json
from sap3d.zero123 import Zero123
from sap3d.zero123.memory import DTYPES, prepare
from sap3d.zero123.sampler import sample_views

STAGES = ("train", "novel_views", "sds")
CONFIGS = {
    "unet": {"sample_size": 32, "in_channels": 8, "out_channels": 4, "layers_per_block": 2, "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768,
             "attention_head_dim": 8, "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3},
    "vae": {"sample_size": 256, "latent_channels": 4, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "scaling_factor": 0.18215,
            "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4},
    "image_encoder": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 224, "patch_size": 14, "projection_dim": 768,
                      "hidden_act": "quick_gelu"},
    "cc_projection": {"token_dim": 768, "output_dim": 768},
}  # fmt: skip


def random_full_model(dtype: torch.dtype) -> Zero123:
    """The published architecture with random weights, made in ``dtype`` at once: no fp32 copy ever exists."""
    block = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).to(dtype)
    parts = {}
    for name, config in CONFIGS.items():
        with torch.device("meta"):
            module = build_part(name, config)
        module = module.to(dtype).to_empty(device="cpu")
        with torch.no_grad():
            for key, value in module.named_parameters():
                flat, scale = value.view(-1), max(value[0].numel(), 1) ** -0.5 if value.ndim > 1 else 0.1
                for start in range(0, len(flat), len(block)):  # the same million numbers again and again: sizes matter here
                    piece = flat[start : start + len(block)]
                    piece.copy_(block[: len(piece)]).mul_(scale)
                if value.ndim == 1 and key.endswith("weight"):
                    value.add_(1)
        if name == "image_encoder":
            embeddings = module.vision_model.embeddings if hasattr(module, "vision_model") else module.embeddings
            embeddings.position_ids = torch.arange(257)[None]
        parts[name] = module
    model = Zero123(parts["unet"], parts["vae"], parts["image_encoder"], parts["cc_projection"], published_scheduler())
    return model.eval()


def photos(count: int, size: int = 256) -> np.ndarray:
    """(count, size, size, 4): discs over nothing; what is on them does not matter."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    image = np.stack([0.5 + x, 0.5 + y, 0.5 - x, (x * x + y * y < 0.1).astype(float)], -1).astype(np.float32)
    return np.stack([np.roll(image, 10 * k, 1) for k in range(count)])


CAMERAS = [Camera.from_degrees(0, 0), Camera.from_degrees(30, 90), Camera.from_degrees(0, 270)]


def booth_config(preset: str, **changes) -> BoothConfig:
    return dataclasses.replace(BoothConfig(), **preset_settings(preset, "booth", with_weights=False), **changes)


def clock(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def train(model: Zero123, preset: str, device: str, batch: int | None, steps: int, count: int) -> dict:
    """Test-time training of one object; seconds a step without the first one where there are several."""
    from camerabooth.camera_table import CameraTable
    from camerabooth.training import PhotoPairs, fit

    config = booth_config(preset)
    size = batch or config.batch_size + config.regulariser_batch  # pairs of regulariser objects cost the same
    config = dataclasses.replace(config, batch_size=size, regulariser_batch=0, steps=steps, steps_per_extra_view=0)
    if device == "cpu" and config.precision == "fp16":
        config = dataclasses.replace(config, precision="bf16")
    prepare(model, device, config.vae_slicing, config.offload, config.gradient_checkpointing)
    views = torch.from_numpy(photos(count)).permute(0, 3, 1, 2).to(device)
    data = PhotoPairs(model, views, [], config.mirror)
    begin = clock(device)
    fitted = fit(model, CameraTable({f"{k:03d}": c for k, c in enumerate(CAMERAS[:count])}).to(device), data, config, Path("none/checkpoint.pt"))
    trained = sum(p.numel() for n, p in model.named_parameters() if n in set(fitted["trained"]))
    return {"batch": size, "steps": steps, "seconds_a_step": (clock(device) - begin) / steps, "trained_parameters": trained, "loss": fitted["losses"][-1]}


@torch.no_grad()
def novel_views(model: Zero123, preset: str, device: str, batch: int | None, steps: int, count: int) -> dict:
    """A batch of views against one view at a time with the condition encoded for each, both with ``steps`` denoising steps."""
    from camerabooth.training import compute_context

    config = booth_config(preset)
    precision = "bf16" if device == "cpu" else config.precision
    size = batch or config.nvs_batch_size
    prepare(model, device, config.vae_slicing, config.offload)
    views = torch.from_numpy(photos(count)).permute(0, 3, 1, 2).to(device)[:, :3]
    targets = list(protocol_test_cameras().values())[:size]
    row: dict = {"batch": size, "denoising_steps_measured": steps}
    with compute_context(precision, torch.device(device))():
        begin = clock(device)
        features = model.encode_condition(views)
        row["seconds_encoding_photos"] = clock(device) - begin
        for name, count, chosen in (("batched", size, targets), ("single", 1, targets[:1])):
            times = []
            for denoising in (steps, 2 * steps):  # the difference is the denoising alone
                begin = clock(device)
                sample_views(model, features, CAMERAS[:count], chosen, denoising, config.guidance_scale, "near", count)
                times.append(clock(device) - begin)
            row[f"seconds_denoising_step_{name}"] = (times[1] - times[0]) / steps
            row[f"seconds_decoding_{name}"] = max(2 * times[0] - times[1], 0.0)
    every, full = row["seconds_encoding_photos"], config.nvs_steps
    batched = every + -(-84 // size) * (full * row["seconds_denoising_step_batched"] + row["seconds_decoding_batched"])
    single = 84 * (every / count + full * row["seconds_denoising_step_single"] + row["seconds_decoding_single"])
    return row | {"extrapolated_seconds_84_views_batched": batched, "extrapolated_seconds_84_views_one_at_a_time": single, "ratio": single / batched}


def sds(model: Zero123, preset: str, device: str, batch: int | None, steps: int, count: int) -> dict:
    """Score distillation: the gradient at one render, from an image to an image."""
    config_module, prior = (importlib.import_module(f"3D_Recon.threestudio.{name}") for name in ("config", "prior"))
    config = dataclasses.replace(config_module.ReconConfig(), **preset_settings(preset, "recon", with_weights=False))
    prepare(model, device, config.vae_slicing, config.offload)
    model.requires_grad_(False)
    names = [f"{k:03d}" for k in range(count)]
    guidance = prior.Guidance(model, dict(zip(names, photos(count))), dict(zip(names, CAMERAS)), config)
    generator = torch.Generator().manual_seed(0)
    begin = clock(device)
    for _ in range(steps):
        gradient = guidance.gradient(torch.rand(1, 3, guidance.size, guidance.size, generator=generator), guidance.random_camera(generator), 0.5, generator)
    return {"pixels": guidance.size, "steps": steps, "seconds_a_step": (clock(device) - begin) / steps, "gradient_finite": bool(torch.isfinite(gradient).all())}


def one(stage: str, arguments) -> dict:
    preset, device = arguments.preset, arguments.device
    dtype = DTYPES[booth_config(preset).weights_dtype]
    began = time.perf_counter()
    model = random_full_model(torch.bfloat16 if device == "cpu" else dtype)
    sizes = {name: sum(p.numel() for p in getattr(model, name).parameters()) for name in CONFIGS}
    made = time.perf_counter() - began
    row = globals()[stage](model, preset, device, arguments.batch, arguments.steps, arguments.photos)
    cuda = device.startswith("cuda")
    row["photos"] = arguments.photos
    row["peak_gb"] = (torch.cuda.max_memory_reserved() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 1e9
    row |= {"preset": preset, "stage": stage, "device": torch.cuda.get_device_name() if cuda else f"cpu, {torch.get_num_threads()} threads", "parameters": sizes,
            "seconds_making_weights": made, "torch": torch.__version__}  # fmt: skip
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--preset", default="full")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, help="pairs or views together (default: the preset's)")
    parser.add_argument("--photos", type=int, choices=(1, 2, 3), default=3, help="photos of the object")
    parser.add_argument("--steps", type=int, default=1, help="steps that are measured")
    parser.add_argument("--out", type=Path, help="write the rows to this JSON file")
    parser.add_argument("--record", action="store_true", help="keep the peaks in sap3d/presets/measured.json")
    arguments = parser.parse_args()
    if len(arguments.stage) == 1:
        rows = [one(arguments.stage[0], arguments)]
        print(json.dumps(rows[0]))
    else:
        rows = []
        for stage in arguments.stage:
            command = [sys.executable, "-m", "benchmarks.full_size", "--stage", stage, "--preset", arguments.preset, "--device", arguments.device, "--steps", str(arguments.steps), "--photos", str(arguments.photos)]
            done = subprocess.run(command + (["--batch", str(arguments.batch)] if arguments.batch else []), stdout=subprocess.PIPE, text=True)
            if done.returncode:
                raise SystemExit(f"{stage} ended with status {done.returncode}")
            rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
            print(json.dumps(rows[-1]), flush=True)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.out, rows)
    if arguments.record:
        path = FOLDER / "measured.json"
        known = json.loads(path.read_text()) if path.is_file() else {}
        known |= {f"{row['preset']} {row['stage']}": {"peak_gb": row["peak_gb"], "device": row["device"]} for row in rows}
        write_json(path, known)


if __name__ == "__main__":
    main()
