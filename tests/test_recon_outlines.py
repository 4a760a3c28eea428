"""Stage 3: sharp outlines of renders."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.special import erf

from sap3d.cameras import Camera
from sap3d.field import outlines, views

CAMERA, SIZE = Camera.from_degrees(10, 30), 96
PIXEL = 2 * CAMERA.radius * np.tan(CAMERA.fov_rad / 2) / SIZE  # object lengths at the centre
INK = torch.tensor([0.7, 0.2, 0.4])


def edge(sigma: float) -> torch.Tensor:
    """Opacity (SIZE, SIZE) of an upright edge blurred by a Gaussian of ``sigma`` pixels."""
    x = np.arange(SIZE) + 0.5 - SIZE / 2
    return torch.from_numpy(np.tile(0.5 + 0.5 * erf(x / sigma / np.sqrt(2)), (SIZE, 1))).float()


def view_of(opacity: torch.Tensor) -> "views.View":
    return views.View(INK * opacity[..., None] + 1 - opacity[..., None], opacity, torch.ones_like(opacity))


def test_the_blur_is_a_gaussian():
    image = torch.rand(40, 50, generator=torch.Generator().manual_seed(0))
    assert np.allclose(outlines.gaussian_blur(image, 1.7), gaussian_filter(image.numpy(), 1.7, mode="nearest", truncate=3.6), atol=1e-5)


def test_an_edge_that_voxels_have_blurred_becomes_steep_and_stays_where_it_is():
    sigma, truth = 2.0, edge(0.3)
    blurred = view_of(edge(sigma))
    sharp = outlines.sharpen_outline(blurred, CAMERA, sigma * PIXEL / outlines.BLUR_VOXELS, 1.0)
    assert (sharp.opacity - truth).square().mean() < 0.75 * (blurred.opacity - truth).square().mean()
    assert torch.allclose(sharp.opacity.mean(), truth.mean(), atol=1e-3)  # neither grown nor shrunk
    assert torch.allclose(sharp.colour, view_of(sharp.opacity).colour, atol=1e-5)  # the object's colour is the same, with less white in it
    assert torch.equal(sharp.depth, blurred.depth)
    assert torch.allclose(sharp.colour[:, :20], torch.ones(3), atol=1e-5) and torch.allclose(sharp.colour[:, -20:], INK, atol=1e-5)


def test_an_outline_that_is_open_stays_soft():
    wide = view_of(edge(12.0))
    sharp = outlines.sharpen_outline(wide, CAMERA, 2 * PIXEL / outlines.BLUR_VOXELS, 1.0)
    assert (sharp.opacity - wide.opacity).abs().max() < 0.02


@pytest.mark.parametrize("amount", [0.0, 0.5])
def test_the_amount_scales_what_is_added(amount):
    view = view_of(edge(2.0))
    whole, part = (outlines.sharpen_outline(view, CAMERA, PIXEL, a).opacity - view.opacity for a in (1.0, amount))
    free = (view.opacity + whole > 0) & (view.opacity + whole < 1)  # not cut off
    assert free.any() and torch.allclose(part[free], amount * whole[free], atol=1e-6)
