"""What the small prior's condition is worth: patch tokens or the pooled one, frozen ImageNet features or an encoder from scratch.

    python -m benchmarks.conditions --train --minutes 1.3 --steps 700 [--corpus FOLDER ...] [--type GSO_dev --every 4] [key=value ...]

Four models that differ in ``tokens`` and ``trunk`` alone are trained by the training command, each in its own process, with the same
data, noises and number of steps: side by side on a GPU, one after the other on a CPU. Without renderer and plane sweep
(``multiplane=0 planes=0``, the published concatenation), which would hide what the tokens bring. Then each one's averaged weights paint views of
the corpus's validation objects, and with --type of scanned ones, from one photo with the true cameras. ``OUT/conditions.json`` gets
a row for each model, kind of objects and guidance, ``OUT/curves.csv`` the training curves. Without --train: measures what is in OUT.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Sequence

import numpy as np

from camerabooth.prior.config import PriorConfig, settings_apart
from camerabooth.prior.truth import objects_of
from dataset.corpus_reader import CorpusReader
from sap3d.config import load_config
from sap3d.errors import ArgumentParser, InputError, cli
from sap3d.report import write_csv
from sap3d.scene import REPOSITORY, read_json, write_json

if TYPE_CHECKING:  # PyTorch is imported where it is needed: processes that decode the corpus begin with this file
    import torch

    from sap3d.cameras import Camera
    from sap3d.zero123 import Zero123

ARMS = tuple((tokens, trunk) for trunk in ("alexnet", "scratch") for tokens in ("patches", "pooled"))
SETTINGS = [
    "part=unet", "planes=0", "multiplane=0", "sets=[1.0]", "groups_per_step=32", "targets_per_group=4", "noises_per_target=2", "learning_rate=4e-4", "warmup_steps=100",
    "log_every=25", "validate_every=1000000000", "checkpoint_every=1000000000",
]  # fmt: skip
GUIDANCE = (1.0, 2.0)
SIZE = 256  # of the pictures that are compared


@dataclass
class Views:
    """Views to paint: of what, from which photo. ``photos`` (N, 4, S, S), colour over white and coverage; ``which`` (T,): the photo of
    each target; ``pose`` (T, 8); ``truth``: T pictures (SIZE, SIZE, 3) keyed OBJECT/VIEW, in that order."""

    name: str
    photos: torch.Tensor
    which: torch.Tensor
    pose: torch.Tensor
    truth: dict[str, np.ndarray]


# --- training ---------------------------------------------------------------------------------------------------------
def settings(arm: tuple[str, str], arguments: argparse.Namespace) -> list[str]:
    """What the training command is given for one model; the rate falls over the last 40 % of the steps."""
    tokens, trunk = arm
    own = [f"tokens={tokens}", f"trunk={trunk}", f"out={arguments.out / f'{tokens}_{trunk}'}", f"corpus=[{','.join(map(str, arguments.corpus))}]"]
    return SETTINGS + own + [f"max_steps={arguments.steps}", f"decay_steps={round(0.4 * arguments.steps)}"] + arguments.settings


def start(arm: tuple[str, str], arguments: argparse.Namespace, threads: int) -> subprocess.Popen:
    """The training command of one model, without a terminal; it ends with this process."""
    folder = arguments.out / "_".join(arm)
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "camerabooth.prior.train", "--max-minutes", str(arguments.minutes), f"threads={threads}", *settings(arm, arguments)]
    with open(folder / "log.txt", "a") as log:
        return subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | {"SAP3D_DRIVER": str(os.getpid())})


@contextmanager
def trained(arms: Sequence[tuple[str, str]], arguments: argparse.Namespace, threads: int):
    """The trainings of some models, which run while the block does; at its end they are waited for. Raises InputError where one
    failed; none is left behind, whatever happens."""
    running = {}
    try:
        running.update((arm, start(arm, arguments, threads)) for arm in arms)
        yield
        for arm, process in running.items():
            if process.wait() != 0:
                log = arguments.out / "_".join(arm) / "log.txt"
                raise InputError(f"{log}: the training ended with status {process.returncode} ({(log.read_text().splitlines() or ['no output'])[-1]})")
    finally:
        for process in running.values():
            if process.poll() is None:
                process.terminate()
        for process in running.values():
            process.wait()


def write_curves(out: Path) -> None:
    """The curves of all models in one file."""
    rows = []
    for tokens, trunk in ARMS:
        path = out / f"{tokens}_{trunk}" / "curve.csv"
        if path.is_file():
            with open(path, newline="") as stream:
                rows += [{"tokens": tokens, "trunk": trunk, **row} for row in csv.DictReader(stream)]
    if rows:
        write_csv(out / "curves.csv", rows)


# --- views ------------------------------------------------------------------------------------------------------------
def gather(name: str, objects: Sequence[tuple[str, torch.Tensor, Camera, dict[str, Camera], dict[str, np.ndarray]]]) -> Views:
    """Views of objects: name, photo (4, S, S) and its camera, cameras and pictures of the targets by their names."""
    import torch

    from sap3d.cameras import pose_condition
    from sap3d.images import resize

    which = [k for k, item in enumerate(objects) for _ in item[3]]
    pose = [pose_condition(target, camera) for _, _, camera, targets, _ in objects for target in targets.values()]
    pictures = {f"{item}/{key}": truth[key] for item, _, _, targets, truth in objects for key in targets}
    with ThreadPoolExecutor() as pool:
        truth = dict(zip(pictures, pool.map(partial(resize, size=SIZE), pictures.values())))
    return Views(name, torch.stack([item[1] for item in objects]), torch.tensor(which), torch.tensor(np.stack(pose), dtype=torch.float32), truth)


def corpus_views(corpora: Sequence[CorpusReader], targets: int) -> Views:
    """``targets`` views of every validation object from one other, all drawn once and for all."""
    from camerabooth.prior.data import over_white
    from sap3d.cameras import Camera

    found, rng = [], np.random.default_rng(0)
    for corpus in corpora:
        for row, name in enumerate(corpus.names):
            first, *others = rng.permutation(corpus.views)[: targets + 1].tolist()
            camera = {v: Camera(float(corpus.polar_rad[row, v]), float(corpus.azimuth_rad[row, v]), float(corpus.radius[row, v])) for v in (first, *others)}
            images = {v: over_white(np.array(corpus.images[row, v])) for v in camera}
            truth = {f"{v:03d}": images[v][:3].permute(1, 2, 0).numpy() for v in others}
            found.append((name, images[first], camera[first], {f"{v:03d}": camera[v] for v in others}, truth))
    return gather("corpus validation", found)


def scan_views(type_: str, names: Sequence[str], every: int) -> Views:
    """Every ``every``-th of the protocol's views of objects of a type, from their first photo."""
    from camerabooth.prior.evaluate import true_views
    from camerabooth.prior.truth import true_cameras
    from sap3d.images import load_input_views
    from sap3d.scene import Scene
    from sap3d.zero123.photos import photos_over_white

    found = []
    for name in names:
        scene = Scene(type_, name, 1)
        photos = load_input_views(scene)
        targets, truth = true_views(scene, every)
        found.append((name, photos_over_white(photos)[0], next(iter(true_cameras(scene.truth_poses_dir, photos).values())), targets, truth))
    return gather(type_, found)


def paint(model: Zero123, views: Views, steps: int, guidance: float, batch: int = 256) -> dict[str, np.ndarray]:
    """Pictures of all views by DDIM, keyed as ``views.truth``; their noises depend on a view's number alone. Batches go across objects, as
    ``sample_views``, which serves one object, would leave a GPU idle."""
    import torch

    from camerabooth.training import compute_context
    from sap3d.images import resize
    from sap3d.zero123.sampler import ddim_step, sampling_timesteps

    photos, times, images = views.photos.to(model.device), sampling_timesteps(model, steps), []
    shape = (model.latent_channels, model.latent_size, model.latent_size)
    with torch.no_grad(), compute_context("auto", model.device)():
        features = model.encode_condition(photos[:, :3], photos[:, 3:])
        for index in torch.arange(len(views.which)).split(batch):
            latents = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(int(i))) for i in index]).to(model.device)
            prepared = model.conditions(features[views.which[index].to(model.device)], views.pose[index].to(model.device))
            for step in range(len(times)):
                latents = ddim_step(model, latents, times, step, *prepared, guidance)
            images.append(model.decode(latents).cpu())
    with ThreadPoolExecutor() as pool:
        return dict(zip(views.truth, pool.map(partial(resize, size=SIZE), torch.cat(images).permute(0, 2, 3, 1).numpy())))


# --- measuring --------------------------------------------------------------------------------------------------------
def averaged(arm: tuple[str, str], arguments: argparse.Namespace, small) -> tuple:
    """(training module with the averaged weights in its model, steps done); ``small``: any batches of the corpus, the checkpoint has all weights."""
    from camerabooth.prior.train import PriorModule, build, check_same, load_weights, read_checkpoint

    config = load_config(PriorConfig, None, settings(arm, arguments))
    checkpoint = Path(config.out) / "last.ckpt"
    if not checkpoint.is_file():
        raise InputError(f"{checkpoint}: no checkpoint to measure; give --train")
    check_same(config, checkpoint, config.MODEL)
    state = read_checkpoint(checkpoint)
    module = PriorModule(build(config, small), config)
    load_weights(module, state.get("state_dict", {}), checkpoint)
    module.averaged_model()
    return module.eval(), state["global_step"]


def measure(arguments: argparse.Namespace, corpora: Sequence[CorpusReader], kinds: Sequence[Views], device: str) -> list[dict]:
    """A row of figures for every model, kind of objects and guidance. Figures are means over objects of those of an object's views
    (``ImageScores.compat``), as ``camerabooth.prior.evaluate`` has them."""
    import torch

    from camerabooth.prior.data import PairSource
    from camerabooth.prior.validate import validation_loss
    from sap3d.metrics.image import psnr, score_images

    source, small = (PairSource(corpora, groups, 4, 0, augment=False, device=place) for groups, place in ((16, device if device != "cpu" else None), (1, None)))
    rows, painted = [], {views.name: {} for views in kinds}
    for arm in ARMS:
        module, steps = averaged(arm, arguments, small)
        module, config = module.to(device), module.config
        one = {"tokens": arm[0], "trunk": arm[1], "steps": steps, "samples": steps * config.groups_per_step * config.targets_per_group * config.noises_per_target}
        one["validation_loss"] = round(validation_loss(module.model, source, module.loss, arguments.loss_batches), 5)
        for views in kinds:
            for guidance in GUIDANCE:
                painted[views.name][arm, guidance] = paint(module.model, views, arguments.ddim_steps, guidance)
                rows.append((one, views, arm, guidance))
    scores = {views.name: score_images(views.truth, painted[views.name], SIZE, device, batch=64) for views in kinds}
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"
    return [figures(scores[views.name][arm, guidance], psnr) | one | {"views": views.name, "guidance": guidance, "ddim_steps": arguments.ddim_steps, "device": name, "torch": torch.__version__}
            for one, views, arm, guidance in rows]  # fmt: skip


def figures(scores, psnr) -> dict:
    """PSNR, SSIM and LPIPS as means over objects, and each object's."""
    items = np.array([name.rsplit("/", 1)[0] for name in scores.names])
    each = {}
    for item in np.unique(items):
        own = items == item
        each[str(item)] = [round(float(x), 5) for x in (psnr(scores.squared_error[own].mean()), scores.ssim[own].mean(), scores.lpips_compat[own].mean())]
    means = {key: round(float(value), 5) for key, value in zip(("psnr", "ssim", "lpips"), np.mean(list(each.values()), 0))}
    return means | {"objects": len(each), "targets": len(items), "by_object": each}


def table(path: Path) -> str:
    """The rows of a JSON file as a Markdown table. What each model has more than the first one of the same views and guidance: the mean over objects
    and its standard error, of one training each."""
    from sap3d.results import markdown_table

    rows, first, lines = read_json(path), {}, []
    if not rows:
        raise InputError(f"{path}: no rows of benchmarks.conditions there")
    for row in sorted(rows, key=lambda row: (row["views"], row["guidance"])):
        base = first.setdefault((row["views"], row["guidance"]), row)
        gain = np.array([np.subtract(row["by_object"][item], base["by_object"][item]) for item in base["by_object"]])
        error = gain.std(0, ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else np.zeros(3)
        more = ["-", "-"] if row is base else [f"{gain.mean(0)[k]:+.{digits}f} ± {error[k]:.{digits}f}" for k, digits in ((0, 2), (2, 4))]
        lines.append([f"{row['views']} ({row['objects']})", row["guidance"], row["tokens"], row["trunk"], row["steps"], row["samples"], f"{row['validation_loss']:.4f}",
                      f"{row['psnr']:.2f}", f"{row['ssim']:.3f}", f"{row['lpips']:.3f}", *more])  # fmt: skip
    return markdown_table(["objects", "guidance", "tokens", "trunk", "steps", "samples", "validation loss", "PSNR", "SSIM", "LPIPS", "PSNR more", "LPIPS more"], lines)


def main() -> None:
    parser = ArgumentParser(prog="python -m benchmarks.conditions", description=__doc__.split(":")[0])
    parser.add_argument("--train", action="store_true", help="train the four models first, or go on with them")
    parser.add_argument("--minutes", type=float, default=1.3, help="a training stops after this time, done or not")
    parser.add_argument("--steps", type=int, default=700, help="optimiser steps of each model")
    parser.add_argument("--out", type=Path, default=Path(".work/conditions"))
    parser.add_argument("--corpus", type=Path, nargs="+", default=[Path("dataset/corpus_cache")])
    parser.add_argument("--targets", type=int, default=6, help="views of each validation object")
    parser.add_argument("--type", help="scanned objects of this type too")
    parser.add_argument("--objects", nargs="*", default=[], help="only these of it")
    parser.add_argument("--every", type=int, default=4, help="every n-th of their 84 views")
    parser.add_argument("--ddim-steps", type=int, default=10)
    parser.add_argument("--loss-batches", type=int, default=16, help="of the validation loss, of 64 targets each")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the training command, for all models")
    words, more = settings_apart(sys.argv[1:])
    arguments = parser.parse_args(words)
    arguments.settings += more
    for name in ("steps", "targets", "every", "ddim_steps", "loss_batches"):
        if getattr(arguments, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(arguments, name)} must be at least 1")
    arguments.out = arguments.out.resolve()
    arguments.corpus = [folder.resolve() for folder in arguments.corpus]
    size = load_config(PriorConfig, None, settings(ARMS[0], arguments)).image_size  # unusable settings are refused before hours of work
    scanned = (arguments.objects or objects_of(arguments.type)) if arguments.type else []
    cores = os.cpu_count() or 1
    corpora = {part: [CorpusReader(folder, part, size, cores if cores > 4 else 1) for folder in arguments.corpus] for part in ("train", "validation")}
    import torch  # after the corpus is decoded, which needs none of it

    from sap3d.config import resolve_device

    device = resolve_device("auto")
    if arguments.train and device == "cpu":
        for arm in ARMS:
            with trained([arm], arguments, torch.get_num_threads()):
                pass
    with trained(ARMS if arguments.train and device != "cpu" else [], arguments, max(cores // len(ARMS), 1)):
        kinds = [corpus_views(corpora["validation"], arguments.targets)] + ([scan_views(arguments.type, scanned, arguments.every)] if scanned else [])
    write_curves(arguments.out)
    write_json(arguments.out / "conditions.json", measure(arguments, corpora["validation"], kinds, device))
    print(table(arguments.out / "conditions.json"))


if __name__ == "__main__":
    cli(main)
