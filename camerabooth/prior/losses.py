"""What the prior is trained to do: the renderer's loss, the diffusion loss, and both at once."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from camerabooth.prior.calibrate import condition_features, condition_ink, ink
from camerabooth.prior.config import PriorConfig
from camerabooth.prior.data import jitter_poses
from camerabooth.training import denoise_at_random, diffusion_error
from sap3d.metrics.image import LpipsAlex
from sap3d.zero123 import Zero123


def diffusion_loss(model: Zero123, batch: dict, generator: torch.Generator, drop: float, snr_gamma: float, noises: int = 1) -> Tensor:
    """Mean weighted error of the prediction for targets of sets of conditions (camerabooth.prior.data).

    Conditions are dropped with probability ``drop`` each: tokens, concatenation, or both.
    """
    latents = model.encode_target(batch["target"].flatten(0, 1)[:, :3])
    return diffusion_error(model, condition_features(model, batch), latents, batch["pose"].flatten(0, 1), generator, drop, snr_gamma, noises).mean()


def guess_loss(model: Zero123, batch: dict, generator: torch.Generator, size: int, noise_deg: list[float], perceptual: float = 0.0) -> Tensor:
    """Error of the first guess, ink and coverage at ``size`` pixels; cameras off by one of the spreads ``noise_deg``.

    perceptual: weight of LPIPS-AlexNet between the colours over white, both enlarged to the size of the views: a guess that
    minimises the squared error alone is a mean of what could be there, softer than anything that could.
    """
    pose = jitter_poses(batch["pose"], noise_deg, generator).flatten(0, 1)
    return guess_error(model.multiplane(condition_ink(batch), pose, size), batch["target"].flatten(0, 1), perceptual)


def guess_error(guess: Tensor, target: Tensor, perceptual: float) -> Tensor:
    """``guess_loss`` of guesses (B, 4, s, s), ink and coverage, of views (B, 4, S, S), colour over white and coverage."""
    truth = nn.functional.interpolate(ink(target), guess.shape[-2:], mode="area")
    error = guess - truth
    loss = (error.square() + 0.1 * error.abs()).mean()
    if perceptual > 0:
        full = target.shape[-1]
        seen, true = (nn.functional.interpolate(1 - x[:, :3].float(), (full, full), mode="bilinear") for x in (guess, truth))
        loss = loss + perceptual * lpips(seen, true).mean()
    return loss


def joint_loss(model: Zero123, batch: dict, generator: torch.Generator, drop: float, noise_deg: list[float], config: PriorConfig) -> Tensor:
    """``guess_loss`` at the views' own size, and the diffusion loss beside the same guesses: one look at the photos serves both, and the
    diffusion model learns beside the renderer that it will have. Nothing flows from the second into the renderer.

    The first noise of each target is that where sampling begins. What is predicted there is what a run of one step shows,
    and counts by its LPIPS distance from the truth too (``view_perceptual``).
    """
    target = batch["target"].flatten(0, 1)
    pose = jitter_poses(batch["pose"], noise_deg, generator).flatten(0, 1)
    guess = model.multiplane(condition_ink(batch), pose, target.shape[-1])
    shown = (1 - guess[:, :3]).float().clamp(0, 1).detach()
    noises = config.noises_per_target
    with torch.autocast(target.device.type, enabled=False):
        latents = model.encode_target(target[:, :3])
    out, noisy, t, wanted = denoise_at_random(model, condition_features(model, batch), latents, pose, generator, drop, noises, shown, first_from_noise=True)
    loss = guess_error(guess, target, config.guess_perceptual) + config.diffusion_weight * (out - wanted).square().mean()
    if config.view_perceptual > 0:
        with torch.autocast(target.device.type, enabled=False):
            views = model.decode_beside(model.predicted_original(out[::noises], noisy[::noises], t[::noises]), shown)
        loss = loss + config.view_perceptual * lpips(views, target[:, :3]).mean()
    return loss


def lpips(views: Tensor, truth: Tensor) -> Tensor:
    """LPIPS-AlexNet (B,) of images (B, 3, S, S) in [0, 1], in float32."""
    distance = perceptual_distance(views.device)
    with torch.autocast(views.device.type, enabled=False):
        return distance.distance(*(distance.features(x.float() * 2 - 1) for x in (views, truth)))


@functools.lru_cache(maxsize=2)
def perceptual_distance(device: torch.device) -> LpipsAlex:
    return LpipsAlex(device)
