"""The convolutional trunk of AlexNet with its ImageNet weights: frozen features for LPIPS and for the small models.

The weights are torchvision's ``AlexNet_Weights.IMAGENET1K_V1`` without the classifier, kept in the repository as
safetensors (sap3d/weights/alexnet/README.md tells source and licence; sap3d/make_alexnet.py makes the file).
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import nn

from sap3d.errors import InputError, explaining, first_line

WEIGHTS = Path(__file__).resolve().parent / "weights" / "alexnet" / "alexnet_features.safetensors"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def build_alexnet_features() -> nn.Sequential:
    """The trunk with random weights: torchvision's ``alexnet().features``, modules 0 to 12, so the same parameter names."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
    )


def load_alexnet_features(weights: Path = WEIGHTS) -> nn.Sequential:
    """The trunk with ImageNet weights, in eval mode, its parameters without gradients.

    Its input is (B, 3, H, W) normalised by IMAGENET_MEAN and IMAGENET_STD. Raises InputError when the file is missing
    or holds something else.
    """
    from safetensors.torch import load_file

    weights = Path(weights)
    if not weights.is_file():
        raise InputError(f"{weights}: no AlexNet weights; restore them from the repository (git checkout -- sap3d/weights/alexnet)")
    trunk = build_alexnet_features()
    with explaining(lambda error: f"{weights}: not the AlexNet trunk ({first_line(error)}); restore it from the repository"):
        trunk.load_state_dict({name.removeprefix("features."): tensor for name, tensor in load_file(weights).items()})
    return trunk.eval().requires_grad_(False)


@functools.lru_cache(maxsize=4)
def _shared_trunk(device: torch.device) -> nn.Sequential:
    return load_alexnet_features().to(device)


def alexnet_tokens(images: torch.Tensor, trunk: nn.Sequential | None = None) -> torch.Tensor:
    """Feature map of conv5 after its ReLU and before the last pooling.

    Args:
        images: (B, 3, H, W) in [0, 1], H and W at least 31; normalised here the ImageNet way. Gradients flow to the images.
        trunk: a trunk of ``load_alexnet_features``; by default one shared by the process, a copy a device.
    Returns:
        (B, 256, h, w): 7 x 7 for 128 pixels, 3 x 3 for 64, 15 x 15 for 256. Values are not negative.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"alexnet_tokens needs images (B, 3, H, W), got {tuple(images.shape)}")
    trunk = _shared_trunk(images.device) if trunk is None else trunk
    mean = images.new_tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    std = images.new_tensor(IMAGENET_STD).view(1, 3, 1, 1)
    return trunk[:12]((images - mean) / std)
