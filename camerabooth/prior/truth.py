"""True cameras of objects with ground truth, for programs that measure; no stage does. Needs no PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Iterable

import numpy as np

from sap3d.cameras import Camera, camera_from_pose
from sap3d.errors import InputError
from sap3d.scene import REPOSITORY, check_name, read_pose, root_dir


def objects_of(type_: str) -> list[str]:
    """Objects of a type that have true poses, sorted: those below ROOT_DIR, and where there is none those that the repository bundles.

    Raises InputError where neither has any.
    """
    for root in (root_dir(), REPOSITORY):
        folder = root / "dataset" / "data" / "train" / check_name(type_, "dataset type")
        found = sorted(path.name for path in folder.glob("[!.]*") if (path / "poses").is_dir())
        if found:
            return found
    raise InputError(f"{root_dir() / 'dataset' / 'data' / 'train' / type_}: no objects with true poses; dataset/gso.py and dataset/render.py make them")


def true_poses(folder: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Poses (3, 4) ``camera_from_world`` of the views ``names`` from the .npy files of a folder. Raises InputError where one is missing or something else."""
    paths = {name: folder / f"{name}.npy" for name in names}
    for path in paths.values():
        if not path.is_file():
            raise InputError(f"{path}: no such file; true poses are needed here, dataset/gso.py and dataset/render.py make them")
    return {name: read_pose(path) for name, path in paths.items()}


def true_cameras(folder: Path, names: Iterable[str]) -> dict[str, Camera]:
    """The cameras of ``true_poses``; they look at the object's centre."""
    return {name: camera_from_pose(pose) for name, pose in true_poses(folder, names).items()}
