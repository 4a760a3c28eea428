"""Training data of stage 1: views of the corpus as tokens of the frozen image encoder, computed once and mapped from disk.

A corpus is anything with ``images`` (objects, views, S, S, 4) uint8, premultiplied by alpha, and ``polar_rad``,
``azimuth_rad``, ``radius`` (objects, views), ``names`` optional: dataset.corpus_reader.CorpusReader.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from relposepp.network import ViewEncoder, compress
from relposepp.rotations import look_at_rotation
from sap3d.progress import Progress
from sap3d.scene import atomic_path


@dataclass
class Batch:
    """Scenes of one step: tokens (B, N, P, channels) float16, rotations (B, N, 3, 3); angles and radius (B, N)."""

    tokens: torch.Tensor
    rotations: np.ndarray
    elevation_rad: np.ndarray
    azimuth_rad: np.ndarray
    radius: np.ndarray


def augment(images: np.ndarray, variant: int, generator: np.random.Generator) -> np.ndarray:
    """One object's views (V, S, S, 4) uint8 as float32 in [0, 1], changed the way ``variant`` says.

    Odd variants are mirrored (azimuth a becomes 180 degrees - a: an exact view of the object mirrored left to right, whose
    front stays where it was). From variant 2 on the
    colours of the object are permuted, stretched and shifted, the same in all its views.
    """
    images = images.astype(np.float32) / 255
    if variant % 2:
        images = images[:, :, ::-1]
    if variant >= 2:
        alpha = images[..., 3:]
        colour = images[..., :3][..., generator.permutation(3)]
        gain = generator.uniform(0.6, 1.4, 3).astype(np.float32)
        shift = generator.uniform(-0.15, 0.15, 3).astype(np.float32)
        colour = np.clip(colour * gain + shift * alpha, 0, alpha)
        images = np.concatenate([colour, alpha], -1)
    return np.ascontiguousarray(images)


@dataclass
class Version:
    """One corpus in one augmentation: tokens (objects, views, P, channels) and angles and radii (objects, views)."""

    tokens: np.ndarray
    elevation_rad: np.ndarray
    azimuth_rad: np.ndarray
    radius: np.ndarray


class TokenCache:
    """Tokens of all views of some corpora, each in ``variants`` augmented versions.

    Args:
        corpora: see the module's doc string; one or a list.
        encoder: a ViewEncoder with a frozen trunk; its image_tokens are stored as float16.
        folder: where the arrays are kept; they are made again when corpus or encoder change.
    """

    def __init__(self, corpora, encoder: ViewEncoder, folder: Path, variants: int, device: str = "cpu", name: str = "train"):
        self.versions: list[Version] = []
        for corpus in corpora if isinstance(corpora, list) else [corpora]:
            azimuth = np.asarray(corpus.azimuth_rad, np.float64)
            elevation, radius = np.pi / 2 - np.asarray(corpus.polar_rad, np.float64), np.asarray(corpus.radius, np.float64)
            facts = f"{corpus.images.shape} {azimuth.sum():.9e} {radius.sum():.9e} {corpus.images[::97].sum()} {encoder.tokens_identity()}"
            key = hashlib.sha256(facts.encode()).hexdigest()[:12]
            for variant in range(variants):
                path = Path(folder) / f"{name}_{key}_{variant}.npy"
                if not path.is_file():
                    self._build(path, corpus, encoder, variant, device)
                seen = np.pi - azimuth if variant % 2 else azimuth
                self.versions.append(Version(np.load(path, mmap_mode="r"), elevation, seen, radius))

    @property
    def objects(self) -> int:
        return len(self.versions[0].tokens)

    def _build(self, path: Path, corpus, encoder: ViewEncoder, variant: int, device: str) -> None:
        names = getattr(corpus, "names", None) or [str(row) for row in range(len(corpus.images))]
        shape = (*corpus.images.shape[:2], encoder.tokens, encoder.token_channels)
        with atomic_path(path) as temporary, torch.no_grad(), Progress(f"tokens {path.stem}", shape[0]) as progress:
            array = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
            for row in range(shape[0]):
                images = augment(np.asarray(corpus.images[row]), variant, np.random.default_rng([variant, zlib.crc32(names[row].encode())]))
                tokens = encoder.image_tokens(torch.from_numpy(images).permute(0, 3, 1, 2).to(device))
                array[row] = tokens.half().cpu().numpy()
                progress.update(row + 1)
            array.flush()

    def statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation (channels,) of the compressed tokens, from every 17th object."""
        sample = compress(torch.from_numpy(np.asarray(self.versions[0].tokens[::17]).astype(np.float32)).flatten(0, 2))
        return sample.mean(0), sample.std(0).clamp_min(0.1)

    def batch(self, scenes: int, views: int, generator: np.random.Generator) -> Batch:
        """``scenes`` random objects, each in one random version, with ``views`` different random views."""
        versions = generator.integers(len(self.versions), size=scenes)
        rows = [int(generator.integers(len(self.versions[v].tokens))) for v in versions]
        columns = [generator.permutation(self.versions[v].tokens.shape[1])[:views] for v in versions]
        return self.take(versions, rows, columns)

    def take(self, versions, rows, columns) -> Batch:
        """The scenes of given versions (B,), objects (B,) and views (B, N)."""
        chosen = [(self.versions[v], r, np.asarray(c)) for v, r, c in zip(versions, rows, columns)]
        tokens = torch.from_numpy(np.stack([version.tokens[r][c] for version, r, c in chosen]))
        elevation = np.stack([version.elevation_rad[r][c] for version, r, c in chosen])
        azimuth = np.stack([version.azimuth_rad[r][c] for version, r, c in chosen])
        radius = np.stack([version.radius[r][c] for version, r, c in chosen])
        return Batch(tokens, look_at_rotation(elevation, azimuth), elevation, azimuth, radius)
