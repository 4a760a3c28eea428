"""Read the training corpus: every view decoded once into one array, mapped from disk afterwards; or object by object, as packed.

    corpus = CorpusReader("dataset/corpus_cache", "train", size=64)
    corpus.images        # (objects, 24, 64, 64, 4) uint8, premultiplied by alpha; a read-only memory map
    corpus.polar_rad, corpus.azimuth_rad, corpus.radius    # (objects, 24) float32
    corpus.names, corpus.licences, corpus.authors          # lists of length objects
    over_white = corpus.images[i, v, ..., :3] + (255 - corpus.images[i, v, ..., 3:])     # uint8, exact
    images, poses = PackedCorpus("dataset/corpus_cache", "train", size=64).decode(i)       # one object, nothing is kept
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import zipfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np

from dataset import procedural
from sap3d.errors import InputError, first_line
from sap3d.scene import atomic_path, read_json

SPLITS_DIR = Path(__file__).parent / "splits"
PARTS = ("train", "validation", "test")


def split_ids(part: str) -> list[str]:
    """The committed ids of one part ("train", "validation" or "test"); procedural objects: ``procedural.part_of``."""
    if part not in PARTS:
        raise InputError(f"unknown part {part!r} of the corpus, use one of {', '.join(PARTS)}")
    return (SPLITS_DIR / f"{part}.txt").read_text().split()


class PackedCorpus:
    """The packed objects of one part of the corpus (or of "all" of it): the split list in its order, then the procedural ones.

    Args:
        cache_dir: what ``python -m dataset.corpus --out`` wrote.
        split: "train", "validation", "test" or "all".
        size: side of the images, 128 (as rendered) or a divisor of it (averaged, premultiplied).
    Objects of the list that the cache does not hold are left out and named in ``missing``. Only the index is read.
    """

    def __init__(self, cache_dir: str | Path, split: str = "train", size: int = 128):
        self.cache_dir = Path(cache_dir)
        index = read_json(self.cache_dir / "index.json")
        if not index or not index.get("objects"):
            raise InputError(f"{self.cache_dir}: no rendered corpus there; run python -m dataset.corpus --out {self.cache_dir}")
        if size < 1 or index["size"] % size:
            raise InputError(f"corpus images of {index['size']} pixels cannot be had at {size}: use a divisor")
        records = {record["id"]: record for record in index["objects"]}
        if split == "all":
            wanted = sorted(records)
        else:
            wanted = split_ids(split)
            wanted += sorted(key for key in records if procedural.is_procedural(key) and procedural.part_of(key) == split)
        self.size, self.views = size, index["views"]
        self.names = [name for name in wanted if name in records]
        self.missing = [name for name in wanted if name not in records]
        if not self.names:
            raise InputError(f"{self.cache_dir}: holds no object of the part {split!r}")
        self.records = [records[name] for name in self.names]
        self.licences = [record["licence"] for record in self.records]
        self.authors = [record["author"] for record in self.records]

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        return self.cache_dir / "objects" / f"{self.names[index]}.npz"

    def decode(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Images (views, size, size, 4) uint8 premultiplied and poses (views, 3) of one object. Raises InputError for a damaged file."""
        try:
            return decode_object(self.path(index), self.size)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise _unusable(self.path(index), error) from None


def _unusable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: missing or damaged object of the corpus ({first_line(error)}); run python -m dataset.corpus again")


class CorpusReader(PackedCorpus):
    """``PackedCorpus`` with all its views decoded: ``images`` and the poses of the module's example.

    The decoded array is kept in ``cache_dir/decoded`` (1.6 MB an object at 128 px, 0.4 MB at 64 px), so that the next start is instant.
    workers: processes that decode it, 1 for this one alone (30 ms an object); others import the program's main file anew.
    """

    def __init__(self, cache_dir: str | Path, split: str = "train", size: int = 128, workers: int = 1):
        super().__init__(cache_dir, split, size)
        self.images, poses = self._decoded(workers)
        self.polar_rad, self.azimuth_rad, self.radius = poses.transpose(2, 0, 1)

    def _decoded(self, workers: int) -> tuple[np.ndarray, np.ndarray]:
        paths = [self.path(index) for index in range(len(self))]
        stamp = "".join(map(_stamp, paths))
        key = hashlib.sha256(f"v1 {self.size}\n{stamp}".encode()).hexdigest()[:16]
        image_path = self.cache_dir / "decoded" / f"{key}_images.npy"
        pose_path = self.cache_dir / "decoded" / f"{key}_poses.npy"
        if not (image_path.exists() and pose_path.exists()):
            shape = (len(paths), self.views, self.size, self.size, 4)
            with atomic_path(image_path) as temporary:
                np.lib.format.open_memmap(temporary, "w+", np.uint8, shape).flush()
                decode = partial(_decode_into, temporary, self)
                if workers > 1:
                    with multiprocessing.get_context("spawn").Pool(min(workers, len(paths))) as pool:
                        poses = pool.map(decode, range(len(paths)), chunksize=4)
                else:
                    poses = list(map(decode, range(len(paths))))
            with atomic_path(pose_path) as temporary:
                np.save(temporary, np.stack(poses).astype(np.float32))
        return np.load(image_path, mmap_mode="r"), np.load(pose_path)


def _stamp(path: Path) -> str:
    """A line that changes when the file does."""
    try:
        return f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}\n"
    except OSError as error:
        raise _unusable(path, error) from None


def _decode_into(array: Path, packed: PackedCorpus, row: int) -> np.ndarray:
    """Poses (views, 3) of an object, whose images become the row of the array file."""
    images, poses = packed.decode(row)
    np.load(array, mmap_mode="r+")[row] = images
    return poses


def decode_object(path: Path, size: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """One object file: images (views, size, size, 4) uint8 premultiplied, poses (views, 3) polar, azimuth, radius."""
    from PIL import Image

    with np.load(path) as data:
        blob, offsets = data["webp"].tobytes(), data["offsets"]
        poses = np.stack([data["polar_rad"], data["azimuth_rad"], data["radius"]], -1)
    images = [premultiplied(np.asarray(Image.open(io.BytesIO(blob[a:b])).convert("RGBA")), size) for a, b in zip(offsets, offsets[1:])]
    return np.stack(images), poses


def premultiplied(image: np.ndarray, size: int | None = None) -> np.ndarray:
    """Straight (H, H, 4) uint8 to premultiplied (size, size, 4) uint8; ``size`` divides H. Colour never exceeds alpha."""
    linear = image.astype(np.float32)
    linear[..., :3] *= linear[..., 3:] / 255
    if size is not None and size != image.shape[0]:
        factor = image.shape[0] // size
        linear = linear.reshape(size, factor, size, factor, 4).mean((1, 3))
    rounded = np.round(linear).astype(np.uint8)
    return np.concatenate([np.minimum(rounded[..., :3], rounded[..., 3:]), rounded[..., 3:]], -1)
