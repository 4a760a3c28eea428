"""A first guess of the target view, rendered from the condition photos by a small network over planes of the target camera.

The photos' features are projected onto K planes that face the target camera; a 3D network turns what it finds there into
the opacity of each cell and into weights that blend the photos' own colours (and a colour of its own, for what no photo
shows); the planes are composited front to back (multiplane images: Zhou et al., arXiv 1805.09817; learned blending of
warped photos: IBRNet, arXiv 2102.13090; cost volumes of a few views: MVSNeRF, arXiv 2103.15595). It is deterministic and
therefore soft where the photos leave a choice; the diffusion model that is given the guess makes that choice (compare
ReconFusion, arXiv 2312.02981, whose diffusion model is conditioned on a PixelNeRF's rendering).
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from sap3d.volumes import sample_volume
from sap3d.zero123.sweep import direction_cosine, pixel_centres, target_planes_in_condition, target_points_in_condition

_NEGLIGIBLE = 0.002  # share of a pixel's light below which a cell's own colour is not looked up
_GEOMETRY = 7  # channels that tell a cell where it is and from where it is seen


class MultiplaneRenderer(ModelMixin, ConfigMixin):
    """Colour and coverage of the target view from M photos with their poses; differentiable in the poses.

    planes: at depths radius - half_depth .. radius + half_depth of the target camera. cells: side of the grid of a plane on
    which opacity and weights are decided (opacity at twice that); colours are composited at any size. features: channels of
    the photos' encoder. widths: channels of the 3D network's levels, each half as fine as the one before.
    """

    @register_to_config
    def __init__(self, planes: int = 32, cells: int = 32, features: int = 12, widths: tuple[int, ...] = (16, 32, 64, 96), half_depth: float = 0.55, condition_size: int = 128,
                 latent_channels: int = 48):  # fmt: skip
        super().__init__()
        self.register_buffer("residual_variance", torch.ones(latent_channels))  # of the truth's latents about the guess's
        self.register_buffer("offsets", torch.linspace(-half_depth, half_depth, planes), persistent=False)
        self.encoder = PhotoEncoder(features, condition_size // cells)
        described = features + 3 + 4  # of a photo at a cell: features, ink, and coverage at 2 x 2 places
        self.entry = Pointwise(described + features + 3 + 4 + _GEOMETRY, widths[0])
        self.network = VolumeUNet(tuple(widths))
        self.density = Pointwise(widths[0], 4)
        self.paint = Pointwise(widths[0], 12 + 1)  # ink at 2 x 2 places, and the logit of its weight
        self.from_volume, self.from_photo = Pointwise(widths[0], 12), Pointwise(described + 1, 12)
        self.weight = Pointwise(12, 1)
        self.sharpness = nn.Parameter(torch.tensor(4.0))
        self.hull = nn.Parameter(torch.tensor(8.0))  # how strongly coverage in all photos speaks for opacity
        with torch.no_grad():
            self.density.weight.mul_(0.1)
            self.density.bias.fill_(-1.5)

    def forward(self, ink: Tensor, pose: Tensor, size: int | None = None) -> Tensor:
        """The guess (B, 4, size, size): ink, that is 1 - colour over white, and coverage, from M photos a target.

        ink: (B, M, 4, S, S), S a multiple of ``condition_size``; both 0 outside of the object. pose: (B, M, 8) as
        ``sap3d.cameras.pose_condition`` gives it. size: a multiple of twice ``cells`` (None: S).
        """
        batch, count, _, full, _ = ink.shape
        size, cells, flat = size or full, self.config.cells, pose.flatten(0, 1).float()
        photos = ink.flatten(0, 1).float()
        coarse = photos if full == self.config.condition_size else F.interpolate(photos, (self.config.condition_size,) * 2, mode="area")
        where = target_planes_in_condition(flat, self.offsets, cells)
        half = target_planes_in_condition(flat, self.offsets, 2 * cells)
        described = torch.cat([self.encoder(coarse, flat[:, 4]), F.interpolate(coarse[:, :3], (cells,) * 2, mode="area")], 1)
        cover = F.interpolate(coarse[:, 3:], (2 * cells,) * 2, mode="area")
        cover = warp(cover, half)
        seen = torch.cat([warp(described, where), unshuffle(cover)], 1).unflatten(0, (batch, count))  # (B, M, D, K, c, c)

        cosine = direction_cosine(pose.float())  # (B, M)
        share = torch.softmax(self.sharpness * cosine, dim=1)
        mean = torch.einsum("bm,bmdkhw->bdkhw", share, seen)
        spread = torch.einsum("bm,bmdkhw->bdkhw", share, (seen[:, :, :-4] - mean[:, None, :-4]).square())
        volume = torch.cat([mean, spread, seen[:, :, -4:].amin(1), self._geometry(pose.float(), cosine)], 1)
        volume = self.network(self.entry(volume.contiguous(memory_format=torch.channels_last_3d)))

        # In float32 from here on, whatever the network was computed in: half precision would round the little light that most cells let through.
        density = smooth(shuffle(self.density(volume).float()))  # (B, 1, K, 2c, 2c)
        painted, painted_logit = self.paint(volume).float().split([12, 1], 1)
        angle = cosine[:, :, None, None, None, None].expand(-1, -1, 1, *seen.shape[3:])
        photo = self.from_photo(torch.cat([seen, angle], 2).flatten(0, 1)).unflatten(0, (batch, count))
        logits = self.weight(F.silu(photo + self.from_volume(volume)[:, None]).flatten(0, 1)).view(batch, count, *volume.shape[2:])
        weights = torch.softmax(torch.cat([logits.float(), painted_logit], 1), 1)
        photos, painted = photos.unflatten(0, (batch, count)), torch.sigmoid(smooth(shuffle(painted)))
        if torch.is_grad_enabled() or size <= 4 * cells:  # below, looking for what matters costs as much as it saves
            return self._composite(photos, flat, density, weights, painted, size)
        hull = cover.unflatten(0, (batch, count)).amin(1)[:, 0]
        views = zip(photos, flat.unflatten(0, (batch, count)), density[:, 0], hull, weights, painted)
        return torch.stack([self._composite_sparsely(*view, size) for view in views])

    def _composite(self, ink: Tensor, pose: Tensor, density: Tensor, weights: Tensor, painted: Tensor, size: int) -> Tensor:
        batch, count = ink.shape[:2]
        if ink.shape[-1] > size:
            ink = F.interpolate(ink.flatten(0, 1), (size,) * 2, mode="area").unflatten(0, (batch, count))
        colour = warp(ink.flatten(0, 1), target_planes_in_condition(pose, self.offsets, size)).unflatten(0, (batch, count))
        colour, cover = colour.split([3, 1], 2)
        colour = colour / cover.clamp_min(0.3)  # the object's own ink, not mixed with the background at its edge
        alpha = torch.sigmoid(resize_planes(density, size) + self.hull * (cover.amin(1) - 0.5))[:, 0]  # (B, K, s, s)
        weights = resize_planes(weights, size)
        blended = (weights[:, :-1, None] * colour).sum(1) + weights[:, -1:] * resize_planes(painted, size)  # (B, 3, K, s, s)
        passed = torch.cumprod(1 - alpha, 1)
        share = alpha * torch.cat([torch.ones_like(passed[:, :1]), passed[:, :-1]], 1)
        return torch.cat([(share[:, None] * blended).sum(2), share.sum(1, keepdim=True)], 1)

    def _composite_sparsely(self, ink: Tensor, pose: Tensor, density: Tensor, hull: Tensor, weights: Tensor, painted: Tensor, size: int) -> Tensor:
        """``_composite`` of one view (4, s, s), without gradients and several times faster where few cells matter: the photos are
        read only where a bound on a cell's share of the light, from the coarse planes, is not negligible.

        ink (M, 4, S, S); pose (M, 8); density and hull, the least coverage of the photos, (K, 2c, 2c); weights (M + 1, K, c, c);
        painted (3, K, 2c, 2c).
        """
        most = torch.sigmoid(density + self.hull * (spread(hull) - 0.5))
        least = torch.sigmoid(-spread(-density) + self.hull * (-spread(-hull) - 0.5))
        passed = torch.cumprod(1 - least, 0)
        bound = most * torch.cat([torch.ones_like(passed[:1]), passed[:-1]])
        active = F.interpolate((spread(bound) > _NEGLIGIBLE).float()[None], (size, size), mode="nearest")[0] > 0
        plane, row, column = active.nonzero(as_tuple=True)
        line = pixel_centres(size, pose)
        if ink.shape[-1] > size:
            ink = F.interpolate(ink, (size, size), mode="area")
        where = target_points_in_condition(pose, self.offsets[plane], line[column], line[row])
        colour, cover = F.grid_sample(ink, where[:, None], mode="bilinear", padding_mode="zeros", align_corners=False)[:, :, 0].split([3, 1], 1)  # (M, 3 or 1, P)
        colour = colour / cover.clamp_min(0.3)

        fine = resize_planes(density[None, None], size)[0, 0]
        logit = fine + self.hull * (resize_planes(hull[None, None], size)[0, 0] - 0.5)
        logit[plane, row, column] = fine[plane, row, column] + self.hull * (cover[:, 0].amin(0) - 0.5)
        alpha = torch.sigmoid(logit)
        passed = torch.cumprod(1 - alpha, 0)
        share = alpha * torch.cat([torch.ones_like(passed[:1]), passed[:-1]])
        depth = (plane + 0.5) * (2 / len(self.offsets)) - 1
        points = torch.stack([line[column], line[row], depth.to(line)], -1)
        weight = sample_volume(weights[None], points, align_corners=False)  # (M + 1, P)
        blended = (weight[:-1, None] * colour).sum(0) + weight[-1:] * sample_volume(painted[None], points, align_corners=False)
        out = blended.new_zeros(3, size * size).index_add(1, row * size + column, share[plane, row, column] * blended)
        return torch.cat([out.view(3, size, size), share.sum(0, keepdim=True)])

    def _geometry(self, pose: Tensor, cosine: Tensor) -> Tensor:
        """(B, 7, K, c, c): place in the grid, the target's elevation, and how far the photos' directions are."""
        cells, planes = self.config.cells, len(self.offsets)
        polar = (pose[:, 0, 4] + pose[:, 0, 0])[:, None]
        constant = torch.cat([polar.cos(), polar.sin(), cosine.amax(1, keepdim=True), cosine.mean(1, keepdim=True)], 1)
        line = torch.linspace(-1, 1, cells, device=pose.device)
        grid = torch.stack(torch.meshgrid(self.offsets.to(pose) / self.config.half_depth, line, line, indexing="ij"))
        constant = constant[:, :, None, None, None].expand(-1, -1, planes, cells, cells)
        return torch.cat([grid.expand(len(pose), -1, -1, -1, -1), constant], 1)


class PhotoEncoder(nn.Module):
    """Features (B, F, c, c) of photos (B, 4, S, S): a small U-Net on patches, told the photo's elevation."""

    def __init__(self, features: int, patch: int):
        super().__init__()
        self.stem = nn.Conv2d(4 + 2, 32, patch, stride=patch)
        self.first, self.down1, self.down2 = Block(2, 32), nn.Conv2d(32, 64, 3, 2, 1), nn.Conv2d(64, 96, 3, 2, 1)
        self.middle1, self.middle2 = Block(2, 64), nn.Sequential(Block(2, 96), Block(2, 96))
        self.up2, self.up1, self.out = nn.Conv2d(96, 64, 1), nn.Conv2d(64, 32, 1), nn.Sequential(Block(2, 32), nn.Conv2d(32, features, 1))

    def forward(self, photos: Tensor, polar: Tensor) -> Tensor:
        elevation = torch.stack([polar.cos(), polar.sin()], 1)[..., None, None].expand(-1, -1, *photos.shape[-2:])
        fine = self.first(self.stem(torch.cat([photos, elevation], 1)))
        middle = self.middle1(self.down1(F.silu(fine)))
        coarse = self.middle2(self.down2(F.silu(middle)))
        middle = middle + self.up2(F.interpolate(coarse, scale_factor=2.0))
        return self.out(fine + self.up1(F.interpolate(middle, scale_factor=2.0)))


class Pointwise(nn.Linear):
    """A linear map of the channels of (B, C, ...)."""

    def forward(self, x: Tensor) -> Tensor:
        return (torch.matmul(self.weight, x.flatten(2)) + self.bias[:, None]).unflatten(2, x.shape[2:])


class Block(nn.Module):
    """Residual block: norm, convolution, twice."""

    def __init__(self, dimensions: int, width: int):
        super().__init__()
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[dimensions]
        self.norm1, self.norm2 = nn.GroupNorm(min(8, width // 4), width), nn.GroupNorm(min(8, width // 4), width)
        self.conv1, self.conv2 = convolution(width, width, 3, padding=1), convolution(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class VolumeUNet(nn.Module):
    """A U-Net over (B, C, K, c, c); its finest level has one convolution on each side, where most of the cost lies."""

    def __init__(self, widths: tuple[int, ...]):
        super().__init__()
        self.first = nn.Conv3d(widths[0], widths[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv3d(a, b, 3, 2, 1) for a, b in zip(widths, widths[1:]))
        self.blocks = nn.ModuleList(Block(3, width) for width in widths[1:])
        self.up = nn.ModuleList(Pointwise(b, a) for a, b in zip(widths, widths[1:]))
        self.merged = nn.ModuleList(Block(3, width) for width in widths[1:-1])
        self.last = nn.Sequential(nn.GroupNorm(4, widths[0]), nn.SiLU(), nn.Conv3d(widths[0], widths[0], 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        levels = [x + self.first(F.silu(x))]
        for down, block in zip(self.down, self.blocks):
            levels.append(block(down(F.silu(levels[-1]))))
        x = levels.pop()
        for k in reversed(range(len(levels))):
            x = levels[k] + F.interpolate(self.up[k](x), scale_factor=2.0)
            if k:
                x = self.merged[k - 1](x)
        return x + self.last(x)


def warp(photos: Tensor, where: Tensor) -> Tensor:
    """Photos (B, C, S, S) read at places (B, K, h, w, 2) of their image: (B, C, K, h, w), 0 outside of it."""
    planes = where.shape[1]
    return F.grid_sample(photos, where.flatten(1, 2), mode="bilinear", padding_mode="zeros", align_corners=False).unflatten(2, (planes, -1))


def spread(planes: Tensor) -> Tensor:
    """The largest of each 3 x 3 cells of each plane of (K, h, w)."""
    return F.max_pool2d(planes[None], 3, stride=1, padding=1)[0]


def unshuffle(planes: Tensor) -> Tensor:
    """(B, C, K, 2h, 2w) to (B, 4C, K, h, w): the 2 x 2 places of a cell become four channels of each channel."""
    b, c, k, h, w = planes.shape
    return planes.reshape(b, c, k, h // 2, 2, w // 2, 2).permute(0, 1, 4, 6, 2, 3, 5).reshape(b, 4 * c, k, h // 2, w // 2)


def shuffle(planes: Tensor) -> Tensor:
    """The inverse of ``unshuffle``."""
    b, c, k, h, w = planes.shape
    return planes.reshape(b, c // 4, 2, 2, k, h, w).permute(0, 1, 4, 5, 2, 6, 3).reshape(b, c // 4, k, 2 * h, 2 * w)


def smooth(planes: Tensor) -> Tensor:
    """Each plane of (B, C, K, h, w) filtered with [1, 2, 1] / 4 along both sides: the places of a cell are apt to make a checkerboard (Odena et al.,
    "Deconvolution and checkerboard artifacts", 2016), which LPIPS likes and people do not."""
    for axis in (-1, -2):
        length = planes.shape[axis]
        before = torch.cat([planes.narrow(axis, 0, 1), planes.narrow(axis, 0, length - 1)], axis)
        after = torch.cat([planes.narrow(axis, 1, length - 1), planes.narrow(axis, length - 1, 1)], axis)
        planes = planes / 2 + (before + after) / 4
    return planes


def resize_planes(planes: Tensor, size: int) -> Tensor:
    """Each plane of (B, C, K, h, w) bilinearly at (size, size)."""
    if planes.shape[-1] == size:
        return planes
    b, c, k = planes.shape[:3]
    return F.interpolate(planes.flatten(1, 2), (size, size), mode="bilinear", align_corners=False).view(b, c, k, size, size)
