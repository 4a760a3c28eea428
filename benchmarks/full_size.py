"""Memory and time of every stage at the published size, with random weights of the true shape (860 M-parameter U-Net, CLIP ViT-L/14, VAE).

    python -m benchmarks.full_size --preset full --steps 5 --out rows.json                                one GPU
    python -m benchmarks.full_size --preset full --device cpu --batch 1 --photos 2 --out rows.json        one step each, at most --memory-gb
    python -m benchmarks.full_size --stages nvs --out rows.json                                           one stage: its row is replaced, the others stay

Each stage runs in a process of its own through the code of the pipeline: relposepp.estimate.estimate, camerabooth.training.fit,
camerabooth.nvs.novel_views, 3D_Recon's Reconstruction.one_step with its Guidance. On a GPU the memory is PyTorch's (reserved, peak), on a CPU the
process's largest resident size, all libraries included. A row is written as soon as it is measured. When all four are there, the
row ``object`` adds up the seconds of an object: measured steps times the preset's numbers of steps, an extrapolation and not a run.
--record keeps the peaks of a GPU with the preset's own batches in sap3d/presets/measured.json, from where errors and checks of cards take them.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import sap3d.compat  # noqa: F401
from benchmarks.rows import replace_row, stored
from camerabooth.config import BoothConfig
from relposepp.config import NetworkConfig, RelPoseConfig
from sap3d.cameras import Camera, protocol_test_cameras
from sap3d.config import resolve_device
from sap3d.errors import ArgumentParser, InputError, cli
from sap3d.field.views import render_view
from sap3d.presets import FOLDER, preset_settings
from sap3d.published.convert import build_part, published_scheduler
from sap3d.scene import write_json
from sap3d.zero123 import Zero123
from sap3d.zero123.memory import DTYPES, prepare

STAGES = ("relpose", "train", "novel_views", "sds")
LEFT_OUT = "loading the weights, the mesh and the evaluation"  # of the object's estimate
PUBLISHED = {
    "unet": {"sample_size": 32, "in_channels": 8, "out_channels": 4, "layers_per_block": 2, "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768,
             "attention_head_dim": 8, "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3},
    "vae": {"sample_size": 256, "latent_channels": 4, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "scaling_factor": 0.18215,
            "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4},
    "image_encoder": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 224, "patch_size": 14, "projection_dim": 768,
                      "hidden_act": "quick_gelu"},
    "cc_projection": {"token_dim": 768, "output_dim": 768},
}  # fmt: skip


SMALL = {  # the same classes, for a test of this program
    "unet": PUBLISHED["unet"] | {"sample_size": 8, "block_out_channels": (32, 32, 64, 64)},
    "vae": PUBLISHED["vae"] | {"sample_size": 64, "block_out_channels": (32, 32, 32, 32)},
    "image_encoder": PUBLISHED["image_encoder"] | {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2},
    "cc_projection": PUBLISHED["cc_projection"],
}
QUICK = {"small": {"booth": {"steps": 4, "steps_per_extra_view": 1, "nvs_steps": 3, "regulariser_objects": 1},
                   "recon": {"steps": 50, "grid": [8, 16, 24], "occupancy_cells": 16, "photo_sizes": [16, 32, 64], "render_size": 32, "turntable_frames": 2},
                   "relpose": {"starts": 200, "beam": 8, "candidates": 8, "azimuth_step_deg": 15.0, "elevation_step_deg": 15.0}}}  # fmt: skip


@dataclasses.dataclass
class Task:
    """What is measured: a preset's settings on a device. ``batch`` None: the preset's; ``size``: full, or small for a test of this program."""

    preset: str
    device: str
    batch: int | None
    steps: int
    photos: int
    size: str

    @property
    def configs(self) -> dict:
        return SMALL if self.size == "small" else PUBLISHED

    @property
    def pixels(self) -> int:
        return self.configs["vae"]["sample_size"]

    def settings(self, section: str, cls):
        config = dataclasses.replace(cls(), **(preset_settings(self.preset, section, with_weights=False) | QUICK.get(self.size, {}).get(section, {})))
        if self.device == "cpu" and getattr(config, "precision", "") == "fp16":
            config = dataclasses.replace(config, precision="bf16")
        return config

    def booth(self) -> BoothConfig:
        return self.settings("booth", BoothConfig)

    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device == "cpu" else DTYPES[self.booth().weights_dtype]

    def views(self) -> torch.Tensor:
        """Photos (N, 4, S, S) as the stages give them to the model, on the device."""
        return torch.from_numpy(photos(self.photos, self.pixels)).permute(0, 3, 1, 2).to(self.device)


def note(text: str) -> None:
    print(f"[full_size] {text}", file=sys.stderr, flush=True)


def random_model(configs: dict, dtype: torch.dtype) -> Zero123:
    """The published architecture at the size of ``configs`` with random weights, made in ``dtype`` at once: no fp32 copy ever exists."""
    block = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).to(dtype)
    parts = {}
    for name, config in configs.items():
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


def clock(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds_a_step(stamps: list[float]) -> float:
    """Mean of the steps that begin and end at ``stamps``, without the first one where there are several: it warms up."""
    return stamps[1] - stamps[0] if len(stamps) == 2 else (stamps[-1] - stamps[1]) / (len(stamps) - 2)


def relpose(task: Task) -> dict:
    """Stage 1 from photos to cameras, once and whole: RelPose++ of the published shape and the search."""
    from relposepp.estimate import estimate
    from relposepp.network import RelPose

    config = task.settings("relpose", RelPoseConfig)
    shape = NetworkConfig.published() if task.size == "full" else dataclasses.replace(NetworkConfig.published(), depth=1, mlp_width=64, image_size=64)
    torch.manual_seed(0)
    network = RelPose(shape).eval().to(task.device)
    network.precision = config.precision
    begin = clock(task.device)
    found = estimate(list(photos(task.photos, task.pixels)), network, config, task.device)
    row = {"parameters": sum(p.numel() for p in network.parameters()), "cameras": len(found.cameras)}
    return row | {"seconds_an_object": clock(task.device) - begin}


def train(task: Task) -> dict:
    """Test-time training of one object."""
    from camerabooth.camera_table import CameraTable
    from camerabooth.training import PhotoPairs, fit, total_steps

    preset = task.booth()
    size = task.batch or preset.batch_size + preset.regulariser_batch  # pairs of regulariser objects cost the same
    config = dataclasses.replace(preset, batch_size=size, regulariser_batch=0, steps=task.steps, steps_per_extra_view=0)
    model = random_model(task.configs, task.dtype())
    prepare(model, task.device, config.vae_slicing, config.offload, config.gradient_checkpointing)
    begin = clock(task.device)
    data = PhotoPairs(model, task.views(), [], config.mirror)
    a_view = (clock(task.device) - begin) / len(data.latents)
    note(f"train: {a_view:.3g} s to encode a view; {task.steps} steps of {size} pairs follow")
    table = CameraTable({f"{k:03d}": c for k, c in enumerate(CAMERAS[: task.photos])}).to(task.device)
    stamps = [clock(task.device)]
    with tempfile.TemporaryDirectory() as folder:
        fitted = fit(model, table, data, config, Path(folder) / "checkpoint.pt", on_step=lambda *_: stamps.append(clock(task.device)))
    step = seconds_a_step(stamps)
    trained = sum(p.numel() for n, p in model.named_parameters() if n in set(fitted["trained"]))
    encoded = len(data.latents) + 24 * preset.regulariser_objects
    steps = total_steps(preset, task.photos)
    parameters = {name: sum(p.numel() for n, p in getattr(model, name).named_parameters() if "lora_" not in n) for name in task.configs}
    return {"batch": size, "steps": task.steps, "seconds_a_step": step, "parameters": parameters, "trained_parameters": trained, "loss": fitted["losses"][-1], "seconds_encoding_a_view": a_view,
            "steps_an_object": steps, "views_encoded_an_object": encoded, "seconds_an_object": steps * step + encoded * a_view}  # fmt: skip


def novel_views(task: Task) -> dict:
    """A batch of views against one view at a time with the condition encoded for each, both with ``steps`` denoising steps and twice as many."""
    from camerabooth import nvs

    config = task.booth()
    model = random_model(task.configs, task.dtype())
    prepare(model, task.device, config.vae_slicing, config.offload)
    size = task.batch or config.nvs_batch_size
    targets = dict(list(protocol_test_cameras().items())[:size])
    row: dict = {"batch": size, "denoising_steps_measured": task.steps}

    def run(photos_used: int, views: int, steps: int) -> float:
        cameras = {f"{k:03d}": CAMERAS[k] for k in range(photos_used)}
        begin = clock(task.device)
        nvs.novel_views(model, task.views()[:photos_used], cameras, dict(list(targets.items())[:views]), dataclasses.replace(config, nvs_steps=steps, nvs_batch_size=size))
        return clock(task.device) - begin

    run(1, size if task.device != "cpu" else 1, 1)  # warms up
    for name, photos_used, views in (("batched", task.photos, size), ("single", 1, 1)):
        short, long = run(photos_used, views, task.steps), run(photos_used, views, 2 * task.steps)
        row[f"seconds_denoising_step_{name}"] = (long - short) / task.steps  # the difference is the denoising alone
        row[f"seconds_encoding_and_decoding_{name}"] = max(2 * short - long, 0.0)
        note(f"novel views, {name}: {row[f'seconds_denoising_step_{name}']:.3g} s a denoising step of {views}")
    # Encoding is counted for every batch: a little too much, and for one view at a time as it was done.
    batched, single = (count * (config.nvs_steps * row[f"seconds_denoising_step_{name}"] + row[f"seconds_encoding_and_decoding_{name}"]) for name, count in (("batched", -(-84 // size)), ("single", 84)))
    return row | {"steps_an_object": config.nvs_steps, "seconds_an_object": batched, "extrapolated_seconds_84_views_one_at_a_time": single, "ratio": single / batched}


def sds(task: Task) -> dict:
    """Stage 3's step at its last and dearest level, with score distillation and without; and one of the final renders."""
    config_module, optimise = (importlib.import_module(f"3D_Recon.threestudio.{name}") for name in ("config", "optimise"))
    preset = task.settings("recon", config_module.ReconConfig)
    config = dataclasses.replace(preset, sds_every=1)
    model = random_model(task.configs, task.dtype())
    prepare(model, task.device, config.vae_slicing, config.offload)
    model.requires_grad_(False)
    names = [f"{k:03d}" for k in range(task.photos)]
    white = {name: np.ones((config.warm_start_size, config.warm_start_size, 3), np.float32) for name in protocol_test_cameras()}
    recon = optimise.Reconstruction(dict(zip(names, photos(task.photos, task.pixels))), dict(zip(names, CAMERAS)), config, white if config.warm_start else None, model, task.device)
    guidance, found = recon.guidance, {}
    recon.step = max(config.steps - 2 * (task.steps + 1), int(np.ceil(config.steps * max(config.level_starts[-1], config.sds_start))))
    for name, judge in (("without_sds", None), ("with_sds", guidance)):
        recon.guidance = judge
        stamps = [clock(task.device)]
        for _ in range(task.steps + 1):  # one more than is counted: the first enters the level
            losses = recon.one_step()
            stamps.append(clock(task.device))
            note(f"reconstruction step {name.replace('_', ' ')}: {stamps[-1] - stamps[-2]:.3g} s")
        found[name] = seconds_a_step(stamps)
    begin = clock(task.device)
    render_view(recon.field, recon.occupancy, CAMERAS[0], config.render_size)
    render = clock(task.device) - begin
    distilled = sum(k % preset.sds_every == 0 for k in range(int(np.ceil(preset.steps * preset.sds_start)), preset.steps)) if preset.sds else 0
    renders = 84 + preset.turntable_frames
    total = preset.steps * found["without_sds"] + distilled * (found["with_sds"] - found["without_sds"]) + renders * render
    return {"pixels": guidance.size, "steps": task.steps, "seconds_a_step": found["with_sds"], "seconds_a_step_without_sds": found["without_sds"], "seconds_a_render": render,
            "gradient_finite": bool(torch.isfinite(losses["sds"])), "steps_an_object": preset.steps, "sds_steps_an_object": distilled, "renders_an_object": renders,
            "seconds_an_object": total}  # fmt: skip


def one(stage: str, task: Task) -> dict:
    """The row of a stage, measured in this process."""
    began, cuda = time.perf_counter(), task.device.startswith("cuda")
    note(f"{stage}: making random weights of the {task.size} size, then measuring on {task.device}")
    row = globals()[stage](task)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    row["peak_gb"] = torch.cuda.max_memory_reserved(task.device) / 1e9 if cuda else resident
    row |= {"preset": task.preset, "stage": stage, "size": task.size, "photos": task.photos, "device": torch.cuda.get_device_name(task.device) if cuda else f"cpu, {torch.get_num_threads()} threads",
            "peak_resident_gb": resident, "seconds_in_all": time.perf_counter() - began, "torch": torch.__version__}  # fmt: skip
    return rounded(row)


def rounded(row: dict) -> dict:
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}


def whole_object(rows: list[dict]) -> dict | None:
    """The estimate for an object from the rows of all stages; None while one is missing."""
    stages = {row["stage"]: row for row in rows}
    if not set(STAGES) <= set(stages):
        return None
    seconds = {stage: stages[stage]["seconds_an_object"] for stage in STAGES}
    same = {key: stages["train"][key] for key in ("preset", "size", "photos", "device")}
    return same | rounded({"stage": "object", "extrapolated": True, "seconds": sum(seconds.values()), "minutes": sum(seconds.values()) / 60,
                           **{f"seconds_{stage}": value for stage, value in seconds.items()}, "peak_gb": max(stages[stage]["peak_gb"] for stage in STAGES), "left_out": LEFT_OUT})  # fmt: skip


def keep(path: Path, row: dict) -> None:
    """Put a row into the file, for that of the same stage, preset, size, photos and device; and the object's row when it can be made."""
    alike = ("preset", "size", "photos", "device")
    rows = replace_row(path, row, (*alike, "stage"))
    whole = whole_object([other for other in rows if all(other[key] == row[key] for key in alike)])
    if whole:
        replace_row(path, whole, (*alike, "stage"))
        print(json.dumps(whole), flush=True)


def record(row: dict) -> None:
    path = FOLDER / "measured.json"
    write_json(path, stored(path, dict) | {f"{row['preset']} {row['stage']}": {"peak_gb": row["peak_gb"], "device": row["device"]}})


def limit_memory(gigabytes: float) -> None:
    """Allocations beyond so much end in an error line: private memory of the process, which on a CPU holds all tensors."""
    size = int(gigabytes * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def main() -> None:
    parser = ArgumentParser(prog="python -m benchmarks.full_size", description=__doc__.splitlines()[0])
    parser.add_argument("--stages", nargs="+", choices=(*STAGES, "nvs"), default=list(STAGES), help="nvs: novel_views")
    parser.add_argument("--preset", default="full")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:K")
    parser.add_argument("--batch", type=int, help="pairs or views together (default: the preset's)")
    parser.add_argument("--photos", type=int, choices=(1, 2, 3), default=3, help="photos of the object")
    parser.add_argument("--steps", type=int, default=1, help="steps that are measured")
    parser.add_argument("--size", choices=("full", "small"), default="full", help="small: to try this program")
    parser.add_argument("--memory-gb", type=float, default=22.0, help="on a CPU: a stage that needs more ends with an error")
    parser.add_argument("--out", type=Path, help="add the rows to this JSON file")
    parser.add_argument("--record", action="store_true", help="keep the peaks in sap3d/presets/measured.json")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # measure in this process
    arguments = parser.parse_args()
    stages = ["novel_views" if stage == "nvs" else stage for stage in arguments.stages]
    if arguments.photos == 1 and "train" in stages:
        raise InputError("--photos 1: one photo has no pairs to train on; use 2 or 3, or leave train out of --stages")
    if arguments.record and arguments.size != "full":
        raise InputError("--record: the small size is no measurement; leave one of them out")
    if arguments.steps < 1 or arguments.batch is not None and arguments.batch < 1 or not arguments.memory_gb > 0:
        raise InputError("--steps and --batch must be at least 1, and --memory-gb more than 0")
    device = resolve_device(arguments.device)
    if arguments.record and (not device.startswith("cuda") or arguments.batch is not None):
        raise InputError("--record: checks of cards take the peaks for those of a GPU with the preset's own batches; use --device cuda and leave --batch out")
    for path, kind in ((arguments.out, list), (FOLDER / "measured.json" if arguments.record else None, dict)):
        if path is not None:
            stored(path, kind)  # a damaged file is found before anything is measured
    task = Task(arguments.preset, device, arguments.batch, arguments.steps, arguments.photos, arguments.size)
    if arguments.one:
        if task.device == "cpu":
            limit_memory(arguments.memory_gb)
        print(json.dumps(one(stages[0], task)))
        return
    same = ["--preset", task.preset, "--device", task.device, "--steps", str(task.steps), "--photos", str(task.photos), "--size", task.size, "--memory-gb", str(arguments.memory_gb)]
    same += ["--batch", str(task.batch)] if task.batch else []
    for stage in stages:
        done = subprocess.run([sys.executable, "-m", "benchmarks.full_size", "--one", "--stages", stage, *same], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(done.returncode)  # it has said why
        row = json.loads(done.stdout.strip().splitlines()[-1])
        print(json.dumps(row), flush=True)
        if arguments.out:
            keep(arguments.out, row)
        if arguments.record and stage != "relpose":
            record(row)


if __name__ == "__main__":
    cli(main, lower="--batch, or raise --memory-gb")
