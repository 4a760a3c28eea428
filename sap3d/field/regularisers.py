"""Preferences that hold for objects in general, where photos and prior leave a choice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from sap3d.field.rendering import Rendering


def distortion(rendering: Rendering, rays: int) -> torch.Tensor:
    """Mean over rays of sum_ij w_i w_j |t_i - t_j|: small when a ray's light comes from one depth.

    Mip-NeRF 360 (arXiv 2111.12077), equation 15, without the term of a sample's own width; in linear time, since samples
    are in order of distance: twice the sum of w_i (t_i W_i - M_i), with W and M the weights and moments before i.
    """
    weight, distance = rendering.weight, rendering.distance
    if not len(weight):
        return weight.sum()
    first = torch.searchsorted(rendering.ray, torch.arange(rays, device=weight.device)).clamp_max(len(weight) - 1)

    def before(value):
        total = torch.cumsum(value.double(), 0) - value
        return (total - total[first][rendering.ray]).float()

    return 2 * (weight * (distance * before(weight) - before(weight * distance))).sum() / rays


def opacity_entropy(opacity: torch.Tensor) -> torch.Tensor:
    """Mean binary entropy (nats) of opacities: 0 when every ray either meets the object or misses it."""
    p = opacity.clamp(1e-4, 1 - 1e-4)
    return -(p * p.log() + (1 - p) * (1 - p).log()).mean()
