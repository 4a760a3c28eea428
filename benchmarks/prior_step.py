"""One training step of the bundled prior (``part=both``), as it is and with compiled parts, in one run.

    python -m benchmarks.prior_step [--targets 48] [--photos 1 2 4] [--steps 5] [--profile 12] [--device auto]

The model is the bundled one, the views are random (the time does not depend on them). Prints milliseconds a step, targets a second,
peak memory and, with ``--profile``, the kernels that take the most time. ``--ways``: parts that ``torch.compile`` has made, joined by +, as
``compile`` of camerabooth.prior.train takes them.
"""

from __future__ import annotations

import time
from functools import partial

import torch

from camerabooth.prior.config import PriorConfig
from camerabooth.prior.data import relative_poses
from camerabooth.prior.losses import joint_loss
from camerabooth.prior.train import compile_parts
from sap3d.config import resolve_device
from sap3d.errors import ArgumentParser, InputError, cli
from sap3d.scene import BUNDLED_ZERO123
from sap3d.zero123 import Zero123, load_zero123


def random_batch(groups: int, targets: int, photos: int, size: int, device: str) -> dict[str, torch.Tensor]:
    """A batch as camerabooth.prior.data makes it, of discs of random colours seen from random cameras."""
    generator = torch.Generator().manual_seed(0)
    line = torch.linspace(-1, 1, size)
    disc = ((line[:, None].square() + line.square()) < 0.5).float()
    colour = torch.rand(groups, photos + targets, 3, 1, 1, generator=generator)
    views = torch.cat([1 - disc * colour, disc.expand(groups, photos + targets, 1, -1, -1)], 2)
    poses = torch.rand(groups, photos + targets, 3, generator=generator) * torch.tensor([1.5, 6.2, 0.5]) + torch.tensor([0.6, 0.0, 1.3])
    pose = torch.from_numpy(relative_poses(poses[:, photos:, None].numpy(), poses[:, None, :photos].numpy()))
    return {"condition": views[:, :photos].to(device), "target": views[:, photos:].to(device), "pose": pose.to(device)}


def step(model: Zero123, batch: dict, config: PriorConfig, device: str) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=device.startswith("cuda")):
        loss = joint_loss(model, batch, generator, config.drop_condition, config.pose_noise_deg, config)
    loss.backward()
    for parameter in model.parameters():
        parameter.grad = None


def timed(model: Zero123, batch: dict, config: PriorConfig, device: str, steps: int) -> tuple[float, float, float]:
    """Seconds of the first step, of a later one, and peak memory in GB (of a GPU; 0 on a processor)."""
    wait = partial(torch.cuda.synchronize, device) if device.startswith("cuda") else lambda: None
    seconds = []
    wait()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(steps + 1):
        begin = time.perf_counter()
        step(model, batch, config, device)
        wait()
        seconds.append(time.perf_counter() - begin)
    later = sorted(seconds[1:])[(len(seconds) - 1) // 2]
    return seconds[0], later, torch.cuda.max_memory_allocated(device) / 1e9 if device.startswith("cuda") else 0.0


def profile(model: Zero123, batch: dict, config: PriorConfig, device: str, rows: int) -> str:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recorded

    cuda = device.startswith("cuda")
    with recorded(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as run:
        step(model, batch, config, device)
    return run.key_averages().table(sort_by="self_cuda_time_total" if cuda else "self_cpu_time_total", row_limit=rows, max_name_column_width=60)


def main() -> None:
    parser = ArgumentParser(prog="python -m benchmarks.prior_step", description="Time of one training step of the prior, plain and with compiled parts")
    parser.add_argument("--targets", type=int, default=48, help="target views a step, four an object: the next multiple of four below is measured")
    parser.add_argument("--photos", type=int, nargs="+", default=[1, 2, 4], help="condition photos a target")
    parser.add_argument("--noises", type=int, default=5, help="noises a target")
    parser.add_argument("--steps", type=int, default=5, help="steps timed, after a first one")
    parser.add_argument("--profile", type=int, default=0, metavar="ROWS", help="list this many kernels of a step with the first number of photos")
    parser.add_argument("--ways", nargs="+", default=["plain", "composite"], help="plain, or parts joined by +: composite, renderer, unet")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    groups = arguments.targets // 4
    if groups < 1 or min(arguments.photos) < 1 or arguments.noises < 1 or arguments.steps < 1 or arguments.profile < 0:
        raise InputError("--targets must be at least 4, --photos, --noises and --steps at least 1 and --profile at least 0")
    device, targets = resolve_device(arguments.device), 4 * groups
    config = PriorConfig(part="both", noises_per_target=arguments.noises)
    for way in arguments.ways:
        model = load_zero123(BUNDLED_ZERO123).to(device)
        for part in (model.unet, model.cc_projection, model.multiplane, model.image_encoder.clip):
            part.train().requires_grad_(True)
        if way != "plain":
            compile_parts(model, way.split("+"))
        for photos in arguments.photos:
            batch = random_batch(groups, 4, photos, model.image_size, device)
            first, later, memory = timed(model, batch, config, device, arguments.steps)
            print(f"{way}, {photos} photos, {targets} targets: {1000 * later:.0f} ms a step, {targets / later:.0f} targets a second, first step {first:.1f} s, {memory:.1f} GB", flush=True)
            if arguments.profile and photos == arguments.photos[0]:
                print(profile(model, batch, config, device, arguments.profile), flush=True)


if __name__ == "__main__":
    cli(main)
