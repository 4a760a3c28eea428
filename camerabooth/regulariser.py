"""Regulariser objects for prior preservation: chosen by similarity of AlexNet features, or at random."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from camerabooth.config import BoothConfig
from sap3d.errors import InputError
from sap3d.regularisers import RegulariserObject, list_regularisers, load_regularisers
from sap3d.scene import Scene, load_array

_VIEWS_COMPARED = 4  # views of each object that are compared with the photos


def choose_regularisers(scene: Scene, photos: Tensor, choice: str, count: int, seed: int) -> list[RegulariserObject]:
    """The objects whose renders accompany the photos in training, at 128 pixels.

    ``similar`` takes those that an existing ``query_class/query_match_paths.npy`` of the object names (ids, one a row), otherwise those with
    the largest cosine between mean AlexNet features of a photo and of a view. ``random`` and ``none`` ignore that file, and where
    there are no regulariser objects at all it counts for nothing, which is said in a line. ``photos`` (N, 3, S, S).
    """
    if choice not in BoothConfig.CHOICES["regulariser"]:
        raise InputError(f"regulariser={choice!r} is unknown: use one of {', '.join(BoothConfig.CHOICES['regulariser'])}")
    if choice == "none" or count < 1:
        return []
    known = list_regularisers(scene.regulariser_dir)
    matches = scene.train_dir / "query_class" / "query_match_paths.npy"
    if not known:
        if matches.is_file() and choice == "similar":
            print(f"camerabooth: {matches} counts for nothing: {scene.regulariser_dir} holds no regulariser objects", flush=True)
        return []
    if matches.is_file() and choice == "similar":
        return load_regularisers(scene.regulariser_dir, _read_matches(matches, known)[:count], 128)
    if choice == "random":
        picked = np.random.default_rng(seed).permutation(len(known))[:count]
        return load_regularisers(scene.regulariser_dir, [known[i] for i in sorted(picked)], 128)
    query = _descriptors(photos)
    scores = []
    for item in load_regularisers(scene.regulariser_dir, known, 128, _VIEWS_COMPARED):
        views = torch.from_numpy(item.over_white()).permute(0, 3, 1, 2).float() / 255
        scores.append(float((query @ _descriptors(views).T).max(1).values.mean()))
    return load_regularisers(scene.regulariser_dir, [known[i] for i in np.argsort(scores)[::-1][:count]], 128)


def _descriptors(images: Tensor) -> Tensor:
    """Unit vectors (B, 256): AlexNet features averaged over positions."""
    from sap3d.alexnet import alexnet_tokens

    images = torch.nn.functional.interpolate(images, (128, 128), mode="bilinear", antialias=True, align_corners=False)
    with torch.no_grad():
        return torch.nn.functional.normalize(alexnet_tokens(images).mean((2, 3)), dim=1)


def _read_matches(path: Path, known: list[str]) -> list[str]:
    rows = load_array(path, "an array of object ids").astype(str).ravel()
    ids = [Path(row).name for row in rows]
    missing = [i for i in ids if i not in known]
    if missing:
        raise InputError(f"{path}: names the regulariser object {missing[0]!r}, which is not there; fetch it or delete the file")
    return ids
