"""Test-time training: the networks learn the photos while the diffusion loss refines the cameras."""

from __future__ import annotations

import math
import pickle
import time
import warnings
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from camerabooth.camera_table import CameraTable
from camerabooth.config import BoothConfig
from sap3d.cameras import Camera, pose_condition
from sap3d.errors import InputError, explaining, first_line
from sap3d.interrupt import finish_step_first
from sap3d.plateau import settled
from sap3d.progress import Progress
from sap3d.regularisers import RegulariserObject
from sap3d.scene import atomic_path
from sap3d.zero123 import ConditionFeatures, Zero123
from sap3d.zero123.lora import add_lora, is_lora

_CHECKPOINT_SECONDS = 20.0


def trained_parameters(model: Zero123, choice: str) -> list[str]:
    """Names (of ``model.named_parameters()``) that test-time training changes."""
    if choice not in BoothConfig.CHOICES["trained"]:
        raise InputError(f"trained={choice!r} is unknown: use one of {', '.join(BoothConfig.CHOICES['trained'])}")
    names = [name for name, _ in model.named_parameters()]
    chosen = [name for name in names if name.startswith("cc_projection.")]
    if choice == "unet":
        chosen += [name for name in names if name.startswith("unet.")]
    elif choice == "attention":
        chosen += [name for name in names if name.startswith("unet.") and ".attn" in name]
    elif choice == "lora":
        chosen += [name for name in names if is_lora(name)]
    return chosen


class PhotoPairs:
    """Everything of the photos and the regulariser objects that training needs, encoded once.

    photos: (N, 4, S, S), colour over white and coverage. Index layout of ``features`` and ``latents``: the photos, then (with
    ``mirror``) the mirrored photos. A model that takes sets of conditions is trained with 1 .. N - 1 of them.

    cameras: the photos', as training begins with them; a model with a renderer of first guesses (``Zero123.first_guess``) needs
    them. Its guesses are made once with these cameras: a guess takes longer than a training step, and cameras move by
    fractions of a degree. Such a model is trained with one condition or with all the other photos, so that they are few.
    """

    REGULARISER_PAIRS = 24  # different pairs (or sets) of regulariser views for a model with first guesses, or as many as there are objects

    @torch.no_grad()
    def __init__(self, model: Zero123, photos: Tensor, regularisers: list[RegulariserObject], mirror: bool, cameras: Sequence[Camera] | None = None):
        self.model, self.cameras, self._guesses = model, cameras, {}
        self.guesses = model.multiplane is not None
        if self.guesses and cameras is None:
            raise ValueError("a model with first guesses needs the photos' cameras")
        self.count = len(photos)
        both = torch.cat([photos, photos.flip(-1)]) if mirror else photos
        self.mirror = mirror
        self.largest_set = max(self.count - 1, 1) if model.takes_sets else 1
        self.features, self.latents = _encode(model, both)
        self.pairs = torch.tensor([(i, j) for i in range(self.count) for j in range(self.count) if i != j])
        self.regulariser_cameras = [item.cameras for item in regularisers]
        if regularisers:
            views = torch.cat([torch.from_numpy(item.over_white_with_cover()) for item in regularisers]).to(photos.device)
            views = views.permute(0, 3, 1, 2).float() / 255
            parts = [_encode(model, chunk) for chunk in views.split(32)]
            self.regulariser_features = ConditionFeatures.cat([features for features, _ in parts])
            self.regulariser_latents = torch.cat([latents for _, latents in parts])
            self.regulariser_starts = np.cumsum([0] + [len(c) for c in self.regulariser_cameras])

    def set_size(self, rng: np.random.Generator) -> int:
        """How many conditions a step's predictions have.

        A model with first guesses, as the bundled one: one in a quarter of the steps, all N - 1 others in the rest. Another that takes sets: one
        in half of the steps, 2 .. N - 1 in the rest. One that takes a single photo: one.
        """
        if self.guesses:
            return 1 if rng.random() < 0.25 else self.largest_set
        return 1 if self.largest_set == 1 or rng.random() < 0.5 else int(rng.integers(2, self.largest_set + 1))

    @torch.no_grad()
    def _guess(self, key, features: ConditionFeatures, pose: Tensor) -> Tensor:
        """The first guess (3, S, S) from one set of conditions (M, ...) with poses (M, 8); kept under ``key``."""
        if key not in self._guesses:
            every = torch.arange(len(features), device=features.tokens.device)[None]
            self._guesses[key] = self.model.first_guess(features[every], pose[None].to(features.tokens.device))[0]
        return self._guesses[key]

    def photo_guesses(self, target: Tensor, condition: Tensor, mirrored: Tensor) -> Tensor | None:
        """First guesses (B, 3, S, S) for what ``photo_batch`` drew; those of mirrored pairs are mirrored."""
        if not self.guesses:
            return None
        found = []
        for i, row, flip in zip(target.tolist(), condition.tolist(), mirrored.tolist()):
            pose = torch.from_numpy(np.stack([pose_condition(self.cameras[i], self.cameras[k]) for k in sorted(row)])).float()
            guess = self._guess(("photo", i, *sorted(row)), self.features[torch.tensor(sorted(row))], pose)
            found.append(guess.flip(-1) if flip else guess)
        return torch.stack(found)

    def photo_batch(self, rng: np.random.Generator, size: int, step: int, conditions: int = 1):
        """(features of (B, M), latents, target (B,), condition (B, M), mirrored (B,)).

        Targets and first conditions go through all ordered pairs before any repeats; further conditions are drawn from
        the other photos.
        """
        total = len(self.pairs)
        order = [int(np.random.default_rng([step_ // total, 77]).permutation(total)[step_ % total]) for step_ in range(step * size, (step + 1) * size)]
        target, first = self.pairs[order].T
        others = [rng.permutation([k for k in range(self.count) if k != i and k != j])[: conditions - 1] for i, j in zip(target.tolist(), first.tolist())]
        condition = torch.cat([first[:, None], torch.from_numpy(np.array(others, dtype=np.int64).reshape(size, conditions - 1))], dim=1)
        mirrored = torch.from_numpy(rng.random(size) < 0.5) if self.mirror else torch.zeros(size, dtype=torch.bool)
        shift = mirrored.long() * self.count
        return self.features.small[condition + shift[:, None]], self.latents[target + shift], target, condition, mirrored

    def regulariser_batch(self, rng: np.random.Generator, size: int, conditions: int = 1):
        """(features of (B, M), latents (B, ...), pose (B, M, 8), first guesses or None) of views of random regulariser objects."""
        rows, targets, poses, guesses = [], [], [], []
        objects = len(self.regulariser_cameras)
        for index in rng.integers(max(self.REGULARISER_PAIRS, objects) if self.guesses else objects, size=size).tolist():
            key, draw = ("regulariser", index, conditions), np.random.default_rng([index, conditions]) if self.guesses else rng
            index = index % objects
            cameras = self.regulariser_cameras[index]
            target, *chosen = draw.permutation(len(cameras))[: conditions + 1]
            chosen = [chosen[k % len(chosen)] for k in range(conditions)]  # an object of few views repeats some
            rows.append([int(self.regulariser_starts[index] + k) for k in chosen])
            targets.append(int(self.regulariser_starts[index] + target))
            poses.append([pose_condition(cameras[target], cameras[k]) for k in chosen])
            if self.guesses:
                guesses.append(self._guess(key, self.regulariser_features[torch.tensor(rows[-1])], torch.tensor(np.array(poses[-1])).float()))
        pose = torch.tensor(np.array(poses), dtype=torch.float32, device=self.regulariser_latents.device)
        return self.regulariser_features[torch.tensor(rows)], self.regulariser_latents[torch.tensor(targets)], pose, torch.stack(guesses) if guesses else None


def _encode(model: Zero123, views: Tensor) -> tuple[ConditionFeatures, Tensor]:
    """Condition features and target latents of views (B, 4, S, S), colour over white and coverage."""
    return model.encode_condition(views[:, :3], views[:, 3:]), model.encode_target(views[:, :3])


def total_steps(config: BoothConfig, views: int) -> int:
    return config.steps + config.steps_per_extra_view * max(views - 2, 0)


def fit(model: Zero123, table: CameraTable, data: PhotoPairs, config: BoothConfig, checkpoint: Path, fingerprint: str = "", on_step=None) -> dict:
    """Train in place, calling ``on_step(step, loss, learning rate)`` after each step; returns {"trained": names, "losses": per step, "resumed_seconds"}.

    Every random choice follows from (seed, step), so that a run resumed from ``checkpoint`` ends as an undisturbed one.
    A checkpoint with another ``fingerprint`` (of settings and inputs) is not taken up.
    """
    steps = total_steps(config, data.count)
    if config.trained == "lora":
        add_lora(model, config.lora_rank, config.seed)
    names = trained_parameters(model, config.trained)
    parameters = dict(model.named_parameters())
    model.requires_grad_(False)
    chosen = [parameters[name].requires_grad_(True) for name in names]
    optimiser = torch.optim.AdamW(
        [{"params": chosen, "lr": config.learning_rate, "peak": config.learning_rate},
         {"params": [table.delta], "lr": config.camera_learning_rate, "peak": config.camera_learning_rate}],
        weight_decay=0.0,
    )  # fmt: skip
    scaler = torch.amp.GradScaler(model.device.type, enabled=config.precision == "fp16")  # keeps small gradients from vanishing in fp16
    start, losses, spent = _resume(checkpoint, fingerprint, parameters, names, table, optimiser, model.device, scaler)
    began = saved = time.time()
    compute = compute_context(config.precision, model.device)
    with finish_step_first() as stop, Progress("camerabooth training", steps, start=start) as progress:
        for step in range(start, steps):
            if settled(losses, config.patience):
                print(f"camerabooth: the photos' loss has settled after {step} of {steps} steps", flush=True)
                break
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * _schedule(step, steps)
            with compute():
                loss = _step_loss(model, table, data, config, step)
            photo_loss, total = float(loss["photos"].detach()), loss["photos"] + loss["regulariser"] + config.camera_anchor * table.anchor_loss()
            if not math.isfinite(float(total.detach())):
                raise InputError(f"{checkpoint.parent}: training diverged at step {step}; lower learning_rate")
            with attention_kernel(model.device):  # activations that were not kept are computed again by the kernel of the forward pass
                scaler.scale(total).backward()
            scaler.unscale_(optimiser)
            torch.nn.utils.clip_grad_norm_(chosen, config.gradient_clip)
            scaler.step(optimiser)
            scaler.update()
            optimiser.zero_grad(set_to_none=True)
            losses.append(photo_loss)
            if on_step is not None:
                on_step(step, photo_loss, optimiser.param_groups[0]["lr"])
            progress.update(step + 1, f"loss {np.mean(losses[-20:]):.4f}")
            if stop.requested or (time.time() - saved > _CHECKPOINT_SECONDS and step + 1 < steps):
                saved = time.time()
                state = {
                    "fingerprint": fingerprint, "step": step + 1, "losses": losses, "seconds": spent + saved - began, "delta": table.delta.detach(),
                    "tensors": {name: parameters[name].detach() for name in names}, "optimiser": optimiser.state_dict(), "scaler": scaler.state_dict(),
                }  # fmt: skip
                with atomic_path(checkpoint) as temporary:
                    torch.save(state, temporary)
            if stop.requested:
                stop.leave()
    model.requires_grad_(False)
    return {"trained": names, "losses": losses, "resumed_seconds": spent}


def _resume(checkpoint: Path, fingerprint: str, parameters: dict, names: list[str], table: CameraTable, optimiser, device, scaler):
    if not checkpoint.is_file():
        return 0, [], 0.0

    def damage(error: Exception) -> str:
        reason = "it holds other things than numbers" if isinstance(error, pickle.UnpicklingError) else first_line(error)
        return f"{checkpoint}: damaged checkpoint ({reason}); delete it to start this stage again"

    with explaining(damage):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pickle that is none of ours: the error below says it
            state = torch.load(checkpoint, map_location=device, weights_only=True)
        if state["fingerprint"] != fingerprint:
            return 0, [], 0.0
        with torch.no_grad():
            for name in names:
                parameters[name].copy_(state["tensors"][name])
            table.delta.copy_(state["delta"])
        optimiser.load_state_dict(state["optimiser"])
        if state["scaler"]:
            scaler.load_state_dict(state["scaler"])
        return state["step"], list(state["losses"]), float(state["seconds"])


def _step_loss(model: Zero123, table: CameraTable, data: PhotoPairs, config: BoothConfig, step: int) -> dict[str, Tensor]:
    rng = np.random.default_rng([config.seed, step])
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    conditions = data.set_size(rng)
    features, latents, target, condition, mirrored = data.photo_batch(rng, config.batch_size, step, conditions)
    pose = table.pose(target[:, None], condition, mirrored)
    guess = data.photo_guesses(target, condition, mirrored)
    losses = {"regulariser": pose.new_zeros(())}
    if data.regulariser_cameras and config.regulariser_batch > 0:
        more_features, more_latents, more_pose, more_guess = data.regulariser_batch(rng, config.regulariser_batch, conditions)
        features = ConditionFeatures.cat([features, more_features])
        latents, pose = torch.cat([latents, more_latents]), torch.cat([pose, more_pose])
        guess = torch.cat([guess, more_guess]) if guess is not None else None
    error = diffusion_error(model, features, latents, pose, generator, config.drop_condition, config.snr_gamma, guess=guess)
    losses["photos"] = error[: config.batch_size].mean()
    if len(error) > config.batch_size:
        losses["regulariser"] = error[config.batch_size :].mean() * (len(error) - config.batch_size) / config.batch_size
    return losses


def diffusion_error(model: Zero123, features: ConditionFeatures, latents: Tensor, pose: Tensor, generator: torch.Generator, drop: float, snr_gamma: float,
                    noises: int = 1, guess: Tensor | None = None) -> Tensor:  # fmt: skip
    """Weighted squared error (B noises,) of the prediction at random steps; ``denoise_at_random`` has the other arguments."""
    out, _, t, wanted = denoise_at_random(model, features, latents, pose, generator, drop, noises, guess)
    return (out - wanted).square().mean((1, 2, 3)) * min_snr_weight(model, t, snr_gamma)


def denoise_at_random(model: Zero123, features: ConditionFeatures, latents: Tensor, pose: Tensor, generator: torch.Generator, drop: float,
                      noises: int = 1, guess: Tensor | None = None, first_from_noise: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The model's output, the noisy latents, their time steps and the wanted output (B noises, ...), at random steps; conditions
    dropped with probability ``drop`` as in Zero-1-to-3's training.

    noises: how many noises and steps are drawn for each target; its conditions are prepared once.
    guess: first guesses of the targets, where the caller has them (``Zero123.conditions``).
    first_from_noise: the first noise of each target is that of the step where sampling begins, with nothing dropped.
    """
    prepared = model.conditions(features, pose, guess)
    if noises > 1:
        latents, *prepared = (x.repeat_interleave(noises, 0) for x in (latents, *prepared))
    count, device = len(latents), latents.device
    noise = noise_like(latents, generator)
    t = torch.randint(model.num_timesteps, (count,), generator=generator)
    u = torch.rand(count, generator=generator)
    if first_from_noise:
        t[::noises], u[::noises] = model.num_timesteps - 1, 1.0
    t, u = t.to(device), u.to(device)
    keep_tokens, keep_concat = (u >= 2 * drop).float(), ((u < drop) | (u >= 3 * drop)).float()
    noisy = model.add_noise(latents, noise, t)
    if model.cc_projection.tokens == "pooled":  # the published training drops the image's token before the pose joins it
        without = model.conditions(features.keep(torch.zeros(len(pose), device=device)), pose, guess)[0].repeat_interleave(noises, 0)
        tokens, concat = prepared
        prepared, keep_tokens = (torch.where(keep_tokens[:, None, None] > 0, tokens, without), concat), None
    out = model.predict_prepared(noisy, t, *prepared, keep_tokens, keep_concat)
    return out.float(), noisy, t, model.training_target(latents, noise, t)


def noise_like(latents: Tensor, generator: torch.Generator) -> Tensor:
    """Normal noise of the latents' shape, on a GPU from a generator of its own that ``generator`` seeds: a processor draws three
    million numbers, a large batch's, in 20 ms."""
    if latents.device.type == "cpu":
        return torch.randn(latents.shape, generator=generator)
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.randn(latents.shape, generator=torch.Generator(latents.device).manual_seed(seed), device=latents.device)


def min_snr_weight(model: Zero123, t: Tensor, gamma: float) -> Tensor:
    """min(SNR, gamma) over SNR (epsilon) or SNR + 1 (v): arXiv 2303.09556. ``gamma`` 0 gives 1."""
    if gamma <= 0:
        return torch.ones_like(t, dtype=torch.float32)
    snr = model.snr(t)
    epsilon = model.scheduler.config.prediction_type == "epsilon"
    return snr.clamp_max(gamma) / (snr.clamp_min(1e-8) if epsilon else snr + 1)


def compute_context(precision: str, device: torch.device):
    """A factory of contexts for forward passes: autocast to bf16 or fp16, and the attention kernel that is fastest on the device.

    ``auto`` takes bf16 where the hardware has matrix units for it: a GPU without them (T4, V100) would emulate it, and a CPU that has only
    the vector instructions (AVX-512 without AMX) was measured to multiply it 1.7 times slower than fp32. On a CPU, PyTorch's fused attention is slow
    for the few tokens of the small model (its backward pass alone was a quarter of a training step), so plain matrix products serve.
    """
    if precision not in BoothConfig.CHOICES["precision"]:
        raise InputError(f"precision={precision!r} is unknown: use one of {', '.join(BoothConfig.CHOICES['precision'])}")
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else torch.cpu._is_amx_tile_supported()
        precision = "bf16" if fast else "fp32"

    @contextmanager
    def context():
        with attention_kernel(device), torch.autocast(device.type, torch.float16 if precision == "fp16" else torch.bfloat16, enabled=precision != "fp32"):
            yield

    return context


def attention_kernel(device: torch.device):
    """The context in which attention runs on a device (``compute_context`` says why)."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def _schedule(step: int, steps: int) -> float:
    """Warm-up over the first twentieth, then half a cosine that would reach zero one step after the last, whatever the number of views."""
    warm = max(steps // 20, 1)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))
