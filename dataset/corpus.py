"""Build the training corpus: 24 posed renders of every object of the Sweet Home 3D furniture libraries, and of procedural ones.

    python -m dataset.corpus --source sweethome3d-furniture_1.8-1_all.deb --procedural 2400 --out dataset/corpus_cache

Either kind may be left out; what the folder holds of the other stays. One file an object, ``objects/<id>.npz`` (fields:
docs/DATASET.md), written atomically, so that a second run goes on where the first stopped; ``index.json`` with author and
licence of every object, and the objects that could not be rendered.
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import sys
import time
from pathlib import Path

import numpy as np

from dataset import procedural, sweethome
from sap3d import cameras
from sap3d.errors import ArgumentParser, InputError, cli
from sap3d.mesh_render import DEFAULT_LIGHTING, MeshRenderer, random_lighting
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


class BoxRenderer(MeshRenderer):
    """Casts only the rays of the rectangle that the mesh can cover: the same images in three quarters of the time."""

    # Separate from MeshRenderer, whose plain render of all rays is what the tests hold it to: the corpus has thousands of objects to save time on, the protocol few.
    def render(self, camera_from_world, fov_rad=cameras.FOV_RAD, size=256, supersample=2, lighting=DEFAULT_LIGHTING) -> np.ndarray:
        tangent, pose = np.tan(fov_rad / 2), np.asarray(camera_from_world, np.float64)
        points = self.mesh.vertices[self.mesh.faces].reshape(-1, 3) @ pose[:, :3].T + pose[:, 3]
        depth = -points[:, 2]
        if depth.min() < 1e-3:  # part of the mesh is behind the camera
            return super().render(camera_from_world, fov_rad, size, supersample, lighting)
        across, down = ((value / depth / tangent + 1) / 2 * size for value in (points[:, 0], -points[:, 1]))
        (left, right), (top, bottom) = (np.clip([np.floor(v.min()) - 1, np.ceil(v.max()) + 1], 0, size).astype(int) for v in (across, down))
        image = np.zeros((size, size, 4), np.float32)
        if left == right or top == bottom:
            return image
        fine = size * supersample
        x, y = (((np.arange(a * supersample, b * supersample) + 0.5) / fine * 2 - 1) * tangent for a, b in ((left, right), (top, bottom)))
        directions = np.stack(np.broadcast_arrays(x[None], -y[:, None], -1.0), -1) @ pose[:, :3]
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
        directions = directions.reshape(-1, 3).astype(np.float32)
        origins = np.broadcast_to(cameras.camera_centers(pose).astype(np.float32), directions.shape).copy()
        hit, face, distance, weights = self._cast(origins, directions)
        samples = np.zeros((len(directions), 4), np.float32)
        samples[hit, :3] = self._shade(face, weights, distance * (2 * tangent / fine), directions[hit], lighting)
        samples[hit, 3] = 1
        block = samples.reshape(bottom - top, supersample, right - left, supersample, 4).mean((1, 3))
        block[..., :3] /= np.maximum(block[..., 3:], 1e-6)
        image[top:bottom, left:right] = np.clip(block, 0, 1)
        return image


def render_object(item: sweethome.CorpusObject | procedural.ProceduralObject, path: Path) -> dict:
    """Render one object into ``path``; returns facts about its mesh."""
    mesh = item.load()
    if len(mesh.faces) > LARGEST_MESH:
        raise InputError(f"{len(mesh.faces)} triangles are more than {LARGEST_MESH}")
    generator = np.random.default_rng(seed_of(item.id))
    views = sample_cameras(generator)
    lighting = random_lighting(generator)
    renderer = BoxRenderer(mesh)
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


def build(source: Path | None, out: Path, workers: int, limit: int | None = None, procedural_count: int = 0) -> dict:
    """Render what is missing; returns the index that was written.

    Args:
        source: folder, .deb or .sh3f of the furniture libraries, or None for none of them.
        limit: only the first objects of the libraries.
        procedural_count: so many procedural objects too.
    """
    out = Path(out)
    items = [] if source is None else sweethome.list_objects(sweethome.find_libraries(source, out / "libraries"))[:limit]
    items += procedural.list_objects(procedural_count)
    index_path = out / "index.json"
    before = read_json(index_path) or {}
    facts = {record["id"]: record for record in before.get("objects", [])}
    (out / "objects").mkdir(parents=True, exist_ok=True)
    asked = {item.id for item in items}
    todo, done = [], {key: record for key, record in facts.items() if key not in asked}
    failed = {key: reason for key, reason in before.get("failed", {}).items() if key not in asked}
    kept = len(done)
    for item in items:
        path = out / "objects" / f"{item.id}.npz"
        if item.record().items() <= facts.get(item.id, {}).items() and is_complete(path):
            done[item.id] = facts[item.id]
        else:
            todo.append((item, path))
    print(f"{len(items)} objects, {len(done) - kept} already rendered, {workers} processes", flush=True)
    by_id = {item.id: item for item in items}

    def write_index() -> dict:
        libraries = {record["library"] for record in done.values()}
        sources = [sweethome.SOURCE] * bool(libraries - {procedural.LIBRARY}) + [procedural.SOURCE] * (procedural.LIBRARY in libraries)
        index = {"format": FORMAT, "views": VIEWS, "size": SIZE, "fov_deg": 49.1, "source": "; ".join(sources),
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
    parser = ArgumentParser(prog="python -m dataset.corpus", description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=Path, help=f"folder, .deb or .sh3f; {sweethome.HOW_TO_GET}")
    parser.add_argument("--procedural", type=int, default=0, metavar="N", help="render the first N procedural objects too")
    parser.add_argument("--out", type=Path, default=Path("dataset/corpus_cache"))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--limit", type=int, help="render the first objects of the libraries only")
    args = parser.parse_args()
    if args.procedural < 0 or (args.source is None and not args.procedural):
        raise InputError(f"nothing to render: give --source, --procedural N or both; {sweethome.HOW_TO_GET}")
    index = build(args.source, args.out, max(1, args.workers), args.limit, args.procedural)
    print(f"{len(index['objects'])} objects in {args.out}, {len(index['failed'])} skipped (named in {args.out / 'index.json'})")


if __name__ == "__main__":
    cli(main)
