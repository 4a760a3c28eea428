"""A learned judge of the relative pose of two photos: does what they show fit together, and would it be a thing that exists?

Where the outlines of two photos leave a curve of exact solutions (relposepp/tangency.py), something has to choose. The judge
puts planes into the camera of one photo, the target (plane sweeps: Collins, CVPR 1996; cost volumes of learned features: MVSNet,
arXiv 1804.02505), and reads the other photo, the source, at every cell under the pose to be judged: features of both, how they
differ, and whether both show object there, which is the visual hull. A network over these cells sees local evidence (the same spot
should look the same) and the shape that the pose would make of the two photos, and says one number. It is trained to tell the true
pose of a pair from others whose outlines agree as well (relposepp/judge_train.py).

The score of a pair is the mean over both photos as the target; of more photos, the mean over pairs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relposepp.tangency import axes_of, likely_radius
from sap3d.cameras import FOV_RAD
from sap3d.errors import InputError, explaining, first_line
from sap3d.quantise import SCALE, quantise, restored

BUNDLED = Path(__file__).parent / "weights" / "judge"
TANGENT = float(np.tan(FOV_RAD / 2))
KNOWN_RADIUS = (1.2, 1.9)  # distances from the object like those it was trained on, object lengths
GEOMETRY = 9  # numbers that describe a hypothesis (``PairJudge._cells``)


@dataclass
class JudgeConfig:
    """Shape of the judge, stored with its weights."""

    image_size: int = 128  # side of the photos it sees, pixels
    planes: int = 16  # planes in the target's camera
    cells: int = 16  # cells a side of a plane
    half_depth: float = 0.6  # planes reach this far before and behind the object's centre, object lengths
    features: int = 20  # channels of the photos' features
    encoder_widths: tuple[int, ...] = (24, 32, 64, 96)  # of the photos' encoder at 1/2, 1/4, 1/8 and 1/16 of the photo's side
    widths: tuple[int, ...] = (24, 48, 96)  # of the network over the cells, each level half as fine as the one before
    head_width: int = 96  # hidden channels of the last layers


@dataclass
class Seen:
    """What the encoder makes of V photos, for use as a target and as a source.

    target (V, cells, cells, features + 1), the last channel coverage; source (V, features + 1, s, s), the same, finer, fp32.
    """

    target: Tensor
    source: Tensor

    def __getitem__(self, index) -> Seen:
        return Seen(self.target[index], self.source[index])


class Residual(nn.Module):
    """Norm, SiLU, convolution, twice, added to (B, C, H, W)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class Encoder(nn.Module):
    """Photos (V, 4, S, S), premultiplied, in [0, 1], to features (V, features, S/4, S/4): a small U-Net down to S/16."""

    def __init__(self, widths: Sequence[int], features: int):
        super().__init__()
        a, b, c, d = widths
        self.entry = nn.Conv2d(4, a, 5, 2, 2)
        self.down = nn.ModuleList(nn.Conv2d(x, y, 3, 2, 1) for x, y in ((a, b), (b, c), (c, d)))
        self.blocks = nn.ModuleList(Residual(x) for x in (b, c, d))
        self.up = nn.ModuleList(nn.Conv2d(x, y, 1) for x, y in ((d, c), (c, b)))
        self.merged = nn.ModuleList(Residual(x) for x in (c, b))
        self.exit = nn.Conv2d(b, features, 1)

    def forward(self, photos: Tensor) -> Tensor:
        levels = [F.silu(self.entry(2 * photos - 0.5))]
        for down, block in zip(self.down, self.blocks):
            levels.append(block(down(levels[-1])))
        x = levels[3]
        for up, merged, fine in zip(self.up, self.merged, (levels[2], levels[1])):
            x = merged(fine + F.interpolate(up(x), scale_factor=2.0))
        return self.exit(F.silu(x))


class Planes(nn.Module):
    """A 3 x 3 convolution in the planes of a volume (M, K, h, w, C), then one of 3 across planes; both of stride ``stride``.

    Both are 2D convolutions of the same memory, channels last, seen as (M K, C, h, w) and as (M, C, K, h w): fast everywhere.
    """

    def __init__(self, width: int, out: int, stride: int = 1):
        super().__init__()
        self.within = nn.Conv2d(width, out, 3, stride, 1)
        self.across = nn.Conv2d(out, out, (3, 1), (stride, 1), (1, 0))

    def forward(self, x: Tensor) -> Tensor:
        m, k = x.shape[:2]
        x = self.within(x.flatten(0, 1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (M K, h, w, C)
        h, w, c = x.shape[1:]
        x = self.across(F.silu(x).reshape(m, k, h * w, c).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x.reshape(m, -1, h, w, c)


class VolumeBlock(nn.Module):
    """``Planes``, added to (M, K, h, w, C); normalised over each volume, unless it is told not to (large volumes)."""

    def __init__(self, width: int, normalised: bool = True):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width)) if normalised else None
        self.planes = Planes(width, width)
        nn.init.zeros_(self.planes.across.weight)
        nn.init.zeros_(self.planes.across.bias)

    def forward(self, x: Tensor) -> Tensor:
        inner = x if self.gain is None else F.layer_norm(x, x.shape[1:]) * self.gain
        return x + self.planes(F.silu(inner))


class PairJudge(nn.Module):
    """Scores (P, H) of H relative poses each of P pairs of photos.

    ``encode`` once a photo, then ``score`` any number of hypotheses.
    """

    def __init__(self, config: JudgeConfig | None = None):
        super().__init__()
        self.config = config = config or JudgeConfig()
        a, b, c = config.widths
        self.encoder = Encoder(config.encoder_widths, config.features)
        self.from_target = nn.Linear(config.features + 1, a)
        described = 3 * config.features + 6
        self.from_both = nn.Linear(described, a)
        self.from_geometry = nn.Linear(GEOMETRY, a)
        self.mixed = nn.Linear(a, a)
        self.fine = VolumeBlock(a, normalised=False)
        self.down1, self.middle = Planes(a, b, 2), nn.ModuleList(VolumeBlock(b) for _ in range(2))
        self.down2, self.coarse = Planes(b, c, 2), nn.ModuleList(VolumeBlock(c) for _ in range(2))
        self.head = nn.Sequential(nn.Linear(2 * described + 2 * b + 2 * c + GEOMETRY + 2, config.head_width), nn.SiLU(), nn.Linear(config.head_width, 1, bias=False))
        self.register_buffer("offsets", (torch.arange(config.planes) + 0.5) / config.planes * 2 * config.half_depth - config.half_depth, persistent=False)
        self.register_buffer("line", (torch.arange(config.cells) + 0.5) / config.cells * 2 - 1, persistent=False)

    def encode(self, photos: Tensor) -> Seen:
        """Of photos (V, 4, S, S), premultiplied, in [0, 1]."""
        cells = self.config.cells
        features = self.encoder(photos)
        cover = F.interpolate(photos[:, 3:], features.shape[-2:], mode="area")
        source = torch.cat([features.float(), cover], 1)
        target = F.interpolate(source, (cells, cells), mode="area").permute(0, 2, 3, 1)
        return Seen(target, source)

    def score(self, first: Seen, second: Seen, elevation: Tensor, delta: Tensor, radius: Tensor) -> Tensor:
        """Scores (P, H) of the pairs ``first[p]``, ``second[p]``.

        elevation (P, H, 2) of both cameras, delta (P, H) azimuth of the second minus that of the first, radians; radius (P, H, 2).
        """
        both = Seen(torch.cat([first.target, second.target]), torch.cat([first.source, second.source]))
        other = Seen(torch.cat([second.target, first.target]), torch.cat([second.source, first.source]))
        flipped = lambda x: torch.cat([x, x.flip(-1)])  # noqa: E731
        scores = self._directed(both, other, flipped(elevation), torch.cat([delta, -delta]), flipped(radius))
        return scores.unflatten(0, (2, -1)).mean(0)

    def forward(self, photos_first: Tensor, photos_second: Tensor, elevation: Tensor, delta: Tensor, radius: Tensor) -> Tensor:
        """``encode`` and ``score`` of photos (P, 4, S, S)."""
        seen = self.encode(torch.cat([photos_first, photos_second]))
        return self.score(seen[: len(photos_first)], seen[len(photos_first) :], elevation, delta, radius)

    def _directed(self, target: Seen, source: Seen, elevation: Tensor, delta: Tensor, radius: Tensor) -> Tensor:
        """Scores (P, H) with the planes in the camera of ``target``; poses as in ``score``, the target's first."""
        pairs, hypotheses = delta.shape
        planes, cells = self.config.planes, self.config.cells
        with torch.no_grad(), torch.autocast(delta.device.type, enabled=False):  # places need all their digits
            where, geometry, cell = self._cells(elevation.float(), delta.float(), radius.float())
        read = F.grid_sample(source.source, where.view(pairs, -1, cells, 2), mode="bilinear", padding_mode="zeros", align_corners=False)
        read = read.permute(0, 2, 3, 1).reshape(pairs, hypotheses, planes, cells, cells, -1)  # (P, H, K, c, c, F + 1)
        own = target.target[:, None, None]  # (P, 1, 1, c, c, F + 1)
        with torch.no_grad():
            hull = own[..., -1:] * read[..., -1:]
            passed = torch.cumprod(1 - hull, 2)
            front = hull * torch.cat([torch.ones_like(passed[:, :, :1]), passed[:, :, :-1]], 2)  # what the target sees first
            cover = own[..., -1].sum((-2, -1)).clamp_min(1e-3)  # (P, 1, 1)
            explained = front.sum((2, 3, 4))[..., 0] / cover[:, :, 0]  # (P, H): how much of the target's outline the hull fills
            wasted = (read[..., -1:] - hull).amax(2).mean((2, 3))[..., 0]  # what the source shows outside of it
        half = torch.get_autocast_dtype(read.device.type) if torch.is_autocast_enabled(read.device.type) else torch.float32
        own, seen = own[..., :-1].to(half), read[..., :-1].to(half)
        described = torch.cat([seen, own * seen, (own - seen).abs(), read[..., -1:].to(half), hull.to(half), front.to(half), cell.to(half)], -1)
        weights = torch.stack([hull.flatten(2), front.flatten(2)], 2).flatten(0, 1)  # (P H, 2, cells)
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(0.1)
        summary = [(weights.to(half) @ described.flatten(2, 4).flatten(0, 1)).flatten(1)]
        x = self.from_both(described) + self.from_target(target.target)[:, None, None] + self.from_geometry(geometry)[:, :, None, None, None]
        x = self.mixed(F.silu(x)).flatten(0, 1)
        x = self.fine(x)
        x = self.down1(F.silu(x))
        for block in self.middle:
            x = block(x)
        pooled = lambda weight: F.avg_pool3d(weight.flatten(0, 1)[..., 0][:, None], 2)[:, 0, ..., None]  # noqa: E731
        summary += [(x * w).sum((1, 2, 3)) / w.sum((1, 2, 3)).clamp_min(1e-2) for w in (pooled(hull), pooled(front))]
        x = self.down2(F.silu(x))
        for block in self.coarse:
            x = block(x)
        summary += [x.mean((1, 2, 3)), x.amax((1, 2, 3))]
        facts = torch.cat([geometry, explained[..., None], wasted[..., None]], -1).flatten(0, 1)
        return self.head(torch.cat([*(s.float() for s in summary), facts], -1)).float().view(pairs, hypotheses)

    def _cells(self, elevation: Tensor, delta: Tensor, radius: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where the cells are in the source (P, H, K, c, c, 2), ``grid_sample`` coordinates; geometry (P, H, GEOMETRY): sine and
        cosine of both elevations, direction to the source's camera in the target's, distances less 1.5; and for every cell
        (P, H, K, c, c, 3): its depth, height in the world, and depth in the source."""
        zero = torch.zeros_like(delta)
        target, source = (torch.stack(axes_of(e, a), -2) for e, a in ((elevation[..., 0], zero), (elevation[..., 1], delta)))  # (P, H, 3, 3)
        relative = source @ target.transpose(-1, -2)
        # In the target's camera the object's centre is at (0, 0, -radius); the source's camera is turned about it.
        depth = radius[..., :1] + self.offsets  # (P, H, K)
        across = self.line * TANGENT
        shape = (*delta.shape, len(self.offsets), len(self.line), len(self.line))
        x = (across * depth[..., None])[..., None, :].expand(shape)
        y = (-across * depth[..., None])[..., :, None].expand(shape)
        z = -self.offsets[:, None, None].expand(shape)  # from the object's centre, backwards
        point = torch.stack([x, y, z], -1)
        up = target[..., :, 2]  # the world's up axis in the target's camera
        height = (point * up[:, :, None, None, None]).sum(-1)
        there = (point.flatten(2, 4) @ relative.transpose(-1, -2)).view(*shape, 3)
        away = (radius[..., 1, None, None, None] - there[..., 2]).clamp_min(0.1)
        where = torch.stack([there[..., 0], -there[..., 1]], -1) / (away[..., None] * TANGENT)
        direction = relative[..., 2, :]  # the source's backward axis in the target's camera
        geometry = torch.cat([elevation.sin(), elevation.cos(), direction, radius - 1.5], -1)
        return where, geometry, torch.stack([-z, height, -there[..., 2]], -1)


def at_field_of_view(image: np.ndarray, fov_rad: float, scale: float = 1.0) -> np.ndarray:
    """A square photo (S, S, C) of another field of view cut, or padded with zeros, to the protocol's, to a pixel; scale: on the tangents that it then shows."""
    margin = round(len(image) * (TANGENT * scale / np.tan(fov_rad / 2) - 1) / 2)
    return np.pad(image, ((margin, margin), (margin, margin), (0, 0))) if margin >= 0 else image[-margin:margin, -margin:margin]


# --- use --------------------------------------------------------------------------------------------------------------
class SceneJudge:
    """The judge's opinion of configurations of one scene's photos (straight RGBA, square)."""

    CHUNK = 24  # hypotheses of a pair worked on at once

    def __init__(self, judge: PairJudge, images: list[np.ndarray], fov_rad: Sequence[float] | None = None):
        """fov_rad: across every photo; the protocol's by default. Objects that others show from outside of ``KNOWN_RADIUS`` are judged as if from its
        end, at the size that they have in the photo; their perspective is a little wrong then."""
        from relposepp.estimate import network_inputs

        self.judge, self.scale = judge, 1.0
        if fov_rad:
            likely = likely_radius(fov_rad)
            scale = np.clip(likely, *KNOWN_RADIUS) / likely
            images = [at_field_of_view(image, fov, s) for image, fov, s in zip(images, fov_rad, scale)]
            self.scale = torch.from_numpy(scale).float().to(judge.offsets.device)
        photos, _ = network_inputs(images, judge.config.image_size, False)
        with torch.no_grad():
            self.seen = judge.encode(torch.from_numpy(photos).to(judge.offsets.device))

    @torch.no_grad()
    def scores(self, elevation_rad, azimuth_rad, radius) -> np.ndarray:
        """(K,) of configurations (K, N), arrays or tensors: mean over pairs, larger is better."""
        elevation, azimuth, radius = (torch.as_tensor(x).float().to(self.judge.offsets.device) for x in (elevation_rad, azimuth_rad, radius))
        radius = radius * self.scale
        views, found = elevation.shape[1], []
        pairs = [(i, j) for i in range(views) for j in range(i + 1, views)]
        for i, j in pairs:
            first, second = self.seen[i : i + 1], self.seen[j : j + 1]
            parts = [
                self.judge.score(first, second, e[None][..., [i, j]], (a[:, j] - a[:, i])[None], r[None][..., [i, j]])[0]
                for e, a, r in zip(*(x.split(self.CHUNK) for x in (elevation, azimuth, radius)))
            ]
            found.append(torch.cat(parts))
        return torch.stack(found).mean(0).double().cpu().numpy()


# --- weights ----------------------------------------------------------------------------------------------------------
def save_judge(folder: Path | str, judge: PairJudge) -> None:
    """Write model.safetensors (matrices in 8 bits with a scale a row, the rest fp16) and config.json into ``folder``."""
    from safetensors.torch import save_file

    from sap3d.scene import atomic_path, write_json

    state: dict[str, Tensor] = {}
    for name, value in judge.state_dict().items():
        value = value.detach().float().cpu().contiguous()
        if value.ndim < 2:
            state[name] = value.half()
            continue
        state[name], state[name + SCALE] = quantise(value)
    Path(folder).mkdir(parents=True, exist_ok=True)
    with atomic_path(Path(folder) / "model.safetensors") as temporary:
        save_file(state, temporary)
    write_json(Path(folder) / "config.json", asdict(judge.config))


def load_judge(folder: Path | str | None = None, device: str = "cpu") -> PairJudge:
    """The judge of a folder written by ``save_judge`` (None or empty: the bundled one), in eval mode.

    Raises InputError when the folder is incomplete or its tensors do not fit its configuration.
    """
    from safetensors.torch import load_file

    folder = Path(folder) if folder else BUNDLED
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: no {name}; give a folder with weights of the judge or restore the bundled ones from the repository")
    with explaining(lambda error: f"{folder}: not weights of this judge ({first_line(error)})"):
        values = json.loads((folder / "config.json").read_text())
        judge = PairJudge(JudgeConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}))
        with explaining(lambda error: f"{folder}/model.safetensors: cannot be read ({first_line(error)}); restore the file"):
            state = load_file(folder / "model.safetensors")
        judge.load_state_dict(restored(state))
    return judge.to(device).eval()
