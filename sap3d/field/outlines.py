"""Sharp outlines: what a grid's voxels blur of a render's opacity is given back.

Density is interpolated between the vertices of a grid, so that an edge of the object is a ramp of a voxel or more, two or three pixels of a
render. Unsharp masking of the opacity alone adds what a blur of that width takes away, to first order: an edge as steep as the grid allows becomes steep,
while an outline that is soft because photos and prior leave it open is wider than the blur and stays nearly as it is.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from sap3d.cameras import Camera

from sap3d.field.views import View

BLUR_VOXELS = 0.7  # standard deviation of the blur, in voxels as they appear at the object's centre (docs/log.md)


def gaussian_blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """An image (H, W) blurred by a Gaussian of ``sigma`` pixels; the pixels at its edges go on beyond them."""
    reach = max(1, math.ceil(3 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=image.dtype, device=image.device) / max(sigma, 1e-3)) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(image[None, None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))[0, 0]


def sharpen_outline(view: View, camera: Camera, voxel: float, amount: float) -> View:
    """The view (S, S) with ``amount`` times the difference between its opacity and the blurred opacity added to it.

    voxel: side in object lengths. Colours are those of the object, so only how much of the white background shows through them changes; depth and
    normals stay.
    """
    if amount == 0:
        return view
    pixel = 2 * camera.radius * math.tan(camera.fov_rad / 2) / len(view.opacity)
    opacity = view.opacity
    sharp = (opacity + amount * (opacity - gaussian_blur(opacity, BLUR_VOXELS * voxel / pixel))).clamp(0, 1)
    own = ((view.colour - (1 - opacity)[..., None]) / opacity.clamp_min(1e-3)[..., None]).clamp(0, 1)
    return View(own * sharp[..., None] + (1 - sharp)[..., None], sharp, view.depth, view.normal, view.seen)
