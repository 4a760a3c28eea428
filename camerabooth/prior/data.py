"""Training pairs of the prior: drawn from the packed corpus by step number, so that a resumed run sees the same data."""

from __future__ import annotations

import itertools
from typing import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from sap3d.cameras import FOV_RAD

_PERMUTATIONS = torch.tensor(list(itertools.permutations(range(3))))


class PairSource:
    """Batches of sets of condition views and of target views of the same objects.

    ``corpora``: each has ``images`` (objects, views, S, S, 4) uint8 premultiplied and ``polar_rad``, ``azimuth_rad``,
    ``radius`` (objects, views), as dataset.corpus_reader gives; S is the size of condition and target. ``sets``:
    probabilities of 1, 2, .. conditions a set. Everything of a batch follows from (seed, step, rank). ``device``: keep all images
    there and make the batches there, a processor cannot make them as fast as a GPU uses them; the same batches (None: the images stay
    where they are, mapped from disk).
    """

    def __init__(self, corpora: Sequence, groups: int, targets: int, seed: int, sets: Sequence[float] = (1.0,), augment: bool = True,
                 device: torch.device | str | None = None):  # fmt: skip
        self.images = [corpus.images for corpus in corpora]
        self.poses = np.concatenate([np.stack([c.polar_rad, c.azimuth_rad, c.radius], -1) for c in corpora]).astype(np.float32)
        self.starts = np.cumsum([0] + [len(images) for images in self.images])
        self.groups, self.targets, self.seed, self.augment = groups, targets, seed, augment
        self.sets = np.asarray(sets, float) / sum(sets)
        self.device = torch.device(device or "cpu")
        self.resident = _resident(self.images, self.device) if device else None

    def __len__(self) -> int:
        return len(self.poses)

    @property
    def size(self) -> int:
        return self.images[0].shape[2]

    def views(self, index: int, views: np.ndarray) -> np.ndarray:
        """(V, S, S, 4) uint8 premultiplied of one object."""
        which = int(np.searchsorted(self.starts, index, "right")) - 1
        return self.images[which][index - self.starts[which]][views]

    def batch(self, step: int, rank: int = 0) -> dict[str, Tensor]:
        """condition and target (G, M, 4, S, S) and (G, K, 4, S, S): colour over white and coverage; pose (G, K, M, 8)."""
        rng = np.random.default_rng([self.seed, step, rank])
        count = 1 + int(rng.choice(len(self.sets), p=self.sets))
        objects = rng.integers(len(self.poses), size=self.groups)
        chosen = np.stack([rng.permutation(self.poses.shape[1])[: count + self.targets] for _ in objects])
        tint = random_tints(rng, self.groups) if self.augment else np.ones((self.groups, 3), np.float32)
        if self.resident is None:
            views = torch.from_numpy(np.stack([self.views(i, v) for i, v in zip(objects, chosen)]))
        else:
            views = self.resident[torch.from_numpy(objects).to(self.device)[:, None], torch.from_numpy(chosen).to(self.device)]
        images = over_white(views, torch.from_numpy(tint).to(self.device))
        poses = self.poses[objects[:, None], chosen]
        pose = torch.from_numpy(relative_poses(poses[:, count:, None], poses[:, None, :count])).to(self.device)
        if self.augment:
            images, pose = augment(images, pose, rng)
        return {"condition": images[:, :count], "target": images[:, count:], "pose": pose}

    def stream(self, start: int, rank: int = 0) -> Iterator[dict[str, Tensor]]:
        for step in itertools.count(start):
            yield self.batch(step, rank)


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def random_tints(rng: np.random.Generator, count: int, probability: float = 0.6) -> np.ndarray:
    """(count, 3) factors of the objects' colours in (0, 1], the largest of a row near 1; a row of ones is left alone.

    A third of the corpus is grey or white: without tints, a small model learns to paint grey.
    """
    tints = rng.uniform(0.1, 1.0, (count, 3))
    tints = tints / tints.max(1, keepdims=True) * rng.uniform(0.6, 1.0, (count, 1))
    return np.where(rng.random((count, 1)) < probability, tints, 1.0).astype(np.float32)


def over_white(premultiplied: np.ndarray | Tensor, tint: Tensor | None = None) -> Tensor:
    """uint8 premultiplied RGBA (..., S, S, 4) to float (..., 4, S, S) in [0, 1]: colours times ``tint`` (the first axis, 3) over white, alpha."""
    image = torch.as_tensor(premultiplied).float()
    rgb, alpha = image[..., :3], image[..., 3:]
    if tint is not None:
        rgb = rgb * tint.view(len(tint), *[1] * (rgb.ndim - 2), 3)
    return (torch.cat([rgb + (255 - alpha), alpha], -1) / 255).clamp(0, 1).movedim(-1, -3).contiguous()


def _resident(parts: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """All objects' images as one tensor, copied a few objects at a time: they may be mapped from disk."""
    out = torch.empty((sum(map(len, parts)), *parts[0].shape[1:]), dtype=torch.uint8, device=device)
    row = 0
    for part in parts:
        for first in range(0, len(part), 64):
            block = torch.from_numpy(np.array(part[first : first + 64]))
            out[row : row + len(block)] = block.to(device)
            row += len(block)
    return out


def relative_poses(target: np.ndarray, condition: np.ndarray) -> np.ndarray:
    """Poses (..., 8) from (polar, azimuth, radius) arrays that broadcast; see sap3d.cameras.pose_condition."""
    target, condition = np.broadcast_arrays(target, condition)
    delta = target - condition
    tangent = np.full_like(delta[..., 0], np.tan(FOV_RAD / 2))
    return np.stack(
        [delta[..., 0], np.sin(delta[..., 1]), np.cos(delta[..., 1]), delta[..., 2], condition[..., 0], condition[..., 2], tangent, tangent], -1
    )  # fmt: skip


def augment(images: Tensor, pose: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mirror whole groups (the azimuth difference changes sign: exact) and permute their colour channels."""
    groups, device = len(images), images.device
    flip = torch.from_numpy(rng.random(groups) < 0.5).to(device)
    images = torch.where(flip[:, None, None, None, None], images.flip(-1), images)
    pose = pose.clone()
    pose[..., 1] = torch.where(flip[:, None, None], -pose[..., 1], pose[..., 1])
    order = _PERMUTATIONS[torch.from_numpy(np.where(rng.random(groups) < 0.5, 0, rng.integers(6, size=groups)))]
    order = torch.cat([order, torch.full((groups, 1), 3)], 1).to(device)  # alpha stays
    return images.transpose(1, 2)[torch.arange(groups, device=device)[:, None], order].transpose(1, 2), pose


def jitter_poses(pose: Tensor, noise_deg: Sequence[float], generator: torch.Generator) -> Tensor:
    """Poses (G, K, M, 8) with errors in the conditions' azimuths and elevations, the same for all targets of a group; each
    group's spread is one of ``noise_deg``, drawn at random."""
    groups, _, count, _ = pose.shape
    spread = torch.tensor(np.deg2rad(noise_deg), dtype=pose.dtype)[torch.randint(len(noise_deg), (groups, 1, 1), generator=generator)]
    azimuth, polar = (spread * torch.randn(2, groups, 1, count, generator=generator)).to(pose.device)
    delta, sine, cosine, radius, condition, *rest = pose.unbind(-1)
    turned = torch.atan2(sine, cosine) + azimuth
    return torch.stack([delta - polar, turned.sin(), turned.cos(), radius, condition + polar, *rest], -1)
