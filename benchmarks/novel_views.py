"""84 novel views in batches with the photos encoded once, against the released way: one view at a time, the condition encoded for each.

    python -m benchmarks.novel_views [--object teddy_bear] [--views 5] [--steps 1 10] [--model FOLDER] [--device auto]

Both ways in one run with the same sampler steps, seeds and conditions; ``--share`` measures every n-th view of the slow way
and says so. From two photos on the pipeline's own way too, which is guided by a radiance field of the photos (camerabooth/photo_field.py): other pictures. Its
seconds are those of ``camerabooth.nvs.photo_field`` too: the fit, and with two or three photos the 42 first guesses that it is fitted to. Prints
seconds, the ratio, the largest difference of the pictures, the time of a guided pair of U-Net evaluations and the peak resident memory. Reads true poses.
"""

from __future__ import annotations

import resource
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Callable, Mapping

import numpy as np
import torch

from camerabooth.config import BoothConfig
from camerabooth.nvs import photo_field
from camerabooth.photo_field import PhotoField
from camerabooth.prior.truth import true_cameras
from camerabooth.training import compute_context
from sap3d.cameras import Camera, pose_condition, protocol_test_cameras
from sap3d.config import resolve_device
from sap3d.errors import ArgumentParser, InputError, cli
from sap3d.images import load_input_views
from sap3d.scene import Scene, write_cameras
from sap3d.zero123 import load_zero123
from sap3d.zero123.photos import photos_over_white
from sap3d.zero123.sampler import sample_views


def timed(work, device: str):
    """What ``work`` returns, and its seconds: of a GPU, from when it has nothing else to do until it is done."""
    wait = partial(torch.cuda.synchronize, device) if device.startswith("cuda") else lambda: None
    wait()
    begin = time.perf_counter()
    result = work()
    wait()
    return result, time.perf_counter() - begin


def pipeline_field(model, images: Mapping[str, np.ndarray], cameras: Mapping[str, Camera]) -> PhotoField | None:
    """The field that stage 2 makes of photos (straight RGBA) with these cameras, and no mirror plane; None where it makes none."""
    with tempfile.TemporaryDirectory() as folder:
        write_cameras(Path(folder) / "cameras.yaml", cameras)
        return photo_field(model, images, Path(folder) / "cameras.yaml", BoothConfig())


@torch.no_grad()
def compare(model, photos: torch.Tensor, conditions: list[Camera], targets: list[Camera], steps: int, share: int, device: str, fit: Callable[[], PhotoField | None]) -> dict:
    """Seconds of all ways for all ``targets``; the slow one from every ``share``-th of them. fit: makes the field of the photos, or None where the pipeline has none."""

    def together():
        features = model.encode_condition(photos[:, :3], photos[:, 3:])
        return sample_views(model, features, conditions, targets, steps, 1.0)

    def one_by_one():
        views = []
        for target in targets[::share]:
            features = model.encode_condition(photos[:, :3], photos[:, 3:])
            views.append(sample_views(model, features, conditions, [target], steps, 1.0, batch_size=1))
        return torch.cat(views)

    def guided():
        with torch.enable_grad():
            field = fit()
        if field is None:
            return None
        features = model.encode_condition(photos[:, :3], photos[:, 3:])
        return sample_views(model, features, conditions, targets, steps, 1.0, guide=field.guess)

    sample_views(model, model.encode_condition(photos[:, :3], photos[:, 3:]), conditions, targets[:2], 1, 1.0)  # warm up
    fast, seconds = timed(together, device)
    slow, seconds_slow = timed(one_by_one, device)
    views, seconds_guided = timed(guided, device)
    extra = {} if views is None else {"seconds guided": seconds_guided}
    # The noise of a view depends on its index in the call, which is always 0 one by one: only the first picture is the same.
    return {"steps": steps, "seconds": seconds, "seconds one by one": seconds_slow * len(targets) / len(targets[::share]), "difference": float((fast[0] - slow[0]).abs().max())} | extra


@torch.no_grad()
def guided_pair_seconds(model, photos: torch.Tensor, condition: Camera, target: Camera, device: str, times: int = 20) -> float:
    """Median seconds of one denoising evaluation with classifier-free guidance (conditional and unconditional, one batch) of a view from one photo."""
    with compute_context("auto", model.device)():
        features = model.encode_condition(photos[:1, :3], photos[:1, 3:]).small
        pose = torch.from_numpy(pose_condition(target, condition))[None].float().to(device)
        tokens, concat = model.conditions(features, pose)
        latents, t = torch.zeros_like(model.encode_target(features.concat[:, :3])), torch.tensor([model.num_timesteps // 2], device=device)
        pair = partial(model.guided, latents, t, tokens, concat, 3.0)
        return float(np.median([timed(pair, device)[1] for _ in range(times + 3)][3:]))


def main() -> None:
    parser = ArgumentParser(prog="python -m benchmarks.novel_views", description=__doc__.split(":")[0])
    parser.add_argument("--object", default="teddy_bear")
    parser.add_argument("--views", type=int, default=5)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--share", type=int, default=7, help="the slow way measures every n-th view")
    parser.add_argument("--model", help="model folder (default: the bundled one)")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    if arguments.share < 1 or min(arguments.steps) < 1:
        raise InputError("--share and --steps must be at least 1")
    device = resolve_device(arguments.device)
    scene = Scene("GSO_demo", arguments.object, arguments.views)
    images = load_input_views(scene)
    cameras = true_cameras(scene.truth_poses_dir, images)
    model = load_zero123(arguments.model, device)
    photos = photos_over_white(images).to(device)
    conditions, fit = list(cameras.values()), partial(pipeline_field, model, images, cameras)
    targets = list(protocol_test_cameras().values())
    for steps in arguments.steps:
        row = compare(model, photos, conditions, targets, steps, arguments.share, device, fit)
        ratio = row["seconds one by one"] / row["seconds"]
        print(f"{steps} steps: 84 views in {row['seconds']:.1f} s; one by one {row['seconds one by one']:.1f} s (from every {arguments.share}th view), {ratio:.2f} times as long; "
              f"largest difference of the first view {row['difference']:.1e}", flush=True)  # fmt: skip
        if "seconds guided" in row:
            print(f"    guided by the field of the photos, all that makes it included: {row['seconds guided']:.1f} s, one by one {row['seconds one by one'] / row['seconds guided']:.2f} times as long", flush=True)
    pair = guided_pair_seconds(model, photos, conditions[0], targets[20 % len(targets)], device)
    print(f"a guided pair of U-Net evaluations: {1000 * pair:.0f} ms", flush=True)
    peak = torch.cuda.max_memory_allocated(device) / 1e9 if device.startswith("cuda") else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"peak memory {peak:.1f} GB ({'GPU' if device.startswith('cuda') else 'resident'}), {torch.get_num_threads()} threads")


if __name__ == "__main__":
    cli(main)
