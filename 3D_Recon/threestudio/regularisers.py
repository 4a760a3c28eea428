"""Preferences that hold for objects in general, where photos and prior leave a choice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .rendering import Rendering


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


@torch.no_grad()
def add_variation_gradient(values: torch.nn.Parameter, weights: torch.Tensor, limits: torch.Tensor, local: torch.Tensor | None = None) -> None:
    """Add to ``values.grad`` the gradient of a Huber penalty on differences between neighbouring vertices.

    values (1, C, Z, Y, X); weights (C,) and limits (C,): beyond its limit a difference costs linearly, so that edges may
    stay. ``local`` (1, 1, Z, Y, X) multiplies the weight of the differences that start at a vertex. Written out because it
    touches the whole grid at every step, and automatic differentiation would take twice as long.
    """
    weight, limit = weights.view(1, -1, 1, 1, 1), limits.view(1, -1, 1, 1, 1)
    for axis in (2, 3, 4):
        count = values.shape[axis] - 1
        difference = values.narrow(axis, 1, count) - values.narrow(axis, 0, count)
        difference = torch.minimum(torch.maximum(difference, -limit), limit).mul_(weight)
        if local is not None:
            difference.mul_(local.narrow(axis, 0, count))
        values.grad.narrow(axis, 1, count).add_(difference)
        values.grad.narrow(axis, 0, count).sub_(difference)
