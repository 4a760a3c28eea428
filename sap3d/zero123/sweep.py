"""Condition images resampled onto depth planes of the target camera: geometry for a model that saw few objects.

The published Zero-1-to-3 concatenates the condition image as it is to the noisy latent, and has learned from millions of
objects where its pixels go. A small model cannot learn that. Here the condition images are projected onto K planes that
face the target camera (a plane sweep, Collins 1996; in networks MVSNet, arXiv 1804.02505), so that what belongs to a pixel
of the target lies at that pixel, in one of K layers. The model is left with finding the layer and inventing what no image
shows. Several condition images are averaged plane by plane, and their disagreement is a channel of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PlaneSweep(nn.Module):
    """The U-Net's condition channels from condition images and poses; no weights of its own, differentiable in the poses.

    planes: how many, at depths radius - half_depth .. radius + half_depth of the target camera. components: leading
    components of the autoencoder that are kept of a plane's colours. sharpness: an image counts by exp(sharpness * cosine
    of the angle between its direction and the target's).
    """

    MASK_GRID = 2  # coverage is kept at 2 x 2 places a latent cell

    def __init__(self, planes: int = 8, components: int = 24, half_depth: float = 0.45, sharpness: float = 4.0):
        super().__init__()
        self.planes, self.components, self.half_depth, self.sharpness = planes, components, half_depth, sharpness
        self.register_buffer("offsets", torch.linspace(-half_depth, half_depth, planes), persistent=False)

    def config(self) -> dict:
        return {"planes": self.planes, "components": self.components, "half_depth": self.half_depth, "sharpness": self.sharpness}

    @property
    def channels(self) -> int:
        """Channels of the output: colours, coverage and disagreement of every plane."""
        return self.planes * (self.components + self.MASK_GRID**2 + 1)

    def forward(self, ink: Tensor, pose: Tensor, vae) -> Tensor:
        """Channels (B, channels, h, w) for M condition images a target.

        ink: (B, M, 4, S, S), 1 - colour over white, and coverage, both 0 outside of the object. pose: (B, M, 8) as
        ``sap3d.cameras.pose_condition`` gives it. vae: the patch autoencoder whose leading components describe colours.
        """
        batch, count, _, size, _ = ink.shape
        patch = vae.config.patch_size
        cells = size // patch
        with torch.autocast(ink.device.type, enabled=False):  # bfloat16 would move places by half a pixel
            where = target_planes_in_condition(pose.flatten(0, 1).float(), self.offsets, size)  # (B M, K, S, S, 2)
        warped = F.grid_sample(ink.flatten(0, 1).float(), where.flatten(1, 2), mode="bilinear", padding_mode="zeros", align_corners=False)  # (B M, 4, K S, S)
        described = F.conv2d(warped, *(part.float() for part in self.kernel(vae)), stride=patch).float()  # (B M, C, K h, w)
        described = described.view(batch, count, -1, self.planes, cells, cells).transpose(2, 3)
        colour, cover = described.split([self.components, self.MASK_GRID**2], dim=3)
        if count == 1:
            mean, spread = colour[:, 0], torch.zeros_like(colour[:, 0, :, :1])
        else:
            weight = torch.softmax(self.sharpness * direction_cosine(pose), dim=1)[..., None, None, None, None]
            mean = (weight * colour).sum(1)
            spread = (weight * (colour - mean[:, None]).square()).sum(1).mean(2, keepdim=True).clamp_min(1e-6).sqrt()
        # Coverage in all images: what one of them sees empty is empty.
        return torch.cat([mean, cover.amin(1), spread], dim=2).reshape(batch, self.channels, cells, cells)

    def kernel(self, vae) -> tuple[Tensor, Tensor]:
        """Weight (components + 4, 4, p, p) and bias of the convolution from ink and coverage to leading components of the
        colours over white in [-1, 1], that is of 1 - 2 ink, and mean coverage at 2 x 2 places of a patch."""
        basis, bias = vae.leading(self.components)
        patch, part = basis.shape[-1], basis.shape[-1] // self.MASK_GRID
        weight = basis.new_zeros(self.components + self.MASK_GRID**2, 4, patch, patch)
        weight[: self.components, :3] = -2 * basis
        for k in range(self.MASK_GRID**2):
            row, column = part * (k // self.MASK_GRID), part * (k % self.MASK_GRID)
            weight[self.components + k, 3, row : row + part, column : column + part] = 1 / part**2
        bias = torch.cat([bias + basis.sum((1, 2, 3)), bias.new_zeros(self.MASK_GRID**2)])
        return weight, bias


def direction_cosine(pose: Tensor) -> Tensor:
    """Cosine (...,) of the angle between the viewing directions of target and condition, of poses (..., 8)."""
    polar_c = pose[..., 4]
    polar_t = polar_c + pose[..., 0]
    return polar_c.sin() * polar_t.sin() * pose[..., 2] + polar_c.cos() * polar_t.cos()


def condition_from_target(pose: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotation (B, 3, 3) from the target's axes to the condition's, and both radii (B,), of poses (B, 8)."""
    polar_c, radius_c = pose[:, 4], pose[:, 5]
    # Only the difference of the azimuths matters: the condition camera is put at azimuth 0.
    condition = look_at_axes(polar_c, torch.zeros_like(polar_c), torch.ones_like(polar_c))
    target = look_at_axes(polar_c + pose[:, 0], pose[:, 1], pose[:, 2])
    return condition @ target.transpose(1, 2), radius_c + pose[:, 3], radius_c


def target_planes_in_condition(pose: Tensor, offsets: Tensor, size: int) -> Tensor:
    """Where the pixels of the target camera's planes lie in the condition image: (B, K, size, size, 2) for grid_sample.

    pose (B, 8); offsets (K,): planes' depths less the target's radius. Coordinates are those of ``grid_sample`` with
    ``align_corners=False``: -1 and 1 are the outer edges, x to the right, y downwards. Points behind the condition camera
    come out far outside.
    """
    rotation, radius_t, radius_c = condition_from_target(pose)
    tan_c, tan_t = pose[:, 6], pose[:, 7]
    step = pixel_centres(size, pose)
    depth = (radius_t[:, None] + offsets.to(pose))[:, :, None]  # (B, K, 1)
    x, y = depth * step * tan_t[:, None, None], -depth * step * tan_t[:, None, None]  # (B, K, S)
    # A point is depth * (x, y, -1) in the target camera, whose centre is (0, 0, radius) there; the origin has depth radius.
    constant = (radius_t[:, None] - depth[:, :, 0])[:, :, None, None]
    right, up, backward = (
        (rotation[:, row, 0, None, None] * x)[:, :, None, :] + (rotation[:, row, 1, None, None] * y)[:, :, :, None] + rotation[:, row, 2, None, None, None] * constant
        for row in range(3)
    )  # (B, K, S, S) each, from the origin
    scale = 1 / ((radius_c[:, None, None, None] - backward).clamp_min(0.05) * tan_c[:, None, None, None])
    return torch.stack([right * scale, -up * scale], dim=-1)


def target_points_in_condition(pose: Tensor, offset: Tensor, column: Tensor, row: Tensor) -> Tensor:
    """``target_planes_in_condition`` for P points alone: places (B, P, 2) in the B condition images of one target camera.

    offset (P,): depth less the target's radius; column, row (P,): place in the target's image, -1 to 1 to the right and downwards.
    """
    rotation, radius_t, radius_c = condition_from_target(pose)
    depth = radius_t[:, None] + offset.to(pose)
    point = torch.stack([depth * column * pose[:, 7, None], -depth * row * pose[:, 7, None], radius_t[:, None] - depth], 1)  # (B, 3, P)
    right, up, backward = (rotation @ point).unbind(1)
    scale = 1 / ((radius_c[:, None] - backward).clamp_min(0.05) * pose[:, 6, None])
    return torch.stack([right * scale, -up * scale], dim=-1)


def pixel_centres(size: int, like: Tensor) -> Tensor:
    """Centres (size,) of the pixels of a line from -1 to 1."""
    return (torch.arange(size, device=like.device, dtype=like.dtype) + 0.5) * (2 / size) - 1


def look_at_axes(polar: Tensor, sin_azimuth: Tensor, cos_azimuth: Tensor) -> Tensor:
    """Axes (B, 3, 3) of look-at cameras in the world, rows right, up, backward (sap3d.cameras.look_at_origin)."""
    sin_p, cos_p, zero = polar.sin(), polar.cos(), torch.zeros_like(polar)
    right = torch.stack([-sin_azimuth, cos_azimuth, zero], -1)
    up = torch.stack([-cos_p * cos_azimuth, -cos_p * sin_azimuth, sin_p], -1)
    backward = torch.stack([sin_p * cos_azimuth, sin_p * sin_azimuth, cos_p], -1)
    return torch.stack([right, up, backward], dim=1)
