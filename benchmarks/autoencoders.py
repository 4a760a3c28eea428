"""Is a closed-form autoencoder enough? The small preset's patch PCA beside trained autoencoders with latents as large, on held-out objects.

    python -m benchmarks.autoencoders --corpus dataset/corpus_cache dataset/corpus_cache_procedural --minutes 1 --type GSO_dev
        [--objects ...] [--every 5] [--ways ...] [--rows FILE.json] [--sheet FILE.png] [--curve FILE.csv] [--cpu-times] [--device auto]

    none           no autoencoder: the truth at the model's size, 128 pixels; the bound of all others
    pca_4          principal components of 4 x 4 patches, 12 of 48: latents of 32 x 32 x 12
    pca_8          of 8 x 8 patches, 48 of 192: 16 x 16 x 48, the bundled model's (sap3d/zero123/autoencoder.py)
    pca_8_decoder  the same latents; a convolutional decoder adds a correction to the closed form's picture
    vae            diffusers' AutoencoderKL from scratch, 16 x 16 x 48, its decoder as large as that one
    pca_8_both     (only if asked for) pca_8_decoder whose encoder is corrected too: a VAE's size that begins as the closed form

All latents have 12,288 numbers, a quarter of the picture's. The last three are trained for ``--minutes`` each, by L1 and LPIPS of views of
the corpus at the model's size. Measured as camerabooth.prior.evaluate measures the bundled one: every n-th of an object's true views over white, at 256 pixels,
PSNR pooled over the views and LPIPS-AlexNet fed [0, 1]. Reads ground truth. Rows, pictures and curve are written after every way.
"""

from __future__ import annotations

import copy
import itertools
import math
import os
import statistics
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

import sap3d.compat  # noqa: F401
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F

from camerabooth.prior.data import PairSource
from camerabooth.prior.evaluate import through_autoencoder
from camerabooth.prior.losses import lpips
from camerabooth.prior.truth import objects_of
from dataset.corpus_reader import CorpusReader
from sap3d.config import resolve_device
from sap3d.errors import ArgumentParser, InputError, cli
from sap3d.images import composite_white, contact_sheet, load_rgba, save_image
from sap3d.metrics.image import score_images
from sap3d.report import write_csv
from sap3d.scene import Scene, write_json
from sap3d.suite_parts import autoencoder_tables
from sap3d.zero123.autoencoder import PatchPCAAutoencoder

WAYS = ("none", "pca_4", "pca_8", "pca_8_decoder", "vae", "pca_8_both")
CHANNELS = {4: 12, 8: 48}  # latent channels by the side of a patch: as many numbers in all
FIT_IMAGES = 1280  # as many as camerabooth.prior.train fits the bundled one to
VIEWS_A_SET = 4  # of an object in a batch


@dataclass
class Options:
    size: int = 128  # pixels at which autoencoders work
    minutes: float = 1.0  # of training, of each that is trained
    batch: int = 96  # images a step
    widths: tuple[int, ...] = (32, 64, 128, 128)  # channels of encoder and decoder from the picture's size down to an eighth of it
    layers: int = 1  # residual blocks a level (the decoder has one more)
    learning_rate: float = 1e-3
    warmup: float = 0.05  # share of the time; then a cosine to zero
    perceptual: float = 0.25  # weight of LPIPS beside L1 of images in [0, 1]
    kl: float = 1e-6  # weight of the mean divergence of a latent number: enough that latents do not grow without bound
    seed: int = 0


class Autoencoder(nn.Module):
    """No autoencoder, and the base of the others: ``encode`` and ``decode`` of images (B, 3, size, size) in [-1, 1].

    ``encode_target`` and ``decode_target`` are what Zero123 does, for images in [0, 1] of any size from any device.
    """

    def __init__(self, size: int):
        super().__init__()
        self.size = size
        self.register_buffer("here", torch.empty(0), persistent=False)  # tells the device

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | float]:
        """Images as the decoder shows them, and the mean divergence of a latent number."""
        return self.decode(self.encode(images)), 0.0

    def encode_target(self, images: Tensor) -> Tensor:
        images = images.to(self.here.device)
        if images.shape[-1] != self.size:
            images = F.interpolate(images, (self.size,) * 2, mode="bilinear", align_corners=False, antialias=True)
        return self.encode(images * 2 - 1)

    def decode_target(self, latents: Tensor) -> Tensor:
        return (self.decode(latents).float() / 2 + 0.5).clamp(0, 1)


class PatchPCA(Autoencoder):
    """The closed form, of patches of ``patch`` pixels."""

    def __init__(self, size: int, images: Tensor, patch: int):
        super().__init__(size)
        self.pca = PatchPCAAutoencoder(patch, CHANNELS[patch]).fit(images * 2 - 1, 0.5)

    def encode(self, images: Tensor) -> Tensor:
        with _exact(images):
            return self.pca.encode(images.float()).latent_dist.mode()

    def decode(self, latents: Tensor) -> Tensor:
        with _exact(latents):
            return self.pca.decode(latents.float()).sample


class CorrectedPCA(PatchPCA):
    """The closed form of 8 x 8 patches and what a network adds to its pictures, and with ``both`` to its latents: nothing before training."""

    def __init__(self, size: int, images: Tensor, options: Options, both: bool = False):
        super().__init__(size, images, 8)
        network = _network(options)
        self.decoder = nn.Sequential(network.post_quant_conv, network.decoder)
        last = [network.decoder.conv_out]
        self.encoder = nn.Sequential(network.encoder, network.quant_conv) if both else None
        last += [network.quant_conv] if both else []
        for layer in last:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def encode(self, images: Tensor) -> Tensor:
        latents = super().encode(images)
        return latents if self.encoder is None else latents + self.encoder(images).chunk(2, 1)[0].float()

    def decode(self, latents: Tensor) -> Tensor:
        return super().decode(latents) + self.decoder(latents).float()


class TrainedVAE(Autoencoder):
    """A variational autoencoder from scratch: sampled in training, its mode when measured."""

    def __init__(self, size: int, options: Options):
        super().__init__(size)
        self.vae = _network(options)

    def encode(self, images: Tensor) -> Tensor:
        return self.vae.encode(images).latent_dist.mode()

    def decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents).sample

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode(images).latent_dist
        return self.decode(posterior.sample()), posterior.kl().float().mean() / posterior.mean[0].numel()


def _network(options: Options) -> AutoencoderKL:
    """Stable Diffusion's autoencoder, small: an eighth of the picture's size, attention there."""
    if len(options.widths) != 4 or any(width % 16 for width in options.widths):
        raise InputError(f"widths {options.widths}: use four multiples of 16, the latents have an eighth of the picture's size")
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=options.widths, layers_per_block=options.layers,
        latent_channels=CHANNELS[8], norm_num_groups=16, sample_size=options.size, scaling_factor=1.0,
    )  # fmt: skip


def _exact(like: Tensor):
    """Colours of the closed form are exact only in float32, whatever surrounds it."""
    return torch.autocast(like.device.type, enabled=False)


def images_of(source: PairSource, step: int) -> Tensor:
    """All views of a batch, colour over white (B, 3, S, S) in [0, 1]: nothing here looks from one view to another."""
    batch = source.batch(step)
    return torch.cat([batch["condition"], batch["target"]], 1).flatten(0, 1)[:, :3]


def build(way: str, images: Tensor, options: Options) -> Autoencoder:
    """An autoencoder before training; ``images`` (B, 3, S, S) in [0, 1]: what closed forms are fitted to."""
    torch.manual_seed(options.seed)
    if way == "none":
        return Autoencoder(options.size)
    if way == "vae":
        return TrainedVAE(options.size, options)
    if way in ("pca_4", "pca_8"):
        return PatchPCA(options.size, images, int(way[-1]))
    return CorrectedPCA(options.size, images, options, both=way == "pca_8_both")


def loss_of(model: Autoencoder, images: Tensor, options: Options) -> Tensor:
    """L1 and LPIPS of images (B, 3, S, S) in [0, 1] and their decoded form, and the divergence; networks in bfloat16 on a GPU."""
    with torch.autocast("cuda", torch.bfloat16) if images.device.type == "cuda" else nullcontext():
        decoded, divergence = model(images * 2 - 1)
    decoded = decoded.float() / 2 + 0.5  # not clamped: a pixel that is too white must learn of it
    return (decoded - images).abs().mean() + options.perceptual * lpips(decoded, images).mean() + options.kl * divergence


def train(model: Autoencoder, source: PairSource, options: Options, report=print) -> tuple[dict, list[dict]]:
    """Train for ``options.minutes``. Returns samples seen and images a second, and the curve, a row every two seconds."""
    model.train().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), options.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)
    seconds, curve = 60 * options.minutes, []
    began = last = time.perf_counter()
    samples, total, counted, timed = 0, 0.0, 0, 0
    for step in itertools.count():
        share = (time.perf_counter() - began) / seconds if step else 0.0
        if share >= 1 and step > 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = options.learning_rate * min(1.0, share / options.warmup) * (0.5 + 0.5 * math.cos(math.pi * min(share, 1.0)))
        images = images_of(source, step)
        loss = loss_of(model, images, options)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        samples, total, counted = samples + len(images), total + loss.detach(), counted + 1  # no number yet: that would wait for the GPU
        if step == 0:  # its rate is 0; kernels are chosen and loaded in it, which is nobody's training time
            float(loss.detach())
            began = last = time.perf_counter()
            samples, total, counted = 0, 0.0, 0
        elif time.perf_counter() - last > 2:
            mean = float(total) / counted  # waits for the GPU, so that the clock below tells what was done and not what was asked for
            last = time.perf_counter()
            timed, previous = samples, timed
            before = curve[-1]["seconds"] if curve else 0.0
            row = {"seconds": round(last - began, 2), "samples": samples, "loss": round(mean, 5), "learning_rate": round(group["lr"], 7)}
            curve.append(row | {"images_per_second": round((samples - previous) / max(last - began - before, 1e-9), 1)})
            report(" ".join(f"{k} {v}" for k, v in curve[-1].items()))
            total, counted = 0.0, 0
    float(loss.detach())  # the last steps are still on their way
    model.eval()
    return {"samples": samples, "images_per_second": round(samples / (time.perf_counter() - began), 1)}, curve


@torch.no_grad()
def measure(model: Autoencoder, truth: dict[str, dict[str, np.ndarray]], device: str) -> tuple[dict[str, dict], dict[str, dict[str, np.ndarray]]]:
    """Figures and decoded views of each object; ``truth``: images (S, S, 3) in [0, 1] by object and view."""
    # camerabooth.prior.evaluate's own code, for what stands here in the place of Zero123
    stand_in = SimpleNamespace(device=model.here.device, encode_target=model.encode_target, decode=lambda latents: model.decode_target(latents).cpu())
    decoded = {name: through_autoencoder(stand_in, images) for name, images in truth.items()}
    scores = {name: score_images(truth[name], {"": decoded[name]}, device=device)[""].compat() for name in truth}
    return {name: {key: round(value, 5) for key, value in score.items()} for name, score in scores.items()}, decoded


@torch.no_grad()
def cpu_times(model: Autoencoder, images: int = 4, repeats: int = 5) -> dict[str, float]:
    """Milliseconds of one thread to encode and to decode an image, the median of ``repeats``, in batches of ``images``."""
    model, threads = copy.deepcopy(model).cpu().eval(), torch.get_num_threads()
    batch = torch.rand(images, 3, model.size, model.size) * 2 - 1
    torch.set_num_threads(1)
    try:
        latents = model.encode(batch)
        return {f"cpu_{work.__name__}_ms": round(statistics.median(_seconds(work, x) for _ in range(repeats)) / images * 1e3, 3) for work, x in ((model.encode, batch), (model.decode, latents))}
    finally:
        torch.set_num_threads(threads)


def _seconds(work, argument: Tensor) -> float:
    begin = time.perf_counter()
    work(argument)
    return time.perf_counter() - begin


def compare(source: PairSource, truth: dict[str, dict[str, np.ndarray]], ways, options: Options, device: str, times: bool = False, report=print):
    """Yields row, curve and decoded views by object of one way after the other."""
    steps = range(-(-FIT_IMAGES // options.batch))
    # The processor fits, as in the bundled model's training: half a gigabyte in float64 that a small GPU may not have.
    fitted_to = torch.cat([images_of(source, step).cpu() for step in steps])[:FIT_IMAGES]
    for way in ways:
        model, curve, trained = build(way, fitted_to, options).to(device).eval(), [], {"samples": 0, "images_per_second": None}
        if any(True for _ in model.parameters()):
            trained, curve = train(model, source, options, lambda line: report(f"{way}: {line}"))
        objects, decoded = measure(model, truth, device)
        with torch.no_grad():
            _, channels, height, width = model.encode(torch.zeros(1, 3, options.size, options.size, device=device)).shape
        row = {
            "autoencoder": way, "latent": f"{height} x {width} x {channels}", "parameters": sum(tensor.numel() for tensor in model.state_dict().values()), **trained,
            "minutes": options.minutes if curve or trained["samples"] else 0.0, **{key: round(float(np.mean([found[key] for found in objects.values()])), 5) for key in ("psnr", "ssim", "lpips")},
            "views": min(map(len, truth.values())), "objects": objects, **(cpu_times(model) if times else {}),
            "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device, "torch": torch.__version__,
        }  # fmt: skip
        yield row, [{"autoencoder": way, **point} for point in curve], decoded


def true_views(type_: str, names: list[str], every: int) -> dict[str, dict[str, np.ndarray]]:
    """Every n-th of the true test views of objects, over white, (S, S, 3) in [0, 1] by object and view."""
    truth = {}
    for name in names:
        folder = Scene(type_, name, 1).truth_test_dir / "images"
        paths = sorted(folder.glob("*.png"))[::every]
        if not paths:
            raise InputError(f"{folder}: no true views there; dataset/gso.py and dataset/render.py make them")
        truth[name] = {path.stem: composite_white(load_rgba(path)) for path in paths}
    return truth


def load_source(folders: list[Path], options: Options, device: str) -> PairSource:
    """The training part of the corpus: mapped from disk, or in the GPU's memory."""
    corpora = [CorpusReader(folder, "train", size=options.size, workers=len(os.sched_getaffinity(0))) for folder in folders]
    return PairSource(corpora, options.batch // VIEWS_A_SET, VIEWS_A_SET - 1, options.seed, device=device if device.startswith("cuda") else None)


def main() -> None:
    parser = ArgumentParser(prog="python -m benchmarks.autoencoders", description=__doc__.split(":")[0])
    parser.add_argument("--corpus", type=Path, nargs="+", default=[Path("dataset/corpus_cache")], help="folders that python -m dataset.corpus wrote")
    parser.add_argument("--minutes", type=float, default=Options.minutes, help="of training, of each that is trained")
    parser.add_argument("--type", default="GSO_dev")
    parser.add_argument("--objects", nargs="+", help="default: all of the type")
    parser.add_argument("--every", type=int, default=5, help="measure every n-th of an object's true views")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS[:-1]))
    parser.add_argument("--batch", type=int, help=f"images a step, a multiple of {VIEWS_A_SET} (default: 96 on a GPU, 16 on a CPU)")
    parser.add_argument("--widths", type=int, nargs=4, default=list(Options.widths), help="channels of the networks' levels")
    parser.add_argument("--learning-rate", type=float, default=Options.learning_rate)
    parser.add_argument("--perceptual", type=float, default=Options.perceptual, help="weight of LPIPS beside L1")
    parser.add_argument("--seed", type=int, default=Options.seed)
    parser.add_argument("--rows", type=Path, help="JSON file for the figures")
    parser.add_argument("--sheet", type=Path, help="PNG file: truth, then each autoencoder, a view an object")
    parser.add_argument("--curve", type=Path, help="CSV file for the trainings")
    parser.add_argument("--cpu-times", action="store_true", help="milliseconds of one processor thread too")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    batch = arguments.batch or (96 if device.startswith("cuda") else 16)
    if batch < VIEWS_A_SET or batch % VIEWS_A_SET or arguments.every < 1 or arguments.minutes <= 0:
        raise InputError(f"--batch must be a multiple of {VIEWS_A_SET}, --every at least 1 and --minutes more than 0")
    options = Options(minutes=arguments.minutes, batch=batch, widths=tuple(arguments.widths), learning_rate=arguments.learning_rate, perceptual=arguments.perceptual, seed=arguments.seed)
    # LPIPS and the measurements in true float32; the networks are trained in bfloat16, which is as fast without.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    truth = true_views(arguments.type, arguments.objects or objects_of(arguments.type), arguments.every)
    source = load_source(arguments.corpus, options, device)
    print(f"{len(source)} objects to train on, {len(truth)} to measure with, {device}", flush=True)
    shown = {name: sorted(views)[len(views) // 2] for name, views in truth.items()}
    rows, curve, pictures = [], [], [[truth[name][view] for name, view in shown.items()]]
    for row, points, decoded in compare(source, truth, arguments.ways, options, device, arguments.cpu_times, partial(print, flush=True)):
        rows, curve = rows + [row], curve + points
        pictures.append([decoded[name][view] for name, view in shown.items()])
        print(f"{row['autoencoder']}: {row['psnr']:.2f} dB {row['lpips']:.4f}; " + "; ".join(f"{name} {found['psnr']:.2f} {found['lpips']:.4f}" for name, found in row["objects"].items()), flush=True)
        if arguments.rows:
            write_json(arguments.rows, rows)
        if arguments.sheet:
            save_image(arguments.sheet, contact_sheet(pictures, ["truth", *(done["autoencoder"] for done in rows)], size=256))
        if arguments.curve and curve:
            write_csv(arguments.curve, curve)
    if arguments.rows:
        print("\n" + autoencoder_tables(arguments.rows))


if __name__ == "__main__":
    cli(main)
