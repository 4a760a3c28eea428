"""Regulariser ("super-class") objects: posed renders of other objects, which keep the personal model from forgetting.

``dataset/data/objaverse`` may hold them in two forms, also side by side:

* folders ``<uid>/{images,poses}/000..023``, as users of SAP3D know them (PNG with alpha, 3 x 4 camera_from_world);
* ``*.npz`` packs, which the repository bundles: many objects in one file (fields: docs/DATASET.md).
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Sequence

import numpy as np
from PIL import Image

from sap3d.cameras import Camera, camera_from_pose
from sap3d.errors import InputError
from sap3d.images import load_rgba, resize, to_uint8
from sap3d.scene import atomic_path, read_pose

PACK_FORMAT = 1


@dataclass
class RegulariserObject:
    """One object: ``images`` (V, S, S, 4) uint8 premultiplied by alpha, and the V cameras they were rendered from."""

    uid: str
    images: np.ndarray
    cameras: list[Camera]

    def over_white(self) -> np.ndarray:
        """(V, S, S, 3) uint8 over white."""
        return self.images[..., :3] + (255 - self.images[..., 3:])

    def over_white_with_cover(self) -> np.ndarray:
        """(V, S, S, 4) uint8: colour over white, and coverage."""
        return np.concatenate([self.over_white(), self.images[..., 3:]], -1)


def list_regularisers(folder: Path) -> list[str]:
    """Ids of all objects in ``folder``, sorted; empty when the folder does not exist."""
    return sorted(_sources(Path(folder)))


def load_regularisers(folder: Path, uids: Sequence[str] | None = None, size: int | None = None, views: int | None = None) -> list[RegulariserObject]:
    """Load objects (all of them, or ``uids`` in that order), resized to ``size`` pixels if given; about ``views`` evenly chosen views of each, if given.

    Raises InputError for an id that is not there and for files that cannot be read.
    """
    sources = _sources(Path(folder))
    wanted = sorted(sources) if uids is None else list(uids)
    missing = [uid for uid in wanted if uid not in sources]
    if missing:
        raise InputError(f"{folder}: no regulariser object {missing[0]!r}; it holds {len(sources)} objects")
    packs: dict[Path, Mapping[str, np.ndarray]] = {}
    result = []
    for uid in wanted:
        source = sources[uid]
        if source.is_dir():
            result.append(_load_folder(source, uid, size, views))
            continue
        if source not in packs:
            with np.load(source) as data:
                packs[source] = {key: data[key] for key in data.files}
        result.append(_load_packed(packs[source], uid, size, views))
    return result


def _sources(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    if not folder.is_dir():
        return found
    for pack in sorted(folder.glob("*.npz")):
        try:
            with np.load(pack) as data:
                if int(data["format"]) != PACK_FORMAT:
                    raise ValueError(f"format {int(data['format'])}, not {PACK_FORMAT}")
                found.update({str(uid): pack for uid in data["uids"]})
        except Exception as error:
            raise InputError(f"{pack}: not a pack of regulariser objects ({error}); restore it or build it with python -m dataset.demo") from None
    found.update({path.name: path for path in folder.iterdir() if (path / "images").is_dir() and (path / "poses").is_dir()})
    return found


def _step(count: int, views: int | None) -> int:
    return 1 if views is None else max(count // views, 1)


def _load_folder(path: Path, uid: str, size: int | None, views: int | None) -> RegulariserObject:
    images, cameras = [], []
    paths = sorted((path / "images").glob("*.png"))
    for image_path in paths[:: _step(len(paths), views)]:
        pose_path = path / "poses" / f"{image_path.stem}.npy"
        if not pose_path.is_file():
            raise InputError(f"{pose_path}: missing, but {image_path.name} exists; every view needs its pose")
        cameras.append(camera_from_pose(read_pose(pose_path)))
        images.append(_premultiply(load_rgba(image_path), size))
    if len(images) < 2:
        raise InputError(f"{path / 'images'}: {len(images)} PNG views in it; a regulariser object needs two at least")
    return RegulariserObject(uid, np.stack(images), cameras)


def _load_packed(pack: Mapping[str, np.ndarray], uid: str, size: int | None, views: int | None) -> RegulariserObject:
    row = [str(u) for u in pack["uids"]].index(uid)
    count = pack["polar_rad"].shape[1]
    chosen = range(0, count, _step(count, views))
    images = []
    for k in (row * count + view for view in chosen):
        blob = pack["webp"][pack["offsets"][k] : pack["offsets"][k + 1]].tobytes()
        straight = np.asarray(Image.open(io.BytesIO(blob)).convert("RGBA"), np.float32) / 255
        images.append(_premultiply(straight, size))
    poses = zip(*(pack[name][row][chosen.start : chosen.stop : chosen.step] for name in ("polar_rad", "azimuth_rad", "radius")))
    return RegulariserObject(uid, np.stack(images), [Camera(float(p), float(a), float(r)) for p, a, r in poses])


def _premultiply(image: np.ndarray, size: int | None) -> np.ndarray:
    image = image if size is None else resize(image, size)
    alpha = to_uint8(image[..., 3:])
    return np.concatenate([np.minimum(to_uint8(image[..., :3] * image[..., 3:]), alpha), alpha], -1)


def write_pack(path: Path, objects: Mapping[str, tuple[list[bytes], np.ndarray]], licences: Mapping[str, str], authors: Mapping[str, str]) -> None:
    """Write a pack: {uid: (WebP bytes a view, (V, 3) polar, azimuth, radius)}; every object has the same number of views."""
    uids = sorted(objects)
    blobs = [blob for uid in uids for blob in objects[uid][0]]
    poses = np.stack([objects[uid][1] for uid in uids]).astype(np.float32)
    with atomic_path(Path(path)) as temporary:
        np.savez(
            temporary,
            format=PACK_FORMAT,
            uids=np.array(uids),
            licences=np.array([licences[uid] for uid in uids]),
            authors=np.array([authors[uid] for uid in uids]),
            polar_rad=poses[..., 0],
            azimuth_rad=poses[..., 1],
            radius=poses[..., 2],
            webp=np.frombuffer(b"".join(blobs), np.uint8),
            offsets=np.cumsum([0] + [len(b) for b in blobs]).astype(np.int64),
        )
