"""Build the training corpus: 24 posed renders of every object of the Sweet Home 3D furniture libraries.

    python -m dataset.corpus --source sweethome3d-furniture_1.8-1_all.deb --out dataset/corpus_cache

One file an object, ``objects/<id>.npz`` (fields: docs/DATASET.md), written atomically, so that a second run goes on where
the first stopped; ``index.json`` with author and licence of every object, and the objects that could not be rendered.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import multiprocessing
import os
import sys
import time
from pathlib import Path

import numpy as np

from dataset import sweethome
from sap3d import cameras
from sap3d.errors import InputError, cli
from sap3d.mesh_render import MeshRenderer, random_lighting
from sap3d.scene import atomic_path, read_json, write_json

VIEWS = 24
SIZE = 128
FORMAT = 1  # raised when files of an earlier version must be rendered again
WEBP_QUALITY = 90
LARGEST_MESH = 3_000_000  # triangles


def seed_of(name: str) -> int:
    """A seed from an object's name, the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


def sample_cameras(generator: np.random.Generator, views: int = VIEWS) -> np.ndarray:
    """(views, 3) of polar, azimuth (radians) and radius.

    Uniform on the sphere between elevations -50 and 70 degrees, azimuths stratified; radius 1.5 for every third view,
    else uniform in 1.3 .. 1.8.
    """
    sines = np.sin(np.deg2rad([-50.0, 70.0]))
    polar = np.pi / 2 - np.arcsin(generator.uniform(sines[0], sines[1], views))
    azimuth = (generator.permutation(views) + generator.uniform(0, 1, views)) * 2 * np.pi / views
    radius = np.where(np.arange(views) % 3 == 0, cameras.RADIUS, generator.uniform(1.3, 1.8, views))
    return np.stack([polar, azimuth, radius], axis=1)


def encode_webp(image: np.ndarray) -> bytes:
    """(H, W, 4) float straight alpha in [0, 1] to WebP bytes (lossy colour, lossless alpha)."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.round(image * 255).astype(np.uint8)).save(buffer, "WEBP", quality=WEBP_QUALITY, method=4)
    return buffer.getvalue()


def render_object(item: sweethome.CorpusObject, path: Path) -> dict:
    """Render one object into ``path``; returns facts about its mesh."""
    mesh = sweethome.load_object(item)
    if len(mesh.faces) > LARGEST_MESH:
        raise InputError(f"{len(mesh.faces)} triangles are more than {LARGEST_MESH}")
    generator = np.random.default_rng(seed_of(item.id))
    views = sample_cameras(generator)
    lighting = random_lighting(generator)
    renderer = MeshRenderer(mesh)
    images = []
    for polar, azimuth, radius in views:
        pose = cameras.Camera(polar, azimuth, radius).camera_from_world()
        images.append(renderer.render(pose, size=SIZE, lighting=lighting))
    images = np.stack(images)
    cover = float(images[..., 3].mean())
    if cover < 0.003:
        raise InputError(f"the object covers only {100 * cover:.2f} % of its images")
    blobs = [encode_webp(image) for image in images]
    extent = np.ptp(mesh.vertices[np.unique(mesh.faces)], axis=0)
    with atomic_path(path) as temporary:
        np.savez(
            temporary,
            format=FORMAT,
            webp=np.frombuffer(b"".join(blobs), np.uint8),
            offsets=np.cumsum([0] + [len(b) for b in blobs]).astype(np.int64),
            polar_rad=views[:, 0].astype(np.float32),
            azimuth_rad=views[:, 1].astype(np.float32),
            radius=views[:, 2].astype(np.float32),
            size=SIZE,
        )
    return {"faces": int(len(mesh.faces)), "extent": [round(float(x), 4) for x in extent], "cover": round(cover, 4)}


def _work(job) -> tuple[str, dict | None, str]:
    item, path = job
    try:
        return item.id, render_object(item, path), ""
    except Exception as error:  # one broken mesh of hundreds is named in the index, it does not end the run
        return item.id, None, f"{type(error).__name__}: {error}"


def is_complete(path: Path) -> bool:
    try:
        with np.load(path) as data:
            return int(data["format"]) == FORMAT and len(data["offsets"]) == VIEWS + 1
    except Exception:
        return False


def build(source: Path, out: Path, workers: int, limit: int | None = None) -> dict:
    """Render what is missing; returns the index that was written."""
    out = Path(out)
    items = sweethome.list_objects(sweethome.find_libraries(source, out / "libraries"))[:limit]
    index_path = out / "index.json"
    facts = {record["id"]: record for record in (read_json(index_path) or {}).get("objects", [])}
    (out / "objects").mkdir(parents=True, exist_ok=True)
    todo, done, failed = [], {}, {}
    for item in items:
        path = out / "objects" / f"{item.id}.npz"
        if item.id in facts and is_complete(path):
            done[item.id] = facts[item.id]
        else:
            todo.append((item, path))
    print(f"{len(items)} objects, {len(done)} already rendered, {workers} processes", flush=True)
    by_id = {item.id: item for item in items}

    def write_index() -> dict:
        index = {"format": FORMAT, "views": VIEWS, "size": SIZE, "fov_deg": 49.1, "source": sweethome.SOURCE,
                 "objects": [done[key] for key in sorted(done)], "failed": dict(sorted(failed.items()))}  # fmt: skip
        write_json(index_path, index)
        return index

    start = time.monotonic()
    with multiprocessing.get_context("fork").Pool(workers, maxtasksperchild=50) as pool:
        for count, (key, found, reason) in enumerate(pool.imap_unordered(_work, todo), 1):
            if found is None:
                failed[key] = reason
                print(f"skipped {key}: {reason}", file=sys.stderr, flush=True)
            else:
                done[key] = by_id[key].record() | found
            if count % 50 == 0 or count == len(todo):
                write_index()
                print(f"{count}/{len(todo)} objects in {time.monotonic() - start:.0f} s", flush=True)
    return write_index()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dataset.corpus", description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=Path, required=True, help=f"folder, .deb or .sh3f; {sweethome.HOW_TO_GET}")
    parser.add_argument("--out", type=Path, default=Path("dataset/corpus_cache"))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--limit", type=int, help="render the first objects only")
    args = parser.parse_args()
    index = build(args.source, args.out, max(1, args.workers), args.limit)
    print(f"{len(index['objects'])} objects in {args.out}, {len(index['failed'])} skipped (named in {args.out / 'index.json'})")


if __name__ == "__main__":
    cli(main)
