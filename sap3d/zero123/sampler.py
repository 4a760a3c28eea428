"""Sampling novel views: DDIM with all condition views at once, or with one drawn anew at every step (stochastic conditioning)."""

from __future__ import annotations

from functools import partial
from typing import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from sap3d.cameras import Camera, pose_condition
from sap3d.errors import InputError
from sap3d.zero123.model import ConditionFeatures, Zero123

OwnGuess = Callable[[], Tensor]  # renders the model's own first guesses of the targets
Guide = Callable[[Sequence[Camera], OwnGuess, int], Tensor]  # of target cameras: first guesses (B, 3, S, S) of that size in the place of the model's own

STRATEGIES = ("auto", "all", "nearest", "near", "random", "first")


def resolve_strategy(strategy: str, model: Zero123) -> str:
    """``auto`` is ``all`` for a model that takes several conditions at once and ``near`` for one that does not."""
    if strategy not in STRATEGIES:
        raise InputError(f"condition strategy {strategy!r} is unknown: use one of {', '.join(STRATEGIES)}")
    if strategy == "auto":
        return "all" if model.takes_sets else "near"
    if strategy == "all" and not model.takes_sets:
        raise InputError("condition strategy 'all' needs a model with a plane sweep; use near, nearest, random or first")
    return strategy


def condition_probabilities(targets: Sequence[Camera], conditions: Sequence[Camera], strategy: str, sharpness: float = 4.0) -> np.ndarray:
    """(targets, conditions): the probability with which a condition view serves a target at a step.

    ``random``: uniform. ``near``: proportional to exp(sharpness * cosine of the angle between the viewing directions).
    ``nearest`` and ``first``: one view always.
    """
    if strategy not in STRATEGIES[2:]:
        raise ValueError(f"strategy must be one of {STRATEGIES[2:]}, got {strategy!r}")
    count = len(conditions)
    if strategy == "first":
        return np.tile(np.eye(count)[0], (len(targets), 1))
    if strategy == "random":
        return np.full((len(targets), count), 1 / count)
    directions = [np.stack([c.center() / c.radius for c in cameras]) for cameras in (targets, conditions)]
    cosine = directions[0] @ directions[1].T
    if strategy == "nearest":
        return np.eye(count)[cosine.argmax(1)]
    weights = np.exp(sharpness * (cosine - cosine.max(1, keepdims=True)))
    return weights / weights.sum(1, keepdims=True)


def sampling_timesteps(model: Zero123, steps: int) -> Tensor:
    """Descending time steps of a DDIM run with the model's own spacing."""
    model.scheduler.set_timesteps(steps)
    return model.scheduler.timesteps.clone()


def ddim_step(
    model: Zero123, latents: Tensor, timesteps: Tensor, step: int, tokens: Tensor, concat: Tensor, guidance_scale: float, eta: float = 0.0, fresh: Tensor | None = None
) -> Tensor:  # fmt: skip
    """Latents (B, C, h, w) after step ``step`` of a guided DDIM run (arXiv 2010.02502, eq. 12; sigma of eq. 16, ``eta`` times DDPM's).

    fresh: standard normal noise of the latents' shape, which a step with ``eta`` above 0 puts in.
    """
    times = torch.full((len(latents),), int(timesteps[step]), device=model.device)
    out = model.guided(latents, times, tokens, concat, guidance_scale)
    original, noise = model.predicted_original(out, latents, times), model.predicted_noise(out, latents, times)
    alpha = model.alphas_cumprod[timesteps[step + 1]] if step + 1 < len(timesteps) else final_alpha(model)
    if not eta:
        return alpha.sqrt() * original + (1 - alpha).sqrt() * noise
    now = model.alphas_cumprod[timesteps[step]]
    variance = eta**2 * (1 - alpha) / (1 - now) * (1 - now / alpha)
    return alpha.sqrt() * original + (1 - alpha - variance).clamp_min(0).sqrt() * noise + variance.sqrt() * fresh


def final_alpha(model: Zero123) -> Tensor:
    """Where the last step leads: to the clean image with a schedule that reaches pure noise (the small model), to the schedule's
    first level with the published one, whose sampler does so."""
    config = model.scheduler.config
    clean = config.set_alpha_to_one or config.rescale_betas_zero_snr
    return torch.ones_like(model.alphas_cumprod[0]) if clean else model.alphas_cumprod[0]


@torch.no_grad()
def sample_views(
    model: Zero123,
    features: ConditionFeatures,
    condition_cameras: Sequence[Camera],
    target_cameras: Sequence[Camera],
    steps: int = 25,
    guidance_scale: float = 3.0,
    strategy: str = "auto",
    batch_size: int = 12,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
    guide: Guide | None = None,
    eta: float = 0.0,
) -> Tensor:
    """Images (T, 3, S, S) in [0, 1] of the object from the target cameras; S is the model's size, or that of the photos where
    the model makes first guesses from larger ones.

    ``features`` are those of the condition images, in the order of ``condition_cameras``. The noise of a view depends
    on the seed and on the view's index alone, so that batch size does not change the result beyond rounding.
    guide: makes the first guesses of a model that begins with one; eta: see ``ddim_step``.
    """
    strategy = resolve_strategy(strategy, model)
    timesteps = sampling_timesteps(model, steps)
    if strategy == "all":
        choices = np.tile(np.arange(len(condition_cameras)), (len(target_cameras), 1, 1))
    else:
        probabilities = condition_probabilities(target_cameras, condition_cameras, strategy)
        draw = lambda i, p: np.random.default_rng([seed, i]).choice(len(condition_cameras), size=(steps, 1), p=p)  # noqa: E731
        choices = np.stack([draw(i, p) for i, p in enumerate(probabilities)])
    # (targets, steps or 1, M): the conditions of a target at a step; constant ones are prepared once.
    shape = (model.latent_channels, model.latent_size, model.latent_size)
    size = None if features.photos is None else features.photos.shape[-1]
    poses = torch.tensor(np.stack([[pose_condition(t, c) for c in condition_cameras] for t in target_cameras]), dtype=torch.float32)
    images = []
    for start in range(0, len(target_cameras), batch_size):
        index = torch.arange(start, min(start + batch_size, len(target_cameras)))
        generators = [torch.Generator().manual_seed(seed * 100_003 + int(i)) for i in index]
        noise = lambda: torch.stack([torch.randn(shape, generator=g) for g in generators]).to(model.device)  # noqa: B023, E731
        latents = noise()
        prepared = guess = None
        for step in range(len(timesteps)):
            if prepared is None or choices.shape[1] > 1:
                chosen = torch.as_tensor(choices[start : start + len(index), min(step, choices.shape[1] - 1)])
                conditions, pose = features[chosen.to(model.device)], poses[index[:, None], chosen].to(model.device)
                guess = None
                if model.multiplane is not None:
                    own = partial(model.first_guess, conditions, pose, size)
                    guess = own() if guide is None else guide([target_cameras[int(i)] for i in index], own, size or model.image_size).to(model.device)
                prepared = model.conditions(conditions, pose, guess)
            latents = ddim_step(model, latents, timesteps, step, *prepared, guidance_scale, eta, noise() if eta else None)
        images.append(model.decode_beside(latents, guess))
        if on_batch:
            on_batch(int(index[-1]) + 1)
    return torch.cat(images)


@torch.no_grad()
def guess_views(model: Zero123, features: ConditionFeatures, conditions: Sequence[Camera], targets: Sequence[Camera], *_, size: int | None = None) -> Tensor:
    """The first guess (T, 3, S, S) of views, called as ``sample_views`` is; size: None for the model's."""
    pose = torch.tensor(np.stack([[pose_condition(t, c) for c in conditions] for t in targets]), dtype=torch.float32)
    every = torch.arange(len(conditions), device=features.concat.device)
    return torch.cat([model.first_guess(features[every.expand(len(p), -1)], p, size) for p in pose.to(every.device).split(6)])
