"""Measured constants of a trained model: how far first guesses are off, and how much of the U-Net's correction to believe.

``python -m camerabooth.prior.calibrate --base MODEL --renderer MODEL --out MODEL``: the first model with the renderer of first
guesses of the second, and constants measured anew. The renderer can so be trained alone, from nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import torch
from torch import Tensor

from camerabooth.prior.data import PairSource, to_device
from sap3d.errors import ArgumentParser, InputError, cli
from sap3d.zero123 import ConditionFeatures, Zero123, load_zero123
from sap3d.zero123.model import load_multiplane


def ink(views: Tensor) -> Tensor:
    """Colour over white and coverage (..., 4, S, S) as ink, that is 1 - colour, and coverage."""
    return torch.cat([1 - views[..., :3, :, :], views[..., 3:, :, :]], -3)


def condition_ink(batch: dict) -> Tensor:
    """Ink and coverage (G K, M, 4, S, S) of the conditions of every target of a batch."""
    return ink(batch["condition"]).repeat_interleave(batch["target"].shape[1], 0)


def condition_features(model: Zero123, batch: dict) -> ConditionFeatures:
    """Features (G K, M, ...) of the conditions of every target of a batch (camerabooth.prior.data)."""
    groups, count = batch["condition"].shape[:2]
    condition = batch["condition"].flatten(0, 1)
    features = model.encode_condition(condition[:, :3], condition[:, 3:])
    return features[torch.arange(groups * count, device=condition.device).view(groups, count).repeat_interleave(batch["target"].shape[1], 0)]


@torch.no_grad()
def measure_residual(model: Zero123, source: PairSource, batches: int = 40) -> None:
    """Variance of the truth's latents about the guess's: sets ``MultiplaneRenderer.residual_variance``."""
    total, model = 0.0, model.eval()
    for step in range(batches):
        batch = to_device(source.batch(step), model.device)
        guess = model.multiplane(condition_ink(batch), batch["pose"].flatten(0, 1))
        left = model.encode_target((1 - guess[:, :3]).clamp(0, 1)) - model.encode_target(batch["target"].flatten(0, 1)[:, :3])
        total = total + left.square().mean((0, 2, 3))
    model.multiplane.residual_variance.copy_(total / batches)


@torch.no_grad()
def measure_gain(model: Zero123, source: PairSource, batches: int = 8, report: Callable[[str], None] | None = None) -> None:
    """Sets ``Zero123.correction_gain``: for each bin of noise levels and each latent channel the factor in 0 .. 1 on the U-Net's
    output u that leaves the least squared error, <u, d> / <u, u> with d = target - linear guess.

    A U-Net that has seen little adds noise of its own to what it knows; the factor takes that back on average over
    ``source``, views of objects that it was not trained on.
    """
    model = model.eval()
    model.correction_gain.fill_(1.0)
    bins = len(model.correction_gain)
    products, squares, errors = (torch.zeros(bins, model.latent_channels, dtype=torch.float64) for _ in range(3))
    for step in range(batches):
        batch = to_device(source.batch(step), model.device)
        prepared = model.conditions(condition_features(model, batch), batch["pose"].flatten(0, 1))
        latents = model.encode_target(batch["target"].flatten(0, 1)[:, :3])
        generator = torch.Generator().manual_seed(step)
        for k in range(bins):
            t = torch.randint(k * model.num_timesteps // bins, (k + 1) * model.num_timesteps // bins, (len(latents),), generator=generator).to(model.device)
            if k == bins - 1:
                t[::2] = model.num_timesteps - 1  # where sampling begins, and with one step ends
            noise = torch.randn(latents.shape, generator=generator).to(model.device)
            noisy = model.add_noise(latents, noise, t)
            linear = model.linear_guess(noisy, t, prepared[1])
            output = model.predict_prepared(noisy, t, *prepared) - linear
            wanted = model.training_target(latents, noise, t) - linear
            products[k] += (output * wanted).double().sum((0, 2, 3)).cpu()
            squares[k] += output.double().square().sum((0, 2, 3)).cpu()
            errors[k] += wanted.double().square().sum((0, 2, 3)).cpu()
    gain = (products / squares.clamp_min(1e-12)).clamp(0, 1).mul(1000).round() / 1000  # as they are stored
    model.correction_gain.copy_(gain)
    if report is not None:
        plain, damped = (1 + ((squares - 2 * products).sum(1) / errors.sum(1))), 1 + ((gain.square() * squares - 2 * gain * products).sum(1) / errors.sum(1))
        for k in range(bins):
            report(f"noise levels {k / bins:.1f} to {(k + 1) / bins:.1f}: error beside the linear guess's {plain[k]:.3f}, with the factors {damped[k]:.3f}; mean factor {gain[k].mean():.2f}")


def with_renderer(base: Zero123, renderer: Path, train: PairSource, validation: PairSource, report: Callable[[str], None] | None = None) -> Zero123:
    """``base`` with the renderer of the model folder ``renderer`` in the place of its own. Raises InputError where one of them has none or they do not fit."""
    new = load_multiplane(renderer)
    if base.multiplane is None:
        raise InputError("the base model has no renderer of first guesses, so its U-Net cannot take one; train it with part=unet")
    if new.config.latent_channels != base.latent_channels or new.config.condition_size != base.image_size:
        raise InputError(f"{renderer}: its renderer is for {new.config.latent_channels} latent channels and photos of {new.config.condition_size} pixels, the base model has {base.latent_channels} and {base.image_size}")
    base.multiplane = new.to(base.device).eval().requires_grad_(False)
    measure_residual(base, train)
    measure_gain(base, validation, report=report)
    return base


def main() -> None:
    from dataset.corpus_reader import CorpusReader

    parser = ArgumentParser(prog="python -m camerabooth.prior.calibrate", description="Put another renderer of first guesses into a model and measure its constants")
    parser.add_argument("--base", type=Path, required=True, help="model folder that gives everything else")
    parser.add_argument("--renderer", type=Path, required=True, help="model folder whose renderer is taken")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write; may be the base's")
    parser.add_argument("--corpus", nargs="+", default=["dataset/corpus_cache"], help="folders that python -m dataset.corpus wrote")
    arguments = parser.parse_args()
    model = load_zero123(arguments.base)
    sets = (0.25, 0.25, 0.2, 0.1, 0.2)
    train, validation = (PairSource([CorpusReader(folder, part, model.image_size) for folder in arguments.corpus], 8, 2, 0, sets, part == "train") for part in ("train", "validation"))
    with_renderer(model, arguments.renderer, train, validation, print).save(arguments.out, int8=True)


if __name__ == "__main__":
    cli(main)
