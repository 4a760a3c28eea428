"""What the base model can do without test-time training: ``python -m camerabooth.prior.evaluate --type GSO_dev --views 1 2 5``.

Zero-shot novel views of all objects of a type from their first N photos with the TRUE cameras, over the 84 views of the
protocol, beside repeating the first photo and beside the autoencoder alone (the truth encoded and decoded), which bounds
everything else. Reads ground truth; no stage does. ``--rows FILE`` stores the table as CSV; ``--sheets FOLDER`` stores
pictures: truth over novel views. Settings ``key=value`` are those of stage 2 that count here (``SETTINGS``).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Sequence

import numpy as np
import torch

from camerabooth.config import BoothConfig
from camerabooth.nvs import novel_views
from camerabooth.prior.config import settings_apart
from camerabooth.prior.truth import objects_of, true_cameras
from sap3d.cameras import Camera
from sap3d.config import load_config, resolve_device
from sap3d.errors import ArgumentParser, InputError, cli
from sap3d.images import composite_white, contact_sheet, load_input_views, load_rgb, resize, save_image
from sap3d.metrics.image import score_images
from sap3d.report import write_csv
from sap3d.results import markdown_table
from sap3d.scene import Scene
from sap3d.zero123 import Zero123, load_zero123
from sap3d.zero123.photos import photos_over_white
from sap3d.zero123.sampler import guess_views

SHEET_VIEWS = ("000", "015", "039", "042", "045", "072")
SETTINGS = ("device", "precision", "seed", "nvs_steps", "guidance_scale", "condition_strategy", "nvs_batch_size", "output_size")  # of BoothConfig that count here


def sampling_config(settings: Sequence[str]) -> BoothConfig:
    """Stage 2's configuration with ``key=value`` settings. Raises InputError for one that changes nothing here."""
    for item in settings:
        if item.partition("=")[0] not in SETTINGS:
            raise InputError(f"{item!r} changes nothing here; settings that do: {', '.join(SETTINGS)} (the model is given with --model)")
    return load_config(BoothConfig, None, settings)


def true_views(scene: Scene, every: int = 1) -> tuple[dict[str, Camera], dict[str, np.ndarray]]:
    """Cameras and pictures (S, S, 3) over white of every ``every``-th of an object's true test views. Raises InputError where there are none."""
    folder = scene.truth_test_dir
    names = sorted(path.stem for path in (folder / "poses").glob("*.npy"))[::every]
    if not names:
        raise InputError(f"{folder}: no true views there; dataset/gso.py and dataset/render.py make them")
    return true_cameras(folder / "poses", names), {name: load_rgb(folder / "images" / f"{name}.png") for name in names}


@torch.no_grad()
def through_autoencoder(model: Zero123, images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Images (S, S, 3) encoded and decoded at the model's size, back at their own."""
    batch = torch.from_numpy(np.stack(list(images.values()))).permute(0, 3, 1, 2).float()
    decoded = torch.cat([model.decode(model.encode_target(chunk.to(model.device))).cpu() for chunk in batch.split(28)]).permute(0, 2, 3, 1).numpy()
    return {name: resize(image, batch.shape[-1]) for name, image in zip(images, decoded)}


@torch.no_grad()
def first_guesses(model: Zero123, photos: torch.Tensor, cameras: list[Camera], targets: dict[str, Camera], size: int) -> dict[str, np.ndarray]:
    """What the model's renderer alone shows (S, S, 3) of the targets, before any diffusion; photos (N, 4, S, S)."""
    guesses = guess_views(model, model.encode_condition(photos[:, :3], photos[:, 3:]), cameras, list(targets.values()), size=size)
    return dict(zip(targets, guesses.cpu().permute(0, 2, 3, 1).numpy()))


def evaluate_object(model: Zero123, type_: str, name: str, views: list[int], config: BoothConfig, guess: bool = False) -> tuple[list[dict], np.ndarray]:
    """Rows of figures, one a way and number of views, and a picture: truth, then a row of novel views for each number. guess: of the first guesses alone too."""
    scene = Scene(type_, name, max(views))
    photos = load_input_views(scene)
    cameras = true_cameras(scene.truth_poses_dir, photos)
    targets, truth = true_views(scene)
    first = composite_white(resize(next(iter(photos.values())), 256))
    sets = {("repeated photo", 1, 0.0): {key: first for key in targets}, ("autoencoder", 0, 0.0): through_autoencoder(model, truth)}
    for count in views:
        chosen = list(photos)[:count]
        began = time.time()
        given = photos_over_white({k: photos[k] for k in chosen}).to(model.device)
        found = novel_views(model, given, {k: cameras[k] for k in chosen}, targets, config)
        sets["zero-shot", count, time.time() - began] = found
        if guess:
            began = time.time()
            found = first_guesses(model, given, [cameras[k] for k in chosen], targets, config.output_size)
            sets["first guess", count, time.time() - began] = found
    scores = score_images(truth, sets)
    rows = [
        {"object": name, "way": way, "views": count, **{key: round(value, 5) for key, value in s.compat().items()}, "seconds": round(seconds, 1)}
        for (way, count, seconds), s in scores.items()
    ]
    shown = [truth] + [images for (way, _, _), images in sets.items() if way == "zero-shot"]
    return rows, contact_sheet([[images[key] for key in SHEET_VIEWS] for images in shown], size=128)


def summary(rows: list[dict]) -> str:
    """Means over objects, a line a way and number of views."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["way"], row["views"]), []).append(row)
    lines = [
        [way, str(count or "-"), str(len(group))] + [f"{np.mean([r[key] for r in group]):.{digits}f}" for key, digits in (("psnr", 2), ("ssim", 3), ("lpips", 3), ("seconds", 1))]
        for (way, count), group in groups.items()
    ]
    return markdown_table(["novel views", "photos", "objects", "PSNR", "SSIM", "LPIPS", "seconds"], lines)


def main() -> None:
    parser = ArgumentParser(prog="python -m camerabooth.prior.evaluate", description=__doc__.split(":")[0])
    parser.add_argument("--type", default="GSO_demo")
    parser.add_argument("--objects", nargs="*", help="only these")
    parser.add_argument("--views", nargs="+", type=int, default=[1])
    parser.add_argument("--guess", action="store_true", help="the first guesses alone too, of a model that makes them")
    parser.add_argument("--model", help="model folder (default: the bundled one)")
    parser.add_argument("--rows", type=Path, help="CSV file to write")
    parser.add_argument("--sheets", type=Path, help="folder for pictures")
    parser.add_argument("settings", nargs="*", metavar="key=value", help=f"settings of stage 2's sampling, e.g. nvs_steps=10 ({', '.join(SETTINGS)})")
    words, settings = settings_apart(sys.argv[1:])
    arguments = parser.parse_args(words)
    if min(arguments.views) < 1:
        raise InputError("--views must be numbers of at least 1")
    config = sampling_config(arguments.settings + settings)
    model = load_zero123(arguments.model and Path(arguments.model), resolve_device(config.device))
    rows: list[dict] = []
    for name in arguments.objects or objects_of(arguments.type):
        found, sheet = evaluate_object(model, arguments.type, name, arguments.views, config, arguments.guess and model.multiplane is not None)
        rows += found
        print(name + ": " + "; ".join(f"{r['way']} {r['views'] or ''} {r['psnr']:.2f} dB {r['lpips']:.3f}" for r in found), flush=True)
        if arguments.sheets:
            save_image(arguments.sheets / f"{name}.png", sheet)
        if arguments.rows:
            write_csv(arguments.rows, rows)
    print("\n" + summary(rows))


if __name__ == "__main__":
    cli(main)
