"""Training pairs of the prior: drawn from the packed corpus by step number, so that a resumed run sees the same data."""

from __future__ import annotations

import itertools
from typing import Iterator

import numpy as np
import torch
from torch import Tensor

# The encoder looks at 128 pixels, the autoencoder at the model's own size.
CONDITION_SIZE = 128
_PERMUTATIONS = torch.tensor(list(itertools.permutations(range(3))))


class PairSource:
    """Batches of condition views and target views of the same objects.

    ``corpus`` needs ``images`` (objects, views, S, S, 4) uint8 premultiplied and ``polar_rad``, ``azimuth_rad``,
    ``radius`` (objects, views), as dataset.corpus_reader gives. Everything of a batch follows from (seed, step, rank).
    """

    def __init__(self, corpus, small, conditions: int, targets: int, seed: int, augment: bool = True):
        self.large, self.small = corpus.images, small.images
        self.poses = np.stack([corpus.polar_rad, corpus.azimuth_rad, corpus.radius], -1).astype(np.float32)
        self.conditions, self.targets, self.seed, self.augment = conditions, targets, seed, augment

    def batch(self, step: int, rank: int = 0) -> dict[str, Tensor]:
        """condition (G, 3, 128, 128), target (G K, 3, s, s), pose (G K, 4); G conditions, K targets each, grouped."""
        rng = np.random.default_rng([self.seed, step, rank])
        objects = rng.integers(len(self.poses), size=self.conditions)
        views = np.stack([rng.permutation(self.poses.shape[1])[: self.targets + 1] for _ in objects])
        tint = random_tints(rng, self.conditions) if self.augment else np.ones((self.conditions, 3), np.float32)
        condition = over_white(self.large[objects, views[:, 0]], tint)
        target = over_white(self.small[objects[:, None], views[:, 1:]].reshape(-1, *self.small.shape[2:]), tint.repeat(self.targets, 0))
        pose = relative_poses(self.poses[objects[:, None], views[:, 1:]], self.poses[objects, views[:, :1].T].transpose(1, 0, 2))
        pose = torch.from_numpy(pose).reshape(-1, 4)
        if self.augment:
            condition, target, pose = augment(condition, target, pose, rng, self.targets)
        return {"condition": condition, "target": target, "pose": pose}

    def stream(self, start: int, rank: int = 0) -> Iterator[dict[str, Tensor]]:
        for step in itertools.count(start):
            yield self.batch(step, rank)


def random_tints(rng: np.random.Generator, count: int, probability: float = 0.6) -> np.ndarray:
    """(count, 3) factors of the objects' colours in (0, 1], the largest of a row near 1; a row of ones is left alone.

    A third of the corpus is grey or white: without tints, a small model learns to paint grey.
    """
    tints = rng.uniform(0.1, 1.0, (count, 3))
    tints = tints / tints.max(1, keepdims=True) * rng.uniform(0.6, 1.0, (count, 1))
    return np.where(rng.random((count, 1)) < probability, tints, 1.0).astype(np.float32)


def over_white(premultiplied: np.ndarray, tint: np.ndarray | None = None) -> Tensor:
    """uint8 premultiplied RGBA (B, S, S, 4) to float (B, 3, S, S) over white in [0, 1], colours times ``tint`` (B, 3)."""
    image = torch.from_numpy(np.ascontiguousarray(premultiplied))
    rgb = image[..., :3].float()
    if tint is not None:
        rgb = rgb * torch.from_numpy(tint)[:, None, None]
    rgb = rgb + (255 - image[..., 3:].float())
    return (rgb / 255).clamp(0, 1).permute(0, 3, 1, 2).contiguous()


def relative_poses(target: np.ndarray, condition: np.ndarray) -> np.ndarray:
    """Zero-1-to-3's T (..., 4) from (polar, azimuth, radius) arrays that broadcast; see sap3d.cameras.pose_condition."""
    delta = target - condition
    return np.stack([delta[..., 0], np.sin(delta[..., 1]), np.cos(delta[..., 1]), delta[..., 2]], -1)


def augment(condition: Tensor, target: Tensor, pose: Tensor, rng: np.random.Generator, targets: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mirror whole groups (the azimuth difference changes sign: exact) and permute their colour channels."""
    groups = len(condition)
    flip = torch.from_numpy(rng.random(groups) < 0.5)
    each = flip.repeat_interleave(targets)
    condition = torch.where(flip[:, None, None, None], condition.flip(-1), condition)
    target = torch.where(each[:, None, None, None], target.flip(-1), target)
    pose = pose.clone()
    pose[:, 1] = torch.where(each, -pose[:, 1], pose[:, 1])
    order = _PERMUTATIONS[torch.from_numpy(np.where(rng.random(groups) < 0.5, 0, rng.integers(6, size=groups)))]
    condition = torch.stack([c[o] for c, o in zip(condition, order)])
    target = torch.stack([t[o] for t, o in zip(target, order.repeat_interleave(targets, 0))])
    return condition, target, pose
