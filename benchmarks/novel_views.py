"""84 novel views in batches with the photos encoded once, against the released way: one view at a time, the condition encoded for each.

    python -m benchmarks.novel_views [--object teddy_bear] [--views 5] [--steps 1 10] [--model FOLDER] [--device auto]

Both ways in one run with the same sampler steps, seeds and conditions; ``--share`` measures every n-th view of the slow way
and says so. From three photos on the pipeline's own way too, which is guided by a radiance field of the photos (camerabooth/photo_field.py): other pictures, the fit's
seconds counted. Prints seconds, the ratio, the largest difference of the pictures and the peak resident memory.
"""

from __future__ import annotations

import argparse
import resource
import time
from functools import partial

import numpy as np
import torch

from camerabooth.config import BoothConfig
from camerabooth.photo_field import LEAST_VIEWS, PhotoField
from sap3d.cameras import Camera, camera_from_pose, protocol_test_cameras
from sap3d.config import resolve_device
from sap3d.errors import cli
from sap3d.images import load_input_views
from sap3d.scene import Scene
from sap3d.zero123 import load_zero123
from sap3d.zero123.photos import photos_over_white
from sap3d.zero123.sampler import sample_views


def timed(work, device: str):
    begin = time.perf_counter()
    result = work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return result, time.perf_counter() - begin


@torch.no_grad()
def compare(model, photos: torch.Tensor, conditions: list[Camera], targets: list[Camera], steps: int, share: int, device: str, fit=None) -> dict:
    """Seconds of all ways for all ``targets``; the slow one from every ``share``-th of them. fit: makes the field of the photos, or None."""

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
        features = model.encode_condition(photos[:, :3], photos[:, 3:])
        return sample_views(model, features, conditions, targets, steps, 1.0, guide=field.guess)

    sample_views(model, model.encode_condition(photos[:, :3], photos[:, 3:]), conditions, targets[:2], 1, 1.0)  # warm up
    fast, seconds = timed(together, device)
    slow, seconds_slow = timed(one_by_one, device)
    extra = {"seconds guided": timed(guided, device)[1]} if fit else {}
    # The noise of a view depends on its index in the call, which is always 0 one by one: only the first picture is the same.
    return {"steps": steps, "seconds": seconds, "seconds one by one": seconds_slow * len(targets) / len(targets[::share]), "difference": float((fast[0] - slow[0]).abs().max())} | extra


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.novel_views", description=__doc__.split(":")[0])
    parser.add_argument("--object", default="teddy_bear")
    parser.add_argument("--views", type=int, default=5)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--share", type=int, default=7, help="the slow way measures every n-th view")
    parser.add_argument("--model", help="model folder (default: the bundled one)")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    model = load_zero123(arguments.model, device)
    scene = Scene("GSO_demo", arguments.object, arguments.views)
    images = load_input_views(scene)
    photos = photos_over_white(images).to(device)
    cameras = {name: camera_from_pose(np.load(scene.truth_poses_dir / f"{name}.npy")) for name in images}
    conditions = list(cameras.values())
    fit = partial(PhotoField.of, images, cameras, None, BoothConfig().field_steps, device=device) if len(images) >= LEAST_VIEWS and model.multiplane is not None else None
    targets = list(protocol_test_cameras().values())
    for steps in arguments.steps:
        row = compare(model, photos, conditions, targets, steps, arguments.share, device, fit)
        ratio = row["seconds one by one"] / row["seconds"]
        print(f"{steps} steps: 84 views in {row['seconds']:.1f} s; one by one {row['seconds one by one']:.1f} s (from every {arguments.share}th view), {ratio:.2f} times as long; "
              f"largest difference of the first view {row['difference']:.1e}", flush=True)  # fmt: skip
        if fit:
            print(f"    guided by the field of the photos, its fit included: {row['seconds guided']:.1f} s, one by one {row['seconds one by one'] / row['seconds guided']:.2f} times as long", flush=True)
    peak = torch.cuda.max_memory_allocated() / 1e9 if device.startswith("cuda") else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"peak memory {peak:.1f} GB ({'GPU' if device.startswith('cuda') else 'resident'}), {torch.get_num_threads()} threads")


if __name__ == "__main__":
    cli(main)
