"""Validation of the prior: the loss with fixed noise, and sampled views beside the truth and the repeated input."""

from __future__ import annotations

import numpy as np
import torch

from camerabooth.prior.data import over_white, to_device
from sap3d.cameras import Camera
from sap3d.images import contact_sheet
from sap3d.zero123 import Zero123
from sap3d.zero123.sampler import sample_views


@torch.no_grad()
def validation_loss(model: Zero123, source, loss, batches: int = 6) -> float:
    """Mean loss over fixed batches with fixed noise and nothing dropped."""
    return float(np.mean([float(loss(model, to_device(source.batch(k), model.device), torch.Generator().manual_seed(k), 0.0, 0.0)) for k in range(batches)]))


@torch.no_grad()
def sample_sheet(model: Zero123, source, objects: int = 8, targets: int = 6, conditions: int = 1, views=sample_views, steps: int = 20, guidance_scale: float = 2.0):
    """(sheet image, PSNR of the samples, PSNR of repeating the input): one row an object, a condition, then truth over sample.

    views: ``sample_views``, or ``guess_views`` for the first guess alone. PSNR is the mean over views, in dB; objects and views are fixed, and the same whatever the number of conditions.
    """
    rng = np.random.default_rng(0)
    scores, repeats, rows = [], [], []
    for index in np.linspace(0, len(source) - 1, objects).astype(int):
        shown = rng.permutation(source.poses.shape[1])[: targets + 8]
        cameras = [Camera(*map(float, source.poses[index, v])) for v in shown]
        images = over_white(source.views(index, shown))
        condition, truth = images[targets : targets + conditions].to(model.device), images[:targets, :3]
        features = model.encode_condition(condition[:, :3], condition[:, 3:])
        samples = views(model, features, cameras[targets : targets + conditions], cameras[:targets], steps, guidance_scale).cpu()
        scores += [_psnr(a, b) for a, b in zip(samples, truth)]
        repeats += [_psnr(images[targets, :3], b) for b in truth]
        shown = [images[targets, :3]] + [torch.cat([t, s], dim=1) for t, s in zip(truth, samples)]
        rows.append([_square(x, source.size) for x in shown])
    return contact_sheet(rows, size=2 * source.size), float(np.mean(scores)), float(np.mean(repeats))


def _square(image: torch.Tensor, size: int) -> np.ndarray:
    """Pad truth-over-sample (3, 2s, s) or a single image (3, s, s) to (2s, 2s, 3) so that the sheet keeps proportions."""
    canvas = np.ones((2 * size, 2 * size, 3), dtype=np.float32)
    array = image.permute(1, 2, 0).numpy()
    left = (2 * size - array.shape[1]) // 2
    canvas[: array.shape[0], left : left + array.shape[1]] = array
    return canvas


def _psnr(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(-10 * torch.log10((first - second).square().mean().clamp_min(1e-8)))
