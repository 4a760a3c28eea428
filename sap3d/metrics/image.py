"""Image metrics: PSNR, SSIM and LPIPS-AlexNet, in the form of SAP3D's released results and in the usual one.

Images are float32 (B, 3, H, W) in [0, 1] over white. Two conventions stand side by side:

    compat      PSNR of the mean squared error pooled over all images, LPIPS fed [0, 1]: as in SAP3D's evaluation, whose
                released figures were made so (LPIPS was trained on [-1, 1] and comes out lower on [0, 1]).
    corrected   mean of the PSNR of each image, LPIPS fed [-1, 1].

SSIM (Wang et al. 2004) is the same in both: 11 x 11 Gaussian window of sigma 1.5, zero padding.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping

import numpy as np

import torch
import torch.nn.functional as F

from sap3d.alexnet import load_alexnet_features
from sap3d.errors import InputError
from sap3d.images import resize

EVALUATION_SIZE = 256
_LOWEST_ERROR = 1e-10  # identical images count as 100 dB, so that a mean stays finite
_LPIPS_LAYERS = (2, 5, 8, 10, 12)  # ends of the trunk's slices: after relu1 .. relu5
_LPIPS_SHIFT = (-0.030, -0.088, -0.188)
_LPIPS_SCALE = (0.458, 0.448, 0.450)


@dataclass(frozen=True)
class ImageScores:
    """Scores of one set of images; each array has an entry a view, in the order of ``names``."""

    names: tuple[str, ...]
    squared_error: np.ndarray
    ssim: np.ndarray
    lpips_compat: np.ndarray
    lpips: np.ndarray

    @property
    def psnr(self) -> np.ndarray:
        return psnr(self.squared_error)

    def compat(self) -> dict[str, float]:
        return {"psnr": float(psnr(self.squared_error.mean())), "ssim": float(self.ssim.mean()), "lpips": float(self.lpips_compat.mean())}

    def corrected(self) -> dict[str, float]:
        return {"psnr": float(self.psnr.mean()), "ssim": float(self.ssim.mean()), "lpips": float(self.lpips.mean())}

    def rows(self) -> list[dict]:
        columns = zip(self.names, self.psnr, self.ssim, self.lpips_compat, self.lpips)
        return [
            {"view": name, "psnr": round(float(p), 4), "ssim": round(float(s), 5), "lpips_compat": round(float(c), 5), "lpips": round(float(l), 5)}
            for name, p, s, c, l in columns
        ]


def mean_squared_error(predicted: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Mean over channels and pixels of each image, (B,)."""
    _check_pair(predicted, truth)
    return (predicted - truth).square().mean(dim=(1, 2, 3))


def psnr(squared_error):
    """-10 log10 of a mean squared error of images in [0, 1], in dB, at most 100."""
    return -10.0 * np.log10(np.maximum(np.asarray(squared_error, dtype=np.float64), _LOWEST_ERROR))


def ssim(predicted: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each image (B,): the mean of the map over channels and pixels, zero padding at the border."""
    _check_pair(predicted, truth)
    height, width = predicted.shape[2:]
    rows, columns = _blur_matrix(height, predicted), _blur_matrix(width, predicted)

    def blur(image):
        return rows @ image @ columns  # both are symmetric

    mean_p, mean_t = blur(predicted), blur(truth)
    variance_p = blur(predicted.square()) - mean_p.square()
    variance_t = blur(truth.square()) - mean_t.square()
    covariance = blur(predicted * truth) - mean_p * mean_t
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_p * mean_t + c1) / (mean_p.square() + mean_t.square() + c1)
    structure = (2 * covariance + c2) / (variance_p + variance_t + c2)
    return (luminance * structure).flatten(1).mean(dim=1)


def _blur_matrix(length: int, like: torch.Tensor) -> torch.Tensor:
    """The zero-padded 11-tap Gaussian of sigma 1.5 as a banded matrix: on a CPU far faster than a convolution of one channel."""
    offsets = torch.arange(-5, 6, dtype=like.dtype, device=like.device)
    window = torch.exp(-offsets.square() / (2 * 1.5**2))
    window = window / window.sum()
    distance = torch.arange(length, device=like.device)[:, None] - torch.arange(length, device=like.device)[None, :]
    return torch.where(distance.abs() <= 5, window[(distance + 5).clamp(0, 10)], torch.zeros_like(window[:1]))


class LpipsAlex:
    """LPIPS 0.1 with AlexNet (Zhang et al. 2018), with features that can be used for several comparisons.

    ``distance(features(a), features(b))`` equals ``lpips.LPIPS(net="alex")(a, b)`` on inputs in [-1, 1]. The trunk is the
    repository's, the linear layers are those of the installed ``lpips`` package; nothing is downloaded.
    """

    def __init__(self, device: str = "cpu"):
        self.trunk = load_alexnet_features().to(device, memory_format=torch.channels_last)  # a quarter faster on a CPU
        self.linear = [w.to(device) for w in _lpips_linear_layers()]

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Unit-normalised activations of the five ReLU layers; ``images`` (B, 3, H, W) in [-1, 1]. Gradients flow to the images."""
        shift = images.new_tensor(_LPIPS_SHIFT).view(1, 3, 1, 1)
        scale = images.new_tensor(_LPIPS_SCALE).view(1, 3, 1, 1)
        x = ((images - shift) / scale).to(memory_format=torch.channels_last)
        start, found = 0, []
        for end in _LPIPS_LAYERS:
            x = self.trunk[start:end](x)
            found.append(x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10))
            start = end
        return found

    def distance(self, first: list[torch.Tensor], second: list[torch.Tensor]) -> torch.Tensor:
        """LPIPS distance of each pair, (B,)."""
        return sum(F.conv2d((a - b).square(), w).mean(dim=(1, 2, 3)) for a, b, w in zip(first, second, self.linear))


@functools.lru_cache(maxsize=1)
def _lpips_linear_layers() -> tuple[torch.Tensor, ...]:
    spec = importlib.util.find_spec("lpips")
    path = Path(spec.submodule_search_locations[0], "weights", "v0.1", "alex.pth") if spec else None
    if path is None or not path.is_file():
        raise InputError("the package lpips 0.1.4 is not installed, so LPIPS cannot be measured; pip install lpips==0.1.4")
    state = torch.load(path, map_location="cpu", weights_only=True)
    return tuple(state[f"lin{k}.model.1.weight"] for k in range(5))


def to_batch(images: Mapping[str, np.ndarray], names: list[str], size: int = EVALUATION_SIZE) -> torch.Tensor:
    """Images (H, W, 3) by name, resized to ``size``, as one tensor (B, 3, size, size)."""
    return torch.from_numpy(np.stack([resize(images[name], size) for name in names])).permute(0, 3, 1, 2).contiguous()


@torch.no_grad()
def score_images(
    truth: Mapping[str, np.ndarray],
    predictions: Mapping[str, Mapping[str, np.ndarray]],
    size: int = EVALUATION_SIZE,
    device: str = "cpu",
    batch: int = 12,
) -> dict[str, ImageScores]:
    """Score several sets of predicted images against the same true images.

    Args:
        truth: float (H, W, 3) in [0, 1] keyed by view name.
        predictions: sets of such images by set name; each set has every view of ``truth``.
    Returns:
        ImageScores keyed by set name. Truth is read once for all sets: its features cost as much as those of a prediction.
    """
    names = sorted(truth)
    for key, images in predictions.items():
        missing = [name for name in names if name not in images]
        if missing:
            what = f"{len(missing)} of {len(names)} views are missing, the first is {missing[0]}"
            raise InputError(f"{key}: {what}; run the stage that makes them again")
    lpips = LpipsAlex(device)
    collected = {key: {"squared_error": [], "ssim": [], "lpips_compat": [], "lpips": []} for key in predictions}
    for start in range(0, len(names), batch):
        chunk = names[start : start + batch]
        true = to_batch(truth, chunk, size).to(device)
        true_compat, true_features = lpips.features(true), lpips.features(true * 2 - 1)
        for key, images in predictions.items():
            predicted = to_batch(images, chunk, size).to(device)
            scores = collected[key]
            scores["squared_error"].append(mean_squared_error(predicted, true))
            scores["ssim"].append(ssim(predicted, true))
            scores["lpips_compat"].append(lpips.distance(lpips.features(predicted), true_compat))
            scores["lpips"].append(lpips.distance(lpips.features(predicted * 2 - 1), true_features))
    return {
        key: ImageScores(tuple(names), **{name: torch.cat(values).double().cpu().numpy() for name, values in scores.items()})
        for key, scores in collected.items()
    }


def _check_pair(predicted: torch.Tensor, truth: torch.Tensor) -> None:
    if predicted.ndim != 4 or predicted.shape[1] != 3 or predicted.shape != truth.shape:
        raise ValueError(f"images must be (B, 3, H, W) and of one shape, got {tuple(predicted.shape)} and {tuple(truth.shape)}")
