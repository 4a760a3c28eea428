"""The image encoder of the published network: ResNet-50 with anti-aliased down-sampling and group normalisation.

Every strided convolution is replaced by a dense one followed by a binomial blur that is sampled (Zhang, "Making
Convolutional Networks Shift-Invariant Again", arXiv 1904.11486); only the first convolution keeps its stride.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

GROUPS = {64: 8, 128: 8, 256: 16, 512: 32, 1024: 32, 2048: 32}  # groups of the normalisation by number of channels


class BlurPool(nn.Module):
    """Blur by the outer product of (1, 3, 3, 1) / 8 and keep every ``stride``-th pixel; borders are reflected."""

    def __init__(self, channels: int, stride: int = 2):
        super().__init__()
        line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.stride = stride
        self.register_buffer("filt", (line[:, None] * line[None, :])[None, None].repeat(channels, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.pad(x, (1, 2, 1, 2), mode="reflect"), self.filt, stride=self.stride, groups=x.shape[1])


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS[channels], channels)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 convolutions with a residual; four times as many channels come out."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = _norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = _norm(channels)
        last = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.conv3 = last if stride == 1 else nn.Sequential(BlurPool(channels, stride), last)
        self.bn3 = _norm(4 * channels)
        self.downsample = None
        if stride != 1 or channels_in != 4 * channels:
            blur = [] if stride == 1 else [BlurPool(channels_in, stride)]
            self.downsample = nn.Sequential(*blur, nn.Conv2d(channels_in, 4 * channels, 1, bias=False), _norm(4 * channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


def resnet50_global() -> nn.Sequential:
    """Images (B, 3, S, S), S at least 64 and ImageNet-normalised, to global features (B, 2048, 1, 1). Random weights."""
    stages, channels_in = [], 64
    for channels, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        layer = [Bottleneck(channels_in if b == 0 else 4 * channels, channels, stride if b == 0 else 1) for b in range(blocks)]
        stages.append(nn.Sequential(*layer))
        channels_in = 4 * channels
    stem = [nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), _norm(64), nn.ReLU(), nn.Sequential(nn.MaxPool2d(2, stride=1), BlurPool(64))]
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1))
