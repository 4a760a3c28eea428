"""Regulariser objects for prior preservation: chosen by similarity of AlexNet features, or at random.

    python -m camerabooth.regulariser --type T --object O --views N [--count 8]

writes the choice by similarity to ``query_class/query_match_paths.npy`` beside the photos, best first: a list that stage 2 then
keeps to, to look at or to change by hand. Without the file stage 2 makes the same choice by itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

import numpy as np
import torch
from torch import Tensor

from camerabooth.config import BoothConfig
from sap3d.config import add_scene_arguments
from sap3d.errors import ArgumentParser, InputError, cli
from sap3d.images import load_input_views
from sap3d.regularisers import RegulariserObject, list_regularisers, load_regularisers
from sap3d.scene import Scene, atomic_path, load_array

PACK_SIZE = 128  # pixels of the bundled ones
_VIEWS_COMPARED = 4  # views of each object that are compared with the photos


def choose_regularisers(scene: Scene, photos: Tensor, choice: str, count: int, seed: int, size: int = PACK_SIZE) -> list[RegulariserObject]:
    """The objects whose renders accompany the photos in training, at ``size`` pixels (those of a pack are enlarged to more than its own).

    ``similar`` takes those that an existing ``query_class/query_match_paths.npy`` of the object names (ids, one a row), otherwise those with
    the largest cosine between mean AlexNet features of a photo and of a view. ``random`` and ``none`` ignore that file, and where
    there are no regulariser objects at all it counts for nothing, which is said in a line. ``photos`` (N, 3, S, S).
    """
    if choice not in BoothConfig.CHOICES["regulariser"]:
        raise InputError(f"regulariser={choice!r} is unknown: use one of {', '.join(BoothConfig.CHOICES['regulariser'])}")
    if choice == "none" or count < 1:
        return []
    known = list_regularisers(scene.regulariser_dir)
    matches = scene.regulariser_list
    if not known:
        if matches.is_file() and choice == "similar":
            print(f"camerabooth: {matches} counts for nothing: {scene.regulariser_dir} holds no regulariser objects", flush=True)
        return []
    if matches.is_file() and choice == "similar":
        return load_regularisers(scene.regulariser_dir, _read_matches(matches, known)[:count], size)
    if choice == "random":
        picked = np.random.default_rng(seed).permutation(len(known))[:count]
        return load_regularisers(scene.regulariser_dir, [known[i] for i in sorted(picked)], size)
    return load_regularisers(scene.regulariser_dir, list(most_similar(scene, photos, known, count)), size)


def most_similar(scene: Scene, photos: Tensor, known: Sequence[str], count: int) -> dict[str, float]:
    """The ``count`` objects of ``known`` that look most like the photos (N, 3, S, S), best first: the mean over the photos of the largest cosine to a view."""
    query, scores = _descriptors(photos.cpu()), []  # of a few small images: not worth a GPU
    for item in load_regularisers(scene.regulariser_dir, known, PACK_SIZE, _VIEWS_COMPARED):
        views = torch.from_numpy(item.over_white()).permute(0, 3, 1, 2).float() / 255
        scores.append(float((query @ _descriptors(views).T).max(1).values.mean()))
    return {known[i]: scores[i] for i in np.argsort(scores)[::-1][:count]}


def _descriptors(images: Tensor) -> Tensor:
    """Unit vectors (B, 256): AlexNet features averaged over positions."""
    from sap3d.alexnet import alexnet_tokens

    images = torch.nn.functional.interpolate(images, (PACK_SIZE, PACK_SIZE), mode="bilinear", antialias=True, align_corners=False)
    with torch.no_grad():
        return torch.nn.functional.normalize(alexnet_tokens(images).mean((2, 3)), dim=1)


def _read_matches(path: Path, known: list[str]) -> list[str]:
    rows = load_array(path, "an array of object ids").astype(str).ravel()
    ids = [Path(row).name for row in rows]
    missing = [i for i in ids if i not in known]
    if missing:
        raise InputError(f"{path}: names the regulariser object {missing[0]!r}, which is not there; fetch it or delete the file")
    return ids


def main() -> None:
    parser = ArgumentParser(prog="python -m camerabooth.regulariser", description="Choose regulariser objects that look like an object's photos, and keep the list.")
    add_scene_arguments(parser)
    parser.add_argument("--count", type=int, default=BoothConfig().regulariser_objects, help="how many (default: stage 2's %(default)s)")
    arguments = parser.parse_args()
    if arguments.count < 1:
        raise InputError(f"--count {arguments.count} must be at least 1")
    scene = Scene(arguments.type, arguments.object, arguments.views)
    known = list_regularisers(scene.regulariser_dir)
    if not known:
        raise InputError(f"{scene.regulariser_dir}: holds no regulariser objects; restore its regularisers.npz from the repository")
    from sap3d.zero123.photos import photos_over_white

    found = most_similar(scene, photos_over_white(load_input_views(scene))[:, :3], known, arguments.count)
    scene.regulariser_list.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(scene.regulariser_list) as temporary, open(temporary, "wb") as stream:
        np.save(stream, np.array(list(found)))
    print("\n".join(f"{score:.3f}  {uid}" for uid, score in found.items()))
    print(f"written to {scene.regulariser_list}")


if __name__ == "__main__":
    cli(main)
